//! What the API server refuses.

use serde_json::json;

use crate::support::TestCluster;

#[tokio::test]
async fn specs_that_cannot_be_had_are_refused_with_a_reason() {
    let cluster = TestCluster::start().await;
    let cases = [
        (json!({"postgres": {"synchronous": "required"}}), "needs three instances"),
        (json!({"embedder": {"placement": "dedicated", "replicas": 0}}), "at least one replica"),
        (json!({"embedder": {"gpu": {}}}), "needs placement: dedicated"),
        (json!({"milvus": {"mode": "cluster"}}), "set objectStorage"),
        (json!({"milvus": {"mode": "external"}}), "belong together"),
        (json!({"milvus": {"etcd": {"replicas": 2}}}), "1, 3 or 5"),
        (json!({"milvus": {"replicaNumber": 2}}), "a query node of its own"),
        (json!({"api": {"autoscaling": {"maxReplicas": 1}}}), "at least minReplicas"),
        (json!({"api": {"expose": {"ingressClass": "nginx"}}}), "need a host"),
        (json!({"api": {"replicas": -1}}), "greater than or equal to 0"),
        (json!({"cache": {"enabled": false, "external": {"url": "redis://r:6379"}}}), "contradict"),
        (
            json!({"cache": {"exporter": {"enabled": true}, "external": {"url": "redis://r:6379"}}}),
            "leave them out with external",
        ),
        (json!({"cache": {"exporter": {"enabled": "yes"}}}), "boolean"),
    ];
    for (spec, reason) in cases {
        let refused = cluster.apply("gym", spec.clone()).await;
        let message = match refused {
            Err(kube::Error::Api(status)) => status.message.clone(),
            other => panic!("{spec} is not refused: {other:?}"),
        };
        assert!(message.contains(reason), "{spec}: {message}");
    }
    let long = "a".repeat(41);
    let refused = cluster.apply(&long, json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("at most 40 characters"), "{refused}");
    let refused = cluster.apply("1a", json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("begin with a letter"), "{refused}");
}

#[tokio::test]
async fn changes_that_would_lose_data_are_refused() {
    let cluster = TestCluster::start().await;
    let cases = [
        (
            json!({"postgres": {"storage": {"size": "20Gi"}}}),
            json!({"postgres": {"storage": {"size": "10Gi"}}}),
            "cannot shrink",
        ),
        (
            json!({"milvus": {"mode": "standalone"}}),
            json!({"milvus": {"mode": "external", "external": {"endpoints": ["http://m:19530"]}}}),
            "mode of Milvus cannot change",
        ),
        // What is left out has its default.
        (
            json!({"milvus": {"mode": "external", "external": {"endpoints": ["http://m:19530"]}}}),
            json!({}),
            "mode of Milvus cannot change",
        ),
        (json!({}), json!({"postgres": {"storage": {"size": "5Gi"}}}), "cannot shrink"),
        (json!({"milvus": {"storage": {"size": "20Gi"}}}), json!({}), "cannot shrink"),
        (json!({}), json!({"milvus": {"etcd": {"replicas": 3}}}), "etcd's replicas"),
        (
            json!({"postgres": {"external": {"primary": {"name": "pg", "key": "url"}}}}),
            json!({}),
            "managed Postgres cannot become",
        ),
        (
            json!({}),
            json!({"postgres": {"storage": {"storageClass": "fast"}}}),
            "storage class of Postgres",
        ),
        (
            json!({"postgres": {"instances": 2}}),
            json!({"postgres": {"external": {"primary": {"name": "pg", "key": "url"}}}}),
            "managed Postgres cannot become",
        ),
    ];
    for (number, (before, after, reason)) in cases.into_iter().enumerate() {
        let name = format!("gym-{number}");
        cluster.apply(&name, before).await.unwrap();
        let refused = cluster.apply(&name, after.clone()).await.unwrap_err().to_string();
        assert!(refused.contains(reason), "{after}: {refused}");
    }
}

#[tokio::test]
async fn fields_can_be_taken_away_again() {
    let cluster = TestCluster::start().await;
    cluster.apply("gym", json!({"api": {"replicas": 3}, "paused": true})).await.unwrap();
    let object = cluster.apply("gym", json!({})).await.unwrap();
    assert_eq!(object.spec, sextant_operator::crd::SearchDeploymentSpec::default());
}
