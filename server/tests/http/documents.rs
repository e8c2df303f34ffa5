use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::app::{Answer, TestApp, exercises, paths, percent_encoded};

pub const DOCUMENTS: &str = "/v1/collections/gym/documents";

pub async fn import(app: &TestApp, kind: &str, body: impl Into<Body>) -> Answer {
    let request = Request::post(DOCUMENTS).header("content-type", kind).body(body.into()).unwrap();
    app.send(request).await
}

#[tokio::test]
async fn a_document_is_written_read_listed_and_deleted() {
    let app = TestApp::gym().await;
    let squat = app.get(&format!("{DOCUMENTS}/squat")).await;
    assert_eq!(squat.header("etag"), "\"1\"");
    assert_eq!(squat.json(), exercises()[0]);
    app.put(&format!("{DOCUMENTS}/squat"), json!({"name": "Deep squat"})).await.ok();
    let squat = app.get(&format!("{DOCUMENTS}/squat")).await;
    assert_eq!(squat.json(), json!({"id": "squat", "name": "Deep squat"}));
    assert_eq!(squat.header("etag"), "\"2\"");

    let delete = async || {
        let path = format!("{DOCUMENTS}/squat");
        app.call(Method::DELETE, &path, None).await
    };
    assert_eq!(delete().await.status, 204);
    delete().await.problem(404, "not-found");
    app.get(&format!("{DOCUMENTS}/squat")).await.problem(404, "not-found");

    let first = app.get(&format!("{DOCUMENTS}?limit=3")).await.ok();
    let listed = |page: &Value| {
        let documents = page["documents"].as_array().unwrap().clone();
        documents.iter().map(|d| d["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&first), ["bench-press", "lunge", "plank"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = app.get(&format!("{DOCUMENTS}?limit=3&cursor={cursor}")).await.ok();
    assert_eq!((listed(&second), &second["next_cursor"]), (vec!["press-up".into()], &Value::Null));
    app.get(&format!("{DOCUMENTS}?limit=0")).await.problem(422, "invalid");
    app.get(&format!("{DOCUMENTS}?cursor=%25")).await.problem(422, "invalid");
}

#[tokio::test]
async fn an_identifier_may_hold_what_a_path_cannot() {
    let app = TestApp::gym().await;
    let id = "a/b ?ü#%";
    let encoded = percent_encoded(id);
    app.put(&format!("{DOCUMENTS}/{encoded}"), json!({"name": "odd"})).await.ok();
    assert_eq!(app.get(&format!("{DOCUMENTS}/{encoded}")).await.ok()["id"], id);
    let other = json!({"id": "other", "name": "odd"});
    app.put(&format!("{DOCUMENTS}/{encoded}"), other).await.problem(422, "invalid");
}

#[tokio::test]
async fn a_faulty_document_is_named_with_its_place_and_its_part_is_not_written() {
    let app = TestApp::gym().await;
    let mut documents: Vec<Value> = (0..300)
        .map(|i| json!({"id": format!("d{i:03}"), "name": format!("number {i}")}))
        .collect();
    documents[290]["level"] = json!(7);
    documents[299] = json!({"name": "no id"});
    let problem = app.post(DOCUMENTS, json!(documents)).await.problem(422, "invalid");
    assert_eq!(problem["upserted"], 256, "the first part was whole");
    assert_eq!(paths(&problem), ["[299].id"]);
    documents[299] = json!({"id": "d299", "name": "fine"});
    let problem = app.post(DOCUMENTS, json!(documents)).await.problem(422, "invalid");
    assert_eq!(paths(&problem), ["[290].level"]);
    assert!(problem["detail"].as_str().unwrap().contains("string"));
    assert_eq!(app.get("/v1/collections/gym").await.ok()["documents"], 5 + 256);
    app.get(&format!("{DOCUMENTS}/d256")).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_body_that_ends_early_or_is_not_json_is_refused() {
    let app = TestApp::gym().await;
    for body in ["", "[", "{\"id\":\"x\",\"name\":\"y\"", "[{\"id\":\"x\" \"name\":\"y\"}]", "nope"]
    {
        import(&app, "application/json", body).await.problem(400, "malformed");
    }
    let long = format!("[{{\"id\":\"x\",\"name\":\"{}\"}}]", "y".repeat(300_000));
    import(&app, "application/json", long).await.problem(413, "too-large");
    assert_eq!(app.get("/v1/collections/gym").await.ok()["documents"], 5);
}

#[tokio::test]
async fn of_two_documents_with_one_identifier_the_last_counts() {
    let app = TestApp::gym().await;
    let twice = json!([{"id": "x", "name": "first"}, {"id": "x", "name": "second"}]);
    assert_eq!(app.post(DOCUMENTS, twice).await.ok()["upserted"], 1);
    assert_eq!(app.get(&format!("{DOCUMENTS}/x")).await.ok()["name"], "second");
}

#[tokio::test]
async fn a_query_longer_than_the_model_reads_is_told() {
    let app = TestApp::gym().await;
    let found = app.search(json!({"query": "word ".repeat(400)})).await.ok();
    assert_eq!(found["query_truncated"], true);
}
