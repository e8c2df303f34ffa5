//! The way from the servers to a part that they share, which can be made longer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What may be on its way in each direction of a connection.
const CHUNKS: usize = 1_024;
const CHUNK_BYTES: usize = 16 << 10;

/// Passes connections on to one address.
pub struct Link {
    address: SocketAddr,
    delay_ms: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl Link {
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let delay_ms = Arc::new(AtomicU64::new(0));
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&delay_ms)));
        Ok(Self { address, delay_ms, accepting: accepting.abort_handle() })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is sent from now on arrives so much later, each way. Throughput stays what it is.
    pub fn delay(&self, delay_ms: u64) {
        self.delay_ms.store(delay_ms, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, delay_ms: Arc<AtomicU64>) {
    // Ends with the task, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(pass(stream, target, Arc::clone(&delay_ms)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An error of either side ends both.
async fn pass(client: TcpStream, target: SocketAddr, delay_ms: Arc<AtomicU64>) -> io::Result<()> {
    let Ok(Ok(server)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await else {
        // Reset, which is nearest to a connection that is refused.
        return client.set_zero_linger();
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = carry(from_client, to_server, &delay_ms);
    let back = carry(from_server, to_client, &delay_ms);
    tokio::try_join!(there, back).map(drop)
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay_ms: &AtomicU64,
) -> io::Result<()> {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let read = async move {
        loop {
            let mut bytes = Vec::with_capacity(CHUNK_BYTES);
            if from.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if send.send((due, bytes)).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receive.recv().await {
            // The clock of sleeps is coarse: none where there is no delay.
            if due > Instant::now() {
                sleep_until(due).await;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_arrives_later_and_in_order() {
        let (mut near, from) = tokio::io::duplex(64);
        let (to, mut far) = tokio::io::duplex(64);
        let delay_ms = AtomicU64::new(20);
        let carrying = carry(from, to, &delay_ms);
        let started = Instant::now();
        let talk = async {
            near.write_all(b"one").await.unwrap();
            near.write_all(b"two").await.unwrap();
            let mut bytes = [0; 6];
            far.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"onetwo");
            assert!(started.elapsed() >= Duration::from_millis(20));
            drop(near);
            assert_eq!(far.read(&mut bytes).await.unwrap(), 0);
        };
        let (carried, ()) = tokio::join!(carrying, talk);
        carried.unwrap();
    }
}
