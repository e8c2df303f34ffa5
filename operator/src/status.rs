//! What the operator says of a SearchDeployment. Pure; who writes it compares it with what is there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde_json::Value;

use crate::changes::Change;
use crate::components::meta::Component;
use crate::components::postgres::{PRIMARY, ROLE_LABEL};
use crate::components::{Kind, Observed, milvus};
use crate::crd::{
    ComponentStatus, Health, MilvusMode, Phase, PostgresStatus, ReplicaStatus,
    SearchDeploymentStatus,
};
use crate::patroni::Cluster;
use crate::trouble::{low_disk_space, troubles};
use crate::validate::{Deployment, Fault};

/// Longest list of what a paused SearchDeployment would change.
const MAX_PENDING: usize = 50;

const LAG_STEP: i64 = 1 << 20;
/// The reason where the volume of a Postgres is nearly full.
const LOW_DISK_SPACE: &str = "LowDiskSpace";
/// The reason where a replica is up and gets nothing from the primary.
const NOT_STREAMING: &str = "ReplicaNotStreaming";

/// How a reconciliation ended.
pub enum Outcome<'a> {
    /// Whether anything was changed does not matter: the pods show it.
    Applied,
    /// Objects are as wanted; Patroni is at work on Postgres, one member after the other.
    PostgresChanging,
    Paused {
        pending: &'a [Change],
    },
    Failed {
        reason: &'static str,
        message: String,
    },
}

/// Pods of a component, wanted and there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    wanted: i64,
    ready: i64,
    /// Whether all are of the present template, and none of an older one is left.
    updated: bool,
}

impl Pods {
    pub fn of(observed: &Observed, kind: Kind, name: &str) -> Self {
        let Some(object) = observed.objects.get(&(kind, name.to_owned())) else {
            return Self::default();
        };
        let (spec, status) = (&object.data["spec"], &object.data["status"]);
        let number = |of: &Value, field: &str| of[field].as_i64().unwrap_or_default();
        let wanted = spec["replicas"].as_i64().unwrap_or(1);
        let seen =
            number(status, "observedGeneration") >= object.metadata.generation.unwrap_or_default();
        let updated = number(status, "updatedReplicas");
        Self {
            wanted,
            ready: number(status, "readyReplicas"),
            updated: seen && updated >= wanted && number(status, "replicas") <= updated,
        }
    }

    pub fn is_settled(self) -> bool {
        self.updated && self.ready >= self.wanted
    }

    fn replicas(self) -> ReplicaStatus {
        ReplicaStatus {
            replicas: self.wanted as i32,
            ready: self.ready as i32,
            summary: format!("{}/{}", self.ready, self.wanted),
        }
    }
}

/// The components that the operator runs.
struct Parts {
    api: Pods,
    embedder: Option<Pods>,
    cache: Option<Pods>,
    postgres: Option<Pods>,
    milvus: Vec<(Component, Pods)>,
}

impl Parts {
    fn of(deployment: &Deployment, observed: &Observed) -> Self {
        let spec = &deployment.spec;
        let pods = |kind, component| Pods::of(observed, kind, &deployment.child_name(component));
        let workload = |component| pods(Kind::Deployment, component);
        let set = |component| pods(Kind::StatefulSet, component);
        let milvus = match spec.milvus.mode {
            MilvusMode::External => Vec::new(),
            MilvusMode::Standalone => vec![(Component::Milvus, set(Component::Milvus))],
            MilvusMode::Cluster => {
                let roles = milvus::roles(deployment).into_iter().map(|role| role.component);
                let roles = roles.map(|component| (component, workload(component)));
                [(Component::Etcd, set(Component::Etcd))].into_iter().chain(roles).collect()
            }
        };
        Self {
            api: workload(Component::Api),
            embedder: spec.embedder.is_dedicated().then(|| workload(Component::Embedder)),
            cache: spec.cache.is_managed().then(|| workload(Component::Redis)),
            postgres: spec.postgres.external.is_none().then(|| set(Component::Postgres)),
            milvus,
        }
    }

