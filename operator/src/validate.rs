//! From what somebody wrote to what can be built, or to reasons why it cannot. Pure.

use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::object::HasSpec;

use crate::crd::{MAX_NAME, Quantity, Resources, SearchDeployment, SearchDeploymentSpec};

/// Kubernetes cuts larger amounts off in silence: 1Ei.
const LARGEST: f64 = 1_152_921_504_606_846_976.0;

/// A SearchDeployment that can be built. Fields that are not set have their defaults by the getters
/// of `crd`.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    pub spec: SearchDeploymentSpec,
    /// Of sextant-server.
    pub version: String,
}

/// Why a spec cannot be had. A rule in the CRD says the same to whoever applies it; this is for
/// resources that are older than the rule, and for what CEL cannot say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As in `spec.api.resources.limits.cpu`.
    pub field: String,
    pub reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// `default_version` is that of a server whose version nobody has said yet.
///
/// # Errors
/// All faults of the spec.
pub fn validate(
    object: &SearchDeployment,
    default_version: &str,
) -> Result<Deployment, Vec<Fault>> {
    let ObjectMeta { uid, generation, namespace, .. } = &object.metadata;
    let spec = object.spec();
    let mut faults = cel_faults(object);
    let mut fault = |field: &str, reason: String| {
        faults.push(Fault { field: field.to_owned(), reason });
    };
    let name = object.name_any();
    if name.len() > MAX_NAME {
        fault("metadata.name", format!("must have at most {MAX_NAME} characters"));
    }
    for (field, resources) in all_resources(spec) {
        for reason in resource_faults(resources) {
            fault(&format!("spec.{field}.resources"), reason);
        }
    }
    let sizes = [
        ("postgres.storage.size", spec.postgres.storage.size()),
        ("milvus.storage.size", spec.milvus.storage.size()),
        ("milvus.etcd.storage.size", spec.milvus.etcd.storage.size()),
        ("cache.memory", spec.cache.memory()),
    ];
    for (field, size) in sizes {
        if size.value().is_none_or(|bytes| !(1_048_576.0..=LARGEST).contains(&bytes)) {
            fault(&format!("spec.{field}"), format!("{:?} is not a size from 1Mi to 1Ei", size.0));
        }
    }
    for parameter in spec.postgres.parameters.keys() {
        if let Some(reason) = crate::components::postgres::refusal(parameter) {
            fault(&format!("spec.postgres.parameters.{parameter}"), reason.to_owned());
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let pinned = object.status.as_ref().and_then(|status| status.version.as_deref());
    let version = spec.version.as_deref().or(pinned).unwrap_or(default_version);
    Ok(Deployment {
        name,
        namespace: namespace.clone().unwrap_or_else(|| "default".to_owned()),
        uid: uid.clone().unwrap_or_default(),
        generation: generation.unwrap_or_default(),
        spec: spec.clone(),
        version: version.to_owned(),
    })
}

/// The rules of the CRD, for resources that were made before them.
fn cel_faults(object: &SearchDeployment) -> Vec<Fault> {
    let Err(errors) = object.validate_cel() else { return Vec::new() };
    errors
        .into_iter()
        .map(|error| Fault { field: error.field_path.clone(), reason: error.message.clone() })
        .collect()
}

fn all_resources(spec: &SearchDeploymentSpec) -> [(&'static str, &Resources); 11] {
    let roles = &spec.milvus.roles;
    [
        ("api", &spec.api.resources),
        ("embedder", &spec.embedder.resources),
        ("postgres", &spec.postgres.resources),
        ("milvus", &spec.milvus.resources),
        ("milvus.etcd", &spec.milvus.etcd.resources),
        ("milvus.roles.proxy", &roles.proxy.resources),
        ("milvus.roles.coordinator", &roles.coordinator.resources),
        ("milvus.roles.streamingNode", &roles.streaming_node.resources),
        ("milvus.roles.queryNode", &roles.query_node.resources),
        ("milvus.roles.dataNode", &roles.data_node.resources),
        ("milvus.roles.indexNode", &roles.index_node.resources),
    ]
}

fn resource_faults(resources: &Resources) -> Vec<String> {
    let mut faults = Vec::new();
    let amounts = resources.requests.iter().chain(&resources.limits);
    for (name, amount) in amounts {
        if amount.value().is_none_or(|amount| amount > LARGEST) {
            faults.push(format!("{name}: {:?} is not a quantity up to 1Ei", amount.0));
        }
    }
    for (name, limit) in &resources.limits {
        let over = |request: &Quantity| request.value() > limit.value();
        if resources.requests.get(name).is_some_and(over) {
            faults.push(format!("the request of {name} is above its limit"));
        }
    }
    faults
}
