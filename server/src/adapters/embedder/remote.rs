//! The model of another server, over its `POST /v1/embeddings`.
//!
//! Texts of concurrent callers are joined as in the local queue, see [`queue`]; which server is
//! asked, and when a second one, is in [`endpoints`].

mod call;
mod client;
mod endpoints;
mod queue;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{self, Either};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::config::RemoteConfig;
use crate::domain::EmbeddingVersion;
use crate::metrics::Metrics;
use crate::ports::{EmbedError, Embedder, Embedding, ModelInfo, Urgency};
use call::Answer;
pub use client::BuildError;
use client::{BODY_OVERHEAD, Client, Fault, Info, ServerLimits};
use endpoints::{Endpoints, Refusal, Standing};
use queue::{Batch, Full, Limits, Queue};

/// Longest wait for a server to say what it serves.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often servers that are not well are probed; shifted at random, so that many clients do not
/// come at once.
const PROBE_PERIOD: Duration = Duration::from_millis(1_000);
/// A server that had less time than this is not blamed for not answering in it.
const FAIR_TIME: Duration = Duration::from_secs(1);
const MIN_RETRY: Duration = Duration::from_millis(10);
const MAX_RETRY: Duration = Duration::from_mins(1);

#[derive(Clone)]
pub struct RemoteOptions {
    pub config: RemoteConfig,
    /// What `config.api_key_file` holds.
    pub api_key: Option<String>,
    /// Texts that may wait.
    pub queue_texts: usize,
    /// Longest wait at the start until a server says what it serves.
    pub patience: Duration,
}

/// Why there is no embedder.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(
        "no embedding server of `remote.endpoints` has a model: {0}; start one, or correct the \
         addresses"
    )]
    NoServer(String),
}

/// Embeds on other servers.
pub struct RemoteEmbedder {
    model: ModelInfo,
    shared: Arc<Shared>,
    probing: JoinHandle<()>,
}

struct Shared {
    client: Client,
    version: EmbeddingVersion,
    queue: Mutex<Queue<call::Row>>,
    endpoints: Mutex<Endpoints>,
    metrics: Arc<Metrics>,
    limits: Limits,
    timeout: Duration,
}

impl RemoteEmbedder {
    /// Asks the servers what they serve until one of them answers. Its model is that of this
    /// embedder; servers with another one are not used.
    pub async fn connect(
        options: RemoteOptions,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ConnectError> {
        let config = &options.config;
        let client =
            Client::new(&config.endpoints, options.api_key.as_deref(), config.max_in_flight)?;
        let hedge_after =
            (config.hedge_after_ms > 0).then(|| Duration::from_millis(config.hedge_after_ms));
        let endpoints = Endpoints::new(client.names(), hedge_after);
        let (model, served) = first_answer(&client, options.patience).await?;
        let limits = Limits {
            texts: options.queue_texts,
            batch_texts: config.max_batch_texts.min(served.max_embedding_inputs).max(1),
            batch_bytes: served.max_body_bytes.saturating_sub(BODY_OVERHEAD),
            in_flight: config.max_in_flight,
        };
        let shared = Arc::new(Shared {
            client,
            version: model.version.clone(),
            queue: Mutex::new(Queue::new(limits)),
            endpoints: Mutex::new(endpoints),
            metrics,
            limits,
            timeout: Duration::from_millis(config.timeout_ms),
        });
        shared.probe().await;
        let probing = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    tokio::time::sleep(PROBE_PERIOD.mul_f64(rand::random_range(0.5..1.0))).await;
                    shared.probe().await;
                }
            }
        });
        Ok(Self { model, shared, probing })
    }
}

impl Drop for RemoteEmbedder {
    fn drop(&mut self) {
        self.probing.abort();
    }
}

