//! Commands on the cluster, as people give them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// Of the cluster that `make cluster-up` starts.
const OWN_CONFIG: &str = "/run/sextant-cluster/admin.yaml";
const LONGEST_COMMAND: Duration = Duration::from_mins(11);

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join(path)
}

#[derive(Clone, Debug)]
pub struct Cluster {
    config: PathBuf,
    /// Whether its nodes are this machine's, to be frozen and cut off.
    pub is_own: bool,
}

impl Cluster {
    /// That of `KUBECONFIG` with `USE_EXISTING_CLUSTER=true`, else our own.
    pub fn of_environment() -> Self {
        if std::env::var("USE_EXISTING_CLUSTER").is_ok_and(|value| value == "true") {
            let config = std::env::var_os("KUBECONFIG").expect("KUBECONFIG is set");
            return Self { config: config.into(), is_own: false };
        }
        assert!(Path::new(OWN_CONFIG).exists(), "there is no cluster: `make cluster-up`");
        Self { config: OWN_CONFIG.into(), is_own: true }
    }

    /// A shell script in the repository's folder, with kubectl and helm at hand. What it printed.
    ///
    /// # Panics
    /// When it fails or takes too long.
    pub async fn sh(&self, script: &str) -> String {
        self.try_sh(script).await.unwrap_or_else(|error| panic!("{script}\n{error}"))
    }

    pub async fn try_sh(&self, script: &str) -> Result<String, String> {
        let mut command = self.command("bash");
        command.args(["-euo", "pipefail", "-c", script]);
        let output =
            timeout(LONGEST_COMMAND, command.output()).await.map_err(|_| "takes too long")?;
        let output = output.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr)))
    }

    /// A program in the repository's folder, with kubectl and helm at hand. It ends when it is dropped.
    pub fn command(&self, program: &str) -> Command {
        let cache = std::env::var("CACHE").unwrap_or_else(|_| {
            let home = std::env::var("HOME").unwrap();
            std::env::var("XDG_CACHE_HOME").unwrap_or(format!("{home}/.cache")) + "/sextant"
        });
        let path = format!("{cache}/kubernetes:{cache}/bin:{}", std::env::var("PATH").unwrap());
        // Not looked up by this process, whose path is another.
        let program = std::env::split_paths(&path)
            .map(|folder| folder.join(program))
            .find(|file| file.is_file())
            .unwrap_or_else(|| panic!("there is no {program} in {path}"));
        let mut command = Command::new(program);
        command
            .current_dir(repository(""))
            .env("PATH", path)
            .env("KUBECONFIG", &self.config)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().to_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
    }

    /// The pods with a label.
    pub async fn pods(&self, namespace: &str, label: &str) -> Vec<Value> {
        let pods = self.get(&format!("pods -n {namespace} -l {label}")).await;
        pods["items"].as_array().unwrap().clone()
    }

    /// An object, or a list of them, as JSON.
    pub async fn get(&self, what: &str) -> Value {
        let text = self.sh(&format!("kubectl get {what} -o json")).await;
        serde_json::from_str(&text).unwrap()
    }

    /// Does something to the second node: `cut`, `mend`, `freeze`, `thaw`.
    pub async fn second_node(&self, what: &str) {
        assert!(self.is_own, "only nodes of our own can be broken");
        self.sh(&format!("tests/e2e/cluster.sh {what}")).await;
    }
}
