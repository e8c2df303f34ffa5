//! A volume without room.

use std::time::Duration;

use serde_json::json;
use sextant_e2e::load::Kind;

use crate::support::{AROUND, NAME, Stack, figure, through, until};

/// Of a stack whose volumes of Postgres are file systems of their own.
const NAMESPACE: &str = "narrow";
const FILLER: &str = "/var/lib/postgresql/data/filler";

fn manifest() -> String {
    let small = json!({"requests": {"cpu": "50m", "memory": "256Mi"}});
    let object = json!({
        "apiVersion": "sextant.dev/v1alpha1", "kind": "SearchDeployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "deletionPolicy": "Delete",
            "api": {"resources": small},
            "postgres": {
                "resources": small,
                "storage": {"size": "512Mi", "storageClass": "bounded"},
            },
            "milvus": {"resources": small},
        },
    });
    object.to_string()
}

#[tokio::test]
async fn a_full_volume_is_told_of_the_rest_serves_and_with_room_all_is_well_again() {
    let (shared, _) = Stack::get().await;
    if !shared.cluster.is_own {
        println!("not run: only `make cluster-up` has volumes that can be full");
        return;
    }
    let stack = Stack { cluster: shared.cluster, namespace: NAMESPACE };
    let remove = format!(
        "kubectl delete searchdeployments --all -n {NAMESPACE} --wait --timeout=3m
        kubectl delete namespace {NAMESPACE} --ignore-not-found --wait --timeout=3m"
    );
    stack.cluster.sh(&remove).await;
    let apply = format!(
        "kubectl create namespace {NAMESPACE}\nkubectl apply -f - <<'END'\n{}\nEND",
        manifest()
    );
    stack.cluster.sh(&apply).await;
    stack.whole(Duration::from_mins(5)).await;
    stack.load().begin().await;

    let full = stack.primary().await.unwrap();
    let on_it = async |script: &str| {
        stack.cluster.sh(&format!("kubectl exec -n {NAMESPACE} {full} -- sh -c '{script}'")).await;
    };
    let words = format!("the volume of {full} is nearly full: 0 of");
    let report = through(&stack, async || {
        on_it(&format!("cat /dev/zero >{FILLER} || true")).await;
        until("the words", Duration::from_secs(40), async || {
            let (_, degraded, _) = stack.condition("Degraded").await;
            let (_, _, message) = stack.condition("PostgresReady").await;
            let told = degraded == "LowDiskSpace" && message.contains(&words);
            if told { Ok(()) } else { Err(format!("{degraded}: {message}")) }
        })
        .await;
        tokio::time::sleep(AROUND).await;
        on_it(&format!("rm {FILLER}")).await;
        until("that it is taken back", Duration::from_mins(2), async || {
            let (_, _, message) = stack.condition("PostgresReady").await;
            if message.contains("full") { Err(message) } else { Ok(()) }
        })
        .await;
    })
    .await;
    figure(&format!(
        "primary's volume full: {:.1} s without writes; {report}",
        report.without_writes()
    ));
    assert!(report.of(Kind::CachedSearch).is_flawless(), "{report}");
    stack.cluster.sh(&remove).await;
}
