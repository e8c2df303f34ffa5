//! Health, metrics, versions.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access;
use super::error::Problem;
use super::{AppState, Shared};
use crate::auth::Scope;
use crate::domain::EmbeddingVersion;
use crate::metrics::openmetrics;
use crate::ports::Prompts;

/// A dependency that does not answer in this time counts as down. Well below the 2 s in which load
/// balancers want an answer: else a store that hangs would take all servers out.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    /// `starting`, `ready` or `draining`.
    pub phase: String,
    /// Each dependency: `ok`, or what is wrong.
    pub dependencies: BTreeMap<String, String>,
}

/// The process is alive; says nothing of its dependencies.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = String)))]
pub async fn livez() -> &'static str {
    "ok\n"
}

/// Whether requests should come here: 503 while starting, while draining and when a part of this
/// server is down. What several servers share is told, and makes none of them unready.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub async fn readyz(State(state): State<AppState>) -> Response {
    let mut dependencies = BTreeMap::new();
    let mut usable = true;
    let phase = match state.services() {
        Err(_) => "starting",
        Ok(services) => {
            let catalog = &services.catalog;
            let (documents, index) =
                tokio::join!(check(catalog.store.health()), check(catalog.index.health()));
            let Shared { stores, embedder } = services.shared;
            let parts = [
                ("embedder", services.embedders.all().find_map(|it| it.health().err()), embedder),
                ("documents", documents, stores),
                ("index", index, stores),
            ];
            for (name, fault, shared) in parts {
                // When what all servers share is down, none would be ready, and what can still be
                // answered would reach nobody.
                usable &= fault.is_none() || shared;
                dependencies.insert(name.to_owned(), fault.unwrap_or_else(|| "ok".to_owned()));
            }
            if state.is_draining() { "draining" } else { "ready" }
        }
    };
    let ready = phase == "ready" && usable;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response =
        (status, Json(Readiness { ready, phase: phase.to_owned(), dependencies })).into_response();
    if !ready {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from(1));
    }
    response
}

/// What is wrong with a dependency, if so.
async fn check<E: std::fmt::Display>(
    health: impl Future<Output = Result<(), E>>,
) -> Option<String> {
    match tokio::time::timeout(CHECK_TIMEOUT, health).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("does not answer".to_owned()),
    }
}

/// Metrics in the text format of Prometheus, or of OpenMetrics for those who ask for it.
pub async fn metrics(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if !state.public_metrics {
        access::check(&state, Scope::Read, &headers)?;
    }
    if let Ok(services) = state.services() {
        services.search.refresh_metrics().await;
        services.embedders.all().for_each(|embedder| embedder.refresh_metrics());
    }
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("application/openmetrics-text")) {
        let text = state.metrics.encode_open();
        return Ok(([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response());
    }
    let text = state
        .metrics
        .encode()
        .map_err(|error| Problem::new("internal", format!("metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Info {
    pub name: String,
    pub version: String,
    /// Whether an API key is needed.
    pub auth_required: bool,
    /// Null while the server starts.
    pub model: Option<EmbeddingVersion>,
    pub max_tokens: Option<usize>,
    pub device: Option<String>,
    /// What stands in front of queries and documents when they are embedded. `/v1/embeddings` embeds
    /// texts as they are.
    pub prompts: Prompts,
    pub limits: Limits,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    pub max_query_chars: usize,
    pub max_body_bytes: usize,
    pub max_import_bytes: usize,
    pub max_document_bytes: usize,
    pub max_embedding_inputs: usize,
    pub request_timeout_ms: u64,
}

/// Versions, model, device and limits.
#[utoipa::path(get, path = "/v1/info", tag = "health", responses((status = 200, body = Info)))]
pub async fn info(State(state): State<AppState>) -> Json<Info> {
    let model = state.services().ok().map(|services| services.embedders.first().model().clone());
    let config = &state.config;
    Json(Info {
        name: "sextant".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        auth_required: state.keys.required(),
        max_tokens: model.as_ref().map(|model| model.max_tokens),
        device: model.as_ref().map(|model| model.device.clone()),
        prompts: model.as_ref().map(|model| model.prompts.clone()).unwrap_or_default(),
        model: model.map(|model| model.version),
        limits: Limits {
            max_query_chars: config.max_query_chars,
            max_body_bytes: config.max_body_bytes,
            max_import_bytes: config.max_import_bytes,
            max_document_bytes: config.max_document_bytes,
            max_embedding_inputs: config.max_embedding_inputs,
            request_timeout_ms: config.request_timeout_ms,
        },
    })
}
