use axum::body::Body;
use axum::http::{Method, Request};
use sextant_server::auth::{Scope, add_to_file, generate};

use crate::app::{Answer, Setup, TestApp};

struct Guarded {
    app: TestApp,
    read: String,
    write: String,
    admin: String,
    _folder: tempfile::TempDir,
}

async fn guarded() -> Guarded {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    let mut keys = [Scope::Read, Scope::Write, Scope::Admin].map(|scope| {
        let (key, entry) = generate(scope.as_str(), &[scope]);
        add_to_file(&path, entry).unwrap();
        key
    });
    let [read, write, admin] = keys.each_mut().map(std::mem::take);
    let app = TestApp::with(Setup::with_keys(path)).await;
    Guarded { app, read, write, admin, _folder: folder }
}

impl Guarded {
    async fn call(&self, method: Method, path: &str, key: Option<&str>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.header("content-type", "application/json").body(Body::from("{}"));
        self.app.send(request.unwrap()).await
    }
}

#[tokio::test]
async fn every_route_needs_its_scope() {
    let guarded = guarded().await;
    let routes = [
        (Method::GET, "/v1/collections", Scope::Read),
        (Method::GET, "/v1/collections/gym", Scope::Read),
        (Method::GET, "/v1/collections/gym/search?query=x", Scope::Read),
        (Method::POST, "/v1/collections/gym/search", Scope::Read),
        (Method::GET, "/v1/collections/gym/documents", Scope::Read),
        (Method::GET, "/v1/collections/gym/documents/1", Scope::Read),
        (Method::GET, "/v1/collections/gym/suggest", Scope::Read),
        (Method::GET, "/v1/collections/gym/analytics/popular", Scope::Read),
        (Method::GET, "/v1/collections/gym/analytics/no-hits", Scope::Read),
        (Method::GET, "/metrics", Scope::Read),
        (Method::PUT, "/v1/collections/gym", Scope::Write),
        (Method::DELETE, "/v1/collections/gym", Scope::Write),
        (Method::POST, "/v1/collections/gym/documents", Scope::Write),
        (Method::PUT, "/v1/collections/gym/documents/1", Scope::Write),
        (Method::DELETE, "/v1/collections/gym/documents/1", Scope::Write),
        (Method::POST, "/v1/admin/cache/invalidate", Scope::Admin),
    ];
    for (method, path, scope) in routes {
        let call = |key| guarded.call(method.clone(), path, key);
        let answer = call(None).await;
        answer.problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        call(Some("sxt_wrong")).await.problem(401, "unauthenticated");
        for (key, has) in [
            (&guarded.read, Scope::Read),
            (&guarded.write, Scope::Write),
            (&guarded.admin, Scope::Admin),
        ] {
            let status = call(Some(key)).await.status;
            let passed = status != 401 && status != 403;
            assert_eq!(passed, has == scope, "{method} {path} with {has:?}: {status}");
        }
    }
}

#[tokio::test]
async fn health_and_the_page_need_no_key() {
    let guarded = guarded().await;
    for path in ["/livez", "/readyz", "/v1/info", "/", "/app.js", "/style.css", "/openapi.json"] {
        assert_eq!(guarded.call(Method::GET, path, None).await.status, 200, "{path}");
    }
    let info = guarded.call(Method::GET, "/v1/info", None).await.json();
    assert_eq!(info["auth_required"], true);
}

#[tokio::test]
async fn the_embeddings_route_keeps_openai_s_error_shape_also_for_keys() {
    let guarded = guarded().await;
    let answer = guarded.call(Method::POST, "/v1/embeddings", None).await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json()["error"]["type"], "authentication_error");
}

#[tokio::test]
async fn a_server_without_keys_answers_to_local_names_only() {
    let app = TestApp::gym().await;
    let ask = |host: &str| {
        let request = Request::get("/v1/collections").header("host", host);
        app.send(request.body(Body::empty()).unwrap())
    };
    ask("localhost:8080").await.ok();
    ask("rebound.example").await.problem(403, "forbidden");
}
