//! The outbox: rows that writes left are claimed for a lease, completed or given back. Leases are
//! measured by the database's clock alone.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::{PgPool, PgRow};
use sqlx::{Postgres, Row, Transaction};

use super::read::{before_nul, claimed_document};
use super::{as_limit, collection_from_row, vector_to_bytes};
use crate::domain::{Collection, Key};
use crate::ports::{
    Backlog, Claimed, ClaimedDocument, ClaimedRow, Done, Expected, Failure, Progress, SetAside,
    Version,
};

/// Collections that a call looks at when other workers take what it found.
const CLAIM_ATTEMPTS: usize = 3;
/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 1_000;

pub async fn claim(
    pool: &PgPool,
    worker: &str,
    models: &[String],
    limit: usize,
    lease: Duration,
) -> Result<Option<Claimed>, sqlx::Error> {
    for _ in 0..CLAIM_ATTEMPTS {
        let Some(collection) = collection_with_work(pool, models).await? else { return Ok(None) };
        let mut transaction = pool.begin().await?;
        let rows = claim_rows(&mut transaction, &collection, worker, limit, lease).await?;
        transaction.commit().await?;
        if !rows.is_empty() {
            return Ok(Some(Claimed { collection, rows }));
        }
    }
    Ok(None)
}

/// Any of the collections where the most urgent work waits: by chance, so that a long import into
/// one does not hold up the others.
async fn collection_with_work(
    pool: &PgPool,
    models: &[String],
) -> Result<Option<Collection>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT c.id, c.name, c.schema::text, c.embedding::text,
                coalesce(c.index_id, c.id) AS index_id, c.generation, c.visible_generation,
                c.documents, c.created_at_ms
         FROM collections c CROSS JOIN LATERAL (
             SELECT o.bulk FROM outbox o
             WHERE o.collection = c.id AND o.set_aside_at IS NULL AND o.due_at <= now()
             ORDER BY o.bulk, o.first_generation, o.key LIMIT 1) first
         WHERE c.embedding->>'hash' = ANY($1)
             AND (c.held_until IS NULL OR c.held_until < clock_timestamp())
         ORDER BY first.bulk, random() LIMIT 1",
    )
    .bind(models)
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(collection_from_row).transpose()
}

async fn claim_rows(
    transaction: &mut Transaction<'_, Postgres>,
    collection: &Collection,
    worker: &str,
    limit: usize,
    lease: Duration,
) -> Result<Vec<ClaimedRow>, sqlx::Error> {
    let rows = sqlx::query(
        "WITH due AS (
             SELECT key FROM outbox
             WHERE collection = $1 AND set_aside_at IS NULL AND due_at <= now()
             ORDER BY bulk, first_generation, key LIMIT $2
             FOR UPDATE SKIP LOCKED
         )
         UPDATE outbox o SET claimed_by = $3, claimed_version = o.version, claimed_index = $5,
             due_at = clock_timestamp() + $4 * interval '1 millisecond'
         FROM due WHERE o.collection = $1 AND o.key = due.key
         RETURNING o.key, o.version, o.deleted",
    )
    .bind(collection.id)
    .bind(as_limit(limit))
    .bind(worker)
    .bind(lease.as_secs_f64() * 1_000.0)
    .bind(collection.index)
    .fetch_all(&mut **transaction)
    .await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in &rows {
        let deleted: bool = row.try_get("deleted")?;
        claimed.push((row.try_get("key")?, row.try_get("version")?, deleted));
    }
    // A statement of its own sees what the rows locked above belong to; the one above may not.
    let living: Vec<Key> = claimed.iter().filter(|row| !row.2).map(|row| row.0).collect();
    let mut documents = documents(transaction, collection.index, &living).await?;
    claimed.sort_unstable();
    Ok(claimed
        .into_iter()
        .map(|(key, version, _)| ClaimedRow { key, version, document: documents.remove(&key) })
        .collect())
}

