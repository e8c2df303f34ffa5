//! Errors as RFC 9457 problem documents. Each `type` has a page in docs/problems.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::trace;
use crate::auth::Denied;
use crate::catalog::CatalogError;
use crate::domain::FieldError;
use crate::ingest::{IngestError, Interrupted};
use crate::log::LogError;
use crate::ports::{EmbedError, IndexError, StoreError};
use crate::search::SearchError;

const TYPE_BASE: &str = "https://sextant.dev/problems/";

/// The kinds of problems, each with its status and title.
pub const KINDS: &[(&str, StatusCode, &str)] = &[
    ("malformed", StatusCode::BAD_REQUEST, "The request cannot be read"),
    ("unauthenticated", StatusCode::UNAUTHORIZED, "An API key is needed"),
    ("forbidden", StatusCode::FORBIDDEN, "The request is not allowed"),
    ("not-found", StatusCode::NOT_FOUND, "There is no such thing"),
    ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "The method does not fit"),
    ("timeout", StatusCode::REQUEST_TIMEOUT, "The request came too slowly"),
    ("conflict", StatusCode::CONFLICT, "The request conflicts with what is there"),
    ("model-mismatch", StatusCode::CONFLICT, "Another model embedded the collection"),
    ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request is too large"),
    ("unsupported-media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The content type is unknown"),
    ("invalid", StatusCode::UNPROCESSABLE_ENTITY, "A field is not acceptable"),
    ("too-many-requests", StatusCode::TOO_MANY_REQUESTS, "The API key has too many requests"),
    ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The server failed"),
    ("overloaded", StatusCode::SERVICE_UNAVAILABLE, "The server has too much to do"),
    ("not-ready", StatusCode::SERVICE_UNAVAILABLE, "The server is not ready"),
    ("storage", StatusCode::SERVICE_UNAVAILABLE, "Storage does not answer"),
    ("deadline-exceeded", StatusCode::GATEWAY_TIMEOUT, "The request took too long"),
];

/// An error as clients see it (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Identifies the kind of problem and never changes.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened here, and what to do about it where that is known.
    pub detail: String,
    /// The fields that are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Of an import: documents that were written before the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upserted: Option<u64>,
    pub request_id: String,
    /// Of the trace that the request is part of: the caller's, as in its `traceparent`, or a new one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// Seconds after which the request may succeed, also in `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl Problem {
    /// # Panics
    /// In tests, for a kind that is not in [`KINDS`].
    pub fn new(kind: &str, detail: impl Into<String>) -> Self {
        debug_assert!(KINDS.iter().any(|(name, ..)| *name == kind), "{kind}");
        let (_, status, title) = KINDS
            .iter()
            .find(|(name, ..)| *name == kind)
            .copied()
            .unwrap_or(("internal", StatusCode::INTERNAL_SERVER_ERROR, "The server failed"));
        Self {
            kind: format!("{TYPE_BASE}{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            upserted: None,
            request_id: trace::current_request_id(),
            trace_id: trace::current_trace_id(),
            retry_after_seconds: None,
        }
    }

    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] => only.to_string(),
            _ => format!("{} fields are not acceptable", errors.len()),
        };
        Self { errors, ..Self::new("invalid", detail) }
    }

    pub fn field(path: &str, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(path, message)])
    }

    pub fn starting() -> Self {
        Self::new("not-ready", "the server is starting").retry_after(Duration::from_secs(1))
    }

    pub fn deadline_exceeded() -> Self {
        Self::new("deadline-exceeded", "the request was not done before its deadline")
            .retry_after(Duration::from_secs(1))
    }

    /// Rounded up to whole seconds, as the header wants it.
    pub fn retry_after(mut self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.retry_after_seconds = Some(seconds.max(1));
        self
    }

    /// For failures whose cause is for the operator's eyes: logged here, told in general.
    fn internal(kind: &str, detail: &str, error: &dyn std::error::Error) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(
            error = chain,
            request_id = trace::current_request_id(),
            trace_id = trace::current_trace_id(),
            "request failed",
        );
        Self::new(kind, detail)
    }

    fn unavailable(detail: &str, error: &dyn std::error::Error) -> Self {
        Self::internal("storage", detail, error).retry_after(Duration::from_secs(1))
    }

    fn storage(error: &dyn std::error::Error) -> Self {
        Self::internal("storage", "documents or index could not be reached", error)
            .retry_after(Duration::from_secs(5))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of strings and numbers always serialises.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthenticated => {
                Self::new("unauthenticated", "send a known API key as `Authorization: Bearer KEY`")
            }
            Denied::Missing(scope) => {
                Self::new("forbidden", format!("the API key has no scope {:?}", scope.as_str()))
            }
            Denied::TooMany => Self::new(
                "too-many-requests",
                "the API key has as many requests under way as it may",
            )
            .retry_after(Duration::from_secs(1)),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Level(reason) => Self::field("level", reason),
            LogError::Started(_) | LogError::NotStarted => {
                Self::new("not-ready", error.to_string())
            }
        }
    }
}

