//! `sextant-server serve`: the composition root. Configuration, then adapters, then use cases, then
//! the router, then serving until SIGTERM.

use std::fs::File;
use std::future::Future;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::Args;
use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::Failure;
use super::stores::{self, Stores};
use crate::adapters::cache::redis::{CacheEvents, RedisCache, RedisOptions};
use crate::adapters::embedder::hash::HashEmbedder;
use crate::adapters::embedder::remote::{RemoteEmbedder, RemoteOptions};
use crate::auth::Keys;
use crate::cache::shared::{CacheEvent, SharedCache};
use crate::catalog::Catalog;
use crate::config::{Config, DocumentsKind, EmbedderKind, IndexKind, LogConfig, LogFormat};
use crate::domain::Document;
use crate::domain::collection::SchemaChange;
use crate::http::{self, AppState, Services, Shared};
use crate::ingest::{Ingest, IngestError};
use crate::listen::{self, Bounds};
use crate::metrics::Metrics;
use crate::popularity::Popularity;
use crate::ports::{DocumentStore, Embedder, Outbox, SearchIndex};
use crate::search::Search;
use crate::split::{Format, Splitter, parse};
use crate::worker::{self, Worker, WorkerOptions};

const HASH_DIMENSION: usize = 64;
/// Longest wait at the start for an embedding server.
const REMOTE_PATIENCE: Duration = Duration::from_secs(30);
const POPULARITY_PERIOD: Duration = Duration::from_secs(2);
const KEYS_PERIOD: Duration = Duration::from_secs(1);
/// How soon a server knows what others did to the collections.
const REFRESH_PERIOD: Duration = Duration::from_secs(1);
const REPAIR_PERIOD: Duration = Duration::from_secs(5);
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
    let seeds = options.seed.iter().map(|seed| parse_seed(seed)).collect::<Result<Vec<_>, _>>()?;
    start_logging(&config.log)?;
    let keys = Keys::open(&config.auth)?;
    let _lock = lock_data_dir(&config.server.data_dir)?;
    let listener = TcpListener::bind(config.server.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", config.server.listen))?;
    let address = listener.local_addr()?;

    let metrics = Arc::new(Metrics::new());
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
    if let Some(parts) = started {
        println!("sextant-server is ready on http://{address}");
        signals.next().await;
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
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Finds what a server would stumble over at its start, without starting it.
pub fn check(config: &Config) -> Result<(), Failure> {
    log_filter(&config.log)?;
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
    let embedder = load_embedder(config, metrics).await?;
    let model = embedder.model().clone();
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
    let Stores { documents: store, outbox, index } = stores::open(config, metrics).await?;
    let catalog = Arc::new(
        Catalog::open(
            Arc::clone(&store),
            Arc::clone(&index),
            outbox.clone(),
            model.version,
            Arc::clone(metrics),
        )
        .await?,
    );
    let backlog = Arc::new(AtomicU64::new(0));
    let ingest = Arc::new(Ingest {
        catalog: Arc::clone(&catalog),
        embedder: Arc::clone(&embedder),
        metrics: Arc::clone(metrics),
        embed_timeout: Duration::from_millis(config.server.import_timeout_ms),
        backlog: Arc::clone(&backlog),
        max_backlog: config.worker.max_backlog,
    });
    for (collection, file) in seeds {
        seed(&catalog, &ingest, collection, file).await?;
    }
    let redis = connect_redis(config, metrics)?;
    let mut search = Search::new(
        Arc::clone(&catalog),
        Arc::clone(&embedder),
        Arc::clone(metrics),
        config.cache.results(),
        config.cache.embeddings(),
    )
    .with_shared(redis.clone().map(|redis| redis as Arc<dyn SharedCache>));
    if config.index.kind != IndexKind::Local {
        search = search.with_max_stale(config.cache.max_stale());
    }
    let search = Arc::new(search);
    let popularity = Arc::new(Popularity::new(Arc::clone(&store), Arc::clone(metrics)));
    let mut background = background(state, &catalog, &popularity, metrics);
    let (stop_workers, workers_stop) = watch::channel(false);
    let mut workers = Vec::new();
    if let Some(outbox) = outbox {
        background.push(count_backlog(&outbox, &backlog, metrics));
        let host = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
        for number in 0..config.worker.concurrency {
            let worker = Worker {
                catalog: Arc::clone(&catalog),
                outbox: Arc::clone(&outbox),
                embedder: Arc::clone(&embedder),
                metrics: Arc::clone(metrics),
                options: WorkerOptions {
                    batch: config.worker.batch,
                    lease: Duration::from_millis(config.worker.lease_ms),
                    max_attempts: config.worker.max_attempts,
                },
                name: format!("{host}-{number}"),
                raised: raise_in(redis.clone()),
            };
            let poll = Duration::from_millis(config.worker.poll_ms);
            workers.push(tokio::spawn(worker::run(worker, poll, workers_stop.clone())));
        }
    }
    if let Some(redis) = &redis {
        let (catalog, search) = (Arc::clone(&catalog), Arc::clone(&search));
        background.push(tokio::spawn(follow_events(redis.events(), catalog, search)));
    }
    state.start(Services {
        catalog,
        search,
        ingest,
        popularity: Arc::clone(&popularity),
        embedder,
        shared: Shared {
            stores: config.documents.kind == DocumentsKind::Postgres,
            embedder: config.embedder.kind == EmbedderKind::Remote,
        },
    });
    Ok(Parts { store, index, popularity, background, stop_workers, workers })
}

fn connect_redis(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<RedisCache>>, Failure> {
    let redis = &config.redis;
    if redis.url.is_empty() {
        return Ok(None);
    }
    let password = match &redis.password_file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| format!("`redis.password_file`: {}: {error}", file.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let options = RedisOptions {
        url: redis.url.clone(),
        user: redis.user.clone(),
        password,
        ca_file: redis.tls_ca_file.clone(),
        prefix: redis.prefix.clone(),
        timeout: Duration::from_millis(redis.timeout_ms),
        results: config.cache.results(),
        embeddings: config.cache.embeddings(),
        max_stale: config.cache.max_stale(),
    };
    Ok(Some(RedisCache::connect(options, Arc::clone(metrics))?))
}

/// Tells the other servers what searches see now.
fn raise_in(redis: Option<Arc<RedisCache>>) -> Box<dyn Fn(i64, i64) + Send + Sync> {
    Box::new(move |collection, generation| {
        if let Some(redis) = redis.clone() {
            // Told again by itself until it is known; and everybody asks the database, too.
            tokio::spawn(async move { redis.raise_generation(collection, generation).await });
        }
    })
}

/// Takes over what other servers tell: what searches see, what to forget.
async fn follow_events(mut events: CacheEvents, catalog: Arc<Catalog>, search: Arc<Search>) {
    while let Some(event) = events.next().await {
        if let CacheEvent::Generation { collection, generation } = event {
            catalog.raise(collection, generation);
        }
        search.on_event(&event);
    }
}

fn background(
    state: &AppState,
    catalog: &Arc<Catalog>,
    popularity: &Arc<Popularity>,
    metrics: &Arc<Metrics>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let (popularity, catalog, state) = (Arc::clone(popularity), Arc::clone(catalog), state.clone());
    vec![
        repeat("popularity", POPULARITY_PERIOD, metrics, move || {
            let popularity = Arc::clone(&popularity);
            async move { Ok(popularity.flush(false).await?) }
        }),
        repeat("collections", REFRESH_PERIOD, metrics, {
            let catalog = Arc::clone(&catalog);
            move || {
                let catalog = Arc::clone(&catalog);
                async move { Ok(catalog.refresh().await?) }
            }
        }),
        repeat("repair", REPAIR_PERIOD, metrics, move || {
            let catalog = Arc::clone(&catalog);
            async move { Ok(catalog.repair().await?) }
        }),
        repeat("keys", KEYS_PERIOD, metrics, move || {
            let state = state.clone();
            async move {
                if state.keys.reload_if_changed()? {
                    info!("API keys reloaded");
                }
                Ok(())
            }
        }),
    ]
}

fn count_backlog(
    outbox: &Arc<dyn Outbox>,
    waiting: &Arc<AtomicU64>,
    metrics: &Arc<Metrics>,
) -> tokio::task::JoinHandle<()> {
    let (outbox, waiting) = (Arc::clone(outbox), Arc::clone(waiting));
    let counted = Arc::clone(metrics);
    repeat("backlog", REFRESH_PERIOD, metrics, move || {
        let (outbox, waiting) = (Arc::clone(&outbox), Arc::clone(&waiting));
        let metrics = Arc::clone(&counted);
        async move { Ok(worker::count_backlog(&*outbox, &metrics, &waiting).await?) }
    })
}

/// Does a task again and again; a failure is counted, told once, and tried again.
fn repeat<F, R>(
    name: &'static str,
    period: Duration,
    metrics: &Arc<Metrics>,
    mut task: F,
) -> tokio::task::JoinHandle<()>
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    let metrics = Arc::clone(metrics);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            ticks.tick().await;
            let failure = task().await.err().map(|error| error.to_string());
            if let Some(message) = &failure {
                metrics.background_failures.with_label_values(&[name]).inc();
                if last != failure {
                    error!(task = name, error = message, "background task failed");
                }
            }
            last = failure;
        }
    })
}

