//! A real Kubernetes without nodes: etcd, kube-apiserver and kube-controller-manager. Pods are made
//! and nobody runs them; whoever wants them ready says so in their status.
//!
//! # Source
//! The flags of kube-apiserver are those of controller-runtime's envtest:
//! <https://book.kubebuilder.io/reference/envtest>

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rcgen::KeyPair;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::cached;
use crate::process::{Process, StackError, free_port};
use crate::shared::{self, Left};

const CLUSTER_ADMIN: &str = "system:masters";

/// Who may come in: a token, a name, and a group that RBAC knows.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub token: &'static str,
    pub name: &'static str,
    pub group: &'static str,
}

impl User {
    /// A kubeconfig for the API server at `url`, which shows this certificate.
    pub fn kubeconfig(&self, url: &str, certificate: Option<&Path>) -> String {
        let authority = certificate
            .map(|file| format!("certificate-authority: {}", file.display()))
            .unwrap_or_default();
        format!(
            "apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: {url}
    {authority}
contexts:
- name: test
  context: {{cluster: test, user: {name}}}
users:
- name: {name}
  user: {{token: {token}}}
",
            name = self.name,
            token = self.token,
        )
    }
}

/// May do everything.
pub const ADMIN: User = User { token: "admin-token", name: "admin", group: CLUSTER_ADMIN };
/// May do what roles that are bound to this name allow.
pub const OPERATOR: User =
    User { token: "operator-token", name: "sextant-operator", group: "operators" };

pub struct ControlPlane {
    folder: PathBuf,
    port: u16,
    etcd_port: u16,
    // In the order in which they end.
    controllers: Process,
    apiserver: Process,
    etcd: Process,
}

impl ControlPlane {
    /// Starts one with its data in `folder` and waits until it serves.
    pub async fn start(folder: &Path) -> Result<Self, StackError> {
        std::fs::create_dir_all(folder)?;
        let (port, etcd_port) = (free_port()?, free_port()?);
        let key = KeyPair::generate().map_err(|error| StackError(error.to_string()))?;
        std::fs::write(folder.join("sa.key"), key.serialize_pem())?;
        std::fs::write(folder.join("sa.pub"), key.public_key_pem())?;
        let line = |user: User| format!("{0},{1},{1},\"{2}\"\n", user.token, user.name, user.group);
        std::fs::write(folder.join("tokens.csv"), line(ADMIN) + &line(OPERATOR))?;
        let etcd = start_etcd(folder, etcd_port).await?;
        let apiserver = start_apiserver(folder, port, etcd_port).await?;
        for (user, file) in [(ADMIN, "admin.yaml"), (OPERATOR, "operator.yaml")] {
            let url = format!("https://127.0.0.1:{port}");
            let config = user.kubeconfig(&url, Some(&folder.join("apiserver.crt")));
            std::fs::write(folder.join(file), config)?;
        }
        let controllers = start_controllers(folder)?;
        Ok(Self { folder: folder.to_owned(), port, etcd_port, controllers, apiserver, etcd })
    }

    /// Starts the one that the tests of this process share, when it is the first to ask; blocks
    /// until it serves.
    ///
    /// # Errors
    /// Why it did not start, the same for all who ask.
    pub fn shared() -> Result<&'static Self, &'static StackError> {
        static SHARED: OnceLock<Result<ControlPlane, StackError>> = OnceLock::new();
        let start = async |folder: PathBuf| Self::start(&folder).await;
        let left = |it: &Self| Left {
            pids: [&it.controllers, &it.apiserver, &it.etcd]
                .into_iter()
                .filter_map(Process::pid)
                .collect(),
            files: Vec::new(),
        };
        SHARED.get_or_init(|| shared::start("kubernetes", start, left)).as_ref()
    }

    /// The kubeconfig of [`ADMIN`].
    pub fn admin_config(&self) -> PathBuf {
        self.folder.join("admin.yaml")
    }

    /// The kubeconfig of [`OPERATOR`].
    pub fn operator_config(&self) -> PathBuf {
        self.folder.join("operator.yaml")
    }

    /// As `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The API server's process, to be frozen or killed.
    pub fn apiserver(&mut self) -> &mut Process {
        &mut self.apiserver
    }

    /// Starts the API server again after it was killed, on the same port and data.
    pub async fn restart_apiserver(&mut self) -> Result<(), StackError> {
        self.apiserver.kill().await?;
        self.apiserver = start_apiserver(&self.folder, self.port, self.etcd_port).await?;
        Ok(())
    }
}

async fn start_etcd(folder: &Path, port: u16) -> Result<Process, StackError> {
    let own = cached("ETCD", "bin/etcd");
    let program = if own.is_file() { own } else { "etcd".into() };
    let mut command = Command::new(program);
    let (client, peer) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()?));
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .env_remove("ETCD");
    let mut process = Process::start("etcd", command, &folder.join("etcd.log"))?;
    process.ready(|| async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await?;
    Ok(process)
}

async fn start_apiserver(folder: &Path, port: u16, etcd_port: u16) -> Result<Process, StackError> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new(program("kube-apiserver")?);
    command.args([
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--cert-dir={}", folder.display()),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        // Nobody runs pods, so nobody needs their tokens.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--service-account-issuer=https://127.0.0.1:{port}/"),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
    ]);
    let mut process = Process::start("kube-apiserver", command, &folder.join("apiserver.log"))?;
    let certificate = folder.join("apiserver.crt");
    process.ready(|| async { serves(&certificate, port).await }).await?;
    Ok(process)
}

/// Whether it answers that it is ready. curl knows TLS; this crate does not.
async fn serves(certificate: &Path, port: u16) -> bool {
    let mut command = Command::new("curl");
    command.args(["--silent", "--fail", "--max-time", "5", "--cacert"]).arg(certificate);
    command.args(["-H", &format!("Authorization: Bearer {}", ADMIN.token), "--noproxy", "*"]);
    command.arg(format!("https://127.0.0.1:{port}/readyz"));
    command.output().await.is_ok_and(|output| output.status.success())
}

fn start_controllers(folder: &Path) -> Result<Process, StackError> {
    let file = |name: &str| folder.join(name).display().to_string();
    let config = file("admin.yaml");
    let mut command = Command::new(program("kube-controller-manager")?);
    command.args([
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", free_port()?),
        "--leader-elect=false".to_owned(),
        format!("--service-account-private-key-file={}", file("sa.key")),
        "--kube-api-qps=300".to_owned(),
        "--kube-api-burst=500".to_owned(),
    ]);
    Process::start("kube-controller-manager", command, &folder.join("controllers.log"))
}

/// `$KUBERNETES`, or where `deploy/setup/setup.sh` puts it.
fn program(name: &str) -> Result<PathBuf, StackError> {
    let program = cached("KUBERNETES", "kubernetes").join(name);
    if program.is_file() {
        return Ok(program);
    }
    let message = format!(
        "{name} is not there: run `deploy/setup/setup.sh kubernetes`, or set KUBERNETES to its folder"
    );
    Err(StackError(message))
}
