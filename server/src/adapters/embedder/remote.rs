//! The model of another server, over its `POST /v1/embeddings`.
//!
//! Texts of concurrent callers are joined as in the local queue, see [`queue`]; which server is
//! asked, and when a second one, is in [`endpoints`].

mod call;
mod client;
mod dispatch;
mod endpoints;
mod queue;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::config::RemoteConfig;
use crate::metrics::Metrics;
use crate::ports::{EmbedError, Embedder, Embedding, ModelInfo, Urgency};
pub use client::BuildError;
use client::{BODY_OVERHEAD, Client, Info, ServerLimits};
use dispatch::{Dispatch, refused};
use endpoints::Endpoints;
use queue::{Limits, Queue};

/// Longest wait for a server to say what it serves.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often servers that are not well are probed; shifted at random, so that many clients do not
/// come at once.
const PROBE_PERIOD: Duration = Duration::from_secs(1);

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
    shared: Arc<Dispatch>,
    probing: JoinHandle<()>,
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
        let shared = Arc::new(Dispatch {
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
                Ok(Info {
                    model: Some(version),
                    max_tokens: Some(max_tokens),
                    device,
                    prompts,
                    limits,
                }) => {
                    let device = format!("remote {}", device.as_deref().unwrap_or("unknown"));
                    return Ok((ModelInfo { version, max_tokens, device, prompts }, limits));
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
