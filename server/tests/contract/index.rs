//! The contract of `SearchIndex`.
//!
//! An adapter joins by naming a [`Place`] in [`index_contract!`]: somewhere to keep an index that
//! starts empty and can be opened again.

mod local;
pub mod milvus;
mod milvus_v1;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sextant_server::domain::filter::Range;
use sextant_server::domain::fusion::Scored;
use sextant_server::domain::{
    Clause, CollectionName, Condition, Document, Filter, Key, Operator, Scalar, Value,
};
use sextant_server::ports::{
    Changes, Facets, IndexError, IndexedCollection, IndexedDocument, SearchIndex,
};

/// Where an index keeps its data for one test.
#[async_trait]
pub trait Place: Send + Sync {
    /// Opens the index. What an earlier one was told to close is there again.
    async fn index(&self) -> Arc<dyn SearchIndex>;

    /// Why the server behind the adapter cannot do what a case asks for. Such a case must fail:
    /// when it does not any more, the reason is gone.
    fn not_offered(&self, _case: &str) -> Option<&'static str> {
        None
    }
}

/// One test per case and adapter: `index_contract!(local, LocalPlace::new());`
macro_rules! index_contract {
    ($adapter:ident, $place:expr) => {
        mod $adapter {
            use super::*;
            $crate::index::index_contract!(@cases $place,
                an_empty_index_answers_with_nothing,
                an_upserted_document_is_found_at_once_by_vector_words_and_filter,
                an_update_replaces_what_was_known_of_a_document,
                a_deleted_document_is_gone_from_every_search,
                applying_the_same_changes_twice_changes_nothing,
                of_upserts_with_the_same_key_the_last_counts,
                a_key_that_is_deleted_and_upserted_at_once_is_there,
                the_generation_survives_closing_and_opening,
                every_filter_matches_what_it_means_by_definition,
                a_field_that_no_document_has_matches_nothing,
                a_filtered_search_fills_its_limit_whenever_enough_documents_match,
                facets_count_every_document_once_per_value,
                documents_with_equal_scores_are_ordered_by_key,
                words_are_plain_text_whatever_they_look_like,
                words_match_in_any_form_case_and_accent,
                a_filter_changes_no_score,
                words_are_scored_by_bm25_with_exact_lengths,
                a_limit_is_kept,
                versions_are_listed_in_the_order_of_their_keys,
                a_vector_of_another_length_is_refused_and_changes_nothing,
                searches_run_while_documents_are_written,
                an_unknown_collection_is_not_open,
                a_dropped_collection_is_gone_and_can_be_made_again,
                collections_do_not_see_each_other,
            );
        }
    };
    (@cases $place:expr, $($case:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let place = $place;
                let case = $crate::index::$case(&place);
                let Some(reason) = place.not_offered(stringify!($case)) else {
                    return case.await;
                };
                let outcome = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(case));
                assert!(outcome.await.is_err(), "this works by now: {reason}");
            }
        )*
    };
}
pub(crate) use index_contract;

pub const DIMENSION: usize = 8;
const ID: i64 = 7;

pub fn collection(id: i64, dimension: usize) -> IndexedCollection {
    let name = CollectionName::parse("contract").unwrap();
    IndexedCollection { id, collection: id, name, dimension }
}

async fn open(place: &dyn Place) -> Arc<dyn SearchIndex> {
    let index = place.index().await;
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 0);
    index
}

pub fn unit(mut vector: Vec<f32>) -> Arc<[f32]> {
    let norm = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    for number in &mut vector {
        *number /= norm;
    }
    vector.into()
}

pub fn random_unit(random: &mut StdRng, dimension: usize) -> Arc<[f32]> {
    unit((0..dimension).map(|_| random.random_range(-1.0..1.0)).collect())
}

/// A vector that is near those of neighbouring keys.
fn vector(key: Key) -> Arc<[f32]> {
    let angle = key as f32 / 50.0;
    let mut vector = vec![0.1; DIMENSION];
    (vector[0], vector[1]) = (angle.cos(), angle.sin());
    unit(vector)
}

pub fn document(key: Key, text: &str, fields: &[(&str, Value)]) -> IndexedDocument {
    let fields: BTreeMap<String, Value> =
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let document = Document { id: format!("id-{key}"), fields };
    IndexedDocument { key, version: 1, document, text: text.to_owned(), vector: vector(key) }
}

