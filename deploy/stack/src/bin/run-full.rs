//! `make run-full`: everything that a production set-up has, on one machine and one address.
//!
//! Redis, a Postgres with a replica, Milvus, three servers and nginx before them. `PORT` is nginx's;
//! all state and all logs are in `DATA_DIR`, and a second start goes on where the first ended.
//! Arguments are for the first server, as in `--seed exercises=FILE`.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sextant_stack::milvus::MilvusLite;
use sextant_stack::postgres::Postgres;
use sextant_stack::proxy::{Nginx, http_status};
use sextant_stack::redis::Redis;
use sextant_stack::{Process, StackError, free_port};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

const SERVERS: usize = 3;
/// Longest time that one process may take to end before it is killed.
const STOP_LIMIT: Duration = Duration::from_mins(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("run-full: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), StackError> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let port = setting("PORT", "8080");
    let port = port.parse().map_err(|_| StackError(format!("PORT is {port:?}, not a port")))?;
    let data_dir = PathBuf::from(setting("DATA_DIR", ".data"));
    let _lock = lock(&data_dir)?;
    let data_dir = data_dir.canonicalize()?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stopped = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // Broken off, the start leaves nothing behind: what runs is killed, and recovers.
    let mut stack = tokio::select! {
        stack = Stack::start(&data_dir, port) => stack?,
        () = stopped() => return Ok(()),
    };
    println!("sextant is ready on http://{}", stack.nginx.address());
    println!("logs are in {}", data_dir.join("logs").display());
    tokio::select! {
        () = stopped() => {}
        () = stack.watch() => {}
    }
    println!("stopping");
    stack.stop().await
}

/// Two of them on one folder would destroy each other's work.
fn lock(data_dir: &Path) -> Result<File, StackError> {
    std::fs::create_dir_all(data_dir.join("logs"))?;
    let lock = File::create(data_dir.join("run-full.lock"))?;
    let used = |_| StackError(format!("{} is used by another run-full", data_dir.display()));
    lock.try_lock().map_err(used)?;
    Ok(lock)
}

struct Stack {
    redis: Redis,
    primary: Postgres,
    replica: Postgres,
    milvus: MilvusLite,
    servers: Vec<Process>,
    nginx: Nginx,
}

impl Stack {
    async fn start(data_dir: &Path, port: u16) -> Result<Self, StackError> {
        let redis = Redis::start(&data_dir.join("redis")).await?;
        let primary = Postgres::primary(&data_dir.join("postgres")).await?;
        let exists = "SELECT 1 FROM pg_database WHERE datname = 'sextant'";
        if primary.ask(exists).await?.is_empty() {
            primary.create_database("sextant").await?;
        }
        let replica = Postgres::replica(&primary, &data_dir.join("postgres-replica")).await?;
        let milvus = MilvusLite::start(&data_dir.join("milvus")).await?;
        let environment = [
            ("SEXTANT_DOCUMENTS__KIND", "postgres".to_owned()),
            ("SEXTANT_POSTGRES__PRIMARY", primary.url("sextant")),
            ("SEXTANT_POSTGRES__REPLICAS", format!("[{:?}]", replica.url("sextant"))),
            ("SEXTANT_INDEX__KIND", "milvus".to_owned()),
            ("SEXTANT_MILVUS__ENDPOINTS", format!("[{:?}]", milvus.endpoint())),
            ("SEXTANT_REDIS__URL", redis.url()),
        ];
        let mut servers = Vec::new();
        let mut upstreams = Vec::new();
        for place in 1..=SERVERS {
            // The first imports, where it is told to; the others find that done.
            let arguments =
                if place == 1 { std::env::args().skip(1).collect() } else { Vec::new() };
            let (server, address) = server(data_dir, place, &environment, &arguments).await?;
            servers.push(server);
            upstreams.push(address);
        }
        let nginx = Nginx::start_on(&data_dir.join("nginx"), port, &upstreams).await?;
        for (name, log) in [
            ("redis", "redis/redis.log"),
            ("postgres", "postgres/postgres.log"),
            ("postgres-replica", "postgres-replica/postgres.log"),
            ("milvus", "milvus/milvus.log"),
            ("nginx", "nginx/nginx.log"),
        ] {
            link_log(data_dir, name, log)?;
        }
        Ok(Self { redis, primary, replica, milvus, servers, nginx })
    }

    /// Tells of every process that ends by itself; the others go on without.
    async fn watch(&mut self) {
        let mut ended = Vec::new();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stores = [
                self.primary.process(),
                self.replica.process(),
                self.milvus.process(),
                &mut self.redis.process,
            ];
            for process in stores.into_iter().chain(&mut self.servers) {
                if process.has_ended() && !ended.contains(&process.pid_at_start()) {
                    println!("{} has ended", process.name());
                    ended.push(process.pid_at_start());
                }
            }
        }
    }

    /// Each after those that need it.
    async fn stop(mut self) -> Result<(), StackError> {
        self.nginx.stop(STOP_LIMIT).await?;
        // All at once: each finishes what it has under way.
        for server in &self.servers {
            server.signal(libc::SIGTERM).ok(); // it may have ended already
        }
        for server in &mut self.servers {
            server.stop(libc::SIGTERM, STOP_LIMIT).await?;
        }
        self.milvus.process().stop(libc::SIGINT, STOP_LIMIT).await?;
        // SIGINT ends sessions and then Postgres, with a checkpoint.
        self.replica.process().stop(libc::SIGINT, STOP_LIMIT).await?;
        self.primary.process().stop(libc::SIGINT, STOP_LIMIT).await?;
        self.redis.process.stop(libc::SIGTERM, STOP_LIMIT).await
    }
}

/// A server on a free port, once it is ready.
async fn server(
    data_dir: &Path,
    place: usize,
    environment: &[(&str, String)],
    arguments: &[String],
) -> Result<(Process, SocketAddr), StackError> {
    let name = format!("server-{place}");
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut command = Command::new(beside_this("sextant-server")?);
    command
        .arg("serve")
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("SEXTANT_SERVER__LISTEN", address.to_string())
        .env("SEXTANT_SERVER__DATA_DIR", data_dir.join(&name));
    let log = data_dir.join("logs").join(format!("{name}.log"));
    let mut process = Process::start(&name, command, &log)?;
    process.ready(|| async { http_status(address, "/readyz").await == Some(200) }).await?;
    Ok((process, address))
}

/// A program that was built together with this one.
fn beside_this(program: &str) -> Result<PathBuf, StackError> {
    let path = std::env::current_exe()?.with_file_name(program);
    if path.is_file() {
        return Ok(path);
    }
    Err(StackError(format!("{} is not there: run `make build`", path.display())))
}

/// Shows a log among the others.
fn link_log(data_dir: &Path, name: &str, log: &str) -> Result<(), StackError> {
    let link = data_dir.join("logs").join(format!("{name}.log"));
    if link.is_symlink() {
        std::fs::remove_file(&link)?;
    }
    Ok(std::os::unix::fs::symlink(Path::new("..").join(log), &link)?)
}
