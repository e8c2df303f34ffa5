//! Carries out what only Patroni can be told: live settings, the rolling update of Postgres, and new
//! copies of replicas that are beyond repair.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Endpoints, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::changes::contains;
use crate::components::meta::Component;
use crate::components::postgres::{
    Member, PATRONI_PASSWORD, RolloutStep, dynamic_configuration, patroni_config, rollout_step,
};
use crate::components::{Kind, Observed};
use crate::crd::Synchronous;
use crate::error::{Error, unless_gone};
use crate::patroni::{Cluster, ClusterMember, Patroni, PatroniError};
use crate::status::primary;
use crate::validate::Deployment;

const FORGET_AFTER: Duration = Duration::from_hours(24);
/// For how long nobody may be at work on a cluster that was never made, until another may begin.
const ABANDONED_AFTER: Duration = Duration::from_secs(20);
/// Until all members know of new settings, and say whether a restart is needed: two of their rounds.
const SETTINGS_KNOWN_AFTER: Duration = Duration::from_secs(12);
/// Patroni's mark, empty from the moment in which a member begins to make the cluster until it is made.
const INITIALIZE: &str = "initialize";

/// Addresses of the pods that run.
fn addresses(observed: &Observed) -> impl Iterator<Item = (String, String)> {
    observed.pods_of(Component::Postgres).filter_map(|pod| {
        let ip = pod.data["status"]["podIP"].as_str()?.to_owned();
        (pod.metadata.deletion_timestamp.is_none()).then(|| (pod.name_any(), ip))
    })
}

pub struct Rollout {
    client: Client,
    patroni: Patroni,
    /// How long a replica may fail to start before it is copied anew.
    rebuild_after: Duration,
    /// By namespace and pod: since when it has failed.
    failed: Mutex<HashMap<(String, String), Instant>>,
    /// By namespace and name of the SearchDeployment: since when nobody leads or begins.
    idle: Mutex<HashMap<(String, String), Instant>>,
    /// The same: when its settings were changed.
    patched: Mutex<HashMap<(String, String), Instant>>,
}

/// What a step did.
pub enum Step {
    /// Nothing is left to do.
    Done,
    UnderWay,
    /// This replica is copied anew.
    Rebuild(String),
    /// Who began to make the cluster is gone: another may.
    BeginAgain,
}

impl Rollout {
    pub fn new(client: Client, patroni: Patroni, rebuild_after: Duration) -> Self {
        Self {
            client,
            patroni,
            rebuild_after,
            failed: Mutex::default(),
            idle: Mutex::default(),
            patched: Mutex::default(),
        }
    }

    /// What the members say, those that do not answer being unknown. `None` while no pod has an address.
    ///
    /// # Errors
    /// Why the last that was asked did not answer, when none did.
    pub async fn look(&self, observed: &Observed) -> Result<Option<Cluster>, PatroniError> {
        let mut pods: Vec<_> = addresses(observed).collect();
        // First who leads: what others have of its log by then is compared with what it had.
        let primary = primary(observed);
        pods.sort_by_key(|(name, _)| Some(name) != primary.as_ref());
        let (mut members, mut failure) = (Vec::new(), None);
        for (name, ip) in pods {
            let member = self.patroni.member(name.clone(), &ip).await;
            members.push(member.unwrap_or_else(|error| {
                failure = Some(error);
                ClusterMember { name, ..ClusterMember::default() }
            }));
        }
        let answered = members.iter().any(|member| !member.state.is_empty());
        match failure {
            Some(error) if !answered => Err(error),
            _ => Ok((!members.is_empty()).then_some(Cluster { members })),
        }
    }

    /// Makes one step towards the live settings and the template that are wanted.
    ///
    /// # Errors
    /// What Patroni or the API server refused.
    pub async fn step(
        &self,
        deployment: &Deployment,
        observed: &Observed,
        cluster: &Cluster,
    ) -> Result<Step, Error> {
        if self.is_abandoned(deployment, cluster) {
            return self.begin_again(deployment).await;
        }
        let of = |name: &str| addresses(observed).find(|(pod, _)| pod == name).map(|(_, ip)| ip);
        let Some(ip) = cluster.leader().and_then(|leader| of(&leader.name)) else {
            return Ok(Step::UnderWay);
        };
        let patroni = &self.patroni;
        let secret = observed.secret(&deployment.child_name(Component::Postgres), PATRONI_PASSWORD);
        let password = secret.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let password = password.unwrap_or_default();
        let refused = |source| Error::Patroni { source: Box::new(source) };
        let live = match patroni.config(&ip).await {
            Ok(live) => live,
            // Not written yet.
            Err(PatroniError::Refused { status: 502 | 503, .. }) => return Ok(Step::UnderWay),
            Err(error) => return Err(refused(error)),
        };
        if let Some(patch) = settings_patch(&live, &dynamic_configuration(deployment)) {
            patroni.patch_config(&ip, &password, &patch).await.map_err(refused)?;
            lock(&self.patched).insert(key(deployment), Instant::now());
            return Ok(Step::UnderWay);
        }
        if let Some(name) = self.overdue(&deployment.namespace, cluster)
            && let Some(own) = of(&name)
        {
            patroni.reinitialize(&own, &password).await.map_err(refused)?;
            return Ok(Step::Rebuild(name));
        }
        let address = |name: &str| of(name).unwrap_or_else(|| ip.clone());
        let members = members(deployment, observed, cluster);
        let instances = usize::try_from(deployment.spec.postgres.instances()).unwrap_or_default();
        match rollout_step(&members, instances) {
            RolloutStep::Done if self.settings_are_known(deployment) => return Ok(Step::Done),
            RolloutStep::Done | RolloutStep::Wait => {}
            RolloutStep::Replace(name) => delete_pod(&self.client, observed, &name).await?,
            RolloutStep::Switchover { from, to } => {
                let at = address(&from);
                patroni.switchover(&at, &password, &from, &to).await.map_err(refused)?;
            }
            RolloutStep::Restart(name) => {
                patroni.restart(&address(&name), &password).await.map_err(refused)?;
            }
        }
        Ok(Step::UnderWay)
    }

