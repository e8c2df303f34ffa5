//! Popularity of queries, and the administration of the cache.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::extract::{JsonBody, Params, Path};
use super::{AppState, trace};
use crate::domain::normalise;
use crate::log;
use crate::ports::{QuerySelection, QueryStatistics};
use crate::search::Invalidation;

const MAX_LIMIT: usize = 100;
const DEFAULT_LIMIT: usize = 10;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuggestParams {
    #[serde(default)]
    q: String,
    limit: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitParams {
    limit: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Suggestions {
    pub suggestions: Vec<QueryStatistics>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Queries {
    pub queries: Vec<QueryStatistics>,
}

fn checked(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        _ => Err(Problem::field("limit", format!("must be 1 to {MAX_LIMIT}"))),
    }
}

async fn queries(
    state: &AppState,
    collection: &str,
    selection: QuerySelection<'_>,
    limit: Option<usize>,
) -> Result<Vec<QueryStatistics>, Problem> {
    let limit = checked(limit)?;
    let services = state.services()?;
    let collection = services.catalog.get(collection).await?;
    Ok(services.catalog.store.queries(collection.id, selection, limit).await?)
}

/// Popular queries that begin with `q` and have hits. A query counts a few seconds after it was
/// made, when its caller has stopped typing.
#[utoipa::path(get, path = "/v1/collections/{collection}/suggest", tag = "popularity",
    params(("collection" = String, Path), ("q" = Option<String>, Query), ("limit" = Option<usize>, Query)),
    responses((status = 200, body = Suggestions), (status = "4XX", body = Problem)))]
pub async fn suggest(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Params(params): Params<SuggestParams>,
) -> Result<Json<Suggestions>, Problem> {
    let prefix = normalise(&params.q);
    let suggestions =
        queries(&state, &collection, QuerySelection::Prefix(&prefix), params.limit).await?;
    Ok(Json(Suggestions { suggestions }))
}

/// The most frequent queries.
#[utoipa::path(get, path = "/v1/collections/{collection}/analytics/popular", tag = "popularity",
    params(("collection" = String, Path), ("limit" = Option<usize>, Query)),
    responses((status = 200, body = Queries), (status = "4XX", body = Problem)))]
pub async fn popular(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Params(params): Params<LimitParams>,
) -> Result<Json<Queries>, Problem> {
    let queries = queries(&state, &collection, QuerySelection::All, params.limit).await?;
    Ok(Json(Queries { queries }))
}

/// The most frequent queries that found nothing when they were last made.
#[utoipa::path(get, path = "/v1/collections/{collection}/analytics/no-hits", tag = "popularity",
    params(("collection" = String, Path), ("limit" = Option<usize>, Query)),
    responses((status = 200, body = Queries), (status = "4XX", body = Problem)))]
pub async fn no_hits(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Params(params): Params<LimitParams>,
) -> Result<Json<Queries>, Problem> {
    let queries = queries(&state, &collection, QuerySelection::WithoutHits, params.limit).await?;
    Ok(Json(Queries { queries }))
}

/// What to forget: `all`, or a collection, or a query (in one collection or in every one).
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InvalidateRequest {
    pub collection: Option<String>,
    pub query: Option<String>,
    #[serde(default)]
    pub all: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Invalidated {
    /// `all`, `collection` or `query`.
    pub scope: String,
    /// False: this server forgot, and tells the others as soon as the cache that they share can be
    /// reached. They forget by themselves within half a minute.
    pub everywhere: bool,
}

/// Forget cached answers. `all` forgets embeddings, too.
#[utoipa::path(post, path = "/v1/admin/cache/invalidate", tag = "admin", request_body = InvalidateRequest,
    responses((status = 200, body = Invalidated), (status = "4XX", body = Problem)))]
pub async fn invalidate(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<InvalidateRequest>,
) -> Result<Json<Invalidated>, Problem> {
    let services = state.services()?;
    let collection = match &request.collection {
        Some(name) => Some(services.catalog.get(name).await?.id),
        None => None,
    };
    let (scope, invalidation) = match (request.all, collection, request.query) {
        (true, None, None) => ("all", Invalidation::All),
        (false, Some(collection), None) => ("collection", Invalidation::Collection(collection)),
        (false, collection, Some(query)) => {
            ("query", Invalidation::query(collection, &normalise(&query)))
        }
        (true, ..) => {
            return Err(Problem::field("all", "cannot be joined with collection or query"));
        }
        (false, None, None) => {
            return Err(Problem::field("", "name a collection, a query, or all: true"));
        }
    };
    let everywhere = services.search.invalidate(invalidation).await;
    let request_id = trace::current_request_id();
    tracing::info!(
        scope,
        collection = request.collection,
        everywhere,
        request_id,
        "cache invalidated"
    );
    Ok(Json(Invalidated { scope: scope.to_owned(), everywhere }))
}

/// What this server logs.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// `error`, `warn`, `info`, `debug`, `trace`, or per module as in
    /// `info,sextant_server::search=debug`. At `debug` and below texts of queries are logged.
    pub level: String,
}

/// What this server logs now.
#[utoipa::path(get, path = "/v1/admin/log-level", tag = "admin",
    responses((status = 200, body = LogLevel), (status = "4XX", body = Problem)))]
pub async fn log_level() -> Result<Json<LogLevel>, Problem> {
    Ok(Json(LogLevel { level: log::level()? }))
}

/// Log more or less, until the server ends; other servers go on as they do.
#[utoipa::path(put, path = "/v1/admin/log-level", tag = "admin", request_body = LogLevel,
    responses((status = 200, body = LogLevel), (status = "4XX", body = Problem)))]
pub async fn set_log_level(
    JsonBody(LogLevel { level }): JsonBody<LogLevel>,
) -> Result<Json<LogLevel>, Problem> {
    log::set_level(&level)?;
    Ok(Json(LogLevel { level }))
}
