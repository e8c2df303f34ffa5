//! The embedder that the configuration asks for.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::read_secret;
use crate::adapters::embedder::hash::HashEmbedder;
use crate::adapters::embedder::remote::{RemoteEmbedder, RemoteOptions};
use crate::cli::Failure;
use crate::config::{Config, EmbedderConfig, EmbedderKind};
use crate::embedders::Embedders;
use crate::metrics::Metrics;
use crate::ports::{Embedder, Prompts};

const HASH_DIMENSION: usize = 64;
const NEXT_SEED: u8 = 1;
/// Longest wait at the start for an embedding server.
const REMOTE_PATIENCE: Duration = Duration::from_secs(30);

/// Some for each worker.
#[cfg(feature = "torch")]
const FIRST_QUERIES: usize = 8;
#[cfg(feature = "torch")]
const FIRST_PATIENCE: Duration = Duration::from_secs(30);

/// The models of a server: that of `embedder` and, when there is one, that of `next_embedder`.
pub async fn load_all(config: &Config, metrics: &Arc<Metrics>) -> Result<Embedders, Failure> {
    let first = Embedders::from(load(config, 0, metrics).await?);
    let next = &config.next_embedder;
    let Some(kind) = next.kind else { return Ok(first) };
    let mut second = config.clone();
    second.embedder.kind = kind;
    second.embedder.model_dir.clone_from(&next.model_dir);
    second.embedder.model_name.clone_from(&next.model_name);
    second.embedder.query_prompt.clone_from(&next.query_prompt);
    second.embedder.passage_prompt.clone_from(&next.passage_prompt);
    second.embedder.precision = next.precision.unwrap_or(config.embedder.precision);
    second.remote.endpoints.clone_from(&next.endpoints);
    Ok(first.with_next(Some(load(&second, NEXT_SEED, metrics).await?)))
}

async fn load(
    config: &Config,
    seed: u8,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn Embedder>, Failure> {
    match config.embedder.kind {
        EmbedderKind::Hash => {
            warn!("embedder.kind is hash: vectors mean nothing, for tests only");
            let EmbedderConfig { query_prompt, passage_prompt, .. } = config.embedder.clone();
            let prompts = Prompts {
                query: query_prompt.unwrap_or_default(),
                passage: passage_prompt.unwrap_or_default(),
            };
            Ok(Arc::new(HashEmbedder::seeded(HASH_DIMENSION, seed).with_prompts(prompts)))
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

#[cfg(feature = "torch")]
async fn load_torch(config: &Config, metrics: Arc<Metrics>) -> Result<Arc<dyn Embedder>, Failure> {
    use std::time::Instant;

    use crate::adapters::embedder::torch::{TorchEmbedder, TorchOptions};
    use crate::ports::{Class, Urgency};

    let embedder = &config.embedder;
    let options = TorchOptions {
        model_dir: embedder.model_dir.clone().ok_or(
            "`embedder.model_dir`, or `next_embedder.model_dir`, is not set: name the folder with model.safetensors, tokenizer.json and \
             config.json (`make setup` fetches them into ~/.cache/sextant/model)",
        )?,
        model_name: embedder.model_name.clone(),
        query_prompt: embedder.query_prompt.clone(),
        passage_prompt: embedder.passage_prompt.clone(),
        device: embedder.device,
        precision: embedder.precision,
        batching: embedder.batching,
        workers: embedder.workers,
        max_batch_tokens: embedder.max_batch_tokens,
        queue_texts: embedder.queue_texts,
        ..TorchOptions::default()
    };
    let load = move || TorchEmbedder::load(&options, metrics);
    let embedder = tokio::task::spawn_blocking(load).await??;
    // So that the first query finds what is made once, and its weights in the caches.
    for _ in 0..FIRST_QUERIES {
        let deadline = Instant::now() + FIRST_PATIENCE;
        let urgency = Urgency { class: Class::Interactive, deadline };
        embedder.embed(vec!["the first queries of a server".into()], urgency).await?;
    }
    Ok(Arc::new(embedder))
}

#[cfg(not(feature = "torch"))]
async fn load_torch(_: &Config, _: Arc<Metrics>) -> Result<Arc<dyn Embedder>, Failure> {
    Err("this build has no libtorch; set `embedder.kind` to hash, or build with the feature torch"
        .into())
}
