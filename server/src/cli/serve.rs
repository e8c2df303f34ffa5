//! `sextant-server serve`: the composition root. Configuration, then adapters, then use cases, then
//! the router, then serving until SIGTERM.

mod background;
pub mod embedder;
mod seed;
pub mod stores;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use self::stores::Stores;
use super::Failure;
use crate::adapters::cache::redis::RedisCache;
use crate::auth::Keys;
use crate::cache::shared::SharedCache;
use crate::catalog::Catalog;
use crate::config::{Config, DocumentsKind, EmbedderKind, IndexKind};
use crate::embedders::Embedders;
use crate::http::{self, AppState, Services, Shared};
use crate::ingest::Ingest;
use crate::listen::{self, Bounds};
use crate::log;
use crate::metrics::Metrics;
use crate::popularity::Popularity;
use crate::ports::{DocumentStore, SearchIndex};
use crate::search::Search;
use crate::spans;
use crate::worker::{self, Worker, WorkerOptions};

/// Longest wait of a starting server for indexes that are not available. Then it answers what it can.
const INDEX_PATIENCE: Duration = Duration::from_secs(15);
/// Longest time that closing the stores may take.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Args)]
pub struct ServeOptions {
    /// The configuration; without it defaults and the environment count.
    #[arg(long, env = "SEXTANT_CONFIG")]
    config: Option<PathBuf>,
    /// Imports FILE into COLLECTION on the first start: COLLECTION=FILE, one JSON document a line.
    #[arg(long, value_name = "COLLECTION=FILE")]
    seed: Vec<String>,
}

pub async fn serve(options: ServeOptions) -> Result<ExitCode, Failure> {
    let config = Config::load(options.config.as_deref(), std::env::vars())?;
    let seeds =
        options.seed.iter().map(|seed| seed::parse_seed(seed)).collect::<Result<Vec<_>, _>>()?;
    log::start(&config.log)?;
    let keys = Keys::open(&config.auth)?;
    let _lock = lock_data_dir(&config.server.data_dir)?;
    let listener = TcpListener::bind(config.server.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", config.server.listen))?;
    let address = listener.local_addr()?;

    let metrics = Arc::new(Metrics::new());
    let export = spans::start(&config.traces, &metrics)
        .map_err(|error| format!("invalid `traces`: {error}"))?;
    let state = AppState::new(
        config.server.clone(),
        config.auth.public_metrics,
        keys,
        Arc::clone(&metrics),
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let bounds = Bounds {
        max_connections: config.server.max_connections,
        header_timeout: Duration::from_millis(config.server.header_timeout_ms),
        drain_timeout: Duration::from_millis(config.server.drain_timeout_ms),
    };
    // Listening from here on: health can be asked for while the model and the indexes load.
    let serving =
        tokio::spawn(listen::serve(listener, http::router(state.clone()), bounds, async {
            let _ = stopped.await; // a dropped sender asks for the end, too
        }));

    let mut signals = Signals::new()?;
    let started = tokio::select! {
        started = start(&config, &state, &metrics, &seeds) => Some(started?),
        () = signals.next() => None,
    };
    let mut code = ExitCode::SUCCESS;
    if let Some(parts) = started {
        println!("sextant-server is ready on http://{address}");
        tokio::select! {
            () = signals.next() => {}
            // A GPU that has failed comes back to a new process only.
            reason = parts.embedders.lost() => {
                error!(reason, "no text can be embedded any more");
                code = ExitCode::FAILURE;
            }
        }
        info!("stopping: finishing what is in flight");
        state.drain();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(config.server.drain_delay_ms)) => {}
            () = signals.next() => {} // asked twice
        }
        let _ = stop.send(());
        let cut = serving.await?;
        if cut > 0 {
            warn!(connections = cut, "cut off connections that did not finish in time");
        }
        if tokio::time::timeout(CLOSE_TIMEOUT, parts.close()).await.is_err() {
            warn!("the stores did not close in time; the next start replays what they lack");
        }
    }
    if let Some(export) = export {
        export.close().await;
    }
    info!("stopped");
    Ok(code)
}

/// Finds what a server would stumble over at its start, without starting it.
pub fn check(config: &Config) -> Result<(), Failure> {
    log::filter(&config.log.level)?;
    Keys::open(&config.auth)?;
    if let (EmbedderKind::Torch, Some(folder)) = (config.embedder.kind, &config.embedder.model_dir)
        && !folder.join("model.safetensors").exists()
    {
        return Err(format!("`embedder.model_dir`: no model in {}", folder.display()).into());
    }
    Ok(())
}

