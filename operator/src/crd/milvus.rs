//! Milvus and what it keeps its metadata in.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Resources, Scheduling, SecretKey, Storage};
use super::is_default;

/// Where vectors are kept and searched.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("(has(self.mode) && self.mode == 'external') == has(self.external)")
        .message("mode: external and external belong together"),
    validation = Rule::new("!has(self.messageQueue) || self.messageQueue != 'kafka' || has(self.kafkaBrokers)")
        .message("messageQueue: kafka needs kafkaBrokers"),
    validation = Rule::new(
        "!has(self.version) || !self.version.matches('^v?2[.][0-5][.]') || (has(self.mode) && self.mode != 'cluster') || !has(self.mode) || (has(self.messageQueue) && self.messageQueue == 'kafka')"
    )
    .message("a cluster of Milvus 2.5 or older needs messageQueue: kafka"),
    validation = Rule::new(
        "!has(self.replicaNumber) || self.replicaNumber == 1 || (has(self.mode) && (self.mode == 'external' || (self.mode == 'cluster' && self.replicaNumber <= (has(self.roles) && has(self.roles.queryNode) && has(self.roles.queryNode.replicas) ? self.roles.queryNode.replicas : 2))))"
    )
    .message("replicaNumber: every copy needs a query node of its own")
)]
#[serde(rename_all = "camelCase")]
pub struct MilvusSpec {
    /// Default: standalone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: MilvusMode,
    /// Tag of the image. Default: v2.6.15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^v?[0-9]+\.[0-9]+\.[0-9]+([-.+].*)?$"))]
    pub version: Option<String>,
    /// Copies of each collection in memory, on query nodes of their own: with two, the loss of a query
    /// node is not noticed. Older Milvus gives it to new collections only. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub replica_number: Option<u16>,
    /// A Milvus that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<MilvusExternal>,
    /// Of the standalone Milvus. Default: requests of 500m CPU and 2Gi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Of the standalone Milvus.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storage: Storage,
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheduling: Scheduling,
    /// The processes of a cluster.
    #[serde(default, skip_serializing_if = "is_default")]
    pub roles: MilvusRoles,
    /// Metadata of a cluster.
    #[serde(default, skip_serializing_if = "is_default")]
    pub etcd: EtcdSpec,
    /// Where a cluster keeps writes until they are in segments. Default: woodpecker.
    #[serde(default, skip_serializing_if = "is_default")]
    pub message_queue: MessageQueue,
    /// As in kafka-0.kafka:9092, for messageQueue: kafka.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub kafka_brokers: Option<String>,
}

impl MilvusSpec {
    pub fn replica_number(&self) -> u16 {
        self.replica_number.unwrap_or(1)
    }

    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("v2.6.15")
    }

    /// Whether the roles are those of 2.6 and later, with streaming nodes.
    pub fn has_streaming_nodes(&self) -> bool {
        let mut parts = self.version().trim_start_matches('v').split('.');
        let mut next = || parts.next().and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
        (next(), next()) >= (2, 6)
    }
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MilvusMode {
    /// One process with its own metadata.
    #[default]
    Standalone,
    /// A process for each role, over etcd and an object store.
    Cluster,
    External,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MessageQueue {
    /// Milvus's own log in the object store; from 2.6 on.
    #[default]
    Woodpecker,
    Kafka,
}

/// A Milvus that is there already.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MilvusExternal {
    /// URLs of one Milvus, as in http://milvus:19530.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 512), regex(pattern = r"^https?://[^@\s]+$"))
    )]
    pub endpoints: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretKey>,
}

/// The processes of a cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MilvusRoles {
    /// Takes requests. Default: 1 replica with requests of 250m CPU and 512Mi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proxy: RoleSpec,
    /// Decides who does what; two stand by for each other. Before 2.6: all coordinators in one.
    /// Default: 1 replica with requests of 250m CPU and 512Mi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub coordinator: RoleSpec,
    /// Takes writes; from 2.6 on. Default: 1 replica with requests of 250m CPU and 1Gi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub streaming_node: RoleSpec,
    /// Holds segments and searches them. Default: 2 replicas with requests of 500m CPU and 2Gi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub query_node: RoleSpec,
    /// Writes and compacts segments. Default: 1 replica with requests of 250m CPU and 1Gi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub data_node: RoleSpec,
    /// Builds indexes; before 2.6. Default: 1 replica with requests of 500m CPU and 1Gi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub index_node: RoleSpec,
}

/// The processes of one role.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
}

/// The etcd of a cluster's metadata.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.replicas) || self.replicas in [1, 3, 5]")
        .message("etcd needs an odd number of replicas: 1, 3 or 5")
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdSpec {
    /// 1, 3 or 5. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: Option<i32>,
    /// Default: requests of 100m CPU and 256Mi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Of each replica.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storage: Storage,
}

impl EtcdSpec {
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }
}
