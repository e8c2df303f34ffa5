//! Documents in one SQLite file: a single writer, concurrent readers, every commit on disk before
//! it is acknowledged (`synchronous = FULL` in WAL mode).

mod read;
mod write;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection, Row, SqliteConnection};

use super::{as_limit, damaged, to_json, vector_from_bytes, vector_to_bytes};
use crate::domain::{Collection, CollectionName, Document, EmbeddingVersion, Key, Schema};
use crate::ports::{
    Changes, Committed, DocumentStore, DocumentWrite, QueryCount, QuerySelection, QueryStatistics,
    StoreError, StoredDocument, StoredEmbedding,
};

const READERS: u32 = 4;
/// Longest wait for a connection or for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Queries kept per collection; the rarest and oldest beyond are forgotten.
const MAX_QUERIES: i64 = 100_000;

pub struct SqliteStore {
    /// One connection: SQLite has one writer at a time, and a queue here beats its busy loop.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens or creates the file and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        // A file does not go away as a server does, so connections are not tried before each use.
        let pool = |size| {
            SqlitePoolOptions::new()
                .max_connections(size)
                .acquire_timeout(BUSY_TIMEOUT)
                .test_before_acquire(false)
        };
        // After an I/O error SQLite has ended the transaction by itself, so its rollback fails and
        // the connection is taken to be inside it for ever: later commits would only release
        // savepoints and never reach the file. Such a connection is replaced.
        let writer = pool(1)
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.ping().await?; // after a rollback that is under way
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options.clone())
            .await
            .map_err(failed("open the documents"))?;
        sqlx::migrate!("migrations/sqlite")
            .run(&writer)
            .await
            .map_err(|error| failed("migrate the documents")(error.into()))?;
        let readers = pool(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(failed("open the documents"))?;
        Ok(Self { writer, readers })
    }
}

fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { action, source: Box::new(source) }
}

fn collection_from_row(row: &SqliteRow) -> Result<Collection, sqlx::Error> {
    let name: String = row.try_get("name")?;
    Ok(Collection {
        id: row.try_get("id")?,
        name: CollectionName::parse(&name).map_err(|error| {
            damaged(std::io::Error::other(format!("collection name {name:?}: {error}")))
        })?,
        schema: serde_json::from_str(row.try_get("schema")?).map_err(damaged)?,
        embedding: serde_json::from_str(row.try_get("embedding")?).map_err(damaged)?,
        index: row.try_get("id")?,
        generation: row.try_get("generation")?,
        visible_generation: row.try_get("generation")?,
        documents: row.try_get::<i64, _>("documents")?.unsigned_abs(),
        created_at_ms: row.try_get("created_at_ms")?,
    })
}

fn document_from_row(row: &SqliteRow) -> Result<StoredDocument, sqlx::Error> {
    Ok(StoredDocument {
        key: row.try_get("key")?,
        document: serde_json::from_str(row.try_get("body")?).map_err(damaged)?,
        generation: row.try_get("generation")?,
        updated_at_ms: row.try_get("updated_at_ms")?,
        truncated: row.try_get("truncated")?,
    })
}

#[async_trait]
impl DocumentStore for SqliteStore {
    async fn collections(&self) -> Result<Vec<Collection>, StoreError> {
        read::collections(&self.readers).await.map_err(failed("list collections"))
    }

    async fn collection(&self, name: &CollectionName) -> Result<Option<Collection>, StoreError> {
        read::collection(&self.readers, name).await.map_err(failed("read a collection"))
    }

