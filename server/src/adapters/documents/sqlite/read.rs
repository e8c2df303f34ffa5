//! What is read from the file.

use std::collections::HashMap;

use sqlx::sqlite::SqlitePool;
use sqlx::{FromRow, Row};

use super::{
    as_limit, collection_from_row, damaged, document_from_row, to_json, vector_from_bytes,
};
use crate::domain::{Collection, CollectionName, Document, Key, Schema};
use crate::ports::{
    Changes, IndexedDocument, QuerySelection, QueryStatistics, StoredDocument, StoredEmbedding,
    StoredVector,
};

pub async fn collections(pool: &SqlitePool) -> Result<Vec<Collection>, sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM collections ORDER BY name").fetch_all(pool).await?;
    rows.iter().map(collection_from_row).collect()
}

pub async fn collection(
    pool: &SqlitePool,
    name: &CollectionName,
) -> Result<Option<Collection>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM collections WHERE name = ?")
        .bind(name.as_str())
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(collection_from_row).transpose()
}

pub async fn embedded(
    pool: &SqlitePool,
    collection: i64,
    ids: &[String],
) -> Result<Vec<Option<StoredEmbedding>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT d.id, d.text_hash, d.truncated, v.vector
         FROM documents d JOIN vectors v ON v.key = d.key
         WHERE d.collection = ? AND d.id IN (SELECT value FROM json_each(?))",
    )
    .bind(collection)
    .bind(to_json(&ids)?)
    .fetch_all(pool)
    .await?;
    let mut by_id: HashMap<String, StoredEmbedding> = HashMap::with_capacity(rows.len());
    for row in &rows {
        let text_hash: &[u8] = row.try_get("text_hash")?;
        let embedding = StoredEmbedding {
            text_hash: text_hash.try_into().map_err(damaged)?,
            embedding: StoredVector {
                vector: vector_from_bytes(row.try_get("vector")?),
                truncated: row.try_get("truncated")?,
            },
        };
        by_id.insert(row.try_get("id")?, embedding);
    }
    Ok(ids.iter().map(|id| by_id.get(id).cloned()).collect())
}

pub async fn get(
    pool: &SqlitePool,
    collection: i64,
    id: &str,
) -> Result<Option<StoredDocument>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM documents WHERE collection = ? AND id = ?")
        .bind(collection)
        .bind(id)
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(document_from_row).transpose()
}

pub async fn fetch(
    pool: &SqlitePool,
    collection: i64,
    keys: &[Key],
) -> Result<Vec<Option<Document>>, sqlx::Error> {
    // The plus keeps SQLite from going through all documents of the collection to find the keys.
    let rows = sqlx::query(
        "SELECT key, body FROM documents
         WHERE key IN (SELECT value FROM json_each(?)) AND +collection = ?",
    )
    .bind(to_json(&keys)?)
    .bind(collection)
    .fetch_all(pool)
    .await?;
    let mut by_key: HashMap<Key, Document> = HashMap::with_capacity(rows.len());
    for row in &rows {
        let document = serde_json::from_str(row.try_get("body")?).map_err(damaged)?;
        by_key.insert(row.try_get("key")?, document);
    }
    Ok(keys.iter().map(|key| by_key.remove(key)).collect())
}

