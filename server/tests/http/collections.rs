use axum::http::Method;
use serde_json::json;

use crate::app::{TestApp, paths};

#[tokio::test]
async fn a_collection_is_created_described_and_deleted() {
    let app = TestApp::new().await;
    let schema = json!({"attributes": {"level": "string"}, "default_mode": "hybrid"});
    let made = app.put("/v1/collections/gym", schema.clone()).await;
    assert_eq!(made.status, 201);
    let described = app.get("/v1/collections/gym").await.ok();
    assert_eq!(described, made.json());
    assert_eq!(described["documents"], 0);
    assert_eq!(described["schema"]["text_fields"], json!(["name", "description"]));
    assert_eq!(described["embedding"]["dimension"], 64);
    assert_eq!(app.get("/v1/collections").await.ok()["collections"], json!([described]));
    assert_eq!(app.put("/v1/collections/gym", schema).await.status, 200);

    let delete = || app.call(Method::DELETE, "/v1/collections/gym", None);
    assert_eq!(delete().await.status, 204);
    delete().await.problem(404, "not-found");
    app.search(json!({"query": "x"})).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_collection_may_name_its_own_text_fields_and_mode() {
    let app = TestApp::new().await;
    let schema = json!({"text_fields": ["title", "body"], "default_mode": "lexical"});
    app.put("/v1/collections/gym", schema).await.ok();
    let document = json!({"title": "Red shoes", "body": "They run well.", "name": "an attribute"});
    app.put("/v1/collections/gym/documents/1", document).await.ok();
    let found = app.search(json!({"query": "shoes", "facets": ["name"]})).await.ok();
    assert_eq!(found["mode"], "lexical");
    assert_eq!(found["hits"][0]["id"], "1");
    assert_eq!(found["facets"]["name"][0]["value"], "an attribute");
}

#[tokio::test]
async fn a_schema_keeps_what_documents_rely_on() {
    let app = TestApp::gym().await;
    let change = json!({"text_fields": ["name"], "attributes": {"level": "number"}});
    let problem = app.put("/v1/collections/gym", change).await.problem(422, "invalid");
    assert_eq!(paths(&problem), ["text_fields", "attributes.level"]);
    let added = json!({"attributes": {"reps": "number"}, "default_mode": "lexical"});
    let schema = app.put("/v1/collections/gym", added).await.ok()["schema"].clone();
    assert_eq!(schema["attributes"]["reps"], "number");
    assert_eq!(schema["attributes"]["level"], "string", "what is there stays");
}

#[tokio::test]
async fn names_that_could_be_paths_are_refused() {
    let app = TestApp::new().await;
    for name in ["Gym", "..%2Fetc", "a.b", "%20"] {
        app.put(&format!("/v1/collections/{name}"), json!({})).await.problem(422, "invalid");
    }
    let faulty = json!({"attributes": {"id": "string", "a b": "string"}, "default_mode": "best"});
    app.put("/v1/collections/gym", faulty).await.problem(422, "invalid");
    app.put("/v1/collections/gym", json!({"atributes": {}})).await.problem(422, "invalid");
}
