//! Paused, hibernated, deleted and made again: what was there is there.

use std::time::Duration;

use serde_json::json;
use sextant_e2e::load::Kind;

use crate::support::{NAME, NAMESPACE, Stack, figure, through, until};

#[tokio::test]
async fn a_paused_stack_is_left_alone_until_it_goes_on() {
    let (stack, _) = Stack::get().await;
    let before = stack.pods("redis").await;
    stack.patch(&json!({"paused": true, "cache": {"memory": "300Mi"}})).await;
    until("a list of what waits", Duration::from_secs(30), async || {
        let status = stack.status().await;
        let waits =
            status["phase"] == "Paused" && status["pendingChanges"].to_string().contains("redis");
        if waits { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert_eq!(stack.pods("redis").await, before);
    stack.patch(&json!({"paused": null, "cache": {"memory": null}})).await;
    stack.whole(Duration::from_mins(2)).await;
    assert_eq!(stack.pods("redis").await, before);
}

#[tokio::test]
async fn after_hibernation_the_same_is_found_in_the_same_order() {
    let (stack, _) = Stack::get().await;
    let before = stack.load().learn().await;
    stack.patch(&json!({"hibernate": true})).await;
    stack.until_no_pods().await;
    until("hibernated", Duration::from_mins(1), async || {
        let phase = stack.status().await["phase"].clone();
        if phase == "Hibernated" { Ok(()) } else { Err(phase.to_string()) }
    })
    .await;
    let begin = std::time::Instant::now();
    stack.patch(&json!({"hibernate": null})).await;
    stack.whole(Duration::from_mins(3)).await;
    figure(&format!("woken from hibernation: whole after {:.1} s", begin.elapsed().as_secs_f64()));
    assert_eq!(stack.load().learn().await, before);
}

#[tokio::test]
async fn no_search_fails_when_the_servers_version_goes_up_and_back() {
    let (stack, _) = Stack::get().await;
    if !stack.cluster.is_own {
        println!("not run: only nodes of `make cluster-up` get an image of another version");
        return;
    }
    let (now, next) = (env!("CARGO_PKG_VERSION"), "0.1.1-e2e");
    let image = "docker.io/library/sextant-server";
    // The same program: what is tried is the way there and back.
    stack.cluster.sh(&format!("tests/e2e/cluster.sh tag {image}:{now} {image}:{next}")).await;
    for version in [next, now] {
        let report = through(&stack, async || {
            stack.patch(&json!({"version": version})).await;
            until("the version", Duration::from_mins(3), async || {
                let status = stack.status().await;
                let done = status["version"] == version && status["phase"] == "Ready";
                if done { Ok(()) } else { Err(status.to_string()) }
            })
            .await;
        })
        .await;
        figure(&format!("servers to version {version}: {report}"));
        assert!(report.searches().is_flawless(), "{report}");
    }
}

#[tokio::test]
async fn no_search_fails_while_the_model_is_moved_to_a_volume_of_its_own() {
    let (stack, _) = Stack::get().await;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "model", "namespace": NAMESPACE},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let copy = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "copy", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "copy", "image": stack.image("api").await, "imagePullPolicy": "IfNotPresent",
                "command": ["cp", "--recursive", "/models/default/.", "/to"],
                "volumeMounts": [{"name": "to", "mountPath": "/to"}],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
            "volumes": [{"name": "to", "persistentVolumeClaim": {"claimName": "model"}}],
        },
    });
    stack
        .cluster
        .sh(&format!(
            "kubectl apply -f - <<'END'\n{claim}\n---\n{copy}\nEND
            kubectl wait -n {NAMESPACE} --for=jsonpath='{{.status.phase}}'=Succeeded --timeout=2m pod/copy
            kubectl delete pod -n {NAMESPACE} copy"
        ))
        .await;
    let before = stack.pods("api").await;
    let report = through(&stack, async || {
        stack.patch(&json!({"embedder": {"modelClaim": "model"}})).await;
        stack.until_replaced("api", &before, Duration::from_mins(3)).await;
    })
    .await;
    figure(&format!("model moved to a volume: {report}"));
    assert!(report.searches().is_flawless(), "{report}");
    stack.patch(&json!({"embedder": {"modelClaim": null}})).await;
    stack.whole(Duration::from_mins(3)).await;
    stack.cluster.sh(&format!("kubectl delete pvc -n {NAMESPACE} model --wait=false")).await;
}

#[tokio::test]
async fn a_drained_nodes_primary_is_moved_away_before_its_pod_is_evicted() {
    let (stack, _) = Stack::get().await;
    if !stack.cluster.is_own {
        println!("not run: only nodes of `make cluster-up` are drained");
        return;
    }
    stack.primary_on_the_second_node().await;
    let old = stack.primary().await.unwrap();
    let cache_stays = stack.nodes("redis").await.iter().all(|(_, node)| node == "node1");
    let mut order = String::new();
    let report = through(&stack, async || {
        let drain =
            "kubectl drain node2 --ignore-daemonsets --delete-emptydir-data --timeout=3m 2>&1";
        order = stack.cluster.sh(drain).await;
        // One node alone has no room for all of it.
        stack.cluster.sh("kubectl uncordon node2").await;
    })
    .await;
    figure(&format!("node drained: {:.1} s without writes; {report}", report.without_writes()));
    // Refused as long as it was the primary's, then evicted.
    let refused = order.find("Cannot evict pod as it would violate").expect(&order);
    let evicted = order.find(&format!("pod/{old} evicted")).expect(&order);
    assert!(refused < evicted, "{order}");
    assert!(report.of(Kind::Write).longest_gap_ms < 5_000, "{report}");
    // A new server knows no answer yet, and asks Redis, then Milvus. Either may have been on that node.
    assert!(report.of(Kind::CachedSearch).is_flawless() || !cache_stays, "{report}");
    let reasons = report.searches().reasons;
    assert!(reasons.keys().all(|reason| reason.contains("the index")), "{report}");
}

#[tokio::test]
async fn what_was_deleted_under_retain_is_there_when_it_is_applied_again() {
    let (stack, _) = Stack::get().await;
    let before = stack.load().learn().await;
    let object = format!("searchdeployment -n {NAMESPACE} {NAME}");
    stack.cluster.sh(&format!("kubectl delete {object} --wait --timeout=3m")).await;
    stack.until_no_pods().await;
    let begin = std::time::Instant::now();
    stack
        .cluster
        .sh(&format!("kubectl apply -n {NAMESPACE} -f deploy/examples/smallest.yaml"))
        .await;
    stack.whole(Duration::from_mins(3)).await;
    figure(&format!(
        "deleted and applied again: whole after {:.1} s",
        begin.elapsed().as_secs_f64()
    ));
    assert_eq!(stack.load().learn().await, before);
}