pub async fn list(
    pool: &SqlitePool,
    collection: i64,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<StoredDocument>, sqlx::Error> {
    // No identifier is empty, so the empty one stands before all.
    let rows =
        sqlx::query("SELECT * FROM documents WHERE collection = ? AND id > ? ORDER BY id LIMIT ?")
            .bind(collection)
            .bind(after.unwrap_or(""))
            .bind(as_limit(limit))
            .fetch_all(pool)
            .await?;
    rows.iter().map(document_from_row).collect()
}

pub async fn changes(
    pool: &SqlitePool,
    collection: i64,
    generation: i64,
    limit: usize,
) -> Result<Changes, sqlx::Error> {
    // A read transaction: documents, deletions and their last generation are of one moment.
    let mut transaction = pool.begin().await?;
    // A generation is never split, so the last one may bring a few more than the limit.
    let last: Option<i64> = sqlx::query(
        "SELECT max(generation) AS last FROM (
             SELECT generation FROM (
                 SELECT generation FROM documents WHERE collection = ?1 AND generation > ?2
                 UNION ALL
                 SELECT generation FROM deletions WHERE collection = ?1 AND generation > ?2
             ) ORDER BY generation LIMIT ?3)",
    )
    .bind(collection)
    .bind(generation)
    .bind(as_limit(limit))
    .fetch_one(&mut *transaction)
    .await?
    .try_get("last")?;
    let Some(last) = last else {
        return Ok(Changes { generation, ..Changes::default() });
    };
    let row = sqlx::query("SELECT schema FROM collections WHERE id = ?")
        .bind(collection)
        .fetch_one(&mut *transaction)
        .await?;
    let schema: Schema = serde_json::from_str(row.try_get("schema")?).map_err(damaged)?;
    let rows = sqlx::query(
        "SELECT d.key, d.generation, d.body, v.vector FROM documents d JOIN vectors v ON v.key = d.key
         WHERE d.collection = ? AND d.generation > ? AND d.generation <= ?
         ORDER BY d.generation, d.key",
    )
    .bind(collection)
    .bind(generation)
    .bind(last)
    .fetch_all(&mut *transaction)
    .await?;
    let mut upserts = Vec::with_capacity(rows.len());
    for row in &rows {
        let document: Document = serde_json::from_str(row.try_get("body")?).map_err(damaged)?;
        let (key, version) = (row.try_get("key")?, row.try_get("generation")?);
        let vector = vector_from_bytes(row.try_get("vector")?);
        upserts.push(IndexedDocument::of(key, version, document, &schema, vector));
    }
    let rows = sqlx::query(
        "SELECT key FROM deletions WHERE collection = ? AND generation > ? AND generation <= ?",
    )
    .bind(collection)
    .bind(generation)
    .bind(last)
    .fetch_all(&mut *transaction)
    .await?;
    let deletes = rows.iter().map(|row| row.try_get("key")).collect::<Result<_, _>>()?;
    Ok(Changes { generation: last, upserts, deletes })
}

#[derive(FromRow)]
struct QueryRow {
    query: String,
    searches: i64,
    hits: i64,
    last_used_ms: i64,
}

pub async fn queries(
    pool: &SqlitePool,
    collection: i64,
    selection: QuerySelection<'_>,
    limit: usize,
) -> Result<Vec<QueryStatistics>, sqlx::Error> {
    let statement = match selection {
        QuerySelection::All => sqlx::query_as::<_, QueryRow>(
            "SELECT query, searches, hits, last_used_ms FROM queries
             WHERE collection = ?1 ORDER BY searches DESC, query LIMIT ?2",
        ),
        QuerySelection::WithoutHits => sqlx::query_as(
            "SELECT query, searches, hits, last_used_ms FROM queries
             WHERE collection = ?1 AND hits = 0 ORDER BY searches DESC, query LIMIT ?2",
        ),
        // A range, not LIKE: nothing in the prefix has a meaning of its own.
        QuerySelection::Prefix(_) => sqlx::query_as(
            "SELECT query, searches, hits, last_used_ms FROM queries
             WHERE collection = ?1 AND hits > 0 AND query >= ?3 AND query < ?3 || char(0x10FFFF)
             ORDER BY searches DESC, query LIMIT ?2",
        ),
    };
    let mut statement = statement.bind(collection).bind(as_limit(limit));
    if let QuerySelection::Prefix(prefix) = selection {
        statement = statement.bind(prefix.to_owned());
    }
    let rows = statement.fetch_all(pool).await?;
    Ok(rows
        .into_iter()
        .map(|row| QueryStatistics {
            query: row.query,
            searches: row.searches.unsigned_abs(),
            hits: row.hits.unsigned_abs(),
            last_used_ms: row.last_used_ms,
        })
        .collect())
}

pub async fn mark(pool: &SqlitePool, name: &str) -> Result<bool, sqlx::Error> {
    let row =
        sqlx::query("SELECT 1 FROM marks WHERE name = ?").bind(name).fetch_optional(pool).await?;
    Ok(row.is_some())
}