pub fn string(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn strings(values: &[&str]) -> Value {
    Value::Strings(values.iter().map(|value| (*value).to_owned()).collect())
}

fn number(value: f64) -> Value {
    Value::Number(serde_json::Number::from_f64(value).unwrap())
}

pub fn condition(field: &str, operator: Operator) -> Clause {
    Clause::Condition(Condition { field: field.to_owned(), operator })
}

pub fn is(field: &str, value: &str) -> Clause {
    condition(field, Operator::In(vec![Scalar::String(value.to_owned())]))
}

#[allow(clippy::unnecessary_wraps, reason = "as searches take it")]
pub fn must(clauses: Vec<Clause>) -> Option<Arc<Filter>> {
    Some(Arc::new(Filter { must: clauses, ..Filter::default() }))
}

pub fn upserts(generation: i64, upserts: Vec<IndexedDocument>) -> Changes {
    Changes { generation, upserts, deletes: Vec::new() }
}

pub fn keys(hits: &[Scored]) -> Vec<Key> {
    hits.iter().map(|hit| hit.key).collect()
}

async fn nearest(index: &dyn SearchIndex, key: Key, limit: usize) -> Vec<Key> {
    keys(&index.nearest(ID, vector(key), None, limit).await.unwrap())
}

/// Hits by words; `None` where there is no full text, which the index must say then.
async fn lexical(
    index: &dyn SearchIndex,
    id: i64,
    text: &str,
    filter: Option<Arc<Filter>>,
    limit: usize,
) -> Option<Vec<Scored>> {
    let hits = index.matching(id, text, filter, limit).await;
    if index.has_full_text() {
        return Some(hits.unwrap());
    }
    assert!(matches!(hits, Err(IndexError::Unsupported(_))), "{hits:?}");
    None
}

/// Documents found by words: none, and equal to any others, where there is no full text.
#[derive(Debug)]
struct Words(Option<Vec<Key>>);

impl<const N: usize> PartialEq<[Key; N]> for Words {
    fn eq(&self, keys: &[Key; N]) -> bool {
        self.0.as_ref().is_none_or(|found| found == keys)
    }
}

impl std::ops::Deref for Words {
    type Target = [Key];
    fn deref(&self) -> &[Key] {
        self.0.as_deref().unwrap_or_default()
    }
}

async fn matching(index: &dyn SearchIndex, text: &str) -> Words {
    Words(lexical(index, ID, text, None, 100).await.map(|hits| keys(&hits)))
}

async fn filtered(index: &dyn SearchIndex, filter: Option<Arc<Filter>>) -> BTreeSet<Key> {
    let hits = index.nearest(ID, vector(1), filter, 100_000).await.unwrap();
    let keys: BTreeSet<Key> = hits.iter().map(|hit| hit.key).collect();
    assert_eq!(keys.len(), hits.len(), "a document was found twice");
    keys
}

/// All answers that a search can give about a small index.
pub async fn answers(index: &dyn SearchIndex) -> (Vec<Vec<Key>>, Facets, u64) {
    let mut found = Vec::new();
    for key in 0..8 {
        found.push(keys(&index.nearest(ID, vector(key * 7), None, 20).await.unwrap()));
    }
    for text in ["squat", "press up", "deep knee bend", "absent"] {
        let hits = lexical(index, ID, text, None, 1000).await.unwrap_or_default();
        let mut found_keys = keys(&hits);
        // Scores depend on how many documents were ever written, their set does not.
        found_keys.sort_unstable();
        found.push(found_keys);
    }
    for level in ["easy", "hard"] {
        let filter = must(vec![is("level", level)]);
        found.push(keys(&index.nearest(ID, vector(3), filter, 1000).await.unwrap()));
    }
    let facets = index.facets(ID, None, None, &["level".to_owned()], 10).await.unwrap();
    (found, facets, index.count(ID).await.unwrap())
}

pub fn small_collection() -> Vec<IndexedDocument> {
    let texts = ["Squat with a barbell", "Press up on your knees", "A deep knee bend", "Rest"];
    (1..=40)
        .map(|key| {
            let level = if key % 3 == 0 { "hard" } else { "easy" };
            let text = texts[key as usize % texts.len()];
            document(key, text, &[("level", string(level)), ("minutes", number(key as f64))])
        })
        .collect()
}

pub async fn an_empty_index_answers_with_nothing(place: &dyn Place) {
    let index = open(place).await;
    let filter = must(vec![is("level", "easy")]);
    assert_eq!(nearest(&*index, 1, 10).await, [0; 0]);
    assert_eq!(index.nearest(ID, vector(1), filter.clone(), 10).await.unwrap(), []);
    assert_eq!(matching(&*index, "squat").await, [0; 0]);
    let hits = lexical(&*index, ID, "squat", filter.clone(), 10).await;
    assert_eq!(hits.unwrap_or_default(), []);
    let text = index.has_full_text().then_some("squat");
    let facets = index.facets(ID, text, filter, &["level".to_owned()], 10).await.unwrap();
    assert_eq!(facets, Facets(vec![("level".to_owned(), vec![])]));
    assert_eq!(index.count(ID).await.unwrap(), 0);
}

pub async fn an_upserted_document_is_found_at_once_by_vector_words_and_filter(place: &dyn Place) {
    let index = open(place).await;
    for key in 1..=5 {
        let level = format!("level {key}");
        let text = format!("exercise word{key}");
        let document = document(key, &text, &[("level", string(&level))]);
        index.apply(ID, upserts(key, vec![document])).await.unwrap();
        assert_eq!(nearest(&*index, key, 1).await, [key]);
        assert_eq!(matching(&*index, &format!("word{key}")).await, [key]);
        let filter = must(vec![is("level", &level)]);
        assert_eq!(filtered(&*index, filter).await, [key].into());
        assert_eq!(index.count(ID).await.unwrap(), key as u64);
    }
    let hits = index.nearest(ID, vector(2), None, 10).await.unwrap();
    assert!((hits[0].score - 1.0).abs() < 1e-3, "{hits:?}");
    assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
    assert!(hits.iter().all(|hit| (-1.0..=1.0).contains(&hit.score)));
    if let Some(hits) = lexical(&*index, ID, "exercise word3", None, 10).await {
        assert_eq!((hits[0].key, hits.len()), (3, 5));
        assert!(hits.iter().all(|hit| hit.score > 0.0));
    }
}

pub async fn an_update_replaces_what_was_known_of_a_document(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let fields = [("level", string("expert")), ("new", number(1.0))];
    let mut changed = document(3, "Plank", &fields);
    changed.document.id = String::from("renamed");
    changed.vector = unit(vec![-1.0; DIMENSION]);
    index.apply(ID, upserts(2, vec![changed.clone()])).await.unwrap();
    assert_eq!(index.count(ID).await.unwrap(), 40);
    let hits = index.nearest(ID, changed.vector.clone(), None, 40).await.unwrap();
    assert_eq!((hits[0].key, hits.len()), (3, 40));
    assert_eq!(hits.iter().filter(|hit| hit.key == 3).count(), 1);
    assert_eq!(matching(&*index, "plank").await, [3]);
    assert!(!matching(&*index, "rest").await.contains(&3));
    assert_eq!(filtered(&*index, must(vec![is("level", "expert")])).await, [3].into());
    assert!(!filtered(&*index, must(vec![is("level", "hard")])).await.contains(&3));
    let minutes = condition("minutes", Operator::Exists(true));
    assert!(!filtered(&*index, must(vec![minutes])).await.contains(&3));
    assert_eq!(filtered(&*index, must(vec![is("id", "renamed")])).await, [3].into());
    assert_eq!(filtered(&*index, must(vec![is("id", "id-3")])).await, [].into());
}

pub async fn a_deleted_document_is_gone_from_every_search(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let deletes: Vec<Key> = (1..=40).filter(|key| key % 2 == 0).collect();
    // One that never was there is no error.
    let deletes = [deletes, vec![4711]].concat();
    index.apply(ID, Changes { generation: 2, deletes, ..Changes::default() }).await.unwrap();
    let odd: BTreeSet<Key> = (1..=40).filter(|key| key % 2 == 1).collect();
    assert_eq!(index.count(ID).await.unwrap(), 20);
    assert_eq!(filtered(&*index, None).await, odd);
    let levels = ["easy", "hard"].map(|level| Scalar::String(level.to_owned()));
    let any_level = must(vec![condition("level", Operator::In(levels.to_vec()))]);
    assert_eq!(filtered(&*index, any_level).await, odd);
    for text in ["squat", "press", "knee", "rest"] {
        assert!(matching(&*index, text).await.iter().all(|key| odd.contains(key)));
    }
    let facets = index.facets(ID, None, None, &["level".to_owned()], 10).await.unwrap();
    assert_eq!(facets.0[0].1.iter().map(|value| value.count).sum::<u64>(), 20);
}

pub async fn applying_the_same_changes_twice_changes_nothing(place: &dyn Place) {
    let index = open(place).await;
    let first = upserts(1, small_collection());
    let second = Changes {
        generation: 2,
        upserts: vec![document(5, "Squat", &[("level", string("hard"))])],
        deletes: vec![6, 7],
    };
    index.apply(ID, first.clone()).await.unwrap();
    index.apply(ID, second.clone()).await.unwrap();
    let before = answers(&*index).await;
    for changes in [&second, &first, &second] {
        index.apply(ID, changes.clone()).await.unwrap();
    }
    assert_eq!(answers(&*index).await, before);
}

pub async fn of_upserts_with_the_same_key_the_last_counts(place: &dyn Place) {
    let index = open(place).await;
    let mut first = document(1, "Squat", &[("level", string("easy"))]);
    first.vector = unit(vec![-1.0; DIMENSION]);
    let last = document(1, "Plank", &[("level", string("hard"))]);
    index.apply(ID, upserts(1, vec![first, document(2, "Rest", &[]), last])).await.unwrap();
    assert_eq!(index.count(ID).await.unwrap(), 2);
    assert_eq!(nearest(&*index, 1, 1).await, [1]);
    assert_eq!(matching(&*index, "squat").await, [0; 0]);
    assert_eq!(filtered(&*index, must(vec![is("level", "hard")])).await, [1].into());
}

pub async fn a_key_that_is_deleted_and_upserted_at_once_is_there(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, vec![document(1, "Squat", &[])])).await.unwrap();
    let upserts = vec![document(1, "Plank", &[])];
    index.apply(ID, Changes { generation: 2, upserts, deletes: vec![1] }).await.unwrap();
    assert_eq!(matching(&*index, "plank").await, [1]);
    assert_eq!(nearest(&*index, 1, 1).await, [1]);
}