    /// Those that there are, as conditions call them.
    fn named(&self) -> Vec<(&'static str, Vec<Pods>)> {
        let list = |pods: Option<Pods>| pods.into_iter().collect::<Vec<_>>();
        let milvus = self.milvus.iter().map(|(_, pods)| *pods).collect();
        let all = [
            ("Api", vec![self.api]),
            ("Embedder", list(self.embedder)),
            ("Cache", list(self.cache)),
            ("Postgres", list(self.postgres)),
            ("Milvus", milvus),
        ];
        all.into_iter().filter(|(_, pods)| !pods.is_empty()).collect()
    }

    /// Names of those with fewer pods than they ask for, or older ones.
    fn unsettled(&self) -> Vec<&'static str> {
        let settled = |pods: &[Pods]| pods.iter().all(|pods| pods.is_settled());
        let unsettled = self.named().into_iter().filter(|(_, pods)| !settled(pods));
        unsettled.map(|(name, _)| name).collect()
    }

    fn health(&self) -> Health {
        let searchable = self.api.ready > 0
            && self.embedder.is_none_or(|pods| pods.ready > 0)
            && self.milvus.iter().all(|(_, pods)| pods.ready > 0);
        match (searchable, self.unsettled().is_empty()) {
            (false, _) => Health::Red,
            (true, true) => Health::Green,
            (true, false) => Health::Yellow,
        }
    }
}

/// Whether searches are answered; nothing before they were for the first time, and while they are not
/// wanted.
pub fn available(status: &SearchDeploymentStatus) -> Option<bool> {
    let is = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_);
    let ready = is("Ready").filter(|ready| ready.reason != "Hibernated")?;
    let was_ready = is("Degraded").is_some_and(|degraded| degraded.reason != "Starting");
    match ready.status.as_str() {
        "True" => Some(true),
        _ => was_ready.then_some(false),
    }
}

/// The status of a spec that can be built.
pub fn status(
    deployment: &Deployment,
    observed: &Observed,
    cluster: Option<&Cluster>,
    outcome: &Outcome<'_>,
    before: Option<&SearchDeploymentStatus>,
    now: &Time,
) -> SearchDeploymentStatus {
    let parts = Parts::of(deployment, observed);
    let settled = parts.unsettled().is_empty();
    let phase = match outcome {
        Outcome::Failed { .. } => Phase::Failed,
        Outcome::Paused { .. } => Phase::Paused,
        Outcome::Applied if deployment.spec.hibernate && settled => Phase::Hibernated,
        Outcome::Applied if settled => Phase::Ready,
        Outcome::Applied | Outcome::PostgresChanging => Phase::Progressing,
    };
    let mut conditions =
        Conditions { before, generation: deployment.generation, now, all: Vec::new() };
    let trouble = match (low_disk_space(observed), cluster.map(not_streaming)) {
        (low, _) if !low.is_empty() => Some((LOW_DISK_SPACE, low.join("; "))),
        (_, Some(detached)) if !detached.is_empty() => Some((NOT_STREAMING, detached.join("; "))),
        _ => None,
    };
    conditions.of_all(deployment, &parts, outcome, trouble.as_ref());
    conditions.of_each(&parts, observed, trouble.as_ref());
    let selector = deployment.selector_labels(Component::Api);
    let selector: Vec<_> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pending = match outcome {
        Outcome::Paused { pending } => pending,
        _ => &[][..],
    };
    SearchDeploymentStatus {
        observed_generation: Some(deployment.generation),
        phase: Some(phase),
        health: Some(parts.health()),
        conditions: conditions.all,
        version: Some(deployment.version.clone()),
        selector: Some(selector.join(",")),
        api: Some(parts.api.replicas()),
        embedder: parts.embedder.map(Pods::replicas),
        cache: parts.cache.map(Pods::replicas),
        postgres: parts.postgres.map(|pods| {
            let mut status = PostgresStatus {
                replicas: pods.wanted as i32,
                ready: pods.ready as i32,
                primary: primary(observed),
                ..PostgresStatus::default()
            };
            if let Some(cluster) = cluster {
                replication(&mut status, cluster);
            }
            status
        }),
        milvus: parts
            .milvus
            .iter()
            .map(|(component, pods)| ComponentStatus {
                name: component.as_str().to_owned(),
                replicas: pods.wanted as i32,
                ready: pods.ready as i32,
            })
            .collect(),
        pending_changes: pending.iter().take(MAX_PENDING).map(ToString::to_string).collect(),
    }
}