/// The first server, in the order of the configuration, that has a model.
async fn first_answer(
    client: &Client,
    patience: Duration,
) -> Result<(ModelInfo, ServerLimits), ConnectError> {
    let names = client.names();
    let deadline = Instant::now() + patience;
    loop {
        let asked = (0..names.len()).map(|endpoint| client.info(endpoint, PROBE_TIMEOUT));
        let mut faults = Vec::new();
        for (name, answer) in names.iter().zip(future::join_all(asked).await) {
            match answer {
                Ok(Info { model: Some(version), max_tokens: Some(max_tokens), device, limits }) => {
                    let device = format!("remote {}", device.as_deref().unwrap_or("unknown"));
                    return Ok((ModelInfo { version, max_tokens, device }, limits));
                }
                Ok(_) => faults.push(format!("{name}: still starting")),
                Err(fault) => faults.push(format!("{name}: {fault}")),
            }
        }
        if Instant::now() >= deadline {
            return Err(ConnectError::NoServer(faults.join("; ")));
        }
        tokio::time::sleep(PROBE_PERIOD.mul_f64(rand::random_range(0.2..0.4))).await;
    }
}

#[async_trait]
impl Embedder for RemoteEmbedder {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    async fn embed(
        &self,
        texts: Vec<Arc<str>>,
        urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let shared = &self.shared;
        let now = Instant::now();
        if urgency.deadline <= now {
            shared.count("expired", texts.len());
            return Err(EmbedError::DeadlineExceeded);
        }
        // While no server can be asked nobody waits in vain.
        shared.endpoints().admit(now).map_err(refused)?;
        let (rows, answer) = call::open(&texts);
        let pushed = shared.queue().push(rows, urgency, now);
        match pushed {
            Ok(joined) => shared.count("joined", joined),
            Err(full) => {
                shared.count("refused", texts.len());
                return Err(shared.overloaded(full));
            }
        }
        shared.pump();
        match timeout_at(urgency.deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            // The queue forgets those whose deadline has passed.
            Ok(Err(_)) if urgency.deadline > Instant::now() => Err(EmbedError::Stopped),
            Ok(Err(_)) | Err(_) => {
                shared.count("expired", texts.len());
                Err(EmbedError::DeadlineExceeded)
            }
        }
    }

    fn admit(&self, _text: &str, urgency: Urgency) -> Result<(), EmbedError> {
        let now = Instant::now();
        self.shared.endpoints().admit(now).map_err(refused)?;
        let admitted = self.shared.queue().admit(1, urgency.class, now);
        admitted.map_err(|full| self.shared.overloaded(full))
    }

    fn health(&self) -> Result<(), String> {
        self.shared.endpoints().health()
    }

    fn refresh_metrics(&self) {
        let queue = self.shared.queue();
        self.shared
            .metrics
            .embed_queue_oldest_age
            .set(queue.oldest_age(Instant::now()).as_secs_f64());
        self.shared.show_depth(&queue);
    }
}

