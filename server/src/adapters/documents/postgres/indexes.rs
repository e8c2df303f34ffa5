//! The indexes of a collection beside the one that is searched.

use std::time::Duration;

use sqlx::postgres::{PgPool, PgRow};
use sqlx::{Postgres, Row, Transaction};

use super::{damaged, read, to_json, vector_to_bytes, write};
use crate::domain::collection::AttributeType;
use crate::domain::{EmbeddingVersion, Schema};
use crate::ports::{Done, Missing, StoredIndex};

/// A server that was not announced for so long has ended.
const SEEN_WITHIN: &str = "15 seconds";
const COLUMNS: &str =
    "id, collection, text_fields::text, embedding::text, generation, created_at_ms,
    extract(epoch FROM clock_timestamp() - retired_at)::float8 AS retired";

fn from_row(row: &PgRow) -> Result<StoredIndex, sqlx::Error> {
    let retired: Option<f64> = row.try_get("retired")?;
    Ok(StoredIndex {
        id: row.try_get("id")?,
        collection: row.try_get("collection")?,
        text_fields: serde_json::from_str(row.try_get("text_fields")?).map_err(damaged)?,
        embedding: serde_json::from_str(row.try_get("embedding")?).map_err(damaged)?,
        generation: row.try_get("generation")?,
        created_at_ms: row.try_get("created_at_ms")?,
        retired: retired.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
    })
}

pub async fn indexes(pool: &PgPool, collection: i64) -> Result<Vec<StoredIndex>, sqlx::Error> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM indexes WHERE collection = $1 ORDER BY created_at_ms DESC, id DESC"
    )))
    .bind(collection)
    .fetch_all(pool)
    .await?;
    rows.iter().map(from_row).collect()
}

/// Its number is of the same sequence as those of the collections, which are their first indexes.
pub async fn add_index(
    pool: &PgPool,
    collection: i64,
    text_fields: &[String],
    embedding: &EmbeddingVersion,
) -> Result<StoredIndex, sqlx::Error> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO indexes (id, collection, text_fields, embedding, generation, created_at_ms)
         SELECT nextval('collections_id_seq'), id, $2::json, $3::json, 0, $4
         FROM collections WHERE id = $1 RETURNING {COLUMNS}"
    )))
    .bind(collection)
    .bind(to_json(&text_fields)?)
    .bind(to_json(embedding)?)
    .bind(write::now_ms())
    .fetch_one(pool)
    .await?;
    from_row(&row)
}

pub async fn missing(
    pool: &PgPool,
    index: &StoredIndex,
    limit: usize,
) -> Result<Missing, sqlx::Error> {
    let changed =
        read::changed(pool, index.collection, Some(index.id), index.generation, limit).await?;
    let schema = with_text_fields(changed.schema, &index.text_fields);
    Ok(Missing { schema, ..changed })
}

/// The schema of a collection that is searched by other text fields: those of before are attributes.
fn with_text_fields(schema: Schema, text_fields: &[String]) -> Schema {
    let mut attributes = schema.attributes;
    for field in schema.text_fields {
        attributes.insert(field, AttributeType::String);
    }
    attributes.retain(|name, _| !text_fields.contains(name));
    Schema { text_fields: text_fields.to_vec(), attributes, ..schema }
}

pub async fn claim_index(
    pool: &PgPool,
    index: i64,
    builder: &str,
    lease: Duration,
) -> Result<bool, sqlx::Error> {
    let claimed = sqlx::query(
        "UPDATE indexes SET builder = $2,
             built_until = clock_timestamp() + $3 * interval '1 millisecond'
         WHERE id = $1 AND (builder = $2 OR built_until IS NULL OR built_until < clock_timestamp())",
    )
    .bind(index)
    .bind(builder)
    .bind(lease.as_secs_f64() * 1_000.0)
    .execute(pool)
    .await?;
    Ok(claimed.rows_affected() > 0)
}

pub async fn advance(
    pool: &PgPool,
    index: i64,
    builder: &str,
    generation: i64,
    done: &[Done],
    lease: Duration,
) -> Result<bool, sqlx::Error> {
    let made = || done.iter().filter_map(|done| Some((done, done.embedding.as_ref()?)));
    let mut transaction = pool.begin().await?;
    // As writers do, see `write`.
    sqlx::query(
        "SELECT 1 FROM collections WHERE id = (SELECT collection FROM indexes WHERE id = $1)
         FOR NO KEY UPDATE",
    )
    .bind(index)
    .execute(&mut *transaction)
    .await?;
    let advanced = sqlx::query(
        "UPDATE indexes SET generation = $3,
             built_until = clock_timestamp() + $4 * interval '1 millisecond'
         WHERE id = $1 AND builder = $2",
    )
    .bind(index)
    .bind(builder)
    .bind(generation)
    .bind(lease.as_secs_f64() * 1_000.0)
    .execute(&mut *transaction)
    .await?;
    if advanced.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO vectors (key, vector, index_id)
         SELECT d.key, d.vector, $1
         FROM unnest($2::bigint[], $3::bigint[], $4::bytea[]) AS d (key, version, vector)
         JOIN documents t ON t.key = d.key AND t.generation = d.version
         ON CONFLICT (key) DO UPDATE SET vector = excluded.vector, index_id = excluded.index_id",
    )
    .bind(index)
    .bind(made().map(|(done, _)| done.key).collect::<Vec<_>>())
    .bind(made().map(|(done, _)| done.version).collect::<Vec<_>>())
    .bind(made().map(|(_, made)| vector_to_bytes(&made.vector)).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

pub async fn hold(pool: &PgPool, collection: i64, at_most: Duration) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE collections SET held_until = clock_timestamp() + $2 * interval '1 millisecond'
         WHERE id = $1 RETURNING id",
    )
    .bind(collection)
    .bind(at_most.as_secs_f64() * 1_000.0)
    .fetch_one(pool)
    .await
    .map(drop)
}

