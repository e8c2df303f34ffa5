//! Documents in Postgres, the index in Milvus: each test has a database and a prefix of its own on
//! servers that all share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sextant_server::adapters::documents::postgres::{PostgresOptions, PostgresStore};
use sextant_server::adapters::index::milvus::{Consistency, MilvusIndex, MilvusOptions};
use sextant_server::metrics::Metrics;
use sextant_server::ports::{DocumentStore, IndexedCollection, Outbox, SearchIndex};
use sextant_stack::milvus::MilvusLite;
use sextant_stack::postgres::Postgres;
use tokio::task::spawn_blocking;

/// Whether several servers could use the stores.
pub const SHARED: bool = true;

static PLACES: AtomicU32 = AtomicU32::new(0);

/// Where a test keeps its documents and its index.
pub struct Place {
    database: String,
    milvus: String,
    prefix: String,
}

pub struct Stores {
    pub documents: Arc<dyn DocumentStore>,
    pub outbox: Option<Arc<dyn Outbox>>,
    pub index: Arc<dyn SearchIndex>,
}

impl Place {
    pub async fn new() -> Self {
        let prefix = format!("http{}", PLACES.fetch_add(1, Ordering::Relaxed));
        let postgres = spawn_blocking(Postgres::shared).await.unwrap().unwrap();
        postgres.create_database(&prefix).await.unwrap();
        let milvus = spawn_blocking(MilvusLite::shared).await.unwrap().unwrap().endpoint();
        Self { database: postgres.url(&prefix), milvus, prefix }
    }

    pub async fn open(&self) -> Stores {
        let options = PostgresOptions {
            primary: self.database.clone(),
            replicas: Vec::new(),
            password: None,
            max_connections: 4,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            max_lag: Duration::from_secs(1),
            probe_period: Duration::from_secs(1),
        };
        let documents = PostgresStore::connect(options, Arc::new(Metrics::new())).await.unwrap();
        let documents = Arc::new(documents);
        let outbox = Some(Arc::clone(&documents) as Arc<dyn Outbox>);
        Stores { documents, outbox, index: Arc::new(self.index()) }
    }

    fn index(&self) -> MilvusIndex {
        let options = MilvusOptions {
            endpoints: vec![self.milvus.clone()],
            user: String::new(),
            password: String::new(),
            prefix: self.prefix.clone(),
            replica_number: 1,
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            consistency: Consistency::Strong,
        };
        MilvusIndex::connect(options, Arc::new(Metrics::new())).unwrap()
    }

    /// As when Milvus starts again without its data.
    pub async fn lose_index(&self) {
        let Stores { documents, index, .. } = self.open().await;
        for collection in documents.collections().await.unwrap() {
            index.drop_collection(&IndexedCollection::of(&collection)).await.unwrap();
        }
        documents.close().await;
    }
}
