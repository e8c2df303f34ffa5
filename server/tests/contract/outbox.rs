//! What every outbox must do, on the store whose writes fill it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sextant_server::domain::Key;
use sextant_server::ports::{
    Backlog, Claimed, DocumentStore, DocumentWrite, Done, Failure, Outbox, Progress, StoreError,
    Version,
};
use sextant_stack::until;

use crate::postgres::{collection, embedding, name, vector, write};

const LEASE: Duration = Duration::from_mins(1);
/// Over before the next statement is.
const NO_LEASE: Duration = Duration::ZERO;

const NONE: [Key; 0] = [];

type Store = Arc<dyn DocumentStore>;
type Rows = Arc<dyn Outbox>;

/// Those of the collections here.
pub fn models() -> Vec<String> {
    vec![embedding().hash]
}

async fn claim(outbox: &Rows, worker: &str) -> Option<Claimed> {
    outbox.claim(worker, &models(), 100, LEASE).await.unwrap()
}

async fn claimed_keys(outbox: &Rows, worker: &str, limit: usize) -> Vec<Key> {
    let claimed = outbox.claim(worker, &models(), limit, LEASE).await.unwrap();
    claimed.map_or(Vec::new(), |claimed| claimed.rows.iter().map(|row| row.key).collect())
}

fn done(claimed: &Claimed) -> Vec<Done> {
    let row = |row: &sextant_server::ports::ClaimedRow| Done {
        key: row.key,
        version: row.version,
        embedding: row.document.as_ref().map(|_| vector(0.5)),
    };
    claimed.rows.iter().map(row).collect()
}

async fn upsert(store: &Store, id: i64, writes: &[DocumentWrite]) -> (i64, Vec<Key>) {
    let committed = store.upsert(id, writes, None).await.unwrap();
    (committed.generation, committed.keys)
}

fn failure(max_attempts: u32) -> Failure {
    Failure { reason: "no\0 reason".to_owned(), max_attempts, delay: Duration::ZERO }
}

