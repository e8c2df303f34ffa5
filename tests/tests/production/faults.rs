//! Stores that are killed and come back while searches go on.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sextant_tests::production::Stores;
use sextant_tests::{Options, Process, Server};

use super::load::Load;
use super::{COLLECTION, collection, document, import, lines, until};

/// No request may take longer than its deadline of 10 s; what is lost is noticed much sooner.
const LONGEST: Duration = Duration::from_secs(10);

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
    let load = Load::start(servers.iter().map(|server| &server.api));
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
    let load = Load::start(servers.iter().map(|server| &server.api));
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
    let load = Load::start(servers.iter().map(|server| &server.api));
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
    assert_ne!(state["dependencies"]["documents"], "ok", "{state}");
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
        assert_ne!(state["dependencies"]["index"], "ok", "{state}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_server_is_ready_when_its_index_is_open_and_without_milvus_after_a_while() {
    let (mut stores, _servers) = started(50).await;
    stores.milvus.process().kill().await.unwrap();
    let without = stores.servers(1).await.remove(0);
    assert_eq!(ready(&without).await["ready"], true);
    let starting = Process::spawn(&stores.options(Options::hash()));
    until("it cannot open the index", async || {
        starting.log().contains("the index is not available yet")
    })
    .await;
    stores.milvus.restart().await.unwrap();
    let new = starting.ready().await;
    let path = format!("/v1/collections/{COLLECTION}/search");
    let answer = new.api.post(&path, &json!({"query": "never asked"})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}
