use axum::body::Body;
use axum::http::{Method, Request};

use crate::app::TestApp;

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
async fn the_page_allows_nothing_from_elsewhere() {
    let app = TestApp::new().await;
    let page = app.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").contains("default-src 'self'"));
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(app.get("/docs/").await.status, 200);
}
