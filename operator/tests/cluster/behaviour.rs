//! What the operator does with a SearchDeployment.

use std::time::Duration;

use futures::TryFutureExt;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use sextant_operator::components::Kind;
use sextant_operator::crd::{Health, Phase, SearchDeploymentSpec};

use crate::support::{TestCluster, in_phase};

const EMPTY_SPEC: [&str; 19] = [
    "ConfigMap/gym-api",
    "ConfigMap/gym-milvus",
    "ConfigMap/gym-postgres",
    "ConfigMap/gym-redis",
    "Deployment/gym-api",
    "Deployment/gym-redis",
    "NetworkPolicy/gym-api",
    "NetworkPolicy/gym-milvus",
    "NetworkPolicy/gym-postgres",
    "NetworkPolicy/gym-redis",
    "PodDisruptionBudget/gym-api",
    "PodDisruptionBudget/gym-postgres-primary",
    "Role/gym-postgres",
    "RoleBinding/gym-postgres",
    "Secret/gym-api-keys",
    "Secret/gym-milvus",
    "Secret/gym-postgres",
    "Secret/gym-redis",
    "Service/gym-api",
];

#[tokio::test]
async fn an_empty_spec_is_a_small_stack_that_becomes_ready() {
    let cluster = TestCluster::start().await;
    let operator = cluster.operator().await;
    cluster.apply("gym", json!({})).await.unwrap();
    let ready = cluster.ready("gym").await;
    let names = cluster.names().await;
    for expected in EMPTY_SPEC {
        assert!(names.iter().any(|name| name == expected), "{expected} is missing of {names:?}");
    }
    let status = ready.status.unwrap();
    assert_eq!(status.health, Some(Health::Green));
    assert_eq!(status.api.unwrap().summary, "2/2");
    assert_eq!(ready.spec, SearchDeploymentSpec::default(), "no default is written into the spec");
    sextant_stack::until("the event of being ready", || async {
        cluster.events().await.contains(&"Ready".to_owned())
    })
    .await
    .unwrap();
    let told = cluster.events().await;
    assert!(told.len() < 10, "an event for each change, not for each loop: {told:?}");
    assert_eq!(
        operator.metric("sextant_operator_reconcile_failures_total").await,
        0,
        "{}",
        operator.log()
    );
}

#[tokio::test]
async fn nothing_is_written_when_nothing_is_to_be_changed() {
    let (cluster, operator) = TestCluster::with_small_stack().await;
    // The status of the last pods may still be under way.
    let reconciles = || operator.metric("sextant_operator_reconciles_total");
    let calls = || operator.metric("sextant_operator_api_calls_total");
    let mut settled = reconciles().await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = reconciles().await;
        if now == settled {
            break;
        }
        settled = now;
    }
    let (before, calls_before) = (cluster.versions().await, calls().await);
    let deployment = cluster.deployments().get("gym").await.unwrap();
    for _ in 0..50 {
        operator.reconciles_once_more(&cluster, "gym").await;
    }
    assert_eq!(cluster.versions().await, before);
    let after = cluster.deployments().get("gym").await.unwrap();
    assert_eq!(after.status, deployment.status);
    // Renewals of the lease: a read and a write every two seconds.
    let others = calls().await - calls_before;
    println!("50 reconciliations: {others} API calls, those for the lease included");
    assert!(others < 50, "{others} calls in 50 reconciliations");
}

