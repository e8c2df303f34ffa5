//! The configuration: defaults, then one YAML file, then environment variables, checked as a whole.
//!
//! Every field is also a variable: `SEXTANT_`, then the path in capitals with two underscores
//! between the parts, as in `SEXTANT_SERVER__LISTEN`. A wrong field is named with its path and the
//! nearest right name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::adapters::embedder::batching::Batching;
use crate::adapters::embedder::device::Device;
use crate::adapters::embedder::precision::Precision;
use crate::cache::CacheLimits;
use crate::domain::FieldError;
use crate::domain::collection::Freshness;
use crate::strict;

const ENV_PREFIX: &str = "SEXTANT_";

/// The file that `config show --default` prints: every field with its default and its meaning.
pub const DEFAULT_YAML: &str = include_str!("../sextant.yaml");

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: ServerConfig,
    pub auth: AuthConfig,
    pub embedder: EmbedderConfig,
    pub remote: RemoteConfig,
    pub next_embedder: NextEmbedderConfig,
    pub documents: DocumentsConfig,
    pub postgres: PostgresConfig,
    pub worker: WorkerConfig,
    pub index: IndexConfig,
    pub milvus: MilvusConfig,
    pub cache: CacheConfig,
    pub redis: RedisConfig,
    pub log: LogConfig,
    pub traces: TracesConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    pub request_timeout_ms: u64,
    pub drain_delay_ms: u64,
    pub drain_timeout_ms: u64,
    pub header_timeout_ms: u64,
    pub max_connections: usize,
    pub max_body_bytes: usize,
    pub max_import_bytes: usize,
    pub max_document_bytes: usize,
    pub import_timeout_ms: u64,
    pub max_query_chars: usize,
    pub max_embedding_inputs: usize,
    /// 0 for none.
    pub slow_request_ms: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data_dir: PathBuf::from(".data"),
            request_timeout_ms: 10_000,
            drain_delay_ms: 0,
            drain_timeout_ms: 20_000,
            header_timeout_ms: 75_000,
            max_connections: 4_096,
            max_body_bytes: 1 << 20,
            max_import_bytes: 4 << 30,
            max_document_bytes: 256 << 10,
            import_timeout_ms: 120_000,
            max_query_chars: 4_096,
            max_embedding_inputs: 256,
            slow_request_ms: 1_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    pub keys_file: Option<PathBuf>,
    pub public_metrics: bool,
    pub max_requests_per_key: usize,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { keys_file: None, public_metrics: false, max_requests_per_key: 1_024 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbedderKind {
    Torch,
    Remote,
    Hash,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedderConfig {
    pub kind: EmbedderKind,
    pub model_dir: Option<PathBuf>,
    pub model_name: String,
    pub query_prompt: Option<String>,
    pub passage_prompt: Option<String>,
    #[serde(with = "as_text")]
    pub device: Device,
    pub precision: Precision,
    pub batching: Batching,
    pub workers: usize,
    pub max_batch_tokens: usize,
    pub queue_texts: usize,
}

impl Default for EmbedderConfig {
    fn default() -> Self {
        Self {
            kind: EmbedderKind::Torch,
            model_dir: None,
            model_name: "all-MiniLM-L6-v2".to_owned(),
            query_prompt: None,
            passage_prompt: None,
            device: Device::Auto,
            precision: Precision::Fp32,
            batching: Batching::Deadline,
            workers: 0,
            max_batch_tokens: 0,
            queue_texts: 4_096,
        }
    }
}

/// A second model that is run beside that of `embedder`; what is not named here is as there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NextEmbedderConfig {
    /// `None` for no second model.
    pub kind: Option<EmbedderKind>,
    pub model_dir: Option<PathBuf>,
    pub model_name: String,
    pub query_prompt: Option<String>,
    pub passage_prompt: Option<String>,
    pub precision: Option<Precision>,
    pub endpoints: Vec<String>,
}

/// A type with `FromStr` and `Display`, as text.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: std::fmt::Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteConfig {
    pub endpoints: Vec<String>,
    pub api_key_file: Option<PathBuf>,
    pub timeout_ms: u64,
    pub hedge_after_ms: u64,
    pub max_batch_texts: usize,
    pub max_in_flight: usize,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            api_key_file: None,
            timeout_ms: 5_000,
            hedge_after_ms: 0,
            max_batch_texts: 32,
            max_in_flight: 64,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DocumentsKind {
    Sqlite,
    Postgres,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DocumentsConfig {
    pub kind: DocumentsKind,
}

impl Default for DocumentsConfig {
    fn default() -> Self {
        Self { kind: DocumentsKind::Sqlite }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    pub primary: String,
    pub replicas: Vec<String>,
    pub password_file: Option<PathBuf>,
    pub max_connections: u32,
    pub connect_timeout_ms: u64,
    pub statement_timeout_ms: u64,
    pub max_lag_ms: u64,
    pub probe_period_ms: u64,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            primary: String::new(),
            replicas: Vec::new(),
            password_file: None,
            max_connections: 10,
            connect_timeout_ms: 2_000,
            statement_timeout_ms: 5_000,
            max_lag_ms: 1_000,
            probe_period_ms: 1_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    pub concurrency: usize,
    pub batch: usize,
    pub lease_ms: u64,
    pub max_attempts: u32,
    pub poll_ms: u64,
    pub max_backlog: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            concurrency: 1,
            batch: 256,
            lease_ms: 60_000,
            max_attempts: 5,
            poll_ms: 200,
            max_backlog: 1_000_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexKind {
    Local,
    Milvus,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MilvusConfig {
    pub endpoints: Vec<String>,
    pub client: MilvusClient,
    pub user: String,
    pub password_file: Option<PathBuf>,
    pub prefix: String,
    pub replica_number: u16,
    pub timeout_ms: u64,
    pub connect_timeout_ms: u64,
}

/// Which of the library's clients understands the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MilvusClient {
    V1,
    V2,
}

impl Default for MilvusConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            client: MilvusClient::V2,
            user: String::new(),
            password_file: None,
            prefix: "sextant".to_owned(),
            replica_number: 1,
            timeout_ms: 5_000,
            connect_timeout_ms: 1_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    pub url: String,
    pub user: String,
    pub password_file: Option<PathBuf>,
    pub prefix: String,
    pub timeout_ms: u64,
    pub tls_ca_file: Option<PathBuf>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            user: String::new(),
            password_file: None,
            prefix: "sextant".to_owned(),
            timeout_ms: 20,
            tls_ca_file: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IndexConfig {
    pub kind: IndexKind,
    pub expansion_search: usize,
    pub snapshot_every: usize,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { kind: IndexKind::Local, expansion_search: 128, snapshot_every: 20_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    pub results_max_bytes: u64,
    pub results_ttl_seconds: u64,
    pub results_empty_ttl_seconds: u64,
    pub embeddings_max_bytes: u64,
    pub embeddings_ttl_seconds: u64,
    pub max_stale_seconds: u64,
    pub freshness: Freshness,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            results_max_bytes: 128 << 20,
            results_ttl_seconds: 30 * 60,
            results_empty_ttl_seconds: 30,
            embeddings_max_bytes: 64 << 20,
            embeddings_ttl_seconds: 24 * 60 * 60,
            max_stale_seconds: 60 * 60,
            freshness: Freshness::Bounded,
        }
    }
}

impl CacheConfig {
    pub fn results(&self) -> CacheLimits {
        CacheLimits {
            max_bytes: self.results_max_bytes,
            ttl: Duration::from_secs(self.results_ttl_seconds),
            empty_ttl: Duration::from_secs(self.results_empty_ttl_seconds),
        }
    }

    pub fn embeddings(&self) -> CacheLimits {
        let ttl = Duration::from_secs(self.embeddings_ttl_seconds);
        CacheLimits { max_bytes: self.embeddings_max_bytes, ttl, empty_ttl: ttl }
    }

    pub fn max_stale(&self) -> Duration {
        Duration::from_secs(self.max_stale_seconds)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// Empty for none.
    pub endpoint: String,
    /// Of the traces that begin here, 0 to 1.
    pub ratio: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: String::new(), ratio: 0.01 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid YAML: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{origin}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid { origin: String, faults: Vec<FieldError> },
}

impl Config {
    /// Reads the file, when there is one, and the environment, then checks: a `Config` in hand is
    /// usable.
    pub fn load(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut tree = Json::Object(serde_json::Map::new());
        let mut origin = "the environment".to_owned();
        if let Some(path) = path {
            origin = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            tree = parse_yaml(&text, path)?;
            // Checked alone first, so that a fault is told of the place where it is.
            Self::from_tree(tree.clone(), &origin)?;
        }
        let mut variables: Vec<(String, String)> = environment
            .filter_map(|(name, value)| Some((name.strip_prefix(ENV_PREFIX)?.to_owned(), value)))
            // One underscore is no path: left to other programs of the same name.
            .filter(|(name, _)| name.contains("__"))
            .collect();
        variables.sort();
        if !variables.is_empty() {
            origin = format!("{origin}, environment variables {ENV_PREFIX}…");
        }
        for (name, value) in variables {
            set(&mut tree, &name.to_lowercase(), scalar(&value));
        }
        let config = Self::from_tree(tree, &origin)?;
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { origin, faults }) }
    }

    fn from_tree(tree: Json, origin: &str) -> Result<Self, ConfigError> {
        strict::from_value(tree).map_err(|fault| ConfigError::Invalid {
            origin: origin.to_owned(),
            faults: vec![fault],
        })
    }

    fn faults(&self) -> Vec<FieldError> {
        let mut faults = Vec::new();
        let mut positive = |path: &str, value: u64| {
            if value == 0 {
                faults.push(FieldError::new(path, "must be above 0"));
            }
        };
        positive("server.request_timeout_ms", self.server.request_timeout_ms);
        positive("server.header_timeout_ms", self.server.header_timeout_ms);
        positive("server.import_timeout_ms", self.server.import_timeout_ms);
        positive("server.max_connections", self.server.max_connections as u64);
        positive("server.max_body_bytes", self.server.max_body_bytes as u64);
        positive("server.max_import_bytes", self.server.max_import_bytes as u64);
        positive("server.max_document_bytes", self.server.max_document_bytes as u64);
        positive("server.max_query_chars", self.server.max_query_chars as u64);
        positive("server.max_embedding_inputs", self.server.max_embedding_inputs as u64);
        positive("auth.max_requests_per_key", self.auth.max_requests_per_key as u64);
        positive("embedder.queue_texts", self.embedder.queue_texts as u64);
        positive("index.expansion_search", self.index.expansion_search as u64);
        positive("index.snapshot_every", self.index.snapshot_every as u64);
        positive("cache.results_ttl_seconds", self.cache.results_ttl_seconds);
        positive("cache.embeddings_ttl_seconds", self.cache.embeddings_ttl_seconds);
        positive("remote.timeout_ms", self.remote.timeout_ms);
        positive("remote.max_batch_texts", self.remote.max_batch_texts as u64);
        positive("remote.max_in_flight", self.remote.max_in_flight as u64);
        positive("postgres.max_connections", u64::from(self.postgres.max_connections));
        positive("postgres.connect_timeout_ms", self.postgres.connect_timeout_ms);
        positive("postgres.statement_timeout_ms", self.postgres.statement_timeout_ms);
        positive("postgres.max_lag_ms", self.postgres.max_lag_ms);
        positive("postgres.probe_period_ms", self.postgres.probe_period_ms);
        positive("worker.batch", self.worker.batch as u64);
        positive("worker.lease_ms", self.worker.lease_ms);
        positive("worker.max_attempts", u64::from(self.worker.max_attempts));
        positive("worker.poll_ms", self.worker.poll_ms);
        positive("worker.max_backlog", self.worker.max_backlog);
        positive("milvus.replica_number", u64::from(self.milvus.replica_number));
        positive("milvus.timeout_ms", self.milvus.timeout_ms);
        positive("milvus.connect_timeout_ms", self.milvus.connect_timeout_ms);
        positive("redis.timeout_ms", self.redis.timeout_ms);
        faults.extend(self.missing());
        if !(0.0..=1.0).contains(&self.traces.ratio) {
            faults.push(FieldError::new("traces.ratio", "must be from 0 to 1"));
        }
        let endpoint = &self.traces.endpoint;
        if !endpoint.is_empty()
            && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
        {
            let message = "must be a URL that begins with http:// or https://";
            faults.push(FieldError::new("traces.endpoint", message));
        }
        if self.auth.keys_file.is_none() && !self.server.listen.ip().is_loopback() {
            let message = format!(
                "is {}, which other machines reach, but there are no API keys. Make one with \
                 `sextant-server keys add --name NAME --scopes read,write,admin --file keys.yaml`, \
                 set `auth.keys_file` to that file, or listen on 127.0.0.1",
                self.server.listen
            );
            faults.push(FieldError::new("server.listen", message));
        }
        faults
    }
}

impl Config {
    /// What the chosen adapters need and do not have.
    fn missing(&self) -> Vec<FieldError> {
        let mut faults = Vec::new();
        let mut needed = |needed: bool, path: &str, message: &str| {
            if needed {
                faults.push(FieldError::new(path, message));
            }
        };
        let remote = self.embedder.kind == EmbedderKind::Remote;
        let next = &self.next_embedder;
        let postgres = self.documents.kind == DocumentsKind::Postgres;
        let milvus = self.index.kind == IndexKind::Milvus;
        needed(
            remote && self.remote.endpoints.is_empty(),
            "remote.endpoints",
            "must name at least one server, as `embedder.kind` is remote",
        );
        needed(
            next.kind == Some(EmbedderKind::Remote) && next.endpoints.is_empty(),
            "next_embedder.endpoints",
            "must name at least one server, as `next_embedder.kind` is remote",
        );
        needed(
            next.kind.is_some() && !postgres,
            "next_embedder.kind",
            "must be null when `documents.kind` is sqlite: only collections that several servers share \
             are taken over to another model",
        );
        needed(
            postgres && self.postgres.primary.is_empty(),
            "postgres.primary",
            "must be a connection string, as `documents.kind` is postgres",
        );
        needed(
            milvus && self.milvus.endpoints.is_empty(),
            "milvus.endpoints",
            "must name at least one server, as `index.kind` is milvus",
        );
        needed(
            postgres != milvus,
            "index.kind",
            "must be milvus when `documents.kind` is postgres, and local when it is sqlite: \
             both are shared by several servers, or none is",
        );
        needed(
            !postgres && !self.redis.url.is_empty(),
            "redis.url",
            "must be empty when `documents.kind` is sqlite: the documents are this server's alone, \
             and so are the answers",
        );
        faults
    }
}

fn parse_yaml(text: &str, path: &Path) -> Result<Json, ConfigError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Json::Object(serde_json::Map::new()));
    }
    serde_saphyr::from_str(text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })
}

