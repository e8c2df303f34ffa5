//! Ports of pods, reached from this machine.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::Cluster;

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends when it is dropped.
pub struct Forward {
    /// Host and port.
    pub address: String,
    _child: Child,
    /// It says a line for each connection, and ends when nobody takes it.
    _lines: BufReader<ChildStdout>,
}

impl Forward {
    pub async fn to_pod(cluster: &Cluster, namespace: &str, pod: &str, port: u16) -> Self {
        let mut child = cluster
            .command("kubectl")
            .args(["port-forward", "-n", namespace, &format!("pod/{pod}"), &format!(":{port}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()) // connections that were closed before their answer
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        timeout(PATIENCE, lines.read_line(&mut line)).await.unwrap().unwrap();
        // Forwarding from 127.0.0.1:40123 -> 8080
        let address = line.split_whitespace().nth(2).unwrap_or_else(|| panic!("{pod}: {line:?}"));
        Self { address: address.to_owned(), _child: child, _lines: lines }
    }
}
