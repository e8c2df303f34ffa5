use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;
use sextant_server::config::Config;

use crate::app::{Setup, TestApp};

#[tokio::test]
async fn a_starting_server_is_alive_but_not_ready() {
    let app = TestApp::with(Setup { not_started: true, ..Setup::default() }).await;
    assert_eq!(app.get("/livez").await.status, 200);
    let ready = app.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.json()["phase"].as_str()), (503, Some("starting")));
    assert_eq!(app.get("/v1/info").await.ok()["model"], json!(null));
    app.get("/metrics").await;
    let refused = app.get("/v1/collections").await;
    refused.problem(503, "not-ready");
    assert_eq!(refused.header("retry-after"), "1");
}

#[tokio::test]
async fn a_draining_server_is_not_ready_but_answers() {
    let app = TestApp::gym().await;
    let ready = app.get("/readyz").await;
    let dependencies = json!({"documents": "ok", "embedder": "ok", "index": "ok"});
    assert_eq!(ready.json()["dependencies"], dependencies);
    app.state.drain();
    let ready = app.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.json()["phase"].as_str()), (503, Some("draining")));
    app.search(json!({"query": "x"})).await.ok();
}

#[tokio::test]
async fn a_search_past_its_deadline_is_answered_with_504() {
    let mut config = Config::default();
    config.server.request_timeout_ms = 1_000; // enough for a search on a busy machine
    let place = Some(TestApp::gym().await.close().await);
    let app = TestApp::with(Setup { config, place, ..Setup::default() }).await;
    app.embedder.close_gate();
    app.search(json!({"query": "slow"})).await.problem(504, "deadline-exceeded");
    app.embedder.open_gate();
    assert_eq!(app.search(json!({"query": "slow"})).await.ok()["cache"]["status"], "miss");
}

#[tokio::test]
async fn ids_of_a_request_come_back() {
    let app = TestApp::gym().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = Request::get("/v1/collections/absent")
        .header("x-request-id", "mine-1")
        .header("traceparent", trace)
        .body(Body::empty())
        .unwrap();
    let answer = app.send(request).await;
    assert_eq!(answer.problem(404, "not-found")["request_id"], "mine-1");
    assert!(answer.header("traceparent").starts_with(&trace[..36]));
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let app = TestApp::new().await;
    app.get("/v2/collections").await.problem(404, "not-found");
    app.call(Method::PATCH, "/v1/collections", None).await.problem(405, "method-not-allowed");
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_ask() {
    let app = TestApp::new().await;
    for coding in ["gzip", "zstd"] {
        let request = Request::get("/openapi.json").header("accept-encoding", coding);
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("content-encoding"), coding);
    }
}

#[tokio::test]
async fn metrics_tell_what_happened_and_hold_no_query() {
    let app = TestApp::gym().await;
    app.search(json!({"query": "secretword"})).await.ok();
    app.search(json!({"query": "secretword"})).await.ok();
    app.get("/v1/collections/../x/secretword").await;
    let text = String::from_utf8(app.get("/metrics").await.bytes).unwrap();
    for line in [
        "sextant_cache_requests_total{result=\"hit\",tier=\"results\"} 1",
        "sextant_cache_requests_total{result=\"miss\",tier=\"results\"} 1",
        "sextant_cache_entries{tier=\"results\"} 1",
        "sextant_documents{collection=\"gym\"} 5",
        "http_server_request_duration_seconds_count{method=\"POST\",route=\"/v1/collections/{collection}/search\",status=\"200\"} 2",
        "sextant_search_stage_duration_seconds_count{stage=\"index\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes"));
    assert!(!text.contains("secretword"));
    app.call(Method::DELETE, "/v1/collections/gym", None).await.ok();
    let text = String::from_utf8(app.get("/metrics").await.bytes).unwrap();
    assert!(!text.contains("collection=\"gym\""));
}

#[tokio::test]
async fn popular_queries_are_counted_suggested_and_those_without_hits_told() {
    let app = TestApp::gym().await;
    for query in ["Knees up", "knees  UP", "push", "nothing such"] {
        app.search(json!({"query": query, "mode": "lexical"})).await.ok();
    }
    // A filter that leaves nothing says nothing about the query; a further page is no new search.
    let none = json!({"must": [{"field": "level", "eq": "none"}]});
    app.search(json!({"query": "bend", "filter": none})).await.ok();
    let page = app.search(json!({"query": "push", "limit": 1})).await.ok();
    app.search(json!({"query": "push", "limit": 1, "cursor": page["next_cursor"]})).await.ok();
    app.popularity.flush(true).await.unwrap();
    let popular = app.get("/v1/collections/gym/analytics/popular").await.ok();
    let first = &popular["queries"][0];
    assert_eq!((&first["query"], &first["searches"]), (&json!("knees up"), &json!(2)));
    assert!(first["last_used_ms"].as_i64().unwrap() > 1_700_000_000_000);
    let without = app.get("/v1/collections/gym/analytics/no-hits?limit=5").await.ok();
    assert_eq!(without["queries"].as_array().unwrap().len(), 1);
    assert_eq!(without["queries"][0]["query"], "nothing such");
    let suggestions = app.get("/v1/collections/gym/suggest?q=KN").await.ok();
    assert_eq!(suggestions["suggestions"][0]["query"], "knees up");
    app.get("/v1/collections/gym/suggest?q=x&limit=1000").await.problem(422, "invalid");
}

#[tokio::test]
async fn the_page_allows_nothing_from_elsewhere() {
    let app = TestApp::new().await;
    let page = app.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").contains("default-src 'self'"));
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(app.get("/docs/").await.status, 200);
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_no_trace_behind() {
    let app = TestApp::gym().await;
    app.embedder.close_gate();
    let search = app.search(json!({"query": "abandoned"}));
    let dropped = tokio::time::timeout(Duration::from_millis(20), search).await;
    assert!(dropped.is_err());
    assert_eq!(app.metrics.http_active.get(), 0);
    app.embedder.open_gate();
    assert_eq!(app.search(json!({"query": "abandoned"})).await.ok()["cache"]["status"], "miss");
}
