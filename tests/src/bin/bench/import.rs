//! Writing documents and waiting until searches see them, whatever the stores are.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sextant_tests::Api;

use crate::Failure;

/// Documents of one import: short enough for its time limit.
const PART: usize = 64;
/// Longest wait for what was written to be searched.
const INDEXED_WITHIN: Duration = Duration::from_mins(5);

/// Makes a collection of these documents.
pub async fn import(
    api: &Api,
    collection: &str,
    text_fields: &[&str],
    documents: &[Value],
) -> Result<(), Failure> {
    let path = format!("/v1/collections/{collection}");
    api.put(&path, &json!({ "text_fields": text_fields })).await.ok();
    for part in documents.chunks(PART) {
        let request = api.request(Method::POST, &format!("{path}/documents"));
        let request = request.header("content-type", "application/x-ndjson").body(lines(part));
        let answer = api.send(request).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::ACCEPTED => finished(api, &answer.body).await?,
            _ => return Err(format!("the import was refused: {}", answer.text).into()),
        }
    }
    Ok(())
}

/// One document a line.
pub fn lines(documents: &[Value]) -> String {
    documents.iter().flat_map(|document| [document.to_string(), "\n".to_owned()]).collect()
}

/// Waits until searches see what an operation wrote.
async fn finished(api: &Api, accepted: &Value) -> Result<(), Failure> {
    let operation = accepted["operation"].as_str().unwrap_or_default();
    let started = Instant::now();
    while started.elapsed() < INDEXED_WITHIN {
        let info = api.get(&format!("/v1/operations/{operation}")).await.ok();
        match info["status"].as_str() {
            Some("succeeded") => return Ok(()),
            Some("pending") => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => return Err(format!("documents were not indexed: {info}").into()),
        }
    }
    Err(format!("documents were not indexed within {INDEXED_WITHIN:?}").into())
}