#[tokio::test]
async fn what_somebody_changes_or_deletes_is_put_right() {
    let (cluster, _operator) = TestCluster::with_small_stack().await;
    let deployments = cluster.api(Kind::Deployment);
    for manager in ["kubectl-edit", "other-controller"] {
        let edit = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 5}});
        let parameters =
            PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        deployments.patch("gym-api", &parameters, &Patch::Merge(&edit)).await.unwrap();
        sextant_stack::until("two replicas again", || async {
            deployments.get("gym-api").await.unwrap().data["spec"]["replicas"] == 2
        })
        .await
        .unwrap();
    }
    let before = cluster.names().await;
    for name in ["gym-api", "gym-redis", "gym-postgres"] {
        cluster.api(Kind::ConfigMap).delete(name, &DeleteParams::default()).await.unwrap();
    }
    cluster.api(Kind::Service).delete("gym-postgres-ro", &DeleteParams::default()).await.unwrap();
    sextant_stack::until("all objects again", || async { cluster.names().await == before })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_component_that_is_no_longer_wanted_goes_and_comes_back() {
    let (cluster, _operator) = TestCluster::with_small_stack().await;
    let before = cluster.names().await;
    let dedicated = json!({"embedder": {"placement": "dedicated"}, "cache": {"enabled": false}});
    cluster.apply("gym", dedicated).await.unwrap();
    cluster.ready("gym").await;
    let names = cluster.names().await;
    assert!(names.contains(&"Deployment/gym-embedder".to_owned()));
    assert!(!names.contains(&"Deployment/gym-redis".to_owned()));
    assert!(names.contains(&"Secret/gym-redis".to_owned()), "a password is kept");
    cluster.apply("gym", json!({})).await.unwrap();
    cluster.ready("gym").await;
    let mut after = cluster.names().await;
    after.retain(|name| name != "Secret/gym-embedder-key");
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_paused_one_is_left_alone_and_says_what_waits() {
    let (cluster, _operator) = TestCluster::with_small_stack().await;
    let before = cluster.versions().await;
    cluster.apply("gym", json!({"paused": true, "api": {"replicas": 3}})).await.unwrap();
    let paused = cluster.until("gym", "paused", in_phase(Phase::Paused)).await;
    let status = paused.status.unwrap();
    assert_eq!(status.pending_changes, ["update Deployment/gym-api"]);
    assert_eq!(cluster.versions().await, before);
    cluster.apply("gym", json!({"api": {"replicas": 3}})).await.unwrap();
    assert_eq!(cluster.ready("gym").await.status.unwrap().api.unwrap().summary, "3/3");
}

#[tokio::test]
async fn hibernation_takes_the_pods_and_leaves_the_volumes() {
    let (cluster, _operator) = TestCluster::with_small_stack().await;
    cluster.apply("gym", json!({"hibernate": true})).await.unwrap();
    cluster.until("gym", "hibernated", in_phase(Phase::Hibernated)).await;
    let pods = cluster.pods();
    sextant_stack::until("no pods", || async {
        pods.list(&ListParams::default()).await.unwrap().items.is_empty()
    })
    .await
    .unwrap();
    let claims = cluster.claims();
    assert_eq!(claims.list(&ListParams::default()).await.unwrap().items.len(), 3);
    cluster.apply("gym", json!({})).await.unwrap();
    cluster.ready("gym").await;
}

#[tokio::test]
async fn a_deleted_one_leaves_volumes_and_passwords_only_if_the_policy_says_so() {
    for (policy, left) in [("Retain", 4), ("Delete", 0)] {
        let cluster = TestCluster::start().await;
        let _operator = cluster.operator().await;
        cluster.apply("gym", json!({"deletionPolicy": policy})).await.unwrap();
        cluster.ready("gym").await;
        cluster.delete("gym").await;
        sextant_stack::until("its end", || async {
            cluster.deployments().get_opt("gym").await.unwrap().is_none()
        })
        .await
        .unwrap();
        sextant_stack::until("all objects gone", || async { cluster.names().await.len() == left })
            .await
            .unwrap_or_else(|error| panic!("{policy}: {error}"));
        let kept = cluster.claims().list(&ListParams::default()).await.unwrap();
        let kept = kept.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none());
        assert_eq!(kept.count(), if policy == "Retain" { 3 } else { 0 }, "{policy}");
    }
}

#[tokio::test]
async fn another_operator_takes_over_and_the_first_does_not_come_back() {
    let (cluster, mut first) = TestCluster::with_small_stack().await;
    let before = cluster.versions().await;
    let second = cluster.operator().await;
    assert_eq!(second.metric("sextant_operator_is_leader").await, 0);
    first.process.kill().await.unwrap();
    let killed = std::time::Instant::now();
    cluster.apply("gym", json!({"api": {"replicas": 4}})).await.unwrap();
    cluster.ready("gym").await;
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    assert_eq!(second.metric("sextant_operator_is_leader").await, 1);
    assert_eq!(second.metric("sextant_operator_changes_total").await, 1, "{}", second.log());
    let mut after = cluster.versions().await;
    after.insert("Deployment/gym-api".to_owned(), before["Deployment/gym-api"].clone());
    after.retain(|name, _| before.contains_key(name));
    let own = |versions: &std::collections::BTreeMap<String, String>| {
        let kept = |name: &str| !name.starts_with("PodDisruptionBudget/");
        versions.clone().into_iter().filter(|(name, _)| kept(name)).collect::<Vec<_>>()
    };
    assert_eq!(own(&after), own(&before), "what need not be changed is not written");
}

