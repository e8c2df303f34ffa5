//! A server without a network: the router, called directly.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use sextant_server::adapters::cache::redis::{CacheEvents, RedisCache, RedisOptions};
use sextant_server::adapters::embedder::hash::HashEmbedder;
use sextant_server::auth::Keys;
use sextant_server::cache::shared::SharedCache;
use sextant_server::catalog::Catalog;
use sextant_server::config::{AuthConfig, Config};
use sextant_server::domain::Filter;
use sextant_server::domain::fusion::Scored;
use sextant_server::http::{AppState, Services, Shared, router};
use sextant_server::ingest::Ingest;
use sextant_server::metrics::Metrics;
use sextant_server::popularity::Popularity;
use sextant_server::ports::{
    Changes, DocumentStore, EmbedError, Embedder, Embedding, Facets, IndexError, IndexedCollection,
    ModelInfo, Outbox, Prompts, SearchIndex, Urgency,
};
use sextant_server::search::Search;
use sextant_server::worker::{self, Worker, WorkerOptions};
use sextant_stack::until;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::stores::{self, Place, Stores};

#[path = "client.rs"]
mod client;
pub use client::*;

/// Counts texts, and holds them back while its gate is closed.
pub struct GatedEmbedder {
    inner: HashEmbedder,
    pub texts: AtomicUsize,
    pub calls: watch::Sender<usize>,
    gate: Semaphore,
    pub fail_with: std::sync::Mutex<Option<EmbedError>>,
}

impl GatedEmbedder {
    fn new(dimension: usize, prompts: Prompts) -> Self {
        Self {
            inner: HashEmbedder::new(dimension).with_prompts(prompts),
            texts: AtomicUsize::new(0),
            calls: watch::channel(0).0,
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            fail_with: std::sync::Mutex::default(),
        }
    }

