//! The far tier, on a real Redis.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sextant_server::adapters::cache::redis::{CacheEvents, RedisCache, RedisOptions};
use sextant_server::cache::CacheLimits;
use sextant_server::cache::shared::{Ask, CacheEvent, Invalidation, SharedAnswer, SharedCache};
use sextant_server::metrics::Metrics;
use sextant_server::ports::Embedding;
use sextant_stack::redis::{Access, Cluster, Redis, Sentinel};
use sextant_stack::until;

use crate::tls::Certificates;

const HOUR: Duration = Duration::from_hours(1);

struct Fixture {
    redis: Redis,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(None).await
    }

    async fn with(access: Option<Access>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let redis = Redis::start_with(folder.path(), access).await.unwrap();
        Self { redis, _folder: folder }
    }

    /// A server's connection, once it is up.
    async fn server(&self) -> Arc<RedisCache> {
        let server = connect(options(&self.redis.url()));
        until("a connection to Redis", || async { server.is_up() }).await.unwrap();
        server
    }
}

fn options(url: &str) -> RedisOptions {
    RedisOptions {
        url: url.to_owned(),
        user: String::new(),
        password: None,
        ca_file: None::<PathBuf>,
        prefix: "test".to_owned(),
        // Above the default, as tests share their processors.
        timeout: Duration::from_millis(200),
        results: CacheLimits { max_bytes: 0, ttl: HOUR, empty_ttl: Duration::ZERO },
        embeddings: CacheLimits { max_bytes: 0, ttl: HOUR, empty_ttl: HOUR },
        max_stale: 2 * HOUR,
    }
}

fn connect(options: RedisOptions) -> Arc<RedisCache> {
    RedisCache::connect(options, Arc::new(Metrics::new())).unwrap()
}

fn ask(number: u8) -> Ask {
    Ask {
        result: [number; 16],
        stale: Some([number | 0x80; 16]),
        embedding: Some([number; 16]),
        collection: 7,
        query: u64::from(number),
        claim: false,
    }
}

fn answer(json: &'static str) -> SharedAnswer {
    SharedAnswer {
        json: Bytes::from_static(json.as_bytes()),
        hits: json.len(),
        age: Duration::ZERO,
    }
}

/// Keeps an answer as a search would and waits until it is there.
async fn keep(server: &RedisCache, ask: &Ask, json: &'static str) {
    let told = server.look_up(ask).await.unwrap();
    server.keep_answer(ask, &told, &answer(json));
    until("the answer to be written", || async { found(server, ask).await.is_some() })
        .await
        .unwrap();
}

async fn found(server: &RedisCache, ask: &Ask) -> Option<Bytes> {
    server.look_up(ask).await?.answer.map(|answer| answer.json)
}

async fn heard(events: &mut CacheEvents, wanted: &CacheEvent) {
    let wait = async { while events.next().await.as_ref() != Some(wanted) {} };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the event");
}

#[tokio::test]
async fn redis_gives_one_servers_answers_and_embeddings_to_another() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server().await, fixture.server().await);
    let told = one.look_up(&ask(1)).await.unwrap();
    assert!(told.answer.is_none() && told.embedding.is_none());
    let embedding = Embedding { vector: [0.5, -0.25].into(), tokens: 3, truncated: true };
    one.keep_embedding([1; 16], &told, &embedding);
    one.keep_answer(&ask(1), &told, &answer("\"a\":1"));
    until("the answer to be written", || async { found(&one, &ask(1)).await.is_some() })
        .await
        .unwrap();
    let told = other.look_up(&ask(1)).await.unwrap();
    assert_eq!(told.embedding, Some(embedding));
    let answer = told.answer.unwrap();
    assert_eq!((&answer.json[..], answer.hits), (b"\"a\":1".as_slice(), 5));
    assert!(answer.age < Duration::from_mins(1));
}

#[tokio::test]
async fn redis_keeps_empty_answers_for_a_time_of_their_own() {
    let fixture = Fixture::new().await;
    let server = fixture.server().await;
    let told = server.look_up(&ask(1)).await.unwrap();
    server.keep_answer(&ask(1), &told, &answer(""));
    // Writes keep their order: when the second is there, the first was done.
    keep(&server, &ask(2), "a").await;
    assert_eq!(found(&server, &ask(1)).await, None);
    assert_eq!(server.stale(&ask(1)).await, None);
}

#[tokio::test]
async fn redis_forgets_what_an_invalidation_names_in_every_server() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server().await, fixture.server().await);
    let elsewhere = Ask { collection: 8, ..ask(2) };
    for (what, named, unnamed) in [
        (Invalidation::Query { collection: None, query: 1 }, ask(1), Some(ask(2))),
        (Invalidation::Collection(7), ask(1), Some(elsewhere)),
        (Invalidation::All, ask(1), None),
    ] {
        keep(&one, &named, "a").await;
        if let Some(unnamed) = &unnamed {
            keep(&one, unnamed, "b").await;
        }
        let mut events = other.events();
        assert!(one.invalidate(what).await, "{what:?}");
        assert_eq!(found(&other, &named).await, None, "{what:?}");
        assert_eq!(other.stale(&named).await, None, "{what:?}");
        if let Some(unnamed) = &unnamed {
            assert!(found(&other, unnamed).await.is_some(), "{what:?}");
        }
        heard(&mut events, &CacheEvent::Invalidated(what)).await;
    }
}

