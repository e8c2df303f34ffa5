//! A client of a running server.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Failure;
use crate::domain::Mode;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// How often an overloaded server is asked again.
const TRIES: usize = 6;

#[derive(Args, Clone, Debug)]
pub struct ClientOptions {
    /// Address of the server.
    #[arg(long, env = "SEXTANT_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// File that holds the API key; the variable `SEXTANT_API_KEY` can hold the key itself. There
    /// is no option for the key: everybody on the machine could read it in the process list.
    #[arg(long)]
    pub api_key_file: Option<PathBuf>,
}

pub struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

/// The error a server answered with.
#[derive(Debug, thiserror::Error)]
#[error("the server answered {status}: {detail}")]
pub struct Refused {
    pub status: StatusCode,
    pub detail: String,
}

/// No whole answer came.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unanswered(String);

impl Client {
    pub fn new(options: &ClientOptions) -> Result<Self, Failure> {
        let key = match &options.api_key_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?
                    .trim()
                    .to_owned(),
            ),
            None => std::env::var("SEXTANT_API_KEY").ok(),
        };
        // Fails only when a provider is set already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()?;
        Ok(Self { http, url: options.url.trim_end_matches('/').to_owned(), key })
    }

    /// The address without what may be secret in it.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends, and again after the time the server names while it is overloaded or starting.
    async fn send(&self, request: RequestBuilder) -> Result<String, Failure> {
        for tried in 1.. {
            let again = request.try_clone();
            let sent = again.ok_or("the request cannot be sent twice")?.send().await;
            let response = sent.map_err(|error| self.unanswered(&error))?;
            let status = response.status();
            let wait = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .map(Duration::from_secs);
            let body = response.text().await?;
            match wait.filter(|_| tried < TRIES && status.is_server_error()) {
                Some(wait) => tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await,
                None if status.is_success() => return Ok(body),
                None => return Err(refused(status, &body).into()),
            }
        }
        Err("the server stays overloaded".into())
    }

    fn unanswered(&self, error: &reqwest::Error) -> Unanswered {
        Unanswered(if error.is_connect() {
            format!("no server answers at {}; start one with `make run`", self.url)
        } else {
            error.to_string()
        })
    }

    /// Asks once, for at most `timeout`, and takes an answer of any status.
    pub async fn get(
        &self,
        path: &str,
        timeout: Duration,
    ) -> Result<(StatusCode, String), Unanswered> {
        let answer = async {
            let response = self.request(Method::GET, path).timeout(timeout).send().await?;
            Ok::<_, reqwest::Error>((response.status(), response.text().await?))
        };
        answer.await.map_err(|error| {
            if error.is_timeout() && !error.is_connect() {
                Unanswered(format!("{} does not answer within {timeout:?}", self.url))
            } else {
                self.unanswered(&error)
            }
        })
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        Ok(serde_json::from_str(&self.send(request).await?)?)
    }

    pub async fn search_raw(&self, collection: &str, request: &Value) -> Result<String, Failure> {
        let path = format!("/v1/collections/{collection}/search");
        Ok(self.send(self.request(Method::POST, &path).json(request)).await? + "\n")
    }

    pub async fn search(&self, collection: &str, request: &Value) -> Result<Value, Failure> {
        Ok(serde_json::from_str(&self.search_raw(collection, request).await?)?)
    }

    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, Failure> {
        let body = serde_json::json!({ "input": texts });
        let answer: Value =
            self.json(self.request(Method::POST, "/v1/embeddings").json(&body)).await?;
        let rows = answer["data"].as_array().ok_or("the answer has no data")?;
        rows.iter().map(|row| Ok(serde_json::from_value(row["embedding"].clone())?)).collect()
    }

    /// Creates the collection with defaults when there is none.
    pub async fn ensure_collection(&self, collection: &str) -> Result<(), Failure> {
        let path = format!("/v1/collections/{collection}");
        match self.send(self.request(Method::GET, &path)).await {
            Ok(_) => Ok(()),
            Err(error) => match error.downcast_ref::<Refused>() {
                Some(refused) if refused.status == StatusCode::NOT_FOUND => {
                    let create = self.request(Method::PUT, &path).json(&serde_json::json!({}));
                    self.send(create).await.map(drop)
                }
                _ => Err(error),
            },
        }
    }

    /// Upserts documents, one a line.
    pub async fn upsert(&self, collection: &str, lines: Vec<u8>) -> Result<Value, Failure> {
        let path = format!("/v1/collections/{collection}/documents");
        let request = self
            .request(Method::POST, &path)
            .timeout(REQUEST_TIMEOUT * 10)
            .header("content-type", "application/x-ndjson")
            .body(lines);
        self.json(request).await
    }
}

pub fn refused(status: StatusCode, body: &str) -> Refused {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let message = problem["detail"].as_str().or_else(|| problem["error"]["message"].as_str());
    let mut detail = message.unwrap_or(body.trim()).to_owned();
    let errors = problem["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    for error in errors.iter().take(10).filter(|_| errors.len() > 1) {
        let (path, message) = (error["path"].as_str(), error["message"].as_str());
        let _ = write!(detail, "\n  {}: {}", path.unwrap_or(""), message.unwrap_or(""));
    }
    Refused { status, detail }
}

pub fn search_request(
    query: &str,
    limit: u32,
    mode: Option<Mode>,
    filter: Option<&str>,
) -> Result<Value, Failure> {
    let filter: Value = filter
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| format!("--filter is not JSON: {error}"))?
        .unwrap_or_default();
    Ok(serde_json::json!({
        "query": query, "limit": limit, "mode": mode, "filter": filter, "snippet": true,
    }))
}

/// An answer for people.
pub fn as_text(found: &Value, terminal: bool) -> String {
    let (bold, plain) = if terminal { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
    let hits = found["hits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text = String::new();
    for (i, hit) in hits.iter().enumerate() {
        let id = hit["id"].as_str().unwrap_or_default();
        let name = hit["document"]["name"].as_str().unwrap_or(id);
        let score = hit["score"].as_f64().unwrap_or_default();
        let snippet = hit["snippet"].as_str().unwrap_or_default();
        let _ =
            writeln!(text, "{:>3}. {bold}{}{plain}  {score:.4}  [{}]", i + 1, tame(name), tame(id));
        let _ = writeln!(text, "     {}", tame(snippet));
    }
    if hits.is_empty() {
        text.push_str("no hits\n");
    }
    let time = found["processing_time_ms"].as_f64().unwrap_or_default();
    let cache = found["cache"]["status"].as_str().unwrap_or_default();
    let _ = writeln!(text, "{} hits in {time:.2} ms, cache {cache}", hits.len());
    text
}

/// Without control characters, by which a document could steer the terminal.
pub fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
