//! The operator itself is killed and upgraded.

use std::time::Duration;

use serde_json::json;
use sextant_e2e::load::Kind;

use crate::support::{NAMESPACE, Stack, figure, through};

/// At once, whatever it is doing.
async fn kill_the_operator(stack: &Stack) {
    let kill = "kubectl delete pod -n sextant -l app.kubernetes.io/name=sextant-operator \
                --grace-period=0 --force --wait=false 2>/dev/null";
    stack.cluster.sh(kill).await;
}

#[tokio::test]
async fn a_rollout_goes_on_after_the_operator_was_killed() {
    let (stack, _) = Stack::get().await;
    let before = stack.pods("api").await;
    let report = through(&stack, async || {
        let bytes = 200_000_000 + std::process::id();
        stack.patch(&json!({"cache": {"nearMemory": bytes.to_string()}})).await;
        kill_the_operator(&stack).await;
        stack.until_replaced("api", &before, Duration::from_mins(3)).await;
    })
    .await;
    figure(&format!("operator killed during a rollout: {report}"));
    assert!(report.searches().is_flawless(), "{report}");
}

#[tokio::test]
async fn a_failover_needs_no_operator() {
    let (stack, _) = Stack::get().await;
    let primary = stack.primary().await.unwrap();
    let report = through(&stack, async || {
        kill_the_operator(&stack).await;
        stack.delete_pods("postgres", &format!("--field-selector metadata.name={primary}")).await;
    })
    .await;
    figure(&format!(
        "operator and primary killed: {:.1} s without writes; {report}",
        report.without_writes()
    ));
    assert!(report.of(Kind::Write).longest_gap_ms < 20_000, "{report}");
}

#[tokio::test]
async fn no_pod_of_the_stack_restarts_when_the_operator_is_upgraded() {
    let (stack, _) = Stack::get().await;
    let all = async || {
        let list = stack.cluster.get(&format!("pods -n {NAMESPACE}")).await;
        let pods = list["items"].as_array().unwrap().iter();
        pods.map(|pod| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            (pod["metadata"]["uid"].clone(), restarts.clone())
        })
        .collect::<Vec<_>>()
    };
    let before = all().await;
    let upgrade = format!(
        "helm upgrade sextant charts/sextant --namespace sextant --wait --reuse-values \
         --set-string podAnnotations.upgrade=u{}",
        std::process::id()
    );
    let report = through(&stack, async || {
        stack.cluster.sh(&upgrade).await;
    })
    .await;
    figure(&format!("operator upgraded: {report}"));
    assert_eq!(all().await, before);
    assert!(report.searches().is_flawless(), "{report}");
    assert_eq!(report.of(Kind::Write).failed, 0, "{report}");
}
