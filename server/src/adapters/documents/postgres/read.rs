//! What is read, from whichever node the pool belongs to.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::{
    as_limit, collection_from_row, damaged, document_from_row, storable, vector_from_bytes,
};
use crate::domain::{Collection, CollectionName, Document, Key, Schema};
use crate::ports::{
    Changes, ClaimedDocument, ClaimedRow, IndexedDocument, Missing, QuerySelection,
    QueryStatistics, StoredDocument, StoredEmbedding, StoredVector,
};

pub async fn collections(pool: &PgPool) -> Result<Vec<Collection>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, name, schema::text, embedding::text, coalesce(index_id, id) AS index_id,
                generation, visible_generation, documents, created_at_ms
         FROM collections ORDER BY name",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(collection_from_row).collect()
}

pub async fn collection(
    pool: &PgPool,
    name: &CollectionName,
) -> Result<Option<Collection>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT id, name, schema::text, embedding::text, coalesce(index_id, id) AS index_id,
                generation, visible_generation, documents, created_at_ms
         FROM collections WHERE name = $1",
    )
    .bind(name.as_str())
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(collection_from_row).transpose()
}

pub async fn embedded(
    pool: &PgPool,
    collection: i64,
    ids: &[String],
) -> Result<Vec<Option<StoredEmbedding>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT d.id, d.text_hash, d.truncated, v.vector
         FROM documents d JOIN collections c ON c.id = d.collection
         JOIN vectors v ON v.key = d.key
             AND coalesce(v.index_id, c.id) = coalesce(c.index_id, c.id)
         WHERE d.collection = $1 AND d.id = ANY($2)",
    )
    .bind(collection)
    .bind(ids.iter().map(String::as_str).filter(|id| storable(id)).collect::<Vec<_>>())
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
    pool: &PgPool,
    collection: i64,
    id: &str,
) -> Result<Option<StoredDocument>, sqlx::Error> {
    if !storable(id) {
        return Ok(None);
    }
    let row = sqlx::query(
        "SELECT key, body::text, generation, updated_at_ms, truncated FROM documents
         WHERE collection = $1 AND id = $2",
    )
    .bind(collection)
    .bind(id)
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(document_from_row).transpose()
}

