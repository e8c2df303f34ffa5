//! One server for all tests of a process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::Postgres;
use crate::process::StackError;

const PREFIX: &str = "sextant-shared-postgres-";

static SHARED: OnceLock<Result<Postgres, StackError>> = OnceLock::new();

impl Postgres {
    /// Starts the server that the tests of this process share, when it is the first to ask; blocks
    /// until it answers. It does not outlive the process, and its files are removed.
    ///
    /// # Errors
    /// Why it did not start, the same for all who ask.
    pub fn shared() -> Result<&'static Self, &'static StackError> {
        SHARED.get_or_init(start).as_ref()
    }
}

fn dir(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{pid}"))
}

/// On a thread that lives as long as the process: a server dies with the thread that started it,
/// and that of a test ends with the test.
fn start() -> Result<Postgres, StackError> {
    remove_left_behind(PREFIX)?;
    // SAFETY: the function takes nothing and does not unwind.
    unsafe { libc::atexit(end) };
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return send.send(Err(error.into())).unwrap_or_default(),
        };
        runtime.block_on(async {
            let started = Postgres::primary_with(&dir(std::process::id()), &["fsync=off"]).await;
            if send.send(started).is_ok() {
                std::future::pending::<()>().await;
            }
        });
    });
    receive.recv().map_err(|_| StackError("the thread that starts Postgres ended".into()))?
}

/// Removes the folders of processes that were killed.
pub(crate) fn remove_left_behind(prefix: &str) -> Result<(), StackError> {
    for entry in std::fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be removing it too; what stays is tried again next time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// When the process ends.
extern "C" fn end() {
    if let Some(Ok(server)) = SHARED.get() {
        let _ = server.signal_all(libc::SIGKILL); // it may have ended by itself
    }
    // Sessions that are just ending may still write.
    for _ in 0..100 {
        let dir = dir(std::process::id());
        if std::fs::remove_dir_all(&dir).is_ok() || !dir.exists() {
            return;
        }
        std::thread::yield_now();
    }
}
