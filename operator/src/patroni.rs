//! Patroni's REST interface, asked in the pods of Postgres.
//!
//! # Source
//! <https://patroni.readthedocs.io/en/latest/rest_api.html>

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::components::postgres::{PATRONI_PORT, PATRONI_USER};

/// For looking; whoever does not answer is passed over.
const LOOK: Duration = Duration::from_secs(2);
/// For a switchover or a restart, which answer when they are done.
const ACT: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
pub enum PatroniError {
    #[error("Patroni does not answer: {0}")]
    NoAnswer(#[from] reqwest::Error),
    #[error("Patroni refuses: {status}: {body}")]
    Refused { status: u16, body: String },
}

/// What a member knows of all of them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Cluster {
    #[serde(default)]
    pub members: Vec<ClusterMember>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct ClusterMember {
    pub name: String,
    /// As in `leader`, `replica`, `sync_standby`.
    #[serde(default)]
    pub role: String,
    /// As in `running`, `streaming`.
    #[serde(default)]
    pub state: String,
    #[serde(default)]
    pub timeline: Option<i64>,
    /// Bytes behind the leader, or `unknown`.
    #[serde(default)]
    lag: Value,
    #[serde(default)]
    pub pending_restart: bool,
}

impl ClusterMember {
    pub fn is_leader(&self) -> bool {
        self.role == "leader"
    }

    /// Whether its Postgres does not start, whatever Patroni tries.
    pub fn has_failed(&self) -> bool {
        ["start failed", "restart failed", "stop failed", "crashed"].contains(&self.state.as_str())
    }

    /// Whether its Postgres is up, or being made. Neither this nor failed: it is tried once more.
    pub fn is_up(&self) -> bool {
        ["running", "streaming", "in archive recovery", "creating replica"]
            .contains(&self.state.as_str())
    }

    /// In bytes; `None` when it is not known.
    pub fn lag(&self) -> Option<i64> {
        self.lag.as_i64()
    }
}

/// Asks pods by their addresses.
#[derive(Clone)]
pub struct Patroni {
    client: reqwest::Client,
}

impl Patroni {
    /// # Errors
    /// When no client can be made.
    pub fn new() -> Result<Self, reqwest::Error> {
        // Pods are not behind the proxies of the environment.
        Ok(Self { client: reqwest::Client::builder().no_proxy().build()? })
    }

    pub async fn cluster(&self, ip: &str) -> Result<Cluster, PatroniError> {
        let request = self.client.get(url(ip, "cluster")).timeout(LOOK);
        Ok(serde_json::from_value(answer(request).await?).unwrap_or_default())
    }

    /// The settings that all members share.
    pub async fn config(&self, ip: &str) -> Result<Value, PatroniError> {
        answer(self.client.get(url(ip, "config")).timeout(LOOK)).await
    }

    /// Merges into them; `null` takes away.
    pub async fn patch_config(
        &self,
        ip: &str,
        password: &str,
        patch: &Value,
    ) -> Result<(), PatroniError> {
        let request = self.client.patch(url(ip, "config")).timeout(ACT).json(patch);
        answer(request.basic_auth(PATRONI_USER, Some(password))).await.map(drop)
    }

    pub async fn switchover(
        &self,
        ip: &str,
        password: &str,
        leader: &str,
        candidate: &str,
    ) -> Result<(), PatroniError> {
        let body = json!({"leader": leader, "candidate": candidate});
        let request = self.client.post(url(ip, "switchover")).timeout(ACT).json(&body);
        answer(request.basic_auth(PATRONI_USER, Some(password))).await.map(drop)
    }

    /// Has this pod's copy of the data made anew from the leader's.
    pub async fn reinitialize(&self, ip: &str, password: &str) -> Result<(), PatroniError> {
        let body = json!({"force": true});
        let request = self.client.post(url(ip, "reinitialize")).timeout(ACT).json(&body);
        answer(request.basic_auth(PATRONI_USER, Some(password))).await.map(drop)
    }

    /// Restarts the Postgres of this pod, when settings wait for it.
    pub async fn restart(&self, ip: &str, password: &str) -> Result<(), PatroniError> {
        let body = json!({"restart_pending": true});
        let request = self.client.post(url(ip, "restart")).timeout(ACT).json(&body);
        answer(request.basic_auth(PATRONI_USER, Some(password))).await.map(drop)
    }
}

fn url(ip: &str, path: &str) -> String {
    // An IPv6 address stands in brackets.
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("http://{host}:{PATRONI_PORT}/{path}")
}

/// The body, as JSON where it is that.
async fn answer(request: reqwest::RequestBuilder) -> Result<Value, PatroniError> {
    let answer = request.send().await?;
    let status = answer.status();
    let text = answer.text().await?;
    if !status.is_success() {
        let body = text.chars().take(200).collect();
        return Err(PatroniError::Refused { status: status.as_u16(), body });
    }
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
