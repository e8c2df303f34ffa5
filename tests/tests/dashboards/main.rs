//! The dashboards on a real Prometheus that scrapes what `make run-full` starts: nginx before three
//! servers with the model, Postgres with a replica, Redis and Milvus; under load, while Milvus is
//! lost and comes back. Each panel whose metrics are exported there must have data.
//!
//! Panels about the operator are looked at in `operator/tests/cluster/dashboards.rs`. Those of
//! Patroni, of Redis's exporter and of Milvus need a cluster: here they are only parsed.
#![allow(clippy::unwrap_used, reason = "test code")]

mod load;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sextant_dashboards::expression::Source;
use sextant_dashboards::look::{Client, Look, now};
use sextant_dashboards::picture::{self, Page};
use sextant_dashboards::shown::Board;
use sextant_stack::prometheus::{Prometheus, Target};
use sextant_stack::proxy::Nginx;
use sextant_tests::browser::Browser;
use sextant_tests::production::Stores;
use sextant_tests::{Api, Options, Server, eventually, repository};

use self::load::Load;

const COLLECTION: &str = "exercises";
const SERVERS: usize = 3;
/// Few, so that the model has them soon.
const DOCUMENTS: usize = 100;
const HERE: [Source; 1] = [Source::Server];
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_panel_about_the_servers_has_data_and_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let mut stores = Stores::start().await;
    let starting = (0..SERVERS).map(|_| Server::start(stores.options(Options::model())));
    let servers = futures::future::join_all(starting).await;
    let addresses: Vec<_> =
        servers.iter().map(|server| server.address().parse().unwrap()).collect();
    let nginx = Nginx::start(&folder.path().join("nginx"), &addresses).await.unwrap();
    let rules = std::fs::read_to_string(repository("charts/sextant/files/alerts.yaml")).unwrap();
    let targets: Vec<_> = servers.iter().enumerate().map(target).collect();
    let start = now();
    let prometheus =
        Prometheus::start(&folder.path().join("prometheus"), &targets, &rules, 1).await.unwrap();
    let client = Client(async |path: String| prometheus.get(&path).await.unwrap());
    let until = async |expression: &str| {
        eventually(expression, async || client.holds(expression).await.then_some(())).await;
    };

    // Before there is anything to count: what was there at the first scrape has no rate.
    until(&format!("count(sextant_build_info) == {SERVERS}")).await;
    let api = Api::new(&format!("http://{}", nginx.address()));
    let documents = import(&api, &servers).await;
    until(&format!("count(sextant_documents == {DOCUMENTS}) == {SERVERS}")).await;
    let load = Load::start(&api, &documents);
    // So that the pictures have a time without a fault to show.
    until("min(count_over_time(sextant_build_info[5m])) >= 15").await;

    stores.milvus.process().kill().await.unwrap();
    until(r#"max(sextant_breaker_open{part="index"}) == 1"#).await;
    until("sum(sextant_degraded_responses_total) > 0").await;
    stores.milvus.restart().await.unwrap();
    until("max(sextant_breaker_open) == 0").await;

    let boards = Board::read_all(&repository("charts/sextant/files/dashboards")).unwrap();
    let look = client.look(&boards, &HERE, start, PATIENCE).await;
    load.stop().await;
    let look = look.unwrap();
    draw(&boards, &look).await;
    tell_what_was_not_looked_at(&boards, &look);
    assert!(look.faults.is_empty(), "{:#?}", look.faults);
}

/// A server, with the labels that the operator's ServiceMonitors add.
fn target((number, server): (usize, &Server)) -> Target {
    let labels = [
        ("namespace", "default".to_owned()),
        ("search_deployment", "sextant".to_owned()),
        ("component", "api".to_owned()),
        ("pod", format!("sextant-api-{number}")),
    ];
    Target { address: server.address().to_owned(), labels: labels.into() }
}

/// Fills the collection; its documents.
async fn import(api: &Api, servers: &[Server]) -> Vec<Value> {
    let path = format!("/v1/collections/{COLLECTION}");
    api.put(&path, &json!({})).await.ok();
    for server in servers {
        eventually("a server to know the collection", async || {
            server.api.get(&path).await.status.is_success().then_some(())
        })
        .await;
    }
    let samples = repository("deploy/samples/exercises.ndjson");
    let samples = std::fs::read_to_string(samples).unwrap();
    let lines: Vec<&str> = samples.lines().take(DOCUMENTS).collect();
    api.import(COLLECTION, lines.join("\n")).await.ok();
    lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each dashboard as a page, and as a picture of that.
async fn draw(boards: &[Board], look: &Look) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dashboards");
    let browser = Browser::start(picture::WIDTH, 1000).await;
    for page in picture::write(&folder, boards, look).unwrap() {
        photograph(&browser, &page).await;
    }
    browser.close().await;
    println!("pictures of the dashboards are in {}", folder.display());
}

/// Of the whole page, beside it.
async fn photograph(browser: &Browser, page: &Page) {
    browser.page.goto(&format!("file://{}", page.path.display())).await.unwrap();
    let metrics = json!({
        "width": picture::WIDTH, "height": page.height, "deviceScaleFactor": 1, "mobile": false,
    });
    browser.devtools("Emulation.setDeviceMetricsOverride", &metrics).await;
    let picture = browser.page.screenshot().await.unwrap();
    std::fs::write(page.path.with_extension("png"), picture).unwrap();
}

fn tell_what_was_not_looked_at(boards: &[Board], look: &Look) {
    for (board, seen) in boards.iter().zip(&look.seen) {
        for (panel, seen) in board.panels.iter().zip(seen) {
            if !seen.needs.is_empty() {
                println!("{}: {}: not looked at, needs {:?}", board.name, panel.title, seen.needs);
            }
        }
    }
}
