//! The resource that people write: types and their defaults. What a field means stands in its
//! docstring, which `kubectl explain` shows; a default is never written into anybody's spec.

#![allow(clippy::doc_markdown, reason = "kubectl explain shows these docstrings as they are")]

mod api;
mod common;
mod milvus;
mod status;
mod stores;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON,
};
use kube::{CustomResource, CustomResourceExt, KubeSchema, Resource};
use serde::{Deserialize, Serialize};

pub use api::{
    ApiSpec, Autoscaling, EmbedderSpec, Exposure, Gpu, Placement, Precision, ServiceType,
};
pub use common::{
    ImagePullPolicy, Images, Quantity, Resources, Scheduling, SecretKey, Spread, Storage,
};
pub use milvus::{
    EtcdSpec, MessageQueue, MilvusExternal, MilvusMode, MilvusRoles, MilvusSpec, RoleSpec,
};
pub use status::{
    ComponentStatus, Health, Phase, PostgresStatus, ReplicaStatus, SearchDeploymentStatus,
};
pub use stores::{
    CacheExternal, CacheSpec, Eviction, Freshness, ObjectStorage, PostgresExternal, PostgresSpec,
    RedisExporter, Synchronous,
};

/// Longest name, in characters. Kubernetes puts the name of a StatefulSet and eleven characters more
/// into a label, which has at most 63: that leaves 40 before `-milvus-etcd`.
pub const MAX_NAME: usize = 40;

/// A search platform: API servers, embedders, Redis, Postgres and Milvus. An empty spec is a small
/// one.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sextant.dev",
    version = "v1alpha1",
    kind = "SearchDeployment",
    plural = "searchdeployments",
    shortname = "sdep",
    namespaced,
    status = "SearchDeploymentStatus",
    derive = "PartialEq",
    derive = "Default",
    cel,
    doc = "A search platform: API servers, embedders, Redis, Postgres and Milvus. An empty spec is a small one.",
    scale(
        spec_replicas_path = ".spec.api.replicas",
        status_replicas_path = ".status.api.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health"),
    printcolumn(name = "API", type_ = "string", json_path = ".status.api.summary"),
    printcolumn(
        name = "Postgres primary",
        type_ = "string",
        json_path = ".status.postgres.primary"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("the name must have at most 40 characters: those of its children are longer"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name must begin with a letter and hold only lower-case letters, digits and dashes: it begins the names of Services")
)]
#[x_kube(
    validation = Rule::new(
        "!has(self.embedder) || !has(self.embedder.placement) || self.embedder.placement != 'dedicated' || !has(self.embedder.replicas) || self.embedder.replicas > 0"
    )
    .message("a dedicated embedder needs at least one replica"),
    validation = Rule::new(
        "!has(self.milvus) || !has(self.milvus.mode) || self.milvus.mode != 'cluster' || has(self.objectStorage)"
    )
    .message("a Milvus cluster keeps its segments in an object store: set objectStorage"),
    // Transitions are judged here, where both specs are there whatever has been left out of them.
    validation = Rule::new("has(self.objectStorage) == has(oldSelf.objectStorage)")
        .message("objectStorage cannot be added or taken away: Milvus's data would stay behind"),
    validation = Rule::new(both(|spec| present(spec, "postgres.external")))
        .message("a managed Postgres cannot become an external one or the reverse: move the documents to a new SearchDeployment"),
    validation = Rule::new(both(|spec| value(spec, "embedder.precision", "'fp32'")))
        .message("the precision cannot change: vectors of one are not compared with those of another. Make a new SearchDeployment and import into it"),
    validation = Rule::new(both(|spec| value(spec, "milvus.mode", "'standalone'")))
        .message("the mode of Milvus cannot change: make a new SearchDeployment and reindex into it"),
    validation = Rule::new(both(|spec| value(spec, "milvus.messageQueue", "'woodpecker'")))
        .message("the message queue cannot change: it holds writes that no segment has yet"),
    validation = Rule::new(both(|spec| value(spec, "milvus.etcd.replicas", "1")))
        .message("the number of etcd's replicas cannot change"),
    validation = Rule::new(grows("postgres.storage.size"))
        .message("the volumes of Postgres cannot shrink (default: 10Gi)"),
    validation = Rule::new(grows("milvus.storage.size"))
        .message("the volume of Milvus cannot shrink (default: 10Gi)"),
    validation = Rule::new(grows("milvus.etcd.storage.size"))
        .message("the volumes of etcd cannot shrink (default: 10Gi)"),
    validation = Rule::new(both(|spec| value(spec, "postgres.storage.storageClass", "''")))
        .message("the storage class of Postgres's volumes cannot change"),
    validation = Rule::new(both(|spec| value(spec, "milvus.storage.storageClass", "''")))
        .message("the storage class of Milvus's volume cannot change"),
    validation = Rule::new(both(|spec| value(spec, "milvus.etcd.storage.storageClass", "''")))
        .message("the storage class of etcd's volumes cannot change")
)]
#[serde(rename_all = "camelCase")]
pub struct SearchDeploymentSpec {
    /// Version of sextant-server, the tag of its image. Default: the operator's own version when the
    /// resource is made; an upgrade of the operator does not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"))]
    pub version: Option<String>,
    /// Where the images come from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub images: Images,
    /// The servers that answer searches.
    #[serde(default, skip_serializing_if = "is_default")]
    pub api: ApiSpec,
    /// What turns texts into vectors.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedder: EmbedderSpec,
    /// The cache that the servers share.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: CacheSpec,
    /// Where documents are kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub postgres: PostgresSpec,
    /// Where vectors are kept and searched.
    #[serde(default, skip_serializing_if = "is_default")]
    pub milvus: MilvusSpec,
    /// The S3 store of Milvus's segments. Without one a standalone Milvus keeps them on its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_storage: Option<ObjectStorage>,
    /// Whether Prometheus is asked to scrape the components: by ServiceMonitors and PodMonitors where
    /// their CRDs are installed, by annotations of Services where they are not.
    #[serde(default, skip_serializing_if = "is_default")]
    pub monitoring: Monitoring,
    /// Where the servers send traces. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,
    /// Whether only the connections that the components need are allowed between them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network_policy: NetworkPolicies,
    /// Whether the operator changes nothing. The status stays live and lists what would change.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paused: bool,
    /// Whether everything is scaled to zero. Volumes stay.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hibernate: bool,
    /// What becomes of volumes and generated passwords when the SearchDeployment is deleted.
    /// Default: Retain.
    #[serde(default, skip_serializing_if = "is_default")]
    pub deletion_policy: DeletionPolicy,
}

