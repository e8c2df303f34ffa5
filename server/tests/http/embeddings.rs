use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::app::TestApp;

#[tokio::test]
async fn texts_are_embedded_in_openai_s_shape() {
    let app = TestApp::new().await;
    let one = app.post("/v1/embeddings", json!({"input": "bend the knees"})).await.ok();
    assert_eq!(one["object"], "list");
    assert_eq!(one["data"][0]["object"], "embedding");
    assert_eq!(one["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    let many = app
        .post(
            "/v1/embeddings",
            json!({"input": ["push", "bend the knees"], "user": "u",
            "model": "x/hashed-words", "encoding_format": "base64", "dimensions": 64}),
        )
        .await
        .ok();
    assert_eq!(many["data"][1]["index"], 1);
    let bytes = STANDARD.decode(many["data"][1]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let plain: Vec<f32> = serde_json::from_value(one["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(decoded, plain);
}

#[tokio::test]
async fn inputs_that_were_cut_are_named() {
    let app = TestApp::new().await;
    let answer = app.post("/v1/embeddings", json!({"input": ["a", "b ".repeat(300)]})).await.ok();
    assert_eq!(answer["truncated"], json!([1]));
}

#[tokio::test]
async fn other_servers_get_to_know_what_each_text_cost_and_which_model_it_was() {
    let app = TestApp::new().await;
    let texts = json!(["push", "", "b ".repeat(300)]);
    let body = json!({"input": texts, "allow_empty": true, "urgency": "bulk"});
    let answer = app.post("/v1/embeddings", body).await.ok();
    let of = |i: usize, field: &str| answer["data"][i][field].clone();
    assert_eq!([of(0, "tokens"), of(1, "tokens"), of(2, "tokens")], [1, 0, 256]);
    assert_eq!([of(0, "truncated"), of(1, "truncated"), of(2, "truncated")], [false, false, true]);
    assert_eq!(answer["model_hash"], app.get("/v1/info").await.ok()["model"]["hash"]);
}

#[tokio::test]
async fn errors_have_openai_s_shape() {
    let app = TestApp::new().await;
    for (body, status, param) in [
        (json!({"input": []}), 422, json!("input")),
        (json!({"input": ["a", " "]}), 422, json!("input[1]")),
        (json!({"input": [1, 2]}), 422, json!("input")),
        (json!({"input": "a", "model": "gpt"}), 422, json!("model")),
        (json!({"input": "a", "dimensions": 7}), 422, json!("dimensions")),
        (json!({"input": vec!["a"; 257]}), 413, Value::Null),
        (json!({"input": "a", "encoding": "x"}), 422, json!("encoding")),
    ] {
        let answer = app.post("/v1/embeddings", body.clone()).await;
        assert_eq!(answer.status, status, "{body}");
        assert_eq!(answer.header("content-type"), "application/json");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{body}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].is_string() && error["code"].is_string());
    }
}
