//! Calls to Milvus: connected when first needed, bounded in time, refused at once while a server
//! is known to be away.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use milvus::v2::error::Error;
use milvus::v2::prelude::{
    ClientV2, ConnectConfig, HasCollectionRequest, LoadCollectionRequest, RetryConfig,
    TelemetryConfig,
};
use milvus::v2::request::utility::GetServerVersionRequest;
use opentelemetry::trace::SpanKind;
use rand::Rng;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{sleep, timeout};

use super::MilvusOptions;
use crate::breaker::{Breaker, BreakerOptions};
use crate::metrics::Metrics;
use crate::ports::IndexError;
use crate::spans::Span;

/// Calls in a row that find a server away before it is left alone.
const FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// Every call may be made twice: on another server where there is one, else on a new connection.
const ATTEMPTS: usize = 2;
/// Of the time for a call: how long a read waits before it is made once more beside itself. A proxy
/// that waits for a query node which was lost sends the next one to another.
const HEDGE_AFTER: f64 = 0.2;
/// A proxy takes a moment to see that a query node is gone, and where else the data is.
const RETRIES: u32 = 3;
/// The first; each later one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Of one read.
pub const HEDGES: usize = 2;
/// Of one of many rows, which a server that is slow is not asked for twice at a time.
pub const NO_HEDGES: usize = 0;
/// Of all reads at a time, so that a Milvus that is only slow does not get twice the work.
const ALL_HEDGES: usize = 16;
/// As in `tonic::Code`: the server's answer would be the same again.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAUTHENTICATED: i32 = 16;
/// Codes of Milvus's own.
const NOT_LOADED: i32 = 101;
const UNEXPECTED: i32 = 65535;
/// What a server says whose own connection to another one is gone: Milvus has no code for it.
///
/// # Source
/// grpc-go, `ErrClientConnClosing`.
pub const LOST_ANOTHER: &str = "client connection is closing";
/// The oldest servers with full text, by which [`ClientV2`] is used.
const OLDEST: (u32, u32) = (2, 5);

