//! What the objects of a SearchDeployment are to be. Pure: the same data gives the same objects.

pub mod api;
pub mod certificates;
pub mod embedder;
pub mod etcd;
pub mod keys;
pub mod meta;
pub mod milvus;
pub mod monitoring;
pub mod network;
pub mod pod;
pub mod postgres;
pub mod redis;
pub mod server;
pub mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::civil::Date;
use kube::api::{ApiResource, DynamicObject};
use rand::Rng;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::validate::Deployment;

/// The kinds of objects that the operator makes, in the order in which they are applied: a pod must
/// find what it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ServiceAccount,
    Role,
    RoleBinding,
    Secret,
    ConfigMap,
    Service,
    PodDisruptionBudget,
    NetworkPolicy,
    StatefulSet,
    Deployment,
    HorizontalPodAutoscaler,
    Ingress,
    HttpRoute,
    ServiceMonitor,
    PodMonitor,
}

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::ServiceAccount,
        Self::Role,
        Self::RoleBinding,
        Self::Secret,
        Self::ConfigMap,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::NetworkPolicy,
        Self::StatefulSet,
        Self::Deployment,
        Self::HorizontalPodAutoscaler,
        Self::Ingress,
        Self::HttpRoute,
        Self::ServiceMonitor,
        Self::PodMonitor,
    ];

    /// Group, version, kind and plural.
    fn names(self) -> [&'static str; 4] {
        match self {
            Self::ServiceAccount => ["", "v1", "ServiceAccount", "serviceaccounts"],
            Self::Role => ["rbac.authorization.k8s.io", "v1", "Role", "roles"],
            Self::RoleBinding => ["rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"],
            Self::Secret => ["", "v1", "Secret", "secrets"],
            Self::ConfigMap => ["", "v1", "ConfigMap", "configmaps"],
            Self::Service => ["", "v1", "Service", "services"],
            Self::PodDisruptionBudget => {
                ["policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"]
            }
            Self::NetworkPolicy => ["networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"],
            Self::StatefulSet => ["apps", "v1", "StatefulSet", "statefulsets"],
            Self::Deployment => ["apps", "v1", "Deployment", "deployments"],
            Self::HorizontalPodAutoscaler => {
                ["autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"]
            }
            Self::Ingress => ["networking.k8s.io", "v1", "Ingress", "ingresses"],
            Self::HttpRoute => ["gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"],
            Self::ServiceMonitor => {
                ["monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"]
            }
            Self::PodMonitor => ["monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"],
        }
    }

    pub fn as_str(self) -> &'static str {
        self.names()[2]
    }

    pub fn resource(self) -> ApiResource {
        let [group, version, kind, plural] = self.names();
        let gvk = kube::core::GroupVersionKind::gvk(group, version, kind);
        ApiResource::from_gvk_with_plural(&gvk, plural)
    }

    /// Whether its CRD may be missing.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::HttpRoute | Self::ServiceMonitor | Self::PodMonitor)
    }
}

/// An object as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub kind: Kind,
    pub name: String,
    pub body: Value,
}

impl Manifest {
    /// Of the whole body: what was applied with this hash has no field that is no longer wanted.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.body.to_string());
        pod::hex(&digest[..8])
    }
}

/// All objects of a SearchDeployment.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    objects: BTreeMap<(Kind, String), Manifest>,
}

impl Desired {
    fn add(&mut self, kind: Kind, object: impl Serialize) {
        // Fails for maps with keys that are no text, which these have not.
        let mut body = serde_json::to_value(object).unwrap_or_default();
        let resource = kind.resource();
        body["apiVersion"] = resource.api_version.into();
        body["kind"] = resource.kind.into();
        if let Some(body) = body.as_object_mut() {
            body.remove("status");
        }
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.objects.insert((kind, name.clone()), Manifest { kind, name, body });
    }

    fn add_all<T: Serialize>(&mut self, kind: Kind, objects: impl IntoIterator<Item = T>) {
        for object in objects {
            self.add(kind, object);
        }
    }

    /// In the order in which they are applied.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.objects.values()
    }

    pub fn get(&self, kind: Kind, name: &str) -> Option<&Manifest> {
        self.objects.get(&(kind, name.to_owned()))
    }
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The objects with the labels of this SearchDeployment, those of the operator's kinds.
    pub objects: BTreeMap<(Kind, String), Arc<DynamicObject>>,
    /// Secrets that the spec refers to and that are not the operator's.
    pub referenced: BTreeMap<String, BTreeMap<String, ByteString>>,
    /// All of its pods, by name; of their specs only the node.
    pub pods: Vec<Arc<DynamicObject>>,
    /// Kinds whose CRDs are not installed.
    pub missing: Vec<Kind>,
    /// Secrets that the spec names and that are not there: pods wait for them without a word.
    pub missing_secrets: Vec<String>,
    /// Nodes that take no more pods, as before they are drained.
    pub cordoned: BTreeSet<String>,
}

impl Observed {
    /// Pods of a component, by name.
    pub fn pods_of(&self, component: meta::Component) -> impl Iterator<Item = &Arc<DynamicObject>> {
        self.pods.iter().filter(move |pod| component.is_of(&***pod))
    }

    fn secret_data(&self, name: &str) -> BTreeMap<String, ByteString> {
        if let Some(data) = self.referenced.get(name) {
            return data.clone();
        }
        let own = self.objects.get(&(Kind::Secret, name.to_owned()));
        let own = own.and_then(|object| object.data.get("data").cloned());
        own.and_then(|data| serde_json::from_value(data).ok()).unwrap_or_default()
    }

    pub fn secret(&self, name: &str, entry: &str) -> Option<Vec<u8>> {
        self.secret_data(name).remove(entry).map(|bytes| bytes.0)
    }

    /// Of what Secrets hold, for the pods that read them only when they start.
    fn secret_hash<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> String {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for name in names {
            parts.push(name.as_bytes().to_vec());
            for (entry, bytes) in self.secret_data(name) {
                parts.extend([entry.into_bytes(), bytes.0]);
            }
        }
        pod::hash(parts.iter().map(Vec::as_slice))
    }
}

/// All objects of a SearchDeployment. `random` is asked only for passwords and certificates that are
/// not there yet.
///
/// # Errors
/// When a certificate cannot be made.
pub fn desired(
    deployment: &Deployment,
    observed: &Observed,
    today: Date,
    random: &mut impl Rng,
) -> Result<Desired, rcgen::Error> {
    let mut desired = Desired::default();
    keys::add(&mut desired, deployment, observed, random);
    certificates::add(&mut desired, deployment, observed, today, random)?;
    // From here on pods are made for the passwords that there will be.
    let observed = &observed.with_secrets(&desired);
    redis::add(&mut desired, deployment, observed);
    postgres::add(&mut desired, deployment, observed);
    etcd::add(&mut desired, deployment);
    milvus::add(&mut desired, deployment, observed);
    embedder::add(&mut desired, deployment, observed);
    api::add(&mut desired, deployment, observed);
    network::add(&mut desired, deployment);
    monitoring::add(&mut desired, deployment, observed);
    desired.objects.retain(|(kind, _), _| !observed.missing.contains(kind));
    Ok(desired)
}

impl Observed {
    fn with_secrets(&self, desired: &Desired) -> Self {
        let mut all = self.clone();
        for manifest in desired.manifests().filter(|manifest| manifest.kind == Kind::Secret) {
            let Ok(secret) = serde_json::from_value::<Secret>(manifest.body.clone()) else {
                continue;
            };
            all.referenced.insert(manifest.name.clone(), secret.data.unwrap_or_default());
        }
        all
    }
}
