//! What only shows from inside a server: how often it embedded, what it does while a part of it is
//! held back, what a second start finds.

mod cache;

use std::time::Duration;

use axum::http::Method;
use serde_json::json;
use sextant_server::config::Config;
use sextant_server::ports::Prompts;

use crate::app::{Setup, TestApp, exercises, ids};
use crate::documents::{DOCUMENTS, import};

#[tokio::test]
async fn documents_come_as_an_array_as_lines_or_alone() {
    let app = TestApp::new().await;
    app.put("/v1/collections/gym", json!({})).await.ok();
    let documents = exercises();
    let written = import(&app, "application/json", documents.to_string()).await.ok();
    assert_eq!((&written["upserted"], app.embedder.embedded()), (&json!(5), 5));
    let lines: Vec<String> =
        documents.as_array().unwrap().iter().map(ToString::to_string).collect();
    let again = import(&app, "application/x-ndjson; charset=utf-8", lines.join("\n")).await.ok();
    assert_eq!((&again["upserted"], app.embedder.embedded()), (&json!(5), 5), "texts are known");
    let one = json!({"id": "row", "name": "Row"}).to_string();
    assert_eq!(import(&app, "application/json", one).await.ok()["upserted"], 1);
    assert_eq!(app.get("/v1/collections/gym").await.ok()["documents"], 6);
    import(&app, "text/csv", "id,name").await.problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn the_models_prompts_stand_before_queries_and_documents() {
    let prompts = Prompts { query: "query: ".to_owned(), passage: "passage: ".to_owned() };
    let app = TestApp::with(Setup { prompts: prompts.clone(), ..Setup::default() }).await;
    assert_eq!(app.get("/v1/info").await.ok()["prompts"], json!(prompts));
    app.put("/v1/collections/gym", json!({"text_fields": ["name"]})).await.ok();
    import(&app, "application/json", json!([{"id": "squat", "name": "Squat"}]).to_string())
        .await
        .ok();
    let found = app.search(json!({"query": "squat", "mode": "dense"})).await.ok();
    // Texts by themselves are embedded as they are.
    let inputs = json!({"input": ["query: squat", "passage: Squat"]});
    let rows = app.post("/v1/embeddings", inputs).await.ok();
    let row = |i: usize| -> Vec<f64> {
        serde_json::from_value(rows["data"][i]["embedding"].clone()).unwrap()
    };
    let cosine: f64 = row(0).iter().zip(row(1)).map(|(a, b)| a * b).sum();
    assert!(cosine < 0.9, "{cosine}");
    let score = found["hits"][0]["score"].as_f64().unwrap();
    assert!((score - cosine).abs() < 0.01, "{score} for {cosine}");
}

#[tokio::test]
async fn attributes_can_change_without_embedding_again() {
    let app = TestApp::gym().await;
    let before = app.embedder.embedded();
    let mut squat = exercises()[0].clone();
    squat["level"] = json!("advanced");
    app.put(&format!("{DOCUMENTS}/squat"), squat).await.ok();
    assert_eq!(app.embedder.embedded(), before);
    let advanced = json!({"must": [{"field": "level", "eq": "advanced"}]});
    let found = app.search(json!({"query": "squat", "filter": advanced})).await.ok();
    assert_eq!(ids(&found)[0], "squat");
}

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

#[tokio::test]
async fn a_server_with_another_model_refuses_to_mix_vectors_but_lets_documents_be_read() {
    let place = TestApp::gym().await.close().await;
    let setup = Setup { place: Some(place), dimension: Some(16), ..Setup::default() };
    let app = TestApp::with(setup).await;
    let problem = app.search(json!({"query": "x"})).await.problem(409, "model-mismatch");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("hashed-words") && detail.contains("import"), "{detail}");
    app.put("/v1/collections/gym/documents/1", json!({"name": "x"}))
        .await
        .problem(409, "model-mismatch");
    assert_eq!(app.get("/v1/collections/gym").await.ok()["searchable"], false);
    app.get("/v1/collections/gym/documents/squat").await.ok();
    app.call(Method::DELETE, "/v1/collections/gym", None).await.ok();
}

#[tokio::test]
async fn a_restart_finds_everything_again() {
    let place = TestApp::gym().await.close().await;
    let app = TestApp::with(Setup { place: Some(place), ..Setup::default() }).await;
    let described = app.get("/v1/collections/gym").await.ok();
    assert_eq!((&described["documents"], &described["generation"]), (&json!(5), &json!(1)));
    for mode in ["dense", "lexical"] {
        let found = app.search(json!({"query": "hold still", "mode": mode})).await.ok();
        assert_eq!(found["hits"][0]["id"], "plank");
    }
}

#[tokio::test]
async fn an_index_that_was_lost_is_made_again_from_the_documents() {
    let place = TestApp::gym().await.close().await;
    place.lose_index().await;
    let app = TestApp::with(Setup { place: Some(place), ..Setup::default() }).await;
    for mode in ["dense", "lexical"] {
        let found = app.search(json!({"query": "hold still", "mode": mode})).await.ok();
        assert_eq!(found["hits"][0]["id"], "plank");
    }
}

/// Load balancers have a limit of their own.
#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let app = TestApp::gym().await;
    let large = "x".repeat(2 << 20);
    app.search(json!({"query": large})).await.problem(413, "too-large");
}