/// A client of one server, in one of the two forms that the library has.
pub trait Client: Clone + Send + Sync + 'static {
    type Error: std::error::Error + Send + Sync + 'static;

    fn connect(
        endpoint: &str,
        options: &MilvusOptions,
    ) -> impl Future<Output = Result<Self, Self::Error>> + Send;

    /// Loads a collection and waits until it can be searched. One that is loaded stays as it is
    /// where the server cannot change its number of replicas.
    fn load(
        self,
        collection: String,
        options: &MilvusOptions,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Asks what every server answers, whatever it holds.
    fn health(self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether the same call may succeed in a moment.
    fn is_unavailable(error: &Self::Error) -> bool;

    /// Whether it is what a server answered, and not that it did not.
    fn is_answer(error: &Self::Error) -> bool;

    /// Whether a server that is there has not loaded the collection.
    fn is_not_loaded(error: &Self::Error) -> bool;

    /// Whether an answer was too large for the client: fewer rows would do.
    fn is_too_large(error: &Self::Error) -> bool;
}

/// One cluster, behind one address or several.
pub struct Servers<C = ClientV2> {
    all: Vec<Server<C>>,
    /// The server that answered last.
    preferred: AtomicUsize,
    hedges: Semaphore,
    options: MilvusOptions,
    metrics: Arc<Metrics>,
}

struct Server<C> {
    endpoint: String,
    client: OnceCell<C>,
    breaker: Breaker,
}

impl<C: Client> Servers<C> {
    pub fn new(options: &MilvusOptions, metrics: Arc<Metrics>) -> Self {
        let breaker = BreakerOptions { failures: FAILURES, pause: PAUSE, trial: options.timeout };
        let servers = options.endpoints.iter().enumerate().map(|(number, endpoint)| Server {
            endpoint: endpoint.clone(),
            client: OnceCell::new(),
            breaker: Breaker::new(
                breaker,
                metrics.breaker_open.with_label_values(&["index", &number.to_string()]),
            ),
        });
        Self {
            all: servers.collect(),
            preferred: AtomicUsize::new(0),
            hedges: Semaphore::new(ALL_HEDGES),
            options: options.clone(),
            metrics,
        }
    }

    /// Makes a call, which must not mind being made twice.
    ///
    /// # Errors
    /// `Unavailable` at once while every server is left alone, and at the latest when the time
    /// for a call is over.
    pub async fn call<T, F>(
        &self,
        action: &'static str,
        work: impl Fn(C) -> F,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, C::Error>>,
    {
        self.call_until(Instant::now() + self.options.timeout, 0, action, &work).await
    }

    /// Makes a call while so many others of the same work are on their way: on another server where
    /// there is one.
    async fn call_until<T, F>(
        &self,
        deadline: Instant,
        others: usize,
        action: &'static str,
        work: &impl Fn(C) -> F,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, C::Error>>,
    {
        let mut outcome = None;
        for attempt in 0..ATTEMPTS {
            let left = deadline.saturating_duration_since(Instant::now());
            if attempt > 0 && left.is_zero() {
                break;
            }
            let Some((place, server)) = self.admitted(others) else { break };
            // Time for another server, when this one does not answer at all.
            let limit = if attempt == 0 && self.all.len() > 1 { left / 2 } else { left };
            // The library's futures are large: in a box they need no more than a pointer here.
            let answer = Box::pin(async { work(server.client(&self.options).await?).await });
            let span = Span::child("milvus", SpanKind::Client);
            span.set("db.system.name", "milvus");
            span.set("db.operation.name", action);
            span.count("sextant.milvus.server", place);
            let failure = |answer: &Result<_, _>| match answer {
                Ok(Ok(_)) => None,
                Ok(Err(error)) if C::is_unavailable(error) => Some("unavailable"),
                Ok(Err(_)) => Some("failed"),
                Err(_) => Some("timeout"),
            };
            let answer = span.call(timeout(limit, answer), failure).await;
            let error = match answer {
                Ok(Ok(answer)) => {
                    server.breaker.succeeded();
                    self.preferred.store(place, Ordering::Relaxed);
                    self.count("ok");
                    return Ok(answer);
                }
                Ok(Err(error)) if !C::is_unavailable(&error) => {
                    server.breaker.succeeded();
                    self.count("failed");
                    return Err(failed(action)(error));
                }
                Ok(Err(error)) => IndexError::Unavailable { action, source: error.into() },
                Err(_) => unavailable(action, format!("no answer within {limit:?}")),
            };
            // One that says what it lacks is not left alone: a query node of many may be away.
            if is_answer::<C>(&error) {
                server.breaker.succeeded();
            } else {
                server.breaker.failed(Instant::now(), rand::random());
            }
            self.preferred.store((place + 1) % self.all.len(), Ordering::Relaxed);
            self.count("unavailable");
            outcome = Some(error);
        }
        Err(outcome.unwrap_or_else(|| {
            self.count("refused");
            unavailable(action, "no server answered lately".to_owned())
        }))
    }

    /// Makes a call that reads from a collection, and as many as `hedges` more beside it while there
    /// is no answer: the first one counts. A collection that is not loaded, as after a restart of
    /// some servers, is loaded first. A server that says that it cannot for the moment is asked again.
    pub async fn read<T, F>(
        &self,
        hedges: usize,
        action: &'static str,
        collection: &str,
        work: impl Fn(C) -> F,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, C::Error>>,
    {
        match self.hedged(hedges, action, &work).await {
            Err(error) if client_error(&error).is_some_and(C::is_not_loaded) => {
                self.load(collection).await?;
                self.hedged(hedges, action, &work).await
            }
            answer => answer,
        }
    }

    /// # Source
    /// Dean and Barroso 2013, "The Tail at Scale", section "Within-Request Short-Term Adaptations":
    /// hedged requests.
    async fn hedged<T, F>(
        &self,
        hedges: usize,
        action: &'static str,
        work: &impl Fn(C) -> F,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, C::Error>>,
    {
        let deadline = Instant::now() + self.options.timeout;
        let pause = self.options.timeout.mul_f64(HEDGE_AFTER);
        let call = |others| self.call_until(deadline, others, action, work);
        let mut calls = FuturesUnordered::from_iter([call(0)]);
        let (mut permits, mut retries) = (Vec::new(), 0);
        loop {
            tokio::select! {
                Some(answer) = calls.next() => match answer {
                    Err(IndexError::Unavailable { .. }) if !calls.is_empty() => {}
                    Err(error) if is_answer::<C>(&error) && retries < RETRIES => {
                        sleep(jittered(RETRY_PAUSE * (1 << retries))).await;
                        retries += 1;
                        calls.push(call(0));
                    }
                    answer => return answer,
                },
                () = sleep(pause), if permits.len() < hedges => {
                    if let Ok(permit) = self.hedges.try_acquire() {
                        permits.push(permit);
                        self.metrics.milvus_hedges.inc();
                        calls.push(call(permits.len()));
                    }
                }
            }
        }
    }

    /// Loads a collection and waits until it can be searched.
    pub async fn load(&self, collection: &str) -> Result<(), IndexError> {
        self.call("load", |client| client.load(collection.to_owned(), &self.options)).await
    }

    /// Whether an answer was too large for the client: fewer rows would do.
    pub fn is_too_large(error: &IndexError) -> bool {
        client_error(error).is_some_and(C::is_too_large)
    }

    /// Whether any server answers now. Past the breakers: a check must neither take the one trial
    /// that they allow nor open them.
    pub async fn health(&self) -> Result<(), IndexError> {
        let limit = self.options.timeout;
        let asked = self
            .all
            .iter()
            .map(|server| Box::pin(async { server.client(&self.options).await?.health().await }));
        match timeout(limit, futures::future::select_ok(asked)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                Err(IndexError::Unavailable { action: "check", source: error.into() })
            }
            Err(_) => Err(unavailable("check", format!("no answer within {limit:?}"))),
        }
    }

    fn admitted(&self, skip: usize) -> Option<(usize, &Server<C>)> {
        let (first, now) = (self.preferred.load(Ordering::Relaxed) + skip, Instant::now());
        (0..self.all.len())
            .map(|i| (first + i) % self.all.len())
            .map(|place| (place, &self.all[place]))
            .find(|(_, server)| server.breaker.admit(now).is_ok())
    }

    fn count(&self, result: &str) {
        self.metrics.milvus_requests.with_label_values(&[result]).inc();
    }
}

impl<C: Client> Server<C> {
    async fn client(&self, options: &MilvusOptions) -> Result<C, C::Error> {
        self.client.get_or_try_init(|| C::connect(&self.endpoint, options)).await.cloned()
    }
}

/// What the client library said.
fn client_error<E: std::error::Error + 'static>(error: &IndexError) -> Option<&E> {
    match error {
        IndexError::Io { source, .. } | IndexError::Unavailable { source, .. } => {
            source.downcast_ref()
        }
        _ => None,
    }
}

/// Whether it is that a server answered that it cannot for the moment.
fn is_answer<C: Client>(error: &IndexError) -> bool {
    matches!(error, IndexError::Unavailable { .. }) && client_error(error).is_some_and(C::is_answer)
}

impl Client for ClientV2 {
    type Error = Error;

    async fn connect(endpoint: &str, options: &MilvusOptions) -> Result<Self, Error> {
        let client = Self::new(&config(endpoint, options)).await?;
        let version = client.server_version(GetServerVersionRequest::builder().build()?).await?;
        match too_old(version.version()) {
            Some(reason) => Err(Error::Unexpected(reason)),
            None => Ok(client),
        }
    }

    async fn load(self, collection: String, options: &MilvusOptions) -> Result<(), Error> {
        let request = LoadCollectionRequest::builder()
            .collection_name(collection)
            .replica_number(i32::from(options.replica_number))
            .sync(true)
            .timeout_ms(i64::try_from(options.timeout.as_millis()).unwrap_or(i64::MAX))
            .build();
        match self.load_collection(request?).await {
            Err(error) if is_replica_number_fixed(&error) => Ok(()),
            loaded => loaded,
        }
    }

    async fn health(self) -> Result<(), Error> {
        let request = HasCollectionRequest::builder().collection_name("health").build()?;
        self.has_collection(request).await.map(drop)
    }

    fn is_unavailable(error: &Error) -> bool {
        match innermost(error) {
            Error::Grpc(status) => is_unavailable_status(status.code() as i32),
            Error::Timeout(_) | Error::Cancelled(_) => true,
            Error::Server(error) => match error.code() {
                // 1: not ready, and what older error codes call anything unexpected.
                1 => error.legacy_code() != 1,
                // Not available, out of memory or disk, too many requests; partitions, replicas,
                // channels, segments and nodes that are away, or not all loaded.
                2..=4 | 8 | 9 | 103 | 201 | 202 | 400..=403 | 500..=503 | 600..=604 | 901..=907 => {
                    true
                }
                UNEXPECTED => error.reason().contains(LOST_ANOTHER),
                _ => false,
            },
            _ => false,
        }
    }

    fn is_answer(error: &Error) -> bool {
        matches!(innermost(error), Error::Server(_))
    }

    fn is_not_loaded(error: &Error) -> bool {
        matches!(innermost(error), Error::Server(error) if error.code() == NOT_LOADED)
    }

    fn is_too_large(error: &Error) -> bool {
        matches!(innermost(error), Error::Grpc(status) if is_too_large_status(status.code() as i32))
    }
}

/// Why a server cannot be used by this client; `None` when it can or tells no version.
fn too_old(version: &str) -> Option<String> {
    let mut parts = version.trim_start_matches('v').split(['.', '-']).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return None };
    ((major, minor) < OLDEST).then(|| {
        format!(
            "this is Milvus {version}, which has no full text: set `milvus.client` to v1, or use \
             Milvus {}.{} or newer",
            OLDEST.0, OLDEST.1
        )
    })
}

/// The client library retries for minutes and reports usage unless told otherwise.
fn config(endpoint: &str, options: &MilvusOptions) -> ConnectConfig {
    let mut config = ConnectConfig::new()
        .uri(endpoint)
        .connect_timeout(options.connect_timeout)
        .rpc_timeout(options.timeout)
        .retry(RetryConfig::new().max_attempts(1).max_retry_timeout(options.timeout))
        .telemetry(TelemetryConfig::new().enabled(false));
    if !options.user.is_empty() {
        config = config.username(options.user.as_str()).password(options.password.as_str());
    }
    config
}

/// A pause that is not the same for all servers: half as long to one and a half times as long.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

pub fn failed<E>(action: &'static str) -> impl FnOnce(E) -> IndexError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| IndexError::Io { action, source: error.into() }
}

pub fn unavailable(action: &'static str, reason: String) -> IndexError {
    IndexError::Unavailable { action, source: io::Error::other(reason).into() }
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::RetryExhausted { source, .. } => innermost(source),
        other => other,
    }
}

/// Whether a call that ended with this code may succeed in a moment.
pub fn is_unavailable_status(code: i32) -> bool {
    !matches!(
        code,
        INVALID_ARGUMENT
            | NOT_FOUND
            | ALREADY_EXISTS
            | PERMISSION_DENIED
            | OUT_OF_RANGE
            | UNIMPLEMENTED
            | UNAUTHENTICATED
    )
}

/// Whether a server refuses to load a collection that it has loaded, with another number of replicas.
pub fn is_replica_number_fixed(error: &impl ToString) -> bool {
    error.to_string().contains("change the replica number for loaded")
}

pub fn is_too_large_status(code: i32) -> bool {
    code == OUT_OF_RANGE
}

#[cfg(test)]
mod tests;
