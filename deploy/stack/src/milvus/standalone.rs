//! A real Milvus 2.3.5 in one process, with its etcd and its storage in a folder.
//!
//! Whatever it is told, it listens on all interfaces, and beside its folder it writes to /run/milvus
//! (or /tmp/milvus, when that is not allowed) and /tmp/milvus.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::{Process, StackError, free_port};
use crate::shared::{self, Left};

/// Ports beside that of its clients.
const INNER_PORTS: usize = 8;
/// Longest wait for an answer about its health.
const ANSWER: Duration = Duration::from_secs(2);

/// A Milvus 2.3.5 on a port and a folder of its own, which it keeps when started again.
pub struct MilvusStandalone {
    folder: PathBuf,
    port: u16,
    process: Process,
}

impl MilvusStandalone {
    /// Starts a server with its data in `folder` and waits until all of its parts are healthy.
    pub async fn start(folder: &Path) -> Result<Self, StackError> {
        let port = free_port()?;
        let process = run(folder, port).await?;
        Ok(Self { folder: folder.to_owned(), port, process })
    }

    /// Starts the server that the tests of this process share, when it is the first to ask; blocks
    /// until it answers.
    ///
    /// # Errors
    /// Why it did not start, the same for all who ask.
    pub fn shared() -> Result<&'static Self, &'static StackError> {
        static SHARED: OnceLock<Result<MilvusStandalone, StackError>> = OnceLock::new();
        let start = async |folder: PathBuf| Self::start(&folder).await;
        let left = |it: &Self| Left {
            pids: it.process.pid().into_iter().collect(),
            files: it.files_outside(),
        };
        SHARED.get_or_init(|| shared::start("milvus23", start, left)).as_ref()
    }

    /// What a client connects to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it again, on the same port and data, after it was killed. Its parts wait until what
    /// they were before has been forgotten: up to the time to live of a session.
    pub async fn restart(&mut self) -> Result<(), StackError> {
        self.process.kill().await?;
        self.forget();
        self.process = run(&self.folder, self.port).await?;
        Ok(())
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Removes what a process leaves outside of its folder.
    fn forget(&self) {
        for file in self.files_outside() {
            let _ = fs::remove_file(file); // what is not there needs no removing
        }
    }

    fn files_outside(&self) -> Vec<PathBuf> {
        let pid = self.process.pid_at_start().map(|pid| format!("server_id_{pid}"));
        let names = [Some(format!("standalone-{}.pid", self.port)), pid];
        let folders = ["/run/milvus", "/tmp/milvus"].map(Path::new);
        let files = names.iter().flatten().flat_map(|name| folders.map(|it| it.join(name)));
        files.collect()
    }
}

impl Drop for MilvusStandalone {
    fn drop(&mut self) {
        self.forget();
    }
}

async fn run(folder: &Path, port: u16) -> Result<Process, StackError> {
    let programs = programs()?;
    let inner = inner_ports()?;
    let health = inner[0];
    fs::create_dir_all(folder)?;
    fs::write(folder.join("milvus.yaml"), settings(folder, port, &inner))?;
    fs::write(folder.join("etcd.yaml"), ETCD)?;
    // It does not start without this file.
    fs::write(folder.join("glog.conf"), "--logtostderr=true\n--minloglevel=2\n")?;
    let mut command = Command::new(programs.join("milvus"));
    command
        // The alias is part of the name of its file in /run, so that several can run.
        .args(["run", "standalone", "-alias"])
        .arg(port.to_string())
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", &programs)
        .env("MILVUSCONF", folder)
        .env("DEPLOY_MODE", "STANDALONE")
        .env("METRICS_PORT", health.to_string())
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let mut process = Process::start("milvus", command, &folder.join("milvus.log"))?;
    process.ready(|| healthy(health)).await?;
    process.ready(|| async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await?;
    Ok(process)
}

/// Its etcd listens too, although nobody asks it but the process itself.
const ETCD: &str = "\
name: default
listen-client-urls: http://127.0.0.1:0
advertise-client-urls: http://127.0.0.1:0
listen-peer-urls: http://127.0.0.1:0
initial-advertise-peer-urls: http://127.0.0.1:0
initial-cluster: default=http://127.0.0.1:0
";

/// Its settings: little waiting between its parts, as a test has few documents and many
/// collections.
fn settings(folder: &Path, port: u16, inner: &[u16]) -> String {
    let folder = folder.display();
    let [_, internal, root, query, data, query_node, data_node, index_node] = inner else {
        unreachable!("as many as INNER_PORTS")
    };
    format!(
        "\
etcd:
  config:
    path: {folder}/etcd.yaml
  use:
    embed: true
  data:
    dir: {folder}/etcd
localStorage:
  path: {folder}/storage
mq:
  type: rocksmq
rocksmq:
  path: {folder}/rocksmq
common:
  storageType: local
  gracefulStopTimeout: 5
  session:
    ttl: 10
proxy:
  ip: 127.0.0.1
  port: {port}
  internalPort: {internal}
  timeTickInterval: 20
rootCoord:
  ip: 127.0.0.1
  port: {root}
queryCoord:
  ip: 127.0.0.1
  port: {query}
  checkInterval: 100
  distPullInterval: 100
dataCoord:
  ip: 127.0.0.1
  port: {data}
queryNode:
  ip: 127.0.0.1
  port: {query_node}
dataNode:
  ip: 127.0.0.1
  port: {data_node}
indexNode:
  ip: 127.0.0.1
  port: {index_node}
log:
  level: warn
  file:
    rootPath: \"\"
  stdout: true
"
    )
}

/// Whether all parts of it are well, as it says itself.
async fn healthy(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    matches!(timeout(ANSWER, ask).await, Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.0 200"))
}

/// Loopback ports that nobody had a moment ago, all of them different.
fn inner_ports() -> Result<Vec<u16>, StackError> {
    let listeners: Vec<TcpListener> =
        (0..INNER_PORTS).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port()));
    ports.collect()
}

/// The folder of the programs: `$MILVUS23`, or where `deploy/setup/setup.sh` puts it.
fn programs() -> Result<PathBuf, StackError> {
    let folder = crate::cached("MILVUS23", "milvus23");
    if folder.join("milvus").is_file() {
        return Ok(folder);
    }
    let message =
        "Milvus 2.3.5 is not there: run `deploy/setup/setup.sh milvus23`, or set MILVUS23";
    Err(StackError(message.to_owned()))
}
