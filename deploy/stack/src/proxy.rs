//! Load balancers, each with the configuration that is shipped in `deploy/`: only the addresses are
//! others.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::{Process, StackError, free_port};

pub const NGINX_CONF: &str = include_str!("../../nginx/nginx.conf");
pub const HAPROXY_CFG: &str = include_str!("../../haproxy/haproxy.cfg");

/// What the shipped files have for the address to listen on, and for the first server.
const LISTEN: &str = "127.0.0.1:8080";
const FIRST_SERVER: &str = "127.0.0.1:8081";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A shipped configuration with other addresses: the line marked `edit: listen` gets `listen`, and
/// of each run of lines marked `edit: servers` the first is written once per upstream.
pub fn render(shipped: &str, listen: SocketAddr, upstreams: &[SocketAddr]) -> String {
    let mut rendered = String::new();
    let mut in_servers = false;
    for line in shipped.lines() {
        let is_server = line.ends_with("# edit: servers");
        if line.ends_with("# edit: listen") {
            rendered += &line.replace(LISTEN, &listen.to_string());
            rendered.push('\n');
        } else if !is_server {
            rendered += line;
            rendered.push('\n');
        } else if !in_servers {
            for (place, upstream) in upstreams.iter().enumerate() {
                let line = line
                    .replace(FIRST_SERVER, &upstream.to_string())
                    .replace("s1 ", &format!("s{} ", place + 1));
                // Writing to a string cannot fail.
                let _ = writeln!(rendered, "{line}");
            }
        }
        in_servers = is_server;
    }
    rendered
}

/// nginx before `upstreams`.
pub struct Nginx {
    pub process: Process,
    address: SocketAddr,
}

impl Nginx {
    /// On a port that is free. All its files are in `dir`, which is made when it is missing.
    pub async fn start(dir: &Path, upstreams: &[SocketAddr]) -> Result<Self, StackError> {
        Self::start_on(dir, free_port()?, upstreams).await
    }

    pub async fn start_on(
        dir: &Path,
        port: u16,
        upstreams: &[SocketAddr],
    ) -> Result<Self, StackError> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let conf = dir.join("nginx.conf");
        std::fs::write(&conf, render(NGINX_CONF, address, upstreams))?;
        // Root's workers would become `nobody`, who cannot enter a folder of ours.
        // SAFETY: a plain system call.
        let is_root = unsafe { libc::geteuid() } == 0;
        let settings = if is_root { "daemon off; user root;" } else { "daemon off;" };
        let mut command = command("nginx");
        command.args(["-e", "stderr", "-g", settings]).arg("-p").arg(&dir).arg("-c").arg(&conf);
        let mut process = Process::start("nginx", command, &dir.join("nginx.log"))?;
        process.ready(|| answers(address)).await?;
        Ok(Self { process, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets requests under way finish, as long as `limit`.
    pub async fn stop(&mut self, limit: Duration) -> Result<(), StackError> {
        self.process.stop(libc::SIGQUIT, limit).await
    }
}

/// `HAProxy` before `upstreams`.
pub struct Haproxy {
    pub process: Process,
    address: SocketAddr,
}

impl Haproxy {
    /// On a port that is free. All its files are in `dir`, which is made when it is missing.
    pub async fn start(dir: &Path, upstreams: &[SocketAddr]) -> Result<Self, StackError> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        std::fs::create_dir_all(dir)?;
        let conf = dir.join("haproxy.cfg");
        std::fs::write(&conf, render(HAPROXY_CFG, address, upstreams))?;
        let mut command = command("haproxy");
        command.arg("-db").arg("-f").arg(&conf);
        let mut process = Process::start("haproxy", command, &dir.join("haproxy.log"))?;
        process.ready(|| answers(address)).await?;
        Ok(Self { process, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets requests under way finish, as long as `limit`.
    pub async fn stop(&mut self, limit: Duration) -> Result<(), StackError> {
        self.process.stop(libc::SIGUSR1, limit).await
    }
}

/// A program that Debian has in a folder which is not in everybody's `PATH`.
fn command(program: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// Whether HTTP is spoken there, whatever it says.
async fn answers(address: SocketAddr) -> bool {
    http_status(address, "/livez").await.is_some()
}

/// The status that a GET is answered with, at most after [`ANSWER_TIMEOUT`].
pub async fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut head).await?;
        Ok::<_, std::io::Error>(head)
    };
    let head = timeout(ANSWER_TIMEOUT, ask).await.ok()?.ok()?;
    std::str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_rendered_for_any_number_of_servers() {
        let listen = "127.0.0.1:1234".parse().unwrap();
        let upstreams = ["10.0.0.1:1", "10.0.0.2:2"].map(|text| text.parse().unwrap());
        for (shipped, groups) in [(NGINX_CONF, 2), (HAPROXY_CFG, 3)] {
            let rendered = render(shipped, listen, &upstreams);
            assert!(!rendered.contains("127.0.0.1:80"), "{rendered}");
            for needle in ["10.0.0.1:1", "10.0.0.2:2"] {
                assert_eq!(rendered.matches(needle).count(), groups);
            }
            assert_eq!(rendered.matches("127.0.0.1:1234").count(), 1);
        }
        let rendered = render(HAPROXY_CFG, listen, &upstreams);
        assert!(rendered.contains("server s2 10.0.0.2:2 track reads/s2 "));
        let three = ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"];
        let three = three.map(|text| text.parse().unwrap());
        let listen = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(render(NGINX_CONF, listen, &three), NGINX_CONF);
        assert_eq!(render(HAPROXY_CFG, listen, &three), HAPROXY_CFG);
    }
}
