//! The threads that the model runs on, fed by one queue. A small batch that need not wait for others is
//! computed by the thread that brought it: to hand it over and back would take as long again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::SpanContext;
use tokio::sync::{oneshot, watch};

use super::batch::{Batch, Limits, Lost, Queue, Refusal, Reserved, Waiter};
use super::speed::Speed;
use crate::metrics::Metrics;
use crate::ports::{EmbedError, Urgency};
use crate::spans::{self, Span};

/// What runs on a worker's thread.
pub trait Forward: Send + 'static {
    /// Called once on the thread, before the first batch. One that fails is lost.
    fn start(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// One vector per text. So many workers have nothing to do.
    fn embed(&mut self, texts: &[Arc<[u32]>], idle: usize) -> Result<Rows, Fault>;

    /// Tokens that are computed with such texts and belong to none.
    fn padding(&self, _texts: &[Arc<[u32]>]) -> usize {
        0
    }
}

/// Why a batch was not embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Failed(String),
    /// The device has no memory for so many texts.
    OutOfMemory(String),
    /// The device will not embed anything more in this process.
    Lost(String),
}

/// How many workers may run at a time, asked again and again: what a process may use of its machine
/// changes while it runs.
pub struct Share {
    pub every: Duration,
    pub ask: Box<dyn Fn() -> usize + Send + Sync>,
}

/// What computes a batch of so many tokens at most on the thread of whom it comes from.
pub struct AtOnce {
    pub tokens: usize,
    pub forward: Box<dyn Forward>,
}

pub type Rows = Vec<Arc<[f32]>>;
type Answer = Result<Rows, EmbedError>;

pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Of workers that may not run now.
    allowed: Condvar,
    metrics: Arc<Metrics>,
    workers: usize,
    share: Option<Share>,
    asked: Mutex<Instant>,
    /// Locked after the state only if nobody has it.
    at_once: Mutex<Option<AtOnce>>,
}

struct State {
    queue: Queue<Row>,
    closing: bool,
    /// Workers from this number on rest.
    active: usize,
    alive: usize,
    /// Why a worker was lost, the last one of them.
    reason: Option<String>,
    /// Told when no worker is left.
    all_lost: watch::Sender<bool>,
}

/// Room in the queue, given back when it is dropped.
pub struct Reservation {
    /// Workers beside one that have nothing to do, if none has.
    pub idle: usize,
    shared: Arc<Shared>,
    room: Reserved,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.room.texts > 0 {
            self.shared.lock().queue.release(self.room);
        }
    }
}

/// A text of a call.
struct Row {
    call: Arc<Call>,
    index: usize,
}

/// A call until it is answered.
struct Call {
    open: Mutex<Option<Open>>,
    /// Where it is recorded.
    span: Option<SpanContext>,
}

struct Open {
    answer: oneshot::Sender<Answer>,
    rows: Vec<Option<Arc<[f32]>>>,
    missing: usize,
}