async fn load_embedder(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn Embedder>, Failure> {
    match config.embedder.kind {
        EmbedderKind::Hash => {
            warn!("embedder.kind is hash: vectors mean nothing, for tests only");
            Ok(Arc::new(HashEmbedder::new(HASH_DIMENSION)))
        }
        EmbedderKind::Torch => load_torch(config, Arc::clone(metrics)).await,
        EmbedderKind::Remote => {
            let options = RemoteOptions {
                api_key: config.remote.api_key_file.as_deref().map(read_secret).transpose()?,
                config: config.remote.clone(),
                queue_texts: config.embedder.queue_texts,
                patience: REMOTE_PATIENCE,
            };
            Ok(Arc::new(RemoteEmbedder::connect(options, Arc::clone(metrics)).await?))
        }
    }
}

fn read_secret(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(feature = "torch")]
async fn load_torch(config: &Config, metrics: Arc<Metrics>) -> Result<Arc<dyn Embedder>, Failure> {
    use crate::adapters::embedder::torch::{TorchEmbedder, TorchOptions};
    let embedder = &config.embedder;
    let options = TorchOptions {
        model_dir: embedder.model_dir.clone().ok_or(
            "`embedder.model_dir` is not set: name the folder with model.safetensors, tokenizer.json and \
             config.json (`make setup` fetches them into ~/.cache/sextant/model)",
        )?,
        model_name: embedder.model_name.clone(),
        device: embedder.device,
        workers: embedder.workers,
        max_batch_tokens: embedder.max_batch_tokens,
        queue_texts: embedder.queue_texts,
        ..TorchOptions::default()
    };
    let load = move || TorchEmbedder::load(&options, metrics);
    Ok(Arc::new(tokio::task::spawn_blocking(load).await??))
}

#[cfg(not(feature = "torch"))]
async fn load_torch(_: &Config, _: Arc<Metrics>) -> Result<Arc<dyn Embedder>, Failure> {
    Err("this build has no libtorch; set `embedder.kind` to hash, or build with the feature torch"
        .into())
}

/// Signals that ask for the end.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn log_filter(config: &LogConfig) -> Result<EnvFilter, Failure> {
    Ok(EnvFilter::try_new(&config.level)
        .map_err(|error| format!("invalid `log.level`: {error}"))?)
}