async fn documents(
    transaction: &mut Transaction<'_, Postgres>,
    index: i64,
    keys: &[Key],
) -> Result<HashMap<Key, ClaimedDocument>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT d.key, d.body::text, d.truncated, v.vector
         FROM documents d
         LEFT JOIN vectors v ON v.key = d.key AND coalesce(v.index_id, d.collection) = $2
         WHERE d.key = ANY($1)",
    )
    .bind(keys)
    .bind(index)
    .fetch_all(&mut **transaction)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("key")?, claimed_document(row)?))).collect()
}

/// Every other function that changes rows of the outbox holds this lock, as writers of documents
/// do: taking rows in different orders they would wait for each other in a circle.
async fn lock(
    transaction: &mut Transaction<'_, Postgres>,
    collection: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1 FROM collections WHERE id = $1 FOR NO KEY UPDATE")
        .bind(collection)
        .fetch_one(&mut **transaction)
        .await
        .map(drop)
}

pub async fn complete(
    pool: &PgPool,
    worker: &str,
    collection: i64,
    done: &[Done],
) -> Result<i64, sqlx::Error> {
    let vectors: Vec<Option<Vec<u8>>> = done
        .iter()
        .map(|done| done.embedding.as_ref().map(|e| vector_to_bytes(&e.vector)))
        .collect();
    let truncated: Vec<Option<bool>> =
        done.iter().map(|done| done.embedding.as_ref().map(|e| e.truncated)).collect();
    let mut transaction = pool.begin().await?;
    lock(&mut transaction, collection).await?;
    let generation = sqlx::query(
        "WITH present AS (
             SELECT coalesce(index_id, id) AS index_id FROM collections WHERE id = $1
         ), done AS (
             SELECT done.* FROM unnest($3::bigint[], $4::bigint[], $5::bytea[], $6::bool[])
                 AS done (key, version, vector, truncated)
             JOIN outbox o ON o.collection = $1 AND o.key = done.key
             JOIN present p ON p.index_id = o.claimed_index
         ), of_another_index AS (
             UPDATE outbox o SET claimed_by = NULL, due_at = now() FROM present p
             WHERE o.collection = $1 AND o.key = ANY($3) AND o.claimed_by = $2
                 AND o.claimed_index <> p.index_id
         ), removed AS (
             DELETE FROM outbox o USING done d
             WHERE o.collection = $1 AND o.key = d.key AND o.claimed_by = $2
                 AND o.version = d.version
             RETURNING o.key, o.version
         ), written_again AS (
             UPDATE outbox o SET claimed_by = NULL, due_at = now(),
                 first_generation = d.version + 1
             FROM done d
             WHERE o.collection = $1 AND o.key = d.key AND o.claimed_by = $2
                 AND o.version > d.version
             RETURNING d.version
         ), embedded AS (
             UPDATE documents t SET truncated = d.truncated FROM done d, removed r
             WHERE t.key = d.key AND r.key = d.key AND t.generation = d.version
                 AND d.vector IS NOT NULL AND t.truncated <> d.truncated
         ), stored AS (
             INSERT INTO vectors (key, vector, index_id)
             SELECT d.key, d.vector, (SELECT index_id FROM present)
             FROM done d JOIN removed r ON r.key = d.key
             JOIN documents t ON t.key = d.key AND t.generation = d.version
             WHERE d.vector IS NOT NULL
             ON CONFLICT (key) DO UPDATE SET vector = excluded.vector, index_id = excluded.index_id
         ), indexed AS (
             SELECT max(version) AS version
             FROM (SELECT version FROM removed UNION ALL SELECT version FROM written_again) claimed
         )
         UPDATE collections SET visible_generation = CASE
             WHEN indexed.version IS NULL THEN visible_generation
             ELSE greatest(visible_generation + 1, indexed.version) END
         FROM indexed WHERE id = $1 RETURNING visible_generation",
    )
    .bind(collection)
    .bind(worker)
    .bind(done.iter().map(|done| done.key).collect::<Vec<_>>())
    .bind(done.iter().map(|done| done.version).collect::<Vec<_>>())
    .bind(vectors)
    .bind(truncated)
    .fetch_one(&mut *transaction)
    .await?
    .try_get("visible_generation")?;
    transaction.commit().await?;
    Ok(generation)
}