impl From<EmbedError> for Problem {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::Overloaded { retry_after } => {
                Self::new("overloaded", error.to_string()).retry_after(retry_after)
            }
            EmbedError::DeadlineExceeded => Self::deadline_exceeded(),
            EmbedError::Stopped => Self::internal("not-ready", "the embedder has stopped", &error)
                .retry_after(Duration::from_secs(5)),
            EmbedError::Unavailable(_) => {
                Self::unavailable("the embedder is not available", &error)
            }
            EmbedError::Failed(_) => Self::internal("internal", "the model failed", &error),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        (&error).into()
    }
}

impl From<&StoreError> for Problem {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Exists | StoreError::Conflict(_) => {
                Self::new("conflict", error.to_string())
            }
            StoreError::NoCollection => Self::new("not-found", error.to_string()),
            StoreError::Unavailable { .. } => {
                Self::unavailable("the database is not available", error)
            }
            StoreError::Query { .. } | StoreError::NoOutbox => Self::storage(error),
        }
    }
}

impl From<&IndexError> for Problem {
    fn from(error: &IndexError) -> Self {
        match error {
            IndexError::Unavailable { .. } => {
                Self::unavailable("the index is not available", error)
            }
            IndexError::Unsupported(reason) => Self::field("mode", *reason),
            IndexError::Io { .. } | IndexError::NotOpen(_) | IndexError::Lost => {
                Self::storage(error)
            }
        }
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::NotFound(_) => Self::new("not-found", error.to_string()),
            CatalogError::Invalid(errors) => Self::invalid(errors),
            CatalogError::OtherModel { .. } => Self::new("model-mismatch", error.to_string()),
            CatalogError::Store(error) => error.into(),
            CatalogError::Index(error) => (&error).into(),
        }
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Embed(error) => error.into(),
            SearchError::DeadlineExceeded => Self::deadline_exceeded(),
            SearchError::Index(error) => (&*error).into(),
            SearchError::Store(error) => (&*error).into(),
            SearchError::Encode(_) => {
                Self::internal("internal", "the answer could not be written", &error)
            }
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Invalid(errors) => Self::invalid(errors),
            IngestError::Malformed { place, message } => {
                Self::new("malformed", format!("document [{place}] is not JSON: {message}"))
            }
            IngestError::Broken(_) => Self::new("malformed", error.to_string()),
            IngestError::TooSlow => Self::new("timeout", error.to_string()),
            IngestError::TooLarge(_) => Self::new("too-large", error.to_string()),
            IngestError::Interrupted => Self::internal("internal", "the write failed", &error),
            IngestError::Embed(error) => error.into(),
            IngestError::Catalog(error) => error.into(),
        }
    }
}

impl From<Interrupted> for Problem {
    fn from(interrupted: Interrupted) -> Self {
        Self { upserted: Some(interrupted.written.upserted), ..Self::from(interrupted.error) }
    }
}

pub async fn not_found(uri: Uri) -> Problem {
    Problem::new("not-found", format!("there is no route {}; see /docs", uri.path()))
}

pub async fn method_not_allowed() -> Problem {
    Problem::new("method-not-allowed", "this route has other methods; see /docs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_page() {
        for (kind, ..) in KINDS {
            let page = format!("{}/../docs/problems/{kind}.md", env!("CARGO_MANIFEST_DIR"));
            assert!(std::path::Path::new(&page).exists(), "{page}");
        }
    }

    #[test]
    fn the_wait_is_rounded_up_to_seconds() {
        let problem = Problem::starting().retry_after(Duration::from_millis(1_200));
        assert_eq!(problem.retry_after_seconds, Some(2));
        let response = problem.into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }
}
