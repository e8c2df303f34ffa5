//! What is written to the primary. Every function is one transaction of few round trips, however
//! many documents it is given; the row of the collection is locked first, so that writers of one
//! collection go one after the other and never wait for each other in a circle.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgPool;
use sqlx::{Postgres, Row, Transaction};

use super::{collection_from_row, damaged, storable, to_json, vector_to_bytes};
use crate::domain::collection::MAX_ATTRIBUTES;
use crate::domain::{Collection, CollectionName, EmbeddingVersion, Key, Schema};
use crate::ports::{Committed, DocumentWrite, QueryCount};

/// Queries kept per collection; the rarest and oldest beyond are forgotten.
const MAX_QUERIES: i64 = 100_000;
/// Calls with more documents are indexed after smaller ones, for which somebody may wait.
const MAX_INTERACTIVE: usize = 16;

pub enum Upserted {
    Committed(Committed),
    /// Another server gave an attribute another type meanwhile.
    Conflict(String),
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub async fn create_collection(
    pool: &PgPool,
    name: &CollectionName,
    schema: &Schema,
    embedding: &EmbeddingVersion,
) -> Result<Collection, sqlx::Error> {
    let row = sqlx::query(
        "INSERT INTO collections (name, schema, embedding, created_at_ms)
         VALUES ($1, $2::json, $3::json, $4)
         RETURNING id, name, schema::text, embedding::text, id AS index_id, generation,
                   visible_generation, documents, created_at_ms",
    )
    .bind(name.as_str())
    .bind(to_json(schema)?)
    .bind(to_json(embedding)?)
    .bind(now_ms())
    .fetch_one(pool)
    .await?;
    collection_from_row(&row)
}

/// The conflict, if there is one; nothing is changed then.
pub async fn update_schema(
    pool: &PgPool,
    collection: i64,
    schema: &Schema,
) -> Result<Option<String>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let stored: String =
        sqlx::query("SELECT schema::text FROM collections WHERE id = $1 FOR NO KEY UPDATE")
            .bind(collection)
            .fetch_one(&mut *transaction)
            .await?
            .try_get("schema")?;
    let stored: Schema = serde_json::from_str(&stored).map_err(damaged)?;
    let merged = match merged(&stored, schema) {
        // Not the text fields, which cannot change; every other field is as it is given.
        Ok(Schema { text_fields, attributes, .. }) => {
            Schema { text_fields, attributes, ..schema.clone() }
        }
        Err(conflict) => return Ok(Some(conflict)),
    };
    sqlx::query("UPDATE collections SET schema = $2::json WHERE id = $1")
        .bind(collection)
        .bind(to_json(&merged)?)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(None)
}

/// The stored schema with the attributes that `given` adds. What another server stored since
/// `given` was read stays.
fn merged(stored: &Schema, given: &Schema) -> Result<Schema, String> {
    let faults = stored.change_faults(given);
    if let Some(fault) = faults.first() {
        return Err(fault.to_string());
    }
    let mut merged = stored.clone();
    merged.attributes.extend(given.attributes.clone());
    if merged.attributes.len() > MAX_ATTRIBUTES {
        return Err(format!("the collection would have more than {MAX_ATTRIBUTES} attributes"));
    }
    Ok(merged)
}

pub async fn delete_collection(pool: &PgPool, collection: i64) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    // Many documents take longer to delete than a statement may take otherwise.
    sqlx::query("SET LOCAL statement_timeout = '55s'").execute(&mut *transaction).await?;
    let deleted = sqlx::query("DELETE FROM collections WHERE id = $1")
        .bind(collection)
        .execute(&mut *transaction)
        .await?;
    for statement in [
        "DELETE FROM vectors USING documents
         WHERE documents.collection = $1 AND vectors.key = documents.key",
        "DELETE FROM documents WHERE collection = $1",
        "DELETE FROM deletions WHERE collection = $1",
        "DELETE FROM queries WHERE collection = $1",
        "DELETE FROM outbox WHERE collection = $1",
        "DELETE FROM indexes WHERE collection = $1",
    ] {
        sqlx::query(statement).bind(collection).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(deleted.rows_affected() > 0)
}

/// Locks the collection and takes its next generation; `RowNotFound` when it is gone.
async fn next_generation(
    transaction: &mut Transaction<'_, Postgres>,
    collection: i64,
) -> Result<(i64, String), sqlx::Error> {
    let row = sqlx::query(
        "UPDATE collections SET generation = generation + 1 WHERE id = $1
         RETURNING generation, schema::text",
    )
    .bind(collection)
    .fetch_one(&mut **transaction)
    .await?;
    Ok((row.try_get("generation")?, row.try_get("schema")?))
}

/// The columns of a write, one array a column: a statement binds five values, not five a document.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<&'a str>,
    bodies: Vec<String>,
    hashes: Vec<&'a [u8]>,
    vectors: Vec<Option<Vec<u8>>>,
    truncated: Vec<Option<bool>>,
}

