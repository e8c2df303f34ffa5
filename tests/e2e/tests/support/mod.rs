//! A cluster, a stack on it, and load inside.

mod cluster;
mod load;
mod probe;
mod stack;

pub use cluster::{Cluster, repository};
pub use load::Load;
pub use probe::Probe;
pub use stack::{NAME, NAMESPACE, Stack};

use std::time::{Duration, Instant};

/// Asks again until this holds.
///
/// # Panics
/// With what was awaited, and what was seen last, when it takes longer than `patience`.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => {
                panic!("{what}: not within {} s: {seen}", patience.as_secs())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A measured figure, for docs/benchmarks.md.
pub fn figure(what: &str) {
    println!("figure: {what}");
}
