//! Sending what waits to the servers, and answering those who wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::{self, Either};
use opentelemetry::trace::SpanKind;

use super::PROBE_TIMEOUT;
use super::call::{Answer, Row};
use super::client::{self, Client, Fault, Info};
use super::endpoints::{Endpoints, Refusal, Standing};
use super::queue::{Batch, Full, Limits, Queue};
use crate::domain::EmbeddingVersion;
use crate::metrics::Metrics;
use crate::ports::{EmbedError, Embedding};
use crate::spans::Span;

/// A server that had less time than this is not blamed for not answering in it.
const FAIR_TIME: Duration = Duration::from_secs(1);
const MIN_RETRY: Duration = Duration::from_millis(10);
const MAX_RETRY: Duration = Duration::from_mins(1);

/// The queue, the servers, and what goes between them.
pub struct Dispatch {
    pub client: Client,
    pub version: EmbeddingVersion,
    pub queue: Mutex<Queue<Row>>,
    pub endpoints: Mutex<Endpoints>,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    /// Longest time of one request.
    pub timeout: Duration,
}

pub fn refused(refusal: Refusal) -> EmbedError {
    match refusal {
        Refusal::Overloaded { retry_after } => EmbedError::Overloaded { retry_after },
        Refusal::Down(reason) => EmbedError::Unavailable(reason),
    }
}

impl Dispatch {
    pub fn queue(&self) -> MutexGuard<'_, Queue<Row>> {
        // The state is only changed by code that does not panic halfway; so for the endpoints.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, outcome: &str, texts: usize) {
        self.metrics.embed_texts.with_label_values(&[outcome]).inc_by(texts as u64);
    }

    pub fn show_depth(&self, queue: &Queue<Row>) {
        self.metrics.embed_queue_depth.set(i64::try_from(queue.waiting()).unwrap_or(i64::MAX));
    }

    pub fn overloaded(&self, Full(excess): Full) -> EmbedError {
        let mean = self.endpoints().mean();
        let rounds = excess.div_ceil(self.limits.batch_texts * self.limits.in_flight);
        let retry_after = mean.mul_f64(rounds as f64).clamp(MIN_RETRY, MAX_RETRY);
        EmbedError::Overloaded { retry_after }
    }

    /// Sends what waits while places are free.
    pub fn pump(self: &Arc<Self>) {
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
        let second = self.second(asked, &fault, now);
        let Some(second) = second else { return Err(self.error(asked, &fault, batch)) };
        self.outcome("retried");
        let answer = self.ask_one(second, body, batch).await;
        answer.map_err(|fault| self.error(second, &fault, batch))
    }

    /// The server to ask after one has failed.
    fn second(&self, asked: usize, fault: &Fault, now: Instant) -> Option<usize> {
        let mut endpoints = self.endpoints();
        match fault {
            Fault::Rejected(_) => None,
            // A new connection to the same server may do, which is the one when there is no other.
            Fault::Interrupted(_) => {
                endpoints.pick(now, Some(asked)).or_else(|_| endpoints.pick(now, None)).ok()
            }
            _ => endpoints.pick(now, Some(asked)).ok(),
        }
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
        let span = Span::child("POST /v1/embeddings", SpanKind::Client);
        if span.is_recorded() {
            span.set("server.address", self.endpoints().name(endpoint).to_owned());
        }
        let asked = self.client.embeddings(endpoint, body, texts, &self.version, limit);
        let answer = span.call(asked, |answer| answer.as_ref().err().map(Fault::kind)).await;
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
            Fault::TimedOut(_) | Fault::Interrupted(_) | Fault::Broken(_) => {
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
    fn error(&self, endpoint: usize, fault: &Fault, batch: &Batch) -> EmbedError {
        let told = || format!("{}: {fault}", self.endpoints().name(endpoint));
        match fault {
            Fault::Overloaded(retry_after) => EmbedError::Overloaded { retry_after: *retry_after },
            Fault::TimedOut(_) if batch.deadline <= Instant::now() => EmbedError::DeadlineExceeded,
            Fault::Broken(_) | Fault::Rejected(_) => EmbedError::Failed(told()),
            _ => EmbedError::Unavailable(told()),
        }
    }

    /// Looks after the servers that are not well.
    pub async fn probe(&self) {
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
        if let Some(reason) = lost {
            tracing::warn!(endpoint = name, reason, "embedding server is not used");
        } else {
            tracing::info!(endpoint = name, "embedding server is used");
        }
    }
}

/// A request under way at a server, also when it is dropped.
struct Picked<'a> {
    shared: &'a Dispatch,
    endpoint: usize,
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.shared.endpoints().done(self.endpoint);
    }
}

/// A batch under way. However it ends, its place is freed and those who wait are answered.
struct Flight {
    shared: Arc<Dispatch>,
    batch: Batch,
    answer: Answer,
}

impl Flight {
    async fn run(mut self) {
        let started = Instant::now();
        let of = std::mem::take(&mut self.batch.spans);
        let span = Span::batch("embed batch", of, SystemTime::now());
        span.count("sextant.batch.texts", self.batch.texts.len());
        self.answer = span.run(self.shared.ask(&self.batch)).await;
        drop(span);
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
                queue.put_back(&text, waiters, now);
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
