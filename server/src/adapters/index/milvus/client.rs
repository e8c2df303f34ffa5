//! Calls to Milvus: connected when first needed, bounded in time, refused at once while a server
//! is known to be away.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use milvus::v2::error::Error;
use milvus::v2::prelude::{
    ClientV2, ConnectConfig, HasCollectionRequest, LoadCollectionRequest, RetryConfig,
    TelemetryConfig,
};
use rand::Rng;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::MilvusOptions;
use crate::breaker::{Breaker, BreakerOptions};
use crate::metrics::Metrics;
use crate::ports::IndexError;

/// Calls in a row that find a server away before it is left alone.
const FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// Every call may be made twice: on another server where there is one, else on a new connection.
const ATTEMPTS: usize = 2;
/// As in `tonic::Code`: the server's answer would be the same again.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAUTHENTICATED: i32 = 16;
/// Milvus's own code.
const NOT_LOADED: i32 = 101;

/// One cluster, behind one address or several.
pub struct Servers {
    all: Vec<Server>,
    /// The server that answered last.
    preferred: AtomicUsize,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

struct Server {
    config: ConnectConfig,
    client: OnceCell<ClientV2>,
    breaker: Breaker,
}

impl Servers {
    pub fn new(options: &MilvusOptions, metrics: Arc<Metrics>) -> Self {
        let breaker = BreakerOptions { failures: FAILURES, pause: PAUSE, trial: options.timeout };
        let servers = options.endpoints.iter().map(|endpoint| Server {
            config: config(endpoint, options),
            client: OnceCell::new(),
            breaker: Breaker::new(breaker),
        });
        Self {
            all: servers.collect(),
            preferred: AtomicUsize::new(0),
            timeout: options.timeout,
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
        mut work: impl FnMut(ClientV2) -> F,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut outcome = None;
        for attempt in 0..ATTEMPTS {
            let Some((place, server)) = self.admitted() else { break };
            // Time for another server, when this one does not answer at all.
            let share = if attempt == 0 && self.all.len() > 1 { 2 } else { 1 };
            let limit = deadline.saturating_duration_since(Instant::now()) / share;
            // The library's futures are large: in a box they need no more than a pointer here.
            let answer = Box::pin(async { work(server.client().await?).await });
            let answer = timeout(limit, answer).await;
            let error = match answer {
                Ok(Ok(answer)) => {
                    server.breaker.succeeded();
                    self.count("ok");
                    return Ok(answer);
                }
                Ok(Err(error)) if !is_unavailable(&error) => {
                    server.breaker.succeeded();
                    self.count("failed");
                    return Err(failed(action)(error));
                }
                Ok(Err(error)) => IndexError::Unavailable { action, source: error.into() },
                Err(_) => unavailable(action, format!("no answer within {limit:?}")),
            };
            server.breaker.failed(Instant::now(), rand::random());
            self.preferred.store((place + 1) % self.all.len(), Ordering::Relaxed);
            self.count("unavailable");
            outcome = Some(error);
        }
        Err(outcome.unwrap_or_else(|| {
            self.count("refused");
            unavailable(action, "no server answered lately".to_owned())
        }))
    }

    /// Makes a call that reads from a collection. One that is not loaded, as after a restart of
    /// some servers, is loaded first.
    pub async fn read<T, F>(
        &self,
        action: &'static str,
        collection: &str,
        mut work: impl FnMut(ClientV2) -> F,
    ) -> Result<T, IndexError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match self.call(action, &mut work).await {
            Err(error) if is_not_loaded(&error) => {
                self.load(collection).await?;
                self.call(action, work).await
            }
            answer => answer,
        }
    }

    /// Loads a collection and waits until it can be searched.
    pub async fn load(&self, collection: &str) -> Result<(), IndexError> {
        let patience = i64::try_from(self.timeout.as_millis()).unwrap_or(i64::MAX);
        self.call("load", |client| {
            let request = LoadCollectionRequest::builder()
                .collection_name(collection)
                .sync(true)
                .timeout_ms(patience)
                .build();
            async move { client.load_collection(request?).await }
        })
        .await
    }

    /// Whether any server answers now. Past the breakers: a check must neither take the one trial
    /// that they allow nor open them.
    pub async fn health(&self) -> Result<(), IndexError> {
        let limit = self.timeout;
        let asked =
            futures::future::select_ok(self.all.iter().map(|server| Box::pin(server.health())));
        match timeout(limit, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                Err(IndexError::Unavailable { action: "check", source: error.into() })
            }
            Err(_) => Err(unavailable("check", format!("no answer within {limit:?}"))),
        }
    }

    fn admitted(&self) -> Option<(usize, &Server)> {
        let (first, now) = (self.preferred.load(Ordering::Relaxed), Instant::now());
        (0..self.all.len())
            .map(|i| (first + i) % self.all.len())
            .map(|place| (place, &self.all[place]))
            .find(|(_, server)| server.breaker.admit(now).is_ok())
    }

    fn count(&self, result: &str) {
        self.metrics.milvus_requests.with_label_values(&[result]).inc();
    }
}

impl Server {
    async fn client(&self) -> Result<ClientV2, Error> {
        self.client.get_or_try_init(|| ClientV2::new(&self.config)).await.cloned()
    }

    /// A question that every server answers, whatever it holds.
    async fn health(&self) -> Result<(), Error> {
        let request = HasCollectionRequest::builder().collection_name("health").build()?;
        self.client().await?.has_collection(request).await.map(drop)
    }
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

/// Whether an answer was too large for the client: fewer rows would do.
pub fn is_too_large(error: &IndexError) -> bool {
    let IndexError::Io { source, .. } = error else { return false };
    let error = source.downcast_ref::<Error>();
    matches!(error.map(innermost), Some(Error::Grpc(status)) if status.code() as i32 == OUT_OF_RANGE)
}

/// Whether a server that is there has not loaded the collection.
fn is_not_loaded(error: &IndexError) -> bool {
    let (IndexError::Io { source, .. } | IndexError::Unavailable { source, .. }) = error else {
        return false;
    };
    let error = source.downcast_ref::<Error>();
    matches!(error.map(innermost), Some(Error::Server(error)) if error.code() == NOT_LOADED)
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::RetryExhausted { source, .. } => innermost(source),
        other => other,
    }
}

/// Whether the same call may succeed in a moment.
fn is_unavailable(error: &Error) -> bool {
    match innermost(error) {
        Error::Grpc(status) => !matches!(
            status.code() as i32,
            INVALID_ARGUMENT
                | NOT_FOUND
                | ALREADY_EXISTS
                | PERMISSION_DENIED
                | OUT_OF_RANGE
                | UNIMPLEMENTED
                | UNAUTHENTICATED
        ),
        Error::Timeout(_) | Error::Cancelled(_) => true,
        Error::Server(error) => match error.code() {
            // 1: not ready, and what older error codes call anything unexpected.
            1 => error.legacy_code() != 1,
            // Not available, out of memory or disk, too many requests; partitions, replicas,
            // channels, segments and nodes that are away, or not all loaded.
            2..=4 | 8 | 9 | 103 | 201 | 202 | 400..=403 | 500..=503 | 600..=604 | 901..=907 => true,
            _ => false,
        },
        _ => false,
    }
}
