//! milvus-lite: the protocol of Milvus 3 from one Python process; and an older, real Milvus.

mod standalone;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::Command;

pub use self::standalone::MilvusStandalone;
use crate::cached;
use crate::process::{Process, StackError, free_port};
use crate::shared::{self, Left};

const DATA: &str = "data";

/// A milvus-lite on a port and a folder of its own, which it keeps when started again.
pub struct MilvusLite {
    folder: PathBuf,
    port: u16,
    process: Process,
}

impl MilvusLite {
    /// Starts a server with its data in `folder` and waits until it answers.
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
        static SHARED: OnceLock<Result<MilvusLite, StackError>> = OnceLock::new();
        let start = async |folder: PathBuf| Self::start(&folder).await;
        SHARED
            .get_or_init(|| {
                shared::start("milvus", start, |server: &Self| Left {
                    pids: server.process.pid().into_iter().collect(),
                    files: Vec::new(),
                })
            })
            .as_ref()
    }

    /// What a client connects to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it again, on the same port and data, after it was stopped or killed.
    pub async fn restart(&mut self) -> Result<(), StackError> {
        self.process.stop(libc::SIGINT, Duration::from_secs(10)).await?;
        self.process = run(&self.folder, self.port).await?;
        Ok(())
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.folder.join(DATA)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

async fn run(folder: &Path, port: u16) -> Result<Process, StackError> {
    std::fs::create_dir_all(folder)?;
    let mut command = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    command
        .args(["-m", "milvus_lite", "server", "--host", "127.0.0.1", "--port"])
        .arg(port.to_string())
        .arg("--data-dir")
        .arg(folder.join(DATA))
        .current_dir(folder)
        .env("PYTHONPATH", package()?)
        .env("PYTHONUNBUFFERED", "1")
        // Its numeric libraries start a thread per core each, which is no use to small tests.
        .env("OMP_NUM_THREADS", "1")
        .env("OPENBLAS_NUM_THREADS", "1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let mut process = Process::start("milvus-lite", command, &folder.join("milvus.log"))?;
    process.ready(|| async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await?;
    Ok(process)
}

/// The folder of the Python packages: `$MILVUS_LITE`, or where `deploy/setup/setup.sh` puts it.
fn package() -> Result<PathBuf, StackError> {
    let folder = cached("MILVUS_LITE", "milvus-lite");
    if folder.join("milvus_lite").is_dir() {
        return Ok(folder);
    }
    let message =
        "milvus-lite is not there: run `deploy/setup/setup.sh milvus`, or set MILVUS_LITE";
    Err(StackError(message.to_owned()))
}