pub async fn activate(
    pool: &PgPool,
    index: &StoredIndex,
    builder: &str,
) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let present = sqlx::query(
        "SELECT schema::text, embedding::text, coalesce(index_id, id) AS index_id
         FROM collections WHERE id = $1 FOR NO KEY UPDATE",
    )
    .bind(index.collection)
    .fetch_one(&mut *transaction)
    .await?;
    if present.try_get::<i64, _>("index_id")? == index.id {
        // Done before; the answer was lost.
        return Ok(true);
    }
    // What still waits in the outbox reaches this index through the workers.
    let behind: bool = sqlx::query(
        "SELECT EXISTS (
             SELECT 1 FROM documents d WHERE d.collection = $1 AND d.generation > $2
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.collection = $1 AND o.key = d.key)
         ) OR EXISTS (
             SELECT 1 FROM deletions d WHERE d.collection = $1 AND d.generation > $2
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.collection = $1 AND o.key = d.key)
         ) AS behind",
    )
    .bind(index.collection)
    .bind(index.generation)
    .fetch_one(&mut *transaction)
    .await?
    .try_get("behind")?;
    if behind {
        return Ok(false);
    }
    let schema: Schema = serde_json::from_str(present.try_get("schema")?).map_err(damaged)?;
    retire(&mut transaction, index.collection, &present, &schema.text_fields).await?;
    sqlx::query(
        "UPDATE collections SET index_id = $2, embedding = $3::json, schema = $4::json,
             visible_generation = visible_generation + 1, held_until = NULL
         WHERE id = $1",
    )
    .bind(index.collection)
    .bind(index.id)
    .bind(to_json(&index.embedding)?)
    .bind(to_json(&with_text_fields(schema, &index.text_fields))?)
    .execute(&mut *transaction)
    .await?;
    let ours = sqlx::query("DELETE FROM indexes WHERE id = $1 AND builder = $2")
        .bind(index.id)
        .bind(builder)
        .execute(&mut *transaction)
        .await?;
    if ours.rows_affected() == 0 {
        return Ok(false);
    }
    transaction.commit().await?;
    Ok(true)
}

/// Notes the index that is searched as one that was; it has everything that no worker still has to
/// bring to it.
async fn retire(
    transaction: &mut Transaction<'_, Postgres>,
    collection: i64,
    present: &PgRow,
    text_fields: &[String],
) -> Result<(), sqlx::Error> {
    let (id, embedding): (i64, String) =
        (present.try_get("index_id")?, present.try_get("embedding")?);
    sqlx::query(
        "INSERT INTO indexes
             (id, collection, text_fields, embedding, generation, created_at_ms, retired_at)
         SELECT $2, c.id, $3::json, $4::json,
                coalesce((SELECT min(o.first_generation) - 1 FROM outbox o
                          WHERE o.collection = c.id), c.generation),
                c.created_at_ms, clock_timestamp()
         FROM collections c WHERE c.id = $1",
    )
    .bind(collection)
    .bind(id)
    .bind(to_json(&text_fields)?)
    .bind(embedding)
    .execute(&mut **transaction)
    .await
    .map(drop)
}

pub async fn forget_index(pool: &PgPool, index: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM indexes WHERE id = $1").bind(index).execute(pool).await.map(drop)
}

pub async fn announce(pool: &PgPool, server: &str, models: &[String]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO servers (name, models, seen_at) VALUES ($1, $2, clock_timestamp())
         ON CONFLICT (name) DO UPDATE SET models = excluded.models, seen_at = excluded.seen_at",
    )
    .bind(server)
    .bind(models)
    .execute(pool)
    .await?;
    sqlx::query("DELETE FROM servers WHERE seen_at < clock_timestamp() - interval '1 hour'")
        .execute(pool)
        .await
        .map(drop)
}

pub async fn servers_without(pool: &PgPool, model: &str) -> Result<Vec<String>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT name FROM servers
         WHERE seen_at > clock_timestamp() - $2::interval AND NOT $1 = ANY(models) ORDER BY name",
    )
    .bind(model)
    .bind(SEEN_WITHIN)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| row.try_get("name")).collect()
}
