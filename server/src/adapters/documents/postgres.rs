//! Documents in Postgres, shared by many servers: written to the primary, which is found again
//! after a failover; what searches read comes from replicas that keep up, else from the primary.

mod fault;
mod hosts;
mod indexes;
mod lag;
mod nodes;
mod outbox;
mod read;
mod state;
mod write;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{ConnectOptions, Connection, Row};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{as_limit, damaged, to_json, vector_from_bytes, vector_to_bytes};
use crate::domain::{Collection, CollectionName, Document, EmbeddingVersion, Key, Schema};
use crate::metrics::Metrics;
use crate::ports::{
    Backlog, Changes, Claimed, Committed, DocumentStore, DocumentWrite, Done, Expected, Failure,
    Indexes, Missing, Outbox, Progress, QueryCount, QuerySelection, QueryStatistics, SetAside,
    StoreError, StoredDocument, StoredEmbedding, StoredIndex,
};
use nodes::{Error, Nodes};
use write::Upserted;

/// Longest time to bring the tables up to date, or to delete a collection.
const LONG: Duration = Duration::from_mins(1);

/// See `postgres` in the configuration.
pub struct PostgresOptions {
    /// Connection string of the hosts of which one accepts writes.
    pub primary: String,
    pub replicas: Vec<String>,
    /// For connection strings without one.
    pub password: Option<Password>,
    /// To each node.
    pub max_connections: u32,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
    pub max_lag: Duration,
    pub probe_period: Duration,
}

/// A password that is not shown.
pub struct Password(String);

impl From<String> for Password {
    fn from(password: String) -> Self {
        Self(password)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is known of a node, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// `host:port`
    pub node: String,
    /// As configured: `primary` for every host of which one accepts writes, or `replica`.
    pub role: &'static str,
    /// As found: `primary`, `standby`, `lagging`, `down` or `unknown`.
    pub state: &'static str,
}

pub struct PostgresStore {
    nodes: Arc<Nodes>,
    /// Probes, which end with the store.
    tasks: Mutex<JoinSet<()>>,
    metrics: Arc<Metrics>,
}

impl PostgresStore {
    /// Finds the primary and brings its tables up to date. Migrations only add, so servers of two
    /// versions work side by side; of servers that start together one migrates.
    ///
    /// # Errors
    /// `Unavailable` when no host accepts writes now.
    pub async fn connect(
        options: PostgresOptions,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let action = "connect to the documents";
        let nodes = Nodes::new(&options, Arc::clone(&metrics))
            .map_err(|fault| StoreError::Query { action, source: fault.into() })?;
        let nodes = Arc::new(nodes);
        let mut tasks = JoinSet::new();
        for index in 0..nodes.len() {
            tasks.spawn(Arc::clone(&nodes).watch(index));
        }
        migrate(&nodes).await.map_err(failed("migrate the documents"))?;
        Ok(Self { nodes, tasks: Mutex::new(tasks), metrics })
    }

    /// The state of every node.
    pub fn status(&self) -> Vec<NodeStatus> {
        let states = self.nodes.states().into_iter();
        states
            .map(|(node, role, state)| NodeStatus {
                node,
                role: role.as_str(),
                state: state.as_str(),
            })
            .collect()
    }

