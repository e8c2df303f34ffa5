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

/// What the members say of themselves.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub members: Vec<ClusterMember>,
}

#[derive(Clone, Debug, Default)]
pub struct ClusterMember {
    pub name: String,
    /// Whether it holds the lock.
    pub is_leader: bool,
    /// Whether the leader waits for it before it acknowledges a write.
    pub is_synchronous: bool,
    /// As in `running`, `streaming`; empty when it did not answer.
    pub state: String,
    pub timeline: Option<i64>,
    /// The end of its log, in bytes; of a replica, of what it has received.
    pub position: Option<i64>,
    pub pending_restart: bool,
}

/// What `GET /leader` says, whatever its status.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    state: String,
    /// Of a replica that is up: how it gets the log.
    replication_state: Option<String>,
    timeline: Option<i64>,
    sync_standby: bool,
    quorum_standby: bool,
    pending_restart: bool,
    xlog: Log,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Log {
    location: Option<i64>,
    received_location: Option<i64>,
}

impl Cluster {
    pub fn leader(&self) -> Option<&ClusterMember> {
        self.members.iter().find(|member| member.is_leader)
    }

    /// How many bytes a member has not received; `None` when that is not known.
    pub fn lag(&self, member: &ClusterMember) -> Option<i64> {
        Some((self.leader()?.position? - member.position?).max(0))
    }
}

impl ClusterMember {
    #[cfg(test)]
    pub fn in_state(name: &str, state: &str, is_leader: bool) -> Self {
        Self { name: name.to_owned(), state: state.to_owned(), is_leader, ..Self::default() }
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

    /// How a pod's member is. Not `GET /cluster`: it reads the lock anew, and a member that is about to
    /// take the lock, because it saw that nobody had it, then takes it from who was faster.
    ///
    /// # Source
    /// <https://github.com/patroni/patroni/issues/3718>
    pub async fn member(&self, name: String, ip: &str) -> Result<ClusterMember, PatroniError> {
        let answer = self.client.get(url(ip, "leader")).timeout(LOOK).send().await?;
        let is_leader = answer.status().is_success();
        let answer: Answer = answer.json().await?;
        let Answer { state, replication_state, timeline, pending_restart, xlog, .. } = answer;
        Ok(ClusterMember {
            name,
            is_leader,
            is_synchronous: answer.sync_standby || answer.quorum_standby,
            state: replication_state.filter(|_| !is_leader).unwrap_or(state),
            timeline,
            position: xlog.location.or(xlog.received_location),
            pending_restart,
        })
    }

    /// The settings that all members share. They are read and changed where the leader is: it does not
    /// take the lock from anybody.
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
