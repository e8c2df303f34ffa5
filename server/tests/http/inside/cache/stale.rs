//! Old answers, for when no other can be computed.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::json;
use sextant_server::cache::CacheStatus;
use sextant_server::config::Config;
use sextant_server::domain::Mode;
use sextant_server::ports::EmbedError;
use sextant_server::search::Query;

use crate::app::{Setup, TestApp};

async fn write(app: &TestApp) {
    app.put("/v1/collections/gym/documents/new", json!({"name": "new"})).await.ok();
}

#[tokio::test]
async fn without_the_index_the_last_answer_is_given_and_marked() {
    let app = TestApp::gym().await;
    let knees = json!({"query": "knees"});
    let first = app.search(knees.clone()).await.ok();
    assert_eq!(first["degraded"], false);
    write(&app).await;
    app.index.cut.store(true, Ordering::SeqCst);
    let answer = app.search(knees.clone()).await;
    assert_eq!(answer.header("warning"), "110 - \"Response is Stale\"");
    let old = answer.ok();
    assert_eq!(old["degraded"], true);
    assert_eq!(old["cache"], json!({"status": "stale", "tier": "memory"}));
    assert_eq!((&old["hits"], &old["index"]), (&first["hits"], &first["index"]));
    let count = app.metrics.degraded_responses.with_label_values(&["index"]).get();
    assert_eq!(count, 1);
    let path = "/v1/collections/gym/search?query=knees";
    assert_eq!(app.get(path).await.header("etag"), "", "the tag would name the current answer");

    app.index.cut.store(false, Ordering::SeqCst);
    let answer = app.search(knees).await;
    assert_eq!(answer.header("warning"), "");
    let new = answer.ok();
    assert_eq!((&new["degraded"], &new["cache"]["status"]), (&json!(false), &json!("miss")));
}

#[tokio::test]
async fn without_the_index_a_question_never_answered_fails() {
    let app = TestApp::gym().await;
    app.search(json!({"query": "knees"})).await.ok();
    app.search(json!({"query": "nothing at all", "mode": "lexical"})).await.ok();
    app.index.cut.store(true, Ordering::SeqCst);
    write(&app).await;
    for query in [
        json!({"query": "elbows"}),
        json!({"query": "knees", "limit": 3}),
        // An answer without hits is not given again.
        json!({"query": "nothing at all", "mode": "lexical"}),
    ] {
        assert_eq!(app.search(query.clone()).await.status, 503, "{query}");
    }
}

#[tokio::test]
async fn what_was_forgotten_is_not_given_again() {
    let app = TestApp::gym().await;
    app.search(json!({"query": "knees"})).await.ok();
    app.post("/v1/admin/cache/invalidate", json!({"query": "knees"})).await.ok();
    app.index.cut.store(true, Ordering::SeqCst);
    assert_eq!(app.search(json!({"query": "knees"})).await.status, 503);
}

#[tokio::test]
async fn a_fresh_collection_gives_no_old_answer() {
    let app = TestApp::gym().await;
    let put = app.put("/v1/collections/gym", json!({"freshness": "fresh"})).await.ok();
    assert_eq!(put["schema"]["freshness"], "fresh");
    app.search(json!({"query": "knees"})).await.ok();
    assert_eq!(app.search(json!({"query": "knees"})).await.ok()["cache"]["status"], "hit");
    write(&app).await;
    app.index.cut.store(true, Ordering::SeqCst);
    assert_eq!(app.search(json!({"query": "knees"})).await.status, 503);
    // Another change leaves it as it is.
    let put = app.put("/v1/collections/gym", json!({})).await.ok();
    assert_eq!(put["schema"]["freshness"], "fresh");
}

#[tokio::test]
async fn without_the_embedder_the_last_answer_is_given() {
    let mut config = Config::default();
    config.cache.embeddings_ttl_seconds = 0; // or the embedding would still be there
    let app = TestApp::gym_with(Setup { config, ..Setup::default() }).await;
    app.search(json!({"query": "knees"})).await.ok();
    app.call(Method::DELETE, "/v1/collections/gym/documents/plank", None).await.ok();
    *app.embedder.fail_with.lock().unwrap() = Some(EmbedError::Unavailable("gone".to_owned()));
    let old = app.search(json!({"query": "knees"})).await.ok();
    assert_eq!(old["degraded"], true);
    assert_eq!(app.metrics.degraded_responses.with_label_values(&["embedder"]).get(), 1);
}

#[tokio::test]
async fn while_the_generation_is_not_known_the_cache_is_passed_by() {
    let app = TestApp::gym().await;
    let gym = app.catalog.get("gym").await.unwrap();
    let query = Query {
        text: "knees".to_owned(),
        mode: Mode::Dense,
        limit: 10,
        filter: None,
        min_score: None,
        cursor: None,
        facets: Vec::new(),
        snippet: false,
        explain: false,
        scope: "read",
        no_cache: false,
        fresh: true,
        deadline: Instant::now() + Duration::from_secs(10),
    };
    let status = async |generation| app.search.run(&gym, generation, &query).await.unwrap().status;
    let known = Some(gym.generation());
    assert_eq!(status(None).await, CacheStatus::Bypass);
    assert_eq!(status(known).await, CacheStatus::Miss, "nothing was kept");
    assert_eq!(status(None).await, CacheStatus::Bypass, "nothing was read");
    assert_eq!(status(known).await, CacheStatus::Hit);
}
