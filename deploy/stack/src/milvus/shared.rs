//! One Milvus 2.3.5 for all tests of a process.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::MilvusStandalone;
use crate::postgres::shared::remove_left_behind;
use crate::process::StackError;

const PREFIX: &str = "sextant-shared-milvus-";

static SHARED: OnceLock<Result<MilvusStandalone, StackError>> = OnceLock::new();

impl MilvusStandalone {
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
fn start() -> Result<MilvusStandalone, StackError> {
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
            let started = MilvusStandalone::start(&dir(std::process::id())).await;
            if send.send(started).is_ok() {
                std::future::pending::<()>().await;
            }
        });
    });
    receive.recv().map_err(|_| StackError("the thread that starts Milvus ended".into()))?
}

/// When the process ends.
extern "C" fn end() {
    if let Some(Ok(server)) = SHARED.get() {
        let _ = server.process.signal(libc::SIGKILL); // it may have ended by itself
        server.forget();
    }
    // It may still write while it ends.
    for _ in 0..100 {
        let dir = dir(std::process::id());
        if std::fs::remove_dir_all(&dir).is_ok() || !dir.exists() {
            return;
        }
        std::thread::yield_now();
    }
}
