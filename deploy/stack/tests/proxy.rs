//! The load balancers with the configurations that are shipped, before servers that are stand-ins.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use sextant_stack::proxy::{Haproxy, Nginx};
use sextant_stack::until;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Answers every request with a status, its number and what it got.
struct Upstream {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    requests: Arc<AtomicUsize>,
    serving: AbortHandle,
}

impl Upstream {
    async fn start(number: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(AtomicU16::new(200));
        let requests = Arc::new(AtomicUsize::new(0));
        let serving = tokio::spawn({
            let (status, requests) = (Arc::clone(&status), Arc::clone(&requests));
            async move {
                // Ends with the task, and all connections with it.
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (status, requests) = (Arc::clone(&status), Arc::clone(&requests));
                    connections.spawn(async move {
                        let mut stream = BufReader::new(stream);
                        while let Some((head, body)) = message(&mut stream).await {
                            let checked = head.starts_with("GET /readyz ");
                            requests.fetch_add(usize::from(!checked), Ordering::SeqCst);
                            let text = format!("{number}\n{head}{body}");
                            let answer = format!(
                                "HTTP/1.1 {} Status\r\nRetry-After: 7\r\nContent-Length: {}\r\n\r\n{text}",
                                status.load(Ordering::SeqCst),
                                text.len()
                            );
                            if stream.write_all(answer.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        })
        .abort_handle();
        Self { address, status, requests, serving }
    }

    async fn three() -> Vec<Self> {
        vec![Self::start(0).await, Self::start(1).await, Self::start(2).await]
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn addresses(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.address).collect()
}

/// Head and body of a request or an answer; `None` at the end of the connection.
async fn message(stream: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_lowercase();
    let mut body = Vec::new();
    if let Some((_, rest)) = lower.split_once("content-length: ") {
        body.resize(rest.lines().next()?.trim().parse().ok()?, 0);
        stream.read_exact(&mut body).await.ok()?;
    } else if lower.contains("transfer-encoding: chunked") {
        let mut size = String::new();
        while size.trim() != "0" {
            size.clear();
            stream.read_line(&mut size).await.ok()?;
            let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).ok()? + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            body.extend_from_slice(&chunk[..chunk.len() - 2]);
        }
    }
    Some((head, String::from_utf8(body).ok()?))
}

/// Status and body of the answer.
async fn send(proxy: SocketAddr, method: &str, path: &str, more: &str) -> (u16, String) {
    let stream = TcpStream::connect(proxy).await.unwrap();
    let mut stream = BufReader::new(stream);
    let body = "{\"query\":\"knees\"}";
    let length = if method == "POST" { body.len() } else { 0 };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\nContent-Length: \
         {length}\r\n\r\n{}",
        &body[..length]
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, body) = message(&mut stream).await.unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

const READ: &str = "/v1/collections/gym";
const SEARCH: &str = "/v1/collections/gym/search";
const IMPORT: &str = "/v1/collections/gym/documents";

/// What holds for every load balancer.
async fn suite(proxy: SocketAddr, upstreams: &[Upstream]) {
    // Requests are spread, and ids passed on or made.
    for _ in 0..30 {
        let (status, seen) = send(proxy, "GET", READ, "traceparent: 00-ab-cd-01\r\n").await;
        let seen = seen.to_lowercase();
        assert_eq!(status, 200);
        assert!(seen.contains("traceparent: 00-ab-cd-01"), "{seen}");
        assert!(seen.contains("x-request-id: "), "{seen}");
    }
    for upstream in upstreams {
        assert!(upstream.requests() >= 5, "{}", upstream.requests());
    }
    let (_, seen) = send(proxy, "GET", READ, "X-Request-Id: mine\r\n").await;
    assert!(seen.to_lowercase().contains("x-request-id: mine"), "{seen}");

    // One server starts: reads and searches are answered by the others.
    upstreams[0].status.store(503, Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(send(proxy, "GET", READ, "").await.0, 200);
        let (status, seen) = send(proxy, "POST", SEARCH, "").await;
        assert_eq!(status, 200);
        assert!(seen.contains("knees"), "the body was sent again: {seen}");
    }
    // All have too much to do: their answer comes through.
    for upstream in upstreams {
        upstream.status.store(503, Ordering::SeqCst);
    }
    for _ in 0..10 {
        let (status, seen) = send(proxy, "POST", SEARCH, "").await;
        assert_eq!(status, 503);
        assert!(seen.contains("knees"), "the answer is a server's: {seen}");
    }
    for upstream in upstreams {
        upstream.status.store(200, Ordering::SeqCst);
    }
    let well = async || send(proxy, "GET", READ, "").await.0 == 200;
    until("a server", well).await.unwrap();

    // One server is killed: no read fails.
    upstreams[1].serving.abort();
    for _ in 0..100 {
        assert_eq!(send(proxy, "GET", READ, "").await.0, 200);
        assert_eq!(send(proxy, "POST", SEARCH, "").await.0, 200);
    }

    // Imports are sent once.
    let before: usize = upstreams.iter().map(Upstream::requests).sum();
    upstreams[0].status.store(503, Ordering::SeqCst);
    upstreams[2].status.store(503, Ordering::SeqCst);
    assert_eq!(send(proxy, "POST", IMPORT, "").await.0, 503);
    let after: usize = upstreams.iter().map(Upstream::requests).sum();
    assert!(after - before <= 1);

    // Without any server the answer says so, and when to come again.
    for upstream in upstreams {
        upstream.serving.abort();
    }
    for _ in 0..5 {
        assert_eq!(send(proxy, "GET", READ, "").await.0, 503);
    }
}

#[tokio::test]
async fn nginx_spreads_requests_and_repeats_only_what_is_safe() {
    let folder = tempfile::tempdir().unwrap();
    let upstreams = Upstream::three().await;
    let mut nginx = Nginx::start(folder.path(), &addresses(&upstreams)).await.unwrap();
    suite(nginx.address(), &upstreams).await;
    nginx.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(nginx.process.pid(), None);
}

#[tokio::test]
async fn haproxy_spreads_requests_and_repeats_only_what_is_safe() {
    let folder = tempfile::tempdir().unwrap();
    let upstreams = Upstream::three().await;
    let mut haproxy = Haproxy::start(folder.path(), &addresses(&upstreams)).await.unwrap();
    suite(haproxy.address(), &upstreams).await;
    haproxy.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(haproxy.process.pid(), None);
}