    fn is_abandoned(&self, deployment: &Deployment, cluster: &Cluster) -> bool {
        abandoned(&mut lock(&self.idle), key(deployment), cluster, Instant::now())
    }

    fn settings_are_known(&self, deployment: &Deployment) -> bool {
        let mut patched = lock(&self.patched);
        patched.retain(|_, since| since.elapsed() < SETTINGS_KNOWN_AFTER);
        !patched.contains_key(&key(deployment))
    }

    /// A member that was killed while it made the cluster has left its mark, and the others wait for
    /// it for ever. Nothing is lost: there never was a cluster.
    async fn begin_again(&self, deployment: &Deployment) -> Result<Step, Error> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &deployment.namespace);
        let name = patroni_config(deployment);
        let failed = |source| Error::BeginAgain { name: name.clone(), source: Box::new(source) };
        let Some(object) = api.get_opt(&name).await.map_err(failed)? else {
            return Ok(Step::UnderWay);
        };
        if object.annotations().get(INITIALIZE).is_none_or(|mark| !mark.is_empty()) {
            return Ok(Step::UnderWay);
        }
        let patch = json!({"metadata": {
            "resourceVersion": object.resource_version(),
            "annotations": {INITIALIZE: null},
        }});
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        unless_gone(patched).map_err(failed)?;
        Ok(Step::BeginAgain)
    }

    fn overdue(&self, namespace: &str, cluster: &Cluster) -> Option<String> {
        overdue(&mut lock(&self.failed), namespace, cluster, self.rebuild_after, Instant::now())
    }
}

