//! Postgres for the suites, and what only Postgres does: replicas, failover, many servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sextant_server::adapters::documents::postgres::{PostgresOptions, PostgresStore};
use sextant_server::domain::{
    AttributeType, Collection, CollectionName, Document, EmbeddingVersion, Schema,
};
use sextant_server::metrics::Metrics;
use sextant_server::ports::{DocumentStore, DocumentWrite, StoreError, StoredVector};
use sextant_stack::postgres::Postgres;
use sextant_stack::until;

use crate::tls::Certificates;

pub fn options(primary: &str, replicas: &[String]) -> PostgresOptions {
    PostgresOptions {
        primary: primary.to_owned(),
        replicas: replicas.to_vec(),
        password: None,
        max_connections: 8,
        connect_timeout: Duration::from_millis(500),
        statement_timeout: Duration::from_secs(5),
        max_lag: Duration::from_millis(300),
        probe_period: Duration::from_millis(100),
    }
}

async fn connect(options: PostgresOptions) -> PostgresStore {
    PostgresStore::connect(options, Arc::new(Metrics::new())).await.unwrap()
}

/// Connection string of an empty database on the server that the tests share.
pub async fn database() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap().unwrap();
    let name = format!("test_{}", MADE.fetch_add(1, Ordering::Relaxed));
    server.create_database(&name).await.unwrap();
    server.url(&name)
}

pub async fn store() -> PostgresStore {
    connect(options(&database().await, &[])).await
}

pub fn name(name: &str) -> CollectionName {
    CollectionName::parse(name).unwrap()
}

pub fn embedding() -> EmbeddingVersion {
    EmbeddingVersion {
        model: "test".into(),
        date: "2026-11-23".into(),
        hash: "00".into(),
        dimension: 2,
    }
}

pub async fn collection(store: &dyn DocumentStore, of: &str) -> Collection {
    store.create_collection(&name(of), &Schema::default(), &embedding()).await.unwrap()
}

/// A write that leaves embedding to a worker.
pub fn write(id: &str, text: &str) -> DocumentWrite {
    let document = Document::parse(json!({"id": id, "name": text}), "").unwrap();
    let mut text_hash = [0; 32];
    for (slot, byte) in text_hash.iter_mut().zip(text.bytes()) {
        *slot = byte;
    }
    DocumentWrite { document, text: text.to_owned(), text_hash, embedding: None }
}

pub fn vector(value: f32) -> StoredVector {
    StoredVector { vector: Arc::from([value, 1.0]), truncated: false }
}

#[tokio::test]
async fn servers_that_start_together_migrate_once() {
    let url = database().await;
    let stores = futures::future::join_all((0..4).map(|_| connect(options(&url, &[])))).await;
    let made = collection(&stores[0], "a").await;
    for store in &stores {
        assert_eq!(store.collections().await.unwrap(), std::slice::from_ref(&made));
        store.close().await;
    }
}

