//! The server's process.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::{Api, PATIENCE, model_dir, server_binary};

/// How a server is started.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    data_dir: Option<PathBuf>,
    max_file_kib: Option<u64>,
}

impl Options {
    fn new() -> Self {
        Self {
            arguments: vec!["serve".to_owned()],
            environment: Vec::new(),
            data_dir: None,
            max_file_kib: None,
        }
        .set("server.listen", "127.0.0.1:0")
    }

    /// With the real model, on the CPU.
    pub fn model() -> Self {
        let folder = model_dir();
        Self::new()
            .set("embedder.model_dir", folder.to_str().expect("a path in UTF-8"))
            .set("embedder.device", "cpu")
    }

    /// With pseudo-vectors of words: starts at once, for tests that are not about the model.
    pub fn hash() -> Self {
        Self::new().set("embedder.kind", "hash")
    }

    /// Sets a field of the configuration, as in `server.listen`.
    pub fn set(mut self, field: &str, value: &str) -> Self {
        let variable = format!("SEXTANT_{}", field.replace('.', "__").to_uppercase());
        self.environment.push((variable, value.to_owned()));
        self
    }

    /// State that outlives the server; without it the server has a folder of its own.
    pub fn data_dir(mut self, folder: &Path) -> Self {
        self.data_dir = Some(folder.to_owned());
        self
    }

    pub fn seed(mut self, collection: &str, file: &Path) -> Self {
        self.arguments.extend(["--seed".to_owned(), format!("{collection}={}", file.display())]);
        self
    }

    /// A command of the program with the same configuration.
    pub fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = cli(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// No file may grow larger, as on a full disk.
    pub fn max_file_kib(mut self, kib: u64) -> Self {
        self.max_file_kib = Some(kib);
        self
    }
}

/// A command of the server's program in a clean environment: nothing of the one who runs the tests.
pub fn cli(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(server_binary());
    command.args(arguments);
    clean(&mut command);
    command.kill_on_drop(true);
    command
}

fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let lower = name.to_string_lossy().to_lowercase();
        let ours = ["sextant_", "otel_"].iter().any(|prefix| lower.starts_with(prefix));
        if ours || lower.ends_with("_proxy") {
            command.env_remove(&name);
        }
    }
}

/// A process that is ready, starting or ended.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub data_dir: PathBuf,
    /// Its log, and its state unless the test gave a folder.
    folder: TempDir,
}

impl Process {
    pub fn spawn(options: &Options) -> Self {
        let folder = tempfile::Builder::new().prefix("sextant-test-").tempdir().expect("a folder");
        let data_dir = options.data_dir.clone().unwrap_or_else(|| folder.path().join("data"));
        let mut command = match options.max_file_kib {
            None => Command::new(server_binary()),
            Some(kib) => {
                // Units of 512 bytes; with the signal ignored, a write fails instead.
                let mut shell = Command::new("sh");
                let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2);
                shell.args(["-c", &script, "sh"]).arg(server_binary());
                shell
            }
        };
        clean(&mut command);
        let log = File::create(folder.path().join("log")).expect("a log");
        let mut child = command
            .args(&options.arguments)
            .env("SEXTANT_SERVER__DATA_DIR", &data_dir)
            .envs(options.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdout, data_dir, folder }
    }

    /// Waits until the server says that it is ready, and where.
    pub async fn ready(mut self) -> Server {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stdout.read_line(&mut line)).await;
        let url = line.trim().strip_prefix("sextant-server is ready on ");
        let (Ok(Ok(_)), Some(url)) = (read, url) else {
            panic!("the server is not ready; it said {line:?}\n{}", self.log())
        };
        Server { url: url.to_owned(), api: Api::new(url), process: self }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let text = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("a process that has not been waited for")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.pid()).expect("a process number");
        // SAFETY: no memory is involved; the process is our child and not reaped yet.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "signal {signal}");
    }

    /// Ends it like a failure of power does for a process: at once.
    pub async fn kill9(mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Asks it to end and waits.
    pub async fn terminate(self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.exit().await.0
    }

    /// Waits until it has ended by itself; its status and its log.
    pub async fn exit(mut self) -> (ExitStatus, String) {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, async {
            // To the end, so that it never waits for its reader.
            let _ = self.stdout.read_to_end(&mut rest).await;
            self.child.wait().await
        });
        let status = ended.await;
        let log = self.log();
        (status.unwrap_or_else(|_| panic!("the server does not end\n{log}")).unwrap(), log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server on {}\n{}", self.data_dir.display(), self.log());
        }
        let Some(pid) = self.child.id() else { return };
        let _ = self.child.start_kill();
        // Until it is gone: it must not write into a folder that is being removed.
        stopped(pid);
    }
}

/// Waits until a child that was killed has ended, and leaves its status to be collected.
pub fn stopped(pid: u32) {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
    let flags = libc::WEXITED | libc::WNOWAIT;
    // SAFETY: `info` is large enough and not read.
    unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), flags) };
}

/// A server that is ready.
#[derive(Debug)]
pub struct Server {
    pub url: String,
    pub api: Api,
    pub process: Process,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub async fn start(options: Options) -> Self {
        Process::spawn(&options).ready().await
    }

    pub async fn kill9(self) {
        self.process.kill9().await;
    }

    pub async fn terminate(self) -> ExitStatus {
        self.process.terminate().await
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Runs a command of the program as a client of this server.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let running = cli(arguments).env("SEXTANT_URL", &self.url).output();
        timeout(PATIENCE, running).await.expect("the command ends").expect("the command runs")
    }
}
