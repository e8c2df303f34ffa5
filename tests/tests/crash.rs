//! A server that is killed loses nothing that it acknowledged, shows nothing that it did not, and
//! starts again. Seeded: `SEXTANT_SEED=… cargo test … --test crash` repeats a run's choices (not
//! its timing).
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use sextant_tests::{Answer, Api, Options, Process, Server};

const KILLS: usize = 50;
const WRITERS: usize = 4;
/// Identifiers of one writer: few, so that documents are overwritten and deleted again and again.
const IDS: usize = 60;
const COLLECTION: &str = "crash";
/// Hits of one search.
const PAGE: usize = 100;
const WORDS: [&str; 12] = [
    "bend",
    "hold",
    "knees",
    "lift",
    "lower",
    "mat",
    "press",
    "push",
    "shoulders",
    "slow",
    "squat",
    "stretch",
];

/// What the server may have of one identifier: exactly one state after an acknowledged write, more
/// after writes that were cut off. `None` is a document that is not there.
type States = Vec<Option<Value>>;

/// One task that writes; no other task touches its identifiers, so it knows what must be there.
struct Writer {
    number: usize,
    rng: StdRng,
    version: u64,
    expected: BTreeMap<String, States>,
    /// Identifiers of the batch that was cut off, which is written whole or not at all.
    cut_batch: Vec<String>,
    acknowledged: u64,
}

impl Writer {
    fn new(number: usize, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed ^ (number as u64 + 1));
        let (expected, cut_batch) = (BTreeMap::new(), Vec::new());
        Self { number, rng, version: 0, expected, cut_batch, acknowledged: 0 }
    }

    fn some_id(&mut self) -> String {
        format!("w{}-{}", self.number, self.rng.random_range(0..IDS))
    }

    /// A document of a new version: its first word is in no other document, nor in another version.
    fn some_document(&mut self, id: &str) -> Value {
        self.version += 1;
        let length = self.rng.random_range(2..8);
        let mut words = vec![format!("unique{}x{}", self.number, self.version)];
        words.extend((0..length).map(|_| (*WORDS.choose(&mut self.rng).unwrap()).to_owned()));
        json!({
            "id": id, "name": "exercise", "description": words.join(" "),
            "writer": format!("writer-{}", self.number), "even": self.version.is_multiple_of(2),
            "version": self.version,
        })
    }

    /// Writes until the server is gone.
    async fn write(&mut self, api: &Api) {
        while self.write_once(api).await {}
    }

    /// One write; false when the server did not answer.
    async fn write_once(&mut self, api: &Api) -> bool {
        let path = format!("/v1/collections/{COLLECTION}/documents");
        match self.rng.random_range(0..10) {
            0..4 => {
                let id = self.some_id();
                let document = self.some_document(&id);
                let request = api.request(Method::PUT, &format!("{path}/{id}")).json(&document);
                self.note(vec![(id, Some(document))], &api.send(request).await, 200)
            }
            4..7 => {
                let id = self.some_id();
                let known = self.expected.get(&id).map_or(&[None][..], Vec::as_slice);
                let status = if known == [None] { 404 } else { 204 };
                let request = api.request(Method::DELETE, &format!("{path}/{id}"));
                self.note(vec![(id, None)], &api.send(request).await, status)
            }
            _ => {
                let ids: BTreeSet<_> =
                    (0..self.rng.random_range(2..24)).map(|_| self.some_id()).collect();
                let batch: Vec<_> =
                    ids.into_iter().map(|id| (id.clone(), Some(self.some_document(&id)))).collect();
                let lines: Vec<_> =
                    batch.iter().flat_map(|(_, d)| d).map(Value::to_string).collect();
                let request = api
                    .request(Method::POST, &path)
                    .header("content-type", "application/x-ndjson")
                    .body(lines.join("\n"));
                self.note(batch, &api.send(request).await, 200)
            }
        }
    }

    fn note(
        &mut self,
        writes: Vec<(String, Option<Value>)>,
        answer: &reqwest::Result<Answer>,
        status: u16,
    ) -> bool {
        if let Ok(answer) = answer {
            assert_eq!(answer.status, status, "{writes:?}: {}", answer.text);
            self.acknowledged += 1;
        } else {
            self.cut_batch = writes.iter().map(|(id, _)| id.clone()).collect();
        }
        for (id, state) in writes {
            let states = self.expected.entry(id).or_insert_with(|| vec![None]);
            if answer.is_ok() {
                states.clear();
            }
            states.push(state);
        }
        answer.is_ok()
    }

    /// Checks what the server has against what it may have; from then on exactly that is expected.
    fn check(&mut self, present: &BTreeMap<String, Value>) {
        let mut new = BTreeSet::new();
        for (id, states) in &mut self.expected {
            let seen = present.get(id).cloned();
            let at = states.iter().rposition(|state| *state == seen);
            let at = at.unwrap_or_else(|| panic!("{id} is {seen:?}, it must be one of {states:?}"));
            if self.cut_batch.contains(id) {
                new.insert(at > 0);
            }
            *states = vec![seen];
        }
        assert!(new.len() < 2, "a part of one batch was written: {:?}", self.cut_batch);
        self.cut_batch.clear();
    }
}

