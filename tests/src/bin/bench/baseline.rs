//! The least that a handler can do: axum answering with bytes that are there already.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use crate::Failure;

pub const PATH: &str = "/empty";

/// Serves until it is killed.
pub fn serve(bytes: usize) -> Result<(), Failure> {
    let body: &'static str = format!("{{\"hits\":\"{}\"}}", "x".repeat(bytes.max(11) - 11)).leak();
    let handler = move || async move { ([(CONTENT_TYPE, "application/json")], body) };
    let router = Router::new().route(PATH, post(handler));
    // The runtime of the server: as many threads as cores.
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        println!("{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router).await?)
    })
}

/// It as a process of its own, like the server.
pub struct Baseline {
    child: Child,
    pub address: SocketAddr,
}

impl Baseline {
    pub fn start(bytes: usize) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["baseline", "--bytes", &bytes.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let mut baseline = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        baseline.address = line.trim().parse()?;
        Ok(baseline)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