pub async fn the_generation_survives_closing_and_opening(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(40, small_collection())).await.unwrap();
    let deletes = vec![9];
    index.apply(ID, Changes { generation: 41, deletes, ..Changes::default() }).await.unwrap();
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 41);
    let before = answers(&*index).await;
    index.close().await.unwrap();
    assert!(matches!(index.count(ID).await, Err(IndexError::NotOpen(ID))));
    drop(index);
    let index = place.index().await;
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 41);
    assert_eq!(answers(&*index).await, before);
    // What came before may come again.
    let again = Changes { generation: 41, upserts: small_collection(), deletes: vec![9] };
    let without = again.upserts.iter().filter(|document| document.key != 9).cloned().collect();
    index.apply(ID, Changes { upserts: without, ..again }).await.unwrap();
    assert_eq!(answers(&*index).await, before);
    index.apply(ID, upserts(42, vec![document(99, "Plank", &[])])).await.unwrap();
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 42);
}

const WORDS: [&str; 9] =
    ["a", "b", "A", "", "a b", "a.b", "Über-\u{e9}", "\u{0}\u{1}", "2024-05-01T00:00:00Z"];
const NUMBERS: [f64; 12] =
    [0.0, -0.0, 1.0, 2.0, -1.0, 2.5, -2.5, 1e-9, 9_007_199_254_740_993.0, 1.9e19, -1e300, 1e300];

