//! The requests to another server: what it serves, and embeddings.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::{StatusCode, Url, header, redirect};
use serde::{Deserialize, Serialize};

use crate::domain::EmbeddingVersion;
use crate::ports::{Class, Embedding, Prompts};
use crate::spans;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Below the time after which the other server closes an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// When an overloaded server names no time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// As much of an error's text is told.
const DETAIL_CHARS: usize = 200;

pub struct Client {
    http: reqwest::Client,
    endpoints: Vec<Url>,
}

/// What a server says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Info {
    /// Null while it starts.
    pub model: Option<EmbeddingVersion>,
    pub max_tokens: Option<usize>,
    pub device: Option<String>,
    #[serde(default)]
    pub prompts: Prompts,
    pub limits: ServerLimits,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ServerLimits {
    pub max_body_bytes: usize,
    pub max_embedding_inputs: usize,
}

#[derive(Serialize)]
struct Request<'a> {
    input: &'a [Arc<str>],
    encoding_format: &'static str,
    urgency: &'static str,
    allow_empty: bool,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Row>,
    model_hash: String,
}

#[derive(Deserialize)]
struct Row {
    embedding: String,
    tokens: usize,
    truncated: bool,
}

/// Why a server did not answer as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It cannot be reached.
    Unreachable(String),
    /// The connection broke, as it does when it was idle for long or the server is restarted.
    Interrupted(String),
    /// It did not answer in this time.
    TimedOut(Duration),
    /// It says when to come again.
    Overloaded(Duration),
    /// It lets nobody in with this key.
    Denied(String),
    /// It has another model, of this hash.
    OtherModel(String),
    /// It failed, or its answer is not one.
    Broken(String),
    /// It will not take this request, nor will another one.
    Rejected(String),
}

impl Fault {
    /// One word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Interrupted(_) => "interrupted",
            Self::TimedOut(_) => "timeout",
            Self::Overloaded(_) => "overloaded",
            Self::Denied(_) => "denied",
            Self::OtherModel(_) => "other_model",
            Self::Broken(_) => "broken",
            Self::Rejected(_) => "rejected",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut(limit) => write!(f, "no answer in {} ms", limit.as_millis()),
            Self::Overloaded(_) => f.write_str("overloaded"),
            Self::OtherModel(hash) => write!(f, "serves another model, of hash {hash}"),
            Self::Unreachable(reason)
            | Self::Interrupted(reason)
            | Self::Denied(reason)
            | Self::Broken(reason)
            | Self::Rejected(reason) => f.write_str(reason),
        }
    }
}

/// Why the client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not shown: it may hold a secret.
    #[error("`remote.endpoints[{0}]` must be a URL that begins with http:// or https://")]
    Endpoint(usize),
    #[error("the API key for the embedding servers has characters that a header cannot hold")]
    Key,
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

impl Client {
    pub fn new(
        endpoints: &[String],
        api_key: Option<&str>,
        max_in_flight: usize,
    ) -> Result<Self, BuildError> {
        let endpoints = endpoints
            .iter()
            .enumerate()
            .map(|(place, text)| base_url(text).ok_or(BuildError::Endpoint(place)))
            .collect::<Result<_, _>>()?;
        let mut headers = header::HeaderMap::new();
        if let Some(key) = api_key {
            let mut value = header::HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| BuildError::Key)?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        // Fails only when a provider is set already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(max_in_flight)
            // The servers are neighbours, and the key is for them alone.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .build()
            .map_err(BuildError::Client)?;
        Ok(Self { http, endpoints })
    }

    /// The servers' names, without what may be secret in their addresses.
    pub fn names(&self) -> Vec<String> {
        let name = |url: &Url| {
            let mut url = url.clone();
            // Neither fails on an address with a host.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.as_str().trim_end_matches('/').to_owned()
        };
        self.endpoints.iter().map(name).collect()
    }

    pub async fn info(&self, endpoint: usize, limit: Duration) -> Result<Info, Fault> {
        let request = self.http.get(self.url(endpoint, "v1/info")).timeout(limit);
        decode(&self.send(request, limit).await?)
    }

