//! HTTP: routes, who may use them, and what every request has in common.

mod access;
mod body;
mod collections;
mod documents;
mod embeddings;
mod error;
mod extract;
mod health;
mod observe;
mod openapi;
mod operations;
mod outbox;
mod pages;
mod search;
mod trace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower_http::compression::CompressionLayer;

use crate::auth::{Keys, Scope};
use crate::catalog::Catalog;
use crate::config::ServerConfig;
use crate::embedders::Embedders;
use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::popularity::Popularity;
use crate::search::Search;

pub use access::Peer;
pub use error::Problem;
pub use health::Readiness;
pub use openapi::openapi_json;
pub use search::SearchResponse;

/// What handlers use once the server is ready.
pub struct Services {
    pub catalog: Arc<Catalog>,
    pub search: Arc<Search>,
    pub ingest: Arc<Ingest>,
    pub popularity: Arc<Popularity>,
    pub embedders: Embedders,
    pub shared: Shared,
}

/// Which parts are shared with other servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared {
    /// Documents and index.
    pub stores: bool,
    pub embedder: bool,
}

/// What every request has at hand. The server listens before it is ready, so that its health can
/// be asked for while it starts.
#[derive(Clone)]
pub struct AppState(Arc<App>);

pub struct App {
    pub config: ServerConfig,
    pub public_metrics: bool,
    pub keys: Keys,
    pub metrics: Arc<Metrics>,
    services: OnceLock<Services>,
    draining: AtomicBool,
}

impl std::ops::Deref for AppState {
    type Target = App;
    fn deref(&self) -> &App {
        &self.0
    }
}

impl AppState {
    pub fn new(
        config: ServerConfig,
        public_metrics: bool,
        keys: Keys,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(App {
            config,
            public_metrics,
            keys,
            metrics,
            services: OnceLock::new(),
            draining: AtomicBool::new(false),
        }))
    }

    /// Makes the server ready. Only the first call counts.
    pub fn start(&self, services: Services) {
        let _ = self.services.set(services);
    }

    /// Makes the server unready; requests are still answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    fn services(&self) -> Result<&Services, Problem> {
        self.services.get().ok_or_else(Problem::starting)
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

pub fn router(state: AppState) -> Router {
    let read = Router::new()
        .route("/v1/collections", get(collections::list))
        .route("/v1/collections/{collection}", get(collections::get))
        .route("/v1/collections/{collection}/documents", get(documents::list))
        .route("/v1/collections/{collection}/documents/{id}", get(documents::get))
        .route("/v1/collections/{collection}/search", get(search::get).post(search::post))
        .route("/v1/operations/{operation}", get(outbox::operation))
        .route("/v1/collections/{collection}/suggest", get(operations::suggest))
        .route("/v1/collections/{collection}/analytics/popular", get(operations::popular))
        .route("/v1/collections/{collection}/analytics/no-hits", get(operations::no_hits));
    let embeddings = Router::new().route("/v1/embeddings", post(embeddings::embeddings));
    let write = Router::new()
        .route(
            "/v1/collections/{collection}",
            axum::routing::put(collections::put).delete(collections::delete),
        )
        .route(
            "/v1/collections/{collection}/documents/{id}",
            axum::routing::put(documents::put).delete(documents::delete),
        );
    // An import lasts as long as its input; it bounds the wait for each part itself.
    let import =
        Router::new().route("/v1/collections/{collection}/documents", post(documents::import));
    let admin = Router::new()
        .route("/v1/admin/cache/invalidate", post(operations::invalidate))
        .route("/v1/admin/log-level", get(operations::log_level).put(operations::set_log_level))
        .route("/v1/collections/{collection}/dead-letters", get(outbox::dead_letters))
        .route("/v1/collections/{collection}/dead-letters/retry", post(outbox::retry));
    let guard = |scope| from_fn_with_state((state.clone(), scope), access::authorize);
    let deadline = || from_fn_with_state(state.clone(), access::deadline);

    let api = Router::new()
        .merge(read.route_layer(deadline()).route_layer(guard(Scope::Read)))
        .merge(write.route_layer(deadline()).route_layer(guard(Scope::Write)))
        .merge(import.route_layer(guard(Scope::Write)))
        .merge(admin.route_layer(deadline()).route_layer(guard(Scope::Admin)));
    // Outermost, so that a missing key is told in OpenAI's shape, too.
    let embeddings = embeddings
        .route_layer(deadline())
        .route_layer(guard(Scope::Read))
        .route_layer(from_fn(embeddings::openai_errors));
    let open = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/v1/info", get(health::info))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::serve))
        .merge(pages::router())
        .merge(openapi::ui());
    Router::new()
        .merge(api)
        .merge(embeddings)
        .merge(open)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(CompressionLayer::new())
        .layer(from_fn_with_state(state.clone(), observe::observe))
        .with_state(state)
}