impl Pool {
    /// Of the workers, `limits.workers` run at first.
    pub fn start<F: Forward>(
        workers: Vec<F>,
        limits: Limits,
        speed: Speed,
        metrics: Arc<Metrics>,
        share: Option<Share>,
        at_once: Option<AtOnce>,
    ) -> std::io::Result<Self> {
        let count = workers.len();
        let active = limits.workers;
        let queue = Queue::new(limits, speed);
        let all_lost = watch::Sender::new(false);
        let state = State { queue, closing: false, active, alive: count, reason: None, all_lost };
        let shared = Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
            allowed: Condvar::new(),
            metrics,
            workers: count,
            share,
            asked: Mutex::new(Instant::now()),
            at_once: Mutex::new(at_once),
        };
        let pool = Self { shared: Arc::new(shared), threads: Mutex::default() };
        for (index, worker) in workers.into_iter().enumerate() {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("embed-{index}"))
                .spawn(move || run(&shared, index, worker))?;
            pool.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(pool)
    }

    /// Room for texts whose tokens are not made yet.
    pub fn reserve(&self, room: Reserved, urgency: Urgency) -> Result<Reservation, EmbedError> {
        let mut state = self.shared.lock();
        if state.closing || state.alive == 0 {
            return Err(EmbedError::Stopped);
        }
        let idle = state.queue.idle();
        let reserved = state.queue.reserve(room, urgency, Instant::now());
        self.shared.settle(&mut state);
        drop(state);
        reserved.map_err(|refusal| self.refused(refusal, room.texts))?;
        Ok(Reservation { idle, shared: Arc::clone(&self.shared), room })
    }

    /// Hands texts to the workers. The receiver gets one row per text; dropping it takes back
    /// those that are not being computed. Refused is only what turned out larger than its room.
    pub fn submit(
        &self,
        mut reservation: Reservation,
        texts: Vec<Arc<[u32]>>,
        urgency: Urgency,
    ) -> Result<oneshot::Receiver<Answer>, EmbedError> {
        let (answer, receiver) = oneshot::channel();
        let count = texts.len();
        let tokens: usize = texts.iter().map(|ids| ids.len()).sum();
        let open = Open { answer, rows: vec![None; count], missing: count };
        let call = Arc::new(Call { open: Mutex::new(Some(open)), span: spans::current() });
        let rows = texts
            .into_iter()
            .enumerate()
            .map(|(index, ids)| (ids, Row { call: Arc::clone(&call), index }))
            .collect();
        let mut state = self.shared.lock();
        if state.closing || state.alive == 0 {
            drop(state);
            return Err(EmbedError::Stopped);
        }
        let now = Instant::now();
        let fits = tokens <= reservation.room.tokens;
        state.queue.release(std::mem::take(&mut reservation.room));
        let pushed = if fits {
            Ok(state.queue.insert(rows, urgency, now))
        } else {
            state.queue.push(rows, urgency, now)
        };
        let mut at_once = self.shared.at_once.try_lock().ok();
        let batch = match at_once.as_deref() {
            // Who is refused computes nothing, for others neither.
            Some(Some(at_once)) if pushed.is_ok() => state.queue.take_all(at_once.tokens, now),
            _ => None,
        };
        if state.queue.texts() > 0 {
            self.shared.wake.notify_one();
        }
        self.shared.settle(&mut state);
        drop(state);
        let joined = pushed.map_err(|refusal| self.refused(refusal, count))?;
        self.shared.count("joined", joined);
        if let Some(batch) = batch
            && let Some(slot) = at_once.as_deref_mut()
            && let Some(AtOnce { forward, .. }) = slot
        {
            let mut lost = false;
            self.shared.embed(&mut **forward, &batch, |_| lost = true);
            if lost {
                *slot = None;
            }
        }
        Ok(receiver)
    }

    fn refused(&self, refusal: Refusal, texts: usize) -> EmbedError {
        match refusal {
            Refusal::Overloaded { retry_after } => {
                self.shared.count("refused", texts);
                EmbedError::Overloaded { retry_after }
            }
            Refusal::Expired => {
                self.shared.count("expired", texts);
                EmbedError::DeadlineExceeded
            }
        }
    }

    /// An error when a worker was lost, also while others go on.
    pub fn health(&self) -> Result<(), String> {
        let state = self.shared.lock();
        if state.closing {
            return Err("the embedder has stopped".to_owned());
        }
        if state.alive == self.shared.workers {
            return Ok(());
        }
        let lost = self.shared.workers - state.alive;
        let reason = state.reason.as_deref().unwrap_or("unknown reason");
        Err(format!("{lost} of {} embedding workers lost: {reason}", self.shared.workers))
    }

    /// Returns when all workers are lost, with the reason of the last one; never when the pool closes.
    pub async fn lost(&self) -> String {
        let mut all_lost = self.shared.lock().all_lost.subscribe();
        if all_lost.wait_for(|lost| *lost).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.shared.lock().reason.clone().unwrap_or_default()
    }

    /// Sets the gauges of the queue to what they are now.
    pub fn refresh_gauges(&self) {
        let state = self.shared.lock();
        let age = state.queue.oldest_age(Instant::now());
        self.shared.metrics.embed_queue_oldest_age.set(age.as_secs_f64());
        self.shared.show_depth(&state);
    }

    /// Answers those who wait with `Stopped`, lets running batches end and waits for that at most
    /// `limit`. True when all threads have ended.
    pub fn close(&self, limit: Duration) -> bool {
        let mut state = self.shared.lock();
        state.closing = true;
        // Rows being computed stay: their batches end soon.
        let waiting = state.queue.drain_waiting();
        self.shared.settle(&mut state);
        self.shared.wake.notify_all();
        self.shared.allowed.notify_all();
        drop(state);
        for row in waiting {
            row.fail(&EmbedError::Stopped);
        }
        let state = self.shared.lock();
        let ended = self.shared.wake.wait_timeout_while(state, limit, |state| state.alive > 0);
        let (state, _) = ended.unwrap_or_else(PoisonError::into_inner);
        let all = state.alive == 0;
        drop(state);
        if all {
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            for thread in threads.drain(..) {
                // A panic of a worker was reported when it happened.
                let _ = thread.join();
            }
        }
        all
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is only changed by code that does not panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, outcome: &str, texts: usize) {
        self.metrics.embed_texts.with_label_values(&[outcome]).inc_by(texts as u64);
    }

    /// Answers the rows that the queue gave up and shows its depth.
    fn settle(&self, state: &mut State) {
        for (row, lost) in state.queue.take_lost() {
            match lost {
                Lost::Expired => self.count("expired", 1),
                Lost::Abandoned => self.count("abandoned", 1),
            }
            row.fail(&EmbedError::DeadlineExceeded);
        }
        self.show_depth(state);
    }

    fn show_depth(&self, state: &State) {
        let texts = i64::try_from(state.queue.texts()).unwrap_or(i64::MAX);
        self.metrics.embed_queue_depth.set(texts);
    }

    fn allow(&self, workers: usize) {
        let mut state = self.lock();
        let workers = workers.clamp(1, self.workers);
        if state.active != workers {
            tracing::info!(workers, "what this process may use of the CPUs is another now");
            state.active = workers;
            state.queue.set_workers(workers);
            self.allowed.notify_all();
            self.wake.notify_all();
        }
    }

    /// The next batch for a worker; `None` when the pool closes.
    fn next(&self, worker: usize) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            if state.closing {
                return None;
            }
            if worker >= state.active {
                state = self.allowed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let batch = state.queue.take(Instant::now());
            self.settle(&mut state);
            if batch.is_some() {
                if state.queue.texts() > 0 {
                    self.wake.notify_one();
                }
                return batch;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Computes a batch and answers those who wait for it. One who will compute nothing more is `lost`,
    /// for a reason.
    fn embed(&self, worker: &mut dyn Forward, batch: &Batch, lost: impl FnOnce(String)) {
        let started = Instant::now();
        self.follow_share(started);
        let embed = || embed_in_parts(worker, &batch.texts, batch.idle, &self.metrics);
        let outcome = catch_unwind(AssertUnwindSafe(embed));
        let took = started.elapsed();
        let (reason, is_lost) = match outcome {
            Ok(Ok(rows)) if rows.len() == batch.texts.len() => {
                // Counted before it is answered, so that who has an answer sees it counted.
                self.observe(batch, worker.padding(&batch.texts), took);
                let waiters = self.lock().queue.finish(batch, Some(took));
                record(batch, took, &waiters);
                for (row, waiters) in rows.iter().zip(waiters) {
                    for waiter in waiters {
                        waiter.fulfil(row);
                    }
                }
                return;
            }
            Ok(Ok(rows)) => {
                (format!("it gave {} rows for {}", rows.len(), batch.texts.len()), false)
            }
            Ok(Err(Fault::Failed(reason) | Fault::OutOfMemory(reason))) => (reason, false),
            Ok(Err(Fault::Lost(reason))) => (reason, true),
            Err(panic) => (message(&*panic), true),
        };
        let (texts, tokens) = (batch.texts.len(), batch.tokens);
        tracing::error!(texts, tokens, lost = is_lost, reason, "a batch failed");
        self.count("failed", texts);
        let waiters = self.lock().queue.finish(batch, None);
        if is_lost {
            lost(reason.clone());
        }
        let error = EmbedError::Failed(reason);
        for row in waiters.into_iter().flatten() {
            row.fail(&error);
        }
    }

    /// From time to time, by whoever computes.
    fn follow_share(&self, now: Instant) {
        let Some(share) = &self.share else { return };
        let Ok(mut asked) = self.asked.try_lock() else { return };
        if now.duration_since(*asked) >= share.every {
            *asked = now;
            drop(asked);
            self.allow((share.ask)());
        }
    }

    fn observe(&self, batch: &Batch, padding: usize, took: Duration) {
        self.count("embedded", batch.texts.len());
        self.metrics.embed_batch_size.observe(batch.texts.len() as f64);
        let all = (batch.tokens + padding) as f64;
        self.metrics.embed_batch_tokens.observe(all);
        self.metrics.embed_duration.observe(took.as_secs_f64());
        self.metrics.embed_tokens.with_label_values(&["text"]).inc_by(batch.tokens as f64);
        self.metrics.embed_tokens.with_label_values(&["padding"]).inc_by(padding as f64);
        self.metrics.embed_padding_ratio.set(padding as f64 / all);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close(Duration::from_secs(5));
    }
}

fn run<F: Forward>(shared: &Shared, index: usize, mut worker: F) {
    let mut leaving = Leaving { shared, left: false };
    if let Err(reason) = worker.start() {
        tracing::error!(reason, "a worker failed to start");
        return leaving.leave(Some(reason));
    }
    while !leaving.left
        && let Some(batch) = shared.next(index)
    {
        shared.embed(&mut worker, &batch, |reason| leaving.leave(Some(reason)));
    }
}

/// Tells of a batch in the traces of those who wait for it.
fn record(batch: &Batch, took: Duration, waiters: &[Vec<Row>]) {
    if !spans::are_recorded() {
        return;
    }
    let mut of: Vec<SpanContext> = Vec::new();
    for span in waiters.iter().flatten().filter_map(|row| row.call.span.as_ref()) {
        if of.last() != Some(span) {
            of.push(span.clone());
        }
    }
    let span = Span::batch("embed batch", of, SystemTime::now() - took);
    span.count("sextant.batch.texts", batch.texts.len());
    span.count("sextant.batch.tokens", batch.tokens);
}

/// A batch that is too large for the device's memory is embedded in halves.
fn embed_in_parts(
    worker: &mut dyn Forward,
    texts: &[Arc<[u32]>],
    idle: usize,
    metrics: &Metrics,
) -> Result<Rows, Fault> {
    match worker.embed(texts, idle) {
        Err(Fault::OutOfMemory(reason)) if texts.len() > 1 => {
            tracing::warn!(texts = texts.len(), reason, "a batch is embedded in halves");
            metrics.embed_batches_halved.inc();
            let (first, second) = texts.split_at(texts.len() / 2);
            let mut rows = embed_in_parts(worker, first, idle, metrics)?;
            rows.extend(embed_in_parts(worker, second, idle, metrics)?);
            Ok(rows)
        }
        outcome => outcome,
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
        .to_owned()
}

/// Says that a worker has ended, however it ended; the last one leaves nobody waiting.
struct Leaving<'a> {
    shared: &'a Shared,
    left: bool,
}

impl Leaving<'_> {
    fn leave(&mut self, reason: Option<String>) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        let mut state = self.shared.lock();
        state.alive -= 1;
        state.reason = reason.or(state.reason.take());
        if state.alive == 0 {
            if !state.closing {
                state.all_lost.send_replace(true);
            }
            for row in state.queue.drain() {
                row.fail(&EmbedError::Stopped);
            }
            self.shared.settle(&mut state);
        }
        self.shared.wake.notify_all();
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.leave(None);
    }
}

impl Row {
    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.call.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fulfil(&self, row: &Arc<[f32]>) {
        let mut call = self.open();
        let Some(open) = call.as_mut() else { return };
        if open.rows[self.index].replace(Arc::clone(row)).is_none() {
            open.missing -= 1;
        }
        if open.missing == 0
            && let Some(open) = call.take()
        {
            // Who asked may have left meanwhile.
            let _ = open.answer.send(Ok(open.rows.into_iter().flatten().collect()));
        }
    }

    /// Answers the whole call; its other rows are gone by that.
    fn fail(&self, error: &EmbedError) {
        if let Some(open) = self.open().take() {
            let _ = open.answer.send(Err(error.clone()));
        }
    }
}

impl Waiter for Row {
    fn is_gone(&self) -> bool {
        self.open().as_ref().is_none_or(|open| open.answer.is_closed())
    }
}

#[cfg(test)]
mod tests;