    /// One embedding per text of `body`, see [`body`].
    pub async fn embeddings(
        &self,
        endpoint: usize,
        body: Bytes,
        texts: usize,
        version: &EmbeddingVersion,
        limit: Duration,
    ) -> Result<Vec<Embedding>, Fault> {
        let mut request = self
            .http
            .post(self.url(endpoint, "v1/embeddings"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .timeout(limit);
        if let Some(span) = spans::current() {
            request = request.header("traceparent", spans::traceparent(&span));
        }
        let answer: Answer = decode(&self.send(request, limit).await?)?;
        if answer.model_hash != version.hash {
            return Err(Fault::OtherModel(answer.model_hash));
        }
        if answer.data.len() != texts {
            let message = format!("{} embeddings for {texts} texts", answer.data.len());
            return Err(Fault::Broken(message));
        }
        answer.data.into_iter().map(|row| row.embedding(version.dimension)).collect()
    }

    fn url(&self, endpoint: usize, path: &str) -> Url {
        let base = &self.endpoints[endpoint];
        // A constant path always joins.
        base.join(path).unwrap_or_else(|_| base.clone())
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        limit: Duration,
    ) -> Result<Bytes, Fault> {
        let told = |error: reqwest::Error| {
            if error.is_connect() {
                Fault::Unreachable(chain(&error.without_url()))
            } else if error.is_timeout() {
                Fault::TimedOut(limit)
            } else {
                Fault::Interrupted(chain(&error.without_url()))
            }
        };
        let response = request.send().await.map_err(told)?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = response.bytes().await.map_err(told)?;
        if status.is_success() {
            return Ok(body);
        }
        let fault = detail(status, &body);
        Err(match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                Fault::Overloaded(retry_after.unwrap_or(RETRY_AFTER))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::Denied(fault),
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Fault::Rejected(fault),
            _ => Fault::Broken(fault),
        })
    }
}

impl Row {
    fn embedding(self, dimension: usize) -> Result<Embedding, Fault> {
        let broken = |reason: &str| Fault::Broken(format!("an embedding {reason}"));
        let bytes = STANDARD.decode(self.embedding).map_err(|_| broken("is not base64"))?;
        if bytes.len() != dimension * 4 {
            return Err(broken("has another length than the model's"));
        }
        let vector: Arc<[f32]> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if !vector.iter().all(|number| number.is_finite()) {
            return Err(broken("holds what is no number"));
        }
        Ok(Embedding { vector, tokens: self.tokens, truncated: self.truncated })
    }
}

/// The request that asks for these texts.
pub fn body(texts: &[Arc<str>], class: Class) -> Result<Bytes, serde_json::Error> {
    let urgency = match class {
        Class::Interactive => "interactive",
        Class::Bulk => "bulk",
    };
    let request = Request { input: texts, encoding_format: "base64", urgency, allow_empty: true };
    serde_json::to_vec(&request).map(Bytes::from)
}

/// Bytes of a request around its texts, and some to spare.
pub const BODY_OVERHEAD: usize = 256;

fn base_url(text: &str) -> Option<Url> {
    let url = Url::parse(&format!("{}/", text.trim_end_matches('/'))).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

fn decode<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body)
        .map_err(|error| Fault::Broken(format!("its answer is not understood: {error}")))
}

fn detail(status: StatusCode, body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = body["error"]["message"].as_str().or_else(|| body["detail"].as_str());
    let message: String = message.unwrap_or_default().chars().take(DETAIL_CHARS).collect();
    format!("it answered {status}: {message}").trim_end_matches([':', ' ']).to_owned()
}

/// An error with its causes: `reqwest` says only what it was doing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_and_its_name_holds_no_secret() {
        let endpoints = ["http://user:secret@127.0.0.1:80/".to_owned(), "https://e/x".to_owned()];
        let client = Client::new(&endpoints, Some("key"), 1).unwrap();
        assert_eq!(client.names(), ["http://127.0.0.1", "https://e/x"]);
        assert_eq!(client.url(1, "v1/info").as_str(), "https://e/x/v1/info");
        for wrong in ["", "127.0.0.1:8080", "ftp://host", "http://"] {
            let made = Client::new(&[wrong.to_owned()], None, 1);
            assert!(matches!(made, Err(BuildError::Endpoint(0))), "{wrong}");
        }
        assert!(matches!(Client::new(&endpoints, Some("a\nb"), 1), Err(BuildError::Key)));
    }
}
