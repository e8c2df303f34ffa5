//! `GET` and `POST /v1/collections/{collection}/search`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use utoipa::ToSchema;

use super::access::{CallerId, Deadline};
use super::error::Problem;
use super::extract::{JsonBody, Params, Path};
use super::observe::Searched;
use super::{AppState, Services, trace};
use crate::cache::{CacheStatus, CacheTier};
use crate::catalog::OpenCollection;
use crate::domain::collection::Freshness;
use crate::domain::{AttributeType, FieldError, Filter, Mode, normalise};
use crate::search::{Cursor, Found, Hit, IndexInfo, Query, SearchExplanation};
use crate::spans;

const DEFAULT_LIMIT: u32 = 10;
const MAX_LIMIT: u32 = 100;
const MAX_FACETS: usize = 16;

/// A search. With `GET` the same names are parameters: `facets` joined by commas, `filter` as JSON.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// What is searched for.
    #[serde(default)]
    pub query: String,
    /// Most hits to return, 1 to 100; 10 when not given.
    #[schema(minimum = 1, maximum = 100, default = 10)]
    pub limit: Option<u32>,
    /// The collection's default mode when not given; `dense` where the index has no full text.
    pub mode: Option<Mode>,
    /// `{"must": […], "should": […], "must_not": […]}` of conditions
    /// `{"field": …, "eq" | "in" | "gt" | "gte" | "lt" | "lte" | "exists": …}` or further filters.
    #[schema(value_type = Option<Object>)]
    pub filter: Option<Json>,
    /// Leaves out hits with a lower score. Scores of different modes cannot be compared.
    pub min_score: Option<f32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// Attributes whose values are counted. A `must` condition on the attribute itself does not
    /// narrow its own counts.
    #[serde(default)]
    pub facets: Vec<String>,
    /// Adds the part of the text that answers best to every hit.
    #[serde(default)]
    pub snippet: bool,
    /// Adds where each retriever had the hits.
    #[serde(default)]
    pub explain: bool,
}

/// The answer of a search.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SearchResponse {
    /// Best first.
    pub hits: Vec<Hit>,
    pub cache: CacheInfo,
    pub index: IndexInfo,
    pub mode: Mode,
    /// Time from reading the request to writing the answer.
    pub processing_time_ms: f64,
    /// Some part of the system did not answer: the answer is an old one.
    pub degraded: bool,
    pub request_id: String,
    /// For the next page; null on the last.
    pub next_cursor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::HashMap<String, Vec<crate::ports::FacetValue>>>)]
    pub facets: Option<Json>,
    /// The query was longer than the model reads; its end was not searched by meaning.
    #[serde(default)]
    pub query_truncated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<SearchExplanation>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct CacheInfo {
    pub status: CacheStatus,
    /// The tier that had the answer; null when none had.
    pub tier: Option<CacheTier>,
}

/// Search a collection.
#[utoipa::path(post, path = "/v1/collections/{collection}/search", tag = "search",
    params(("collection" = String, Path)), request_body = SearchRequest,
    responses((status = 200, body = SearchResponse), (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn post(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Extension(deadline): Extension<Deadline>,
    Extension(caller): Extension<CallerId>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<SearchRequest>,
) -> Result<Response, Problem> {
    let services = state.services()?;
    let collection = services.catalog.get_compatible(&collection).await?;
    let query = understood(request, &collection, &state, deadline, no_cache(&headers)).await?;
    let generation = services.catalog.current_generation(&collection).await;
    let found = services.search.run(&collection, generation, &query).await?;
    count(services, &collection, caller, &query, &found);
    Ok(told(&state, &query, &found))
}

/// Search a collection, in a form that HTTP caches understand.
#[utoipa::path(get, path = "/v1/collections/{collection}/search", tag = "search",
    params(("collection" = String, Path), ("query" = String, Query), ("limit" = Option<u32>, Query),
        ("mode" = Option<Mode>, Query), ("filter" = Option<String>, Query, description = "a filter as JSON"),
        ("min_score" = Option<f32>, Query), ("cursor" = Option<String>, Query),
        ("facets" = Option<String>, Query, description = "attributes joined by commas"),
        ("snippet" = Option<bool>, Query), ("explain" = Option<bool>, Query)),
    responses((status = 200, body = SearchResponse), (status = 304, description = "as in If-None-Match"),
        (status = "4XX", body = Problem), (status = "5XX", body = Problem)))]