    /// Something could not be asked from the primary and was answered without.
    fn primary_missed(&self, error: &Error) {
        tracing::debug!(?error, "read from a replica only");
        self.metrics.background_failures.with_label_values(&["postgres_read_primary"]).inc();
    }
}

async fn migrate(nodes: &Nodes) -> Result<(), Error> {
    let options = nodes.primary_options().await?;
    // A server that starts may wait for another that migrates.
    let options = options.options([("statement_timeout", "0")]);
    let migration = async {
        let mut connection = options.connect().await?;
        let mut migrator = sqlx::migrate!("migrations/postgres");
        // What a newer server added is no fault.
        migrator.set_ignore_missing(true);
        migrator.run(&mut connection).await?;
        connection.close().await
    };
    match timeout(LONG, migration).await {
        Ok(result) => result.map_err(|error| match fault::fault(&error) {
            fault::Fault::Statement => Error::Statement(error),
            _ => Error::Unavailable(Box::new(error)),
        }),
        Err(elapsed) => Err(Error::Unavailable(elapsed.into())),
    }
}

fn failed(action: &'static str) -> impl FnOnce(Error) -> StoreError {
    move |error| match error {
        Error::Unavailable(source) => StoreError::Unavailable { action, source },
        Error::Statement(source) => StoreError::Query { action, source: Box::new(source) },
    }
}

/// The same for an operation that finds no row when the collection is gone.
fn failed_in_collection(action: &'static str) -> impl FnOnce(Error) -> StoreError {
    move |error| match error {
        Error::Statement(sqlx::Error::RowNotFound) => StoreError::NoCollection,
        error => failed(action)(error),
    }
}

/// Whether Postgres can hold a text. In JSON a NUL is written as an escape, which it can.
fn storable(text: &str) -> bool {
    !text.contains('\0')
}

fn collection_from_row(row: &PgRow) -> Result<Collection, sqlx::Error> {
    let name: String = row.try_get("name")?;
    Ok(Collection {
        id: row.try_get("id")?,
        name: CollectionName::parse(&name).map_err(|error| {
            damaged(std::io::Error::other(format!("collection name {name:?}: {error}")))
        })?,
        schema: serde_json::from_str(row.try_get("schema")?).map_err(damaged)?,
        embedding: serde_json::from_str(row.try_get("embedding")?).map_err(damaged)?,
        index: row.try_get("index_id")?,
        generation: row.try_get("generation")?,
        visible_generation: row.try_get("visible_generation")?,
        documents: row.try_get::<i64, _>("documents")?.unsigned_abs(),
        created_at_ms: row.try_get("created_at_ms")?,
    })
}

fn document_from_row(row: &PgRow) -> Result<StoredDocument, sqlx::Error> {
    Ok(StoredDocument {
        key: row.try_get("key")?,
        document: serde_json::from_str(row.try_get("body")?).map_err(damaged)?,
        generation: row.try_get("generation")?,
        updated_at_ms: row.try_get("updated_at_ms")?,
        truncated: row.try_get("truncated")?,
    })
}

/// Runs a function of one of the modules on the primary.
macro_rules! on_primary {
    ($self:ident, $($function:ident)::+ ($($argument:expr),*)) => {
        on_primary!($self, $self.nodes.patience(), $($function)::+ ($($argument),*))
    };
    ($self:ident, $limit:expr, $($function:ident)::+ ($($argument:expr),*)) => {
        $self.nodes
            .on_primary($limit, |pool| async move { $($function)::+(&pool, $($argument),*).await })
            .await
    };
}

/// Runs one on a replica, else on the primary.
macro_rules! read {
    ($self:ident, $($function:ident)::+ ($($argument:expr),*)) => {
        $self.nodes.read(|pool| async move { $($function)::+(&pool, $($argument),*).await }).await
    };
}

#[async_trait]
impl DocumentStore for PostgresStore {
    async fn collections(&self) -> Result<Vec<Collection>, StoreError> {
        let (collections, _) =
            read!(self, read::collections()).map_err(failed("list collections"))?;
        Ok(collections)
    }

    async fn collection(&self, name: &CollectionName) -> Result<Option<Collection>, StoreError> {
        on_primary!(self, read::collection(name)).map_err(failed("read a collection"))
    }

    async fn create_collection(
        &self,
        name: &CollectionName,
        schema: &Schema,
        embedding: &EmbeddingVersion,
    ) -> Result<Collection, StoreError> {
        match on_primary!(self, write::create_collection(name, schema, embedding)) {
            Err(Error::Statement(sqlx::Error::Database(error))) if error.is_unique_violation() => {
                Err(StoreError::Exists)
            }
            result => result.map_err(failed("create a collection")),
        }
    }

    async fn update_schema(&self, collection: i64, schema: &Schema) -> Result<(), StoreError> {
        let conflict = on_primary!(self, write::update_schema(collection, schema))
            .map_err(failed_in_collection("change a collection"))?;
        conflict.map_or(Ok(()), |conflict| Err(StoreError::Conflict(conflict)))
    }

    async fn delete_collection(&self, collection: i64) -> Result<bool, StoreError> {
        on_primary!(self, LONG, write::delete_collection(collection))
            .map_err(failed("delete a collection"))
    }

