//! The index in Milvus keeps the contract on a real server, and answers in time when the server
//! does not.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ::milvus::v2::prelude::{
    ClientV2, ConnectConfig, ConsistencyLevel, QueryRequest, RetryConfig, TelemetryConfig,
};
use sextant_server::adapters::index::milvus::{Consistency, MilvusIndex, MilvusOptions};
use sextant_server::metrics::Metrics;
use sextant_stack::milvus::MilvusLite;
use sextant_stack::until;
use tempfile::TempDir;

use super::*;

static PREFIXES: AtomicU32 = AtomicU32::new(0);

/// Where the server is that the contract's tests share, each with a prefix of its own.
pub async fn shared() -> String {
    tokio::task::spawn_blocking(MilvusLite::shared).await.unwrap().unwrap().endpoint()
}

pub fn prefix() -> String {
    format!("contract{}", PREFIXES.fetch_add(1, Ordering::Relaxed))
}

pub fn options(endpoint: &str, prefix: &str) -> MilvusOptions {
    MilvusOptions {
        endpoints: vec![endpoint.to_owned()],
        user: String::new(),
        password: String::new(),
        prefix: prefix.to_owned(),
        replica_number: 1,
        timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(5),
        consistency: Consistency::Strong,
    }
}

fn connect(options: MilvusOptions) -> MilvusIndex {
    MilvusIndex::connect(options, Arc::new(Metrics::new())).unwrap()
}

struct MilvusPlace {
    prefix: String,
}

impl MilvusPlace {
    fn new() -> Self {
        Self { prefix: prefix() }
    }
}

#[async_trait]
impl Place for MilvusPlace {
    async fn index(&self) -> Arc<dyn SearchIndex> {
        Arc::new(connect(options(&shared().await, &self.prefix)))
    }

    fn not_offered(&self, case: &str) -> Option<&'static str> {
        (case == "a_filter_changes_no_score").then_some(
            "milvus-lite weighs words of rows that it has not written to files yet by those rows \
             alone that match the filter",
        )
    }
}

index_contract!(contract, MilvusPlace::new());

/// A server of one test, and an index on it whose calls take at most two seconds.
struct Own {
    _folder: TempDir,
    server: MilvusLite,
    index: MilvusIndex,
}

const TIMEOUT: Duration = Duration::from_secs(2);

impl Own {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = MilvusLite::start(folder.path()).await.unwrap();
        let timeouts = MilvusOptions {
            timeout: TIMEOUT,
            connect_timeout: TIMEOUT / 2,
            ..options(&server.endpoint(), "own")
        };
        Self { _folder: folder, index: connect(timeouts), server }
    }

    async fn with_documents() -> Self {
        let own = Self::start().await;
        assert_eq!(own.index.open(&collection(ID, DIMENSION)).await.unwrap(), 0);
        own.index.apply(ID, upserts(1, small_collection())).await.unwrap();
        own
    }

    async fn search(&self) -> Result<Vec<Scored>, IndexError> {
        self.index.nearest(ID, vector(1), None, 5).await
    }

    /// A client without any of ours between.
    async fn client(&self) -> ClientV2 {
        let config = ConnectConfig::new()
            .uri(self.server.endpoint())
            .rpc_timeout(TIMEOUT)
            .retry(RetryConfig::new().max_attempts(1))
            .telemetry(TelemetryConfig::new().enabled(false));
        ClientV2::new(&config).await.unwrap()
    }
}

fn is_unavailable<T>(outcome: &Result<T, IndexError>) -> bool {
    matches!(outcome, Err(IndexError::Unavailable { .. }))
}

#[tokio::test]
async fn a_server_that_was_killed_is_used_again_when_it_is_back() {
    let mut own = Own::with_documents().await;
    let before = answers(&own.index).await;
    own.server.process().kill().await.unwrap();
    let started = Instant::now();
    assert!(is_unavailable(&own.search().await));
    assert!(started.elapsed() < TIMEOUT + Duration::from_secs(1));
    assert!(own.index.health().await.is_err());
    own.server.restart().await.unwrap();
    until("a search", || async { own.search().await.is_ok() }).await.unwrap();
    own.index.health().await.unwrap();
    assert_eq!(answers(&own.index).await, before);
    assert_eq!(own.index.open(&collection(ID, DIMENSION)).await.unwrap(), 1);
}

#[tokio::test]
async fn an_index_is_made_while_no_server_is_there_and_used_when_one_is() {
    let mut own = Own::start().await;
    own.server.process().kill().await.unwrap();
    assert!(is_unavailable(&own.index.open(&collection(ID, DIMENSION)).await));
    own.server.restart().await.unwrap();
    let index = &own.index;
    until("the server", || async { index.open(&collection(ID, DIMENSION)).await.is_ok() })
        .await
        .unwrap();
    assert_eq!(index.count(ID).await.unwrap(), 0);
}