impl<'a> Columns<'a> {
    /// Of writes of the same document the last one counts.
    fn of(writes: &'a [DocumentWrite]) -> Result<Self, sqlx::Error> {
        let last: BTreeMap<&str, &DocumentWrite> =
            writes.iter().map(|write| (write.document.id.as_str(), write)).collect();
        let mut columns = Self::default();
        for (id, write) in last {
            let embedding = write.embedding.as_ref();
            columns.ids.push(id);
            columns.bodies.push(to_json(&write.document)?);
            columns.hashes.push(&write.text_hash);
            columns.vectors.push(embedding.map(|e| vector_to_bytes(&e.vector)));
            columns.truncated.push(embedding.map(|e| e.truncated));
        }
        Ok(columns)
    }
}

pub async fn upsert(
    pool: &PgPool,
    collection: i64,
    writes: &[DocumentWrite],
    schema: Option<&Schema>,
) -> Result<Upserted, sqlx::Error> {
    let columns = Columns::of(writes)?;
    let mut transaction = pool.begin().await?;
    let (generation, stored) = next_generation(&mut transaction, collection).await?;
    let schema = match schema {
        None => None,
        Some(given) => {
            let stored: Schema = serde_json::from_str(&stored).map_err(damaged)?;
            match merged(&stored, given) {
                Ok(merged) => Some(to_json(&merged)?),
                Err(conflict) => return Ok(Upserted::Conflict(conflict)),
            }
        }
    };
    // A write without a vector keeps the one of the same text, and its `truncated` with it.
    let row = sqlx::query(
        "WITH given AS (
             SELECT * FROM unnest($3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::bool[])
                 AS given (id, body, text_hash, vector, truncated)
         ), old AS (
             SELECT d.key, d.id, d.truncated, d.text_hash = g.text_hash AS same_text
             FROM documents d JOIN given g ON g.id = d.id WHERE d.collection = $1
         ), written AS (
             INSERT INTO documents
                 (collection, id, body, text_hash, truncated, generation, updated_at_ms)
             SELECT $1, g.id, g.body::json, g.text_hash,
                    coalesce(g.truncated, o.same_text AND o.truncated, false), $2, $8
             FROM given g LEFT JOIN old o ON o.id = g.id
             ON CONFLICT (collection, id) DO UPDATE SET
                 body = excluded.body, text_hash = excluded.text_hash,
                 truncated = excluded.truncated, generation = excluded.generation,
                 updated_at_ms = excluded.updated_at_ms
             RETURNING key, id
         ), embedded AS (
             INSERT INTO vectors (key, vector, index_id)
             SELECT w.key, g.vector, (SELECT index_id FROM collections WHERE id = $1)
             FROM written w JOIN given g ON g.id = w.id
             WHERE g.vector IS NOT NULL
             ON CONFLICT (key) DO UPDATE SET vector = excluded.vector, index_id = excluded.index_id
         ), outdated AS (
             DELETE FROM vectors v USING old o, given g
             WHERE v.key = o.key AND g.id = o.id AND g.vector IS NULL AND NOT o.same_text
         ), owed AS (
             INSERT INTO outbox (collection, key, id, version, first_generation, deleted, bulk)
             SELECT $1, w.key, w.id, $2, $2, false, $9 FROM written w JOIN given g ON g.id = w.id
             WHERE g.vector IS NULL
             ON CONFLICT (collection, key) DO UPDATE SET
                 version = excluded.version, deleted = excluded.deleted,
                 bulk = outbox.bulk AND excluded.bulk, attempts = 0, reason = NULL,
                 set_aside_at = NULL,
                 due_at = CASE WHEN outbox.claimed_by IS NULL THEN now() ELSE outbox.due_at END
         )
         UPDATE collections SET
             documents = documents + (SELECT count(*) FROM given) - (SELECT count(*) FROM old),
             schema = coalesce($10::json, schema)
         WHERE id = $1
         RETURNING documents, ARRAY(SELECT id FROM written) AS ids, ARRAY(SELECT key FROM written) AS keys",
    )
    .bind(collection)
    .bind(generation)
    .bind(&columns.ids)
    .bind(&columns.bodies)
    .bind(&columns.hashes)
    .bind(&columns.vectors)
    .bind(&columns.truncated)
    .bind(now_ms())
    .bind(writes.len() > MAX_INTERACTIVE)
    .bind(schema)
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    let ids: Vec<String> = row.try_get("ids")?;
    let keys: Vec<Key> = row.try_get("keys")?;
    let by_id: HashMap<&str, Key> = ids.iter().map(String::as_str).zip(keys).collect();
    let keys = writes.iter().filter_map(|write| by_id.get(write.document.id.as_str()).copied());
    Ok(Upserted::Committed(Committed {
        generation,
        keys: keys.collect(),
        documents: row.try_get::<i64, _>("documents")?.unsigned_abs(),
    }))
}

