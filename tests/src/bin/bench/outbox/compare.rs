//! What Postgres and Milvus hold, read from each directly.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use milvus::v2::prelude::{
    ClientV2, ConnectConfig, ConsistencyLevel, QueryRequest, RetryConfig, TelemetryConfig,
};
use sextant_tests::production::Stores;
use sqlx::postgres::{PgPool, PgPoolOptions};

use super::COLLECTION;
use crate::Failure;
use crate::report::{Bars, Table};

/// Rows of one answer of Milvus.
const PAGE: usize = 16_000;
const TIMEOUT: Duration = Duration::from_mins(1);
/// How many differences are shown.
const SHOWN: usize = 5;

pub struct Index {
    postgres: PgPool,
    milvus: ClientV2,
    /// The collection's number in Postgres, which its name in Milvus ends with.
    collection: i64,
}

/// Identifier and version by key.
type Rows = BTreeMap<i64, (String, i64)>;

#[derive(Default)]
pub struct Found {
    documents: u64,
    rows: u64,
    missing: Vec<String>,
    surplus: Vec<String>,
    different: Vec<String>,
    dead_letters: i64,
}

pub async fn index(stores: &Stores) -> Result<Index, Failure> {
    let postgres =
        PgPoolOptions::new().max_connections(1).connect(&stores.database(&stores.primary)).await?;
    let config = ConnectConfig::new()
        .uri(stores.milvus.endpoint())
        .rpc_timeout(TIMEOUT)
        .retry(RetryConfig::new().max_attempts(1))
        .telemetry(TelemetryConfig::new().enabled(false));
    let milvus = ClientV2::new(&config).await?;
    let collection = sqlx::query_scalar("SELECT id FROM collections WHERE name = $1")
        .bind(COLLECTION)
        .fetch_one(&postgres)
        .await?;
    Ok(Index { postgres, milvus, collection })
}

/// Waits until the workers have nothing left to do.
pub async fn caught_up(index: &Index, within: Duration) -> Result<(), Failure> {
    const WAITING: &str = "SELECT count(*) FROM outbox WHERE set_aside_at IS NULL";
    let started = Instant::now();
    let mut waiting = 0_i64;
    while started.elapsed() < within {
        waiting = sqlx::query_scalar(WAITING).fetch_one(&index.postgres).await?;
        if waiting == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(format!("{waiting} documents still wait after {within:?}").into())
}

/// Waits until Postgres and Milvus hold the same, or tells what differs at the end.
pub async fn agreed(index: &Index, within: Duration) -> Result<Found, Failure> {
    let started = Instant::now();
    loop {
        caught_up(index, within).await?;
        let found = compare(index).await?;
        if found.differences() == 0 || started.elapsed() > within {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

pub async fn compare(index: &Index) -> Result<Found, Failure> {
    let documents = documents(index).await?;
    let mut rows = rows(index).await?;
    let mut found = Found {
        documents: documents.len() as u64,
        rows: rows.len() as u64,
        dead_letters: sqlx::query_scalar("SELECT count(*) FROM outbox")
            .fetch_one(&index.postgres)
            .await?,
        ..Found::default()
    };
    for (key, (id, version)) in documents {
        match rows.remove(&key) {
            None => found.missing.push(format!("{id} in version {version}")),
            Some(row) if row != (id.clone(), version) => {
                found.different.push(format!("{id} in version {version}, in Milvus {row:?}"));
            }
            Some(_) => {}
        }
    }
    found.surplus =
        rows.into_values().map(|(id, version)| format!("{id} in version {version}")).collect();
    Ok(found)
}

async fn documents(index: &Index) -> Result<Rows, Failure> {
    let rows: Vec<(i64, String, i64)> =
        sqlx::query_as("SELECT key, id, generation FROM documents WHERE collection = $1")
            .bind(index.collection)
            .fetch_all(&index.postgres)
            .await?;
    Ok(rows.into_iter().map(|(key, id, version)| (key, (id, version))).collect())
}

async fn rows(index: &Index) -> Result<Rows, Failure> {
    // Servers sort by key only for these.
    let parameters = [("iterator", "False"), ("reduce_stop_for_best", "True")];
    let parameters: HashMap<String, String> =
        parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let (mut all, mut after) = (Rows::new(), -1);
    loop {
        let request = QueryRequest::builder()
            .collection_name(format!("sextant_{}", index.collection))
            .filter(format!("key > {after}"))
            .output_fields(["key", "id", "version"])
            .limit(i64::try_from(PAGE)?)
            .extra_params(parameters.clone())
            .consistency_level(ConsistencyLevel::Strong)
            .build()?;
        let answer = index.milvus.query(request).await?;
        let mut count = 0;
        for row in answer.results().rows()? {
            let key = row.get_i64("key")?;
            all.insert(key, (row.get_str("id")?.to_owned(), row.get_i64("version")?));
            after = after.max(key);
            count += 1;
        }
        if count < PAGE {
            return Ok(all);
        }
    }
}

impl Found {
    pub fn differences(&self) -> usize {
        [&self.missing, &self.surplus, &self.different].into_iter().map(Vec::len).sum()
    }

    pub fn print(&self, bars: &mut Bars, expected: u64) {
        let mut table = Table::new(&[
            "documents in Postgres",
            "rows in Milvus",
            "only in Postgres",
            "only in Milvus",
            "other version",
            "dead letters",
        ]);
        let [missing, surplus, different] =
            [&self.missing, &self.surplus, &self.different].map(Vec::len);
        table.row(&[
            &self.documents,
            &self.rows,
            &missing,
            &surplus,
            &different,
            &self.dead_letters,
        ]);
        table.print();
        for list in [&self.missing, &self.surplus, &self.different] {
            for difference in list.iter().take(SHOWN) {
                println!("- {difference}");
            }
        }
        let lost = expected.abs_diff(self.documents);
        bars.at_most("acknowledged writes that Postgres does not have", 0.0, lost as f64);
        bars.at_most("differences between Postgres and Milvus", 0.0, self.differences() as f64);
        bars.at_most("dead letters", 0.0, self.dead_letters as f64);
    }
}