/// Replicas that are up and follow nobody, while there is a primary to follow.
fn not_streaming(cluster: &Cluster) -> Vec<String> {
    if cluster.leader().is_none_or(|leader| leader.state != "running") {
        return Vec::new();
    }
    // Up and streaming, its state would say that.
    let detached = cluster.members.iter().filter(|it| !it.is_leader && it.state == "running");
    detached.map(|it| format!("{} gets nothing from the primary", it.name)).collect()
}

/// What Patroni says of the members.
fn replication(status: &mut PostgresStatus, cluster: &Cluster) {
    if let Some(leader) = cluster.leader() {
        status.primary = Some(leader.name.clone());
        status.timeline = leader.timeline;
    }
    let replicas = cluster.members.iter().filter(|member| !member.is_leader);
    let lags: Option<Vec<i64>> = replicas.map(|replica| cluster.lag(replica)).collect();
    // In whole MiB: a status that changes with every write would be written all the time.
    let whole = |bytes: i64| (bytes + LAG_STEP - 1) / LAG_STEP * LAG_STEP;
    status.max_lag_bytes = lags.and_then(|lags| lags.into_iter().max()).map(whole);
}

/// The status of a spec that cannot be had: what runs is left as it was, and so is what is said of it.
pub fn invalid(
    generation: i64,
    faults: &[Fault],
    before: Option<&SearchDeploymentStatus>,
    now: &Time,
) -> SearchDeploymentStatus {
    let mut conditions = Conditions { before, generation, now, all: Vec::new() };
    let message = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    conditions.add("Progressing", false, "InvalidSpec", "waiting for a change of the spec");
    conditions.add("Degraded", true, "InvalidSpec", &message);
    let new = conditions.all;
    let mut status = before.cloned().unwrap_or_default();
    status.conditions.retain(|old| new.iter().all(|new| new.type_ != old.type_));
    status.conditions.extend(new);
    SearchDeploymentStatus {
        observed_generation: Some(generation),
        phase: Some(Phase::Invalid),
        ..status
    }
}

pub fn primary(observed: &Observed) -> Option<String> {
    let is_primary = |pod: &&std::sync::Arc<kube::api::DynamicObject>| {
        pod.labels().get(ROLE_LABEL).is_some_and(|role| role == PRIMARY)
    };
    observed.pods_of(Component::Postgres).find(is_primary).map(|pod| pod.name_any())
}

struct Conditions<'a> {
    before: Option<&'a SearchDeploymentStatus>,
    generation: i64,
    now: &'a Time,
    all: Vec<Condition>,
}

