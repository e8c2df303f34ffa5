//! Indexes of a collection beside the one that is searched.

use std::time::Duration;

use sextant_server::domain::{Collection, EmbeddingVersion};
use sextant_server::ports::{
    ClaimedRow, DocumentStore, DocumentWrite, Done, Indexes, Outbox, StoredIndex,
};

use crate::outbox::models;
use crate::postgres::{collection, embedding, store, vector, write};

const LEASE: Duration = Duration::from_mins(1);

fn next_model() -> EmbeddingVersion {
    EmbeddingVersion { model: "next".into(), hash: "11".into(), ..embedding() }
}

async fn begun(store: &impl Indexes, of: &Collection) -> StoredIndex {
    let index = store.add_index(of.id, &of.schema.text_fields, &next_model()).await.unwrap();
    assert!(store.claim_index(index.id, "b", LEASE).await.unwrap());
    index
}

fn done(rows: &[ClaimedRow], value: f32) -> Vec<Done> {
    let row = |row: &ClaimedRow| Done {
        key: row.key,
        version: row.version,
        embedding: row.document.as_ref().map(|_| vector(value)),
    };
    rows.iter().map(row).collect()
}

/// Brings an index up to all that is written.
async fn catch_up(store: &impl Indexes, index: &mut StoredIndex) {
    loop {
        let missing = store.missing(index, 2).await.unwrap();
        if missing.generation == index.generation {
            return;
        }
        let done = done(&missing.rows, 0.25);
        assert!(store.advance(index.id, "b", missing.generation, &done, LEASE).await.unwrap());
        index.generation = missing.generation;
    }
}

/// As a worker does with all that waits.
async fn work(store: &impl Outbox, models: &[String]) -> usize {
    let mut rows = 0;
    while let Some(claimed) = store.claim("w", models, 100, LEASE).await.unwrap() {
        let id = claimed.collection.id;
        store.complete("w", id, &done(&claimed.rows, 0.5)).await.unwrap();
        rows += claimed.rows.len();
    }
    rows
}

async fn present(store: &impl DocumentStore, of: &Collection) -> Collection {
    store.collection(&of.name).await.unwrap().unwrap()
}

fn ids(rows: &[ClaimedRow]) -> Vec<String> {
    let id = |row: &ClaimedRow| row.document.as_ref().map(|it| it.document.id.clone());
    rows.iter().filter_map(id).collect()
}

#[tokio::test]
async fn a_new_index_lacks_everything_and_comes_on_change_by_change() {
    let store = store().await;
    let made = collection(&store, "a").await;
    for id in ["1", "2", "3"] {
        store.upsert(made.id, &[write(id, id)], None).await.unwrap();
    }
    store.delete(made.id, &["2".into()]).await.unwrap();
    let mut index = begun(&store, &made).await;
    let missing = store.missing(&index, 1).await.unwrap();
    assert_eq!((missing.generation, ids(&missing.rows)), (1, vec!["1".to_owned()]));
    assert!(store.advance(index.id, "b", 1, &done(&missing.rows, 0.25), LEASE).await.unwrap());
    let [stored] = &store.indexes(made.id).await.unwrap()[..] else { panic!() };
    assert_eq!((stored.id, stored.generation, stored.retired), (index.id, 1, None));
    index.generation = 1;
    let missing = store.missing(&index, 100).await.unwrap();
    assert_eq!((missing.generation, ids(&missing.rows)), (4, vec!["3".to_owned()]));
    let deleted = missing.rows.iter().filter(|row| row.document.is_none()).count();
    assert_eq!(deleted, 1);
}

#[tokio::test]
async fn a_vector_counts_for_the_index_that_it_was_made_for() {
    let store = store().await;
    let made = collection(&store, "a").await;
    let embedded = DocumentWrite { embedding: Some(vector(0.5)), ..write("1", "one") };
    store.upsert(made.id, &[embedded], None).await.unwrap();
    let mut index = begun(&store, &made).await;
    let missing = store.missing(&index, 10).await.unwrap();
    assert_eq!(missing.rows[0].document.as_ref().unwrap().embedding, None);
    catch_up(&store, &mut index).await;
    // The searched index has to make its own again; nothing of the other is taken for it.
    assert_eq!(store.embedded(made.id, &["1".into()]).await.unwrap(), [None]);
    assert!(store.changes(made.id, 0, 10).await.unwrap().upserts.is_empty());
    assert!(store.activate(&index, "b").await.unwrap());
    let [Some(known)] = &store.embedded(made.id, &["1".into()]).await.unwrap()[..] else {
        panic!("the vector of the index that is searched now")
    };
    assert_eq!(known.embedding, vector(0.25));
    assert_eq!(store.changes(made.id, 0, 10).await.unwrap().upserts.len(), 1);
}

