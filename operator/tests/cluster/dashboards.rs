//! The dashboards' panels about the operator, on a real Prometheus that scrapes it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use sextant_dashboards::expression::Source;
use sextant_dashboards::look::{Client, now};
use sextant_dashboards::picture;
use sextant_dashboards::shown::Board;
use sextant_stack::prometheus::{Prometheus, Target};

use crate::support::{TestCluster, repository};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn each_panel_about_the_operator_has_data_and_is_drawn() {
    let cluster = TestCluster::start().await;
    let operator = cluster.operator().await;
    let folder = tempfile::tempdir().unwrap();
    let rules = std::fs::read_to_string(repository("charts/sextant/files/alerts.yaml")).unwrap();
    // What it tells of a SearchDeployment has that one's namespace already.
    let labels = vec![("pod", "sextant-operator-0".to_owned())];
    let target = Target { address: operator.address(), labels };
    let start = now();
    let prometheus = Prometheus::start(folder.path(), &[target], &rules, 1).await.unwrap();
    let client = Client(async |path: String| prometheus.get(&path).await.unwrap());
    let until = async |expression: &str| {
        let holds = || async { client.holds(expression).await };
        sextant_stack::until(expression, holds).await.unwrap();
    };

    // Before there is anything to count: what was there at the first scrape has no rate.
    until("sextant_operator_is_leader == 1").await;
    cluster.apply("gym", json!({})).await.unwrap();
    cluster.ready("gym").await;
    // One fault: these volumes cannot grow.
    let larger = json!({"postgres": {"storage": {"size": "20Gi"}}});
    cluster.apply("gym", larger).await.unwrap();
    until("sum(sextant_operator_reconcile_failures_total) > 0").await;

    let boards = Board::read_all(&repository("charts/sextant/files/dashboards")).unwrap();
    let look = client.look(&boards, &[Source::Operator], start, PATIENCE).await.unwrap();
    let pages = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dashboards-operator");
    picture::write(&pages, &boards, &look).unwrap();
    println!("pages with the dashboards' panels are in {}", pages.display());
    assert!(look.faults.is_empty(), "{:#?}", look.faults);
}