    async fn create_collection(
        &self,
        name: &CollectionName,
        schema: &Schema,
        embedding: &EmbeddingVersion,
    ) -> Result<Collection, StoreError> {
        match write::create_collection(&self.writer, name, schema, embedding).await {
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Err(StoreError::Exists)
            }
            result => result.map_err(failed("create a collection")),
        }
    }

    async fn update_schema(&self, collection: i64, schema: &Schema) -> Result<(), StoreError> {
        write::update_schema(&self.writer, collection, schema)
            .await
            .map_err(failed("change a collection"))
    }

    async fn delete_collection(&self, collection: i64) -> Result<bool, StoreError> {
        write::delete_collection(&self.writer, collection)
            .await
            .map_err(failed("delete a collection"))
    }

    async fn upsert(
        &self,
        collection: i64,
        writes: &[DocumentWrite],
        schema: Option<&Schema>,
    ) -> Result<Committed, StoreError> {
        let mut with_vectors = Vec::with_capacity(writes.len());
        for write in writes {
            with_vectors.push((write, write.embedding.as_ref().ok_or(StoreError::NoOutbox)?));
        }
        match write::upsert(&self.writer, collection, &with_vectors, schema).await {
            Err(sqlx::Error::RowNotFound) => Err(StoreError::NoCollection),
            result => result.map_err(failed("write documents")),
        }
    }

    async fn delete(&self, collection: i64, ids: &[String]) -> Result<Committed, StoreError> {
        match write::delete(&self.writer, collection, ids).await {
            Err(sqlx::Error::RowNotFound) => Err(StoreError::NoCollection),
            result => result.map_err(failed("delete documents")),
        }
    }

    async fn embedded(
        &self,
        collection: i64,
        ids: &[String],
    ) -> Result<Vec<Option<StoredEmbedding>>, StoreError> {
        read::embedded(&self.readers, collection, ids).await.map_err(failed("read vectors"))
    }

    async fn get(&self, collection: i64, id: &str) -> Result<Option<StoredDocument>, StoreError> {
        read::get(&self.readers, collection, id).await.map_err(failed("read a document"))
    }

    async fn fetch(
        &self,
        collection: i64,
        keys: &[Key],
    ) -> Result<Vec<Option<Document>>, StoreError> {
        read::fetch(&self.readers, collection, keys).await.map_err(failed("read documents"))
    }

    async fn list(
        &self,
        collection: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredDocument>, StoreError> {
        read::list(&self.readers, collection, after, limit).await.map_err(failed("list documents"))
    }

    async fn changes(
        &self,
        collection: i64,
        generation: i64,
        limit: usize,
    ) -> Result<Changes, StoreError> {
        read::changes(&self.readers, collection, generation, limit)
            .await
            .map_err(failed("read changes"))
    }

    async fn forget_deletions(&self, collection: i64, generation: i64) -> Result<(), StoreError> {
        write::forget_deletions(&self.writer, collection, generation)
            .await
            .map_err(failed("forget old deletions"))
    }

    async fn record_queries(&self, counts: &[QueryCount]) -> Result<(), StoreError> {
        write::record_queries(&self.writer, counts).await.map_err(failed("record queries"))
    }

    async fn queries(
        &self,
        collection: i64,
        selection: QuerySelection<'_>,
        limit: usize,
    ) -> Result<Vec<QueryStatistics>, StoreError> {
        read::queries(&self.readers, collection, selection, limit)
            .await
            .map_err(failed("read the query log"))
    }

    async fn mark(&self, name: &str) -> Result<bool, StoreError> {
        read::mark(&self.readers, name).await.map_err(failed("read a mark"))
    }

    async fn set_mark(&self, name: &str) -> Result<(), StoreError> {
        write::set_mark(&self.writer, name).await.map_err(failed("set a mark"))
    }

    async fn health(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(&self.readers)
            .await
            .map(drop)
            .map_err(failed("reach the documents"))
    }

    async fn close(&self) {
        self.readers.close().await;
        // The last connection to close folds the write-ahead log back into the file.
        self.writer.close().await;
    }
}

/// The next generation of a collection, inside a transaction.
/// `RowNotFound` when the collection is gone.
async fn next_generation(
    connection: &mut SqliteConnection,
    collection: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query(
        "UPDATE collections SET generation = generation + 1 WHERE id = ? RETURNING generation",
    )
    .bind(collection)
    .fetch_one(connection)
    .await?
    .try_get("generation")
}