    pub fn close_gate(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn open_gate(&self) {
        self.gate.add_permits(1_000_000);
    }

    pub fn embedded(&self) -> usize {
        self.texts.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Embedder for GatedEmbedder {
    fn model(&self) -> &ModelInfo {
        self.inner.model()
    }

    async fn embed(
        &self,
        texts: Vec<Arc<str>>,
        urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError> {
        self.calls.send_modify(|calls| *calls += 1);
        let _permit = self.gate.acquire().await.unwrap();
        if let Some(error) = self.fail_with.lock().unwrap().clone() {
            return Err(error);
        }
        self.texts.fetch_add(texts.len(), Ordering::SeqCst);
        self.inner.embed(texts, urgency).await
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// An index that can be out of reach.
pub struct CutIndex {
    inner: Arc<dyn SearchIndex>,
    pub cut: AtomicBool,
}

impl CutIndex {
    fn reach(&self) -> Result<&dyn SearchIndex, IndexError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(IndexError::Unavailable { action: "ask", source: "it is cut off".into() });
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl SearchIndex for CutIndex {
    async fn open(&self, collection: &IndexedCollection) -> Result<i64, IndexError> {
        self.inner.open(collection).await
    }

    async fn apply(&self, collection: i64, changes: Changes) -> Result<(), IndexError> {
        self.inner.apply(collection, changes).await
    }

    async fn nearest(
        &self,
        collection: i64,
        vector: Arc<[f32]>,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        self.reach()?.nearest(collection, vector, filter, limit).await
    }

    fn has_full_text(&self) -> bool {
        self.inner.has_full_text()
    }

    async fn matching(
        &self,
        collection: i64,
        text: &str,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        self.reach()?.matching(collection, text, filter, limit).await
    }

    async fn facets(
        &self,
        collection: i64,
        text: Option<&str>,
        filter: Option<Arc<Filter>>,
        fields: &[String],
        values: usize,
    ) -> Result<Facets, IndexError> {
        self.reach()?.facets(collection, text, filter, fields, values).await
    }

    async fn count(&self, collection: i64) -> Result<u64, IndexError> {
        self.inner.count(collection).await
    }

    async fn drop_collection(&self, collection: &IndexedCollection) -> Result<(), IndexError> {
        self.inner.drop_collection(collection).await
    }

    async fn close(&self) -> Result<(), IndexError> {
        self.inner.close().await
    }
}

pub struct TestApp {
    router: Router,
    config: Config,
    pub catalog: Arc<Catalog>,
    pub redis: Option<Arc<RedisCache>>,
    pub search: Arc<Search>,
    pub state: AppState,
    pub embedder: Arc<GatedEmbedder>,
    pub popularity: Arc<Popularity>,
    pub metrics: Arc<Metrics>,
    pub store: Arc<dyn DocumentStore>,
    pub index: Arc<CutIndex>,
    place: Arc<Place>,
    worker: Option<RunningWorker>,
}

/// How a test's server differs from the default.
#[derive(Default)]
pub struct Setup {
    pub config: Config,
    pub keys: Option<PathBuf>,
    pub place: Option<Arc<Place>>,
    pub dimension: Option<usize>,
    pub prompts: Prompts,
    pub not_started: bool,
    /// A Redis to share answers over.
    pub redis: Option<String>,
    /// In place of the embedded one.
    pub index: Option<Arc<dyn SearchIndex>>,
}

impl Setup {
    pub fn with_keys(keys: PathBuf) -> Self {
        Self { keys: Some(keys), ..Self::default() }
    }
}

impl TestApp {
    pub async fn with(setup: Setup) -> Self {
        let place = match setup.place.clone() {
            Some(place) => place,
            None => Arc::new(Place::new().await),
        };
        let embedder =
            Arc::new(GatedEmbedder::new(setup.dimension.unwrap_or(64), setup.prompts.clone()));
        let Stores { documents: store, outbox, index } = place.open().await;
        let inner = setup.index.clone().unwrap_or(index);
        let index = Arc::new(CutIndex { inner, cut: AtomicBool::new(false) });
        let model = embedder.model().version.clone();
        let metrics = Arc::new(Metrics::new());
        let port = Arc::clone(&index) as Arc<dyn SearchIndex>;
        let opened =
            Catalog::open(Arc::clone(&store), port, outbox.clone(), model, Arc::clone(&metrics));
        let catalog = Arc::new(opened.await.unwrap());
        let mut worker = None;
        if let Some(outbox) = outbox {
            let (catalog, metrics) = (Arc::clone(&catalog), Arc::clone(&metrics));
            let (work, embedder) = (Arc::clone(&outbox), Arc::clone(&embedder));
            worker = Some(RunningWorker::start(catalog, work, embedder, metrics));
            // An index that was lost is made again before the server is used, as without workers.
            let done = || async { outbox.backlog().await.unwrap().rows == 0 };
            until("the work that was left", done).await.unwrap();
        }
        let app = Self::assemble(setup, catalog, embedder, metrics, store, index, place).await;
        Self { worker, ..app }
    }

    /// Another server with the same documents, index and embedder.
    pub async fn twin(&self, redis: Option<String>) -> Self {
        Self::assemble(
            Setup { config: self.config.clone(), redis, ..Setup::default() },
            Arc::clone(&self.catalog),
            Arc::clone(&self.embedder),
            Arc::new(Metrics::new()),
            Arc::clone(&self.store),
            Arc::clone(&self.index),
            Arc::clone(&self.place),
        )
        .await
    }

    async fn assemble(
        setup: Setup,
        catalog: Arc<Catalog>,
        embedder: Arc<GatedEmbedder>,
        metrics: Arc<Metrics>,
        store: Arc<dyn DocumentStore>,
        index: Arc<CutIndex>,
        place: Arc<Place>,
    ) -> Self {
        let config = setup.config;
        let auth = AuthConfig { keys_file: setup.keys, ..AuthConfig::default() };
        let keys = Keys::open(&auth).unwrap();
        let state = AppState::new(config.server.clone(), false, keys, Arc::clone(&metrics));
        let port: Arc<dyn Embedder> = Arc::clone(&embedder) as _;
        let redis = setup.redis.map(|url| connect(url, &config, &metrics));
        let search = Search::new(
            Arc::clone(&catalog),
            Arc::clone(&port),
            Arc::clone(&metrics),
            config.cache.results(),
            config.cache.embeddings(),
        )
        .with_shared(redis.clone().map(|redis| redis as Arc<dyn SharedCache>))
        .with_max_stale(config.cache.max_stale());
        let search = Arc::new(search);
        if let Some(redis) = &redis {
            tokio::spawn(follow(redis.events(), Arc::downgrade(&search)));
            until("a connection to Redis", || async { redis.is_up() }).await.unwrap();
        }
        let ingest = Ingest {
            catalog: Arc::clone(&catalog),
            embedder: Arc::clone(&port),
            metrics: Arc::clone(&metrics),
            embed_timeout: Duration::from_secs(5),
            backlog: Arc::default(),
            max_backlog: 0,
        };
        let popularity = Arc::new(Popularity::new(Arc::clone(&store), Arc::clone(&metrics)));
        if !setup.not_started {
            state.start(Services {
                catalog: Arc::clone(&catalog),
                search: Arc::clone(&search),
                ingest: Arc::new(ingest),
                popularity: Arc::clone(&popularity),
                embedders: port.into(),
                shared: Shared { stores: stores::SHARED, embedder: false },
            });
        }
        let router = router(state.clone());
        Self {
            router,
            config,
            catalog,
            redis,
            search,
            state,
            embedder,
            popularity,
            metrics,
            store,
            index,
            place,
            worker: None,
        }
    }

    /// Lets go of its place, so that another server can be started there.
    pub async fn close(self) -> Arc<Place> {
        if let Some(worker) = self.worker {
            worker.end().await;
        }
        self.index.close().await.unwrap();
        self.store.close().await;
        self.place
    }

    /// Sends a request. What workers are to index is waited for, so that searches see it after any
    /// write, as they do where there are none.
    pub async fn send(&self, mut request: Request<Body>) -> Answer {
        let writes = request.method() != Method::GET && request.uri().path().contains("/documents");
        if stores::SHARED && writes {
            *request.uri_mut() = waiting(request.uri());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        if writes {
            // A server does this every second.
            self.catalog.refresh().await.unwrap();
        }
        Answer { status: parts.status, headers: parts.headers, bytes }
    }
}

/// The worker of a server whose writes leave their work to workers.
struct RunningWorker {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RunningWorker {
    fn start(
        catalog: Arc<Catalog>,
        outbox: Arc<dyn Outbox>,
        embedder: Arc<dyn Embedder>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let options = WorkerOptions { batch: 256, lease: Duration::from_secs(30), max_attempts: 3 };
        let worker = Worker {
            catalog,
            outbox,
            embedders: embedder.into(),
            metrics,
            options,
            batch: AtomicUsize::new(256),
            name: "worker".to_owned(),
            raised: Box::new(|_, _| {}),
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(worker::run(worker, Duration::from_millis(50), stopped));
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
    }
}

fn connect(url: String, config: &Config, metrics: &Arc<Metrics>) -> Arc<RedisCache> {
    let options = RedisOptions {
        url,
        user: String::new(),
        password: None,
        ca_file: None,
        prefix: "test".to_owned(),
        timeout: Duration::from_millis(config.redis.timeout_ms),
        results: config.cache.results(),
        embeddings: config.cache.embeddings(),
        max_stale: config.cache.max_stale(),
    };
    RedisCache::connect(options, Arc::clone(metrics)).unwrap()
}

async fn follow(mut events: CacheEvents, search: Weak<Search>) {
    while let Some(event) = events.next().await {
        let Some(search) = search.upgrade() else { return };
        search.on_event(&event);
    }
}
