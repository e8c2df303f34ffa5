//! API servers are at no time without what embeds for them: dedicated embedders are there before the
//! servers that ask them, and go after the last of those.

use crate::changes::Change;
use crate::components::meta::Component;
use crate::components::{Kind, Observed, keys};
use crate::status::Pods;
use crate::validate::Deployment;

/// Those of the changes that can be made now. The others are when the pods are so far.
pub fn due(changes: Vec<Change>, deployment: &Deployment, observed: &Observed) -> Vec<Change> {
    let servers = deployment.child_name(Component::Api);
    let Some(live) = observed.objects.get(&(Kind::Deployment, servers.clone())) else {
        return changes;
    };
    let key = keys::secret_of_embedders(deployment);
    let ask_embedders = live.data["spec"]["template"].to_string().contains(&key);
    let is_settled = |component| {
        Pods::of(observed, Kind::Deployment, &deployment.child_name(component)).is_settled()
    };
    let (begins, ends) = if deployment.spec.embedder.is_dedicated() {
        (!ask_embedders && !is_settled(Component::Embedder), false)
    } else {
        // One that ends still finishes what it was asked.
        let mut pods = observed.pods_of(Component::Api);
        let any_ends = pods.any(|pod| pod.metadata.deletion_timestamp.is_some());
        (false, ask_embedders || !is_settled(Component::Api) || any_ends)
    };
    let is_due = |change: &Change| match change {
        Change::Update { manifest, .. } if manifest.kind == Kind::Deployment => {
            !(begins && manifest.name == servers)
        }
        // It lets servers reach the embedders.
        Change::Update { manifest, .. } if manifest.kind == Kind::NetworkPolicy => {
            !(ends && is_there(observed, deployment))
        }
        Change::Delete { live, .. } => !(ends && Component::Embedder.is_of(&**live)),
        _ => true,
    };
    changes.into_iter().filter(is_due).collect()
}

fn is_there(observed: &Observed, deployment: &Deployment) -> bool {
    let embedders = deployment.child_name(Component::Embedder);
    observed.objects.contains_key(&(Kind::Deployment, embedders))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::api::DynamicObject;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::{Value, json};

    use super::*;
    use crate::changes::{APPLIED, changes};
    use crate::components::meta::COMPONENT;
    use crate::components::{Desired, desired};
    use crate::validate::validate;

    fn deployment(embedder: &Value) -> Deployment {
        let object = json!({
            "apiVersion": "sextant.dev/v1alpha1",
            "kind": "SearchDeployment",
            "metadata": {"name": "gym", "namespace": "default", "uid": "1"},
            "spec": {"embedder": embedder},
        });
        validate(&serde_json::from_value(object).unwrap(), "1.0.0").unwrap()
    }

    fn wanted(deployment: &Deployment, observed: &Observed) -> Desired {
        let today = k8s_openapi::jiff::civil::date(2026, 1, 1);
        desired(deployment, observed, today, &mut StdRng::seed_from_u64(1)).unwrap()
    }

    /// What is to be made now, in words.
    fn made(deployment: &Deployment, observed: &Observed) -> Vec<String> {
        let changes = changes(deployment, &wanted(deployment, observed), observed);
        due(changes, deployment, observed).iter().map(ToString::to_string).collect()
    }

    /// All that a deployment is to have, and pods that are as far as is said.
    fn observed(deployment: &Deployment, is_ready: impl Fn(&str) -> bool) -> Observed {
        let mut observed = Observed::default();
        for manifest in wanted(deployment, &observed).manifests() {
            let mut body = manifest.body.clone();
            body["metadata"]["annotations"][APPLIED] = manifest.hash().into();
            let replicas = body["spec"]["replicas"].as_i64().unwrap_or(1);
            let ready = if is_ready(&manifest.name) { replicas } else { 0 };
            body["status"] = json!({
                "replicas": replicas, "updatedReplicas": ready, "readyReplicas": ready,
            });
            let object: DynamicObject = serde_json::from_value(body).unwrap();
            observed.objects.insert((manifest.kind, manifest.name.clone()), Arc::new(object));
        }
        observed
    }

    /// What was of `before` and is of `after` where that has it.
    fn merged(before: Observed, after: Observed) -> Observed {
        let mut merged = before;
        merged.objects.extend(after.objects);
        merged
    }

    const SERVERS: &str = "update Deployment/gym-api";
    const EMBEDDERS: &str = "delete Deployment/gym-embedder";

    #[test]
    fn servers_ask_embedders_when_those_are_ready() {
        let (own, dedicated) =
            (deployment(&json!({})), deployment(&json!({"placement": "dedicated"})));
        let before = observed(&own, |_| true);
        let first = made(&dedicated, &before);
        assert!(first.contains(&"create Deployment/gym-embedder".to_owned()), "{first:?}");
        assert!(!first.contains(&SERVERS.to_owned()), "{first:?}");
        for ready in [false, true] {
            let after = observed(&dedicated, |name| name != "gym-embedder" || ready);
            let mut now = merged(before.clone(), after);
            // The servers are as they were.
            let key = (Kind::Deployment, "gym-api".to_owned());
            now.objects.insert(key.clone(), Arc::clone(&before.objects[&key]));
            assert_eq!(made(&dedicated, &now).contains(&SERVERS.to_owned()), ready);
        }
        // Of servers that ask them already all is made.
        let unready = observed(&dedicated, |name| name != "gym-embedder");
        let other = deployment(&json!({"placement": "dedicated", "model": "other"}));
        assert!(made(&other, &unready).contains(&SERVERS.to_owned()));
    }

    #[test]
    fn embedders_stay_until_no_server_asks_them() {
        let (own, dedicated) =
            (deployment(&json!({})), deployment(&json!({"placement": "dedicated"})));
        let before = observed(&dedicated, |_| true);
        let is_held = |changes: &[String]| {
            let touched =
                |change: &String| change.contains("embedder") || change.contains("Policy");
            !changes.iter().any(touched)
        };
        let first = made(&own, &before);
        assert!(first.contains(&SERVERS.to_owned()) && is_held(&first), "{first:?}");
        for ready in [false, true] {
            let now = merged(before.clone(), observed(&own, |name| name != "gym-api" || ready));
            let next = made(&own, &now);
            assert_eq!(next.contains(&EMBEDDERS.to_owned()), ready, "{next:?}");
        }
        let mut now = merged(before, observed(&own, |_| true));
        let pod = json!({"metadata": {
            "name": "gym-api-1",
            "labels": {COMPONENT: "api"},
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        }});
        now.pods.push(Arc::new(serde_json::from_value(pod).unwrap()));
        assert!(is_held(&made(&own, &now)), "a server ends");
    }
}
