//! Prometheus, with rules of ours.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::PATIENCE;
use crate::proxy::http_status;
use crate::{Process, StackError, free_port};

const CONFIG: &str = "prometheus.yaml";
const RULES: &str = "rules.yaml";

/// Who is scraped, on `/metrics`.
pub struct Target {
    /// Host and port.
    pub address: String,
    /// Of all its series, by their names.
    pub labels: Vec<(&'static str, String)>,
}

pub struct Prometheus {
    pub process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Scrapes and evaluates every so many seconds, whatever interval groups of the rules ask for. All
    /// its files are in `dir`, which is made when it is missing.
    pub async fn start(
        dir: &Path,
        targets: &[Target],
        rules: &str,
        seconds: u32,
    ) -> Result<Self, StackError> {
        std::fs::create_dir_all(dir)?;
        let has_interval = |line: &str| line.trim_start().starts_with("interval:");
        let rules: Vec<&str> = rules.lines().filter(|line| !has_interval(line)).collect();
        std::fs::write(dir.join(RULES), rules.join("\n"))?;
        std::fs::write(dir.join(CONFIG), config(targets, seconds))?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", dir.join(CONFIG).display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        let mut process = Process::start("prometheus", command, &dir.join("prometheus.log"))?;
        process
            .ready(|| async move { http_status(address, "/-/ready").await == Some(200) })
            .await?;
        Ok(Self { process, address })
    }

    /// The body of the answer to a GET, whatever its status.
    pub async fn get(&self, path: &str) -> Result<String, StackError> {
        // With HTTP/1.0 the body comes in one piece and ends with the connection.
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let ask = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let late = |_| StackError(format!("prometheus does not answer {path}"));
        let answer = timeout(PATIENCE, ask).await.map_err(late)??;
        match answer.split_once("\r\n\r\n") {
            Some((_, body)) => Ok(body.to_owned()),
            None => Err(StackError(format!("prometheus answers {path} with {answer:?}"))),
        }
    }
}

fn config(targets: &[Target], seconds: u32) -> String {
    let mut config = format!(
        "global: {{scrape_interval: {seconds}s, evaluation_interval: {seconds}s}}\n\
         rule_files: [{RULES}]\n\
         scrape_configs:\n\
         - job_name: test\n  static_configs:\n"
    );
    for Target { address, labels } in targets {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        // Writing to a string cannot fail.
        let _ =
            writeln!(config, "  - {{targets: [{address:?}], labels: {{{}}}}}", labels.join(", "));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_its_labels() {
        let target = |address: &str, pod: &str| Target {
            address: address.to_owned(),
            labels: vec![("component", "api".to_owned()), ("pod", pod.to_owned())],
        };
        let config = config(&[target("127.0.0.1:1", "api-0"), target("127.0.0.1:2", "api-1")], 1);
        let expected = r#"
  static_configs:
  - {targets: ["127.0.0.1:1"], labels: {component: "api", pod: "api-0"}}
  - {targets: ["127.0.0.1:2"], labels: {component: "api", pod: "api-1"}}
"#;
        assert!(config.ends_with(expected), "{config}");
    }
}
