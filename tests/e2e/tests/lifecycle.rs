//! Paused, hibernated, deleted and made again: what was there is there.

use std::time::Duration;

use serde_json::json;

use crate::support::{NAME, NAMESPACE, Stack, figure, until};

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
    until("no pods", Duration::from_mins(3), async || {
        let pods = stack
            .cluster
            .get(&format!("pods -n {NAMESPACE} -l app.kubernetes.io/instance={NAME}"))
            .await;
        let left = pods["items"].as_array().unwrap().len();
        let phase = stack.status().await["phase"].clone();
        if left == 0 && phase == "Hibernated" {
            Ok(())
        } else {
            Err(format!("{left} pods, {phase}"))
        }
    })
    .await;
    let begin = std::time::Instant::now();
    stack.patch(&json!({"hibernate": null})).await;
    stack.whole(Duration::from_mins(3)).await;
    figure(&format!("woken from hibernation: whole after {:.1} s", begin.elapsed().as_secs_f64()));
    assert_eq!(stack.load().learn().await, before);
}

#[tokio::test]
async fn what_was_deleted_under_retain_is_there_when_it_is_applied_again() {
    let (stack, _) = Stack::get().await;
    let before = stack.load().learn().await;
    let object = format!("searchdeployment -n {NAMESPACE} {NAME}");
    stack.cluster.sh(&format!("kubectl delete {object} --wait --timeout=3m")).await;
    until("no pods", Duration::from_mins(3), async || {
        let pods = stack
            .cluster
            .get(&format!("pods -n {NAMESPACE} -l app.kubernetes.io/instance={NAME}"))
            .await;
        let left = pods["items"].as_array().unwrap().len();
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    })
    .await;
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