pub async fn get(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Extension(deadline): Extension<Deadline>,
    Extension(caller): Extension<CallerId>,
    headers: HeaderMap,
    Params(request): Params<SearchRequest>,
) -> Result<Response, Problem> {
    let services = state.services()?;
    let collection = services.catalog.get_compatible(&collection).await?;
    let query = understood(request, &collection, &state, deadline, no_cache(&headers)).await?;
    let generation = services.catalog.current_generation(&collection).await;
    // Weak: the hits are the same, the time and the request id are not.
    let tag = generation.map(|generation| {
        let tag = services.search.tag(&collection, generation, &query);
        format!("W/\"{}\"", URL_SAFE_NO_PAD.encode(tag))
    });
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|candidate| Some(candidate.trim()) == tag.as_deref());
    // An old answer is not the one that the tag names.
    let (mut response, tag) = if known {
        (StatusCode::NOT_MODIFIED.into_response(), tag)
    } else {
        let found = services.search.run(&collection, generation, &query).await?;
        count(services, &collection, caller, &query, &found);
        (told(&state, &query, &found), tag.filter(|_| !found.is_degraded()))
    };
    let headers = response.headers_mut();
    if let Some(Ok(tag)) = tag.as_deref().map(HeaderValue::from_str) {
        headers.insert(header::ETAG, tag);
    }
    // Kept by the client alone and asked about each time, which costs no embedding: a write shows
    // at once, and nobody sees what another's key may see.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.append(header::VARY, HeaderValue::from_static("authorization"));
    Ok(response)
}

/// Parses a request. Where other servers write, one of them may just have added an attribute that
/// this one does not know yet.
async fn understood(
    request: SearchRequest,
    collection: &OpenCollection,
    state: &AppState,
    deadline: Deadline,
    no_cache: bool,
) -> Result<Query, Problem> {
    let catalog = &state.services()?.catalog;
    let again = catalog.outbox.is_some().then(|| request.clone());
    match (parse(request, collection, state, deadline, no_cache), again) {
        // What cannot be reloaded now leaves the fault as it is.
        (Err(_), Some(request)) if catalog.reload(collection).await.unwrap_or(false) => {
            parse(request, collection, state, deadline, no_cache)
        }
        (parsed, _) => parsed,
    }
}

/// Counts a search as one of its query: the first page only, and not when it was the filter that
/// left no hits, as the query is not to blame then.
fn count(
    services: &Services,
    collection: &OpenCollection,
    caller: CallerId,
    query: &Query,
    found: &Found,
) {
    let hits = found.answer.hits;
    let narrowed = query.filter.is_some() || query.min_score.is_some();
    if query.cursor.is_none() && (hits > 0 || !narrowed) {
        services.popularity.record(collection.id, caller.0, &query.text, hits);
    }
}

fn no_cache(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"))
}