#[tokio::test]
async fn an_answer_computed_before_an_invalidation_and_kept_after_it_is_not_given() {
    let fixture = Fixture::new().await;
    let server = fixture.server().await;
    let before = server.look_up(&ask(1)).await.unwrap();
    assert!(server.invalidate(Invalidation::Collection(7)).await);
    server.keep_answer(&ask(1), &before, &answer("old"));
    server.keep_embedding(
        [1; 16],
        &before,
        &Embedding { vector: [1.0].into(), tokens: 1, truncated: false },
    );
    keep(&server, &ask(2), "b").await;
    let told = server.look_up(&ask(1)).await.unwrap();
    assert_eq!(told.answer, None);
    assert!(told.embedding.is_some(), "an embedding does not depend on the collection");
}

#[tokio::test]
async fn a_damaged_value_is_a_miss() {
    let fixture = Fixture::new().await;
    let server = fixture.server().await;
    keep(&server, &ask(1), "a").await;
    let key = format!("test:r:{}", "01".repeat(16));
    for value in [b"".as_slice(), b"\x01", b"\x63 of another version, and long enough to be read"] {
        let reply = fixture.redis.command(&[b"SET", key.as_bytes(), value]).await.unwrap();
        assert_eq!(reply, b"+OK\r\n");
        assert_eq!(found(&server, &ask(1)).await, None);
    }
    fixture.redis.command(&[b"DEL", key.as_bytes()]).await.unwrap();
    fixture.redis.command(&[b"LPUSH", key.as_bytes(), b"not even text"]).await.unwrap();
    assert_eq!(found(&server, &ask(1)).await, None);
    keep(&server, &ask(1), "b").await;
}

#[tokio::test]
async fn one_server_at_a_time_computes_an_answer() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server().await, fixture.server().await);
    let claiming = Ask { claim: true, ..ask(1) };
    let told = one.look_up(&claiming).await.unwrap();
    assert!(told.claim.is_some());
    assert!(other.look_up(&claiming).await.unwrap().claim.is_none());
    one.keep_answer(&claiming, &told, &answer("a"));
    drop(told);
    until("the claim to be given back", || async {
        other.look_up(&claiming).await.unwrap().claim.is_some()
    })
    .await
    .unwrap();
    assert!(found(&other, &claiming).await.is_some(), "the value came before the claim went");
}

#[tokio::test]
async fn the_last_answer_is_there_for_when_no_other_can_be_computed() {
    let fixture = Fixture::new().await;
    let server = fixture.server().await;
    keep(&server, &ask(1), "old").await;
    // The documents have changed: the answer has another name, the question has not.
    let now = Ask { result: [9; 16], ..ask(1) };
    assert_eq!(found(&server, &now).await, None);
    assert_eq!(server.stale(&now).await.unwrap().json, "old");
    keep(&server, &now, "new").await;
    assert_eq!(server.stale(&ask(1)).await.unwrap().json, "new");
}

#[tokio::test]
async fn a_generation_is_told_to_every_server_and_never_falls() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server().await, fixture.server().await);
    let mut events = other.events();
    assert!(one.raise_generation(7, 12).await);
    heard(&mut events, &CacheEvent::Generation { collection: 7, generation: 12 }).await;
    assert!(one.raise_generation(7, 9).await);
    let kept = fixture.redis.command(&[b"GET", b"test:gen:7"]).await.unwrap();
    assert_eq!(kept, b"$2\r\n12\r\n");
    // Without a message: found by reading again.
    other.follow(8);
    fixture.redis.command(&[b"SET", b"test:gen:8", b"5"]).await.unwrap();
    heard(&mut events, &CacheEvent::Generation { collection: 8, generation: 5 }).await;
}

#[tokio::test]
async fn an_invalidation_that_was_not_heard_of_is_noticed() {
    let fixture = Fixture::new().await;
    let server = fixture.server().await;
    let mut events = server.events();
    fixture.redis.command(&[b"SET", b"test:inv:last", b"somebody's"]).await.unwrap();
    heard(&mut events, &CacheEvent::Lost).await;
}

#[tokio::test]
async fn connecting_waits_for_nothing_and_comes_about_later() {
    let folder = tempfile::tempdir().unwrap();
    let mut redis = Redis::start(folder.path()).await.unwrap();
    redis.process.kill().await.unwrap();
    let started = Instant::now();
    let server = connect(options(&redis.url()));
    assert!(server.look_up(&ask(1)).await.is_none());
    assert!(!server.invalidate(Invalidation::All).await);
    assert!(!server.raise_generation(7, 3).await);
    assert!(started.elapsed() < Duration::from_secs(2));
    redis.restart().await.unwrap();
    until("a connection to Redis", || async { server.is_up() }).await.unwrap();
    // What could not be told is told now.
    until("the generation", || async {
        redis.command(&[b"GET", b"test:gen:7"]).await.unwrap() == b"$1\r\n3\r\n"
    })
    .await
    .unwrap();
    assert_ne!(redis.command(&[b"GET", b"test:inv:all"]).await.unwrap(), b"$-1\r\n");
}

