//! Another index takes over while searches and writes go on.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sextant_tests::production::Stores;
use sextant_tests::{Api, Options, PATIENCE, Server};

use super::{COLLECTION, collection, document, import, lines, until};

const DOCUMENTS: usize = 1_000;
const WRITE_EVERY: Duration = Duration::from_millis(50);
const FIRST_MODEL: &str = "hashed-words";
const NEXT_MODEL: &str = "hashed-words-1";

/// Servers that run both models.
fn options(stores: &Stores) -> Options {
    stores.options(Options::hash()).set("next_embedder.kind", "hash")
}

async fn started() -> (Stores, Vec<Server>) {
    let stores = Stores::start().await;
    let starting = (0..2).map(|_| Server::start(options(&stores)));
    let servers = futures::future::join_all(starting).await;
    collection(&servers, &json!({})).await;
    import(&servers[0].api, lines(0..DOCUMENTS, 1)).await;
    (stores, servers)
}

async fn reindex(options: &Options, arguments: &[&str]) -> Output {
    let arguments = [&["reindex", "--collection", COLLECTION], arguments].concat();
    let running = options.cli(&arguments).output();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap()
}

async fn succeeded(options: &Options, arguments: &[&str]) -> String {
    let output = reindex(options, arguments).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn refused(options: &Options, arguments: &[&str]) -> String {
    let output = reindex(options, arguments).await;
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Searches and writes in the background.
struct Load {
    stop: Arc<AtomicBool>,
    /// That have answered.
    models: Arc<Mutex<BTreeSet<String>>>,
    searches: Vec<tokio::task::JoinHandle<()>>,
    writes: tokio::task::JoinHandle<usize>,
}

impl Load {
    fn start(servers: &[Server]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let models = Arc::new(Mutex::new(BTreeSet::new()));
        let searches = servers.iter().map(|server| {
            let (api, stop, models) = (server.api.clone(), Arc::clone(&stop), Arc::clone(&models));
            tokio::spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number = (number + 7) % DOCUMENTS;
                    let model = search(&api, number).await;
                    models.lock().unwrap().insert(model);
                }
            })
        });
        let searches = searches.collect();
        let (api, stopped) = (servers[0].api.clone(), Arc::clone(&stop));
        let writes = tokio::spawn(async move {
            let mut written = 0;
            // As many as one Milvus takes in beside the build.
            let mut beats = tokio::time::interval(WRITE_EVERY);
            while !stopped.load(Ordering::Relaxed) {
                beats.tick().await;
                let answer = api.import(COLLECTION, lines(next(written), 1)).await;
                assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
                written += 1;
            }
            written
        });
        Self { stop, models, searches, writes }
    }

    /// The models that answered, and how many documents were written.
    async fn stop(self) -> (BTreeSet<String>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for searches in self.searches {
            searches.await.unwrap();
        }
        let models = self.models.lock().unwrap().clone();
        (models, self.writes.await.unwrap())
    }
}

fn next(written: usize) -> std::ops::Range<usize> {
    DOCUMENTS + written..DOCUMENTS + written + 1
}

/// The text of a document finds it with a score of 1 when query and index are of one model, and
/// with one near 0 when they are not. Returns the model.
async fn search(api: &Api, number: usize) -> String {
    let text = format!("word{number} revision1");
    let path = format!("/v1/collections/{COLLECTION}/search");
    let question = json!({"query": text, "limit": 1, "mode": "dense"});
    let answer = api.post(&path, &question).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_ne!(answer.body["degraded"], true, "{}", answer.text);
    let hit = &answer.body["hits"][0];
    assert_eq!(hit["id"], document(number, 1)["id"], "{}", answer.text);
    assert!(hit["score"].as_f64().unwrap() > 0.999, "{}", answer.text);
    answer.body["index"]["model"].as_str().unwrap().to_owned()
}

async fn model(api: &Api) -> Value {
    api.get(&format!("/v1/collections/{COLLECTION}")).await.ok()["embedding"]["model"].clone()
}