/// Checks a request against the collection's schema; every fault is told at once.
fn parse(
    request: SearchRequest,
    collection: &OpenCollection,
    state: &AppState,
    deadline: Deadline,
    no_cache: bool,
) -> Result<Query, Problem> {
    let schema = collection.schema();
    let mut faults = Vec::new();
    let default_mode = match schema.default_mode {
        mode if mode.uses_words() && !state.services()?.catalog.index.has_full_text() => {
            Mode::Dense
        }
        mode => mode,
    };
    let text = normalise(&request.query);
    let max_chars = state.config.max_query_chars;
    if text.is_empty() {
        faults.push(FieldError::new("query", "must not be empty"));
    } else if request.query.len() > max_chars && request.query.chars().count() > max_chars {
        faults.push(FieldError::new("query", format!("is longer than {max_chars} characters")));
    }
    let limit = request.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        faults.push(FieldError::new("limit", format!("must be 1 to {MAX_LIMIT}")));
    }
    if request.min_score.is_some_and(|score| !score.is_finite()) {
        faults.push(FieldError::new("min_score", "must be a finite number"));
    }
    if request.facets.len() > MAX_FACETS {
        faults.push(FieldError::new("facets", format!("has more than {MAX_FACETS}")));
    }
    for (i, field) in request.facets.iter().enumerate() {
        let path = format!("facets[{i}]");
        match schema.attribute(field) {
            Ok(AttributeType::Number) => faults.push(FieldError::new(
                path,
                "is a number; strings, lists and bools can be counted",
            )),
            Ok(_) if request.facets[..i].contains(field) => {
                faults.push(FieldError::new(path, "is named twice"));
            }
            Ok(_) => {}
            Err(message) => faults.push(FieldError::new(path, message)),
        }
    }
    let filter = match &request.filter {
        None | Some(Json::Null) => None,
        Some(json) => match Filter::parse(json, &schema, "filter") {
            Ok(filter) => Some(filter).filter(|filter| !filter.is_empty()).map(Arc::new),
            Err(more) => {
                faults.extend(more);
                None
            }
        },
    };
    let mut query = Query {
        text,
        mode: request.mode.unwrap_or(default_mode),
        limit: limit as usize,
        filter,
        min_score: request.min_score,
        cursor: None,
        facets: request.facets,
        snippet: request.snippet,
        explain: request.explain,
        scope: "read",
        no_cache,
        fresh: schema.freshness == Freshness::Fresh,
        deadline: deadline.0,
    };
    if let Some(text) = &request.cursor {
        match Cursor::decode(text).and_then(|cursor| cursor.check(&query).map(|()| cursor)) {
            Ok(cursor) => query.cursor = Some(cursor),
            Err(error) => faults.push(FieldError::new("cursor", error.to_string())),
        }
    }
    if faults.is_empty() { Ok(query) } else { Err(Problem::invalid(faults)) }
}

/// The answer, and what the trace and the logs are told of it.
fn told(state: &AppState, query: &Query, found: &Found) -> Response {
    let (status, timings) = (found.status, found.timings);
    spans::note("sextant.cache.status", status.as_str());
    spans::note("sextant.hits", i64::try_from(found.answer.hits).unwrap_or(i64::MAX));
    tracing::debug!(
        query = query.text,
        mode = query.mode.as_str(),
        cache = status.as_str(),
        hits = found.answer.hits,
        took_ms = milliseconds(timings.total),
        request_id = trace::current_request_id(),
        "search",
    );
    let mut response = answer(found);
    if timings.total > Duration::from_millis(state.config.slow_request_ms) {
        response.extensions_mut().insert(Searched { status, timings });
    }
    response
}

/// Joins the kept part of an answer with what is of this request alone.
fn answer(found: &Found) -> Response {
    let kept = &found.answer.json;
    let tier = match found.tier {
        Some(CacheTier::Memory) => "\"memory\"",
        Some(CacheTier::Redis) => "\"redis\"",
        None => "null",
    };
    let mut body = Vec::with_capacity(kept.len() + 192);
    body.push(b'{');
    body.extend_from_slice(kept);
    // Nothing here needs escaping: a request id holds visible ASCII, and quotes are taken care of.
    let id = Json::String(trace::current_request_id());
    let rest = format!(
        ",\"cache\":{{\"status\":\"{}\",\"tier\":{tier}}},\"degraded\":{},\"processing_time_ms\":{:.3},\"request_id\":{id}}}",
        found.status.as_str(),
        found.is_degraded(),
        milliseconds(found.timings.total),
    );
    body.extend_from_slice(rest.as_bytes());
    let mut response =
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body)
            .into_response();
    if found.is_degraded() {
        let warning = HeaderValue::from_static("110 - \"Response is Stale\"");
        response.headers_mut().insert(header::WARNING, warning);
    }
    if let Ok(value) = HeaderValue::from_str(&server_timing(found)) {
        response.headers_mut().insert("server-timing", value);
    }
    response
}

/// The stages of this request (W3C Server Timing).
fn server_timing(found: &Found) -> String {
    let timings = &found.timings;
    let stages =
        [("embed", timings.embed), ("index", timings.index), ("documents", timings.documents)];
    let mut rest = timings.total;
    let mut text = String::with_capacity(96);
    for (stage, time) in stages {
        if let Some(time) = time {
            rest = rest.saturating_sub(time);
            let _ = write!(text, "{stage};dur={:.3}, ", milliseconds(time));
        }
    }
    let first = if found.status == CacheStatus::Coalesced { "wait" } else { "cache" };
    let _ = write!(text, "{first};dur={:.3}", milliseconds(rest));
    text
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