#[tokio::test]
async fn who_changes_an_object_again_and_again_is_reported_and_then_left_alone() {
    let (cluster, operator) = TestCluster::with_small_stack().await;
    let services = cluster.api(Kind::Service);
    let other = PatchParams { field_manager: Some("other".to_owned()), ..PatchParams::default() };
    let edit = json!({"spec": {"selector": {"app.kubernetes.io/component": "elsewhere"}}});
    let reported = |object: &sextant_operator::crd::SearchDeployment| {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.reason == "FieldConflict")
    };
    let mut edits = 0;
    loop {
        services.patch("gym-redis", &other, &Patch::Merge(&edit)).await.unwrap();
        edits += 1;
        let is_repaired = async || {
            let service = services.get("gym-redis").await.unwrap();
            service.data["spec"]["selector"]["app.kubernetes.io/component"] == "redis"
        };
        let is_reported = async || reported(&cluster.deployments().get("gym").await.unwrap());
        sextant_stack::until("a repair or a report", async || {
            is_repaired().await || is_reported().await
        })
        .await
        .unwrap();
        if is_reported().await {
            break;
        }
        assert!(edits < 20, "{}", operator.log());
    }
    let object = cluster.deployments().get("gym").await.unwrap();
    let conditions = object.status.unwrap().conditions;
    let degraded = conditions.iter().find(|condition| condition.type_ == "Degraded").unwrap();
    assert!(degraded.message.contains("Service gym-redis"), "{}", degraded.message);
    // Not fought, and the others are looked after as before.
    let left = services.get("gym-redis").await.unwrap().resource_version();
    cluster.api(Kind::ConfigMap).delete("gym-api", &DeleteParams::default()).await.unwrap();
    sextant_stack::until("the ConfigMap again", || async {
        cluster.names().await.contains(&"ConfigMap/gym-api".to_owned())
    })
    .await
    .unwrap();
    assert_eq!(services.get("gym-redis").await.unwrap().resource_version(), left);
}

#[tokio::test]
async fn autoscaling_takes_the_number_of_replicas_over_as_it_is() {
    let cluster = TestCluster::start().await;
    let _operator = cluster.operator().await;
    cluster.apply("gym", json!({"api": {"replicas": 4}})).await.unwrap();
    cluster.ready("gym").await;
    let deployments = cluster.api(Kind::Deployment);
    let before = deployments.get("gym-api").await.unwrap().metadata.generation;
    let scaled = json!({"api": {"autoscaling": {"minReplicas": 2, "maxReplicas": 9}}});
    cluster.apply("gym", scaled).await.unwrap();
    cluster.ready("gym").await;
    let after = deployments.get("gym-api").await.unwrap();
    assert_eq!(after.data["spec"]["replicas"], 4);
    // A Deployment's generation counts changes of annotations, too.
    let once = before.map(|generation| generation + 1);
    assert_eq!(after.metadata.generation, once, "it was never anything else");
    // As Kubernetes's autoscaler does.
    let scale = json!({"spec": {"replicas": 6}});
    let parameters = PatchParams::default();
    deployments.patch_scale("gym-api", &parameters, &Patch::Merge(&scale)).await.unwrap();
    let other = json!({"api": {"autoscaling": {"minReplicas": 3, "maxReplicas": 9}}});
    cluster.apply("gym", other).await.unwrap();
    cluster.ready("gym").await;
    assert_eq!(deployments.get("gym-api").await.unwrap().data["spec"]["replicas"], 6);
}

#[tokio::test]
async fn volumes_that_cannot_grow_are_reported_and_stop_nothing_else() {
    let cluster = TestCluster::start().await;
    let _operator = cluster.operator().await;
    // Of no class, and of no volume: Kubernetes lets such claims not grow.
    cluster.apply("gym", json!({})).await.unwrap();
    cluster.ready("gym").await;
    let larger = json!({"postgres": {"storage": {"size": "20Gi"}}, "api": {"replicas": 3}});
    cluster.apply("gym", larger).await.unwrap();
    let failed = |object: &sextant_operator::crd::SearchDeployment| {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.reason == "GrowVolumesFailed")
    };
    cluster.until("gym", "told", failed).await;
    let api = cluster.api(Kind::Deployment).get("gym-api").await.unwrap();
    assert_eq!(api.data["spec"]["replicas"], 3);
}

#[tokio::test]
async fn larger_volumes_reach_the_claims_and_the_statefulset() {
    let cluster = TestCluster::start().await;
    let _operator = cluster.operator().await;
    let class = cluster.storage_that_grows(2).await;
    let spec = |size: &str| json!({"postgres": {"storage": {"size": size, "storageClass": class}}});
    cluster.apply("gym", spec("1Gi")).await.unwrap();
    cluster.ready("gym").await;
    let claims = cluster.claims();
    // Kubernetes lets only bound claims grow.
    sextant_stack::until("bound claims", || async {
        let bound = |name| claims.get(name).map_ok(|claim| claim.status.unwrap().phase);
        let phases = [bound("data-gym-postgres-0").await, bound("data-gym-postgres-1").await];
        phases.into_iter().all(|phase| phase.unwrap().as_deref() == Some("Bound"))
    })
    .await
    .unwrap();
    let sets = cluster.api(Kind::StatefulSet);
    let before = sets.get("gym-postgres").await.unwrap();
    cluster.apply("gym", spec("2Gi")).await.unwrap();
    cluster.ready("gym").await;
    let after = sets.get("gym-postgres").await.unwrap();
    assert_ne!(after.uid(), before.uid());
    let claim = serde_json::to_value(claims.get("data-gym-postgres-1").await.unwrap()).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
    let template = &after.data["spec"]["volumeClaimTemplates"][0];
    assert_eq!(template["spec"]["resources"]["requests"]["storage"], "2Gi");
}