#[tokio::test]
async fn a_frozen_server_costs_no_more_than_the_timeout_and_soon_nothing() {
    let mut own = Own::with_documents().await;
    own.server.process().freeze().await.unwrap();
    let mut fast = 0;
    for _ in 0..8 {
        let started = Instant::now();
        assert!(is_unavailable(&own.search().await));
        assert!(started.elapsed() < TIMEOUT + Duration::from_millis(500));
        fast += usize::from(started.elapsed() < Duration::from_millis(50));
    }
    assert!(fast >= 2, "only {fast} of 8 searches ended at once");
    own.server.process().signal(libc::SIGCONT).unwrap();
    until("a search", || async { own.search().await.is_ok() }).await.unwrap();
}

#[tokio::test]
async fn an_answer_without_the_documents_that_are_there_is_no_answer() {
    let own = Own::with_documents().await;
    assert_eq!(own.search().await.unwrap().len(), 5);
    // As a server does that lost its data: everything is gone, and nobody said so.
    let client = own.client().await;
    let delete = ::milvus::v2::prelude::DeleteRequest::builder()
        .collection_name(format!("own_{ID}"))
        .filter("key > 0")
        .build()
        .unwrap();
    client.delete(delete).await.unwrap();
    assert!(is_unavailable(&own.search().await));
    assert!(is_unavailable(&own.index.matching(ID, "squat", None, 5).await));
    let easy = must(vec![is("level", "easy")]);
    assert!(is_unavailable(&own.index.nearest(ID, vector(1), easy, 5).await));
    assert!(is_unavailable(&own.index.count(ID).await));
    let facets = own.index.facets(ID, None, None, &["level".to_owned()], 5).await;
    assert!(is_unavailable(&facets));
    // What it was told to delete it may be without.
    let deletes = (1..=40).collect();
    own.index.apply(ID, Changes { generation: 2, deletes, ..Changes::default() }).await.unwrap();
    assert_eq!(own.search().await.unwrap(), []);
}

#[tokio::test]
async fn the_server_holds_identifier_and_version_of_a_document() {
    let own = Own::with_documents().await;
    let mut changed = document(3, "Plank", &[]);
    changed.version = 77;
    own.index.apply(ID, upserts(2, vec![changed])).await.unwrap();
    let query = QueryRequest::builder()
        .collection_name(format!("own_{ID}"))
        .filter("key == 3")
        .output_fields(["id", "version", "words"])
        .consistency_level(ConsistencyLevel::Strong)
        .limit(10)
        .build()
        .unwrap();
    let answer = own.client().await.query(query).await.unwrap();
    let rows: Vec<_> = answer.results().rows().unwrap().collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get_str("id").unwrap(), "id-3");
    assert_eq!(rows[0].get_i64("version").unwrap(), 77);
    assert_eq!(rows[0].get_str("words").unwrap(), "plank");
}

#[tokio::test]
async fn values_are_found_whatever_characters_they_have() {
    let own = Own::start().await;
    own.index.open(&collection(ID, DIMENSION)).await.unwrap();
    let long = "x".repeat(100_000);
    let values = [
        "\"",
        "\\",
        "\\\"",
        "'",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\u{0}",
        "\u{1f600}",
        "é",
        "e\u{301}",
        "\\u0041",
        "\\n",
        "\"] or key > 0 or [\"",
        "{0}",
        "%",
        "",
        &long,
    ];
    let documents = (1..).zip(values).map(|(key, value)| {
        let mut document = document(key, "text", &[("level", string(value))]);
        document.document.id = format!("id {value:?}").chars().take(200).collect();
        document
    });
    let documents: Vec<_> = documents.collect();
    own.index.apply(ID, upserts(1, documents.clone())).await.unwrap();
    for (document, value) in documents.iter().zip(values) {
        let found = filtered(&own.index, must(vec![is("level", value)])).await;
        assert_eq!(found, [document.key].into(), "{value:?}");
        let found = filtered(&own.index, must(vec![is("id", &document.document.id)])).await;
        assert_eq!(found, [document.key].into(), "{value:?}");
    }
}

#[tokio::test]
async fn servers_that_open_a_collection_at_the_same_time_share_it() {
    let own = Own::start().await;
    let others: Vec<MilvusIndex> =
        (0..4).map(|_| connect(options(&own.server.endpoint(), "own"))).collect();
    let wanted = collection(ID, DIMENSION);
    let opened = futures::future::join_all(others.iter().map(|index| index.open(&wanted))).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    others[0].apply(ID, upserts(5, small_collection())).await.unwrap();
    for index in &others {
        assert_eq!(index.count(ID).await.unwrap(), 40);
        assert_eq!(index.open(&wanted).await.unwrap(), 5);
    }
}

#[tokio::test]
async fn a_collection_of_another_dimension_is_not_opened() {
    let own = Own::with_documents().await;
    let other = connect(options(&own.server.endpoint(), "own"));
    let outcome = other.open(&collection(ID, DIMENSION + 1)).await;
    assert!(matches!(outcome, Err(IndexError::Io { .. })), "{outcome:?}");
}
