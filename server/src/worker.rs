//! Workers: embed and index what writes left in the outbox.
//!
//! At least once and idempotent: a row is removed only after the index has its change, and a
//! change that is applied twice changes nothing. A document is claimed by one worker at a time, so
//! its changes reach the index in their order. A worker gives up well before its lease ends, so
//! that what it still sends cannot overtake the one that claims after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanKind;
use rand::Rng;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::catalog::{Catalog, CatalogError};
use crate::domain::{Collection, Key};
use crate::embedders::Embedders;
use crate::indexing;
use crate::metrics::Metrics;
use crate::ports::{
    Claimed, ClaimedRow, EmbedError, Failure, IndexError, IndexedCollection, Outbox, StoreError,
};
use crate::spans::Span;

/// Shares of a lease that embedding and the whole batch may take.
const EMBED_SHARE: f64 = 0.4;
const WORK_SHARE: f64 = 0.8;
/// A document that failed is tried again after this, then twice, four times … as long.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest reason that is kept of a failure, in characters.
const MAX_REASON: usize = 500;

#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Documents claimed at a time at most.
    pub batch: usize,
    pub lease: Duration,
    pub max_attempts: u32,
}

pub struct Worker {
    pub catalog: Arc<Catalog>,
    pub outbox: Arc<dyn Outbox>,
    pub embedders: Embedders,
    pub metrics: Arc<Metrics>,
    pub options: WorkerOptions,
    /// Unique among all workers of all servers.
    pub name: String,
    /// Documents to claim at a time now: fewer after a batch that took longer than its lease allows.
    pub batch: AtomicUsize,
    /// Told of every collection whose visible generation was raised.
    pub raised: Box<dyn Fn(i64, i64) + Send + Sync>,
}

/// Why a batch was given back; it is claimed again later.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Embed(EmbedError),
    #[error(transparent)]
    Index(IndexError),
    #[error(transparent)]
    Open(CatalogError),
    #[error("the batch took longer than its lease allows")]
    TooSlow,
}

/// Why one part of a batch was not done.
enum Fault {
    /// Of the document: trying it again is counted.
    Poison(String),
    /// Of what the worker needs: nothing is counted, all of the batch waits.
    Environment(WorkError),
}

impl Worker {
    /// Claims a batch and works on it; false when there was none.
    ///
    /// # Errors
    /// When a dependency is not available. The batch is due again.
    pub async fn run_once(&self) -> Result<bool, WorkError> {
        let (lease, batch) = (self.options.lease, self.batch.load(Ordering::Relaxed));
        let models = self.embedders.hashes();
        let Some(claimed) = self.outbox.claim(&self.name, &models, batch, lease).await? else {
            return Ok(false);
        };
        let collection = claimed.collection.id;
        let keys: Vec<Key> = claimed.rows.iter().map(|row| row.key).collect();
        let span = Span::root("index documents".to_owned(), SpanKind::Consumer, None);
        span.count("sextant.documents", keys.len());
        let work = timeout(lease.mul_f64(WORK_SHARE), self.work(claimed));
        let failure =
            |worked: &Result<_, _>| (!matches!(worked, Ok(Ok(())))).then_some("given_back");
        let worked = span.call(work, failure).await;
        let error = match worked {
            Ok(Ok(())) => {
                self.batch.store((batch * 2).min(self.options.batch), Ordering::Relaxed);
                return Ok(true);
            }
            Ok(Err(error)) => error,
            Err(_) => WorkError::TooSlow,
        };
        if matches!(error, WorkError::TooSlow | WorkError::Embed(EmbedError::DeadlineExceeded)) {
            // Long texts on a busy machine: all of it again would end the same way.
            self.batch.store((keys.len() / 2).max(1), Ordering::Relaxed);
        }
        // When this fails, too, the lease runs out.
        if let Err(error) = self.outbox.release(&self.name, collection, &keys, None).await {
            warn!(%error, "could not give a batch back, its lease must run out");
        }
        Err(error)
    }