fn refused(refusal: Refusal) -> EmbedError {
    match refusal {
        Refusal::Overloaded { retry_after } => EmbedError::Overloaded { retry_after },
        Refusal::Down(reason) => EmbedError::Unavailable(reason),
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue<call::Row>> {
        // The state is only changed by code that does not panic halfway; so for the endpoints.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, outcome: &str, texts: usize) {
        self.metrics.embed_texts.with_label_values(&[outcome]).inc_by(texts as u64);
    }

    fn show_depth(&self, queue: &Queue<call::Row>) {
        self.metrics.embed_queue_depth.set(i64::try_from(queue.waiting()).unwrap_or(i64::MAX));
    }

    fn overloaded(&self, Full(excess): Full) -> EmbedError {
        let mean = self.endpoints().mean();
        let rounds = excess.div_ceil(self.limits.batch_texts * self.limits.in_flight);
        let retry_after = mean.mul_f64(rounds as f64).clamp(MIN_RETRY, MAX_RETRY);
        EmbedError::Overloaded { retry_after }
    }

    /// Sends what waits while places are free.
    fn pump(self: &Arc<Self>) {
        loop {
            let mut queue = self.queue();
            let batch = queue.take(Instant::now());
            self.show_depth(&queue);
            drop(queue);
            let Some(batch) = batch else { return };
            // What it is answered with when the runtime ends before the server answers.
            let answer = Err(EmbedError::Stopped);
            let flight = Flight { shared: Arc::clone(self), batch, answer };
            tokio::spawn(flight.run());
        }
    }

    /// Asks a server for a batch; another one when that cannot be reached, failed or is
    /// overloaded.
    async fn ask(&self, batch: &Batch) -> Answer {
        let body = client::body(&batch.texts, batch.class).map_err(|error| {
            EmbedError::Failed(format!("the request could not be written: {error}"))
        })?;
        let first = self.endpoints().pick(Instant::now(), None).map_err(refused)?;
        let (asked, fault) = match self.ask_hedged(first, &body, batch).await {
            Ok(rows) => return Ok(rows),
            Err(fault) => fault,
        };
        let now = Instant::now();
        if batch.deadline <= now {
            return Err(EmbedError::DeadlineExceeded);
        }
        if !matches!(fault, Fault::Rejected(_)) {
            let second = self.endpoints().pick(now, Some(asked));
            if let Ok(second) = second {
                self.outcome("retried");
                let answer = self.ask_one(second, body, batch).await;
                return answer.map_err(|fault| self.error(second, fault, batch));
            }
        }
        Err(self.error(asked, fault, batch))
    }

    /// Asks a server, and a second one as well when the first takes long. On failure the server
    /// that failed last.
    async fn ask_hedged(
        &self,
        first: usize,
        body: &Bytes,
        batch: &Batch,
    ) -> Result<Vec<Embedding>, (usize, Fault)> {
        let hedge_after = self.endpoints().hedge_after();
        let answer = self.ask_one(first, body.clone(), batch);
        let Some(hedge_after) = hedge_after else {
            return answer.await.map_err(|fault| (first, fault));
        };
        tokio::pin!(answer);
        if let Ok(answer) = tokio::time::timeout(hedge_after, answer.as_mut()).await {
            return answer.map_err(|fault| (first, fault));
        }
        let second = self.endpoints().pick_hedge(Instant::now(), first);
        let Some(second) = second else {
            return answer.await.map_err(|fault| (first, fault));
        };
        self.outcome("hedged");
        let hedge = self.ask_one(second, body.clone(), batch);
        tokio::pin!(hedge);
        // The one that is not waited for is dropped, and its connection with it.
        match future::select(answer, hedge).await {
            Either::Left((Ok(rows), _)) => Ok(rows),
            Either::Right((Ok(rows), _)) => {
                self.outcome("hedge_won");
                Ok(rows)
            }
            Either::Left((Err(_), hedge)) => hedge.await.map_err(|fault| (second, fault)),
            Either::Right((Err(_), answer)) => answer.await.map_err(|fault| (first, fault)),
        }
    }

    /// One request to a server that was picked; what comes of it is noted.
    async fn ask_one(
        &self,
        endpoint: usize,
        body: Bytes,
        batch: &Batch,
    ) -> Result<Vec<Embedding>, Fault> {
        let _picked = Picked { shared: self, endpoint };
        let started = Instant::now();
        let limit = self.timeout.min(batch.deadline.saturating_duration_since(started));
        let texts = batch.texts.len();
        let answer = self.client.embeddings(endpoint, body, texts, &self.version, limit).await;
        match &answer {
            Ok(_) => {
                self.outcome("ok");
                self.endpoints().succeeded(endpoint, started.elapsed());
            }
            Err(fault) => self.note(endpoint, fault),
        }
        answer
    }

    fn note(&self, endpoint: usize, fault: &Fault) {
        let reason = fault.to_string();
        let mut endpoints = self.endpoints();
        let (outcome, lost) = match fault {
            Fault::Overloaded(retry_after) => {
                endpoints.overloaded(endpoint, *retry_after, Instant::now());
                ("overloaded", false)
            }
            Fault::Rejected(_) => ("rejected", false),
            Fault::TimedOut(limit) if *limit < self.timeout.min(FAIR_TIME) => ("late", false),
            Fault::Unreachable(_) | Fault::Denied(_) | Fault::OtherModel(_) => {
                ("failed", endpoints.down(endpoint, &reason))
            }
            Fault::TimedOut(_) | Fault::Broken(_) => {
                ("failed", endpoints.failed(endpoint, &reason))
            }
        };
        if lost {
            self.told(&endpoints, endpoint, Some(&reason));
        }
        drop(endpoints);
        self.outcome(outcome);
    }

    fn outcome(&self, outcome: &str) {
        self.metrics.remote_requests.with_label_values(&[outcome]).inc();
    }

    /// What callers get to know of a fault.
    fn error(&self, endpoint: usize, fault: Fault, batch: &Batch) -> EmbedError {
        let told = |fault: &Fault| format!("{}: {fault}", self.endpoints().name(endpoint));
        match fault {
            Fault::Overloaded(retry_after) => EmbedError::Overloaded { retry_after },
            Fault::TimedOut(_) if batch.deadline <= Instant::now() => EmbedError::DeadlineExceeded,
            Fault::Broken(_) | Fault::Rejected(_) => EmbedError::Failed(told(&fault)),
            _ => EmbedError::Unavailable(told(&fault)),
        }
    }

    /// Looks after the servers that are not well.
    async fn probe(&self) {
        let unwell = self.endpoints().unwell();
        let asked = unwell.iter().map(|endpoint| self.client.info(*endpoint, PROBE_TIMEOUT));
        for (endpoint, answer) in unwell.iter().zip(future::join_all(asked).await) {
            let fault = match answer {
                Ok(Info { model: Some(version), .. }) if version.hash == self.version.hash => None,
                Ok(Info { model: Some(version), .. }) => Some(Fault::OtherModel(version.hash)),
                Ok(Info { model: None, .. }) => Some(Fault::Broken("still starting".to_owned())),
                Err(fault) => Some(fault),
            };
            let reason = fault.map(|fault| fault.to_string());
            let standing = reason.clone().map_or(Standing::Well, Standing::Down);
            let mut endpoints = self.endpoints();
            if endpoints.probed(*endpoint, standing) {
                self.told(&endpoints, *endpoint, reason.as_deref());
            }
        }
    }

    /// Tells the operator of a server that was lost or is back.
    fn told(&self, endpoints: &Endpoints, endpoint: usize, lost: Option<&str>) {
        let name = endpoints.name(endpoint);
        let up = self.metrics.remote_endpoint_up.with_label_values(&[name]);
        up.set(i64::from(lost.is_none()));
        match lost {
            Some(reason) => {
                tracing::warn!(endpoint = name, reason, "embedding server is not used");
            }
            None => tracing::info!(endpoint = name, "embedding server is used"),
        }
    }
}

/// A request under way at a server, also when it is dropped.
struct Picked<'a> {
    shared: &'a Shared,
    endpoint: usize,
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.shared.endpoints().done(self.endpoint);
    }
}

