//! Redis, Postgres and the object store.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Quantity, Resources, Scheduling, SecretKey, Storage};
use super::is_default;

/// The cache that the servers share.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.external) || !(has(self.memory) || has(self.eviction) || has(self.exporter))")
        .message("memory, eviction and exporter are those of the managed Redis: leave them out with external"),
    validation = Rule::new("!has(self.external) || !has(self.enabled) || self.enabled")
        .message("enabled: false and external contradict each other")
)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// Whether there is a shared cache. Each server has its own in any case. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// A Redis that is there already, in place of a managed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<CacheExternal>,
    /// Memory limit of the managed Redis; three quarters of it are for answers. Default: 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// What the managed Redis forgets when it is full. Default: allkeys-lru.
    #[serde(default, skip_serializing_if = "is_default")]
    pub eviction: Eviction,
    /// How long answers are kept, in seconds. Default: 1800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub ttl_seconds: Option<i64>,
    /// Memory of each server's own cache of answers. Default: 128Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near_memory: Option<Quantity>,
    /// What new collections are unless they say so themselves. Default: bounded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub freshness: Freshness,
    /// What tells the managed Redis's own metrics.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exporter: RedisExporter,
    /// Of the managed Redis.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheduling: Scheduling,
}

impl CacheSpec {
    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    pub fn is_managed(&self) -> bool {
        self.enabled() && self.external.is_none()
    }

    pub fn has_exporter(&self) -> bool {
        self.is_managed() && self.exporter.enabled
    }

    pub fn memory(&self) -> Quantity {
        self.memory.clone().unwrap_or_else(|| "512Mi".into())
    }
}

/// What tells the managed Redis's own metrics.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisExporter {
    /// Whether redis_exporter runs beside Redis, in its pod. A change of this restarts Redis, which then
    /// begins empty. Default: false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub enabled: bool,
}

/// A Redis that is there already.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheExternal {
    /// As in redis://host:6379, rediss://host:6379, redis-cluster://host:6379 or
    /// redis-sentinel://host:26379?sentinelServiceName=NAME, without a password.
    #[schemars(
        length(min = 1, max = 2048),
        regex(
            pattern = r"^(redis|rediss|redis-cluster|rediss-cluster|redis-sentinel|rediss-sentinel)://[^@\s]+$"
        )
    )]
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretKey>,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Eviction {
    /// What was used least recently.
    #[default]
    AllkeysLru,
    /// What was used least often.
    AllkeysLfu,
}

impl Eviction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllkeysLru => "allkeys-lru",
            Self::AllkeysLfu => "allkeys-lfu",
        }
    }
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Freshness {
    /// An answer may be as old as `ttlSeconds` when the stores are down.
    #[default]
    Bounded,
    /// No answer is older than the last acknowledged write.
    Fresh,
}

/// Where documents are kept.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new(
        "!has(self.synchronous) || self.synchronous != 'required' || (has(self.instances) && self.instances >= 3)"
    )
    .message("synchronous: required needs three instances: with two, the loss of one stops all writes"),
    validation = Rule::new(
        "!has(self.external) || !(has(self.instances) || has(self.storage) || has(self.synchronous) || has(self.parameters) || has(self.tlsSecret))"
    )
    .message("instances, storage, synchronous, parameters and tlsSecret are those of the managed Postgres: leave them out with external")
)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSpec {
    /// A Postgres that is there already, in place of a managed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<PostgresExternal>,
    /// One primary, the others replicas. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub instances: Option<i32>,
    /// Of each instance.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storage: Storage,
    /// Whether a write waits for a replica. Default: preferred.
    #[serde(default, skip_serializing_if = "is_default")]
    pub synchronous: Synchronous,
    /// Settings of postgresql.conf; those that replication depends on are the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub parameters: BTreeMap<String, String>,
    /// Secret of the managed Postgres's certificate, with the entries `ca.crt`, `tls.crt` and
    /// `tls.key`, as cert-manager makes them, for the Services `NAME-postgres-rw` and
    /// `NAME-postgres-ro`, as in `search-postgres-rw.default.svc`. Default: one that the operator makes
    /// and renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret: Option<String>,
    /// Of each instance. Default: requests of 250m CPU and 512Mi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheduling: Scheduling,
}

impl PostgresSpec {
    pub fn instances(&self) -> i32 {
        self.instances.unwrap_or(2)
    }
}

/// A Postgres that is there already.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresExternal {
    /// Connection string of the database to write to, as in
    /// postgres://user:password@host:5432/database?sslmode=verify-full.
    pub primary: SecretKey,
    /// Connection strings of replicas to read from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub replicas: Vec<SecretKey>,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Synchronous {
    /// A write waits for a replica while there is one.
    #[default]
    Preferred,
    /// A write waits for a replica; without one, writes stop.
    Required,
    /// A failover may lose the last writes.
    Off,
}

/// A store that speaks S3.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.credentialsSecret) != (has(self.useInstanceRole) && self.useInstanceRole)")
        .message("set credentialsSecret, or useInstanceRole: true"),
    validation = Rule::new("self.bucket == oldSelf.bucket && self.endpoint == oldSelf.endpoint")
        .message("the endpoint and the bucket cannot change: Milvus's segments are there")
)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStorage {
    /// As in https://s3.eu-central-1.amazonaws.com or http://minio.storage.svc:9000.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?$")
    )]
    pub endpoint: String,
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: String,
    /// Default: us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub region: Option<String>,
    /// Secret with the entries `accesskey` and `secretkey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
    /// Whether the pods get their credentials from the cloud. Default: false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub use_instance_role: bool,
}

impl ObjectStorage {
    pub fn region(&self) -> &str {
        self.region.as_deref().unwrap_or("us-east-1")
    }

    pub fn uses_tls(&self) -> bool {
        self.endpoint.starts_with("https://")
    }

    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        let rest = self.endpoint.split_once("://").map_or("", |(_, rest)| rest);
        let rest = rest.trim_end_matches('/');
        let default = if self.uses_tls() { 443 } else { 80 };
        match rest.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().unwrap_or(default)),
            None => (rest, default),
        }
    }
}
