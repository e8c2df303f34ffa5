//! What clients see of the cache, whichever server answers them.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

use crate::app::{TestApp, ids};

#[tokio::test]
async fn an_equal_search_is_a_hit_however_often_it_is_repeated() {
    let app = TestApp::gym().await;
    let first = app.search(json!({"query": "Bend the Knees"})).await.ok();
    assert_eq!(first["cache"], json!({"status": "miss", "tier": null}));
    for _ in 0..9 {
        let again = app.search(json!({"query": "  bend the  knees"})).await.ok();
        assert_eq!((&again["cache"]["status"], &again["hits"]), (&json!("hit"), &first["hits"]));
    }
}

#[tokio::test]
async fn a_write_to_a_fresh_collection_is_seen_by_every_later_search() {
    let app = TestApp::gym().await;
    app.put("/v1/collections/gym", json!({"freshness": "fresh"})).await.ok();
    let query = json!({"query": "rowing machine", "mode": "lexical"});
    let found = async |expected: &[&str]| {
        for _ in 0..6 {
            assert_eq!(ids(&app.search(query.clone()).await.ok()), expected);
        }
    };
    found(&[]).await;
    let rower = json!({"name": "Rowing machine", "description": "Pull the handle."});
    app.put("/v1/collections/gym/documents/rower", rower).await.ok();
    found(&["rower"]).await;
    app.call(Method::DELETE, "/v1/collections/gym/documents/rower", None).await.ok();
    found(&[]).await;
}

#[tokio::test]
async fn a_client_that_knows_a_fresh_answer_is_sent_it_again_only_after_a_write() {
    let app = TestApp::gym().await;
    app.put("/v1/collections/gym", json!({"freshness": "fresh"})).await.ok();
    let path = "/v1/collections/gym/search?query=knees";
    let tag = app.get(path).await.header("etag").to_owned();
    let again = async || {
        let request = Request::get(path).header("if-none-match", &tag);
        app.send(request.body(Body::empty()).unwrap()).await
    };
    for _ in 0..6 {
        let answer = again().await;
        assert_eq!((answer.status.as_u16(), answer.bytes.len()), (304, 0));
    }
    app.put("/v1/collections/gym/documents/new", json!({"name": "new"})).await.ok();
    for _ in 0..6 {
        assert_eq!(again().await.status, 200);
    }
}

#[tokio::test]
async fn an_invalidation_names_all_or_a_collection_or_a_query() {
    let app = TestApp::gym().await;
    let invalidate = async |body| app.post("/v1/admin/cache/invalidate", body).await;
    invalidate(json!({"all": true})).await.ok();
    invalidate(json!({"collection": "gym"})).await.ok();
    invalidate(json!({"collection": "gym", "query": "knees"})).await.ok();
    invalidate(json!({})).await.problem(422, "invalid");
    invalidate(json!({"all": true, "query": "x"})).await.problem(422, "invalid");
    invalidate(json!({"collection": "absent"})).await.problem(404, "not-found");
}
