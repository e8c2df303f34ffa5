//! Several servers over real shared stores, and what happens when a store is lost.
#![allow(clippy::unwrap_used, reason = "test code")]

mod balancers;
mod faults;
mod load;
mod many;
mod reindex;

use serde_json::{Value, json};
use sextant_tests::{Api, Server};

const COLLECTION: &str = "moves";

/// Documents that are told apart by their words and by attributes.
fn lines(numbers: std::ops::Range<usize>, revision: usize) -> String {
    numbers.map(|n| document(n, revision).to_string() + "\n").collect()
}

fn document(number: usize, revision: usize) -> Value {
    let id = format!("{number:05}");
    json!({"id": id, "name": format!("word{number}"), "description": format!("revision{revision}"),
        "revision": format!("r{revision}"), "parity": if number.is_multiple_of(2) { "even" } else { "odd" }})
}

/// Writes lines and waits until searches see them.
async fn import(api: &Api, lines: String) {
    let path = format!("/v1/collections/{COLLECTION}/documents?wait=true");
    let request = api.request(reqwest::Method::POST, &path);
    let request = request.header("content-type", "application/x-ndjson").body(lines);
    let answer = api.send(request).await.unwrap();
    assert_eq!(answer.status, reqwest::StatusCode::OK, "{}", answer.text);
}

async fn collection(servers: &[Server], settings: &Value) {
    servers[0].api.put(&format!("/v1/collections/{COLLECTION}"), settings).await.ok();
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    sextant_tests::eventually(what, async || holds().await.then_some(())).await;
}
