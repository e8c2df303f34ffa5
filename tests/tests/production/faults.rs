//! Stores that are killed and come back while searches go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sextant_tests::production::Stores;
use sextant_tests::{Api, Server};

use super::{COLLECTION, collection, document, import, lines, until};

/// No request may take longer than its deadline of 10 s; what is lost is noticed much sooner.
const LONGEST: Duration = Duration::from_secs(10);

/// Searches that go on in the background: new ones and repeated ones.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Seen>>,
    done: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: usize,
    failed: Vec<(StatusCode, String)>,
    degraded: usize,
    longest: Duration,
}

impl Load {
    fn start(servers: &[Server]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let tasks = servers
            .iter()
            .enumerate()
            .map(|(place, server)| {
                let (api, stop, done) = (server.api.clone(), Arc::clone(&stop), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut seen = Seen::default();
                    let mut number = place;
                    while !stop.load(Ordering::Relaxed) {
                        // Every other one is new.
                        number += 1;
                        let word = if number.is_multiple_of(2) { number } else { 7 };
                        seen.look(&api, &json!({"query": format!("word{word}")})).await;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    seen
                })
            })
            .collect();
        Self { stop, tasks, done }
    }

    /// Waits for so many more answers.
    async fn answers(&self, count: usize) {
        let before = self.done.load(Ordering::Relaxed);
        until("searches go on", async || self.done.load(Ordering::Relaxed) >= before + count).await;
    }

    async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for task in self.tasks {
            let seen = task.await.unwrap();
            all.answers += seen.answers;
            all.degraded += seen.degraded;
            all.failed.extend(seen.failed);
            all.longest = all.longest.max(seen.longest);
        }
        all
    }
}

impl Seen {
    async fn look(&mut self, api: &Api, question: &Value) {
        let started = Instant::now();
        let answer = api.post(&format!("/v1/collections/{COLLECTION}/search"), question).await;
        self.longest = self.longest.max(started.elapsed());
        self.answers += 1;
        if answer.status != StatusCode::OK {
            self.failed.push((answer.status, answer.text));
        } else if answer.body["degraded"] == true {
            self.degraded += 1;
        }
    }
}

async fn started(documents: usize) -> (Stores, Vec<Server>) {
    let stores = Stores::start().await;
    let servers = stores.servers(2).await;
    collection(&servers, &json!({})).await;
    import(&servers[0].api, lines(0..documents, 1)).await;
    for server in &servers {
        until("all documents are known", async || {
            server.api.documents(COLLECTION).await.len() == documents
        })
        .await;
    }
    (stores, servers)
}

async fn ready(server: &Server) -> Value {
    server.api.get("/readyz").await.body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_go_on_without_redis_and_use_it_again_when_it_is_back() {
    let (mut stores, servers) = started(50).await;
    let load = Load::start(&servers);
    load.answers(200).await;
    stores.redis.process.kill().await.unwrap();
    load.answers(500).await;
    stores.redis.restart().await.unwrap();
    load.answers(200).await;
    let seen = load.stop().await;
    assert_eq!(seen.failed, []);
    assert!(seen.longest < LONGEST, "{seen:?}");
    // What one caches the other finds, again.
    let mut number = 0;
    until("the cache is shared again", async || {
        number += 1;
        let question = json!({"query": format!("shared{number}")});
        servers[0].api.search(COLLECTION, &question).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        servers[1].api.search(COLLECTION, &question).await["cache"]["tier"] == "redis"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_go_on_when_a_replica_is_killed() {
    let (mut stores, servers) = started(50).await;
    let load = Load::start(&servers);
    load.answers(200).await;
    stores.replica.process().kill().await.unwrap();
    load.answers(500).await;
    stores.replica.restart().await.unwrap();
    load.answers(200).await;
    let seen = load.stop().await;
    assert_eq!(seen.failed, []);
    assert!(seen.longest < LONGEST, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_go_on_without_the_primary_and_writes_are_refused_until_it_is_back() {
    let (mut stores, servers) = started(50).await;
    let load = Load::start(&servers);
    load.answers(100).await;
    stores.primary.process().kill().await.unwrap();
    let path = format!("/v1/collections/{COLLECTION}/documents/00001");
    until("a write is refused", async || {
        let answer = servers[0].api.put(&path, &document(1, 2)).await;
        answer.status == StatusCode::SERVICE_UNAVAILABLE
            && answer.headers.contains_key("retry-after")
    })
    .await;
    load.answers(300).await;
    let state = ready(&servers[0]).await;
    assert_eq!(state["ready"], true, "{state}");
    stores.primary.restart().await.unwrap();
    until("a write is accepted", async || {
        servers[0].api.put(&path, &document(1, 3)).await.status == StatusCode::ACCEPTED
    })
    .await;
    let seen = load.stop().await;
    assert_eq!(seen.failed, []);
    assert!(seen.longest < LONGEST, "{seen:?}");
    let filtered =
        json!({"query": "word1", "filter": {"must": [{"field": "revision", "eq": "r3"}]}});
    until("the write is found", async || {
        servers[1].api.found(COLLECTION, &filtered).await == ["00001"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_milvus_known_queries_are_answered_and_writes_wait_until_it_is_back() {
    let (mut stores, servers) = started(50).await;
    let known = json!({"query": "word7"});
    for server in &servers {
        server.api.search(COLLECTION, &known).await;
    }
    stores.milvus.process().kill().await.unwrap();
    // A new generation voids the cached answer; the stale one is still given.
    let path = format!("/v1/collections/{COLLECTION}/documents/00002");
    let accepted = servers[0].api.put(&path, &document(2, 2)).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    for server in &servers {
        let answer = server.api.search(COLLECTION, &known).await;
        assert_eq!(answer["hits"][0]["id"], "00007");
        let state = ready(server).await;
        assert_eq!(state["ready"], true, "{state}");
    }
    let path = format!("/v1/collections/{COLLECTION}/search");
    let unknown = servers[0].api.post(&path, &json!({"query": "never asked"})).await;
    assert_eq!(unknown.status, StatusCode::SERVICE_UNAVAILABLE, "{}", unknown.text);
    assert!(unknown.headers.contains_key("retry-after"));
    stores.milvus.restart().await.unwrap();
    let filtered =
        json!({"query": "word2", "filter": {"must": [{"field": "revision", "eq": "r2"}]}});
    let question = format!("/v1/collections/{COLLECTION}/search");
    until("the write is found", async || {
        let answer = servers[1].api.post(&question, &filtered).await;
        answer.status == StatusCode::OK && answer.body["hits"][0]["id"] == "00002"
    })
    .await;
}
