//! Changes of a spec, one after the other and one during another.

use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};
use sextant_operator::components::Kind;
use sextant_operator::crd::Phase;

use crate::support::{TestCluster, in_phase};

async fn uids_of_claims(cluster: &TestCluster) -> Vec<Option<String>> {
    let claims = cluster.claims().list(&ListParams::default()).await.unwrap();
    claims.iter().map(ResourceExt::uid).collect()
}

#[tokio::test]
async fn a_change_during_another_and_its_taking_back_leave_nothing_behind() {
    let (cluster, _operator) = TestCluster::with_small_stack().await;
    let (before, claims) = (cluster.applied().await, uids_of_claims(&cluster).await);
    let there = async |name: &str| cluster.names().await.contains(&name.to_owned());
    let first = json!({
        "api": {"replicas": 4},
        "cache": {"memory": "1Gi"},
        "embedder": {"placement": "dedicated"},
    });
    let second = json!({
        "api": {"replicas": 3},
        "cache": {"enabled": false},
        "postgres": {"resources": {"requests": {"cpu": "300m"}}},
    });
    for second_begins in [true, false] {
        cluster.apply("gym", first.clone()).await.unwrap();
        sextant_stack::until("the first change", || there("Deployment/gym-embedder"))
            .await
            .unwrap();
        cluster.apply("gym", second.clone()).await.unwrap();
        if second_begins {
            sextant_stack::until("the second", async || !there("Deployment/gym-redis").await)
                .await
                .unwrap();
            // No pod was run since: both are under way.
            cluster.until("gym", "under way", in_phase(Phase::Progressing)).await;
        }
        cluster.apply("gym", json!({})).await.unwrap();
        cluster.ready("gym").await;
        let mut after = cluster.applied().await;
        after.remove("Secret/gym-embedder-key");
        assert_eq!(after, before);
        assert_eq!(uids_of_claims(&cluster).await, claims);
        // Two API servers, a Redis, two of Postgres, a Milvus.
        sextant_stack::until("as many pods as at first", || async {
            cluster.pods().list(&ListParams::default()).await.unwrap().items.len() == 6
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn each_component_goes_when_it_is_not_wanted_and_comes_back() {
    let (cluster, _operator) = TestCluster::with_small_stack().await;
    let before = cluster.applied().await;
    let redis = &["ConfigMap/gym-redis", "Deployment/gym-redis", "NetworkPolicy/gym-redis"][..];
    let cases: [(Value, &[&str], &[&str]); 8] = [
        (json!({"cache": {"enabled": false}}), redis, &[]),
        (json!({"cache": {"external": {"url": "redis://elsewhere:6379"}}}), redis, &[]),
        (
            json!({"embedder": {"placement": "dedicated", "replicas": 2}}),
            &[],
            &[
                "Deployment/gym-embedder",
                "Service/gym-embedder",
                "PodDisruptionBudget/gym-embedder",
            ],
        ),
        (
            json!({"networkPolicy": {"enabled": false}}),
            &["NetworkPolicy/gym-api", "NetworkPolicy/gym-milvus", "NetworkPolicy/gym-postgres"],
            &[],
        ),
        (
            json!({"api": {"autoscaling": {"maxReplicas": 5}}}),
            &[],
            &["HorizontalPodAutoscaler/gym-api"],
        ),
        (
            json!({"api": {"expose": {"ingressClass": "nginx", "host": "gym.example.com"}}}),
            &[],
            &["Ingress/gym-api"],
        ),
        (json!({"api": {"replicas": 1}}), &["PodDisruptionBudget/gym-api"], &[]),
        (json!({"postgres": {"instances": 1}}), &["PodDisruptionBudget/gym-postgres-primary"], &[]),
    ];
    for (spec, gone, there) in cases {
        cluster.apply("gym", spec.clone()).await.unwrap();
        cluster.ready("gym").await;
        let names = cluster.names().await;
        for name in gone {
            assert!(before.contains_key(*name) && !names.contains(&(*name).to_owned()), "{name}");
        }
        for name in there {
            assert!(!before.contains_key(*name) && names.contains(&(*name).to_owned()), "{name}");
        }
        cluster.apply("gym", json!({})).await.unwrap();
        cluster.ready("gym").await;
        let mut after = cluster.applied().await;
        after.remove("Secret/gym-embedder-key");
        assert_eq!(after, before, "after {spec}");
    }
}

#[tokio::test]
async fn a_milvus_cluster_is_upgraded_role_by_role() {
    const ROLES: [&str; 5] = ["coordinator", "streamingnode", "querynode", "datanode", "proxy"];
    let cluster = TestCluster::start().await;
    let operator = cluster.operator().await;
    let spec = |version: &str| {
        json!({
            "milvus": {"mode": "cluster", "version": version},
            "objectStorage": {
                "endpoint": "http://minio:9000",
                "bucket": "gym",
                "credentialsSecret": "s3",
            },
        })
    };
    cluster.apply("gym", spec("v2.6.4")).await.unwrap();
    cluster.ready("gym").await;
    let image = async |role: &str| {
        let workload = cluster.api(Kind::Deployment).get(&format!("gym-milvus-{role}")).await;
        let pod = &workload.unwrap().data["spec"]["template"]["spec"];
        pod["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    let is_new = async |role: &str| image(role).await.ends_with(":v2.6.6");
    cluster.apply("gym", spec("v2.6.6")).await.unwrap();
    for (number, role) in ROLES.into_iter().enumerate() {
        sextant_stack::until(&format!("the new image of the {role}"), || is_new(role))
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", operator.log()));
        // A pod of the new image is made and not ready yet: whatever happens, the others wait.
        sextant_stack::until("a pod of it", || async {
            let labels = format!("app.kubernetes.io/component=milvus-{role}");
            let pods = cluster.pods().list(&ListParams::default().labels(&labels)).await.unwrap();
            pods.iter().any(|pod| {
                let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref());
                image.is_some_and(|image| image.ends_with(":v2.6.6"))
            })
        })
        .await
        .unwrap();
        // Twice: one may have been under way already.
        operator.reconciles_once_more(&cluster, "gym").await;
        operator.reconciles_once_more(&cluster, "gym").await;
        for later in &ROLES[number + 1..] {
            assert!(!is_new(later).await, "{later} before the {role} runs");
        }
        let next = ROLES.get(number + 1);
        sextant_stack::until(&format!("the end of the {role}"), || async {
            cluster.run_pods(&format!("app.kubernetes.io/component=milvus-{role}")).await;
            match next {
                Some(next) => is_new(next).await,
                None => true,
            }
        })
        .await
        .unwrap();
        if next.is_some() {
            let workload = cluster.api(Kind::Deployment).get(&format!("gym-milvus-{role}")).await;
            let status = &workload.unwrap().data["status"];
            assert_eq!(status["updatedReplicas"], status["replicas"], "{role}");
            assert_eq!(status["availableReplicas"], status["replicas"], "{role}");
        }
    }
    cluster.ready("gym").await;
}