pub async fn delete(
    pool: &PgPool,
    collection: i64,
    ids: &[String],
) -> Result<Committed, sqlx::Error> {
    let ids: Vec<&str> = ids.iter().map(String::as_str).filter(|id| storable(id)).collect();
    let mut transaction = pool.begin().await?;
    let (generation, _) = next_generation(&mut transaction, collection).await?;
    let row = sqlx::query(
        "WITH gone AS (
             DELETE FROM documents WHERE collection = $1 AND id = ANY($3) RETURNING key, id
         ), vectors_gone AS (
             DELETE FROM vectors v USING gone WHERE v.key = gone.key
         ), logged AS (
             INSERT INTO deletions (collection, generation, key) SELECT $1, $2, key FROM gone
         ), owed AS (
             INSERT INTO outbox (collection, key, id, version, first_generation, deleted, bulk)
             SELECT $1, key, id, $2, $2, true, $4 FROM gone
             ON CONFLICT (collection, key) DO UPDATE SET
                 version = excluded.version, deleted = excluded.deleted,
                 bulk = outbox.bulk AND excluded.bulk, attempts = 0, reason = NULL,
                 set_aside_at = NULL,
                 due_at = CASE WHEN outbox.claimed_by IS NULL THEN now() ELSE outbox.due_at END
         )
         UPDATE collections SET documents = documents - (SELECT count(*) FROM gone)
         WHERE id = $1
         RETURNING documents, ARRAY(SELECT key FROM gone) AS keys",
    )
    .bind(collection)
    .bind(generation)
    .bind(&ids)
    .bind(ids.len() > MAX_INTERACTIVE)
    .fetch_one(&mut *transaction)
    .await?;
    let keys: Vec<Key> = row.try_get("keys")?;
    let documents = row.try_get::<i64, _>("documents")?.unsigned_abs();
    if keys.is_empty() {
        // Nothing changed, so the generation stays and the cache with it.
        transaction.rollback().await?;
        return Ok(Committed { generation: generation - 1, keys, documents });
    }
    transaction.commit().await?;
    Ok(Committed { generation, keys, documents })
}

pub async fn forget_deletions(
    pool: &PgPool,
    collection: i64,
    generation: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM deletions WHERE collection = $1 AND generation <= $2")
        .bind(collection)
        .bind(generation)
        .execute(pool)
        .await
        .map(drop)
}

pub async fn record_queries(pool: &PgPool, counts: &[QueryCount]) -> Result<(), sqlx::Error> {
    let counts: Vec<&QueryCount> = counts.iter().filter(|count| storable(&count.query)).collect();
    let collections: Vec<i64> = counts.iter().map(|count| count.collection).collect();
    let column = |value: fn(&QueryCount) -> u64| -> Vec<i64> {
        counts.iter().map(|count| i64::try_from(value(count)).unwrap_or(i64::MAX)).collect()
    };
    let mut transaction = pool.begin().await?;
    // A collection deleted meanwhile takes no counts. Ordered, so that two servers that store the
    // same queries at once do not wait for each other in a circle.
    sqlx::query(
        "INSERT INTO queries (collection, query, searches, hits, last_used_ms)
         SELECT g.collection, g.query, sum(g.searches)::bigint,
                (array_agg(g.hits ORDER BY g.last_used_ms DESC))[1], max(g.last_used_ms)
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
             AS g (collection, query, searches, hits, last_used_ms)
         JOIN collections c ON c.id = g.collection
         GROUP BY g.collection, g.query ORDER BY g.collection, g.query COLLATE \"C\"
         ON CONFLICT (collection, query) DO UPDATE SET
             searches = queries.searches + excluded.searches, hits = excluded.hits,
             last_used_ms = greatest(queries.last_used_ms, excluded.last_used_ms)",
    )
    .bind(&collections)
    .bind(counts.iter().map(|count| count.query.as_str()).collect::<Vec<_>>())
    .bind(column(|count| count.searches))
    .bind(column(|count| count.hits))
    .bind(counts.iter().map(|count| count.last_used_ms).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "DELETE FROM queries WHERE (collection, query) IN (
             SELECT collection, query FROM (
                 SELECT collection, query, row_number() OVER (
                     PARTITION BY collection ORDER BY searches DESC, last_used_ms DESC) AS rank
                 FROM queries WHERE collection IN (
                     SELECT collection FROM queries WHERE collection = ANY($1)
                     GROUP BY collection HAVING count(*) > $2)) ranked
             WHERE rank > $2)",
    )
    .bind(&collections)
    .bind(MAX_QUERIES)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

pub async fn set_mark(pool: &PgPool, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO marks (name) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(name)
        .execute(pool)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AttributeType;

    fn with(attributes: &[(&str, AttributeType)]) -> Schema {
        let attributes = attributes.iter().map(|&(name, kind)| (name.to_owned(), kind)).collect();
        Schema { attributes, ..Schema::default() }
    }

    #[test]
    fn attributes_that_two_servers_added_are_both_kept() {
        let stored = with(&[("a", AttributeType::Bool)]);
        let both = with(&[("a", AttributeType::Bool), ("b", AttributeType::Number)]);
        assert_eq!(merged(&stored, &with(&[("b", AttributeType::Number)])), Ok(both));
    }

    #[test]
    fn an_attribute_of_two_types_is_a_conflict() {
        let stored = with(&[("a", AttributeType::Bool)]);
        let conflict = merged(&stored, &with(&[("a", AttributeType::Number)])).unwrap_err();
        assert!(conflict.contains("attributes.a"), "{conflict}");
    }
}
