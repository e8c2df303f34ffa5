//! A small client of the HTTP interface.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// Speaks to one server.
#[derive(Clone, Debug)]
pub struct Api {
    pub url: String,
    pub http: reqwest::Client,
    pub key: Option<String>,
}

/// What a server answered; the body is null when it is not JSON.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text);
        self.body
    }

    /// The last part of a problem's type, as in `model-mismatch`.
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default()
    }
}

impl Api {
    pub fn new(url: &str) -> Self {
        // Fails only when a provider is set already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .timeout(super::PATIENCE)
            .build()
            .expect("a client");
        Self { url: url.trim_end_matches('/').to_owned(), http, key: None }
    }

    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; an error when no whole answer came.
    pub async fn send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or_default();
        Ok(Answer { status, headers, body, text })
    }

    async fn must(&self, request: RequestBuilder) -> Answer {
        self.send(request).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.must(self.request(Method::GET, path)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.must(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.must(self.request(Method::POST, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.must(self.request(Method::DELETE, path)).await
    }

    /// Upserts documents, one a line.
    pub async fn import(&self, collection: &str, lines: String) -> Answer {
        let path = format!("/v1/collections/{collection}/documents");
        let request = self.request(Method::POST, &path);
        self.must(request.header("content-type", "application/x-ndjson").body(lines)).await
    }

    pub async fn search(&self, collection: &str, request: &Value) -> Value {
        self.post(&format!("/v1/collections/{collection}/search"), request).await.ok()
    }

    /// Identifiers of the hits of a search, best first.
    pub async fn found(&self, collection: &str, request: &Value) -> Vec<String> {
        let found = self.search(collection, request).await;
        let hits = found["hits"].as_array().expect("hits").iter();
        hits.map(|hit| hit["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Every document of a collection, in the order of the identifiers.
    pub async fn documents(&self, collection: &str) -> Vec<Value> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/collections/{collection}/documents?limit=1000{cursor}");
            let page = self.get(&path).await.ok();
            all.extend(page["documents"].as_array().expect("documents").iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else { return all };
            cursor = format!("&cursor={next}");
        }
    }

    /// How many documents the server says a collection has.
    pub async fn count(&self, collection: &str) -> usize {
        let info = self.get(&format!("/v1/collections/{collection}")).await.ok();
        info["documents"].as_u64().expect("a number") as usize
    }
}