/// A batch under way. However it ends, its place is freed and those who wait are answered.
struct Flight {
    shared: Arc<Shared>,
    batch: Batch,
    answer: Answer,
}

impl Flight {
    async fn run(mut self) {
        let started = Instant::now();
        self.answer = self.shared.ask(&self.batch).await;
        let shared = Arc::clone(&self.shared);
        match &self.answer {
            Ok(rows) => {
                // Counted before it is answered, so that who has an answer sees it counted.
                let metrics = &shared.metrics;
                shared.count("embedded", rows.len());
                metrics.embed_batch_size.observe(rows.len() as f64);
                let tokens = rows.iter().map(|row| row.tokens).sum::<usize>() as f64;
                metrics.embed_batch_tokens.observe(tokens);
                metrics.embed_tokens.with_label_values(&["text"]).inc_by(tokens);
                metrics.embed_duration.observe(started.elapsed().as_secs_f64());
            }
            Err(EmbedError::DeadlineExceeded) => {}
            Err(_) => shared.count("failed", self.batch.texts.len()),
        }
        drop(self);
        shared.pump();
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        let waiters = queue.finish(&self.batch);
        if self.answer == Err(EmbedError::DeadlineExceeded) {
            let now = Instant::now();
            for (text, waiters) in self.batch.texts.drain(..).zip(waiters) {
                queue.put_back(text, waiters, now);
            }
            return;
        }
        drop(queue);
        for (place, waiters) in waiters.into_iter().enumerate() {
            for (row, _) in waiters {
                match &self.answer {
                    Ok(rows) => row.fulfil(&rows[place]),
                    Err(error) => row.fail(error),
                }
            }
        }
    }
}