#[tokio::test]
async fn what_a_frozen_redis_was_not_told_is_not_taken_from_it_when_it_is_back() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server().await, fixture.server().await);
    keep(&one, &ask(1), "old").await;
    fixture.redis.process.freeze().await.unwrap();
    assert!(!one.invalidate(Invalidation::All).await);
    fixture.redis.process.signal(libc::SIGCONT).unwrap();
    for server in [&one, &other] {
        until("a connection to Redis", || async { server.is_up() }).await.unwrap();
    }
    assert_eq!(found(&one, &ask(1)).await, None);
    until("the invalidation", || async { found(&other, &ask(1)).await.is_none() }).await.unwrap();
}

#[tokio::test]
async fn only_the_right_password_is_let_in_and_a_wrong_one_is_never_told() {
    let access = Access { user: "sextant".to_owned(), password: "right-one".to_owned() };
    let fixture = Fixture::with(Some(access)).await;
    let with = |password: &str| RedisOptions {
        user: "sextant".to_owned(),
        password: Some(password.to_owned()),
        ..options(&fixture.redis.url())
    };
    let right = connect(with("right-one"));
    until("a connection to Redis", || async { right.is_up() }).await.unwrap();
    let wrong = connect(with("wrong-one"));
    assert!(wrong.look_up(&ask(1)).await.is_none());
    assert!(!format!("{:?}", with("wrong-one")).contains("wrong-one"));
    // The password is made the right one while the server runs.
    let rule = [b"ACL".as_slice(), b"SETUSER", b"sextant", b">wrong-one"];
    assert_eq!(fixture.redis.command(&rule).await.unwrap(), b"+OK\r\n");
    until("a connection to Redis", || async { wrong.is_up() }).await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_believed_of_the_given_authority_and_for_the_right_host_only() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Certificates::of("localhost");
    let redis = Redis::start_tls(folder.path(), &ours.certificate, &ours.key).await.unwrap();
    let authority = ours.authority_in(folder.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let other_authority = Certificates::of("localhost").authority_in(elsewhere.path());
    let address = redis.tls_url().unwrap();
    let name = address.replace("127.0.0.1", "localhost");
    let with = |url, ca_file| connect(RedisOptions { ca_file: Some(ca_file), ..options(url) });
    let wrong = [with(&name, other_authority), with(&address, authority.clone())];
    let right = with(&name, authority);
    // Those that began before would be up by then.
    until("a connection to Redis", || async { right.is_up() }).await.unwrap();
    keep(&right, &Ask { claim: true, ..ask(1) }, "a").await;
    assert_eq!(found(&right, &ask(1)).await.unwrap(), "a");
    for server in wrong {
        assert!(!server.is_up());
        assert!(server.look_up(&ask(1)).await.is_none());
    }
}

/// The least that must work however Redis is made up.
async fn two_servers_share(url: &str) {
    let (one, other) = (connect(options(url)), connect(options(url)));
    for server in [&one, &other] {
        until("a connection to Redis", || async { server.is_up() }).await.unwrap();
    }
    for number in 1..20 {
        keep(&one, &Ask { claim: true, ..ask(number) }, "a").await;
        assert_eq!(found(&other, &ask(number)).await.unwrap(), "a");
    }
    assert_eq!(other.stale(&ask(1)).await.unwrap().json, "a");
    let mut events = other.events();
    assert!(one.raise_generation(7, 12).await);
    heard(&mut events, &CacheEvent::Generation { collection: 7, generation: 12 }).await;
    assert!(one.invalidate(Invalidation::Collection(7)).await);
    heard(&mut events, &CacheEvent::Invalidated(Invalidation::Collection(7))).await;
    assert_eq!(found(&other, &ask(1)).await, None);
}

#[tokio::test]
async fn servers_share_over_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), 3).await.unwrap();
    two_servers_share(&cluster.url()).await;
}

#[tokio::test]
async fn servers_share_over_what_a_sentinel_watches() {
    let folder = tempfile::tempdir().unwrap();
    let redis = Redis::start(&folder.path().join("redis")).await.unwrap();
    let sentinel = Sentinel::start(&folder.path().join("sentinel"), &redis).await.unwrap();
    two_servers_share(&sentinel.url()).await;
}

#[tokio::test]
async fn a_redis_slower_than_searches_wait_for_is_not_asked() {
    let fixture = Fixture::new().await;
    // Nothing answers in a nanosecond.
    let server =
        connect(RedisOptions { timeout: Duration::from_nanos(1), ..options(&fixture.redis.url()) });
    until("a connection to Redis", || async { server.is_asked() }).await.unwrap();
    until("it to be found slow", || async {
        server.look_up(&ask(1)).await.is_none() && !server.is_asked()
    })
    .await
    .unwrap();
}
