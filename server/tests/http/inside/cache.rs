//! How often a server embeds and searches, and when its own tier forgets.

mod redis;
mod stale;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use sextant_server::config::Config;
use sextant_server::ports::EmbedError;

use crate::app::{Setup, TestApp, ids};

#[tokio::test]
async fn the_second_equal_search_is_served_from_the_cache() {
    let app = TestApp::gym().await;
    let first = app.search(json!({"query": "Bend the Knees"})).await.ok();
    assert_eq!(first["cache"], json!({"status": "miss", "tier": null}));
    let second = app.search(json!({"query": "  bend the  knees"})).await.ok();
    assert_eq!(second["cache"], json!({"status": "hit", "tier": "memory"}));
    assert_eq!(first["hits"], second["hits"]);
}

#[tokio::test]
async fn a_thousand_equal_misses_embed_and_search_once() {
    let app = Arc::new(TestApp::gym().await);
    let before = app.embedder.embedded();
    app.embedder.close_gate();
    let calls = *app.embedder.calls.borrow();
    let tasks: Vec<_> = (0..1_000)
        .map(|_| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.search(json!({"query": "thousand"})).await.ok() })
        })
        .collect();
    let mut seen = app.embedder.calls.subscribe();
    seen.wait_for(|now| *now > calls).await.unwrap();
    // All the others must be waiting before the one is let go.
    while app.metrics.http_active.get() < 1_000 {
        tokio::task::yield_now().await;
    }
    app.embedder.open_gate();
    let mut statuses = std::collections::HashMap::new();
    for task in tasks {
        let found = task.await.unwrap();
        *statuses.entry(found["cache"]["status"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(app.embedder.embedded(), before + 1);
    assert_eq!(statuses["miss"], 1);
    assert_eq!(statuses.values().sum::<i32>(), 1_000);
    let index = app.metrics.search_stage.with_label_values(&["index"]);
    assert_eq!(index.get_sample_count(), 1);
}

#[tokio::test]
async fn a_write_is_seen_by_the_next_search() {
    let app = TestApp::gym().await;
    let query = json!({"query": "rowing machine", "mode": "lexical"});
    assert!(ids(&app.search(query.clone()).await.ok()).is_empty());
    let rower = json!({"name": "Rowing machine", "description": "Pull the handle."});
    app.put("/v1/collections/gym/documents/rower", rower).await.ok();
    assert_eq!(ids(&app.search(query.clone()).await.ok()), ["rower"]);
    app.call(axum::http::Method::DELETE, "/v1/collections/gym/documents/rower", None).await.ok();
    assert!(ids(&app.search(query).await.ok()).is_empty());
}

#[tokio::test]
async fn no_cache_passes_the_cache_by_and_refreshes_it() {
    let app = TestApp::gym().await;
    app.search(json!({"query": "knees"})).await.ok();
    let before = app.embedder.embedded();
    let request = Request::post("/v1/collections/gym/search")
        .header("content-type", "application/json")
        .header("cache-control", "max-age=0, No-Cache")
        .body(Body::from(r#"{"query":"knees"}"#))
        .unwrap();
    assert_eq!(app.send(request).await.ok()["cache"]["status"], "bypass");
    assert_eq!(app.embedder.embedded(), before + 1);
    assert_eq!(app.search(json!({"query": "knees"})).await.ok()["cache"]["status"], "hit");
}

#[tokio::test]
async fn an_embedding_is_used_again_by_another_search_of_the_same_text() {
    let app = TestApp::gym().await;
    app.search(json!({"query": "knees", "limit": 1})).await.ok();
    let before = app.embedder.embedded();
    let other = app.search(json!({"query": "knees", "limit": 2})).await.ok();
    assert_eq!(other["cache"]["status"], "miss");
    assert_eq!(app.embedder.embedded(), before);
}

#[tokio::test]
async fn errors_are_not_kept() {
    let app = TestApp::gym().await;
    *app.embedder.fail_with.lock().unwrap() =
        Some(EmbedError::Overloaded { retry_after: Duration::from_millis(1_500) });
    let refused = app.search(json!({"query": "knees"})).await;
    refused.problem(503, "overloaded");
    assert_eq!(refused.header("retry-after"), "2");
    *app.embedder.fail_with.lock().unwrap() = None;
    assert_eq!(app.search(json!({"query": "knees"})).await.ok()["cache"]["status"], "miss");
}

#[tokio::test]
async fn an_answer_expires() {
    let mut config = Config::default();
    config.cache.results_empty_ttl_seconds = 0; // empty answers expire at once
    let app = TestApp::with(Setup { config, ..Setup::default() }).await;
    app.put("/v1/collections/gym", json!({})).await.ok();
    for _ in 0..2 {
        let found = app.search(json!({"query": "nothing", "mode": "lexical"})).await.ok();
        assert_eq!(found["cache"]["status"], "miss");
    }
}

#[tokio::test]
async fn a_client_that_knows_the_answer_is_told_so_without_embedding() {
    let app = TestApp::gym().await;
    let path = "/v1/collections/gym/search?query=knees";
    let first = app.get(path).await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with("W/"));
    let before = app.embedder.embedded();
    let again = |tag: &str| {
        Request::get(path)
            .header("if-none-match", format!("\"x\", {tag}"))
            .body(Body::empty())
            .unwrap()
    };
    let answer = app.send(again(&tag)).await;
    assert_eq!((answer.status.as_u16(), answer.bytes.len()), (304, 0));
    assert_eq!(answer.header("etag"), tag);
    assert_eq!(app.embedder.embedded(), before);
    app.put("/v1/collections/gym/documents/new", json!({"name": "new"})).await.ok();
    assert_eq!(app.send(again(&tag)).await.status, 200);
}

#[tokio::test]
async fn invalidation_forgets_what_it_names() {
    let app = TestApp::gym().await;
    let status = async |query: &str| {
        app.search(json!({"query": query})).await.ok()["cache"]["status"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let invalidate = async |body| app.post("/v1/admin/cache/invalidate", body).await;
    for (body, knees, push) in [
        (json!({"query": " KNEES", "collection": "gym"}), "miss", "hit"),
        (json!({"query": "knees"}), "miss", "hit"),
        (json!({"collection": "gym"}), "miss", "miss"),
        (json!({"all": true}), "miss", "miss"),
    ] {
        status("knees").await;
        status("push").await;
        invalidate(body.clone()).await.ok();
        assert_eq!(
            (status("knees").await.as_str(), status("push").await.as_str()),
            (knees, push),
            "{body}"
        );
    }
}
