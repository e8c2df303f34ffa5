//! The index in servers of Milvus that have no full text: those before 2.5.
//!
//! Made and searched as in [`super`], with two differences: the calls are those of the library's
//! first client, as the present one does not understand the answers of servers before 2.4; and
//! searches by words are refused.

mod client;
mod collections;
mod reads;
mod rows;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use milvus::v1::client::Client as ClientV1;
use milvus::v1::mutate::{DeleteOptions, UpsertOptions};

use super::client::{Servers, failed, unavailable};
use super::facets::Counts;
use super::filter::Expression;
use super::search::{Reads, Wanted};
use super::{DELETES, MilvusOptions, OpenCollection, distinct, names};
use crate::domain::fusion::Scored;
use crate::domain::{Filter, Key};
use crate::metrics::Metrics;
use crate::ports::{
    Changes, Facets, IndexError, IndexedCollection, IndexedDocument, SearchIndex, Version,
};

const NO_FULL_TEXT: &str = "cannot be hybrid or lexical here: this Milvus is too old for full \
                            text, which needs Milvus 2.5 or newer; search with mode dense";

/// The [`SearchIndex`] in such a Milvus.
pub struct MilvusV1Index {
    servers: Servers<ClientV1>,
    options: MilvusOptions,
    open: RwLock<HashMap<i64, Arc<OpenCollection>>>,
    metrics: Arc<Metrics>,
}

impl MilvusV1Index {
    /// Connects with the first use, so that a server starts while Milvus is away.
    ///
    /// # Errors
    /// When there is no endpoint.
    pub fn connect(options: MilvusOptions, metrics: Arc<Metrics>) -> Result<Self, IndexError> {
        if options.endpoints.is_empty() {
            return Err(failed("connect to")(io::Error::other("no endpoint is given")));
        }
        let servers = Servers::new(&options, Arc::clone(&metrics));
        Ok(Self { servers, options, open: RwLock::default(), metrics })
    }

    fn get(&self, id: i64) -> Result<Arc<OpenCollection>, IndexError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).cloned().ok_or(IndexError::NotOpen(id))
    }

    async fn delete(&self, name: &str, keys: &[Key]) -> Result<(), IndexError> {
        for keys in keys.chunks(DELETES) {
            let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
            let keys = format!("{} in [{}]", super::rows::KEY, keys.join(", "));
            let keys = &DeleteOptions::with_filter(keys);
            self.servers
                .call("change", |client| async move { client.delete(name, keys).await })
                .await?;
        }
        Ok(())
    }

    async fn upsert(
        &self,
        collection: &OpenCollection,
        documents: &[&IndexedDocument],
    ) -> Result<(), IndexError> {
        let dimension = i64::try_from(collection.dimension).map_err(failed("change"))?;
        for batch in super::rows::split(documents) {
            let columns = rows::columns(batch, dimension);
            self.servers
                .call("change", |client| {
                    let (name, columns) = (collection.name.as_str(), columns.clone());
                    async move { client.upsert(name, columns, UpsertOptions::new()).await }
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

#[async_trait]
impl SearchIndex for MilvusV1Index {
    async fn open(&self, collection: &IndexedCollection) -> Result<i64, IndexError> {
        let (prefix, id) = (self.options.prefix.as_str(), collection.id);
        let made = collections::open(&self.servers, prefix, collection).await?;
        let opened = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            let (name, dimension) = (names::name(prefix, collection), collection.dimension);
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
        self.delete(&collection.name, &changes.deletes).await?;
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

    fn has_full_text(&self) -> bool {
        false
    }

    async fn matching(
        &self,
        collection: i64,
        _: &str,
        _: Option<Arc<Filter>>,
        _: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        self.get(collection)?;
        Err(IndexError::Unsupported(NO_FULL_TEXT))
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
        if text.is_some() {
            return Err(IndexError::Unsupported(NO_FULL_TEXT));
        }
        let expression = Expression::of(filter.as_deref());
        let mut counts = Counts::new(fields);
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
