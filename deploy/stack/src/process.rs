//! A server's process: started, waited for, stopped, killed or frozen by its pid.

use std::fs::File;
use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for a server to start or to end.
pub const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// Why a server is not running; the end of its log is part of the message.
#[derive(Debug)]
pub struct StackError(pub String);

impl std::fmt::Display for StackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StackError {}

impl From<std::io::Error> for StackError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// A running server. Dropping it kills it.
pub struct Process {
    name: String,
    log: PathBuf,
    pid: Option<u32>,
    child: Child,
}

impl Process {
    /// Starts a command in a process group of its own, so that Ctrl-C does not reach it; its output
    /// goes to `log`. It is killed when this process dies, however that dies.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self, StackError> {
        let output = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true);
        // SAFETY: prctl with these arguments is a plain system call, allowed after fork.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child =
            command.spawn().map_err(|error| StackError(format!("cannot start {name}: {error}")))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), pid: child.id(), child })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The process's id, also after it has ended.
    pub fn pid_at_start(&self) -> Option<u32> {
        self.pid
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `ready` is true, at most [`PATIENCE`].
    ///
    /// # Errors
    /// When the process ends or the time does; with the last lines of its log.
    pub async fn ready<F: Future<Output = bool>>(
        &mut self,
        mut ready: impl FnMut() -> F,
    ) -> Result<(), StackError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if ready().await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failed(&format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failed("was not ready in time"));
            }
            sleep(POLL).await;
        }
    }

    fn failed(&self, what: &str) -> StackError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        StackError(format!("{} {what}; the end of {}:\n{tail}", self.name, self.log.display()))
    }

    /// Sends a signal of `libc`, as in `libc::SIGSTOP`.
    pub fn signal(&self, signal: i32) -> Result<(), StackError> {
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return Err(StackError(format!("{} has ended", self.name)));
        };
        // SAFETY: a plain system call; the child is not reaped yet, so the id is still its own.
        if unsafe { libc::kill(pid, signal) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error().into())
        }
    }

    /// Stops it where it is, until `SIGCONT`; returns when none of its threads runs any more.
    pub async fn freeze(&self) -> Result<(), StackError> {
        self.signal(libc::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.pid().unwrap_or_default());
        until("a process to stop", || async { all_stopped(&tasks).unwrap_or(false) }).await
    }

    /// Asks it to end with `signal` and waits; what does not end in `limit` is killed.
    pub async fn stop(&mut self, signal: i32, limit: Duration) -> Result<(), StackError> {
        if self.child.try_wait()?.is_none() {
            self.signal(signal)?;
            if timeout(limit, self.child.wait()).await.is_err() {
                self.kill().await?;
            }
        }
        Ok(())
    }

    /// Ends it at once, as a crash would, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), StackError> {
        Ok(self.child.kill().await?)
    }
}

/// Ids of the processes that `parent` started. Some lead a process group of their own, as the
/// sessions of Postgres do, so that the group of the server does not reach them.
pub fn children(parent: u32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A loopback port that nobody had a moment ago.
pub fn free_port() -> Result<u16, StackError> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// See proc(5), `/proc/pid/stat`: the state comes after the name in brackets.
fn all_stopped(tasks: &str) -> std::io::Result<bool> {
    for task in std::fs::read_dir(tasks)? {
        let stat = std::fs::read_to_string(task?.path().join("stat"))?;
        if !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until `condition` is true, at most [`PATIENCE`].
pub async fn until<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<(), StackError> {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        if Instant::now() > deadline {
            return Err(StackError(format!("waited in vain for {what}")));
        }
        sleep(POLL).await;
    }
    Ok(())
}
