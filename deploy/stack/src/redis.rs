//! A Redis that is a cache: no persistence, bounded memory, the least recently used goes first.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::{Process, StackError, free_port};

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
    access: Option<Access>,
}

impl Redis {
    /// Starts one that keeps its log in `folder`.
    pub async fn start(folder: &Path) -> Result<Self, StackError> {
        Self::start_with(folder, None).await
    }

    /// Starts one that only `access` may use.
    pub async fn start_with(folder: &Path, access: Option<Access>) -> Result<Self, StackError> {
        std::fs::create_dir_all(folder)?;
        let port = free_port()?;
        let process = launch(folder, port, access.as_ref())?;
        let mut redis = Self { process, port, folder: folder.to_owned(), access };
        redis.wait().await?;
        Ok(redis)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it again, empty, on the same port, after it was stopped or killed.
    pub async fn restart(&mut self) -> Result<(), StackError> {
        self.process.kill().await?;
        self.process = launch(&self.folder, self.port, self.access.as_ref())?;
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

fn launch(folder: &Path, port: u16, access: Option<&Access>) -> Result<Process, StackError> {
    let mut settings = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsave \"\"\nappendonly no\n\
         maxmemory 256mb\nmaxmemory-policy allkeys-lru\n",
        folder.display()
    );
    if let Some(Access { user, password }) = access {
        settings += &format!("user default off\nuser {user} on >{password} ~* &* +@all\n");
    }
    // In a file, as everybody sees a command line.
    let file = folder.join("redis.conf");
    std::fs::write(&file, settings)?;
    let mut command = Command::new("redis-server");
    command.arg(&file);
    Process::start("redis", command, &folder.join("redis.log"))
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