fn pick<'a, T>(random: &mut StdRng, items: &'a [T]) -> &'a T {
    &items[random.random_range(0..items.len())]
}

fn random_document(random: &mut StdRng, key: Key) -> IndexedDocument {
    let mut fields = Vec::new();
    if random.random_bool(0.7) {
        fields.push(("level", string(pick::<&str>(random, &WORDS))));
    }
    if random.random_bool(0.7) {
        let list: Vec<&str> =
            (0..random.random_range(0..4)).map(|_| *pick(random, &WORDS)).collect();
        fields.push(("muscle_groups", strings(&list)));
    }
    if random.random_bool(0.7) {
        fields.push(("weight-kg", number(*pick(random, &NUMBERS))));
    }
    if random.random_bool(0.3) {
        fields.push(("count", Value::Number(random.random_range(-3..3_i64).into())));
    }
    if random.random_bool(0.5) {
        fields.push(("unilateral", Value::Bool(random.random_bool(0.5))));
    }
    document(key, "text", &fields)
}

fn random_filter(random: &mut StdRng, depth: usize) -> Filter {
    let clauses = |random: &mut StdRng, most: usize| -> Vec<Clause> {
        (0..random.random_range(0..=most))
            .map(|_| {
                if depth < 3 && random.random_bool(0.25) {
                    Clause::Filter(random_filter(random, depth + 1))
                } else {
                    random_condition(random)
                }
            })
            .collect()
    };
    let must = clauses(random, 2);
    let should = clauses(random, 3);
    Filter { must, should, must_not: clauses(random, 2) }
}

fn random_condition(random: &mut StdRng) -> Clause {
    const FIELDS: [&str; 7] =
        ["level", "muscle_groups", "weight-kg", "count", "unilateral", "id", "absent"];
    let field = *pick(random, &FIELDS);
    let operator = match random.random_range(0..3) {
        0 => Operator::Exists(random.random_bool(0.5)),
        1 => {
            let bound =
                |random: &mut StdRng| random.random_bool(0.4).then(|| *pick(random, &NUMBERS));
            let (gt, gte) = (bound(random), bound(random));
            Operator::Range(Range { gt, gte, lt: bound(random), lte: bound(random) })
        }
        _ => {
            let values = (0..random.random_range(0..4))
                .map(|_| match (field, random.random_range(0..10)) {
                    ("id", _) => Scalar::String(format!("id-{}", random.random_range(0..400))),
                    (_, 0) | ("unilateral", _) => Scalar::Bool(random.random_bool(0.5)),
                    (_, 1) | ("weight-kg" | "count", _) => Scalar::Number(*pick(random, &NUMBERS)),
                    _ => Scalar::String((*pick(random, &WORDS)).to_owned()),
                })
                .collect();
            Operator::In(values)
        }
    };
    condition(field, operator)
}

