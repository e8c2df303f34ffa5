//! `/v1/collections`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::Problem;
use super::extract::{JsonBody, Path};
use crate::catalog::{Catalog, OpenCollection};
use crate::domain::collection::SchemaChange;
use crate::domain::{EmbeddingVersion, Schema};

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CollectionInfo {
    pub name: String,
    /// Number of documents.
    pub documents: u64,
    /// Number of the last change to the documents.
    pub generation: i64,
    pub schema: Schema,
    /// The model that made the vectors.
    pub embedding: EmbeddingVersion,
    /// False when this server runs another model: the collection can be read and deleted, but
    /// neither searched nor written.
    pub searchable: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CollectionList {
    pub collections: Vec<CollectionInfo>,
}

impl CollectionInfo {
    fn of(open: &OpenCollection, catalog: &Catalog) -> Self {
        let searched = open.searched();
        Self {
            name: open.name.to_string(),
            documents: open.documents(),
            generation: open.generation(),
            schema: (*open.schema()).clone(),
            searchable: catalog.runs(&searched.embedding),
            embedding: searched.embedding.clone(),
            created_at: rfc3339(open.created_at_ms),
        }
    }
}

pub fn rfc3339(ms: i64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms.unsigned_abs());
    humantime::format_rfc3339_millis(time).to_string()
}

/// List the collections, by name.
#[utoipa::path(get, path = "/v1/collections", tag = "collections",
    responses((status = 200, body = CollectionList), (status = "4XX", body = Problem)))]
pub async fn list(State(state): State<AppState>) -> Result<Json<CollectionList>, Problem> {
    let catalog = &state.services()?.catalog;
    let collections = catalog.all().iter().map(|open| CollectionInfo::of(open, catalog)).collect();
    Ok(Json(CollectionList { collections }))
}

/// Describe a collection.
#[utoipa::path(get, path = "/v1/collections/{collection}", tag = "collections",
    params(("collection" = String, Path)),
    responses((status = 200, body = CollectionInfo), (status = "4XX", body = Problem)))]
pub async fn get(
    State(state): State<AppState>,
    Path(collection): Path<String>,
) -> Result<Json<CollectionInfo>, Problem> {
    let catalog = &state.services()?.catalog;
    Ok(Json(CollectionInfo::of(&*catalog.get(&collection).await?, catalog)))
}

/// Create a collection, or change its schema: attributes can be added and the default mode changed.
/// What the body does not name stays.
#[utoipa::path(put, path = "/v1/collections/{collection}", tag = "collections",
    params(("collection" = String, Path)), request_body = SchemaChange,
    responses((status = 201, body = CollectionInfo), (status = 200, body = CollectionInfo),
        (status = "4XX", body = Problem)))]
pub async fn put(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    JsonBody(change): JsonBody<SchemaChange>,
) -> Result<(StatusCode, Json<CollectionInfo>), Problem> {
    let catalog = &state.services()?.catalog;
    let (open, created) = catalog.put(&collection, change).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(CollectionInfo::of(&open, catalog))))
}

/// Delete a collection with its documents.
#[utoipa::path(delete, path = "/v1/collections/{collection}", tag = "collections",
    params(("collection" = String, Path)),
    responses((status = 204), (status = "4XX", body = Problem)))]
pub async fn delete(
    State(state): State<AppState>,
    Path(collection): Path<String>,
) -> Result<StatusCode, Problem> {
    state.services()?.catalog.delete(&collection).await?;
    Ok(StatusCode::NO_CONTENT)
}