impl Conditions<'_> {
    fn of_all(
        &mut self,
        deployment: &Deployment,
        parts: &Parts,
        outcome: &Outcome<'_>,
        trouble: Option<&(&str, String)>,
    ) {
        let (health, unsettled) = (parts.health(), parts.unsettled());
        let waiting = format!("waiting for pods of {}", unsettled.join(", "));
        if deployment.spec.hibernate {
            self.add("Ready", false, "Hibernated", "everything is scaled to zero");
        } else {
            match health {
                Health::Green => self.add("Ready", true, "AllReady", "all components are ready"),
                Health::Yellow => self.add("Ready", true, "Searchable", &waiting),
                Health::Red => self.add("Ready", false, "ComponentsNotReady", &waiting),
            }
        }
        match outcome {
            Outcome::Applied | Outcome::PostgresChanging if !unsettled.is_empty() => {
                self.add("Progressing", true, "PodsNotReady", &waiting);
            }
            Outcome::PostgresChanging => {
                let message = "Postgres is changed, one member after the other";
                self.add("Progressing", true, "PostgresChanging", message);
            }
            _ => self.add("Progressing", false, "Settled", "nothing is under way"),
        }
        match (outcome, trouble) {
            (Outcome::Failed { reason, message }, _) | (_, Some((reason, message))) => {
                self.add("Degraded", true, reason, message);
            }
            _ if health == Health::Yellow || health == Health::Red && self.was_ready() => {
                self.add("Degraded", true, "PodsMissing", &waiting);
            }
            _ if health == Health::Red => self.add("Degraded", false, "Starting", &waiting),
            _ => self.add("Degraded", false, "AsWanted", "no component has less than it asks for"),
        }
        match outcome {
            Outcome::Paused { pending } => {
                let message = format!("{} changes wait for paused: false", pending.len());
                self.add("Paused", true, "Asked", &message);
            }
            _ => self.add("Paused", false, "NotAsked", "changes are made"),
        }
    }

    fn of_each(&mut self, parts: &Parts, observed: &Observed, trouble: Option<&(&str, String)>) {
        for (name, pods) in parts.named() {
            let sum = |number: fn(&Pods) -> i64| pods.iter().map(number).sum::<i64>();
            let (ready, wanted) = (sum(|pods| pods.ready), sum(|pods| pods.wanted));
            let settled = pods.iter().all(|pods| pods.is_settled());
            let mut reason = if settled { "PodsReady" } else { "PodsNotReady" };
            let mut message = vec![format!("{ready} of {wanted} pods are ready")];
            if let Some((why, words)) = trouble.filter(|_| name == "Postgres") {
                reason = *why;
                message.push(words.clone());
            }
            if !settled {
                let label = if name == "Cache" { "redis".to_owned() } else { name.to_lowercase() };
                message.extend(troubles(observed, &label));
            }
            self.add(&format!("{name}Ready"), settled, reason, &message.join("; "));
        }
    }

    /// Whether searches were answered once, and not since the last hibernation.
    fn was_ready(&self) -> bool {
        let conditions = self.before.into_iter().flat_map(|before| &before.conditions);
        conditions.into_iter().any(|condition| {
            condition.status == "True"
                && ["Ready", "Degraded"].contains(&condition.type_.as_str())
                && condition.reason != "Hibernated"
        })
    }

    fn add(&mut self, name: &str, holds: bool, reason: &str, message: &str) {
        let status = if holds { "True" } else { "False" };
        let before = self.before.into_iter().flat_map(|before| &before.conditions);
        let same = before.filter(|old| old.type_ == name && old.status == status);
        let since = same.map(|old| old.last_transition_time.clone()).next();
        // Kubernetes refuses longer ones.
        let message: String = message.chars().take(4_096).collect();
        self.all.push(Condition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: since.unwrap_or_else(|| self.now.clone()),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::api::DynamicObject;
    use serde_json::json;

    use super::*;
    use crate::components::meta::COMPONENT;
    use crate::components::postgres::DISK_SPACE;
    use crate::patroni::ClusterMember;
    use crate::validate::validate;

    fn deployment() -> Deployment {
        let object = json!({
            "apiVersion": "sextant.dev/v1alpha1",
            "kind": "SearchDeployment",
            "metadata": {"name": "gym", "namespace": "default"},
            "spec": {},
        });
        validate(&serde_json::from_value(object).unwrap(), "1.0.0").unwrap()
    }

    /// All workloads of an empty spec with so many ready API servers of two.
    fn observed(api: i64) -> Observed {
        let mut observed = Observed::default();
        for (kind, name, wanted, ready) in [
            (Kind::Deployment, "gym-api", 2, api),
            (Kind::Deployment, "gym-redis", 1, 1),
            (Kind::StatefulSet, "gym-postgres", 2, 2),
            (Kind::StatefulSet, "gym-milvus", 1, 1),
        ] {
            let object: DynamicObject = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"replicas": wanted},
                "status": {"readyReplicas": ready, "updatedReplicas": wanted},
            }))
            .unwrap();
            observed.objects.insert((kind, name.to_owned()), Arc::new(object));
        }
        observed
    }

    #[test]
    fn a_volume_that_is_nearly_full_is_told_of_though_all_pods_are_ready() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let mut observed = observed(2);
        let pod = json!({"metadata": {
            "name": "gym-postgres-0",
            "labels": {COMPONENT: "postgres"},
            "annotations": {DISK_SPACE: "3 of 512 MiB are left"},
        }});
        observed.pods.push(Arc::new(serde_json::from_value(pod).unwrap()));
        let status = status(&deployment(), &observed, None, &Outcome::Applied, None, &now);
        let said = |name: &str| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == name);
            condition.map(|it| (it.status.as_str(), it.message.as_str())).unwrap()
        };
        let words = "the volume of gym-postgres-0 is nearly full: 3 of 512 MiB are left";
        assert_eq!(said("Degraded"), ("True", words));
        assert_eq!(
            said("PostgresReady"),
            ("True", format!("2 of 2 pods are ready; {words}").as_str())
        );
    }

    #[test]
    fn a_replica_that_follows_nobody_is_told_of_though_all_pods_are_ready() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let degraded = |leader: &str, replica: &str| {
            let members = vec![
                ClusterMember::in_state("gym-postgres-0", leader, true),
                ClusterMember::in_state("b", replica, false),
            ];
            let cluster = Cluster { members };
            let outcome = Outcome::Applied;
            let status = status(&deployment(), &observed(2), Some(&cluster), &outcome, None, &now);
            let condition = status.conditions.into_iter().find(|it| it.type_ == "Degraded");
            condition.filter(|it| it.status == "True").map(|it| it.message)
        };
        let words = Some("b gets nothing from the primary".to_owned());
        assert_eq!(degraded("running", "running"), words);
        assert_eq!(degraded("running", "streaming"), None);
        assert_eq!(degraded("starting", "running"), None, "there is nothing to get");
    }

    #[test]
    fn a_new_pod_beside_an_old_one_is_not_the_end_of_a_rollout() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        for (replicas, phase) in [(3, Phase::Progressing), (2, Phase::Ready)] {
            let mut observed = observed(2);
            let api = observed.objects.get_mut(&(Kind::Deployment, "gym-api".to_owned())).unwrap();
            Arc::make_mut(api).data["status"]["replicas"] = replicas.into();
            let status = status(&deployment(), &observed, None, &Outcome::Applied, None, &now);
            assert_eq!(status.phase, Some(phase));
        }
    }

    #[test]
    fn what_was_ready_once_and_is_not_any_more_is_degraded() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let mut before = None;
        for (api, health, degraded) in [
            (0, Health::Red, "False"),
            (1, Health::Yellow, "True"),
            (2, Health::Green, "False"),
            (0, Health::Red, "True"),
            (0, Health::Red, "True"),
            (2, Health::Green, "False"),
        ] {
            let next = status(
                &deployment(),
                &observed(api),
                None,
                &Outcome::Applied,
                before.as_ref(),
                &now,
            );
            let condition = next.conditions.iter().find(|condition| condition.type_ == "Degraded");
            assert_eq!(condition.unwrap().status, degraded, "{api} of 2");
            assert_eq!(next.health, Some(health), "{api} of 2");
            let was_never_ready = before.is_none() && api == 0;
            assert_eq!(available(&next), (!was_never_ready).then_some(api > 0), "{api} of 2");
            before = Some(next);
        }
    }
}