pub async fn every_filter_matches_what_it_means_by_definition(place: &dyn Place) {
    let index = open(place).await;
    let mut random = StdRng::seed_from_u64(2);
    let mut documents: BTreeMap<Key, IndexedDocument> = BTreeMap::new();
    // Several rounds with updates and deletions: an index may keep its documents in parts.
    for generation in 1..=6 {
        let mut changes = Changes { generation, ..Changes::default() };
        for _ in 0..80 {
            let key = generation * 60 + random.random_range(0..80);
            let document = random_document(&mut random, key);
            changes.upserts.retain(|other| other.key != document.key);
            changes.upserts.push(document);
        }
        for _ in 0..15 {
            let key = generation * 60 + random.random_range(-60..0);
            documents.remove(&key);
            if changes.upserts.iter().all(|document| document.key != key) {
                changes.deletes.push(key);
            }
        }
        for document in &changes.upserts {
            documents.insert(document.key, document.clone());
        }
        index.apply(ID, changes).await.unwrap();
    }
    assert_eq!(filtered(&*index, None).await, documents.keys().copied().collect());
    let mut matched = 0;
    for _ in 0..600 {
        let filter = random_filter(&mut random, 1);
        let expected: BTreeSet<Key> = documents
            .values()
            .filter(|indexed| filter.matches(&indexed.document))
            .map(|indexed| indexed.key)
            .collect();
        matched += usize::from(!expected.is_empty() && expected.len() < documents.len());
        let shared = Some(Arc::new(filter.clone()));
        assert_eq!(filtered(&*index, shared.clone()).await, expected, "{filter:?}");
        if let Some(words) = lexical(&*index, ID, "text", shared, 100_000).await {
            assert_eq!(keys(&words).into_iter().collect::<BTreeSet<_>>(), expected, "{filter:?}");
        }
    }
    assert!(matched > 200, "only {matched} filters divide the documents");
}

pub async fn a_field_that_no_document_has_matches_nothing(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let operators = [
        Operator::Exists(true),
        Operator::In(vec![Scalar::String("a".to_owned()), Scalar::Bool(true), Scalar::Number(1.0)]),
        Operator::Range(Range { gte: Some(0.0), ..Range::default() }),
    ];
    for operator in operators {
        let filter = must(vec![condition("absent", operator.clone())]);
        assert_eq!(filtered(&*index, filter).await, [].into(), "{operator:?}");
        let must_not = vec![condition("absent", operator)];
        let filter = Some(Arc::new(Filter { must_not, ..Filter::default() }));
        assert_eq!(filtered(&*index, filter).await.len(), 40);
    }
    let facets = index.facets(ID, None, None, &["absent".to_owned()], 10).await.unwrap();
    assert_eq!(facets, Facets(vec![("absent".to_owned(), vec![])]));
}

pub async fn a_filtered_search_fills_its_limit_whenever_enough_documents_match(place: &dyn Place) {
    const DOCUMENTS: i64 = 12_000;
    let index = open(place).await;
    let mut random = StdRng::seed_from_u64(3);
    let documents: Vec<IndexedDocument> = (1..=DOCUMENTS)
        .map(|key| {
            let fields =
                [("percent", number((key % 100) as f64)), ("half", Value::Bool(key % 2 == 0))];
            let mut document = document(key, "text", &fields);
            document.vector = random_unit(&mut random, DIMENSION);
            document
        })
        .collect();
    for (chunk, generation) in documents.chunks(4_000).zip(1..) {
        index.apply(ID, upserts(generation, chunk.to_vec())).await.unwrap();
    }
    let below = |bound: f64| {
        condition("percent", Operator::Range(Range { lt: Some(bound), ..Range::default() }))
    };
    let half = condition("half", Operator::In(vec![Scalar::Bool(true)]));
    let filters = [below(1.0), below(10.0), half, below(50.0), below(90.0)];
    for filter in filters {
        let filter = must(vec![filter]).unwrap();
        let count = documents.iter().filter(|document| filter.matches(&document.document)).count();
        for limit in [1, 10, 100, 1_000, 20_000] {
            let query = random_unit(&mut random, DIMENSION);
            let hits = index.nearest(ID, query, Some(filter.clone()), limit).await.unwrap();
            assert_eq!(hits.len(), limit.min(count), "limit {limit} of {count}");
            assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
            let matches = |hit: &Scored| filter.matches(&documents[hit.key as usize - 1].document);
            assert!(hits.iter().all(matches));
        }
    }
    let unfiltered = index.nearest(ID, vector(1), None, 20_000).await.unwrap();
    assert_eq!(unfiltered.len(), DOCUMENTS as usize);
}

