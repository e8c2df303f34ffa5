//! Two servers that share a Redis.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sextant_server::cache::shared::SharedCache;
use sextant_server::config::Config;
use sextant_stack::redis::Redis;
use sextant_stack::until;

use crate::app::{Setup, TestApp};

/// An invalidation reaches every server within this time; what a busy test machine adds is allowed
/// for.
const REACH: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_secs(4);

struct Pair {
    one: Arc<TestApp>,
    other: Arc<TestApp>,
    redis: Redis,
    _folder: tempfile::TempDir,
}

impl Pair {
    /// `timeout_ms`: the default is for quiet machines.
    async fn new(timeout_ms: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let redis = Redis::start(folder.path()).await.unwrap();
        let mut config = Config::default();
        config.redis.timeout_ms = timeout_ms;
        let setup = Setup { config, redis: Some(redis.url()), ..Setup::default() };
        let one = TestApp::gym_with(setup).await;
        let other = one.twin(Some(redis.url())).await;
        Self { one: Arc::new(one), other: Arc::new(other), redis, _folder: folder }
    }

    async fn up(&self) {
        for app in [&self.one, &self.other] {
            let redis = app.redis.as_ref().unwrap();
            until("a connection to Redis", || async { redis.is_up() }).await.unwrap();
        }
    }
}

async fn cache(app: &TestApp, query: &str) -> Value {
    app.search(json!({"query": query})).await.ok()["cache"].clone()
}

/// Waits until what one server computed is in Redis.
async fn written(pair: &Pair, entries: usize) {
    until("the answers to be written", || async {
        let reply = pair.redis.command(&[b"KEYS", b"test:r:*"]).await.unwrap();
        reply.starts_with(format!("*{entries}\r\n").as_bytes())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_query_answered_by_one_server_is_a_hit_in_the_other() {
    let pair = Pair::new(200).await;
    let first = pair.one.search(json!({"query": "knees"})).await.ok();
    assert_eq!(first["cache"], json!({"status": "miss", "tier": null}));
    written(&pair, 1).await;
    let before = pair.one.embedder.embedded();
    let second = pair.other.search(json!({"query": "knees"})).await.ok();
    assert_eq!(second["cache"], json!({"status": "hit", "tier": "redis"}));
    assert_eq!((&first["hits"], &first["index"]), (&second["hits"], &second["index"]));
    assert_eq!(cache(&pair.other, "knees").await, json!({"status": "hit", "tier": "memory"}));
    // A near miss: the embedding is there.
    let near = pair.other.search(json!({"query": "knees", "limit": 3})).await.ok();
    assert_eq!(near["cache"]["status"], "miss");
    assert_eq!(pair.one.embedder.embedded(), before);
}

#[tokio::test]
async fn equal_searches_of_all_servers_embed_once() {
    let pair = Pair::new(200).await;
    let before = pair.one.embedder.embedded();
    let calls = *pair.one.embedder.calls.borrow();
    pair.one.embedder.close_gate();
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let app = Arc::clone(if i % 2 == 0 { &pair.one } else { &pair.other });
            tokio::spawn(async move { app.search(json!({"query": "two hundred"})).await.ok() })
        })
        .collect();
    let mut seen = pair.one.embedder.calls.subscribe();
    seen.wait_for(|now| *now > calls).await.unwrap();
    while pair.one.metrics.http_active.get() + pair.other.metrics.http_active.get() < 200 {
        tokio::task::yield_now().await;
    }
    pair.one.embedder.open_gate();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert!(answers.iter().all(|answer| answer["hits"] == answers[0]["hits"]));
    let misses = answers.iter().filter(|answer| answer["cache"]["status"] == "miss").count();
    assert_eq!((misses, pair.one.embedder.embedded()), (1, before + 1));
}

#[tokio::test]
async fn an_invalidation_in_one_server_is_one_in_the_other() {
    let pair = Pair::new(200).await;
    for (i, body) in [json!({"query": "knees"}), json!({"collection": "gym"}), json!({"all": true})]
        .into_iter()
        .enumerate()
    {
        cache(&pair.one, "knees").await;
        written(&pair, 1).await;
        cache(&pair.other, "knees").await;
        assert_eq!(cache(&pair.other, "knees").await["status"], "hit", "{i}");
        let started = Instant::now();
        let told = pair.one.post("/v1/admin/cache/invalidate", body.clone()).await.ok();
        assert_eq!(told["everywhere"], true);
        until("the other to forget", || async {
            cache(&pair.other, "knees").await["status"] != "hit"
        })
        .await
        .unwrap();
        assert!(started.elapsed() < REACH + BUSY, "{body} took {:?}", started.elapsed());
        println!("{body} reached the other server after {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_invalidation_while_redis_restarts_reaches_the_other_server() {
    let mut pair = Pair::new(200).await;
    for app in [&pair.one, &pair.other] {
        cache(app, "knees").await;
    }
    assert_eq!(cache(&pair.other, "knees").await["status"], "hit");
    pair.redis.process.kill().await.unwrap();
    let told = pair.one.post("/v1/admin/cache/invalidate", json!({"query": "knees"})).await.ok();
    assert_eq!(told["everywhere"], false);
    pair.redis.restart().await.unwrap();
    let started = Instant::now();
    until("the other to forget", || async { cache(&pair.other, "knees").await["status"] != "hit" })
        .await
        .unwrap();
    println!("after the restart it took {:?}", started.elapsed());
    assert!(started.elapsed() < REACH + BUSY);
    pair.up().await;
}

#[tokio::test]
async fn a_redis_that_dies_or_freezes_neither_fails_nor_delays_a_search() {
    let mut pair = Pair::new(20).await;
    let mut number = 0;
    let mut longest = async |app: &TestApp, what: &str| {
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            number += 1;
            let started = Instant::now();
            app.search(json!({"query": format!("query {number}")})).await.ok();
            longest = longest.max(started.elapsed());
        }
        println!("{what}: longest of 50 searches {longest:?}");
        longest
    };
    longest(&pair.one, "with Redis").await;
    pair.redis.process.freeze().await.unwrap();
    let frozen = longest(&pair.one, "Redis frozen").await;
    let known = longest(&pair.one, "Redis known to be frozen").await;
    pair.redis.process.signal(libc::SIGCONT).unwrap();
    pair.up().await;
    pair.redis.process.kill().await.unwrap();
    let dead = longest(&pair.one, "Redis dead").await;
    for longest in [frozen, known, dead] {
        assert!(longest < Duration::from_millis(500), "{longest:?}");
    }
    pair.redis.restart().await.unwrap();
    pair.up().await;
    cache(&pair.one, "after all").await;
    written(&pair, 1).await;
    assert_eq!(cache(&pair.other, "after all").await["tier"], "redis");
}

#[tokio::test]
async fn an_old_answer_of_another_server_is_given_without_the_index() {
    let pair = Pair::new(200).await;
    let first = pair.one.search(json!({"query": "knees"})).await.ok();
    written(&pair, 1).await;
    pair.one.put("/v1/collections/gym/documents/new", json!({"name": "new"})).await.ok();
    pair.one.index.cut.store(true, Ordering::SeqCst);
    let old = pair.other.search(json!({"query": "knees"})).await.ok();
    assert_eq!(old["cache"], json!({"status": "stale", "tier": "redis"}));
    assert_eq!((&old["degraded"], &old["hits"]), (&json!(true), &first["hits"]));
    // What was given as old is never kept as new.
    pair.one.index.cut.store(false, Ordering::SeqCst);
    assert_eq!(cache(&pair.other, "knees").await["status"], "miss");
}