/// Everything that the server has, after checking that all ways to it agree.
async fn consistent_documents(api: &Api) -> BTreeMap<String, Value> {
    let listed = api.documents(COLLECTION).await;
    assert_eq!(api.count(COLLECTION).await, listed.len(), "count and listing");
    let present: BTreeMap<String, Value> = listed
        .into_iter()
        .map(|document| (document["id"].as_str().unwrap().to_owned(), document))
        .collect();

    // Every identifier that may ever have been written is looked for, in every mode.
    let every: Vec<String> =
        (0..WRITERS).flat_map(|w| (0..IDS).map(move |i| format!("w{w}-{i}"))).collect();
    for ids in every.chunks(PAGE) {
        let expected: BTreeSet<_> = ids.iter().filter(|id| present.contains_key(*id)).collect();
        for mode in ["dense", "lexical", "hybrid"] {
            let found = api
                .found(
                    COLLECTION,
                    &json!({
                        "query": "exercise", "mode": mode, "limit": PAGE,
                        "filter": {"must": [{"field": "id", "in": ids}]},
                    }),
                )
                .await;
            assert_eq!(found.iter().collect::<BTreeSet<_>>(), expected, "{mode} search");
            assert_eq!(found.len(), expected.len(), "{mode} search: no document twice");
        }
    }
    for mode in ["dense", "lexical"] {
        let request =
            json!({"query": "exercise", "mode": mode, "limit": 1, "facets": ["writer", "even"]});
        let counted = api.search(COLLECTION, &request).await;
        for field in ["writer", "even"] {
            let mut expected = BTreeMap::<String, u64>::new();
            for document in present.values() {
                let value = &document[field];
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                *expected.entry(value).or_default() += 1;
            }
            let facets = counted["facets"][field].as_array().unwrap().iter();
            let facets: BTreeMap<_, _> = facets
                .map(|f| (f["value"].as_str().unwrap().to_owned(), f["count"].as_u64().unwrap()))
                .collect();
            assert_eq!(facets, expected, "{mode} facet {field}");
        }
    }
    present
}

/// Looks for some documents by reading them and by the word that only their present version has.
async fn each_is_found_by_its_word<'a>(api: &Api, documents: impl Iterator<Item = &'a Value>) {
    for document in documents {
        let id = document["id"].as_str().unwrap();
        let path = format!("/v1/collections/{COLLECTION}/documents/{id}");
        assert_eq!(api.get(&path).await.ok(), *document);
        let word = document["description"].as_str().unwrap().split(' ').next().unwrap();
        let by_word = json!({"query": word, "mode": "lexical"});
        assert_eq!(api.found(COLLECTION, &by_word).await, [id], "{word}");
        // The nearest document by meaning may share the first place.
        let by_both = json!({"query": word, "mode": "hybrid", "limit": 2});
        assert!(api.found(COLLECTION, &by_both).await.iter().any(|found| found == id), "{word}");
    }
}

fn options(folder: &tempfile::TempDir, rng: &mut StdRng) -> Options {
    // Snapshots of the vector index at nearly every write, at some, and at none.
    let snapshot_every = ["3", "50", "20000"].choose(rng).unwrap();
    Options::model().data_dir(folder.path()).set("index.snapshot_every", snapshot_every)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_during_writes_lose_nothing_that_was_acknowledged() {
    let seed = std::env::var("SEXTANT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();

    let server = Server::start(options(&folder, &mut rng)).await;
    let schema = json!({"attributes": {"writer": "string", "even": "bool"}});
    server.api.put(&format!("/v1/collections/{COLLECTION}"), &schema).await.ok();
    server.kill9().await;

    for kill in 1..=KILLS {
        let process = Process::spawn(&options(&folder, &mut rng));
        if kill % 6 == 0 {
            // While it starts: replay and recovery must bear to be killed, too.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..700))).await;
            process.kill9().await;
            continue;
        }
        let server = process.ready().await;
        let present = consistent_documents(&server.api).await;
        for writer in &mut writers {
            writer.check(&present);
        }
        let some = present.values().collect::<Vec<_>>();
        each_is_found_by_its_word(&server.api, some.choose_multiple(&mut rng, 5).copied()).await;

        let api = server.api.clone();
        let writing = join_all(writers.iter_mut().map(|writer| writer.write(&api)));
        let until = Duration::from_millis(rng.random_range(0..900));
        let killing = async {
            tokio::time::sleep(until).await;
            server.kill9().await;
        };
        tokio::join!(writing, killing);
    }

    let began = Instant::now();
    let server = Server::start(options(&folder, &mut rng)).await;
    println!("last start in {:?}", began.elapsed());
    let present = consistent_documents(&server.api).await;
    for writer in &mut writers {
        writer.check(&present);
    }
    each_is_found_by_its_word(&server.api, present.values()).await;
    for id in writers.iter().flat_map(|writer| writer.expected.keys()) {
        if !present.contains_key(id) {
            let path = format!("/v1/collections/{COLLECTION}/documents/{id}");
            assert_eq!(server.api.get(&path).await.status, 404, "{id}");
        }
    }
    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    println!("{acknowledged} writes acknowledged, {} documents at the end", present.len());
    assert!(acknowledged > 2 * KILLS as u64, "too few writes to tell anything: {acknowledged}");
    assert!(server.terminate().await.success());
}
