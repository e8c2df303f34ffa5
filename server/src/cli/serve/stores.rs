//! The stores that the configuration asks for.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::read_secret;
use crate::adapters::cache::redis::{RedisCache, RedisOptions};
use crate::adapters::documents::postgres::{PostgresOptions, PostgresStore};
use crate::adapters::documents::sqlite::SqliteStore;
use crate::adapters::index::local::{LocalIndex, Options};
use crate::adapters::index::milvus::v1::MilvusV1Index;
use crate::adapters::index::milvus::{Consistency, MilvusIndex, MilvusOptions};
use crate::cli::Failure;
use crate::config::{Config, DocumentsKind, IndexKind, MilvusClient};
use crate::metrics::Metrics;
use crate::ports::{DocumentStore, Outbox, SearchIndex, StoreError};

/// Pause between two tries to connect at the start.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

pub struct Stores {
    pub documents: Arc<dyn DocumentStore>,
    /// Where several servers share the documents.
    pub outbox: Option<Arc<dyn Outbox>>,
    pub index: Arc<dyn SearchIndex>,
}

pub async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Stores, Failure> {
    let (documents, outbox): (Arc<dyn DocumentStore>, _) = match config.documents.kind {
        DocumentsKind::Sqlite => {
            let file = config.server.data_dir.join("documents.db");
            (Arc::new(SqliteStore::open(&file).await?), None)
        }
        DocumentsKind::Postgres => {
            let store = Arc::new(connect_postgres(config, metrics).await?);
            (Arc::clone(&store) as _, Some(store as Arc<dyn Outbox>))
        }
    };
    let index: Arc<dyn SearchIndex> = match config.index.kind {
        IndexKind::Local => Arc::new(open_local(config).await?),
        IndexKind::Milvus => connect_milvus(config, metrics)?,
    };
    Ok(Stores { documents, outbox, index })
}

/// Waits for a database that is not there yet: servers and stores are started in any order.
async fn connect_postgres(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<PostgresStore, Failure> {
    let postgres = &config.postgres;
    let password = postgres.password_file.as_deref().map(read_secret).transpose()?;
    let mut told = false;
    loop {
        let options = PostgresOptions {
            primary: postgres.primary.clone(),
            replicas: postgres.replicas.clone(),
            password: password.clone().map(Into::into),
            max_connections: postgres.max_connections,
            connect_timeout: Duration::from_millis(postgres.connect_timeout_ms),
            statement_timeout: Duration::from_millis(postgres.statement_timeout_ms),
            max_lag: Duration::from_millis(postgres.max_lag_ms),
            probe_period: Duration::from_millis(postgres.probe_period_ms),
        };
        match PostgresStore::connect(options, Arc::clone(metrics)).await {
            Err(error @ StoreError::Unavailable { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%error, cause, "waiting for Postgres");
                }
                tokio::time::sleep(CONNECT_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
            }
            connected => return Ok(connected?),
        }
    }
}

fn connect_milvus(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn SearchIndex>, Failure> {
    let milvus = &config.milvus;
    let password = milvus.password_file.as_deref().map(read_secret).transpose()?;
    let options = MilvusOptions {
        endpoints: milvus.endpoints.clone(),
        user: milvus.user.clone(),
        password: password.unwrap_or_default(),
        prefix: milvus.prefix.clone(),
        replica_number: milvus.replica_number,
        timeout: Duration::from_millis(milvus.timeout_ms),
        connect_timeout: Duration::from_millis(milvus.connect_timeout_ms),
        // An answer that lacks the last write must not be kept as that of the new generation.
        consistency: Consistency::Strong,
    };
    let metrics = Arc::clone(metrics);
    Ok(match milvus.client {
        MilvusClient::V1 => Arc::new(MilvusV1Index::connect(options, metrics)?),
        MilvusClient::V2 => Arc::new(MilvusIndex::connect(options, metrics)?),
    })
}

async fn open_local(config: &Config) -> Result<LocalIndex, Failure> {
    let options = Options {
        expansion_search: config.index.expansion_search,
        snapshot_every: config.index.snapshot_every,
        ..Options::default()
    };
    let root = config.server.data_dir.join("index");
    Ok(tokio::task::spawn_blocking(move || LocalIndex::open(&root, options)).await??)
}

pub fn connect_redis(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<RedisCache>>, Failure> {
    let redis = &config.redis;
    if redis.url.is_empty() {
        return Ok(None);
    }
    let password = redis.password_file.as_deref().map(read_secret).transpose()?;
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
