//! The dashboards on a real Prometheus that scrapes a whole stack, and a cluster of Milvus with its
//! real roles: everything that has metrics.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use sextant_dashboards::expression::Source;
use sextant_dashboards::look::{Client, now};
use sextant_dashboards::picture;
use sextant_dashboards::shown::Board;
use sextant_e2e::load::Rates;
use sextant_stack::prometheus::{Prometheus, Target};

use crate::milvus_cluster;
use crate::support::{Forward, Load, NAME, NAMESPACE, Stack, repository, until};

/// What only a cluster has. Panels of servers and operator are looked at by tests that have them do all
/// that there is to see.
const HERE: [Source; 3] = [Source::Patroni, Source::Redis, Source::Milvus];
/// Between scrapes. Patroni ends its answers by closing the connection, which containerd passes on a second
/// late when the port is forwarded.
const SECONDS: u32 = 3;
const RATES: Rates = Rates { searches_per_second: 4.0, writes_per_second: 2.0 };
/// Namespace, component and port of what is scraped, beside the operator.
const SCRAPED: [(&str, &str, u16); 8] = [
    (NAMESPACE, "api", 8080),
    (NAMESPACE, "redis", 9121),
    (NAMESPACE, "postgres", 8008),
    (milvus_cluster::NAMESPACE, "api", 8080),
    (milvus_cluster::NAMESPACE, "milvus-proxy", 9091),
    (milvus_cluster::NAMESPACE, "milvus-coordinator", 9091),
    (milvus_cluster::NAMESPACE, "milvus-querynode", 9091),
    (milvus_cluster::NAMESPACE, "milvus-datanode", 9091),
];

#[tokio::test]
async fn each_panel_of_the_dashboards_has_data_on_a_cluster() {
    let (stack, _) = Stack::get().await;
    stack.patch(&json!({"cache": {"exporter": {"enabled": true}}})).await;
    milvus_cluster::with_cluster(async |cluster| {
        stack.whole(Duration::from_mins(3)).await;
        let (mut forwards, mut targets) = (Vec::new(), Vec::new());
        let mut scrape = async |namespace: &str, pod: &str, port, labels: Vec<_>| {
            let forward = Forward::to_pod(cluster, namespace, pod, port).await;
            targets.push(Target { address: forward.address.clone(), labels });
            forwards.push(forward);
        };
        for (namespace, component, port) in SCRAPED {
            let label = format!("app.kubernetes.io/component={component}");
            for pod in cluster.pods(namespace, &label).await {
                let pod = pod["metadata"]["name"].as_str().unwrap();
                let labels = [
                    ("namespace", namespace),
                    ("search_deployment", NAME),
                    ("component", component),
                    ("pod", pod),
                ];
                let labels = labels.map(|(name, value)| (name, value.to_owned())).into();
                scrape(namespace, pod, port, labels).await;
            }
        }
        for pod in cluster.pods("sextant", "app.kubernetes.io/name=sextant-operator").await {
            let pod = pod["metadata"]["name"].as_str().unwrap();
            scrape("sextant", pod, 8081, vec![("pod", pod.to_owned())]).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let rules = repository("charts/sextant/files/alerts.yaml");
        let rules = std::fs::read_to_string(rules).unwrap();
        let start = now();
        let prometheus = Prometheus::start(folder.path(), &targets, &rules, SECONDS).await.unwrap();
        let client = Client(async |path: String| prometheus.get(&path).await.unwrap());

        let loads =
            [NAMESPACE, milvus_cluster::NAMESPACE].map(|namespace| Load { cluster, namespace });
        loads[1].begin().await;
        for load in &loads {
            load.start(RATES).await;
        }
        let scraped = format!("count(sum_over_time(up[5m]) >= 15) == {}", targets.len());
        until("everything is scraped", Duration::from_mins(2), async || {
            client.holds(&scraped).await.then_some(()).ok_or_else(|| scraped.clone())
        })
        .await;
        // One fault.
        stack.kill_postgres(&stack.primary().await.unwrap()).await;
        stack.whole(Duration::from_mins(3)).await;

        let boards = Board::read_all(&repository("charts/sextant/files/dashboards")).unwrap();
        let look = client.look(&boards, &HERE, start, Duration::from_mins(1)).await;
        for load in &loads {
            load.stop().await;
        }
        let look = look.unwrap();
        let pages = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dashboards-cluster");
        picture::write(&pages, &boards, &look).unwrap();
        println!("pages with the dashboards are in {}", pages.display());
        assert!(look.faults.is_empty(), "{:#?}", look.faults);
    })
    .await;
    stack.patch(&json!({"cache": {"exporter": null}})).await;
    stack.whole(Duration::from_mins(3)).await;
}
