//! What becomes of searches while servers and caches come and go.

use std::time::{Duration, Instant};

use serde_json::json;
use sextant_e2e::load::{Kind, Rates};

use crate::support::{NAME, NAMESPACE, Stack, figure, through, until};

/// No search fails, and none is false.
async fn without_a_failed_search(what: &str, stack: &Stack, fault: impl AsyncFnOnce()) {
    let report = through(stack, fault).await;
    figure(&format!("{what}: {report}"));
    assert!(report.searches().is_flawless(), "{report}");
}

/// Waits until the Deployment of the API has this many pods, all ready and of the present template.
async fn until_servers(stack: &Stack, wanted: u64) {
    until("servers", Duration::from_mins(3), async || {
        let status = stack.cluster.get(&format!("deployment -n {NAMESPACE} {NAME}-api")).await;
        let observed = status["status"]["observedGeneration"] == status["metadata"]["generation"];
        let number = |field: &str| status["status"][field].as_u64().unwrap_or_default();
        let all = ["replicas", "updatedReplicas", "readyReplicas"].map(number);
        if observed && all == [wanted; 3] { Ok(()) } else { Err(status["status"].to_string()) }
    })
    .await;
}

#[tokio::test]
async fn no_search_fails_when_redis_is_deleted() {
    let (stack, _) = Stack::get().await;
    without_a_failed_search("Redis deleted", &stack, async || {
        stack.delete_pods("redis", "").await;
    })
    .await;
}

#[tokio::test]
async fn no_search_fails_when_a_server_is_deleted_or_killed() {
    let (stack, _) = Stack::get().await;
    for (what, how) in [("deleted", ""), ("killed", "--grace-period=0 --force")] {
        without_a_failed_search(&format!("server {what}"), &stack, async || {
            let (pod, _) = stack.pods("api").await.remove(0);
            stack
                .cluster
                .sh(&format!("kubectl delete pod -n {NAMESPACE} {pod} {how} 2>/dev/null"))
                .await;
        })
        .await;
    }
}

#[tokio::test]
async fn no_search_fails_during_a_rolling_update_of_the_servers() {
    let (stack, _) = Stack::get().await;
    let before = stack.pods("api").await;
    without_a_failed_search("rolling update of the servers", &stack, async || {
        // Another each time, also on a stack that is used again.
        let bytes = 100_000_000 + std::process::id();
        stack.patch(&json!({"cache": {"nearMemory": bytes.to_string()}})).await;
        stack.until_replaced("api", &before, Duration::from_mins(3)).await;
    })
    .await;
}

#[tokio::test]
async fn no_search_fails_while_an_autoscaler_goes_from_one_server_to_five_and_back() {
    let (stack, _) = Stack::get().await;
    if stack.cluster.is_own {
        stack.cluster.sh("tests/e2e/cluster.sh metrics").await;
    } else if stack.cluster.try_sh("kubectl get --raw /apis/metrics.k8s.io/v1beta1").await.is_err()
    {
        println!(
            "not run: the cluster does not tell an autoscaler of its pods (no metrics.k8s.io)"
        );
        return;
    }
    // So little that the load below needs five, and more than one takes that is hardly asked.
    // The limit keeps four that start at the same time from taking the few cores from all others.
    let resources = json!({
        "requests": {"cpu": "30m", "memory": "256Mi"}, "limits": {"cpu": "500m"},
    });
    let autoscaling = json!({"minReplicas": 1, "maxReplicas": 5, "targetCpuPercent": 100});
    stack.patch(&json!({"api": {"resources": resources, "autoscaling": autoscaling}})).await;
    stack.whole(Duration::from_mins(3)).await;
    let load = stack.load();
    let mut reports = Vec::new();
    for (searches_per_second, writes_per_second, servers) in [(60.0, 2.0, 5), (1.0, 0.2, 1)] {
        load.start(Rates { searches_per_second, writes_per_second }).await;
        let begin = Instant::now();
        until_servers(&stack, servers).await;
        let seconds = begin.elapsed().as_secs_f64();
        let report = load.stop().await;
        figure(&format!("{servers} servers by the autoscaler after {seconds:.1} s: {report}"));
        reports.push(report);
    }
    stack.patch(&json!({"api": {"resources": null, "autoscaling": null, "replicas": null}})).await;
    stack.whole(Duration::from_mins(3)).await;
    for report in reports {
        assert!(report.searches().is_flawless(), "{report}");
    }
}

#[tokio::test]
async fn known_queries_are_answered_while_the_embedder_is_away() {
    let (stack, _) = Stack::get().await;
    // As much as is free on one node, whatever the placement of the others.
    let resources = json!({"requests": {"cpu": "500m"}});
    let embedder = json!({"placement": "dedicated", "replicas": 1, "resources": resources});
    stack.patch(&json!({"embedder": embedder})).await;
    stack.whole(Duration::from_mins(3)).await;
    let report = through(&stack, async || {
        stack.delete_pods("embedder", "--grace-period=0 --force").await;
    })
    .await;
    let (known, fresh) = (report.of(Kind::CachedSearch), report.of(Kind::FreshSearch));
    figure(&format!(
        "embedder killed: known queries: {} of {} failed; computed anew: {} of {} failed, longest gap {:.1} s",
        known.failed,
        known.sent,
        fresh.failed,
        fresh.sent,
        fresh.longest_gap_ms as f64 / 1e3,
    ));
    stack.patch(&json!({"embedder": null})).await;
    stack.whole(Duration::from_mins(3)).await;
    assert!(known.is_flawless(), "{report}");
    assert!(fresh.longest_gap_ms < 30_000, "{report}");
}
