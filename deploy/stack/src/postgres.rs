//! Postgres: a primary and streaming replicas, each a process of this one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use tokio::process::Command;
use tokio::time::timeout;

use crate::process::{PATIENCE, Process, StackError, children, free_port, until};
use crate::shared::{self, Left};

const USER: &str = "sextant";
const SETTINGS: [&str; 5] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=100",
    "wal_keep_size=256MB",
    // A replica follows a primary that is back at once, not after 5 s.
    "wal_retrieve_retry_interval=200ms",
];

/// A running Postgres on loopback, open to everybody on this machine. Dropping it kills it; its
/// folder stays.
pub struct Postgres {
    install: Install,
    dir: PathBuf,
    port: u16,
    settings: Vec<String>,
    process: Process,
}

impl Postgres {
    /// Starts the server in `dir`, an empty one when there is none, and waits until it answers.
    ///
    /// As Postgres refuses to run as root, root gives `dir` to the user `postgres` or `nobody`, who
    /// must be able to reach it: every folder above needs to be open to others.
    pub async fn primary(dir: &Path) -> Result<Self, StackError> {
        Self::primary_with(dir, &[]).await
    }

    /// Starts the server that the tests of this process share, when it is the first to ask; blocks
    /// until it answers.
    ///
    /// # Errors
    /// Why it did not start, the same for all who ask.
    pub fn shared() -> Result<&'static Self, &'static StackError> {
        static SHARED: OnceLock<Result<Postgres, StackError>> = OnceLock::new();
        let start = async |dir: PathBuf| Self::primary_with(&dir, &["fsync=off"]).await;
        SHARED
            .get_or_init(|| {
                shared::start("postgres", start, |server: &Self| Left {
                    pids: server.process.pid().into_iter().collect(),
                    files: Vec::new(),
                })
            })
            .as_ref()
    }

    /// The same with settings of postgresql.conf, as in `fsync=off`.
    pub async fn primary_with(dir: &Path, settings: &[&str]) -> Result<Self, StackError> {
        let install = Install::find()?;
        install.take_over(dir)?;
        let data = dir.join("data");
        if !data.join("PG_VERSION").exists() {
            let mut initdb = install.command("initdb", dir);
            initdb.arg("-D").arg(&data).args(["-U", USER, "-E", "UTF8", "--locale=C"]);
            initdb.args(["--auth-local=reject", "--auth-host=trust", "--no-sync"]);
            run("initdb", initdb).await?;
        }
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        Self::start(install, dir, free_port()?, settings).await
    }

    /// Starts the replica of `primary` in `dir`, a copy when there is none, which streams the
    /// primary's changes, and waits until it answers.
    pub async fn replica(primary: &Self, dir: &Path) -> Result<Self, StackError> {
        let install = primary.install.clone();
        install.take_over(dir)?;
        let data = dir.join("data");
        if !data.join("standby.signal").exists() {
            let mut copy = install.command("pg_basebackup", dir);
            copy.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-U", USER, "-p"]);
            copy.arg(primary.port.to_string());
            copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]);
            run("pg_basebackup", copy).await?;
        }
        let mut settings = primary.settings.clone();
        // The primary's port may be another one than when the copy was made.
        settings.push(format!(
            "primary_conninfo=host=127.0.0.1 port={} user={USER} application_name=replica",
            primary.port
        ));
        Self::start(install, dir, free_port()?, settings).await
    }

    async fn start(
        install: Install,
        dir: &Path,
        port: u16,
        settings: Vec<String>,
    ) -> Result<Self, StackError> {
        let mut command = install.command("postgres", dir);
        command.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string()]);
        for setting in SETTINGS.iter().copied().chain(settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        let process = Process::start("postgres", command, &dir.join("postgres.log"))?;
        let mut server = Self { install, dir: dir.to_owned(), port, settings, process };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&mut self) -> Result<(), StackError> {
        let (install, dir, port) = (&self.install, &self.dir, self.port);
        self.process
            .ready(|| async move { ask(install, dir, port, "SELECT 1").await.is_ok() })
            .await
    }

    /// Starts it again, on the same folder and port, after it was stopped or killed.
    pub async fn restart(&mut self) -> Result<(), StackError> {
        self.process.kill().await.ok(); // it has ended already
        let (install, settings) = (self.install.clone(), self.settings.clone());
        *self = Self::start(install, &self.dir, self.port, settings).await?;
        Ok(())
    }

    /// Takes connections with TLS from now on, beside those without; both in PEM.
    pub async fn use_tls(&self, certificate: &str, key: &str) -> Result<(), StackError> {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let file = self.dir.join("data").join(name);
            std::fs::write(&file, text)?;
            // Others who could read the key are a reason for Postgres to refuse it.
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
            if let Some((user, group)) = self.install.account {
                std::os::unix::fs::chown(&file, Some(user), Some(group))?;
            }
        }
        self.ask("ALTER SYSTEM SET ssl = on").await?;
        self.ask("SELECT pg_reload_conf()").await?;
        until("TLS", || async { self.ask("SHOW ssl").await.is_ok_and(|on| on == "on") }).await
    }

    /// Makes a replica the primary, and waits until it accepts writes.
    pub async fn promote(&self) -> Result<(), StackError> {
        self.ask("SELECT pg_promote(true, 60)").await.map(drop)
    }

    /// Runs one statement with `psql`; its result without headings.
    pub async fn ask(&self, statement: &str) -> Result<String, StackError> {
        ask(&self.install, &self.dir, self.port, statement).await
    }

    /// Makes an empty database.
    pub async fn create_database(&self, name: &str) -> Result<(), StackError> {
        self.ask(&format!("CREATE DATABASE \"{name}\"")).await.map(drop)
    }

    /// Connection string of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The options that `postgres` needs to be started with by hand, on the same port.
    pub fn options(&self) -> String {
        format!("-p {} -c {}", self.port, SETTINGS.join(" -c "))
    }

    /// A shell of the user who runs the server, with Postgres's programs in its path.
    pub fn shell(&self) -> Command {
        let mut shell = self.install.command("/bin/bash", &self.dir);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.install.bin.clone()].into_iter().chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            shell.env("PATH", path);
        }
        shell
    }

    /// To kill it, or to stop it in an orderly way.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops the server and its sessions where they are: connections stay, nothing answers.
    pub fn freeze(&self) -> Result<(), StackError> {
        self.signal_all(libc::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<(), StackError> {
        self.signal_all(libc::SIGCONT)
    }

    fn signal_all(&self, signal: i32) -> Result<(), StackError> {
        self.process.signal(signal)?;
        for pid in self.process.pid().into_iter().flat_map(children) {
            // SAFETY: a plain system call; at worst the session has ended and the call fails.
            unsafe { libc::kill(pid, signal) };
        }
        Ok(())
    }
}

async fn ask(
    install: &Install,
    dir: &Path,
    port: u16,
    statement: &str,
) -> Result<String, StackError> {
    let mut psql = install.command("psql", dir);
    psql.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-U", USER, "-d", "postgres", "-p"]);
    psql.arg(port.to_string()).arg("-c").arg(statement);
    psql.env("PGCONNECT_TIMEOUT", "5");
    run("psql", psql).await
}

/// Runs a command to its end; its output.
async fn run(name: &str, mut command: Command) -> Result<String, StackError> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, output)
        .await
        .map_err(|_| StackError(format!("{name} did not end in {} s", PATIENCE.as_secs())))??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(StackError(format!("{name} failed: {}", message.trim())))
}

