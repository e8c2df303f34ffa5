//! The index in a Milvus that has no full text keeps the contract on a real server, version 2.3.5.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sextant_server::adapters::index::milvus::v1::MilvusV1Index;
use sextant_server::adapters::index::milvus::{MilvusIndex, MilvusOptions};
use sextant_server::metrics::Metrics;
use sextant_stack::milvus::MilvusStandalone;
use sextant_stack::until;

use super::milvus::options;
use super::*;
use crate::app::{Setup, TestApp, ids};

static PREFIXES: AtomicU32 = AtomicU32::new(0);

/// The server that the tests share, each with a prefix of its own.
fn shared() -> String {
    MilvusStandalone::shared().unwrap().endpoint()
}

fn connect(options: MilvusOptions) -> MilvusV1Index {
    MilvusV1Index::connect(options, Arc::new(Metrics::new())).unwrap()
}

fn prefix() -> String {
    format!("contract{}", PREFIXES.fetch_add(1, Ordering::Relaxed))
}

struct OldMilvusPlace {
    prefix: String,
}

#[async_trait]
impl Place for OldMilvusPlace {
    async fn index(&self) -> Arc<dyn SearchIndex> {
        Arc::new(connect(options(&shared(), &self.prefix)))
    }
}

index_contract!(contract, OldMilvusPlace { prefix: prefix() });

fn is_unavailable<T>(outcome: &Result<T, IndexError>) -> bool {
    matches!(outcome, Err(IndexError::Unavailable { .. }))
}

#[tokio::test]
async fn a_server_that_was_killed_is_used_again_when_it_is_back() {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let folder = tempfile::tempdir().unwrap();
    let mut server = MilvusStandalone::start(folder.path()).await.unwrap();
    let own = MilvusOptions {
        timeout: TIMEOUT,
        connect_timeout: TIMEOUT / 5,
        ..options(&server.endpoint(), "own")
    };
    let index = connect(own);
    let wanted = collection(ID, DIMENSION);
    until("the collection", || async { index.open(&wanted).await.is_ok() }).await.unwrap();
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let before = answers(&index).await;
    server.process().kill().await.unwrap();
    let search = || index.nearest(ID, vector(1), None, 5);
    let started = Instant::now();
    assert!(is_unavailable(&search().await));
    assert!(started.elapsed() < TIMEOUT + Duration::from_secs(1));
    server.restart().await.unwrap();
    // What it answers meanwhile has all documents, or is no answer.
    let back = || async {
        match search().await {
            Ok(hits) => {
                assert_eq!(hits.len(), 5);
                true
            }
            Err(_) => false,
        }
    };
    until("a search", back).await.unwrap();
    assert_eq!(answers(&index).await, before);
    assert_eq!(index.open(&wanted).await.unwrap(), 1);
}

#[tokio::test]
async fn an_answer_without_the_documents_that_are_there_is_no_answer() {
    let prefix = prefix();
    let timeout = Duration::from_secs(5);
    let index = connect(MilvusOptions { timeout, ..options(&shared(), &prefix) });
    index.open(&collection(ID, DIMENSION)).await.unwrap();
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    assert_eq!(index.nearest(ID, vector(1), None, 5).await.unwrap().len(), 5);
    // As a server does that lost its data: everything is gone, and nobody said so.
    let other = connect(options(&shared(), &prefix));
    other.open(&collection(ID, DIMENSION)).await.unwrap();
    let deletes = (1..=40).collect();
    let changes = Changes { generation: 2, deletes, ..Changes::default() };
    other.apply(ID, changes.clone()).await.unwrap();
    assert!(is_unavailable(&index.nearest(ID, vector(1), None, 5).await));
    let easy = must(vec![is("level", "easy")]);
    assert!(is_unavailable(&index.nearest(ID, vector(1), easy, 5).await));
    assert!(is_unavailable(&index.count(ID).await));
    let facets = index.facets(ID, None, None, &["level".to_owned()], 5).await;
    assert!(is_unavailable(&facets));
    // What it was told to delete it may be without.
    index.apply(ID, changes).await.unwrap();
    assert_eq!(index.nearest(ID, vector(1), None, 5).await.unwrap(), []);
}

#[tokio::test]
async fn searches_by_words_are_refused_in_words_and_those_without_a_mode_are_dense() {
    let index = Arc::new(connect(options(&shared(), &prefix())));
    let app = TestApp::with(Setup { index: Some(index), ..Setup::default() }).await;
    app.put("/v1/collections/gym", json!({"default_mode": "hybrid"})).await.ok();
    app.post("/v1/collections/gym/documents", crate::app::exercises()).await.ok();
    for mode in ["hybrid", "lexical"] {
        let body = json!({"query": "squat", "mode": mode, "facets": ["level"]});
        let problem = app.search(body).await.problem(422, "invalid");
        assert_eq!(problem["errors"][0]["path"], "mode", "{problem}");
        let message = problem["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains("2.5") && message.contains("dense"), "{message}");
    }
    let found = app.search(json!({"query": "squat", "facets": ["level"]})).await.ok();
    assert_eq!(found["mode"], "dense");
    assert_eq!(ids(&found).len(), 5);
    assert_eq!(found["facets"]["level"][0]["count"], 3, "{found}");
}

#[tokio::test]
async fn the_client_for_newer_servers_names_the_setting_for_older_ones() {
    let options = options(&shared(), &prefix());
    let index = MilvusIndex::connect(options, Arc::new(Metrics::new())).unwrap();
    let outcome = index.open(&collection(ID, DIMENSION)).await;
    let Err(IndexError::Io { source, .. }) = outcome else { panic!("{outcome:?}") };
    let reason = source.to_string();
    assert!(reason.contains("`milvus.client` to v1") && reason.contains("2.3.5"), "{reason}");
}
