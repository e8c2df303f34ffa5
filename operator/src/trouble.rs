//! Why pods are not ready, in words, from what Kubernetes says of them. Pure.
//!
//! # Source
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>

use std::sync::Arc;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::components::meta::{COMPONENT, Component};
use crate::components::postgres::DISK_SPACE;
use crate::components::{Kind, Observed};

/// Of one component.
const MAX_TROUBLES: usize = 3;
const MAX_CHARS: usize = 400;
/// A container that waits for these only begins.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// What is wrong with the pods of the components whose label begins so, each once.
pub fn troubles(observed: &Observed, component: &str) -> Vec<String> {
    let belongs = |object: &Arc<DynamicObject>| {
        object.labels().get(COMPONENT).is_some_and(|label| label.starts_with(component))
    };
    let pods = observed.pods.iter().filter(|pod| belongs(pod));
    let of_pods = pods.filter_map(|pod| Some(format!("{}: {}", pod.name_any(), of_pod(pod)?)));
    let workloads = observed.objects.iter().filter(|((kind, _), _)| *kind == Kind::Deployment);
    let workloads = workloads.filter(|(_, object)| belongs(object));
    let of_workloads =
        workloads.filter_map(|((_, name), object)| Some(format!("{name}: {}", refused(object)?)));
    let missing = observed.missing_secrets.iter().map(|name| format!("there is no Secret {name}"));
    let cut = |text: String| text.chars().take(MAX_CHARS).collect();
    missing.chain(of_workloads).chain(of_pods).map(cut).take(MAX_TROUBLES).collect()
}

/// The pods of Postgres whose volumes have little room, with how much.
pub fn low_disk_space(observed: &Observed) -> Vec<String> {
    let of_pod = |pod: &Arc<DynamicObject>| {
        let left = pod.annotations().get(DISK_SPACE)?;
        Some(format!("the volume of {} is nearly full: {left}", pod.name_any()))
    };
    observed.pods_of(Component::Postgres).filter_map(of_pod).take(MAX_TROUBLES).collect()
}

/// Why Kubernetes makes no pods for a Deployment, as when a quota is used up.
fn refused(workload: &DynamicObject) -> Option<String> {
    let failure = condition(&workload.data, "ReplicaFailure")?;
    (failure["status"] == "True").then(|| text(&failure["message"]))
}

fn of_pod(pod: &DynamicObject) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let scheduled = condition(&pod.data, "PodScheduled");
    if let Some(not) = scheduled.filter(|condition| condition["status"] == "False") {
        return Some(text(&not["message"]));
    }
    let containers = pod.data["status"]["containerStatuses"].as_array();
    for container in containers.into_iter().flatten() {
        let waiting = &container["state"]["waiting"];
        let reason = text(&waiting["reason"]);
        if reason.is_empty() || BEGINNING.contains(&reason.as_str()) {
            continue;
        }
        let ended = &container["lastState"]["terminated"];
        let mut words = vec![reason, text(&waiting["message"])];
        if !ended.is_null() {
            words.push(format!("it ended with {} ({})", ended["exitCode"], text(&ended["reason"])));
            words.push(text(&ended["message"]));
        }
        words.retain(|word| !word.is_empty());
        return Some(words.join(": "));
    }
    // Ready once, and not now, or never: a pod that begins says so for a while, too.
    let ready = condition(&pod.data, "Ready")?;
    let not = ready["status"] == "False" && text(&ready["reason"]) == "ContainersNotReady";
    let runs = pod.data["status"]["phase"] == "Running";
    (not && runs).then(|| "runs, and its readiness probe fails".to_owned())
}

fn condition<'a>(of: &'a Value, name: &str) -> Option<&'a Value> {
    of["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: &Value) -> Observed {
        let pod = json!({
            "metadata": {"name": "gym-api-1", "labels": {COMPONENT: "api"}},
            "status": status,
        });
        let pods = vec![Arc::new(serde_json::from_value(pod).unwrap())];
        Observed { pods, ..Observed::default() }
    }

    fn waiting(reason: &str, last: &Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [{
            "state": {"waiting": {"reason": reason, "message": "back-off"}},
            "lastState": last,
        }]})
    }

    #[test]
    fn each_trouble_is_told_in_the_words_of_who_knows_it() {
        let unschedulable = json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"},
        ]});
        let unready = json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
        ]});
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        for (status, told) in [
            (unschedulable, "gym-api-1: 0/2 nodes are available"),
            (waiting("ImagePullBackOff", &json!({})), "gym-api-1: ImagePullBackOff: back-off"),
            (
                waiting("CrashLoopBackOff", &killed),
                "gym-api-1: CrashLoopBackOff: back-off: it ended with 137 (OOMKilled)",
            ),
            (unready, "gym-api-1: runs, and its readiness probe fails"),
        ] {
            assert_eq!(troubles(&pod(&status), "api"), [told]);
        }
        assert_eq!(troubles(&pod(&waiting("ContainerCreating", &json!({}))), "api"), [""; 0]);
        assert_eq!(troubles(&pod(&waiting("ImagePullBackOff", &json!({}))), "redis"), [""; 0]);
    }
}