/// A variable's value as YAML reads a plain scalar: numbers and bools are such, all else is text. A
/// list is written as a JSON array.
fn scalar(text: &str) -> Json {
    match serde_json::from_str::<Json>(text) {
        Ok(value @ (Json::Number(_) | Json::Bool(_) | Json::Null | Json::Array(_))) => value,
        _ => Json::String(text.to_owned()),
    }
}

/// Puts a value into the tree at a path whose parts are joined by two underscores.
fn set(tree: &mut Json, path: &str, value: Json) {
    let mut at = tree;
    for part in path.split("__") {
        if !at.is_object() {
            *at = Json::Object(serde_json::Map::new());
        }
        let Json::Object(object) = at else { return };
        at = object.entry(part).or_insert(Json::Null);
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sextant.yaml");
        std::fs::write(&path, yaml).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(&path), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_commented_file_holds_every_field_with_its_default() {
        assert_eq!(load(DEFAULT_YAML, &[]).unwrap(), Config::default());
        let tree = parse_yaml(DEFAULT_YAML, Path::new("sextant.yaml")).unwrap();
        let written = serde_json::to_value(Config::default()).unwrap();
        for (section, fields) in written.as_object().unwrap() {
            for field in fields.as_object().unwrap().keys() {
                assert!(tree[section].get(field).is_some(), "{section}.{field} is not in the file");
            }
        }
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let environment = [
            ("SEXTANT_SERVER__LISTEN", "127.0.0.1:9"),
            ("SEXTANT_CACHE__RESULTS_TTL_SECONDS", "60"),
            ("SEXTANT_UNRELATED", "x"),
        ];
        let config = load("server:\n  listen: 127.0.0.1:7\n", &environment).unwrap();
        assert_eq!(config.server.listen.port(), 9);
        assert_eq!(config.cache.results_ttl_seconds, 60);
    }

    #[test]
    fn a_list_is_given_in_the_environment_as_a_json_array() {
        let endpoints = |value: &str| {
            load("", &[("SEXTANT_MILVUS__ENDPOINTS", value)]).map(|c| c.milvus.endpoints)
        };
        assert_eq!(
            endpoints("[\"http://a:1\", \"http://b:2\"]").unwrap(),
            ["http://a:1", "http://b:2"]
        );
        assert!(endpoints("[]").unwrap().is_empty());
        assert!(endpoints("http://a:1").unwrap_err().contains("`milvus.endpoints`"));
        assert!(endpoints("[http://a:1]").unwrap_err().contains("`milvus.endpoints`"));
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path_and_the_nearest_right_name() {
        let message = load("server:\n  lisen: 127.0.0.1:7\n", &[]).unwrap_err();
        assert!(message.contains("`server.lisen`") && message.contains("\"listen\""), "{message}");
        let message = load("", &[("SEXTANT_CACHE__RESULT_TTL_SECONDS", "6")]).unwrap_err();
        assert!(message.contains("\"results_ttl_seconds\""), "{message}");
        let message = load("server:\n  max_connections: many\n", &[]).unwrap_err();
        assert!(message.contains("`server.max_connections`"), "{message}");
    }

    #[test]
    fn the_precision_is_one_of_three_and_another_is_refused_with_their_names() {
        let load = |value: &str| load("", &[("SEXTANT_EMBEDDER__PRECISION", value)]);
        assert_eq!(load("bf16").unwrap().embedder.precision, Precision::Bf16);
        assert_eq!(load("fp32").unwrap().embedder.precision, Precision::Fp32);
        assert_eq!(load("int8").unwrap().embedder.precision, Precision::Int8);
        let message = load("fp16").unwrap_err();
        for part in ["`embedder.precision`", "fp16", "fp32", "bf16", "int8"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_collector_of_traces_is_a_url_and_a_ratio_is_a_share() {
        let fault = |name: &str, value: &str| load("", &[(name, value)]).unwrap_err();
        let message = fault("SEXTANT_TRACES__ENDPOINT", "collector:4317");
        assert!(message.contains("`traces.endpoint`"), "{message}");
        for wrong in ["-0.1", "1.5", "10"] {
            let message = fault("SEXTANT_TRACES__RATIO", wrong);
            assert!(message.contains("`traces.ratio`"), "{message}");
        }
        let environment =
            [("SEXTANT_TRACES__ENDPOINT", "http://collector:4318"), ("SEXTANT_TRACES__RATIO", "1")];
        assert!((load("", &environment).unwrap().traces.ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn without_keys_only_loopback_is_listened_on() {
        let message = load("server:\n  listen: 0.0.0.0:80\n", &[]).unwrap_err();
        assert!(message.contains("keys add"), "{message}");
        assert!(load("server:\n  listen: 0.0.0.0:80\nauth:\n  keys_file: k\n", &[]).is_ok());
        assert!(load("server:\n  listen: '[::1]:80'\n", &[]).is_ok());
    }
}