pub async fn a_row_is_committed_with_its_document(store: Store, outbox: Rows) {
    let made = collection(&*store, "a").await;
    assert_eq!(claim(&outbox, "w").await, None);
    let (generation, keys) = upsert(&store, made.id, &[write("1", "one")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    assert_eq!((claimed.collection.id, &claimed.collection.name), (made.id, &name("a")));
    let [row] = &claimed.rows[..] else { panic!("{claimed:?}") };
    assert_eq!((row.key, row.version), (keys[0], generation));
    let document = row.document.as_ref().unwrap();
    assert_eq!(document.document, write("1", "one").document);
    assert_eq!(document.embedding, None);
}

pub async fn a_document_with_its_vector_leaves_no_row(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let embedded = DocumentWrite { embedding: Some(vector(0.5)), ..write("1", "one") };
    upsert(&store, id, &[embedded]).await;
    assert_eq!(claim(&outbox, "w").await, None);
}

pub async fn two_workers_never_have_the_same_row(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let writes: Vec<_> = (0..200).map(|i| write(&i.to_string(), "text")).collect();
    let (_, mut written) = upsert(&store, id, &writes).await;
    let workers = (0..4).map(|worker| {
        let outbox = Arc::clone(&outbox);
        async move {
            let mut mine = Vec::new();
            loop {
                let keys = claimed_keys(&outbox, &format!("w{worker}"), 7).await;
                if keys.is_empty() {
                    return mine;
                }
                mine.extend(keys);
            }
        }
    });
    let mut claimed: Vec<Key> = futures::future::join_all(workers).await.concat();
    claimed.sort_unstable();
    written.sort_unstable();
    assert_eq!(claimed, written);
}

pub async fn a_row_whose_lease_ran_out_is_taken_again(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let (_, keys) = upsert(&store, id, &[write("1", "one")]).await;
    let first = outbox.claim("slow", &models(), 10, NO_LEASE).await.unwrap().unwrap();
    assert_eq!(claimed_keys(&outbox, "quick", 10).await, keys);
    assert_eq!(claimed_keys(&outbox, "third", 10).await, NONE);
    // The worker that lost its lease changes nothing.
    assert_eq!(outbox.complete("slow", id, &done(&first)).await.unwrap(), 0);
    assert_eq!(outbox.release("slow", id, &keys, Some(&failure(1))).await.unwrap(), 0);
    assert_eq!(outbox.backlog().await.unwrap().rows, 1);
    assert_eq!(store.embedded(id, &["1".into()]).await.unwrap(), [None]);
    assert_eq!(outbox.complete("quick", id, &done(&first)).await.unwrap(), 1);
    assert_eq!(outbox.backlog().await.unwrap(), Backlog::default());
}

pub async fn completing_stores_vectors_and_raises_what_is_visible(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    upsert(&store, id, &[write("1", "one")]).await;
    upsert(&store, id, &[write("2", "two")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    let mut all = done(&claimed);
    all[0].embedding.as_mut().unwrap().truncated = true;
    assert_eq!(outbox.complete("w", id, &all[..1]).await.unwrap(), 1);
    assert_eq!(outbox.complete("w", id, &all[1..]).await.unwrap(), 2);
    let stored = store.embedded(id, &["1".into(), "2".into()]).await.unwrap();
    assert_eq!(stored[0].as_ref().unwrap().embedding.vector, vector(0.5).vector);
    assert!(stored[0].as_ref().unwrap().embedding.truncated);
    assert!(!stored[1].as_ref().unwrap().embedding.truncated);
    assert!(store.get(id, "1").await.unwrap().unwrap().truncated);
    let collection = store.collection(&name("a")).await.unwrap().unwrap();
    assert_eq!((collection.generation, collection.visible_generation), (2, 2));
    // An older change that becomes visible later is still a change.
    upsert(&store, id, &[write("1", "one")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    outbox.complete("w", id, &done(&claimed)).await.unwrap();
    assert_eq!(store.collection(&name("a")).await.unwrap().unwrap().visible_generation, 3);
}

pub async fn what_is_written_again_while_claimed_stays(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    upsert(&store, id, &[write("1", "one")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    let (second, keys) = upsert(&store, id, &[write("1", "uno")]).await;
    // The claim is kept: nobody else works on an older version of it meanwhile.
    assert_eq!(claimed_keys(&outbox, "other", 10).await, NONE);
    assert_eq!(outbox.complete("w", id, &done(&claimed)).await.unwrap(), 1);
    assert_eq!(store.embedded(id, &["1".into()]).await.unwrap(), [None]);
    assert_eq!(outbox.progress(id, 1..=1).await.unwrap(), Progress::default());
    assert_eq!(outbox.progress(id, second..=second).await.unwrap().pending, 1);
    let again = claim(&outbox, "other").await.unwrap();
    assert_eq!((again.rows[0].key, again.rows[0].version), (keys[0], second));
    assert_eq!(again.rows[0].document.as_ref().unwrap().embedding, None);
}

pub async fn a_vector_is_kept_while_the_text_stays(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    upsert(&store, id, &[write("1", "one")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    outbox.complete("w", id, &done(&claimed)).await.unwrap();
    for (text, kept) in [("one", true), ("uno", false)] {
        upsert(&store, id, &[write("1", text)]).await;
        let claimed = claim(&outbox, "w").await.unwrap();
        let document = claimed.rows[0].document.as_ref().unwrap();
        assert_eq!(document.embedding, kept.then(|| vector(0.5)), "{text}");
        let rows =
            [Done { key: claimed.rows[0].key, version: claimed.rows[0].version, embedding: None }];
        outbox.complete("w", id, &rows).await.unwrap();
    }
}

pub async fn a_deleted_document_leaves_a_row_without_it(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let (_, keys) = upsert(&store, id, &[write("1", "one")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    outbox.complete("w", id, &done(&claimed)).await.unwrap();
    let generation = store.delete(id, &["1".into()]).await.unwrap().generation;
    let claimed = claim(&outbox, "w").await.unwrap();
    let [row] = &claimed.rows[..] else { panic!("{claimed:?}") };
    assert_eq!((row.key, row.version, &row.document), (keys[0], generation, &None));
    assert_eq!(outbox.complete("w", id, &done(&claimed)).await.unwrap(), generation);
    assert_eq!(claim(&outbox, "w").await, None);
    // Also for one that was never indexed.
    upsert(&store, id, &[write("2", "two")]).await;
    store.delete(id, &["2".into()]).await.unwrap();
    assert_eq!(claim(&outbox, "w").await.unwrap().rows[0].document, None);
}

pub async fn what_fails_too_often_is_set_aside_until_it_is_retried(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let (generation, keys) = upsert(&store, id, &[write("1", "one"), write("2", "two")]).await;
    for attempt in 1..=3 {
        assert_eq!(claimed_keys(&outbox, "w", 10).await, keys, "{attempt}");
        let set_aside = outbox.release("w", id, &keys, Some(&failure(3))).await.unwrap();
        assert_eq!(set_aside, if attempt == 3 { 2 } else { 0 });
    }
    assert_eq!(claim(&outbox, "w").await, None);
    assert_eq!(
        outbox.progress(id, generation..=generation).await.unwrap(),
        Progress { pending: 0, set_aside: 2 }
    );
    let backlog = outbox.backlog().await.unwrap();
    assert_eq!((backlog.rows, backlog.set_aside), (0, 2));
    let listed = outbox.set_aside(id, None, 1).await.unwrap();
    assert_eq!((listed[0].id.as_str(), listed[0].attempts), ("1", 3));
    assert_eq!((listed[0].reason.as_str(), listed[0].version), ("no reason", generation));
    assert_eq!(outbox.set_aside(id, Some("1"), 10).await.unwrap()[0].id, "2");
    // Written again, one is due again, and its failures are forgotten.
    upsert(&store, id, &[write("1", "uno")]).await;
    assert_eq!(claimed_keys(&outbox, "w", 10).await, keys[..1]);
    assert_eq!(outbox.release("w", id, &keys, Some(&failure(2))).await.unwrap(), 0);
    assert_eq!(outbox.retry(id).await.unwrap(), 1);
    assert_eq!(claimed_keys(&outbox, "w", 10).await, keys);
    assert!(outbox.set_aside(id, None, 10).await.unwrap().is_empty());
}

pub async fn what_was_not_tried_has_not_failed(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let (_, keys) = upsert(&store, id, &[write("1", "one")]).await;
    assert_eq!(claimed_keys(&outbox, "w", 10).await, keys);
    assert_eq!(outbox.release("w", id, &keys, None).await.unwrap(), 0);
    assert_eq!(claimed_keys(&outbox, "w", 10).await, keys);
    // The version that failed is not the one that is waiting now.
    upsert(&store, id, &[write("1", "uno")]).await;
    assert_eq!(outbox.release("w", id, &keys, Some(&failure(1))).await.unwrap(), 0);
    assert_eq!(claimed_keys(&outbox, "w", 10).await, keys);
}

pub async fn a_failed_row_is_due_after_its_delay(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let (_, keys) = upsert(&store, id, &[write("1", "one")]).await;
    claimed_keys(&outbox, "w", 10).await;
    let later = Failure { delay: Duration::from_millis(200), ..failure(9) };
    outbox.release("w", id, &keys, Some(&later)).await.unwrap();
    assert_eq!(claimed_keys(&outbox, "w", 10).await, NONE);
    let due = || async { claimed_keys(&outbox, "w", 10).await == keys };
    until("the row to be due", due).await.unwrap();
}

pub async fn small_writes_are_taken_before_bulk_ones_and_the_oldest_first(
    store: Store,
    outbox: Rows,
) {
    let id = collection(&*store, "a").await.id;
    let bulk: Vec<_> = (0..20).map(|i| write(&format!("bulk{i}"), "text")).collect();
    let (_, bulk) = upsert(&store, id, &bulk).await;
    let (_, first) = upsert(&store, id, &[write("1", "one")]).await;
    let (_, second) = upsert(&store, id, &[write("2", "two")]).await;
    assert_eq!(claimed_keys(&outbox, "w", 1).await, first);
    assert_eq!(claimed_keys(&outbox, "w", 1).await, second);
    // A document of a bulk write that somebody writes by itself is urgent.
    upsert(&store, id, &[write("bulk7", "seven")]).await;
    assert_eq!(claimed_keys(&outbox, "w", 1).await, bulk[7..8]);
    assert_eq!(claimed_keys(&outbox, "w", 100).await.len(), 19);
}

pub async fn no_collection_waits_for_the_end_of_anothers_import(store: Store, outbox: Rows) {
    let (a, b) = (collection(&*store, "a").await.id, collection(&*store, "b").await.id);
    let writes: Vec<_> = (0..100).map(|i| write(&i.to_string(), "text")).collect();
    upsert(&store, a, &writes).await;
    upsert(&store, b, &writes[..20]).await;
    let mut claims = 0;
    while outbox.claim("w", &models(), 1, LEASE).await.unwrap().unwrap().collection.id == a {
        claims += 1;
        assert!(claims < 60); // by chance once in 2^60
    }
}

pub async fn progress_counts_the_writes_of_a_generation(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let (first, _) = upsert(&store, id, &[write("1", "one"), write("2", "two")]).await;
    let (second, _) = upsert(&store, id, &[write("3", "three")]).await;
    let of = |generation| {
        let outbox = Arc::clone(&outbox);
        async move { outbox.progress(id, generation..=generation).await.unwrap().pending }
    };
    assert_eq!((of(first).await, of(second).await, of(second + 1).await), (2, 1, 0));
    let claimed = claim(&outbox, "w").await.unwrap();
    assert_eq!(of(first).await, 2);
    outbox.complete("w", id, &done(&claimed)[..1]).await.unwrap();
    assert_eq!((of(first).await, of(second).await), (1, 1));
}

pub async fn all_documents_can_be_left_to_the_workers_again(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    upsert(&store, id, &[write("1", "one"), write("2", "two"), write("3", "three")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    outbox.complete("w", id, &done(&claimed)).await.unwrap();
    upsert(&store, id, &[write("2", "deux")]).await;
    store.delete(id, &["3".into()]).await.unwrap();
    assert_eq!(outbox.enqueue_all(id).await.unwrap(), 1, "the others wait already");
    assert_eq!(outbox.enqueue_all(id).await.unwrap(), 0);
    let claimed = claim(&outbox, "w").await.unwrap();
    let row = |key| claimed.rows.iter().find(|row| row.key == key).unwrap();
    let stored = store.list(id, None, 10).await.unwrap();
    assert_eq!((claimed.rows.len(), stored.len()), (3, 2));
    for document in &stored {
        assert_eq!(row(document.key).version, document.generation);
    }
    let known = row(stored[0].key).document.as_ref().unwrap();
    assert_eq!(known.embedding, Some(vector(0.5)), "nothing is embedded again");
}

pub async fn some_keys_can_be_left_to_the_workers_again(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    let writes = [write("1", "one"), write("2", "two"), write("3", "three")];
    let (generation, keys) = upsert(&store, id, &writes).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    outbox.complete("w", id, &done(&claimed)).await.unwrap();
    let (later, _) = upsert(&store, id, &[write("2", "deux")]).await;
    let unknown = keys[2] + 1;
    let wanted = [keys[0], keys[1], unknown];
    assert_eq!(outbox.enqueue(id, &wanted).await.unwrap(), 2, "one waits already");
    assert_eq!(outbox.enqueue(id, &wanted).await.unwrap(), 0);
    let visible = outbox.expected(id, None, 10).await.unwrap().documents;
    assert_eq!(visible, 1, "of three, two wait; the unknown one is none");
    let claimed = claim(&outbox, "w").await.unwrap();
    let found: Vec<_> =
        claimed.rows.iter().map(|row| (row.key, row.version, row.document.is_some())).collect();
    let expected = [(keys[0], generation, true), (keys[1], later, true), (unknown, later, false)];
    assert_eq!(found, expected);
    outbox.complete("w", id, &done(&claimed)).await.unwrap();
    assert_eq!(outbox.backlog().await.unwrap(), Backlog::default());
}

pub async fn what_an_index_must_have_is_told_a_page_at_a_time(store: Store, outbox: Rows) {
    let made = collection(&*store, "a").await;
    let id = made.id;
    let other = collection(&*store, "b").await.id;
    let (_, first) = upsert(&store, id, &[write("1", "one"), write("2", "two")]).await;
    upsert(&store, other, &[write("1", "one")]).await;
    let (second, last) = upsert(&store, id, &[write("3", "three")]).await;
    while let Some(claimed) = claim(&outbox, "w").await {
        outbox.complete("w", claimed.collection.id, &done(&claimed)).await.unwrap();
    }
    upsert(&store, id, &[write("2", "deux"), write("4", "four")]).await;
    store.delete(id, &["1".to_owned()]).await.unwrap();
    let of = |version: &Version| (version.key, version.version);
    let page = outbox.expected(id, None, 2).await.unwrap();
    assert_eq!((page.index, page.documents), (made.index, 1));
    let versions: Vec<_> = page.versions.iter().map(of).collect();
    assert_eq!(versions, [(first[1], second + 1), (last[0], second)]);
    assert_eq!(page.waiting, first, "one was written, one was deleted");
    let next = outbox.expected(id, Some(last[0]), 2).await.unwrap();
    assert_eq!((next.versions.len(), next.waiting.len()), (1, 1));
    let gone = outbox.expected(other + 1_000, None, 2).await;
    assert!(matches!(gone, Err(StoreError::NoCollection)), "{gone:?}");
}

pub async fn a_deleted_collection_leaves_no_work(store: Store, outbox: Rows) {
    let id = collection(&*store, "a").await.id;
    upsert(&store, id, &[write("1", "one")]).await;
    let claimed = claim(&outbox, "w").await.unwrap();
    store.delete_collection(id).await.unwrap();
    let late = outbox.complete("w", id, &done(&claimed)).await;
    assert!(matches!(late, Err(StoreError::NoCollection)), "{late:?}");
    assert_eq!(outbox.backlog().await.unwrap(), Backlog::default());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8),
    Delete(u8),
    Claim { worker: u8, expired: bool },
    Complete { worker: u8 },
    Fail { worker: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u8..4).prop_map(Step::Write),
        1 => (0_u8..4).prop_map(Step::Delete),
        3 => (0_u8..2, prop::bool::weighted(0.2))
            .prop_map(|(worker, expired)| Step::Claim { worker, expired }),
        2 => (0_u8..2).prop_map(|worker| Step::Complete { worker }),
        1 => (0_u8..2).prop_map(|worker| Step::Fail { worker }),
    ];
    prop::collection::vec(step, 1..30)
}

/// Whatever writers and workers do, in the end the index holds the newest version of everything.
pub async fn nothing_is_forgotten(store: Store, outbox: Rows) {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for case in 0..20 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let id = collection(&*store, &format!("c{case}")).await.id;
        let mut index: HashMap<Key, i64> = HashMap::new();
        let mut held: HashMap<u8, Claimed> = HashMap::new();
        for step in &steps {
            match step {
                Step::Write(n) => {
                    upsert(&store, id, &[write(&n.to_string(), "text")]).await;
                }
                Step::Delete(n) => {
                    store.delete(id, &[n.to_string()]).await.unwrap();
                }
                Step::Claim { worker, .. } if held.contains_key(worker) => {}
                Step::Claim { worker, expired } => {
                    let lease = if *expired { NO_LEASE } else { LEASE };
                    let claimed =
                        outbox.claim(&worker.to_string(), &models(), 2, lease).await.unwrap();
                    held.extend(claimed.map(|claimed| (*worker, claimed)));
                }
                Step::Complete { worker } => {
                    let Some(claimed) = held.remove(worker) else { continue };
                    apply(&mut index, &claimed);
                    outbox.complete(&worker.to_string(), id, &done(&claimed)).await.unwrap();
                }
                Step::Fail { worker } => {
                    let Some(claimed) = held.remove(worker) else { continue };
                    let keys: Vec<Key> = claimed.rows.iter().map(|row| row.key).collect();
                    let worker = worker.to_string();
                    outbox.release(&worker, id, &keys, Some(&failure(2))).await.unwrap();
                }
            }
        }
        // What a dead worker holds is given back, as the end of its lease would do.
        for (worker, claimed) in held {
            let keys: Vec<Key> = claimed.rows.iter().map(|row| row.key).collect();
            outbox.release(&worker.to_string(), id, &keys, None).await.unwrap();
        }
        outbox.retry(id).await.unwrap();
        while let Some(claimed) = claim(&outbox, "last").await {
            apply(&mut index, &claimed);
            outbox.complete("last", id, &done(&claimed)).await.unwrap();
        }
        let stored = store.list(id, None, 100).await.unwrap();
        index.retain(|_, version| *version != DELETED);
        let stored: HashMap<Key, i64> = stored.iter().map(|d| (d.key, d.generation)).collect();
        assert_eq!(index, stored, "{steps:?}");
        store.delete_collection(id).await.unwrap();
    }
}

const DELETED: i64 = i64::MAX;

/// As an index should: of two workers that have the same document the later version wins.
fn apply(index: &mut HashMap<Key, i64>, claimed: &Claimed) {
    for row in &claimed.rows {
        let version = if row.document.is_some() { row.version } else { DELETED };
        let known = index.entry(row.key).or_default();
        *known = version.max(*known);
    }
}

macro_rules! outbox_suite {
    ($module:ident, $make:path, $($case:ident,)*) => {
        mod $module {
            $(#[tokio::test]
            async fn $case() {
                let (store, outbox) = $make().await;
                super::$case(store, outbox).await;
            })*
        }
    };
}

async fn postgres() -> (Store, Rows) {
    let store = Arc::new(crate::postgres::store().await);
    (Arc::clone(&store) as Store, store)
}

outbox_suite!(
    on_postgres,
    super::postgres,
    a_row_is_committed_with_its_document,
    a_document_with_its_vector_leaves_no_row,
    two_workers_never_have_the_same_row,
    a_row_whose_lease_ran_out_is_taken_again,
    completing_stores_vectors_and_raises_what_is_visible,
    what_is_written_again_while_claimed_stays,
    a_vector_is_kept_while_the_text_stays,
    a_deleted_document_leaves_a_row_without_it,
    what_fails_too_often_is_set_aside_until_it_is_retried,
    what_was_not_tried_has_not_failed,
    a_failed_row_is_due_after_its_delay,
    small_writes_are_taken_before_bulk_ones_and_the_oldest_first,
    no_collection_waits_for_the_end_of_anothers_import,
    progress_counts_the_writes_of_a_generation,
    all_documents_can_be_left_to_the_workers_again,
    some_keys_can_be_left_to_the_workers_again,
    what_an_index_must_have_is_told_a_page_at_a_time,
    a_deleted_collection_leaves_no_work,
    nothing_is_forgotten,
);
