//! As little of HTTP/1.1 as a load generator needs: prepared requests over kept connections, answers
//! with a `Content-Length`. It shares the machine with the server, so every cycle here is one less
//! there.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Connection {
    stream: TcpStream,
    /// The last answer.
    buffer: Vec<u8>,
    head: usize,
}

#[derive(Clone, Copy)]
pub struct Answer<'a> {
    pub status: u16,
    head: &'a [u8],
    pub body: &'a [u8],
}

impl Connection {
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 << 10), head: 0 })
    }

    pub async fn open_many(address: SocketAddr, count: usize) -> io::Result<Vec<Self>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(Self::open(address).await?);
        }
        Ok(connections)
    }

    /// Sends a request and reads its answer whole.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            let seen = self.buffer.len().saturating_sub(3);
            self.read().await?;
            let end = self.buffer[seen..].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break seen + end + 4;
            }
        };
        let length: usize = header(&self.buffer[..head], "content-length")
            .and_then(|value| value.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        while self.buffer.len() < head + length {
            self.read().await?;
        }
        self.head = head;
        Ok(self.answer())
    }

    /// The answer that the last exchange read.
    pub fn answer(&self) -> Answer<'_> {
        let (head, body) = self.buffer.split_at(self.head);
        // "HTTP/1.1 200 OK"
        let status = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        Answer { status: status.and_then(|digits| digits.parse().ok()).unwrap_or(0), head, body }
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl Answer<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.head, name)
    }

    pub fn json(&self) -> Result<serde_json::Value, crate::Failure> {
        let body = String::from_utf8_lossy(self.body);
        if self.status != 200 {
            return Err(format!("the server answered {}: {body}", self.status).into());
        }
        Ok(serde_json::from_str(&body)?)
    }

    /// `processing_time_ms`, which stands near the end of an answer.
    pub fn processing_time_ms(&self) -> Option<f64> {
        const NAME: &[u8] = b"\"processing_time_ms\":";
        let tail = &self.body[self.body.len().saturating_sub(160)..];
        let start = tail.windows(NAME.len()).position(|bytes| bytes == NAME)? + NAME.len();
        let end = start + tail[start..].iter().position(|byte| matches!(byte, b',' | b'}'))?;
        std::str::from_utf8(&tail[start..end]).ok()?.parse().ok()
    }

    /// The duration of a stage in `Server-Timing`, in milliseconds.
    pub fn stage_ms(&self, stage: &str) -> Option<f64> {
        self.header("server-timing")?
            .split(", ")
            .find_map(|entry| entry.strip_prefix(stage)?.strip_prefix(";dur=")?.parse().ok())
    }
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    let value = lines.into_iter().find_map(|line| {
        let (given, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        given.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
    })?;
    Some(std::str::from_utf8(value).ok()?.trim())
}

pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").into_bytes()
}

/// A request with a JSON body. `headers` is empty or whole lines with their ends.
pub fn send(method: &str, path: &str, headers: &str, body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         {headers}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

pub fn post(path: &str, body: &serde_json::Value) -> Vec<u8> {
    send("POST", path, "", body)
}