/// Both servers search by a model, and find every document by it.
async fn found_by(servers: &[Server], model: &str, documents: usize) {
    for server in servers {
        until("the server searches by the model", async || self::model(&server.api).await == model)
            .await;
        let question = json!({"query": "word", "facets": ["revision"], "limit": 1});
        let wanted = json!({"revision": [{"value": "r1", "count": documents}]});
        until("every document is there", async || {
            server.api.search(COLLECTION, &question).await["facets"] == wanted
        })
        .await;
        for number in (0..documents).step_by(53).chain([documents - 1]) {
            assert_eq!(search(&server.api, number).await, model);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_goes_over_to_another_model_and_back_without_a_failed_search() {
    let (stores, servers) = started().await;
    let options = options(&stores);
    let load = Load::start(&servers);
    let told = succeeded(&options, &["--model", NEXT_MODEL]).await;
    assert!(told.contains(NEXT_MODEL), "{told}");
    for server in &servers {
        until("the servers know", async || model(&server.api).await == NEXT_MODEL).await;
    }
    until("searches by the model", async || load.models.lock().unwrap().contains(NEXT_MODEL)).await;
    let (models, written) = load.stop().await;
    assert_eq!(models, [FIRST_MODEL, NEXT_MODEL].map(str::to_owned).into());
    assert!(written > 0);
    found_by(&servers, NEXT_MODEL, DOCUMENTS + written).await;
    let status = succeeded(&options, &["--status"]).await;
    assert!(status.contains(&format!("kept: index 1, {FIRST_MODEL},")), "{status}");

    // What was written since is in the old index, too, before it is searched again.
    import(&servers[1].api, lines(next(written), 1)).await;
    succeeded(&options, &["--rollback"]).await;
    found_by(&servers, FIRST_MODEL, DOCUMENTS + written + 1).await;

    succeeded(&options, &["--discard"]).await;
    let none = refused(&options, &["--rollback"]).await;
    assert!(none.contains("no index to go back to"), "{none}");
    found_by(&servers, FIRST_MODEL, DOCUMENTS + written + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_text_fields_are_searched_after_a_build_that_was_killed_and_begun_again() {
    let (mut stores, servers) = started().await;
    let options = options(&stores);
    let only_descriptions = json!({"query": "word7", "mode": "lexical"});
    assert_eq!(servers[1].api.found(COLLECTION, &only_descriptions).await, ["00007"]);

    // Without Milvus a build gets nowhere.
    stores.milvus.process().freeze().await.unwrap();
    let arguments = ["reindex", "--collection", COLLECTION, "--text-fields", "description"];
    let mut killed = options.cli(&arguments).spawn().unwrap();
    until("it has begun", async || succeeded(&options, &["--status"]).await.contains("half built"))
        .await;
    killed.kill().await.unwrap();
    stores.milvus.process().signal(libc::SIGCONT).unwrap();

    let other = refused(&options, &["--text-fields", "name"]).await;
    assert!(other.contains("half built"), "{other}");
    succeeded(&options, &["--text-fields", "description"]).await;
    for server in &servers {
        until("names are not searched any more", async || {
            server.api.found(COLLECTION, &only_descriptions).await.is_empty()
        })
        .await;
        let by_description = json!({"query": "revision1", "mode": "lexical", "limit": 1});
        assert_eq!(server.api.found(COLLECTION, &by_description).await.len(), 1);
        let filtered = json!({"query": "revision1",
            "filter": {"must": [{"field": "name", "eq": "word7"}]}});
        assert_eq!(server.api.found(COLLECTION, &filtered).await, ["00007"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_collection_goes_over_to_a_model_that_a_server_lacks() {
    let (stores, mut servers) = started().await;
    let options = options(&stores);
    servers.push(Server::start(stores.options(Options::hash())).await);
    let told = refused(&options, &["--model", NEXT_MODEL]).await;
    assert!(told.contains("do not run hashed-words-1"), "{told}");
    let unknown = refused(&options, &["--model", "other"]).await;
    assert!(unknown.contains(FIRST_MODEL) && unknown.contains(NEXT_MODEL), "{unknown}");
    let already = refused(&options, &["--model", FIRST_MODEL]).await;
    assert!(already.contains("searched so already"), "{already}");
    found_by(&servers, FIRST_MODEL, DOCUMENTS).await;
}