#[tokio::test]
async fn a_certificate_is_believed_of_the_given_authority_and_for_the_right_host_only() {
    let (folder, [postgres]) = cluster().await;
    let ours = Certificates::of("localhost");
    postgres.use_tls(&ours.certificate, &ours.key).await.unwrap();
    let authority = ours.authority_in(folder.path());
    let url = |host: &str, authority: &Path| {
        let url = postgres.url("postgres").replace("127.0.0.1", host);
        format!("{url}?sslmode=verify-full&sslrootcert={}", authority.display())
    };
    let store = connect(options(&url("localhost", &authority), &[])).await;
    collection(&store, "a").await;
    let with_tls = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                    WHERE application_name = 'sextant'";
    assert_eq!(postgres.ask(with_tls).await.unwrap(), "t");
    let other_host = url("127.0.0.1", &authority);
    let unknown = tempfile::tempdir().unwrap();
    let other_authority = Certificates::of("localhost").authority_in(unknown.path());
    for url in [other_host, url("localhost", &other_authority)] {
        let outcome =
            PostgresStore::connect(options(&url, &[]), Arc::new(Metrics::new())).await.map(drop);
        assert!(matches!(outcome, Err(StoreError::Unavailable { .. })), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_write_that_no_replica_has_is_not_acknowledged() {
    let (_folder, [postgres]) = cluster().await;
    let short = PostgresOptions {
        statement_timeout: Duration::from_millis(500),
        ..options(&postgres.url("postgres"), &[])
    };
    let store = connect(short).await;
    let made = collection(&store, "a").await;
    // The replica is gone: a commit waits for it without end, whatever a statement may take.
    postgres.ask("ALTER SYSTEM SET synchronous_standby_names = 'gone'").await.unwrap();
    postgres.ask("SELECT pg_reload_conf()").await.unwrap();
    until("the setting", || async {
        postgres.ask("SHOW synchronous_standby_names").await.is_ok_and(|value| value == "gone")
    })
    .await
    .unwrap();
    let outcome = store.upsert(made.id, &[write("1", "one")], None).await.map(drop);
    assert!(matches!(outcome, Err(StoreError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_server_starts_on_a_database_that_a_newer_one_migrated() {
    let url = database().await;
    connect(options(&url, &[])).await.close().await;
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations VALUES (9999, 'from the future', now(), true, '\\x00', 1)",
    )
    .execute(&pool)
    .await
    .unwrap();
    connect(options(&url, &[])).await;
}

#[tokio::test]
async fn attributes_that_two_servers_add_at_once_are_all_kept() {
    let store = store().await;
    let id = collection(&store, "a").await.id;
    let with = |attribute: String, kind| Schema {
        attributes: [(attribute, kind)].into(),
        ..Schema::default()
    };
    let writes = (0..10).map(|i| {
        let (store, schema) = (&store, with(format!("a{i}"), AttributeType::Number));
        async move {
            store
                .upsert(id, &[write(&i.to_string(), "text")], Some(&schema))
                .await
                .unwrap()
                .generation
        }
    });
    let mut generations = futures::future::join_all(writes).await;
    generations.sort_unstable();
    assert_eq!(generations, (1..=10).collect::<Vec<_>>());
    let schema = store.collection(&name("a")).await.unwrap().unwrap().schema;
    assert_eq!(schema.attributes.len(), 10);
    // The first type wins, and the write that does not fit leaves nothing.
    let other = with("a3".into(), AttributeType::Bool);
    let conflict = store.upsert(id, &[write("x", "text")], Some(&other)).await;
    assert!(matches!(conflict, Err(StoreError::Conflict(_))), "{conflict:?}");
    let conflict = store.update_schema(id, &other).await;
    assert!(matches!(conflict, Err(StoreError::Conflict(_))), "{conflict:?}");
    assert_eq!(store.get(id, "x").await.unwrap(), None);
}

#[tokio::test]
async fn no_database_is_an_error_in_bounded_time() {
    let nobody = format!("postgres://x@127.0.0.1:{}/x", sextant_stack::free_port().unwrap());
    let start = Instant::now();
    let refused =
        PostgresStore::connect(options(&nobody, &[]), Arc::new(Metrics::new())).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_restarted_server_is_used_again() {
    let (_folder, [mut primary]) = cluster().await;
    let store = connect(options(&primary.url("postgres"), &[])).await;
    let id = collection(&store, "a").await.id;
    primary.process().kill().await.unwrap();
    let start = Instant::now();
    let refused = store.upsert(id, &[write("1", "one")], None).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(store.health().await.is_err());
    primary.restart().await.unwrap();
    until("a write", || async { store.upsert(id, &[write("1", "one")], None).await.is_ok() })
        .await
        .unwrap();
    store.health().await.unwrap();
}

/// A primary and its replicas in a folder that Postgres's user can reach.
async fn cluster<const N: usize>() -> (tempfile::TempDir, [Postgres; N]) {
    let folder = tempfile::tempdir().unwrap();
    let open: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    let dir = |i: usize| -> PathBuf { folder.path().join(i.to_string()) };
    let mut nodes = vec![Postgres::primary_with(&dir(0), &["fsync=off"]).await.unwrap()];
    for i in 1..N {
        nodes.push(Postgres::replica(&nodes[0], &dir(i)).await.unwrap());
    }
    let Ok(nodes) = nodes.try_into() else { unreachable!("there are as many as were started") };
    (folder, nodes)
}

/// A store on a primary and a replica that is read from, with one document.
async fn with_replica(primary: &Postgres, replica: &Postgres) -> (PostgresStore, i64, i64) {
    let hosts = format!(
        "postgres://sextant@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable",
        primary.port(),
        replica.port()
    );
    let store = connect(options(&hosts, &[replica.url("postgres")])).await;
    let id = collection(&store, "a").await.id;
    let key = store.upsert(id, &[write("1", "one")], None).await.unwrap().keys[0];
    until("a usable replica", || async { replica_state(&store) == "standby" }).await.unwrap();
    let there =
        || async { replica.ask("SELECT count(*) FROM documents").await.is_ok_and(|n| n == "1") };
    until("the document on the replica", there).await.unwrap();
    (store, id, key)
}

fn replica_state(store: &PostgresStore) -> &'static str {
    store.status().iter().find(|node| node.role == "replica").unwrap().state
}

async fn reads(store: &PostgresStore, id: i64, key: i64) -> bool {
    matches!(store.fetch(id, &[key]).await.as_deref(), Ok([Some(_)]))
}

#[tokio::test]
async fn reads_go_on_from_a_replica_while_the_primary_is_gone() {
    let (_folder, [mut primary, replica]) = cluster().await;
    let (store, id, key) = with_replica(&primary, &replica).await;
    primary.process().kill().await.unwrap();
    for _ in 0..50 {
        assert!(reads(&store, id, key).await);
        assert_eq!(store.list(id, None, 10).await.unwrap().len(), 1);
    }
    let start = Instant::now();
    let refused = store.upsert(id, &[write("2", "two")], None).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(store.health().await.is_err());
    // Still so when it has been gone for longer than a replica may lag.
    until("a probe", || async { start.elapsed() > Duration::from_secs(1) }).await.unwrap();
    assert!(reads(&store, id, key).await);
}

#[tokio::test]
async fn reads_go_on_from_the_primary_when_a_replica_is_killed() {
    let (_folder, [primary, mut replica]) = cluster().await;
    let (store, id, key) = with_replica(&primary, &replica).await;
    replica.process().kill().await.unwrap();
    for _ in 0..50 {
        assert!(reads(&store, id, key).await);
    }
    until("the loss", || async { replica_state(&store) == "down" }).await.unwrap();
    replica.restart().await.unwrap();
    until("the replica's return", || async { replica_state(&store) == "standby" }).await.unwrap();
    assert!(reads(&store, id, key).await);
}

#[tokio::test]
async fn a_promoted_replica_is_written_to_without_a_restart() {
    let (_folder, [mut primary, replica]) = cluster().await;
    let (store, id, _) = with_replica(&primary, &replica).await;
    primary.process().kill().await.unwrap();
    replica.promote().await.unwrap();
    let start = Instant::now();
    let writes = || async { store.upsert(id, &[write("2", "two")], None).await.is_ok() };
    until("a write", writes).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(store.list(id, None, 10).await.unwrap().len(), 2);
    // The old primary comes back and still takes itself for one: nothing is written to it.
    primary.restart().await.unwrap();
    let node = format!("127.0.0.1:{}", primary.port());
    let back = || async { store.status().iter().any(|n| n.node == node && n.state == "primary") };
    until("the old primary's return", back).await.unwrap();
    for i in 3..10 {
        store.upsert(id, &[write(&i.to_string(), "more")], None).await.unwrap();
    }
    assert_eq!(primary.ask("SELECT count(*) FROM documents").await.unwrap(), "1");
    assert_eq!(replica.ask("SELECT count(*) FROM documents").await.unwrap(), "9");
}

#[tokio::test]
async fn what_needs_the_primary_waits_for_one_that_is_just_being_promoted() {
    let (_folder, [mut primary, replica]) = cluster().await;
    let hosts = format!(
        "postgres://sextant@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable",
        primary.port(),
        replica.port()
    );
    let patient = Duration::from_secs(4);
    let store = connect(PostgresOptions { connect_timeout: patient, ..options(&hosts, &[]) }).await;
    let id = collection(&store, "a").await.id;
    let key = store.upsert(id, &[write("1", "one")], None).await.unwrap().keys[0];
    let there =
        || async { replica.ask("SELECT count(*) FROM documents").await.is_ok_and(|n| n == "1") };
    until("the document on the replica", there).await.unwrap();
    primary.process().kill().await.unwrap();
    // Connections are broken, and then there is no primary for a while.
    let promoted = async {
        let lost = || async { store.status().iter().all(|node| node.state != "primary") };
        until("the loss", lost).await.unwrap();
        replica.promote().await.unwrap();
    };
    let (read, ()) = tokio::join!(reads(&store, id, key), promoted);
    assert!(read);
    store.upsert(id, &[write("2", "two")], None).await.unwrap();
}

#[tokio::test]
async fn a_frozen_replica_delays_a_read_for_a_bounded_time_and_only_at_first() {
    let (_folder, [primary, replica]) = cluster().await;
    let (store, id, key) = with_replica(&primary, &replica).await;
    assert!(reads(&store, id, key).await); // a connection to it is open
    replica.freeze().unwrap();
    let start = Instant::now();
    assert!(reads(&store, id, key).await);
    assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
    until("the loss", || async { replica_state(&store) == "down" }).await.unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        assert!(reads(&store, id, key).await);
    }
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    replica.thaw().unwrap();
    until("the replica's return", || async { replica_state(&store) == "standby" }).await.unwrap();
}

#[tokio::test]
async fn a_frozen_primary_fails_writes_in_bounded_time() {
    let (_folder, [primary, replica]) = cluster().await;
    let (store, id, key) = with_replica(&primary, &replica).await;
    primary.freeze().unwrap();
    let start = Instant::now();
    let refused = store.upsert(id, &[write("2", "two")], None).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert!(reads(&store, id, key).await);
    primary.thaw().unwrap();
    let writes = || async { store.upsert(id, &[write("2", "two")], None).await.is_ok() };
    until("a write", writes).await.unwrap();
}

#[tokio::test]
async fn a_lagging_replica_is_not_read_from_until_it_has_caught_up() {
    let (_folder, [primary, replica]) = cluster().await;
    let (store, id, _) = with_replica(&primary, &replica).await;
    replica.ask("SELECT pg_wal_replay_pause()").await.unwrap();
    // A document that the replica does not have is read from the primary at once.
    let key = store.upsert(id, &[write("2", "two")], None).await.unwrap().keys[0];
    assert!(reads(&store, id, key).await);
    assert!(store.get(id, "2").await.unwrap().is_some());
    until("the lag", || async { replica_state(&store) == "lagging" }).await.unwrap();
    assert_eq!(store.list(id, None, 10).await.unwrap().len(), 2);
    replica.ask("SELECT pg_wal_replay_resume()").await.unwrap();
    until("the replica's return", || async { replica_state(&store) == "standby" }).await.unwrap();
    let caught_up = || async { store.list(id, None, 10).await.unwrap().len() == 2 };
    until("the document on the replica", caught_up).await.unwrap();
}

#[tokio::test]
async fn a_replica_of_an_idle_primary_stays_in_use() {
    let (_folder, [primary, replica]) = cluster().await;
    let (store, _, _) = with_replica(&primary, &replica).await;
    let start = Instant::now();
    let idle = || async {
        assert_eq!(replica_state(&store), "standby");
        start.elapsed() > Duration::from_secs(1)
    };
    until("time to pass", idle).await.unwrap();
}