fn start_logging(config: &LogConfig) -> Result<(), Failure> {
    let filter = log_filter(config)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
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

fn parse_seed(seed: &str) -> Result<(String, PathBuf), Failure> {
    match seed.split_once('=') {
        Some((collection, file)) => Ok((collection.to_owned(), PathBuf::from(file))),
        None => Err(format!("--seed {seed:?} must be COLLECTION=FILE").into()),
    }
}

/// Imports a file once: what people change or delete afterwards stays so.
async fn seed(
    catalog: &Catalog,
    ingest: &Ingest,
    collection: &str,
    file: &Path,
) -> Result<(), Failure> {
    let mark = format!("seed:{collection}");
    if catalog.store.mark(&mark).await? {
        return Ok(());
    }
    let documents = read_documents(file)?;
    let total = documents.len() as u64;
    let (open, _) = catalog.put(collection, SchemaChange::default()).await?;
    let bar = ProgressBar::new(total);
    if let Ok(style) =
        ProgressStyle::with_template("importing {msg} {bar:30} {pos}/{len} {elapsed}")
    {
        bar.set_style(style);
    }
    bar.set_message(collection.to_owned());
    bar.tick();
    info!(collection, documents = total, file = %file.display(), "importing on the first start");
    // Small parts, so that the bar moves.
    let mut documents = documents.into_iter().peekable();
    while documents.peek().is_some() {
        let part: Vec<_> = documents.by_ref().take(32).map(Ok::<_, IngestError>).collect();
        let count = part.len() as u64;
        ingest.upsert_stream(&open, stream::iter(part)).await.map_err(|interrupted| {
            format!("cannot import {}: {}", file.display(), interrupted.error)
        })?;
        bar.inc(count);
    }
    bar.finish_and_clear();
    catalog.store.set_mark(&mark).await?;
    Ok(())
}

fn read_documents(file: &Path) -> Result<Vec<Document>, Failure> {
    let text =
        std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let mut splitter = Splitter::new(Format::Lines, text.len());
    let mut pieces = splitter.feed(&text)?;
    pieces.extend(splitter.finish()?);
    let documents = pieces.iter().enumerate().map(|(place, piece)| parse(place, piece));
    Ok(documents
        .collect::<Result<_, _>>()
        .map_err(|error| format!("cannot import {}: {error}", file.display()))?)
}