    async fn upsert(
        &self,
        collection: i64,
        writes: &[DocumentWrite],
        schema: Option<&Schema>,
    ) -> Result<Committed, StoreError> {
        match on_primary!(self, write::upsert(collection, writes, schema))
            .map_err(failed_in_collection("write documents"))?
        {
            Upserted::Committed(committed) => Ok(committed),
            Upserted::Conflict(conflict) => Err(StoreError::Conflict(conflict)),
        }
    }

    async fn delete(&self, collection: i64, ids: &[String]) -> Result<Committed, StoreError> {
        on_primary!(self, write::delete(collection, ids))
            .map_err(failed_in_collection("delete documents"))
    }

    async fn embedded(
        &self,
        collection: i64,
        ids: &[String],
    ) -> Result<Vec<Option<StoredEmbedding>>, StoreError> {
        on_primary!(self, read::embedded(collection, ids)).map_err(failed("read vectors"))
    }

    async fn get(&self, collection: i64, id: &str) -> Result<Option<StoredDocument>, StoreError> {
        let (found, from_replica) =
            read!(self, read::get(collection, id)).map_err(failed("read a document"))?;
        if found.is_some() || !from_replica {
            return Ok(found);
        }
        // It may have been written a moment ago.
        let limit = self.nodes.read_patience();
        Ok(on_primary!(self, limit, read::get(collection, id)).unwrap_or_else(|error| {
            self.primary_missed(&error);
            None
        }))
    }

    async fn fetch(
        &self,
        collection: i64,
        keys: &[Key],
    ) -> Result<Vec<Option<Document>>, StoreError> {
        let (mut found, from_replica) =
            read!(self, read::fetch(collection, keys)).map_err(failed("read documents"))?;
        let missing: Vec<usize> = (0..keys.len()).filter(|&i| found[i].is_none()).collect();
        if missing.is_empty() || !from_replica {
            return Ok(found);
        }
        // Documents that were written a moment ago, or deleted.
        let keys: &[Key] = &missing.iter().map(|&i| keys[i]).collect::<Vec<_>>();
        match on_primary!(self, self.nodes.read_patience(), read::fetch(collection, keys)) {
            Ok(documents) => {
                for (i, document) in missing.into_iter().zip(documents) {
                    found[i] = document;
                }
            }
            Err(error) => self.primary_missed(&error),
        }
        Ok(found)
    }

    async fn list(
        &self,
        collection: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredDocument>, StoreError> {
        let (documents, _) =
            read!(self, read::list(collection, after, limit)).map_err(failed("list documents"))?;
        Ok(documents)
    }

    async fn changes(
        &self,
        collection: i64,
        generation: i64,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        on_primary!(self, read::changes(collection, generation, limit))
            .map_err(failed("read changes"))
    }

    async fn forget_deletions(&self, collection: i64, generation: i64) -> Result<(), StoreError> {
        on_primary!(self, write::forget_deletions(collection, generation))
            .map_err(failed("forget old deletions"))
    }

    async fn record_queries(&self, counts: &[QueryCount]) -> Result<(), StoreError> {
        on_primary!(self, write::record_queries(counts)).map_err(failed("record queries"))
    }

    async fn queries(
        &self,
        collection: i64,
        selection: QuerySelection<'_>,
        limit: usize,
    ) -> Result<Vec<QueryStatistics>, StoreError> {
        let (queries, _) = read!(self, read::queries(collection, selection, limit))
            .map_err(failed("read the query log"))?;
        Ok(queries)
    }

    async fn mark(&self, name: &str) -> Result<bool, StoreError> {
        on_primary!(self, read::mark(name)).map_err(failed("read a mark"))
    }

    async fn set_mark(&self, name: &str) -> Result<(), StoreError> {
        on_primary!(self, write::set_mark(name)).map_err(failed("set a mark"))
    }

    /// Well when documents can be written; without the primary, replicas may still be read from.
    async fn health(&self) -> Result<(), StoreError> {
        self.nodes.primary().await.map(drop).map_err(failed("reach the primary"))
    }

    async fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.nodes.close().await;
    }
}

#[async_trait]
impl Outbox for PostgresStore {
    async fn claim(
        &self,
        worker: &str,
        models: &[String],
        limit: usize,
        lease: Duration,
    ) -> Result<Option<Claimed>, StoreError> {
        on_primary!(self, outbox::claim(worker, models, limit, lease)).map_err(failed("claim work"))
    }

