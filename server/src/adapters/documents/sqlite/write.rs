//! What is written to the file. Every function is one transaction.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::Row;
use sqlx::sqlite::SqlitePool;

use super::{MAX_QUERIES, collection_from_row, next_generation, to_json, vector_to_bytes};
use crate::domain::{Collection, CollectionName, EmbeddingVersion, Schema};
use crate::ports::{Committed, DocumentWrite, QueryCount, StoredVector};

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub async fn create_collection(
    pool: &SqlitePool,
    name: &CollectionName,
    schema: &Schema,
    embedding: &EmbeddingVersion,
) -> Result<Collection, sqlx::Error> {
    let row = sqlx::query(
        "INSERT INTO collections (name, schema, embedding, created_at_ms) VALUES (?, ?, ?, ?)
         RETURNING *",
    )
    .bind(name.as_str())
    .bind(to_json(schema)?)
    .bind(to_json(embedding)?)
    .bind(now_ms())
    .fetch_one(pool)
    .await?;
    collection_from_row(&row)
}

pub async fn update_schema(
    pool: &SqlitePool,
    collection: i64,
    schema: &Schema,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE collections SET schema = ? WHERE id = ?")
        .bind(to_json(schema)?)
        .bind(collection)
        .execute(pool)
        .await
        .map(drop)
}

pub async fn delete_collection(pool: &SqlitePool, collection: i64) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    for statement in [
        "DELETE FROM documents WHERE collection = ?", // takes the vectors along
        "DELETE FROM deletions WHERE collection = ?",
        "DELETE FROM queries WHERE collection = ?",
    ] {
        sqlx::query(statement).bind(collection).execute(&mut *transaction).await?;
    }
    let deleted = sqlx::query("DELETE FROM collections WHERE id = ?")
        .bind(collection)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(deleted.rows_affected() > 0)
}

pub async fn upsert(
    pool: &SqlitePool,
    collection: i64,
    writes: &[(&DocumentWrite, &StoredVector)],
    schema: Option<&Schema>,
) -> Result<Committed, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let generation = next_generation(&mut transaction, collection).await?;
    let ids: HashSet<&str> = writes.iter().map(|(write, _)| write.document.id.as_str()).collect();
    let known: i64 = sqlx::query(
        "SELECT count(*) AS known FROM documents
         WHERE collection = ? AND id IN (SELECT value FROM json_each(?))",
    )
    .bind(collection)
    .bind(to_json(&ids)?)
    .fetch_one(&mut *transaction)
    .await?
    .try_get("known")?;
    let now = now_ms();
    let mut keys = Vec::with_capacity(writes.len());
    for (write, embedding) in writes {
        let key: i64 = sqlx::query(
            "INSERT INTO documents
                 (collection, id, body, text_hash, truncated, generation, updated_at_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (collection, id) DO UPDATE SET
                 body = excluded.body, text_hash = excluded.text_hash,
                 truncated = excluded.truncated, generation = excluded.generation,
                 updated_at_ms = excluded.updated_at_ms
             RETURNING key",
        )
        .bind(collection)
        .bind(write.document.id.as_str())
        .bind(to_json(&write.document)?)
        .bind(write.text_hash.as_slice())
        .bind(embedding.truncated)
        .bind(generation)
        .bind(now)
        .fetch_one(&mut *transaction)
        .await?
        .try_get("key")?;
        sqlx::query(
            "INSERT INTO vectors (key, vector) VALUES (?, ?)
             ON CONFLICT (key) DO UPDATE SET vector = excluded.vector",
        )
        .bind(key)
        .bind(vector_to_bytes(&embedding.vector))
        .execute(&mut *transaction)
        .await?;
        keys.push(key);
    }
    let documents: i64 = sqlx::query(
        "UPDATE collections SET documents = documents + ?, schema = coalesce(?, schema)
         WHERE id = ? RETURNING documents",
    )
    .bind(i64::try_from(ids.len()).unwrap_or(i64::MAX) - known)
    .bind(schema.map(to_json).transpose()?)
    .bind(collection)
    .fetch_one(&mut *transaction)
    .await?
    .try_get("documents")?;
    transaction.commit().await?;
    Ok(Committed { generation, keys, documents: documents.unsigned_abs() })
}

pub async fn delete(
    pool: &SqlitePool,
    collection: i64,
    ids: &[String],
) -> Result<Committed, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let generation = next_generation(&mut transaction, collection).await?;
    let rows = sqlx::query(
        "DELETE FROM documents
         WHERE collection = ? AND id IN (SELECT value FROM json_each(?)) RETURNING key",
    )
    .bind(collection)
    .bind(to_json(&ids)?)
    .fetch_all(&mut *transaction)
    .await?;
    let keys: Vec<i64> = rows.iter().map(|row| row.try_get("key")).collect::<Result<_, _>>()?;
    sqlx::query(
        "INSERT INTO deletions (collection, generation, key) SELECT ?, ?, value FROM json_each(?)",
    )
    .bind(collection)
    .bind(generation)
    .bind(to_json(&keys)?)
    .execute(&mut *transaction)
    .await?;
    let documents: i64 = sqlx::query(
        "UPDATE collections SET documents = documents - ? WHERE id = ? RETURNING documents",
    )
    .bind(i64::try_from(keys.len()).unwrap_or(i64::MAX))
    .bind(collection)
    .fetch_one(&mut *transaction)
    .await?
    .try_get("documents")?;
    let documents = documents.unsigned_abs();
    if keys.is_empty() {
        // Nothing changed, so the generation stays and the cache with it.
        transaction.rollback().await?;
        return Ok(Committed { generation: generation - 1, keys, documents });
    }
    transaction.commit().await?;
    Ok(Committed { generation, keys, documents })
}

pub async fn forget_deletions(
    pool: &SqlitePool,
    collection: i64,
    generation: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM deletions WHERE collection = ? AND generation <= ?")
        .bind(collection)
        .bind(generation)
        .execute(pool)
        .await
        .map(drop)
}

pub async fn record_queries(pool: &SqlitePool, counts: &[QueryCount]) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    for count in counts {
        // A collection deleted meanwhile takes no counts.
        sqlx::query(
            "INSERT INTO queries (collection, query, searches, hits, last_used_ms)
             SELECT id, ?2, ?3, ?4, ?5 FROM collections WHERE id = ?1
             ON CONFLICT (collection, query) DO UPDATE SET
                 searches = searches + excluded.searches, hits = excluded.hits,
                 last_used_ms = max(last_used_ms, excluded.last_used_ms)",
        )
        .bind(count.collection)
        .bind(count.query.as_str())
        .bind(i64::try_from(count.searches).unwrap_or(i64::MAX))
        .bind(i64::try_from(count.hits).unwrap_or(i64::MAX))
        .bind(count.last_used_ms)
        .execute(&mut *transaction)
        .await?;
    }
    let collections: HashSet<i64> = counts.iter().map(|count| count.collection).collect();
    for collection in collections {
        sqlx::query(
            "DELETE FROM queries WHERE collection = ?1 AND query IN (
                 SELECT query FROM queries WHERE collection = ?1
                 ORDER BY searches, last_used_ms
                 LIMIT max(0, (SELECT count(*) FROM queries WHERE collection = ?1) - ?2))",
        )
        .bind(collection)
        .bind(MAX_QUERIES)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await
}

pub async fn set_mark(pool: &SqlitePool, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO marks (name) VALUES (?) ON CONFLICT DO NOTHING")
        .bind(name.to_owned())
        .execute(pool)
        .await
        .map(drop)
}
