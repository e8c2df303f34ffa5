//! Carries out what only Patroni can be told: live settings, and the rolling update of Postgres.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::changes::contains;
use crate::components::meta::Component;
use crate::components::postgres::{
    Member, PATRONI_PASSWORD, RolloutStep, dynamic_configuration, rollout_step,
};
use crate::components::{Kind, Observed};
use crate::crd::Synchronous;
use crate::error::Error;
use crate::patroni::{Cluster, ClusterMember, Patroni, PatroniError};
use crate::validate::Deployment;

/// Addresses of the pods that run.
fn addresses(observed: &Observed) -> impl Iterator<Item = (String, String)> {
    observed.postgres_pods.iter().filter_map(|pod| {
        let ip = pod.data["status"]["podIP"].as_str()?.to_owned();
        (pod.metadata.deletion_timestamp.is_none()).then(|| (pod.name_any(), ip))
    })
}

/// What Patroni says, and the address of who said it. `None` while no pod has an address.
///
/// # Errors
/// Why the last that was asked did not answer, when none did.
pub async fn look(
    patroni: &Patroni,
    observed: &Observed,
) -> Result<Option<(Cluster, String)>, PatroniError> {
    let mut failure = None;
    for (_, ip) in addresses(observed) {
        match patroni.cluster(&ip).await {
            Ok(cluster) => return Ok(Some((cluster, ip))),
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Makes one step towards the live settings and the template that are wanted. Whether all is done.
///
/// # Errors
/// What Patroni or the API server refused.
pub async fn step(
    client: &Client,
    patroni: &Patroni,
    deployment: &Deployment,
    observed: &Observed,
    (cluster, ip): &(Cluster, String),
) -> Result<bool, Error> {
    let secret = observed.secret(&deployment.child_name(Component::Postgres), PATRONI_PASSWORD);
    let password = secret.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let password = password.unwrap_or_default();
    let refused = |source| Error::Patroni { source: Box::new(source) };
    let live = patroni.config(ip).await.map_err(refused)?;
    if let Some(patch) = settings_patch(&live, &dynamic_configuration(deployment)) {
        patroni.patch_config(ip, &password, &patch).await.map_err(refused)?;
        return Ok(false);
    }
    let address = |name: &str| {
        let mut all = addresses(observed);
        all.find(|(pod, _)| pod == name).map_or_else(|| ip.clone(), |(_, ip)| ip)
    };
    let members = members(deployment, observed, cluster);
    let instances = usize::try_from(deployment.spec.postgres.instances()).unwrap_or_default();
    match rollout_step(&members, instances) {
        RolloutStep::Done => return Ok(true),
        RolloutStep::Wait => {}
        RolloutStep::Replace(name) => delete_pod(client, observed, &name).await?,
        RolloutStep::Switchover { from, to } => {
            let at = address(&from);
            patroni.switchover(&at, &password, &from, &to).await.map_err(refused)?;
        }
        RolloutStep::Restart(name) => {
            patroni.restart(&address(&name), &password).await.map_err(refused)?;
        }
    }
    Ok(false)
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
        let is = |role: &str| known.is_some_and(|member| member.role == role);
        let conditions = pod.data["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let hash = pod.labels().get("controller-revision-hash").map(String::as_str);
        Member {
            is_primary: known.is_some_and(ClusterMember::is_leader),
            ready: ready && pod.metadata.deletion_timestamp.is_none(),
            outdated: is_seen && revision.is_some() && hash != revision,
            in_sync: is("sync_standby")
                || is("quorum_standby")
                || !synchronous && known.is_some_and(|member| member.lag() == Some(0)),
            pending_restart: known.is_some_and(|member| member.pending_restart),
            name,
        }
    };
    observed.postgres_pods.iter().map(member).collect()
}

async fn delete_pod(client: &Client, observed: &Observed, name: &str) -> Result<(), Error> {
    let Some(pod) = observed.postgres_pods.iter().find(|pod| pod.name_any() == name) else {
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
