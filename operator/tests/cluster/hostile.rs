//! Specs that nobody would write, and some that somebody might.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sextant_operator::crd::Phase;

use crate::support::{TestCluster, in_phase};

const SPECS: usize = 200;

/// Fields, and what they are set to.
#[expect(clippy::too_many_lines, reason = "a table")]
fn fields() -> Vec<(&'static str, Vec<Value>)> {
    let long = "x".repeat(5_000);
    let text = vec![
        json!(""),
        json!("a\nb: c"),
        json!("$(rm -rf /)"),
        json!("'; DROP TABLE documents; --"),
        json!("${HOME}"),
        json!("../../etc/passwd"),
        json!("\u{0}"),
        json!("\u{202e}ø日本"),
        json!(long),
        json!("fine"),
        json!(7),
        json!(null),
        json!({}),
    ];
    let number = vec![
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(i64::MAX),
        json!(1.5),
        json!("3"),
        json!(null),
        json!([]),
        json!(true),
    ];
    let amount = vec![
        json!("1Gi"),
        json!("0"),
        json!("-5Gi"),
        json!("1e999"),
        json!("NaN"),
        json!("5 Gi"),
        json!(1),
        json!(20_000_000_000_i64),
        json!("99999999999999999999Ei"),
        json!({"a": 1}),
    ];
    let map = vec![
        json!({}),
        json!({"a": "b"}),
        json!({"bad key!": "x"}),
        json!({"a": "not a label\n"}),
        json!({"a": 1}),
        json!([]),
    ];
    let of = |names: &[&'static str], values: &[Value]| {
        names.iter().map(|name| (*name, values.to_vec())).collect::<Vec<_>>()
    };
    let fields = [
        of(
            &[
                "version",
                "images.server",
                "images.redis",
                "api.keysSecret",
                "api.expose.host",
                "api.serviceType",
                "api.scheduling.priorityClass",
                "embedder.model",
                "embedder.modelPath",
                "embedder.modelClaim",
                "embedder.queryPrompt",
                "embedder.placement",
                "cache.external.url",
                "cache.eviction",
                "cache.freshness",
                "postgres.synchronous",
                "postgres.storage.storageClass",
                "postgres.parameters.work_mem",
                "postgres.parameters.shared_preload_libraries",
                "milvus.mode",
                "milvus.version",
                "milvus.kafkaBrokers",
                "milvus.messageQueue",
                "objectStorage.endpoint",
                "monitoring.interval",
                "deletionPolicy",
                "unknown.field",
            ],
            &text,
        ),
        of(
            &[
                "api.replicas",
                "api.autoscaling.maxReplicas",
                "api.autoscaling.minReplicas",
                "embedder.replicas",
                "embedder.gpu.count",
                "embedder.maxBatchTokens",
                "cache.ttlSeconds",
                "postgres.instances",
                "milvus.etcd.replicas",
                "milvus.roles.queryNode.replicas",
                "paused",
            ],
            &number,
        ),
        of(
            &[
                "cache.memory",
                "cache.nearMemory",
                "postgres.storage.size",
                "milvus.storage.size",
                "api.resources.requests.cpu",
                "api.resources.limits.memory",
                "api.resources.limits.example.com/thing",
                "postgres.resources.requests.memory",
            ],
            &amount,
        ),
        of(
            &[
                "api.scheduling.nodeSelector",
                "api.expose.annotations",
                "monitoring.labels",
                "networkPolicy.allowedNamespaces",
                "postgres.parameters",
                "api",
            ],
            &map,
        ),
    ];
    fields.concat()
}

fn set(spec: &mut Value, path: &str, value: Value) {
    let mut at = spec;
    for part in path.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}

#[tokio::test]
async fn each_of_200_odd_specs_is_refused_with_a_reason_or_reconciled() {
    let cluster = TestCluster::start().await;
    let mut operator = cluster.operator().await;
    let (fields, mut random) = (fields(), StdRng::seed_from_u64(5));
    let mut accepted = Vec::new();
    for number in 0..SPECS {
        // Without pods: they are not what this is about.
        let mut spec = json!({"hibernate": true});
        for _ in 0..random.random_range(1..=2) {
            let (path, values) = fields.choose(&mut random).unwrap();
            set(&mut spec, path, values.choose(&mut random).unwrap().clone());
        }
        let name = format!("odd-{number}");
        match cluster.create(&name, spec.clone()).await {
            Ok(made) => accepted.push((name, made.metadata.generation, spec)),
            Err(kube::Error::Api(status)) => {
                assert!([400, 422].contains(&status.code), "{spec}: {status:?}");
                assert!(status.message.len() > 20, "{spec}: {status:?}");
            }
            Err(error) => panic!("{spec}: {error}"),
        }
    }
    assert!((20..SPECS - 20).contains(&accepted.len()), "{} were accepted", accepted.len());
    let mut told = 0;
    for (name, generation, spec) in &accepted {
        let settled = |object: &sextant_operator::crd::SearchDeployment| {
            object.status.as_ref().is_some_and(|status| {
                status.observed_generation == *generation
                    && status.phase != Some(Phase::Progressing)
            })
        };
        let object = cluster.until(name, &format!("settled: {spec}"), settled).await;
        let status = object.status.unwrap();
        if matches!(status.phase, Some(Phase::Invalid | Phase::Failed)) {
            let degraded = status.conditions.iter().find(|c| c.type_ == "Degraded").unwrap();
            assert!(degraded.message.len() > 20, "{spec}: {}", degraded.message);
            told += 1;
        }
    }
    assert!(!operator.process.has_ended());
    assert!(!operator.log().contains("panicked"), "{}", operator.log());
    println!("{} accepted, of which {told} were told what is wrong", accepted.len());
    // All of these have not stopped the next.
    cluster.apply("good", json!({"hibernate": true})).await.unwrap();
    cluster.until("good", "hibernated", in_phase(Phase::Hibernated)).await;
}
