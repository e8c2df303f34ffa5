//! Helpers for tests and benchmarks that run the real server process: start it on a port that the
//! system chooses, speak to it, end it kindly or not. Whatever a test leaves is cleaned up on drop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test code: a failure is a panic with the reason"
)]

mod api;
pub mod browser;
pub mod metric;
mod process;
pub mod production;

pub use api::{Answer, Api};
pub use process::{Options, Process, Server, cli, stopped};

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for anything that a test awaits; far above what is usual, so that a slow machine
/// does not fail it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The server's program, which cargo puts beside the tests.
pub fn server_binary() -> PathBuf {
    let this = std::env::current_exe().expect("the test's own path");
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("sextant-server"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("there is no sextant-server beside {}: run `make test`", this.display())
        })
}

/// The model's folder: `MODEL_DIR`, else where `make setup` puts it.
pub fn model_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("MODEL_DIR").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        cache.expect("HOME is set").join("sextant").join("model")
    });
    let found = folder.join("model.safetensors").is_file();
    assert!(found, "there is no model in {}: run `make setup`", folder.display());
    folder
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(path)
}

/// Asks again until there is an answer; `None` after [`PATIENCE`].
pub async fn awaited<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.ok()
}

/// As [`awaited`], but panics with what was awaited.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    awaited(ask).await.unwrap_or_else(|| panic!("{what}: not within {} s", PATIENCE.as_secs()))
}
