//! What every document store must do. An adapter's tests call [`suite`] with a way to make an
//! empty store.

use std::sync::Arc;

use serde_json::json;
use sextant_server::adapters::documents::sqlite::SqliteStore;
use sextant_server::domain::collection::Freshness;
use sextant_server::domain::{
    AttributeType, CollectionName, Document, EmbeddingVersion, Mode, Schema,
};
use sextant_server::ports::{
    Committed, DocumentStore, DocumentWrite, QueryCount, QuerySelection, StoreError, StoredVector,
};

fn name(name: &str) -> CollectionName {
    CollectionName::parse(name).unwrap()
}

fn embedding() -> EmbeddingVersion {
    EmbeddingVersion {
        model: "test".into(),
        date: "2026-11-23".into(),
        hash: "00".into(),
        dimension: 2,
    }
}

fn write(id: &str, text: &str) -> DocumentWrite {
    let document = Document::parse(json!({"id": id, "name": text, "tags": ["x"]}), "").unwrap();
    DocumentWrite {
        document,
        text: text.to_owned(),
        text_hash: blake3(text),
        embedding: Some(StoredVector { vector: Arc::from([0.6, 0.8]), truncated: false }),
    }
}

/// Any function that differs for different texts will do.
fn blake3(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    for (slot, byte) in hash.iter_mut().zip(text.bytes()) {
        *slot = byte;
    }
    hash
}

async fn collection(store: &dyn DocumentStore) -> i64 {
    store.create_collection(&name("a"), &Schema::default(), &embedding()).await.unwrap().id
}

async fn upsert(store: &dyn DocumentStore, id: i64, writes: &[DocumentWrite]) -> Committed {
    store.upsert(id, writes, None).await.unwrap()
}

pub async fn a_collection_is_found_again_with_its_schema_and_model(store: Arc<dyn DocumentStore>) {
    let schema = Schema { text_fields: vec!["title".into()], ..Schema::default() };
    let made = store.create_collection(&name("a"), &schema, &embedding()).await.unwrap();
    assert_eq!(store.collection(&name("a")).await.unwrap(), Some(made.clone()));
    assert_eq!(store.collections().await.unwrap(), [made]);
    let again = store.create_collection(&name("a"), &schema, &embedding()).await;
    assert!(matches!(again, Err(StoreError::Exists)));
}

pub async fn a_changed_schema_is_found_again(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let schema = Schema {
        attributes: [("level".to_owned(), AttributeType::String)].into(),
        default_mode: Mode::Hybrid,
        freshness: Freshness::Fresh,
        ..Schema::default()
    };
    store.update_schema(id, &schema).await.unwrap();
    assert_eq!(store.collection(&name("a")).await.unwrap().unwrap().schema, schema);
}

pub async fn a_collection_of_the_same_name_is_another_one(store: Arc<dyn DocumentStore>) {
    let first = collection(&*store).await;
    upsert(&*store, first, &[write("1", "one")]).await;
    assert!(store.delete_collection(first).await.unwrap());
    assert!(!store.delete_collection(first).await.unwrap());
    let second = collection(&*store).await;
    assert_ne!(first, second);
    assert_eq!(store.list(second, None, 10).await.unwrap(), []);
    let gone = store.upsert(first, &[write("1", "one")], None).await;
    assert!(matches!(gone, Err(StoreError::NoCollection)));
}

pub async fn an_upsert_keeps_the_key_and_raises_the_generation(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let first = upsert(&*store, id, &[write("1", "one"), write("2", "two")]).await;
    assert_eq!((first.generation, first.documents), (1, 2));
    let second = upsert(&*store, id, &[write("2", "deux"), write("3", "trois")]).await;
    assert_eq!((second.generation, second.documents), (2, 3));
    assert_eq!(second.keys[0], first.keys[1]);
    let stored = store.get(id, "2").await.unwrap().unwrap();
    assert_eq!((stored.generation, stored.key), (2, first.keys[1]));
    assert_eq!(stored.document, write("2", "deux").document);
}

