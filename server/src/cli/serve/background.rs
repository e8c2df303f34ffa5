//! What goes on beside the requests, until the end.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::adapters::cache::redis::{CacheEvents, RedisCache};
use crate::cache::shared::CacheEvent;
use crate::catalog::Catalog;
use crate::cli::Failure;
use crate::embedders::Embedders;
use crate::http::AppState;
use crate::metrics::Metrics;
use crate::popularity::Popularity;
use crate::ports::Outbox;
use crate::search::Search;
use crate::verify::{Verifier, VerifyOptions};
use crate::worker;

const POPULARITY_PERIOD: Duration = Duration::from_secs(2);
const KEYS_PERIOD: Duration = Duration::from_secs(1);
/// How soon a server knows what others did to the collections.
const REFRESH_PERIOD: Duration = Duration::from_secs(1);
const REPAIR_PERIOD: Duration = Duration::from_secs(5);
const VERIFY_PERIOD: Duration = Duration::from_secs(5);
/// Share of the time that comparing may take, and the longest pause for that.
const VERIFY_SHARE: f64 = 0.05;
const VERIFY_PAUSE: Duration = Duration::from_mins(1);
const ANNOUNCE_PERIOD: Duration = Duration::from_secs(5);

/// Tells the other servers what searches see now.
pub fn raise_in(redis: Option<Arc<RedisCache>>) -> Box<dyn Fn(i64, i64) + Send + Sync> {
    Box::new(move |collection, generation| {
        if let Some(redis) = redis.clone() {
            // Told again by itself until it is known; and everybody asks the database, too.
            tokio::spawn(async move { redis.raise_generation(collection, generation).await });
        }
    })
}

/// Takes over what other servers tell: what searches see, what to forget.
pub async fn follow_events(mut events: CacheEvents, catalog: Arc<Catalog>, search: Arc<Search>) {
    while let Some(event) = events.next().await {
        if let CacheEvent::Generation { collection, generation } = event {
            catalog.raise(collection, generation);
        }
        search.on_event(&event);
    }
}

pub fn tasks(
    state: &AppState,
    catalog: &Arc<Catalog>,
    popularity: &Arc<Popularity>,
    metrics: &Arc<Metrics>,
) -> Vec<JoinHandle<()>> {
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

/// Tells the models of this server to those who take collections over to another.
pub fn announce(
    outbox: &Arc<dyn Outbox>,
    server: &str,
    embedders: &Embedders,
    metrics: &Arc<Metrics>,
) -> JoinHandle<()> {
    let (outbox, server, models) = (Arc::clone(outbox), server.to_owned(), embedders.hashes());
    repeat("announce", ANNOUNCE_PERIOD, metrics, move || {
        let (outbox, server, models) = (Arc::clone(&outbox), server.clone(), models.clone());
        async move { Ok(outbox.announce(&server, &models).await?) }
    })
}

/// Has the workers mend what the index lost.
pub fn verify(
    catalog: &Arc<Catalog>,
    outbox: &Arc<dyn Outbox>,
    metrics: &Arc<Metrics>,
) -> JoinHandle<()> {
    let (catalog, outbox) = (Arc::clone(catalog), Arc::clone(outbox));
    let verifier = Verifier::new(catalog, outbox, Arc::clone(metrics), VerifyOptions::default());
    let verifier = Arc::new(Mutex::new(verifier));
    repeat("verify", VERIFY_PERIOD, metrics, move || {
        let verifier = Arc::clone(&verifier);
        async move {
            let started = Instant::now();
            let stepped = verifier.lock().await.step().await;
            // Also after one that failed: who does not answer in time has more to do than it can.
            let pause = started.elapsed().mul_f64(1.0 / VERIFY_SHARE - 1.0);
            tokio::time::sleep(pause.min(VERIFY_PAUSE)).await;
            Ok(stepped.map(drop)?)
        }
    })
}

pub fn count_backlog(
    outbox: &Arc<dyn Outbox>,
    waiting: &Arc<AtomicU64>,
    metrics: &Arc<Metrics>,
) -> JoinHandle<()> {
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
) -> JoinHandle<()>
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
