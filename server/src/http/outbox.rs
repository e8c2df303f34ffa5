//! What is written now and indexed later: operations, and documents that workers gave up.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::extract::{Params, Path};
use super::{AppState, Services, collections};
use crate::domain::Operation;
use crate::ingest::Upserted;
use crate::ports::{Outbox, Progress};

const MAX_LIMIT: usize = 1_000;
const DEFAULT_LIMIT: usize = 100;
/// Left of a request's time for its answer.
const SPARE: Duration = Duration::from_millis(200);

/// How a write is to be answered.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteParams {
    /// Answer when the documents can be found.
    #[serde(default)]
    wait: bool,
}

/// Writes that are indexed by workers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationStatus {
    #[schema(value_type = String)]
    pub id: Operation,
    pub collection: String,
    /// `pending`; `succeeded`; `failed` when documents were set aside.
    pub status: String,
    /// Documents written or deleted.
    pub documents: u64,
    /// Documents that wait or are being worked on. A document that was written again meanwhile
    /// counts until its newest version is done.
    pub pending: u64,
    /// Documents that failed too often, see the collection's dead letters.
    pub set_aside: u64,
}

impl OperationStatus {
    fn of(operation: Operation, progress: Progress) -> Self {
        let status = match progress {
            Progress { pending: 0, set_aside: 0 } => "succeeded",
            Progress { pending: 0, .. } => "failed",
            Progress { .. } => "pending",
        };
        Self {
            collection: operation.collection.clone(),
            status: status.to_owned(),
            documents: operation.documents,
            pending: progress.pending,
            set_aside: progress.set_aside,
            id: operation,
        }
    }
}

/// The answer of a write: 200 when searches see it; 202 with the operation when workers are to
/// index it and the caller did not wait, or not long enough.
pub async fn written(
    services: &Services,
    params: WriteParams,
    timeout: Duration,
    upserted: Upserted,
) -> Result<Response, Problem> {
    let Some(operation) = upserted.operation.clone() else {
        return Ok(Json(upserted).into_response());
    };
    let done = done(services, params, timeout, &operation).await?;
    let status = if done { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(upserted)).into_response())
}

/// The answer of a deletion: 204, or 202 with the operation.
pub async fn deleted(
    services: &Services,
    params: WriteParams,
    timeout: Duration,
    operation: Option<Operation>,
) -> Result<Response, Problem> {
    let Some(operation) = operation else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    if done(services, params, timeout, &operation).await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let pending = Progress { pending: operation.documents, set_aside: 0 };
    let status = OperationStatus::of(operation, pending);
    Ok((StatusCode::ACCEPTED, Json(status)).into_response())
}

async fn done(
    services: &Services,
    params: WriteParams,
    timeout: Duration,
    operation: &Operation,
) -> Result<bool, Problem> {
    if !params.wait {
        return Ok(false);
    }
    let deadline = Instant::now() + timeout.saturating_sub(SPARE);
    let progress = services.ingest.wait(operation, deadline).await?;
    Ok(progress == Progress::default())
}

/// What became of writes that were accepted with 202.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "documents",
    params(("operation" = String, Path)),
    responses((status = 200, body = OperationStatus), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn operation(
    State(state): State<AppState>,
    Path(operation): Path<String>,
) -> Result<Json<OperationStatus>, Problem> {
    let services = state.services()?;
    let missing = || Problem::new("not-found", format!("there is no operation {operation:?}"));
    let known: Operation = operation.parse().map_err(|_| missing())?;
    let progress = services.ingest.progress(&known).await?;
    Ok(Json(OperationStatus::of(known, progress)))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterParams {
    limit: Option<usize>,
    after: Option<String>,
}

/// A document that could not be indexed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetter {
    pub id: String,
    /// Generation of the change.
    pub version: i64,
    pub attempts: u32,
    pub reason: String,
    /// RFC 3339, UTC.
    pub since: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeadLetters {
    /// In the order of their identifiers; for more, ask with `after` the last one.
    pub dead_letters: Vec<DeadLetter>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Retried {
    /// Documents that are due again.
    pub retried: u64,
}

fn outbox(services: &Services) -> Result<&dyn Outbox, Problem> {
    services.catalog.outbox.as_deref().ok_or_else(|| {
        Problem::new(
            "not-found",
            "this server indexes what it writes at once: nothing is set aside",
        )
    })
}

/// Documents that failed too often and were set aside, with the reason.
#[utoipa::path(get, path = "/v1/collections/{collection}/dead-letters", tag = "admin",
    params(("collection" = String, Path), ("limit" = Option<usize>, Query), ("after" = Option<String>, Query)),
    responses((status = 200, body = DeadLetters), (status = "4XX", body = Problem)))]
pub async fn dead_letters(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Params(params): Params<DeadLetterParams>,
) -> Result<Json<DeadLetters>, Problem> {
    let services = state.services()?;
    let outbox = outbox(services)?;
    let collection = services.catalog.get(&collection).await?;
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::field("limit", format!("must be 1 to {MAX_LIMIT}")));
    }
    let aside = outbox.set_aside(collection.id, params.after.as_deref(), limit).await?;
    let dead_letters = aside
        .into_iter()
        .map(|letter| DeadLetter {
            id: letter.id,
            version: letter.version,
            attempts: letter.attempts,
            reason: letter.reason,
            since: collections::rfc3339(letter.at_ms),
        })
        .collect();
    Ok(Json(DeadLetters { dead_letters }))
}

/// Try everything again that was set aside in a collection.
#[utoipa::path(post, path = "/v1/collections/{collection}/dead-letters/retry", tag = "admin",
    params(("collection" = String, Path)),
    responses((status = 200, body = Retried), (status = "4XX", body = Problem)))]
pub async fn retry(
    State(state): State<AppState>,
    Path(collection): Path<String>,
) -> Result<Json<Retried>, Problem> {
    let services = state.services()?;
    let outbox = outbox(services)?;
    let collection = services.catalog.get(&collection).await?;
    Ok(Json(Retried { retried: outbox.retry(collection.id).await? }))
}
