//! What only a server with stores of its own has.

use serde_json::json;

use crate::app::{Setup, TestApp, exercises};

/// Postgres is no file that a person could copy while the index stays.
#[tokio::test]
async fn an_index_that_is_newer_than_the_documents_is_made_anew() {
    let place = TestApp::gym().await.close().await;
    let copy = std::fs::read(place.path().join("documents.db")).unwrap();
    let app = TestApp::with(Setup { place: Some(place), ..Setup::default() }).await;
    app.put("/v1/collections/gym/documents/later", json!({"name": "Later"})).await.ok();
    let place = app.close().await;
    // A person puts an older copy of the documents back.
    std::fs::write(place.path().join("documents.db"), copy).unwrap();
    let app = TestApp::with(Setup { place: Some(place), ..Setup::default() }).await;
    let found = app.search(json!({"query": "hold still"})).await.ok();
    assert_eq!(found["hits"].as_array().unwrap().len(), 5);
}

/// With workers the answer of a write comes before the model has read the texts.
#[tokio::test]
async fn a_write_tells_how_many_texts_were_embedded_and_how_many_were_cut() {
    let app = TestApp::gym().await;
    let again = app.post("/v1/collections/gym/documents", exercises()).await.ok();
    assert_eq!((&again["upserted"], &again["embedded"]), (&json!(5), &json!(0)), "texts are known");
    let long = json!({"name": "word ".repeat(400)});
    // Also when the vector is known from before.
    for embedded in [1, 0] {
        let written = app.put("/v1/collections/gym/documents/long", long.clone()).await.ok();
        assert_eq!((&written["embedded"], &written["truncated"]), (&json!(embedded), &json!(1)));
    }
}