/// That a path is there. All in CEL; `spec` is `self` or `oldSelf`.
fn present(spec: &str, path: &str) -> String {
    let mut at = spec.to_owned();
    let mut parts = Vec::new();
    for part in path.split('.') {
        at = format!("{at}.{part}");
        parts.push(format!("has({at})"));
    }
    format!("({})", parts.join(" && "))
}

/// What a path has; the default is in CEL, too.
fn value(spec: &str, path: &str, default: &str) -> String {
    format!("({} ? {spec}.{path} : {default})", present(spec, path))
}

/// That it is the same of both specs.
fn both(of: impl Fn(&str) -> String) -> String {
    format!("{} == {}", of("self"), of("oldSelf"))
}

/// That a size is not less than before.
fn grows(path: &str) -> String {
    let size = |spec| format!("quantity({} ? string({spec}.{path}) : '10Gi')", present(spec, path));
    format!("{}.compareTo({}) >= 0", size("self"), size("oldSelf"))
}

/// A file with a SearchDeployment, and its name.
///
/// # Errors
/// Why it is none, in words. Fields that nobody knows are not found here: the API server finds them.
pub fn parse(yaml: &str) -> Result<serde_json::Value, String> {
    let mut body: serde_json::Value =
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
    let kind = [SearchDeployment::api_version(&()), SearchDeployment::kind(&())];
    for (field, wanted) in ["apiVersion", "kind"].into_iter().zip(kind) {
        if body[field] != *wanted {
            return Err(format!("its {field} is not {wanted}"));
        }
    }
    // As the API server does by the default of the schema.
    if body["spec"].is_null() {
        body["spec"] = serde_json::json!({});
    }
    serde_json::from_value::<SearchDeployment>(body.clone()).map_err(|error| error.to_string())?;
    Ok(body)
}

/// The resource as the API server learns of it.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = SearchDeployment::crd();
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let Some(schema) = schema else { continue };
        schema.required = None;
        if let Some(spec) = schema.properties.as_mut().and_then(|all| all.get_mut("spec")) {
            // Server-side apply makes a map whose last field goes null, which is no spec.
            spec.default = Some(JSON(serde_json::json!({})));
        }
    }
    definition
}

impl SearchDeploymentSpec {
    /// Names of the Secrets whose content pods read only when they start.
    pub fn secrets(&self) -> Vec<&str> {
        let mut secrets: Vec<&str> = Vec::new();
        if let Some(external) = &self.postgres.external {
            secrets.push(&external.primary.name);
            secrets.extend(external.replicas.iter().map(|replica| replica.name.as_str()));
        }
        secrets.extend(self.postgres.tls_secret.as_deref());
        let cache = self.cache.external.as_ref().and_then(|cache| cache.password_secret.as_ref());
        let milvus = self.milvus.external.as_ref();
        let milvus = milvus.and_then(|milvus| milvus.password_secret.as_ref());
        secrets.extend(cache.into_iter().chain(milvus).map(|secret| secret.name.as_str()));
        let storage = self.object_storage.as_ref();
        secrets.extend(storage.and_then(|storage| storage.credentials_secret.as_deref()));
        secrets.extend(self.trace_headers().map(|secret| secret.name.as_str()));
        secrets.sort_unstable();
        secrets.dedup();
        secrets
    }

    /// What the servers send to the collector of traces beside the spans.
    pub fn trace_headers(&self) -> Option<&SecretKey> {
        self.traces.as_ref()?.headers_secret.as_ref()
    }
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// How often to scrape, as in 30s. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[1-9][0-9]*(s|m)$"))]
    pub interval: Option<String>,
    /// Labels that Prometheus selects ServiceMonitors and PodMonitors by.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Monitoring {
    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    pub fn interval(&self) -> &str {
        self.interval.as_deref().unwrap_or("30s")
    }
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traces {
    /// Base URL of a collector that understands OTLP over HTTP, as in
    /// http://otel-collector.monitoring:4318.
    #[schemars(regex(pattern = "^https?://[^/]"))]
    pub endpoint: String,
    /// Percent of the traces that begin at a server that are recorded. Those whose caller records them
    /// are recorded in any case. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i32>,
    /// Headers for the collector, as in authorization=Bearer%20abc,x-tenant=gym: the form of
    /// OTEL_EXPORTER_OTLP_HEADERS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret: Option<SecretKey>,
}

impl Traces {
    pub fn ratio(&self) -> f64 {
        f64::from(self.percent.unwrap_or(1)) / 100.0
    }
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicies {
    /// Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Labels of the namespaces whose pods may use the API; with none, all may.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub allowed_namespaces: std::collections::BTreeMap<String, String>,
}

impl NetworkPolicies {
    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

#[derive(
    schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize,
)]
pub enum DeletionPolicy {
    /// Volumes and generated passwords stay, and a SearchDeployment of the same name takes them up.
    #[default]
    Retain,
    Delete,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