    async fn complete(
        &self,
        worker: &str,
        collection: i64,
        done: &[Done],
    ) -> Result<i64, StoreError> {
        on_primary!(self, outbox::complete(worker, collection, done))
            .map_err(failed_in_collection("complete work"))
    }

    async fn release(
        &self,
        worker: &str,
        collection: i64,
        keys: &[Key],
        failure: Option<&Failure>,
    ) -> Result<u64, StoreError> {
        on_primary!(self, outbox::release(worker, collection, keys, failure))
            .map_err(failed_in_collection("give work back"))
    }

    async fn progress(
        &self,
        collection: i64,
        generations: RangeInclusive<i64>,
    ) -> Result<Progress, StoreError> {
        let (first, last) = (*generations.start(), *generations.end());
        on_primary!(self, outbox::progress(collection, first, last))
            .map_err(failed("read the progress of a write"))
    }

    async fn set_aside(
        &self,
        collection: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SetAside>, StoreError> {
        on_primary!(self, outbox::set_aside(collection, after, limit))
            .map_err(failed("list what was set aside"))
    }

    async fn retry(&self, collection: i64) -> Result<u64, StoreError> {
        on_primary!(self, outbox::retry(collection))
            .map_err(failed_in_collection("retry what was set aside"))
    }

    async fn enqueue_all(&self, collection: i64) -> Result<u64, StoreError> {
        on_primary!(self, outbox::enqueue_all(collection))
            .map_err(failed_in_collection("leave all documents to the workers"))
    }

    async fn enqueue(&self, collection: i64, keys: &[Key]) -> Result<u64, StoreError> {
        on_primary!(self, outbox::enqueue(collection, keys))
            .map_err(failed_in_collection("leave documents to the workers"))
    }

    async fn expected(
        &self,
        collection: i64,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Expected, StoreError> {
        on_primary!(self, outbox::expected(collection, after, limit))
            .map_err(failed_in_collection("read what the index must have"))
    }

    async fn backlog(&self) -> Result<Backlog, StoreError> {
        on_primary!(self, outbox::backlog()).map_err(failed("count what waits"))
    }
}

#[async_trait]
impl Indexes for PostgresStore {
    async fn indexes(&self, collection: i64) -> Result<Vec<StoredIndex>, StoreError> {
        on_primary!(self, indexes::indexes(collection)).map_err(failed("list indexes"))
    }

    async fn add_index(
        &self,
        collection: i64,
        text_fields: &[String],
        embedding: &EmbeddingVersion,
    ) -> Result<StoredIndex, StoreError> {
        on_primary!(self, indexes::add_index(collection, text_fields, embedding))
            .map_err(failed_in_collection("add an index"))
    }

    async fn missing(&self, index: &StoredIndex, limit: usize) -> Result<Missing, StoreError> {
        on_primary!(self, indexes::missing(index, limit))
            .map_err(failed("read what an index lacks"))
    }

    async fn claim_index(
        &self,
        index: i64,
        builder: &str,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        on_primary!(self, indexes::claim_index(index, builder, lease))
            .map_err(failed("take an index"))
    }

    async fn advance(
        &self,
        index: i64,
        builder: &str,
        generation: i64,
        done: &[Done],
        lease: Duration,
    ) -> Result<bool, StoreError> {
        on_primary!(self, indexes::advance(index, builder, generation, done, lease))
            .map_err(failed("note what an index has"))
    }

    async fn hold(&self, collection: i64, at_most: Duration) -> Result<(), StoreError> {
        on_primary!(self, indexes::hold(collection, at_most))
            .map_err(failed_in_collection("hold the workers"))
    }

    async fn activate(&self, index: &StoredIndex, builder: &str) -> Result<bool, StoreError> {
        on_primary!(self, indexes::activate(index, builder))
            .map_err(failed_in_collection("change indexes"))
    }

    async fn forget_index(&self, index: i64) -> Result<(), StoreError> {
        on_primary!(self, indexes::forget_index(index)).map_err(failed("forget an index"))
    }

    async fn announce(&self, server: &str, models: &[String]) -> Result<(), StoreError> {
        on_primary!(self, indexes::announce(server, models)).map_err(failed("announce this server"))
    }

    async fn servers_without(&self, model: &str) -> Result<Vec<String>, StoreError> {
        on_primary!(self, indexes::servers_without(model)).map_err(failed("list the servers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(format!("{:?}", Password::from("secret".to_owned())), "***");
    }
}
