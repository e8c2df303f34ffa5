//! What an index in Milvus lost, or has although Postgres does not, is found and left to the
//! workers; on real servers of both.

use std::sync::Arc;
use std::time::Duration;

use sextant_server::adapters::documents::postgres::PostgresStore;
use sextant_server::adapters::index::milvus::MilvusIndex;
use sextant_server::catalog::{Catalog, OpenCollection};
use sextant_server::domain::{Document, Key};
use sextant_server::metrics::Metrics;
use sextant_server::ports::{
    Changes, ClaimedDocument, ClaimedRow, DocumentStore, Done, IndexedDocument, Outbox,
};
use sextant_server::verify::{Verifier, VerifyOptions};

use crate::index::milvus::{options, prefix, shared};
use crate::outbox::models;
use crate::postgres::{collection, embedding, store, vector, write};

const PAGE: usize = 3;
const AT_ONCE: VerifyOptions = VerifyOptions { page: PAGE, believed_after: Duration::ZERO };
const DOCUMENTS: usize = 10;

struct Stack {
    catalog: Arc<Catalog>,
    outbox: Arc<dyn Outbox>,
    metrics: Arc<Metrics>,
    open: Arc<OpenCollection>,
    keys: Vec<Key>,
}

impl Stack {
    /// Ten documents, all indexed.
    async fn start() -> Self {
        let metrics = Arc::new(Metrics::new());
        let index = MilvusIndex::connect(options(&shared().await, &prefix()), Arc::clone(&metrics));
        let store = Arc::new(store().await);
        let outbox: Arc<dyn Outbox> = Arc::<PostgresStore>::clone(&store);
        let id = collection(&*store, "a").await.id;
        let writes: Vec<_> = (0..DOCUMENTS).map(|i| write(&i.to_string(), "text")).collect();
        let keys = store.upsert(id, &writes, None).await.unwrap().keys;
        let catalog = Catalog::open(
            store,
            Arc::new(index.unwrap()),
            Some(Arc::clone(&outbox)),
            embedding(),
            Arc::clone(&metrics),
        );
        let catalog = Arc::new(catalog.await.unwrap());
        let open = catalog.get("a").await.unwrap();
        let stack = Self { catalog, outbox, metrics, open, keys };
        assert_eq!(stack.work().await, DOCUMENTS);
        stack
    }

    fn verifier(&self, options: VerifyOptions) -> Verifier {
        let (catalog, outbox) = (Arc::clone(&self.catalog), Arc::clone(&self.outbox));
        Verifier::new(catalog, outbox, Arc::clone(&self.metrics), options)
    }

    /// Indexes what waits, as a worker does; how many documents.
    async fn work(&self) -> usize {
        let lease = Duration::from_mins(1);
        let claimed = self.outbox.claim("w", &models(), 100, lease).await.unwrap();
        let Some(claimed) = claimed else { return 0 };
        let mut changes = Changes::default();
        let mut done = Vec::new();
        for ClaimedRow { key, version, document } in claimed.rows {
            changes.generation = changes.generation.max(version);
            match document {
                None => changes.deletes.push(key),
                Some(ClaimedDocument { document, .. }) => {
                    changes.upserts.push(self.row(key, version, document));
                }
            }
            done.push(Done { key, version, embedding: Some(vector(0.5)) });
        }
        self.apply(changes).await;
        self.outbox.complete("w", self.open.id, &done).await.unwrap();
        done.len()
    }

    fn row(&self, key: Key, version: i64, document: Document) -> IndexedDocument {
        IndexedDocument::of(key, version, document, &self.open.schema(), vector(0.5).vector)
    }

    async fn apply(&self, changes: Changes) {
        self.catalog.index.apply(self.open.searched().id, changes).await.unwrap();
    }

    /// As if the index had lost these.
    async fn lose(&self, keys: &[Key]) {
        self.apply(Changes { deletes: keys.to_vec(), ..Changes::default() }).await;
    }

    /// As if the index had this version of a document.
    async fn set(&self, key: Key, version: i64) {
        let upserts = vec![self.row(key, version, write("old", "old").document)];
        self.apply(Changes { upserts, ..Changes::default() }).await;
    }

    /// Whether the index has every document as it is stored, and no other.
    async fn agrees(&self) -> bool {
        let expected = self.outbox.expected(self.open.id, None, 100).await.unwrap();
        let index = self.open.searched().id;
        let indexed = self.catalog.index.versions(index, None, 100).await.unwrap();
        expected.waiting.is_empty() && expected.versions == indexed
    }
}

#[tokio::test]
async fn documents_that_an_index_lost_are_indexed_again() {
    let stack = Stack::start().await;
    let mut verifier = stack.verifier(AT_ONCE);
    assert!(stack.agrees().await);
    stack.lose(&stack.keys[8..]).await;
    // Far from where the comparison is, but they are missing in the number of all.
    assert_eq!(verifier.step().await.unwrap(), 2);
    assert_eq!(stack.metrics.index_differences.get(), 2);
    let visible = stack.outbox.expected(stack.open.id, None, 100).await.unwrap();
    assert_eq!(visible.documents, 8);
    assert_eq!(stack.work().await, 2);
    assert!(stack.agrees().await);
    assert_eq!(verifier.step().await.unwrap(), 0);
}

#[tokio::test]
async fn other_versions_and_documents_that_are_gone_are_found_within_one_walk() {
    let stack = Stack::start().await;
    let mut verifier = stack.verifier(AT_ONCE);
    let surplus = stack.keys[9] + 1;
    stack.set(stack.keys[7], 0).await;
    stack.set(stack.keys[2], 1_000_000).await;
    stack.set(surplus, 1).await;
    let mut found = 0;
    for _ in 0..=DOCUMENTS / PAGE {
        found += verifier.step().await.unwrap();
    }
    assert_eq!(found, 3);
    assert_eq!(stack.work().await, 3);
    assert!(stack.agrees().await);
}

#[tokio::test]
async fn what_waits_for_a_worker_is_no_difference() {
    let stack = Stack::start().await;
    let mut verifier = stack.verifier(VerifyOptions { page: 100, ..AT_ONCE });
    let writes = [write("3", "other"), write("new", "text")];
    stack.catalog.store.upsert(stack.open.id, &writes, None).await.unwrap();
    stack.catalog.store.delete(stack.open.id, &["4".to_owned()]).await.unwrap();
    assert_eq!(verifier.step().await.unwrap(), 0);
    assert_eq!(stack.work().await, 3);
    assert_eq!(verifier.step().await.unwrap(), 0);
    assert!(stack.agrees().await);
}

#[tokio::test]
async fn a_difference_is_not_believed_at_once() {
    let stack = Stack::start().await;
    let patient = VerifyOptions { page: PAGE, believed_after: Duration::from_hours(1) };
    let mut verifier = stack.verifier(patient);
    stack.lose(&stack.keys[..1]).await;
    for _ in 0..3 {
        assert_eq!(verifier.step().await.unwrap(), 0);
    }
    assert_eq!(stack.work().await, 0);
}
