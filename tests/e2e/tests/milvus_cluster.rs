//! A cluster of Milvus with its real roles, processes of 2.3.5, over Kafka, etcd and S3.

use std::time::{Duration, Instant};

use crate::support::{Stack, figure, free_port, until};

const NAMESPACE: &str = "vectors";

#[tokio::test]
async fn documents_are_written_to_and_found_in_a_cluster_of_milvus() {
    let (stack, _) = Stack::get().await;
    let cluster = &stack.cluster;
    let begin = Instant::now();
    cluster.sh("kubectl apply -f tests/e2e/tests/milvus-cluster.yaml").await;
    until("the cluster", Duration::from_mins(5), async || {
        let object = cluster.get(&format!("searchdeployment -n {NAMESPACE} sextant")).await;
        let status = &object["status"];
        if status["phase"] == "Ready" { Ok(()) } else { Err(status["conditions"].to_string()) }
    })
    .await;
    let ready = begin.elapsed();
    let script = format!(
        "kubectl port-forward -n {NAMESPACE} service/sextant-api {port}:80 >/dev/null &
        trap 'kill $(jobs -p)' EXIT
        url=http://127.0.0.1:{port}/v1/collections/exercises
        key=$(kubectl get secret -n {NAMESPACE} sextant-api-keys -o jsonpath='{{.data.admin}}' | base64 -d)
        ask() {{ curl -sS --fail-with-body -H @<(echo \"Authorization: Bearer $key\") \"$@\"; }}
        ask --retry 9 --retry-connrefused -X PUT $url -H 'Content-Type: application/json' \
            -d '{{\"text_fields\": [\"name\", \"description\"]}}' >/dev/null
        ask \"$url/documents?wait=true\" -H 'Content-Type: application/x-ndjson' \
            --data-binary @deploy/samples/exercises.ndjson >/dev/null
        ask \"$url/search?query=stiff+lower+back&limit=3&mode=dense\"",
        port = free_port(),
    );
    let found = cluster.sh(&script).await;
    assert!(found.contains("\"hits\":[{\"id\":"), "{found}");
    figure(&format!(
        "Milvus with its roles: ready after {:.1} s, found after {:.1} s",
        ready.as_secs_f64(),
        begin.elapsed().as_secs_f64(),
    ));
    cluster.sh("kubectl delete -f tests/e2e/tests/milvus-cluster.yaml --wait=false").await;
}
