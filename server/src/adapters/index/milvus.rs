//! An index in Milvus, shared by all servers that are given the same prefix.
//!
//! Vectors are found by HNSW, words by BM25. Both stem the same words as the embedded index does:
//! texts and queries come to Milvus as words that were cut here. Of a search that Milvus answers
//! with less than it holds, the rest is made from the rows themselves, and an empty answer from a
//! server that lost its data for a moment counts as no answer.
//!
//! Known limit: at most 16,384 hits of one search; among more documents with equal scores, which of
//! them are hits is up to Milvus.

mod client;
mod collections;
mod facets;
mod filter;
mod names;
mod reads;
mod rows;
mod search;
pub mod v1;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use milvus::v2::prelude::{ConsistencyLevel, DeleteRequest, InsertRequest, UpsertRequest};

use self::client::{Servers, failed, unavailable};
use self::filter::Expression;
use self::search::{Reads, Wanted};
use super::words::QueryWords;
use crate::domain::fusion::Scored;
use crate::domain::{Filter, Key};
use crate::metrics::Metrics;
use crate::ports::{
    Changes, Facets, IndexError, IndexedCollection, IndexedDocument, SearchIndex, Version,
};

/// Keys of one request to delete.
const DELETES: usize = 512;
/// How long a collection that had documents may seem empty before that is believed: a query node
/// that was lost is replaced sooner.
const EMPTY_BELIEVED_AFTER: Duration = Duration::from_mins(1);

/// Where Milvus is and how it is used.
#[derive(Clone)]
pub struct MilvusOptions {
    /// Addresses of one cluster, as in `http://milvus:19530`.
    pub endpoints: Vec<String>,
    /// Empty for none.
    pub user: String,
    pub password: String,
    /// Begins the name of everything that is made in Milvus.
    pub prefix: String,
    /// Copies of a collection in memory, on different query nodes.
    pub replica_number: u16,
    /// Longest time that a search, or one step of a change, may take.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    pub consistency: Consistency,
}

impl fmt::Debug for MilvusOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MilvusOptions")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("replica_number", &self.replica_number)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("consistency", &self.consistency)
            .finish_non_exhaustive()
    }
}

/// What a search sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Every change that was applied before it began, by whichever server.
    Strong,
    /// Changes may take some seconds, which makes searches faster.
    Bounded,
}

impl From<Consistency> for ConsistencyLevel {
    fn from(consistency: Consistency) -> Self {
        match consistency {
            Consistency::Strong => Self::Strong,
            Consistency::Bounded => Self::Bounded,
        }
    }
}

/// The [`SearchIndex`] in Milvus.
pub struct MilvusIndex {
    servers: Servers,
    options: MilvusOptions,
    open: RwLock<HashMap<i64, Arc<OpenCollection>>>,
    query_words: QueryWords,
    metrics: Arc<Metrics>,
}

struct OpenCollection {
    id: i64,
    /// In Milvus. Not the alias: that may change over to another index in the middle of a search.
    name: String,
    dimension: usize,
    /// When documents were last seen in it; `None` after a deletion.
    seen: Mutex<Option<Instant>>,
}

impl OpenCollection {
    fn check(&self, vector: &[f32]) -> Result<(), IndexError> {
        if vector.len() == self.dimension {
            return Ok(());
        }
        let (wanted, given) = (self.dimension, vector.len());
        let reason = format!("a vector has {given} numbers instead of {wanted}");
        Err(failed("use")(io::Error::other(reason)))
    }

    fn set_seen(&self, seen: Option<Instant>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Whether it cannot be that it is empty.
    fn had_documents_lately(&self) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|seen| seen.elapsed() < EMPTY_BELIEVED_AFTER)
    }
}

impl MilvusIndex {
    /// Connects with the first use, so that a server starts while Milvus is away.
    ///
    /// # Errors
    /// When there is no endpoint.
    pub fn connect(options: MilvusOptions, metrics: Arc<Metrics>) -> Result<Self, IndexError> {
        if options.endpoints.is_empty() {
            return Err(failed("connect to")(io::Error::other("no endpoint is given")));
        }
        Ok(Self {
            servers: Servers::new(&options, Arc::clone(&metrics)),
            options,
            open: RwLock::default(),
            query_words: QueryWords::new(),
            metrics,
        })
    }

