//! What must be done to get from what there is to what is to be. Pure: the same for a
//! reconciliation, for a paused SearchDeployment and for `plan`.

use std::sync::Arc;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::components::meta::{COMPONENT, MANAGED_BY, MANAGER};
use crate::components::{Desired, Kind, Manifest, Observed};
use crate::crd::{DeletionPolicy, Quantity};
use crate::validate::Deployment;

/// The hash of the manifest that an object was last made from.
pub const APPLIED: &str = "sextant.dev/applied";

#[derive(Clone, Debug)]
pub enum Change {
    Create(Manifest),
    Update {
        manifest: Manifest,
        live: Arc<DynamicObject>,
        why: Why,
    },
    /// A StatefulSet's volumes are to be larger. Kubernetes refuses that of the StatefulSet, so the
    /// claims are patched and the StatefulSet is made again around its pods.
    Grow {
        manifest: Manifest,
        live: Arc<DynamicObject>,
        size: String,
    },
    Delete {
        kind: Kind,
        live: Arc<DynamicObject>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is to be different.
    Wanted,
    /// Somebody else changed it.
    Drift,
}

impl Change {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Create(manifest)
            | Self::Update { manifest, .. }
            | Self::Grow { manifest, .. } => manifest.kind,
            Self::Delete { kind, .. } => *kind,
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Create(manifest)
            | Self::Update { manifest, .. }
            | Self::Grow { manifest, .. } => manifest.name.clone(),
            Self::Delete { live, .. } => live.name_any(),
        }
    }

    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Update { .. } => "update",
            Self::Grow { .. } => "grow",
            Self::Delete { .. } => "delete",
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.verb(), self.kind().as_str(), self.name())?;
        match self {
            Self::Update { why: Why::Drift, .. } => write!(f, " (somebody changed it)"),
            _ => Ok(()),
        }
    }
}

/// In the order in which they are made; what is no longer wanted goes last.
pub fn changes(deployment: &Deployment, desired: &Desired, observed: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    for manifest in desired.manifests() {
        let key = (manifest.kind, manifest.name.clone());
        let Some(live) = observed.objects.get(&key) else {
            changes.push(Change::Create(manifest.clone()));
            continue;
        };
        let live = Arc::clone(live);
        if let Some(size) = larger_volumes(manifest, &live) {
            changes.push(Change::Grow { manifest: manifest.clone(), live, size });
            continue;
        }
        let applied = live.annotations().get(APPLIED);
        let why = if applied != Some(&manifest.hash()) {
            Why::Wanted
        } else if !contains(&whole(manifest.kind, &live), &manifest.body) {
            Why::Drift
        } else {
            continue;
        };
        changes.push(Change::Update { manifest: manifest.clone(), live, why });
    }
    for ((kind, name), live) in &observed.objects {
        if desired.get(*kind, name).is_none() && may_delete(deployment, *kind, live) {
            changes.push(Change::Delete { kind: *kind, live: Arc::clone(live) });
        }
    }
    changes
}

/// Only what the operator made for this very SearchDeployment, and no password of data that stays.
fn may_delete(deployment: &Deployment, kind: Kind, live: &DynamicObject) -> bool {
    let made_here = live.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
        && live.labels().contains_key(COMPONENT)
        && live.annotations().contains_key(APPLIED);
    let owned = live.owner_references().iter().any(|owner| owner.uid == deployment.uid);
    let passwords_go = deployment.spec.deletion_policy == DeletionPolicy::Delete;
    made_here
        && live.metadata.deletion_timestamp.is_none()
        && owned
        && (kind != Kind::Secret || passwords_go)
}

fn larger_volumes(manifest: &Manifest, live: &DynamicObject) -> Option<String> {
    if manifest.kind != Kind::StatefulSet {
        return None;
    }
    let size = |spec: &Value| {
        let claim = &spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
        claim.as_str().map(str::to_owned)
    };
    let wanted = size(&manifest.body["spec"])?;
    let there = size(&live.data["spec"])?;
    let bytes = |text: &str| Quantity(text.to_owned()).value();
    (bytes(&wanted) > bytes(&there)).then_some(wanted)
}

/// An object as it is read, its metadata included. Those from a list do not say of what kind they are.
pub fn whole(kind: Kind, live: &DynamicObject) -> Value {
    let mut whole = serde_json::to_value(live).unwrap_or_default();
    let resource = kind.resource();
    whole["apiVersion"] = resource.api_version.into();
    whole["kind"] = resource.kind.into();
    whole
}

/// Whether all that is wanted is there. What Kubernetes or others add does not count.
pub fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            match live.get(key) {
                Some(live) => contains(live, wanted),
                // Kubernetes leaves out what is empty.
                None => is_empty(wanted),
            }
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            let named = |item: &Value| item.get("name").and_then(Value::as_str).map(str::to_owned);
            if wanted.iter().all(|item| named(item).is_some()) {
                return wanted.iter().all(|wanted| {
                    live.iter().any(|live| named(live) == named(wanted) && contains(live, wanted))
                });
            }
            live.len() == wanted.len()
                && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (Value::String(live), Value::String(wanted)) => {
            live == wanted || same_quantity(live, wanted)
        }
        (live, wanted) => live == wanted,
    }
}

/// Kubernetes writes amounts in its own way, as in 500m for 0.5.
fn same_quantity(a: &str, b: &str) -> bool {
    let value = |text: &str| Quantity(text.to_owned()).value();
    value(a).is_some_and(|a| value(b) == Some(a))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(flag) => !flag,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_add_is_no_drift_and_what_they_change_is() {
        let wanted = json!({"spec": {"replicas": 2, "containers": [{"name": "a", "image": "x"}]}});
        let mut live = json!({"status": {}, "spec": {"replicas": 2, "paused": false,
            "containers": [{"name": "sidecar"}, {"name": "a", "image": "x", "tty": false}]}});
        assert!(contains(&live, &wanted));
        live["spec"]["replicas"] = 3.into();
        assert!(!contains(&live, &wanted));
        live["spec"]["replicas"] = 2.into();
        live["spec"]["containers"][1]["image"] = "y".into();
        assert!(!contains(&live, &wanted));
    }

    #[test]
    fn lists_without_names_are_compared_as_they_are() {
        assert!(contains(&json!(["a", "b"]), &json!(["a", "b"])));
        assert!(!contains(&json!(["a", "b"]), &json!(["a"])));
        assert!(!contains(&json!(["b", "a"]), &json!(["a", "b"])));
    }

    #[test]
    fn amounts_are_the_same_however_they_are_written() {
        let live = json!({"requests": {"cpu": "500m", "memory": "1Gi"}});
        assert!(contains(&live, &json!({"requests": {"cpu": "0.5", "memory": "1024Mi"}})));
        assert!(!contains(&live, &json!({"requests": {"cpu": "0.6"}})));
    }

    #[test]
    fn what_is_empty_need_not_be_there() {
        assert!(contains(&json!({}), &json!({"emptyDir": {}, "items": []})));
        assert!(!contains(&json!({}), &json!({"key": "value"})));
    }
}