/// What must be closed at the end.
struct Parts {
    embedders: Embedders,
    store: Arc<dyn DocumentStore>,
    index: Arc<dyn SearchIndex>,
    popularity: Arc<Popularity>,
    background: Vec<tokio::task::JoinHandle<()>>,
    stop_workers: watch::Sender<bool>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

impl Parts {
    async fn close(self) {
        for task in &self.background {
            task.abort();
        }
        // Each ends after the batch that it has, so that no other server waits for its lease.
        let _ = self.stop_workers.send(true);
        for worker in self.workers {
            if let Err(error) = worker.await {
                warn!(%error, "a worker was lost; what it had is done by others");
            }
        }
        if let Err(error) = self.popularity.flush(true).await {
            warn!(%error, "the last query counts are lost");
        }
        if let Err(error) = self.index.close().await {
            warn!(%error, "the index was not written; the next start replays what it lacks");
        }
        self.store.close().await;
    }
}

async fn start(
    config: &Config,
    state: &AppState,
    metrics: &Arc<Metrics>,
    seeds: &[(String, PathBuf)],
) -> Result<Parts, Failure> {
    let embedders = embedder::load_all(config, metrics).await?;
    for embedder in embedders.all() {
        let model = embedder.model();
        info!(model = model.version.model, device = model.device, "model loaded");
        metrics
            .build_info
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                &model.version.model,
                &model.version.hash,
                &model.device,
            ])
            .set(1.0);
    }
    let next_model = embedders.all().nth(1).map(|next| next.model().version.clone());
    let Stores { documents: store, outbox, index } = stores::open(config, metrics).await?;
    let catalog = Arc::new(
        Catalog::open(
            Arc::clone(&store),
            Arc::clone(&index),
            outbox.clone(),
            embedders.first().model().version.clone(),
            Arc::clone(metrics),
        )
        .await?
        .with_next_model(next_model)
        .with_default_freshness(config.cache.freshness),
    );
    catalog.wait_for_indexes(INDEX_PATIENCE).await;
    let backlog = Arc::new(AtomicU64::new(0));
    let ingest = Arc::new(Ingest {
        catalog: Arc::clone(&catalog),
        embedder: Arc::clone(embedders.first()),
        metrics: Arc::clone(metrics),
        embed_timeout: Duration::from_millis(config.server.import_timeout_ms),
        backlog: Arc::clone(&backlog),
        max_backlog: config.worker.max_backlog,
    });
    for (collection, file) in seeds {
        seed::seed(&catalog, &ingest, collection, file).await?;
    }
    let redis = stores::connect_redis(config, metrics)?;
    let search = Arc::new(search(config, &catalog, &embedders, metrics, redis.clone()));
    let popularity = Arc::new(Popularity::new(Arc::clone(&store), Arc::clone(metrics)));
    let mut background = background::tasks(state, &catalog, &popularity, metrics);
    let (stop_workers, workers_stop) = watch::channel(false);
    let mut workers = Vec::new();
    if let Some(outbox) = outbox {
        background.push(background::count_backlog(&outbox, &backlog, metrics));
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        let host = format!("{host}/{}-{:08x}", config.server.listen, rand::random::<u32>());
        background.push(background::announce(&outbox, &host, &embedders, metrics));
        if config.worker.concurrency > 0 {
            background.push(background::verify(&catalog, &outbox, metrics));
        }
        for number in 0..config.worker.concurrency {
            let worker = Worker {
                catalog: Arc::clone(&catalog),
                outbox: Arc::clone(&outbox),
                embedders: embedders.clone(),
                metrics: Arc::clone(metrics),
                options: WorkerOptions {
                    batch: config.worker.batch,
                    lease: Duration::from_millis(config.worker.lease_ms),
                    max_attempts: config.worker.max_attempts,
                },
                batch: AtomicUsize::new(config.worker.batch),
                name: format!("{host}-{number}"),
                raised: background::raise_in(redis.clone()),
            };
            let poll = Duration::from_millis(config.worker.poll_ms);
            workers.push(tokio::spawn(worker::run(worker, poll, workers_stop.clone())));
        }
    }
    if let Some(redis) = &redis {
        let (catalog, search) = (Arc::clone(&catalog), Arc::clone(&search));
        background.push(tokio::spawn(background::follow_events(redis.events(), catalog, search)));
    }
    state.start(Services {
        catalog,
        search,
        ingest,
        popularity: Arc::clone(&popularity),
        embedders: embedders.clone(),
        shared: Shared {
            stores: config.documents.kind == DocumentsKind::Postgres,
            embedder: config.embedder.kind == EmbedderKind::Remote,
        },
    });
    Ok(Parts { embedders, store, index, popularity, background, stop_workers, workers })
}

fn search(
    config: &Config,
    catalog: &Arc<Catalog>,
    embedders: &Embedders,
    metrics: &Arc<Metrics>,
    redis: Option<Arc<RedisCache>>,
) -> Search {
    let (results, embeddings) = (config.cache.results(), config.cache.embeddings());
    let (catalog, metrics) = (Arc::clone(catalog), Arc::clone(metrics));
    let search = Search::new(catalog, embedders.clone(), metrics, results, embeddings)
        .with_shared(redis.map(|redis| redis as Arc<dyn SharedCache>));
    if config.index.kind == IndexKind::Local {
        search
    } else {
        search.with_max_stale(config.cache.max_stale())
    }
}

/// Signals that ask for the end.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Two servers on one folder would destroy each other's work.
fn lock_data_dir(folder: &Path) -> Result<File, Failure> {
    let told = |error: std::io::Error| format!("cannot use {}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(told)?;
    let lock = File::create(folder.join("lock")).map_err(told)?;
    lock.try_lock().map_err(|_| {
        format!("{} is used by another server; set `server.data_dir`", folder.display())
    })?;
    Ok(lock)
}

fn read_secret(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}
