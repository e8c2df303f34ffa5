//! A cluster of Milvus with its real roles, processes of 2.3.5, over Kafka, etcd and S3.

use std::time::{Duration, Instant};

use sextant_e2e::load::{Rates, Report};

use crate::support::{AROUND, Cluster, Load, Stack, figure, free_port, processes_of, until};

pub const NAMESPACE: &str = "vectors";
const MANIFESTS: &str = "tests/e2e/tests/milvus-cluster.yaml";
const QUERY_NODES: &str = "pods -n vectors -l app.kubernetes.io/component=milvus-querynode";
const SERVERS: &str = "pods -n vectors -l app.kubernetes.io/component=api";
const RATES: Rates = Rates { searches_per_second: 10.0, writes_per_second: 5.0 };
/// Without a failure, after which everything is taken to be well again.
const WELL: Duration = Duration::from_secs(10);

/// The cluster, as long as the work takes.
pub async fn with_cluster(work: impl AsyncFnOnce(&Cluster)) {
    let (stack, _) = Stack::get().await;
    let cluster = &stack.cluster;
    let delete = format!("kubectl delete -f {MANIFESTS} --ignore-not-found --wait --timeout=5m");
    cluster.sh(&delete).await;
    cluster.sh(&format!("kubectl apply -f {MANIFESTS}")).await;
    until_ready(cluster).await;
    work(cluster).await;
    cluster.sh(&delete).await;
}

/// Until all is ready, and no server of an older configuration is about to end: that one would still
/// make collections.
async fn until_ready(cluster: &Cluster) {
    until("the cluster", Duration::from_mins(5), async || {
        let object = cluster.get(&format!("searchdeployment -n {NAMESPACE} sextant")).await;
        let status = &object["status"];
        let is_observed = object["metadata"]["generation"] == status["observedGeneration"];
        let servers = cluster.get(SERVERS).await["items"].as_array().map(Vec::len);
        let ready = is_observed && status["phase"] == "Ready" && servers == Some(1);
        if ready { Ok(()) } else { Err(status["conditions"].to_string()) }
    })
    .await;
}

/// Asks the server: `ask PATH…` is curl with the key, `$url` its collections.
async fn ask(cluster: &Cluster, script: &str) -> String {
    let script = format!(
        "kubectl port-forward -n {NAMESPACE} service/sextant-api {port}:80 >/dev/null &
        trap 'kill $(jobs -p)' EXIT
        url=http://127.0.0.1:{port}/v1/collections
        key=$(kubectl get secret -n {NAMESPACE} sextant-api-keys -o jsonpath='{{.data.admin}}' | base64 -d)
        ask() {{ curl -sS --fail-with-body --retry 9 --retry-connrefused -H @<(echo \"Authorization: Bearer $key\") \"$@\"; }}
        {script}",
        port = free_port(),
    );
    cluster.sh(&script).await
}

#[tokio::test]
async fn documents_are_written_to_and_found_in_a_cluster_of_milvus() {
    let begin = Instant::now();
    with_cluster(async |cluster| {
        let ready = begin.elapsed();
        let script = "
            ask -X PUT $url/exercises -H 'Content-Type: application/json' \
                -d '{\"text_fields\": [\"name\", \"description\"]}' >/dev/null
            ask \"$url/exercises/documents?wait=true\" -H 'Content-Type: application/x-ndjson' \
                --data-binary @deploy/samples/exercises.ndjson >/dev/null
            ask \"$url/exercises/search?query=stiff+lower+back&limit=3&mode=dense\"";
        let found = ask(cluster, script).await;
        assert!(found.contains("\"hits\":[{\"id\":"), "{found}");
        figure(&format!(
            "Milvus with its roles: ready after {:.1} s, found after {:.1} s",
            ready.as_secs_f64(),
            begin.elapsed().as_secs_f64(),
        ));
    })
    .await;
}

/// Kills each of the query nodes in turn, with -9, under load, with time between them. One that is told to
/// end hands what it holds over before, and nobody notices. What came of it, and the
/// longest time until everything was well again.
async fn lose_query_nodes(cluster: &Cluster, load: &Load<'_>) -> (Report, Duration) {
    load.start(RATES).await;
    tokio::time::sleep(AROUND).await;
    let mut longest = Duration::ZERO;
    let nodes = cluster.get(QUERY_NODES).await["items"].as_array().unwrap().clone();
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        let processes = processes_of(node["metadata"]["uid"].as_str().unwrap(), "milvus");
        assert_eq!(processes.len(), 1, "{processes:?}");
        let begin = Instant::now();
        cluster.sh(&format!("kill -9 {}", processes[0])).await;
        let (mut seen, mut last) = (load.so_far().await.searches().bad(), begin);
        until("no more failures", Duration::from_mins(3), async || {
            let bad = load.so_far().await.searches().bad();
            if bad != seen {
                (seen, last) = (bad, Instant::now());
            }
            if last.elapsed() > WELL { Ok(()) } else { Err(format!("{bad} bad answers")) }
        })
        .await;
        longest = longest.max(last - begin);
        until_ready(cluster).await;
        // Milvus spreads the copies anew.
        tokio::time::sleep(WELL).await;
    }
    let report = load.stop().await;
    let (acknowledged, missing) = load.lost().await;
    assert!(missing.is_empty(), "of {acknowledged} acknowledged writes {missing:?}; {report}");
    (report, longest)
}

#[tokio::test]
async fn the_loss_of_a_query_node_is_not_noticed_where_another_has_a_copy() {
    with_cluster(async |cluster| {
        if !cluster.is_own {
            println!("not run: only processes of `make cluster-up` are killed");
            return;
        }
        let load = Load { cluster, namespace: NAMESPACE };
        load.begin().await;
        let (one, longest) = lose_query_nodes(cluster, &load).await;
        figure(&format!(
            "query nodes killed, one copy: well again after {:.1} s; {one}",
            longest.as_secs_f64()
        ));
        let reasons = format!(
            r#"kubectl logs -n {NAMESPACE} -l app.kubernetes.io/component=api --tail=-1 |
                grep 'request failed' | grep -oE '"?error"?[:=].*' | cut -c1-300 |
                sed -E 's/","request_id.*//; s/[0-9]{{4,}}/N/g; s/[0-9.]+ms/N ms/' | sort | uniq -c | sort -rn | head -8"#
        );
        figure(&format!("servers said:\n{}", cluster.sh(&reasons).await));
        let patch = r#"{"spec": {"milvus": {"replicaNumber": 2}}}"#;
        let target = format!("searchdeployment -n {NAMESPACE} sextant");
        cluster.sh(&format!("kubectl patch {target} --type merge -p '{patch}'")).await;
        until_ready(cluster).await;
        // This Milvus gives copies to new collections only.
        ask(cluster, "for name in exercises ledger; do ask -X DELETE $url/$name >/dev/null; done")
            .await;
        load.begin().await;
        let (two, longest) = lose_query_nodes(cluster, &load).await;
        figure(&format!(
            "query nodes killed, two copies: well again after {:.1} s; {two}",
            longest.as_secs_f64()
        ));
        for report in [&one, &two] {
            let searches = report.searches();
            assert_eq!((searches.empty, searches.wrong), (0, 0), "{report}");
        }
        assert!(two.searches().is_flawless(), "{two}");
    })
    .await;
}
