//! A cluster, a stack on it, and load inside.

mod cluster;
mod forward;
mod load;
mod probe;
mod stack;

pub use cluster::{Cluster, repository};
pub use forward::Forward;
pub use load::Load;
pub use probe::{Probe, processes_of};
pub use stack::{NAME, NAMESPACE, Stack};

use std::time::{Duration, Instant};

use serde_json::Value;
use sextant_e2e::load::{Rates, Report};

const RATES: Rates = Rates { searches_per_second: 10.0, writes_per_second: 10.0 };
/// Of load before a fault, and after everything is well again.
pub const AROUND: Duration = Duration::from_secs(5);

/// Asks again until this holds.
///
/// # Panics
/// With what was awaited, and what was seen last, when it takes longer than `patience`.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    try_until(what, patience, ask).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The same, for what has to be undone first.
pub async fn try_until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(value) => return Ok(value),
            Err(seen) if Instant::now() > deadline => {
                return Err(format!("{what}: not within {} s: {seen}", patience.as_secs()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A measured figure, for docs/benchmarks.md.
pub fn figure(what: &str) {
    println!("figure: {what}");
}

/// Load around a fault, until the stack is whole again. Nothing acknowledged is lost.
pub async fn through(stack: &Stack, fault: impl AsyncFnOnce()) -> Report {
    let load = stack.load();
    load.start(RATES).await;
    tokio::time::sleep(AROUND).await;
    fault().await;
    stack.whole(Duration::from_mins(5)).await;
    tokio::time::sleep(AROUND).await;
    let report = load.stop().await;
    let (acknowledged, missing) = load.lost().await;
    assert_eq!(missing, Vec::<Value>::new(), "of {acknowledged} acknowledged writes; {report}");
    let searches = report.searches();
    assert_eq!((searches.empty, searches.wrong), (0, 0), "{report}");
    report
}

/// A loopback port that nobody had a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