    fn get(&self, id: i64) -> Result<Arc<OpenCollection>, IndexError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).cloned().ok_or(IndexError::NotOpen(id))
    }

    async fn delete(&self, collection: &OpenCollection, keys: &[Key]) -> Result<(), IndexError> {
        for keys in keys.chunks(DELETES) {
            let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
            let keys = format!("{} in [{}]", rows::KEY, keys.join(", "));
            self.servers
                .call("change", |client| {
                    let request = DeleteRequest::builder()
                        .collection_name(collection.name.as_str())
                        .filter(keys.as_str())
                        .build();
                    async move { client.delete(request?).await }
                })
                .await?;
        }
        Ok(())
    }

    async fn upsert(
        &self,
        collection: &OpenCollection,
        documents: &[&IndexedDocument],
    ) -> Result<(), IndexError> {
        for columns in rows::batches(documents) {
            self.servers
                .call("change", |client| {
                    let insert = InsertRequest::builder()
                        .collection_name(collection.name.as_str())
                        .columns(columns.clone())
                        .build();
                    async move {
                        client.upsert(UpsertRequest::builder().insert(insert?).build()?).await
                    }
                })
                .await?;
        }
        Ok(())
    }

    /// Bounds a search that takes several calls.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, IndexError>>,
    ) -> Result<T, IndexError> {
        let limit = self.options.timeout;
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(unavailable("search", format!("no answer within {limit:?}"))),
        }
    }
}

/// Of documents with the same key the last.
fn distinct(changes: &Changes) -> Vec<&IndexedDocument> {
    let mut seen = HashSet::with_capacity(changes.upserts.len());
    changes.upserts.iter().rev().filter(|upsert| seen.insert(upsert.key)).collect()
}

#[async_trait]
impl SearchIndex for MilvusIndex {
    async fn open(&self, collection: &IndexedCollection) -> Result<i64, IndexError> {
        let (prefix, id) = (self.options.prefix.as_str(), collection.id);
        let made = collections::open(&self.servers, prefix, collection).await?;
        let opened = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            let name = names::name(prefix, collection);
            let dimension = collection.dimension;
            let new = || Arc::new(OpenCollection { id, name, dimension, seen: Mutex::new(None) });
            Arc::clone(open.entry(id).or_insert_with(new))
        };
        if made {
            // Whatever it had before is lost.
            opened.set_seen(None);
            return Ok(0);
        }
        let generation = collections::generation(&self.servers, prefix, id).await?;
        if generation == 0 {
            // Not to be believed of a server that does not see the documents that it has.
            self.count(id).await?;
        }
        Ok(generation)
    }

    async fn apply(&self, collection: i64, changes: Changes) -> Result<(), IndexError> {
        let collection = self.get(collection)?;
        for upsert in &changes.upserts {
            collection.check(&upsert.vector)?;
        }
        if !changes.deletes.is_empty() {
            collection.set_seen(None);
        }
        self.delete(&collection, &changes.deletes).await?;
        self.upsert(&collection, &distinct(&changes)).await?;
        // Another server may have come further.
        let (prefix, id) = (self.options.prefix.as_str(), collection.id);
        if collections::generation(&self.servers, prefix, id).await? < changes.generation {
            collections::set_generation(&self.servers, prefix, id, changes.generation).await?;
        }
        Ok(())
    }

    async fn nearest(
        &self,
        collection: i64,
        vector: Arc<[f32]>,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let collection = self.get(collection)?;
        collection.check(&vector)?;
        let expression = Expression::of(filter.as_deref());
        match expression.text() {
            Some(expression) if limit > 0 => {
                let wanted = Wanted::Near(vector.to_vec());
                self.within(self.find(&collection, &wanted, expression, limit)).await
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn matching(
        &self,
        collection: i64,
        text: &str,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let collection = self.get(collection)?;
        let words = self.query_words.of(text);
        let expression = Expression::of(filter.as_deref());
        match expression.text() {
            Some(expression) if limit > 0 && !words.is_empty() => {
                let wanted = Wanted::Words(words.join(" "));
                self.within(self.find(&collection, &wanted, expression, limit)).await
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn facets(
        &self,
        collection: i64,
        text: Option<&str>,
        filter: Option<Arc<Filter>>,
        fields: &[String],
        values: usize,
    ) -> Result<Facets, IndexError> {
        let collection = self.get(collection)?;
        let mut expression = Expression::of(filter.as_deref());
        if let Some(text) = text {
            expression = expression.with_words(&self.query_words.of(text));
        }
        let mut counts = facets::Counts::new(fields);
        if let Some(expression) = expression.text() {
            self.within(self.count_values(&collection, expression, &mut counts)).await?;
        }
        Ok(counts.most_frequent(values))
    }

    async fn versions(
        &self,
        collection: i64,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Vec<Version>, IndexError> {
        let collection = self.get(collection)?;
        self.within(self.versions_after(&collection, after, limit)).await
    }

    async fn count(&self, collection: i64) -> Result<u64, IndexError> {
        let collection = self.get(collection)?;
        self.within(self.count_all(&collection)).await
    }

    async fn publish(&self, collection: &IndexedCollection) -> Result<(), IndexError> {
        collections::publish(&self.servers, &self.options.prefix, collection).await
    }

    async fn drop_collection(&self, collection: &IndexedCollection) -> Result<(), IndexError> {
        {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            open.remove(&collection.id);
        }
        collections::drop(&self.servers, &self.options.prefix, collection).await
    }

    async fn health(&self) -> Result<(), IndexError> {
        self.servers.health().await
    }

    async fn close(&self) -> Result<(), IndexError> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}
