//! The description of the API, made from the code.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{AppState, collections, documents, embeddings, health, operations, outbox, search};

#[derive(OpenApi)]
#[openapi(
    info(title = "Sextant", description = "Semantic search: text in, ranked documents out.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")),
    paths(
        search::post, search::get,
        collections::list, collections::get, collections::put, collections::delete,
        documents::import, documents::list, documents::get, documents::put, documents::delete,
        embeddings::embeddings,
        outbox::operation, outbox::dead_letters, outbox::retry,
        operations::suggest, operations::popular, operations::no_hits, operations::invalidate,
        operations::log_level, operations::set_log_level,
        health::livez, health::readyz, health::info,
    ),
    modifiers(&Bearer),
    security(("key" = [])),
)]
struct Api;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// The description as JSON, the same for every build of a version.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    Api::openapi().to_pretty_json().map(|json| json + "\n")
}

pub async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json().unwrap_or_default())
}

/// The description for people, at /docs.
pub fn ui() -> Router<AppState> {
    SwaggerUi::new("/docs").config(Config::from("/openapi.json").validator_url("none")).into()
}