    async fn work(&self, claimed: Claimed) -> Result<(), WorkError> {
        let Claimed { collection, rows } = claimed;
        let description = IndexedCollection::of(&collection);
        let visible = collection.visible_generation;
        self.catalog.open_shared(&description, visible).await.map_err(WorkError::Open)?;
        match self.part(&collection, rows.clone()).await {
            Ok(()) => Ok(()),
            Err(Fault::Environment(error)) => Err(error),
            Err(Fault::Poison(reason)) if rows.len() == 1 => {
                self.fail(&collection, &rows[0], reason).await
            }
            // One of them spoils the batch: each alone shows which.
            Err(Fault::Poison(_)) => {
                for row in rows {
                    match self.part(&collection, vec![row.clone()]).await {
                        Ok(()) => {}
                        Err(Fault::Environment(error)) => return Err(error),
                        Err(Fault::Poison(reason)) => self.fail(&collection, &row, reason).await?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Embeds, indexes and completes some rows.
    async fn part(&self, collection: &Collection, rows: Vec<ClaimedRow>) -> Result<(), Fault> {
        let deadline = Instant::now() + self.options.lease.mul_f64(EMBED_SHARE);
        // The outbox gave only what is of these models.
        let embedder = self
            .embedders
            .of(&collection.embedding)
            .map_err(|error| Fault::Environment(WorkError::Embed(error)))?;
        let made = indexing::changes(&**embedder, &collection.schema, rows, deadline).await;
        let (changes, done) = made.map_err(|error| match error {
            EmbedError::Failed(_) => Fault::Poison(error.to_string()),
            error => Fault::Environment(WorkError::Embed(error)),
        })?;
        self.catalog.index.apply(collection.index, changes).await.map_err(|error| match error {
            IndexError::Io { .. } => Fault::Poison(reason(&error)),
            error => Fault::Environment(WorkError::Index(error)),
        })?;
        let visible = self
            .outbox
            .complete(&self.name, collection.id, &done)
            .await
            .map_err(|error| Fault::Environment(error.into()))?;
        self.metrics.worker_documents.with_label_values(&["indexed"]).inc_by(done.len() as u64);
        self.catalog.raise(collection.id, visible);
        (self.raised)(collection.id, visible);
        Ok(())
    }

    async fn fail(
        &self,
        collection: &Collection,
        row: &ClaimedRow,
        reason: String,
    ) -> Result<(), WorkError> {
        let reason: String = reason.chars().take(MAX_REASON).collect();
        warn!(collection = %collection.name, key = row.key, reason, "a document failed");
        let failure =
            Failure { reason, max_attempts: self.options.max_attempts, delay: FIRST_DELAY };
        let keys = [row.key];
        let aside = self.outbox.release(&self.name, collection.id, &keys, Some(&failure)).await?;
        let outcome = if aside > 0 { "set-aside" } else { "failed" };
        self.metrics.worker_documents.with_label_values(&[outcome]).inc();
        Ok(())
    }
}

fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Works until `stop` is true, then ends after the batch at hand. Without work it looks again
/// after `poll`; after a failure it waits longer each time, with jitter.
pub async fn run(worker: Worker, poll: Duration, mut stop: tokio::sync::watch::Receiver<bool>) {
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let mut failures: u32 = 0;
    while !*stop.borrow() {
        let pause = match worker.run_once().await {
            Ok(true) => {
                failures = 0;
                continue;
            }
            Ok(false) => {
                failures = 0;
                poll
            }
            Err(error) => {
                worker.metrics.background_failures.with_label_values(&["worker"]).inc();
                if failures == 0 {
                    warn!(%error, worker = worker.name, "a worker's batch was given back");
                }
                failures = failures.saturating_add(1);
                (poll * 2_u32.saturating_pow(failures.min(16))).min(LONGEST_PAUSE)
            }
        };
        let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        // A closed channel means the end, too.
        if timeout(pause, stop.changed()).await.is_ok_and(|changed| changed.is_err()) {
            break;
        }
    }
    info!(worker = worker.name, "worker ended");
}

/// Counts what waits in the outbox, for the metrics and for those who refuse writes by it.
pub async fn count_backlog(
    outbox: &dyn Outbox,
    metrics: &Metrics,
    waiting: &AtomicU64,
) -> Result<(), StoreError> {
    let backlog = outbox.backlog().await?;
    waiting.store(backlog.rows, Ordering::Relaxed);
    let gauge = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    metrics.outbox_documents.with_label_values(&["waiting"]).set(gauge(backlog.rows));
    metrics.outbox_documents.with_label_values(&["set-aside"]).set(gauge(backlog.set_aside));
    metrics.update_lag.set(backlog.oldest.as_secs_f64());
    Ok(())
}