fn key(deployment: &Deployment) -> (String, String) {
    (deployment.namespace.clone(), deployment.name.clone())
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nobody has led, or worked on becoming the leader, for a while.
fn abandoned(
    idle: &mut HashMap<(String, String), Instant>,
    key: (String, String),
    cluster: &Cluster,
    now: Instant,
) -> bool {
    idle.retain(|_, since| now.duration_since(*since) < FORGET_AFTER);
    if cluster.members.iter().any(|member| member.state != "stopped") {
        idle.remove(&key);
        return false;
    }
    now.duration_since(*idle.entry(key).or_insert(now)) >= ABANDONED_AFTER
}

/// The replica that has failed for so long that only a new copy helps. One at a time, only while there
/// is a leader to copy from, and the same again only after as long.
fn overdue(
    failed: &mut HashMap<(String, String), Instant>,
    namespace: &str,
    cluster: &Cluster,
    after: Duration,
    now: Instant,
) -> Option<String> {
    // Of those that are gone for good nobody tells.
    failed.retain(|_, since| now.duration_since(*since) < FORGET_AFTER.max(after));
    for member in &cluster.members {
        let key = (namespace.to_owned(), member.name.clone());
        if member.has_failed() && !member.is_leader {
            failed.entry(key).or_insert(now);
        } else if member.is_up() || member.is_leader {
            failed.remove(&key);
        }
    }
    if cluster.leader().is_none_or(|leader| leader.state != "running") {
        return None;
    }
    let since = |name: &str| failed.get(&(namespace.to_owned(), name.to_owned()));
    let is_overdue =
        |name: &str| since(name).is_some_and(|since| now.duration_since(*since) >= after);
    let member = cluster.members.iter().find(|member| is_overdue(&member.name))?;
    failed.insert((namespace.to_owned(), member.name.clone()), now);
    Some(member.name.clone())
}

/// What makes the live settings those that are wanted; `None` when they are.
fn settings_patch(live: &Value, wanted: &Value) -> Option<Value> {
    let mut patch = wanted.clone();
    let there = live["postgresql"]["parameters"].as_object();
    let mut superfluous = false;
    for name in there.into_iter().flat_map(|parameters| parameters.keys()) {
        if wanted["postgresql"]["parameters"].get(name).is_none() {
            superfluous = true;
            patch["postgresql"]["parameters"][name] = Value::Null;
        }
    }
    (superfluous || !contains(live, wanted)).then_some(patch)
}

fn members(deployment: &Deployment, observed: &Observed, cluster: &Cluster) -> Vec<Member> {
    let name = deployment.child_name(Component::Postgres);
    let set = observed.objects.get(&(Kind::StatefulSet, name));
    let revision = set.and_then(|set| set.data["status"]["updateRevision"].as_str());
    // Before the StatefulSet has seen its own change, nothing is known to be old.
    let is_seen = set.is_some_and(|set| {
        set.data["status"]["observedGeneration"].as_i64() == set.metadata.generation
    });
    let synchronous = deployment.spec.postgres.synchronous != Synchronous::Off;
    let member = |pod: &Arc<DynamicObject>| {
        let name = pod.name_any();
        let known = cluster.members.iter().find(|member| member.name == name);
        let conditions = pod.data["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let hash = pod.labels().get("controller-revision-hash").map(String::as_str);
        Member {
            is_primary: known.is_some_and(|member| member.is_leader),
            ready: ready && pod.metadata.deletion_timestamp.is_none(),
            outdated: is_seen && revision.is_some() && hash != revision,
            in_sync: known.is_some_and(|member| {
                member.is_synchronous || !synchronous && cluster.lag(member) == Some(0)
            }),
            pending_restart: known.is_some_and(|member| member.pending_restart),
            leaving: pod.data["spec"]["nodeName"]
                .as_str()
                .is_some_and(|node| observed.cordoned.contains(node)),
            name,
        }
    };
    observed.pods_of(Component::Postgres).map(member).collect()
}

async fn delete_pod(client: &Client, observed: &Observed, name: &str) -> Result<(), Error> {
    let Some(pod) = observed.pods_of(Component::Postgres).find(|pod| pod.name_any() == name) else {
        return Ok(());
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let parameters = DeleteParams {
        preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        // Gone, or another of the same name.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(source) => Err(Error::ReplacePod { name: name.to_owned(), source: Box::new(source) }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(leader: &str, replica: &str) -> Cluster {
        Cluster {
            members: vec![
                ClusterMember::in_state("pg-0", leader, true),
                ClusterMember::in_state("pg-1", replica, false),
            ],
        }
    }

    #[test]
    fn a_replica_that_goes_on_failing_is_copied_anew_while_there_is_a_leader() {
        let (mut failed, begin) = (HashMap::new(), Instant::now());
        let mut after = |seconds, leader, replica| {
            let (patience, now) = (Duration::from_mins(5), begin + Duration::from_secs(seconds));
            overdue(&mut failed, "shop", &cluster(leader, replica), patience, now)
        };
        assert_eq!(after(0, "running", "start failed"), None);
        assert_eq!(after(100, "running", "streaming"), None, "it is well again");
        assert_eq!(after(300, "running", "start failed"), None);
        assert_eq!(after(400, "running", "starting"), None, "it tries again");
        assert_eq!(after(600, "crashed", "start failed"), None, "nobody to copy from");
        assert_eq!(after(601, "running", "start failed").as_deref(), Some("pg-1"));
        assert_eq!(after(602, "running", "start failed"), None, "it has begun");
        assert_eq!(after(902, "running", "start failed").as_deref(), Some("pg-1"));
        assert_eq!(after(2_000, "start failed", "streaming"), None, "never the leader");
    }

    #[test]
    fn a_cluster_that_nobody_makes_is_abandoned_after_a_while() {
        let (mut idle, begin) = (HashMap::new(), Instant::now());
        let mut after = |seconds, state| {
            let key = ("shop".to_owned(), "gym".to_owned());
            let now = begin + Duration::from_secs(seconds);
            abandoned(&mut idle, key, &cluster(state, "stopped"), now)
        };
        assert!(!after(0, "stopped"));
        assert!(!after(19, "initializing new cluster"), "one begins");
        assert!(!after(30, "stopped"));
        assert!(!after(49, "stopped"));
        assert!(after(50, "stopped"));
    }

    #[test]
    fn settings_are_patched_only_where_they_differ_and_taken_away_with_null() {
        let wanted = json!({"ttl": 20, "postgresql": {"parameters": {"work_mem": "4MB"}}});
        assert_eq!(settings_patch(&wanted, &wanted), None);
        let live = json!({"ttl": 30, "postgresql": {"parameters": {"work_mem": "4MB"}}});
        assert_eq!(settings_patch(&live, &wanted), Some(wanted.clone()));
        let live = json!({"ttl": 20, "postgresql": {"parameters": {"work_mem": "4MB", "old": 1}}});
        let patch = settings_patch(&live, &wanted).unwrap();
        assert_eq!(patch["postgresql"]["parameters"]["old"], Value::Null);
    }
}
