//! A Redis that is a cache: no persistence, bounded memory, the least recently used goes first.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::{Process, StackError, free_port, until};

/// Slots that the keys of a cluster are divided into.
const SLOTS: u16 = 16_384;
const CONFIG: &str = "redis.conf";
const MEMORY_ONLY: &str =
    "save \"\"\nappendonly no\nmaxmemory 256mb\nmaxmemory-policy allkeys-lru\n";

/// Who may use it; without, everyone.
#[derive(Clone)]
pub struct Access {
    pub user: String,
    pub password: String,
}

pub struct Redis {
    pub process: Process,
    pub port: u16,
    folder: PathBuf,
    settings: String,
    access: Option<Access>,
    tls_port: Option<u16>,
}

impl Redis {
    /// Starts one that keeps its log in `folder`.
    pub async fn start(folder: &Path) -> Result<Self, StackError> {
        Self::start_with(folder, None).await
    }

    /// Starts one that only `access` may use.
    pub async fn start_with(folder: &Path, access: Option<Access>) -> Result<Self, StackError> {
        let users = access.as_ref().map_or_else(String::new, |Access { user, password }| {
            format!("user default off\nuser {user} on >{password} ~* &* +@all\n")
        });
        Ok(Self { access, ..Self::run(folder, users).await? })
    }

    /// Starts one that takes connections with TLS, beside those without; both in PEM.
    pub async fn start_tls(
        folder: &Path,
        certificate: &str,
        key: &str,
    ) -> Result<Self, StackError> {
        let tls_port = free_port()?;
        let (certificate_file, key_file) = (folder.join("certificate.pem"), folder.join("key.pem"));
        std::fs::write(&certificate_file, certificate)?;
        std::fs::write(&key_file, key)?;
        let settings = format!(
            "tls-port {tls_port}\ntls-auth-clients no\ntls-cert-file {}\ntls-key-file {}\n",
            certificate_file.display(),
            key_file.display()
        );
        Ok(Self { tls_port: Some(tls_port), ..Self::run(folder, settings).await? })
    }

    async fn run(folder: &Path, settings: String) -> Result<Self, StackError> {
        std::fs::create_dir_all(folder)?;
        let (port, settings) = (free_port()?, MEMORY_ONLY.to_owned() + &settings);
        let process = launch(folder, port, &settings, &[])?;
        let folder = folder.to_owned();
        let mut redis = Self { process, port, folder, settings, access: None, tls_port: None };
        redis.wait().await?;
        Ok(redis)
    }

    /// Where it takes connections with TLS.
    pub fn tls_url(&self) -> Option<String> {
        self.tls_port.map(|port| format!("rediss://127.0.0.1:{port}"))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join(CONFIG)
    }

    /// Starts it again, empty, on the same port, after it was stopped or killed.
    pub async fn restart(&mut self) -> Result<(), StackError> {
        self.process.kill().await?;
        self.process = launch(&self.folder, self.port, &self.settings, &[])?;
        self.wait().await
    }

    async fn wait(&mut self) -> Result<(), StackError> {
        let port = self.port;
        // Whoever may not use it gets an answer, too.
        self.process.ready(|| async move { answers(port).await.is_ok() }).await
    }

    /// Sends one command and returns the raw reply, for tests that look at what is kept.
    pub async fn command(&self, words: &[&[u8]]) -> Result<Vec<u8>, StackError> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        if let Some(access) = &self.access {
            let words = [b"AUTH".as_slice(), access.user.as_bytes(), access.password.as_bytes()];
            send(&mut stream, &words).await?;
            reply(&mut stream).await?;
        }
        send(&mut stream, words).await?;
        reply(&mut stream).await
    }
}

fn launch(
    folder: &Path,
    port: u16,
    settings: &str,
    arguments: &[&str],
) -> Result<Process, StackError> {
    // In a file, as everybody sees a command line.
    let file = folder.join(CONFIG);
    let place = format!("port {port}\nbind 127.0.0.1\ndir {}\n", folder.display());
    std::fs::write(&file, place + settings)?;
    let mut command = Command::new("redis-server");
    command.arg(&file).args(arguments);
    Process::start("redis", command, &folder.join("redis.log"))
}

/// Redis servers that share the keys among them.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub async fn start(folder: &Path, nodes: u16) -> Result<Self, StackError> {
        let mut started = Vec::new();
        for number in 0..nodes {
            let settings = format!("cluster-enabled yes\ncluster-port {}\n", free_port()?);
            started.push(Redis::run(&folder.join(number.to_string()), settings).await?);
        }
        let cluster = Self { nodes: started };
        let share = SLOTS / nodes;
        for (number, node) in (0..).zip(&cluster.nodes) {
            let first = number * share;
            let last = if number + 1 == nodes { SLOTS } else { first + share } - 1;
            let (first, last) = (first.to_string(), last.to_string());
            let words =
                [b"CLUSTER".as_slice(), b"ADDSLOTSRANGE", first.as_bytes(), last.as_bytes()];
            node.command(&words).await?;
            node.command(&[b"CLUSTER", b"SET-CONFIG-EPOCH", (number + 1).to_string().as_bytes()])
                .await?;
            let port = cluster.nodes[0].port.to_string();
            let bus = cluster.nodes[0].bus().await?;
            let words =
                [b"CLUSTER".as_slice(), b"MEET", b"127.0.0.1", port.as_bytes(), bus.as_bytes()];
            node.command(&words).await?;
        }
        for node in &cluster.nodes {
            until("the cluster to form", || async {
                let info = node.command(&[b"CLUSTER", b"INFO"]).await.unwrap_or_default();
                let info = String::from_utf8_lossy(&info).into_owned();
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{nodes}"))
            })
            .await?;
        }
        Ok(cluster)
    }

    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port)
    }
}

impl Redis {
    /// The port by which members of a cluster talk.
    async fn bus(&self) -> Result<String, StackError> {
        let reply = self.command(&[b"CONFIG", b"GET", b"cluster-port"]).await?;
        let reply = String::from_utf8_lossy(&reply).into_owned();
        reply
            .lines()
            .last()
            .map(ToOwned::to_owned)
            .ok_or_else(|| StackError("no cluster port".to_owned()))
    }
}

/// Watches a Redis and tells who asks where it is.
pub struct Sentinel {
    pub process: Process,
    pub port: u16,
}

impl Sentinel {
    /// Watches `redis` under the name `main`.
    pub async fn start(folder: &Path, redis: &Redis) -> Result<Self, StackError> {
        std::fs::create_dir_all(folder)?;
        let port = free_port()?;
        let settings = format!("sentinel monitor main 127.0.0.1 {} 1\n", redis.port);
        let mut process = launch(folder, port, &settings, &["--sentinel"])?;
        process.ready(|| async move { answers(port).await.is_ok() }).await?;
        Ok(Self { process, port })
    }

    pub fn url(&self) -> String {
        format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=main", self.port)
    }
}

async fn answers(port: u16) -> Result<(), StackError> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    send(&mut stream, &[b"PING"]).await?;
    reply(&mut stream).await.map(drop)
}

async fn send(stream: &mut TcpStream, words: &[&[u8]]) -> Result<(), StackError> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    Ok(stream.write_all(&bytes).await?)
}

/// What came in one go: enough for the short replies that tests ask for.
async fn reply(stream: &mut TcpStream) -> Result<Vec<u8>, StackError> {
    let mut bytes = vec![0; 1 << 20];
    match stream.read(&mut bytes).await? {
        0 => Err(StackError("Redis closed the connection".to_owned())),
        count => {
            bytes.truncate(count);
            Ok(bytes)
        }
    }
}