/// Postgres's programs and the user who runs them.
#[derive(Clone)]
struct Install {
    bin: PathBuf,
    /// User and group, when this process is root.
    account: Option<(u32, u32)>,
}

impl Install {
    fn find() -> Result<Self, StackError> {
        let bin = candidates()
            .into_iter()
            .find(|bin| ["initdb", "postgres", "psql"].iter().all(|name| bin.join(name).exists()))
            .ok_or_else(|| {
                StackError(
                    "no Postgres found: install it (Debian: postgresql) or set PG_BINDIR".into(),
                )
            })?;
        // SAFETY: a plain system call that cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        let account = if root { Some(unprivileged()?) } else { None };
        Ok(Self { bin, account })
    }

    fn command(&self, program: &str, dir: &Path) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(dir).env("LC_ALL", "C").env("TZ", "UTC");
        for variable in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS"] {
            command.env_remove(variable);
        }
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }

    /// Makes the folder and gives it to the user who runs Postgres.
    fn take_over(&self, dir: &Path) -> Result<(), StackError> {
        std::fs::create_dir_all(dir)?;
        if let Some((user, group)) = self.account {
            std::os::unix::fs::chown(dir, Some(user), Some(group))?;
        }
        Ok(())
    }
}

/// Folders that may hold Postgres's programs, the best first.
fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PG_BINDIR").map(PathBuf::from).into_iter().collect();
    if let Ok(output) = std::process::Command::new("pg_config").arg("--bindir").output() {
        folders.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    folders.extend(versions.into_iter().map(|(_, folder)| folder));
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders
}

/// User and group id of `postgres`, else of `nobody`.
fn unprivileged() -> Result<(u32, u32), StackError> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let account = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            found.then_some((user, group))
        })
    };
    account("postgres").or_else(|| account("nobody")).ok_or_else(|| {
        StackError("Postgres does not run as root, and there is no other user".into())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether a process is there and not a zombie.
    fn runs(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[tokio::test]
    async fn a_replica_streams_is_promoted_and_ends_with_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = std::fs::metadata(folder.path()).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let mut primary =
            Postgres::primary_with(&folder.path().join("a"), &["fsync=off"]).await.unwrap();
        let replica = Postgres::replica(&primary, &folder.path().join("b")).await.unwrap();
        primary.ask("CREATE TABLE t AS SELECT 7 AS n").await.unwrap();
        let there = || async { replica.ask("SELECT n FROM t").await.is_ok_and(|n| n == "7") };
        crate::until("the row on the replica", there).await.unwrap();
        primary.process().kill().await.unwrap();
        replica.promote().await.unwrap();
        replica.ask("INSERT INTO t VALUES (8)").await.unwrap();
        primary.restart().await.unwrap();
        assert_eq!(primary.ask("SELECT count(*) FROM t").await.unwrap(), "1");
        let pid = replica.process.pid().unwrap();
        drop(replica);
        crate::until("the end of the process", || async { !runs(pid) }).await.unwrap();
    }

    /// The thread that started a server stands for the process here: the signal is tied to it.
    #[test]
    fn a_server_ends_when_the_process_that_started_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        let pid = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Postgres::primary_with(&dir, &["fsync=off"]).await.unwrap();
                let pid = server.process.pid().unwrap();
                std::mem::forget(server);
                pid
            })
        })
        .join()
        .unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while runs(pid) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(!runs(pid));
    }
}