#[tokio::test]
async fn a_vector_of_a_text_that_changed_meanwhile_is_not_stored() {
    let store = store().await;
    let made = collection(&store, "a").await;
    store.upsert(made.id, &[write("1", "one")], None).await.unwrap();
    let index = begun(&store, &made).await;
    let missing = store.missing(&index, 10).await.unwrap();
    store.upsert(made.id, &[write("1", "two")], None).await.unwrap();
    let done = done(&missing.rows, 0.25);
    assert!(store.advance(index.id, "b", missing.generation, &done, LEASE).await.unwrap());
    let index = StoredIndex { generation: missing.generation, ..index };
    let missing = store.missing(&index, 10).await.unwrap();
    assert_eq!(missing.rows[0].document.as_ref().unwrap().embedding, None);
}

#[tokio::test]
async fn an_index_takes_over_when_it_lacks_nothing_that_is_searched() {
    let store = store().await;
    let made = collection(&store, "a").await;
    store.upsert(made.id, &[write("1", "one")], None).await.unwrap();
    work(&store, &models()).await;
    let mut index = begun(&store, &made).await;
    assert!(!store.activate(&index, "b").await.unwrap(), "it lacks a document");
    catch_up(&store, &mut index).await;
    // What still waits for a worker reaches the index that is searched then.
    store.upsert(made.id, &[write("2", "two")], None).await.unwrap();
    store.delete(made.id, &["1".into()]).await.unwrap();
    let before = present(&store, &made).await;
    assert!(store.activate(&index, "b").await.unwrap());
    let after = present(&store, &made).await;
    assert_eq!((after.index, &after.embedding), (index.id, &next_model()));
    assert_eq!(after.visible_generation, before.visible_generation + 1);
    let [old] = &store.indexes(made.id).await.unwrap()[..] else { panic!() };
    assert_eq!((old.id, &old.embedding, old.generation), (made.index, &embedding(), 1));
    assert!(old.retired.is_some());
    assert!(store.activate(&index, "b").await.unwrap(), "again, as the answer may be lost");
    assert_eq!(work(&store, &models()).await, 0, "workers of the old model have nothing to do");
    assert_eq!(work(&store, &[next_model().hash]).await, 2);
}

#[tokio::test]
async fn a_batch_that_was_claimed_for_another_index_is_done_again() {
    let store = store().await;
    let made = collection(&store, "a").await;
    store.upsert(made.id, &[write("1", "one")], None).await.unwrap();
    let claimed = store.claim("w", &models(), 10, LEASE).await.unwrap().unwrap();
    let mut index = begun(&store, &made).await;
    catch_up(&store, &mut index).await;
    assert!(store.activate(&index, "b").await.unwrap());
    let visible = present(&store, &made).await.visible_generation;
    let late = store.complete("w", made.id, &done(&claimed.rows, 0.5)).await.unwrap();
    assert_eq!(late, visible, "nothing of it is searched");
    let [Some(known)] = &store.embedded(made.id, &["1".into()]).await.unwrap()[..] else {
        panic!("the vector of the new index stays")
    };
    assert_eq!(known.embedding, vector(0.25));
    assert_eq!(work(&store, &[next_model().hash]).await, 1);
}

#[tokio::test]
async fn workers_leave_a_collection_alone_that_is_held() {
    let store = store().await;
    let (held, other) = (collection(&store, "a").await, collection(&store, "b").await);
    for made in [&held, &other] {
        store.upsert(made.id, &[write("1", "one")], None).await.unwrap();
    }
    store.hold(held.id, LEASE).await.unwrap();
    let claimed = store.claim("w", &models(), 10, LEASE).await.unwrap().unwrap();
    assert_eq!(claimed.collection.id, other.id);
    assert_eq!(store.claim("w", &models(), 10, LEASE).await.unwrap(), None);
    store.hold(held.id, Duration::ZERO).await.unwrap();
    assert!(store.claim("w", &models(), 10, LEASE).await.unwrap().is_some());
}

#[tokio::test]
async fn one_at_a_time_builds_an_index() {
    let store = store().await;
    let made = collection(&store, "a").await;
    let index = begun(&store, &made).await;
    assert!(!store.claim_index(index.id, "other", LEASE).await.unwrap());
    assert!(!store.advance(index.id, "other", 0, &[], LEASE).await.unwrap());
    assert!(!store.activate(&index, "other").await.unwrap());
    assert!(store.claim_index(index.id, "b", Duration::ZERO).await.unwrap());
    assert!(store.claim_index(index.id, "other", LEASE).await.unwrap(), "the lease ran out");
    assert!(!store.advance(index.id, "b", 0, &[], LEASE).await.unwrap());
}

#[tokio::test]
async fn servers_without_a_model_are_named_while_they_are_there() {
    let store = store().await;
    let (old, both) = (models(), [models(), vec![next_model().hash]].concat());
    store.announce("one", &old).await.unwrap();
    store.announce("two", &both).await.unwrap();
    assert_eq!(store.servers_without(&next_model().hash).await.unwrap(), ["one"]);
    store.announce("one", &both).await.unwrap();
    assert!(store.servers_without(&next_model().hash).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_deleted_collection_leaves_no_index() {
    let store = store().await;
    let made = collection(&store, "a").await;
    begun(&store, &made).await;
    store.delete_collection(made.id).await.unwrap();
    assert!(store.indexes(made.id).await.unwrap().is_empty());
}