pub async fn release(
    pool: &PgPool,
    worker: &str,
    collection: i64,
    keys: &[Key],
    failure: Option<&Failure>,
) -> Result<u64, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock(&mut transaction, collection).await?;
    let Some(failure) = failure else {
        sqlx::query(
            "UPDATE outbox SET claimed_by = NULL, due_at = now()
             WHERE collection = $1 AND key = ANY($2) AND claimed_by = $3",
        )
        .bind(collection)
        .bind(keys)
        .bind(worker)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        return Ok(0);
    };
    let reason: String =
        failure.reason.chars().filter(|&char| char != '\0').take(MAX_REASON).collect();
    // What was written again since it was claimed has not failed: it was not tried.
    let row = sqlx::query(
        "WITH failed AS (
             UPDATE outbox SET claimed_by = NULL, attempts = attempts + 1, reason = $4,
                 due_at = now() + $5 * interval '1 millisecond',
                 set_aside_at = CASE WHEN attempts + 1 >= $6 THEN now() END
             WHERE collection = $1 AND key = ANY($2) AND claimed_by = $3
                 AND version = claimed_version
             RETURNING set_aside_at
         ), written_again AS (
             UPDATE outbox SET claimed_by = NULL, due_at = now()
             WHERE collection = $1 AND key = ANY($2) AND claimed_by = $3
                 AND version <> claimed_version
         )
         SELECT count(set_aside_at) AS set_aside FROM failed",
    )
    .bind(collection)
    .bind(keys)
    .bind(worker)
    .bind(reason)
    .bind(failure.delay.as_secs_f64() * 1_000.0)
    .bind(i32::try_from(failure.max_attempts).unwrap_or(i32::MAX))
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(row.try_get::<i64, _>("set_aside")?.unsigned_abs())
}

pub async fn progress(
    pool: &PgPool,
    collection: i64,
    first: i64,
    last: i64,
) -> Result<Progress, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM outbox WHERE collection = $1 AND bulk IN (false, true)
                     AND first_generation <= $3 AND version >= $2 AND set_aside_at IS NULL)
                    AS pending,
                (SELECT count(*) FROM outbox WHERE collection = $1
                     AND first_generation <= $3 AND version >= $2 AND set_aside_at IS NOT NULL)
                    AS set_aside",
    )
    .bind(collection)
    .bind(first)
    .bind(last)
    .fetch_one(pool)
    .await?;
    Ok(Progress {
        pending: row.try_get::<i64, _>("pending")?.unsigned_abs(),
        set_aside: row.try_get::<i64, _>("set_aside")?.unsigned_abs(),
    })
}

pub async fn set_aside(
    pool: &PgPool,
    collection: i64,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<SetAside>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, version, attempts, coalesce(reason, '') AS reason,
                (extract(epoch FROM set_aside_at) * 1000)::bigint AS at_ms
         FROM outbox WHERE collection = $1 AND set_aside_at IS NOT NULL AND id > $2
         ORDER BY id LIMIT $3",
    )
    .bind(collection)
    .bind(before_nul(after.unwrap_or("")))
    .bind(as_limit(limit))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(SetAside {
                id: row.try_get("id")?,
                version: row.try_get("version")?,
                attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
                reason: row.try_get("reason")?,
                at_ms: row.try_get("at_ms")?,
            })
        })
        .collect()
}