pub async fn facets_count_every_document_once_per_value(place: &dyn Place) {
    let index = open(place).await;
    let levels = ["easy", "easy", "easy", "hard", "hard", "expert", "average"];
    for (key, level) in (1..).zip(levels) {
        let text = if key % 2 == 1 { "odd one" } else { "even one" };
        let fields = [
            ("level", string(level)),
            ("groups", strings(&["core", "core", if key < 3 { "back" } else { "chest" }])),
            ("unilateral", Value::Bool(key == 1)),
        ];
        index.apply(ID, upserts(key, vec![document(key, text, &fields)])).await.unwrap();
    }
    // An update and a deletion leave nothing behind.
    let fields = [("level", string("easy"))];
    index.apply(ID, upserts(8, vec![document(1, "odd one", &fields)])).await.unwrap();
    let deletes = vec![7];
    index.apply(ID, Changes { generation: 9, deletes, ..Changes::default() }).await.unwrap();
    let fields = ["groups", "level", "unilateral"].map(str::to_owned);
    let facets = async |text: Option<&str>, filter, values| {
        let facets = index.facets(ID, text, filter, &fields, values).await.unwrap().0;
        facets
            .into_iter()
            .map(|(field, values)| {
                let values: Vec<String> =
                    values.iter().map(|v| format!("{} {}", v.value, v.count)).collect();
                format!("{field}: {}", values.join(", "))
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        facets(None, None, 10).await,
        [
            "groups: core 5, chest 4, back 1",
            "level: easy 3, hard 2, expert 1",
            "unilateral: false 5"
        ]
    );
    assert_eq!(
        facets(None, must(vec![is("groups", "back")]), 10).await,
        ["groups: back 1, core 1", "level: easy 1", "unilateral: false 1"]
    );
    if !index.has_full_text() {
        let refused = index.facets(ID, Some("odd"), None, &fields, 10).await;
        assert!(matches!(refused, Err(IndexError::Unsupported(_))), "{refused:?}");
        return;
    }
    assert_eq!(
        facets(Some("odd absent"), None, 10).await,
        ["groups: chest 2, core 2", "level: easy 2, hard 1", "unilateral: false 2"]
    );
    assert_eq!(
        facets(Some("even"), must(vec![is("level", "hard")]), 1).await,
        ["groups: chest 1", "level: hard 1", "unilateral: false 1"]
    );
    assert_eq!(facets(Some("absent"), None, 10).await, ["groups: ", "level: ", "unilateral: "]);
    assert_eq!(facets(Some("?!"), None, 10).await, ["groups: ", "level: ", "unilateral: "]);
}

pub async fn documents_with_equal_scores_are_ordered_by_key(place: &dyn Place) {
    let index = open(place).await;
    let order = [9, 3, 12, 1, 30, 22, 5];
    for (key, generation) in order.into_iter().zip(1..) {
        let mut document = document(key, "Squat down and press up", &[("level", string("easy"))]);
        document.vector = vector(1);
        index.apply(ID, upserts(generation, vec![document])).await.unwrap();
    }
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    let filter = must(vec![is("level", "easy")]);
    for limit in 1..=order.len() {
        assert_eq!(nearest(&*index, 1, limit).await, sorted[..limit]);
        let hits = index.nearest(ID, vector(1), filter.clone(), limit).await.unwrap();
        assert_eq!(keys(&hits), sorted[..limit]);
        let hits = lexical(&*index, ID, "press a squat up down", None, limit).await;
        assert!(hits.is_none_or(|hits| keys(&hits) == sorted[..limit]));
    }
}

pub async fn words_are_plain_text_whatever_they_look_like(place: &dyn Place) {
    let index = open(place).await;
    let texts = ["C++ and title:squat", "AND OR NOT", "\"quoted phrase\" +a -b", "the of and"];
    let documents = (1..).zip(texts).map(|(key, text)| document(key, text, &[])).collect();
    index.apply(ID, upserts(1, documents)).await.unwrap();
    assert_eq!(matching(&*index, "title:squat").await, [1]);
    assert_eq!(matching(&*index, "quoted +\"-b").await, [3]);
    assert_eq!(matching(&*index, "phrase absent").await, [3]);
    for text in ["", "   ", "+-\"", "(", "id:*", "/x/"] {
        assert_eq!(matching(&*index, text).await, [0; 0], "{text:?}");
    }
    // Common words are looked for when there are no others.
    assert!(!index.has_full_text() || matching(&*index, "the of").await.contains(&4));
}

pub async fn words_match_in_any_form_case_and_accent(place: &dyn Place) {
    let index = open(place).await;
    let texts = ["Stretching for runners", "Cafe\u{301} chairs", "Über die Straße"];
    let documents = (1..).zip(texts).map(|(key, text)| document(key, text, &[])).collect();
    index.apply(ID, upserts(1, documents)).await.unwrap();
    for (text, key) in
        [("stretch", 1), ("RUNNER", 1), ("caf\u{e9}", 2), ("cafe", 2), ("chair", 2), ("uber", 3)]
    {
        assert_eq!(matching(&*index, text).await, [key], "{text:?}");
    }
}

pub async fn a_filter_changes_no_score(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let filter = must(vec![is("level", "hard"), condition("minutes", Operator::Exists(true))]);
    let by_words = lexical(&*index, ID, "squat knee", filter.clone(), 40).await;
    let by_vector = index.nearest(ID, vector(3), filter, 40).await.unwrap();
    for filtered in by_words.into_iter().chain([by_vector]) {
        assert!(!filtered.is_empty());
        let words = lexical(&*index, ID, "squat knee", None, 40).await.unwrap_or_default();
        let all = [words, index.nearest(ID, vector(3), None, 40).await.unwrap()].concat();
        assert!(filtered.iter().all(|hit| all.contains(hit)));
    }
}

/// A score as the definition has it, of documents that are lists of words.
pub fn bm25(documents: &[Vec<&str>], place: usize, query: &[&str]) -> f64 {
    let (k1, b) = (1.2, 0.75);
    let count = documents.len() as f64;
    let average = documents.iter().map(Vec::len).sum::<usize>() as f64 / count;
    let of_word = |word: &&str| {
        let holders = documents.iter().filter(|it| it.contains(word)).count() as f64;
        let frequency = documents[place].iter().filter(|it| *it == word).count() as f64;
        let norm = k1 * (1.0 - b + b * documents[place].len() as f64 / average);
        let weight = (1.0 + (count - holders + 0.5) / (holders + 0.5)).ln();
        weight * frequency * (k1 + 1.0) / (frequency + norm)
    };
    query.iter().map(of_word).sum()
}

pub async fn words_are_scored_by_bm25_with_exact_lengths(place: &dyn Place) {
    let index = open(place).await;
    // Lengths that differ by little and are beyond those that one byte tells apart.
    let texts: Vec<Vec<&str>> = (0..20_usize)
        .map(|n| [vec!["squat"; n % 3 + 1], vec!["knee"; n % 2], vec!["calm"; 290 + n]].concat())
        .collect();
    let documents =
        (1..).zip(&texts).map(|(key, words)| document(key, &words.join(" "), &[])).collect();
    index.apply(ID, upserts(1, documents)).await.unwrap();
    let Some(hits) = lexical(&*index, ID, "squat knee", None, 100).await else { return };
    assert_eq!(hits.len(), texts.len());
    for hit in hits {
        let expected = bm25(&texts, hit.key as usize - 1, &["squat", "knee"]);
        assert!((f64::from(hit.score) - expected).abs() < 1e-5, "{hit:?}, not {expected}");
    }
}

pub async fn a_limit_is_kept(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let filter = must(vec![is("level", "easy")]);
    for limit in [0, 1, 5] {
        for filter in [None, filter.clone()] {
            let hits = index.nearest(ID, vector(1), filter.clone(), limit).await.unwrap();
            assert_eq!(hits.len(), limit);
            let hits = lexical(&*index, ID, "squat press knee", filter, limit).await;
            assert!(hits.is_none_or(|hits| hits.len() == limit));
        }
    }
}

pub async fn versions_are_listed_in_the_order_of_their_keys(place: &dyn Place) {
    let index = open(place).await;
    let listed = |after, limit| {
        let versions = index.versions(ID, after, limit);
        async move { versions.await.unwrap().iter().map(|v| (v.key, v.version)).collect::<Vec<_>>() }
    };
    assert_eq!(listed(None, 5).await, []);
    let mut documents = small_collection();
    for document in &mut documents {
        document.version = document.key * 10;
    }
    documents.reverse();
    index.apply(ID, upserts(1, documents)).await.unwrap();
    let mut changed = document(7, "Rest", &[]);
    changed.version = 500;
    let deletes = vec![6];
    index.apply(ID, Changes { generation: 2, upserts: vec![changed], deletes }).await.unwrap();
    assert_eq!(listed(None, 3).await, [(1, 10), (2, 20), (3, 30)]);
    assert_eq!(listed(Some(4), 3).await, [(5, 50), (7, 500), (8, 80)]);
    assert_eq!(listed(Some(39), 3).await, [(40, 400)]);
    assert_eq!(listed(Some(40), 3).await, []);
}

pub async fn a_vector_of_another_length_is_refused_and_changes_nothing(place: &dyn Place) {
    let index = open(place).await;
    let good = document(1, "Squat", &[]);
    let mut short = document(2, "Squat", &[]);
    short.vector = Arc::from([1.0; 3]);
    assert!(index.apply(ID, upserts(1, vec![good.clone(), short])).await.is_err());
    assert_eq!(index.count(ID).await.unwrap(), 0);
    assert!(index.nearest(ID, Arc::from([1.0; 3]), None, 1).await.is_err());
    index.apply(ID, upserts(1, vec![good])).await.unwrap();
    assert_eq!(nearest(&*index, 1, 1).await, [1]);
}

pub async fn searches_run_while_documents_are_written(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    let writer = tokio::spawn({
        let index = Arc::clone(&index);
        async move {
            for generation in 2..12 {
                let from = generation * 200;
                let documents = (from..from + 200)
                    .map(|key| document(key, "Plank", &[("level", string("new"))]))
                    .chain(small_collection())
                    .collect();
                index.apply(ID, upserts(generation, documents)).await.unwrap();
            }
        }
    });
    let searchers: Vec<_> = (0..4)
        .map(|_| {
            let index = Arc::clone(&index);
            tokio::spawn(async move {
                let filter = must(vec![is("level", "easy")]);
                for _ in 0..100 {
                    let hits = index.nearest(ID, vector(3), filter.clone(), 5).await.unwrap();
                    assert_eq!(hits.len(), 5);
                    assert_eq!(index.nearest(ID, vector(3), None, 5).await.unwrap().len(), 5);
                    let hits = lexical(&*index, ID, "squat", None, 5).await;
                    assert!(hits.is_none_or(|hits| hits.len() == 5));
                }
            })
        })
        .collect();
    for task in searchers {
        task.await.unwrap();
    }
    writer.await.unwrap();
    assert_eq!(index.count(ID).await.unwrap(), 2040);
}

pub async fn an_unknown_collection_is_not_open(place: &dyn Place) {
    let index = place.index().await;
    let changes = upserts(1, small_collection());
    assert!(matches!(index.apply(3, changes).await, Err(IndexError::NotOpen(3))));
    assert!(matches!(index.nearest(3, vector(1), None, 1).await, Err(IndexError::NotOpen(3))));
    assert!(matches!(index.matching(3, "a", None, 1).await, Err(IndexError::NotOpen(3))));
    assert!(matches!(index.facets(3, None, None, &[], 1).await, Err(IndexError::NotOpen(3))));
    assert!(matches!(index.count(3).await, Err(IndexError::NotOpen(3))));
    index.drop_collection(&collection(3, DIMENSION)).await.unwrap();
}

pub async fn a_dropped_collection_is_gone_and_can_be_made_again(place: &dyn Place) {
    let index = open(place).await;
    index.apply(ID, upserts(1, small_collection())).await.unwrap();
    index.drop_collection(&collection(ID, DIMENSION)).await.unwrap();
    assert!(matches!(index.count(ID).await, Err(IndexError::NotOpen(ID))));
    let result = index.nearest(ID, vector(1), None, 1).await;
    assert!(matches!(result, Err(IndexError::NotOpen(ID))));
    index.drop_collection(&collection(ID, DIMENSION)).await.unwrap();
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 0);
    assert_eq!(filtered(&*index, None).await, [].into());
    assert_eq!(matching(&*index, "squat").await, [0; 0]);
}

pub async fn collections_do_not_see_each_other(place: &dyn Place) {
    let index = open(place).await;
    let others: Vec<i64> = (100..108).collect();
    for id in &others {
        assert_eq!(index.open(&collection(*id, DIMENSION)).await.unwrap(), 0);
        let word = format!("word{id}");
        index.apply(*id, upserts(1, vec![document(1, &word, &[])])).await.unwrap();
    }
    for id in &others {
        index.apply(*id, upserts(2, vec![document(2, "shared", &[])])).await.unwrap();
        assert_eq!(index.count(*id).await.unwrap(), 2);
        for other in &others {
            let hits = lexical(&*index, *id, &format!("word{other}"), None, 10).await;
            assert!(hits.is_none_or(|hits| hits.len() == usize::from(id == other)));
        }
    }
    assert_eq!(index.count(ID).await.unwrap(), 0);
}
