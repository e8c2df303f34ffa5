//! What cannot work is told in words; the rest goes on serving, and is whole again when the cause is gone.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{NAMESPACE, Stack, figure, through, try_until};

/// Brings a fault about by a change of the spec, waits until the condition names it in these words,
/// and mends it. No search fails meanwhile.
async fn told_and_mended(fault: Value, mended: Value, condition: &str, words: &[&str]) {
    let (stack, _) = Stack::get().await;
    let mut told = Err(String::new());
    let report = through(&stack, async || {
        stack.patch(&fault).await;
        told = try_until("the words", Duration::from_mins(2), async || {
            let (status, _, message) = stack.condition(condition).await;
            let all = status == "False" && words.iter().all(|word| message.contains(word));
            if all { Ok(message) } else { Err(format!("{condition}: {status}: {message}")) }
        })
        .await;
        stack.patch(&mended).await;
    })
    .await;
    figure(&format!("told: {condition}: {}", told.unwrap()));
    assert!(report.searches().is_flawless(), "{report}");
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_told_of() {
    let version = env!("CARGO_PKG_VERSION");
    let words = ["sextant-api", "ImagePull", "sextant-server:9.9.9"];
    told_and_mended(json!({"version": "9.9.9"}), json!({"version": version}), "ApiReady", &words)
        .await;
}

#[tokio::test]
async fn pods_that_fit_on_no_node_are_told_of() {
    let fault = json!({"api": {"resources": {"requests": {"cpu": "1000"}}}});
    let words = ["sextant-api", "Insufficient cpu"];
    told_and_mended(fault, json!({"api": {"resources": null}}), "ApiReady", &words).await;
}

#[tokio::test]
async fn pods_that_end_again_and_again_are_told_of_with_their_last_words() {
    let fault = json!({"api": {"resources": {"limits": {"memory": "48Mi"}, "requests": {"memory": "48Mi"}}}});
    let words = ["sextant-api", "CrashLoopBackOff", "OOMKilled"];
    told_and_mended(fault, json!({"api": {"resources": null}}), "ApiReady", &words).await;
}

#[tokio::test]
async fn a_quota_that_is_used_up_is_told_of() {
    let (stack, _) = Stack::get().await;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "e2e", "namespace": NAMESPACE},
        "spec": {"hard": {"count/pods": "1"}},
    });
    stack.cluster.sh(&format!("kubectl apply -f - <<'END'\n{quota}\nEND")).await;
    let words = ["sextant-api", "exceeded quota: e2e"];
    let fault = json!({"api": {"replicas": 3}});
    told_and_mended(fault, json!({"api": {"replicas": null}}), "ApiReady", &words).await;
    stack.cluster.sh(&format!("kubectl delete resourcequota -n {NAMESPACE} e2e")).await;
}

#[tokio::test]
async fn a_secret_that_does_not_exist_is_told_of() {
    let fault = json!({"api": {"keysSecret": "nobody-made-it"}});
    let words = ["nobody-made-it"];
    told_and_mended(fault, json!({"api": {"keysSecret": null}}), "ApiReady", &words).await;
}

#[tokio::test]
async fn a_secret_that_holds_something_else_is_told_of_in_the_words_of_the_server() {
    let (stack, _) = Stack::get().await;
    let secret = format!(
        "kubectl create secret generic -n {NAMESPACE} wrong --from-literal=keys.yaml=nonsense"
    );
    stack.cluster.sh(&secret).await;
    let words = ["sextant-api", "CrashLoopBackOff", "keys.yaml"];
    let fault = json!({"api": {"keysSecret": "wrong"}});
    told_and_mended(fault, json!({"api": {"keysSecret": null}}), "ApiReady", &words).await;
    stack.cluster.sh(&format!("kubectl delete secret -n {NAMESPACE} wrong")).await;
}

#[tokio::test]
async fn a_pod_that_never_gets_ready_is_told_of() {
    // So little that its start takes longer than anybody waits.
    let fault =
        json!({"api": {"resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "10m"}}}});
    let words = ["sextant-api", "readiness probe fails"];
    told_and_mended(fault, json!({"api": {"resources": null}}), "ApiReady", &words).await;
}