pub async fn retry(pool: &PgPool, collection: i64) -> Result<u64, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock(&mut transaction, collection).await?;
    let retried = sqlx::query(
        "UPDATE outbox SET set_aside_at = NULL, attempts = 0, due_at = now()
         WHERE collection = $1 AND set_aside_at IS NOT NULL",
    )
    .bind(collection)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(retried.rows_affected())
}

pub async fn enqueue_all(pool: &PgPool, collection: i64) -> Result<u64, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    // Many documents take longer than a statement may take otherwise.
    sqlx::query("SET LOCAL statement_timeout = '55s'").execute(&mut *transaction).await?;
    lock(&mut transaction, collection).await?;
    let made = sqlx::query(
        "INSERT INTO outbox (collection, key, id, version, first_generation, deleted, bulk)
         SELECT collection, key, id, generation, generation, false, true
         FROM documents WHERE collection = $1
         ON CONFLICT (collection, key) DO NOTHING",
    )
    .bind(collection)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(made.rows_affected())
}

pub async fn enqueue(pool: &PgPool, collection: i64, keys: &[Key]) -> Result<u64, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    lock(&mut transaction, collection).await?;
    let made = sqlx::query(
        "INSERT INTO outbox (collection, key, id, version, first_generation, deleted, bulk)
         SELECT c.id, wanted.key, coalesce(d.id, wanted.key::text),
                coalesce(d.generation, c.generation), coalesce(d.generation, c.generation),
                d.key IS NULL, true
         FROM unnest($2::bigint[]) AS wanted (key)
         JOIN collections c ON c.id = $1
         LEFT JOIN documents d ON d.key = wanted.key AND d.collection = c.id
         ON CONFLICT (collection, key) DO NOTHING",
    )
    .bind(collection)
    .bind(keys)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(made.rows_affected())
}

pub async fn expected(
    pool: &PgPool,
    collection: i64,
    after: Option<Key>,
    limit: usize,
) -> Result<Expected, sqlx::Error> {
    let (after, limit) = (after.unwrap_or(Key::MIN), as_limit(limit));
    let present = sqlx::query(
        "SELECT coalesce(index_id, id) AS index_id,
                documents - (SELECT count(*) FROM outbox o WHERE o.collection = c.id AND NOT o.deleted)
                    AS documents
         FROM collections c WHERE id = $1",
    )
    .bind(collection)
    .fetch_one(pool)
    .await?;
    let documents = sqlx::query(
        "SELECT key, generation FROM documents WHERE collection = $1 AND key > $2
         ORDER BY key LIMIT $3",
    )
    .bind(collection)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    // After the documents: what is written meanwhile waits, or the index has it.
    let waiting = sqlx::query_scalar(
        "SELECT key FROM outbox WHERE collection = $1 AND key > $2 ORDER BY key LIMIT $3",
    )
    .bind(collection)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let version = |row: &PgRow| {
        let (key, version) = (row.try_get("key")?, row.try_get("generation")?);
        Ok(Version { key, version })
    };
    Ok(Expected {
        index: present.try_get("index_id")?,
        documents: u64::try_from(present.try_get::<i64, _>("documents")?).unwrap_or(0),
        versions: documents.iter().map(version).collect::<Result<_, sqlx::Error>>()?,
        waiting,
    })
}

pub async fn backlog(pool: &PgPool) -> Result<Backlog, sqlx::Error> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE set_aside_at IS NULL) AS waiting,
                count(set_aside_at) AS set_aside,
                coalesce(extract(epoch FROM clock_timestamp()
                    - min(created_at) FILTER (WHERE set_aside_at IS NULL)), 0)::float8 AS oldest
         FROM outbox",
    )
    .fetch_one(pool)
    .await?;
    Ok(Backlog {
        rows: row.try_get::<i64, _>("waiting")?.unsigned_abs(),
        oldest: Duration::try_from_secs_f64(row.try_get("oldest")?).unwrap_or_default(),
        set_aside: row.try_get::<i64, _>("set_aside")?.unsigned_abs(),
    })
}