pub async fn fetch(
    pool: &PgPool,
    collection: i64,
    keys: &[Key],
) -> Result<Vec<Option<Document>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT key, body::text FROM documents WHERE key = ANY($1) AND collection = $2",
    )
    .bind(keys)
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
    pool: &PgPool,
    collection: i64,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<StoredDocument>, sqlx::Error> {
    // No identifier is empty, so the empty one stands before all.
    let rows = sqlx::query(
        "SELECT key, body::text, generation, updated_at_ms, truncated FROM documents
         WHERE collection = $1 AND id > $2 ORDER BY id LIMIT $3",
    )
    .bind(collection)
    .bind(before_nul(after.unwrap_or("")))
    .bind(as_limit(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(document_from_row).collect()
}

/// Postgres holds no text with a NUL. What stands before it sorts the same among texts that have
/// none.
pub fn before_nul(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

/// Changes of which the index that is searched can be made again: documents without a vector are
/// still owed to it by a worker.
pub async fn changes(
    pool: &PgPool,
    collection: i64,
    generation: i64,
    limit: usize,
) -> Result<Changes, sqlx::Error> {
    let Missing { generation, schema, rows } =
        changed(pool, collection, None, generation, limit).await?;
    let mut changes = Changes { generation, ..Changes::default() };
    for row in rows {
        match row.document {
            None => changes.deletes.push(row.key),
            Some(ClaimedDocument { embedding: None, .. }) => {}
            Some(ClaimedDocument { document, embedding: Some(embedding) }) => {
                let (key, version, vector) = (row.key, row.version, embedding.vector);
                changes.upserts.push(IndexedDocument::of(key, version, document, &schema, vector));
            }
        }
    }
    Ok(changes)
}

/// What changed after a generation, in the order of the changes, with the vectors that were made
/// for an index; without one, for the index that is searched.
pub async fn changed(
    pool: &PgPool,
    collection: i64,
    index: Option<i64>,
    generation: i64,
    limit: usize,
) -> Result<Missing, sqlx::Error> {
    // One snapshot: documents, deletions and their last generation are of one moment.
    let mut transaction =
        pool.begin_with("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let row = sqlx::query(
        "SELECT schema::text, coalesce($2, index_id, id) AS index_id FROM collections WHERE id = $1",
    )
    .bind(collection)
    .bind(index)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else {
        return Ok(Missing { generation, schema: Schema::default(), rows: Vec::new() });
    };
    let schema: Schema = serde_json::from_str(row.try_get("schema")?).map_err(damaged)?;
    let index: i64 = row.try_get("index_id")?;
    // A generation is never split, so the last one may bring a few more than the limit.
    let last: Option<i64> = sqlx::query(
        "SELECT max(generation) AS last FROM (
             (SELECT generation FROM documents WHERE collection = $1 AND generation > $2
              ORDER BY generation LIMIT $3)
             UNION ALL
             (SELECT generation FROM deletions WHERE collection = $1 AND generation > $2
              ORDER BY generation LIMIT $3)
             ORDER BY generation LIMIT $3) changed",
    )
    .bind(collection)
    .bind(generation)
    .bind(as_limit(limit))
    .fetch_one(&mut *transaction)
    .await?
    .try_get("last")?;
    let Some(last) = last else {
        return Ok(Missing { generation, schema, rows: Vec::new() });
    };
    let documents = sqlx::query(
        "SELECT d.key, d.generation, d.body::text, d.truncated, v.vector
         FROM documents d
         LEFT JOIN vectors v ON v.key = d.key AND coalesce(v.index_id, d.collection) = $4
         WHERE d.collection = $1 AND d.generation > $2 AND d.generation <= $3
         ORDER BY d.generation, d.key",
    )
    .bind(collection)
    .bind(generation)
    .bind(last)
    .bind(index)
    .fetch_all(&mut *transaction)
    .await?;
    let deletions = sqlx::query(
        "SELECT key, generation FROM deletions
         WHERE collection = $1 AND generation > $2 AND generation <= $3",
    )
    .bind(collection)
    .bind(generation)
    .bind(last)
    .fetch_all(&mut *transaction)
    .await?;
    let mut rows = Vec::with_capacity(documents.len() + deletions.len());
    for row in &deletions {
        let (key, version) = (row.try_get("key")?, row.try_get("generation")?);
        rows.push(ClaimedRow { key, version, document: None });
    }
    for row in &documents {
        rows.push(ClaimedRow {
            key: row.try_get("key")?,
            version: row.try_get("generation")?,
            document: Some(claimed_document(row)?),
        });
    }
    Ok(Missing { generation: last, schema, rows })
}

/// A document with its vector, if it has one.
pub fn claimed_document(row: &PgRow) -> Result<ClaimedDocument, sqlx::Error> {
    let vector: Option<&[u8]> = row.try_get("vector")?;
    let truncated = row.try_get("truncated")?;
    Ok(ClaimedDocument {
        document: serde_json::from_str(row.try_get("body")?).map_err(damaged)?,
        embedding: vector.map(|bytes| StoredVector { vector: vector_from_bytes(bytes), truncated }),
    })
}

pub async fn queries(
    pool: &PgPool,
    collection: i64,
    selection: QuerySelection<'_>,
    limit: usize,
) -> Result<Vec<QueryStatistics>, sqlx::Error> {
    let statement = match selection {
        QuerySelection::All => sqlx::query(
            "SELECT query, searches, hits, last_used_ms FROM queries
             WHERE collection = $1 ORDER BY searches DESC, query LIMIT $2",
        ),
        QuerySelection::WithoutHits => sqlx::query(
            "SELECT query, searches, hits, last_used_ms FROM queries
             WHERE collection = $1 AND hits = 0 ORDER BY searches DESC, query LIMIT $2",
        ),
        QuerySelection::Prefix(prefix) if !storable(prefix) => return Ok(Vec::new()),
        // A range, not LIKE: nothing in the prefix has a meaning of its own.
        QuerySelection::Prefix(_) => sqlx::query(
            "SELECT query, searches, hits, last_used_ms FROM queries
             WHERE collection = $1 AND hits > 0 AND query >= $3 AND query < $3 || chr(1114111)
             ORDER BY searches DESC, query LIMIT $2",
        ),
    };
    let mut statement = statement.bind(collection).bind(as_limit(limit));
    if let QuerySelection::Prefix(prefix) = selection {
        statement = statement.bind(prefix);
    }
    let rows = statement.fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            Ok(QueryStatistics {
                query: row.try_get("query")?,
                searches: row.try_get::<i64, _>("searches")?.unsigned_abs(),
                hits: row.try_get::<i64, _>("hits")?.unsigned_abs(),
                last_used_ms: row.try_get("last_used_ms")?,
            })
        })
        .collect()
}

pub async fn mark(pool: &PgPool, name: &str) -> Result<bool, sqlx::Error> {
    let row =
        sqlx::query("SELECT 1 FROM marks WHERE name = $1").bind(name).fetch_optional(pool).await?;
    Ok(row.is_some())
}
