//! `/v1/collections/{collection}/documents`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::AppState;
use super::body::{self, Bounds};
use super::error::Problem;
use super::extract::{JsonBody, Params, Path, media_type, unsupported};
use super::outbox::{self, OperationStatus, WriteParams};

use crate::domain::Document;
use crate::domain::document::id_fault;
use crate::ingest::Upserted;
use crate::ports::StoredDocument;
use crate::split::Format;

const MAX_LIMIT: u64 = 1_000;
const DEFAULT_LIMIT: u64 = 100;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    limit: Option<u64>,
    cursor: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DocumentList {
    /// In the order of their identifiers.
    #[schema(value_type = Vec<Object>)]
    pub documents: Vec<Document>,
    /// For the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// Upsert documents: a JSON array, a single document, or one document a line
/// (`application/x-ndjson`). The body is streamed and written in parts of 256 documents; each part
/// is written whole or not at all. On an error `upserted` tells how many were written before it.
/// Where workers index what is written, the answer is 202 with the operation, unless `wait` is true.
#[utoipa::path(post, path = "/v1/collections/{collection}/documents", tag = "documents",
    params(("collection" = String, Path), ("wait" = Option<bool>, Query)), request_body(content(("application/json"), ("application/x-ndjson"))),
    responses((status = 200, body = Upserted), (status = 202, body = Upserted),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn import(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Params(params): Params<WriteParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let services = state.services()?;
    let collection = services.catalog.get_compatible(&collection).await?;
    let format = match media_type(&headers).as_str() {
        "application/json" => Format::Json,
        "application/x-ndjson" | "application/jsonl" | "application/json-lines" => Format::Lines,
        other => return Err(unsupported(other, "application/json or application/x-ndjson")),
    };
    let bounds = Bounds {
        max_bytes: state.config.max_import_bytes,
        max_document_bytes: state.config.max_document_bytes,
        idle_timeout: Duration::from_millis(state.config.import_timeout_ms),
    };
    let documents = body::documents(body, format, bounds);
    let upserted = services.ingest.upsert_stream(&collection, documents).await?;
    let timeout = Duration::from_millis(state.config.import_timeout_ms);
    outbox::written(services, params, timeout, upserted).await
}

/// List documents.
#[utoipa::path(get, path = "/v1/collections/{collection}/documents", tag = "documents",
    params(("collection" = String, Path), ("limit" = Option<u64>, Query, description = "1 to 1000; 100 when not given"),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = DocumentList), (status = "4XX", body = Problem)))]
pub async fn list(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Params(params): Params<ListParams>,
) -> Result<Json<DocumentList>, Problem> {
    let catalog = &state.services()?.catalog;
    let collection = catalog.get(&collection).await?;
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::field("limit", format!("must be 1 to {MAX_LIMIT}")));
    }
    let after = params.cursor.map(|cursor| decode_cursor(&cursor)).transpose()?;
    let limit = limit as usize;
    // One more than is shown tells whether there is a next page.
    let mut stored = catalog.store.list(collection.id, after.as_deref(), limit + 1).await?;
    let more = stored.len() > limit;
    stored.truncate(limit);
    let next_cursor =
        stored.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(&last.document.id));
    let documents = stored.into_iter().map(|stored| stored.document).collect();
    Ok(Json(DocumentList { documents, next_cursor }))
}

fn decode_cursor(cursor: &str) -> Result<String, Problem> {
    URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Problem::field("cursor", "is not a cursor of this server"))
}

/// Read a document. `ETag` is its version.
#[utoipa::path(get, path = "/v1/collections/{collection}/documents/{id}", tag = "documents",
    params(("collection" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Object), (status = "4XX", body = Problem)))]
pub async fn get(
    State(state): State<AppState>,
    Path((collection, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let catalog = &state.services()?.catalog;
    let collection = catalog.get(&collection).await?;
    let stored = catalog.store.get(collection.id, &id).await?.ok_or_else(|| missing(&id))?;
    Ok(([(header::ETAG, version(&stored))], Json(stored.document)).into_response())
}

fn version(stored: &StoredDocument) -> String {
    format!("\"{}\"", stored.generation)
}

fn missing(id: &str) -> Problem {
    Problem::new("not-found", format!("there is no document {id:?}"))
}

/// Write a document. The body may leave out `id`.
#[utoipa::path(put, path = "/v1/collections/{collection}/documents/{id}", tag = "documents",
    params(("collection" = String, Path), ("id" = String, Path), ("wait" = Option<bool>, Query)), request_body = Object,
    responses((status = 200, body = Upserted), (status = 202, body = Upserted), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn put(
    State(state): State<AppState>,
    Path((collection, id)): Path<(String, String)>,
    Params(params): Params<WriteParams>,
    JsonBody(mut body): JsonBody<Value>,
) -> Result<Response, Problem> {
    let services = state.services()?;
    let collection = services.catalog.get_compatible(&collection).await?;
    if let Some(reason) = id_fault(&id) {
        return Err(Problem::field("id", reason));
    }
    if let Value::Object(object) = &mut body {
        match object.get("id") {
            Some(Value::String(given)) if *given != id => {
                return Err(Problem::field("id", format!("is {given:?} but the path has {id:?}")));
            }
            _ => {
                object.entry("id").or_insert_with(|| Value::String(id));
            }
        }
    }
    let document = Document::parse(body, "").map_err(Problem::invalid)?;
    let upserted = services.ingest.upsert(&collection, document).await?;
    let timeout = Duration::from_millis(state.config.request_timeout_ms);
    outbox::written(services, params, timeout, upserted).await
}

/// Delete a document.
#[utoipa::path(delete, path = "/v1/collections/{collection}/documents/{id}", tag = "documents",
    params(("collection" = String, Path), ("id" = String, Path), ("wait" = Option<bool>, Query)),
    responses((status = 204), (status = 202, body = OperationStatus), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn delete(
    State(state): State<AppState>,
    Path((collection, id)): Path<(String, String)>,
    Params(params): Params<WriteParams>,
) -> Result<Response, Problem> {
    let services = state.services()?;
    let collection = services.catalog.get_compatible(&collection).await?;
    let deletion = services.ingest.delete(&collection, vec![id.clone()]).await?;
    if deletion.deleted == 0 {
        return Err(missing(&id));
    }
    let timeout = Duration::from_millis(state.config.request_timeout_ms);
    outbox::deleted(services, params, timeout, deletion.operation).await
}