pub async fn a_deleted_document_is_gone_and_its_key_is_not_given_again(
    store: Arc<dyn DocumentStore>,
) {
    let id = collection(&*store).await;
    let first = upsert(&*store, id, &[write("1", "one")]).await;
    let deleted = store.delete(id, &["1".into(), "absent".into()]).await.unwrap();
    assert_eq!(deleted, Committed { generation: 2, keys: first.keys.clone(), documents: 0 });
    assert_eq!(store.get(id, "1").await.unwrap(), None);
    let nothing = store.delete(id, &["1".into()]).await.unwrap();
    assert_eq!(nothing, Committed { generation: 2, keys: vec![], documents: 0 });
    let again = upsert(&*store, id, &[write("1", "one")]).await;
    assert_ne!(again.keys, first.keys);
}

pub async fn documents_come_back_in_the_order_that_is_asked_for(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let keys = upsert(&*store, id, &[write("b", "1"), write("a", "2"), write("c", "3")]).await.keys;
    let fetched = store.fetch(id, &[keys[2], 999, keys[0]]).await.unwrap();
    let ids: Vec<_> = fetched.iter().map(|d| d.as_ref().map(|d| d.id.as_str())).collect();
    assert_eq!(ids, [Some("c"), None, Some("b")]);
    let page = |after: Option<&'static str>| {
        let store = Arc::clone(&store);
        async move {
            let page = store.list(id, after, 2).await.unwrap();
            page.into_iter().map(|d| d.document.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(page(None).await, ["a", "b"]);
    assert_eq!(page(Some("b")).await, ["c"]);
}

pub async fn stored_vectors_are_told_by_the_hash_of_their_text(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    upsert(&*store, id, &[write("1", "one")]).await;
    let known = store.embedded(id, &["2".into(), "1".into()]).await.unwrap();
    assert_eq!(known[0], None);
    let one = known[1].as_ref().unwrap();
    assert_eq!((one.text_hash, &*one.embedding.vector), (blake3("one"), [0.6_f32, 0.8].as_slice()));
}

pub async fn changes_can_be_replayed_from_any_generation(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let keys = upsert(&*store, id, &[write("1", "one"), write("2", "two")]).await.keys;
    upsert(&*store, id, &[write("3", "three")]).await;
    store.delete(id, &["1".into()]).await.unwrap();
    let all = store.changes(id, 0, 100).await.unwrap();
    assert_eq!((all.generation, all.deletes.as_slice()), (3, &keys[..1]));
    let ids: Vec<_> = all.upserts.iter().map(|change| change.document.id.as_str()).collect();
    assert_eq!(ids, ["2", "3"]);
    assert_eq!(all.upserts[0].text, "two");
    let rest = store.changes(id, 2, 100).await.unwrap();
    assert_eq!((rest.generation, rest.upserts.len(), rest.deletes.len()), (3, 0, 1));
    assert_eq!(store.changes(id, 3, 100).await.unwrap().generation, 3);
    // A limit cuts between generations only.
    let first = store.changes(id, 0, 1).await.unwrap();
    assert_eq!((first.generation, first.upserts.len()), (1, 1));
    store.forget_deletions(id, 3).await.unwrap();
    assert!(store.changes(id, 2, 100).await.unwrap().deletes.is_empty());
}

pub async fn query_counts_add_up_and_are_selected(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let count = |query: &str, searches, hits, last_used_ms| QueryCount {
        collection: id,
        query: query.to_owned(),
        searches,
        hits,
        last_used_ms,
    };
    store
        .record_queries(&[
            count("squat", 2, 5, 10),
            count("squid", 9, 0, 11),
            count("100%", 1, 1, 1),
        ])
        .await
        .unwrap();
    store.record_queries(&[count("squat", 3, 4, 9)]).await.unwrap();
    let gone = QueryCount { collection: 999, ..count("x", 1, 1, 1) };
    store.record_queries(&[gone]).await.unwrap();
    let select = |selection: QuerySelection<'static>| {
        let store = Arc::clone(&store);
        async move {
            let found = store.queries(id, selection, 10).await.unwrap();
            found.into_iter().map(|q| (q.query, q.searches)).collect::<Vec<_>>()
        }
    };
    let of = |query: &str, searches| (query.to_owned(), searches);
    assert_eq!(select(QuerySelection::All).await, [of("squid", 9), of("squat", 5), of("100%", 1)]);
    assert_eq!(select(QuerySelection::WithoutHits).await, [of("squid", 9)]);
    assert_eq!(select(QuerySelection::Prefix("sq")).await, [of("squat", 5)]);
    assert_eq!(select(QuerySelection::Prefix("%")).await, []);
    let squat = &store.queries(id, QuerySelection::Prefix("squat"), 1).await.unwrap()[0];
    assert_eq!((squat.hits, squat.last_used_ms), (4, 10));
}

pub async fn a_mark_is_set_once_and_stays(store: Arc<dyn DocumentStore>) {
    assert!(!store.mark("seed").await.unwrap());
    store.set_mark("seed").await.unwrap();
    store.set_mark("seed").await.unwrap();
    assert!(store.mark("seed").await.unwrap());
}

pub async fn identifiers_sort_by_their_bytes(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let writes: Vec<_> = ["é", "a", "B", "_"].map(|id| write(id, "text")).into();
    upsert(&*store, id, &writes).await;
    let listed = store.list(id, None, 10).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|stored| stored.document.id.as_str()).collect();
    assert_eq!(ids, ["B", "_", "a", "é"]);
}

