//! Servers that all tests of a process share. They do not outlive the process, and their files are
//! removed.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use crate::process::{StackError, children};

const PREFIX: &str = "sextant-shared-";

static AT_EXIT: Once = Once::new();
static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// What is to be done away with at the end of the process.
pub struct Left {
    pub pids: Vec<u32>,
    /// Files that the server makes outside of its folder.
    pub files: Vec<PathBuf>,
}

/// Starts a server in a folder of its own; blocks until `start` is done.
///
/// On a thread that lives as long as the process: a server dies with the thread that started it,
/// and that of a test ends with the test.
pub fn start<T, F>(
    name: &'static str,
    start: impl FnOnce(PathBuf) -> F + Send + 'static,
    left: fn(&T) -> Left,
) -> Result<T, StackError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StackError>>,
{
    remove_left_behind()?;
    AT_EXIT.call_once(|| {
        // SAFETY: the function takes nothing and does not unwind.
        unsafe { libc::atexit(end) };
    });
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return send.send(Err(error.into())).unwrap_or_default(),
        };
        runtime.block_on(async {
            let started = start(dir(std::process::id()).join(name)).await;
            if let Ok(server) = &started {
                all_left().push(left(server));
            }
            if send.send(started).is_ok() {
                std::future::pending::<()>().await;
            }
        });
    });
    receive.recv().map_err(|_| StackError(format!("the thread that starts {name} ended")))?
}

fn all_left() -> std::sync::MutexGuard<'static, Vec<Left>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dir(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{pid}"))
}

/// Removes the folders of processes that were killed.
fn remove_left_behind() -> Result<(), StackError> {
    for entry in std::fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be removing it too; what stays is tried again next time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// When the process ends.
extern "C" fn end() {
    for Left { pids, files } in all_left().drain(..) {
        let with_children = |pid| i32::try_from(pid).into_iter().chain(children(pid));
        let pids = pids.into_iter().flat_map(with_children);
        for pid in pids {
            // SAFETY: a plain system call; it fails for one that has ended by itself.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        for file in files {
            let _ = std::fs::remove_file(file); // it may not have come to making it
        }
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