pub async fn values_come_back_as_they_were_written(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let json = r#"{"id":"1","a":1.0,"b":18446744073709551615,"c":-0.1,"d":1e-7,"e":"\u0000'\"x","f":true}"#;
    let document = Document::parse(serde_json::from_str(json).unwrap(), "").unwrap();
    let write = DocumentWrite { document, ..write("1", "text") };
    upsert(&*store, id, std::slice::from_ref(&write)).await;
    let stored = store.get(id, "1").await.unwrap().unwrap().document;
    assert_eq!(stored, write.document);
    assert_eq!(serde_json::to_string(&stored).unwrap(), json);
}

pub async fn of_one_document_in_one_call_the_last_write_counts(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    let twice =
        upsert(&*store, id, &[write("1", "one"), write("2", "two"), write("1", "last")]).await;
    assert_eq!((twice.keys.len(), twice.documents), (3, 2));
    assert_eq!(twice.keys[0], twice.keys[2]);
    let stored = store.get(id, "1").await.unwrap().unwrap();
    assert_eq!(stored.document, write("1", "last").document);
}

pub async fn what_no_text_can_hold_is_not_found(store: Arc<dyn DocumentStore>) {
    let id = collection(&*store).await;
    upsert(&*store, id, &[write("a", "one")]).await;
    assert_eq!(store.get(id, "a\0").await.unwrap(), None);
    assert!(store.delete(id, &["a\0".into()]).await.unwrap().keys.is_empty());
    assert_eq!(store.embedded(id, &["a\0".into()]).await.unwrap(), [None]);
    assert_eq!(store.list(id, Some("a\0"), 10).await.unwrap(), []);
    assert_eq!(store.queries(id, QuerySelection::Prefix("a\0"), 10).await.unwrap(), []);
}

/// Runs every case on a store of its own.
macro_rules! document_store_suite {
    ($module:ident, $make:path) => {
        mod $module {
            document_store_suite!(@cases $make,
                a_collection_is_found_again_with_its_schema_and_model,
                a_changed_schema_is_found_again,
                a_collection_of_the_same_name_is_another_one,
                an_upsert_keeps_the_key_and_raises_the_generation,
                a_deleted_document_is_gone_and_its_key_is_not_given_again,
                documents_come_back_in_the_order_that_is_asked_for,
                stored_vectors_are_told_by_the_hash_of_their_text,
                changes_can_be_replayed_from_any_generation,
                query_counts_add_up_and_are_selected,
                a_mark_is_set_once_and_stays,
                identifiers_sort_by_their_bytes,
                values_come_back_as_they_were_written,
                of_one_document_in_one_call_the_last_write_counts,
                what_no_text_can_hold_is_not_found,
            );
        }
    };
    (@cases $make:path, $($case:ident,)*) => {
        $(#[tokio::test]
        async fn $case() {
            let (store, _guard) = $make().await;
            super::$case(store).await;
        })*
    };
}

async fn sqlite() -> (Arc<dyn DocumentStore>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("documents.db")).await.unwrap();
    (Arc::new(store), folder)
}

async fn postgres() -> (Arc<dyn DocumentStore>, ()) {
    (Arc::new(crate::postgres::store().await), ())
}

document_store_suite!(on_sqlite, super::sqlite);
document_store_suite!(on_postgres, super::postgres);
