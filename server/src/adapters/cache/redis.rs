//! The far tier in Redis, which may be down, slow, empty or replaced at any time.
//!
//! Keys, after the prefix: `r:` answers and `e:` embeddings by hash, `s:` the name of the newest
//! answer to a question, `lock:` who computes an answer, `inv:` names of the last invalidations,
//! `gen:` what collections' searches see. Values that an invalidation concerns are not deleted:
//! each holds a hash of the invalidations' names (stamps) that it was computed under, and is not
//! given under others.

mod event;
mod options;
mod value;
mod watch;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use fred::clients::Pipeline;
use fred::prelude::{
    Client, ClientLike, Error, Expiration, FredResult, KeysInterface, LuaInterface,
    PubsubInterface, SetOptions, Value,
};
use futures::FutureExt;
use opentelemetry::trace::SpanKind;
use rand::Rng;
use tokio::sync::broadcast;
use tracing::warn;

use crate::breaker::{Breaker, BreakerOptions};
use crate::cache::Ttl;
use crate::cache::shared::{
    Ask, CacheEvent, Claim, Digest, Invalidation, SharedAnswer, SharedCache, Stamps, Told,
};
use crate::metrics::Metrics;
use crate::ports::Embedding;
use crate::spans::Span;

use options::Clients;
pub use options::{RedisError, RedisOptions};
use value::ResultValue;
use writer::{Write, Writer};

/// Longest wait for commands that no search waits for.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest time between attempts to find out whether Redis is back.
const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// Failures in a row after which nothing is asked for a while.
const FAILURES: u32 = 3;
/// How long one server may keep others from computing an answer; they wait less by themselves.
const CLAIM_MS: i64 = 1_000;
/// Events that wait for a receiver; one that is further behind is told that it lost some.
const MAX_WAITING_EVENTS: usize = 1_024;
/// Invalidations that wait for Redis; more become one of everything.
const MAX_UNDELIVERED: usize = 256;
/// Names of invalidations that are remembered to have arrived.
const MAX_SEEN: usize = 256;

/// `KEYS[1]` := `ARGV[1]` when that is greater; tells the channel `ARGV[2]` so by `ARGV[3]`.
const RAISE: &str = "local now = redis.call('get', KEYS[1]) \
    if now and tonumber(now) >= tonumber(ARGV[1]) then return 0 end \
    redis.call('set', KEYS[1], ARGV[1]) redis.call('publish', ARGV[2], ARGV[3]) return 1";
/// Deletes `KEYS[1]` when it still holds `ARGV[1]`.
const RELEASE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

pub struct RedisCache {
    clients: Clients,
    keys: Keys,
    timeout: Duration,
    results: Ttl,
    embeddings: Ttl,
    max_stale: Duration,
    breaker: Breaker,
    writer: Writer,
    /// Whether events arrive.
    subscribed: AtomicBool,
    events: broadcast::Sender<CacheEvent>,
    notes: Mutex<Notes>,
    /// One delivery at a time keeps invalidations in their order.
    delivering: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
}

/// What is to be told, and what was.
#[derive(Default)]
struct Notes {
    undelivered: VecDeque<(Invalidation, String)>,
    /// Generations that are to be told.
    unraised: HashMap<i64, i64>,
    /// The newest generation of each known collection that was told of.
    generations: HashMap<i64, i64>,
    /// Names of the newest invalidations that arrived or were sent.
    seen: VecDeque<String>,
}

struct Keys {
    prefix: String,
}

impl Keys {
    fn of(&self, kind: &str, digest: &Digest) -> String {
        let mut key = String::with_capacity(self.prefix.len() + kind.len() + 34);
        key.push_str(&self.prefix);
        key.push(':');
        key.push_str(kind);
        key.push(':');
        key.push_str(&hex(digest));
        key
    }

    fn generation(&self, collection: i64) -> String {
        format!("{}:gen:{collection}", self.prefix)
    }

    fn channel(&self) -> String {
        format!("{}:events", self.prefix)
    }

    /// Holds the name of the last invalidation of any kind.
    fn last(&self) -> String {
        format!("{}:inv:last", self.prefix)
    }

    fn stamps(&self, ask: &Ask) -> [String; 3] {
        [
            self.stamp(Invalidation::All),
            self.stamp(Invalidation::Collection(ask.collection)),
            self.stamp(Invalidation::Query { collection: None, query: ask.query }),
        ]
    }

    /// Where an invalidation's name is kept. A query's is kept for all collections alike: one key
    /// fewer to read in each search is worth that another collection's answers go, too.
    fn stamp(&self, what: Invalidation) -> String {
        match what {
            Invalidation::All => format!("{}:inv:all", self.prefix),
            Invalidation::Collection(id) => format!("{}:inv:c:{id}", self.prefix),
            Invalidation::Query { query, .. } => format!("{}:inv:q:{query:016x}", self.prefix),
        }
    }
}

fn hex(digest: &Digest) -> String {
    format!("{:032x}", u128::from_be_bytes(*digest))
}

impl RedisCache {
    /// Starts to connect and returns at once, whether Redis is there or not.
    ///
    /// # Errors
    /// When the options can never work: a malformed URL, an unreadable certificate.
    pub fn connect(options: RedisOptions, metrics: Arc<Metrics>) -> Result<Arc<Self>, RedisError> {
        let clients = Clients::new(&options, PATIENCE)?;
        let (writer, queue) = Writer::new(Arc::clone(&metrics));
        let cache = Arc::new(Self {
            clients,
            keys: Keys { prefix: options.prefix },
            timeout: options.timeout,
            results: Ttl::new(options.results.ttl, options.results.empty_ttl),
            embeddings: Ttl::new(options.embeddings.ttl, options.embeddings.empty_ttl),
            max_stale: options.max_stale,
            breaker: Breaker::new(
                BreakerOptions { failures: FAILURES, pause: PROBE_PAUSE, trial: PROBE_PAUSE },
                metrics.breaker_open.with_label_values(&["cache", "0"]),
            ),
            writer,
            subscribed: AtomicBool::new(false),
            events: broadcast::channel(MAX_WAITING_EVENTS).0,
            notes: Mutex::default(),
            delivering: tokio::sync::Mutex::default(),
            metrics,
        });
        // Made before the tasks run, so that nothing between is missed.
        watch::start(&cache);
        tokio::spawn(writer::run(Arc::downgrade(&cache), queue));
        Ok(cache)
    }

    /// What happens from now on.
    pub fn events(&self) -> CacheEvents {
        CacheEvents(self.events.subscribe())
    }

    /// Tells every server that searches of a collection see changes up to `generation`. When it
    /// cannot be told now, it is as soon as it can; false then.
    pub async fn raise_generation(&self, collection: i64, generation: i64) -> bool {
        self.follow(collection);
        let told = self.raise(collection, generation).await.is_ok();
        if !told {
            let mut notes = self.notes();
            let waiting = notes.unraised.entry(collection).or_insert(generation);
            *waiting = generation.max(*waiting);
        }
        told
    }

    /// Reads a collection's generation again and again, should its events get lost.
    pub fn follow(&self, collection: i64) {
        self.notes().generations.entry(collection).or_insert(0);
    }

    /// A collection that is no more.
    pub fn unfollow(&self, collection: i64) {
        let mut notes = self.notes();
        notes.generations.remove(&collection);
        notes.unraised.remove(&collection);
    }

    async fn raise(&self, collection: i64, generation: i64) -> FredResult<()> {
        let message = format!("generation {collection} {generation}");
        let arguments = vec![generation.to_string(), self.keys.channel(), message];
        self.observed("raise", PATIENCE, async {
            let key = self.keys.generation(collection);
            self.clients.writes.eval::<(), _, _, _>(RAISE, key, arguments).await
        })
        .await
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs commands within a time, and lets the breaker know how they ended.
    async fn observed<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        commands: impl Future<Output = FredResult<T>>,
    ) -> FredResult<T> {
        let started = Instant::now();
        let span = Span::child("redis", SpanKind::Client);
        span.set("db.system.name", "redis");
        span.set("db.operation.name", operation);
        let late = |_| Err(Error::new(fred::error::ErrorKind::Timeout, "no answer in time"));
        let commands =
            tokio::time::timeout(limit, commands).map(|result| result.unwrap_or_else(late));
        let failure = |result: &FredResult<T>| Some(result.as_ref().err()?.kind().to_str());
        let result = span.call(commands, failure).await;
        let took = started.elapsed();
        self.metrics.redis_duration.with_label_values(&[operation]).observe(took.as_secs_f64());
        if result.is_err() {
            self.count(operation, "error");
        }
        // What comes later than a search would wait for is no success: a Redis that is slow costs
        // searches more than one that is down. Nor does it break what is closed: writes may take
        // longer.
        if result.is_ok() && took <= self.timeout {
            self.breaker.succeeded();
        } else if result.is_err() || !self.breaker.is_closed() {
            self.breaker.failed(Instant::now(), rand::rng().random());
        }
        result
    }

    fn count(&self, kind: &str, result: &str) {
        self.metrics.redis_requests.with_label_values(&[kind, result]).inc();
    }

    /// Sends the invalidations that wait, in their order.
    async fn deliver(&self) -> FredResult<()> {
        let _delivering = self.delivering.lock().await;
        loop {
            let Some((what, token)) = self.notes().undelivered.front().cloned() else {
                return Ok(());
            };
            self.observed("invalidate", PATIENCE, self.tell(what, &token)).await?;
            let mut notes = self.notes();
            notes.saw(token.clone());
            // What waited may have become one of everything meanwhile.
            if notes.undelivered.front().is_some_and(|(_, first)| *first == token) {
                notes.undelivered.pop_front();
            }
        }
    }

    /// The stamp before the message: who hears of it no longer finds what it forgets.
    async fn tell(&self, what: Invalidation, token: &str) -> FredResult<()> {
        let writes = &self.clients.writes;
        // A query's stamp must outlive the values that were computed before it.
        let expire = match what {
            Invalidation::Query { .. } => {
                let longest = self.results.longest().max(self.max_stale) + CLOCK_MARGIN;
                Some(Expiration::PX(milliseconds(longest)))
            }
            Invalidation::All | Invalidation::Collection(_) => None,
        };
        let stamps = writes.pipeline();
        stamps.set::<(), _, _>(self.keys.stamp(what), token, expire, None, false).await?;
        stamps.set::<(), _, _>(self.keys.last(), token, None, None, false).await?;
        stamps.all::<Value>().await?;
        let message = event::invalidation_message(what, token);
        writes.publish::<(), _, _>(self.keys.channel(), message).await
    }

    /// A stored answer, when it is whole and no invalidation came since.
    fn answer(&self, kind: &str, reply: &Reply, stamps: Stamps) -> Option<ResultValue> {
        let Some(bytes) = bytes_of(reply) else {
            self.count(kind, "miss");
            return None;
        };
        let decoded = ResultValue::decode(bytes).ok();
        let result = match &decoded {
            None => "unreadable",
            Some(value) if value.stamps != stamps.result => "invalidated",
            Some(_) => return decoded,
        };
        self.count(kind, result);
        None
    }

    fn embedding(&self, reply: &Reply, stamps: Stamps) -> Option<Embedding> {
        let Some(bytes) = bytes_of(reply) else {
            self.count("embeddings", "miss");
            return None;
        };
        let (result, embedding) = match value::decode_embedding(bytes) {
            Err(value::Unreadable) => ("unreadable", None),
            Ok((_, stamp)) if stamp != stamps.all => ("invalidated", None),
            Ok((embedding, _)) => ("hit", Some(embedding)),
        };
        self.count("embeddings", result);
        embedding
    }

    fn claim(&self, ask: &Ask, token: String) -> Claim {
        struct Held {
            writer: Writer,
            release: Option<Write>,
        }
        impl Drop for Held {
            fn drop(&mut self) {
                if let Some(release) = self.release.take() {
                    self.writer.send(release);
                }
            }
        }
        let release = Write::Release { key: self.keys.of("lock", &ask.result), token };
        Box::new(Held { writer: self.writer.clone(), release: Some(release) })
    }
}

/// More than the jitter of times to live and the difference of servers' clocks.
const CLOCK_MARGIN: Duration = Duration::from_mins(1);

impl Notes {
    fn saw(&mut self, token: String) {
        if self.seen.len() >= MAX_SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(token);
    }
}

/// Reads the stamps, which come first among the replies that have them.
fn stamps(replies: &[Reply]) -> Option<Stamps> {
    let mut hasher = blake3::Hasher::new();
    let mut all = 0;
    for (i, reply) in replies.get(..3)?.iter().enumerate() {
        // An absent stamp is one, too.
        hasher.update(reply.as_ref()?.as_bytes().unwrap_or(b"-"));
        hasher.update(b"/");
        if i == 0 {
            all = first_bytes(&hasher);
        }
    }
    Some(Stamps { all, result: first_bytes(&hasher) })
}

fn first_bytes(hasher: &blake3::Hasher) -> u64 {
    let hash = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
}

fn bytes_of(reply: &Reply) -> Option<&[u8]> {
    reply.as_ref()?.as_bytes()
}

fn token() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A reply to one of several commands; `None` when that one failed, as with a value of another type
/// under its key.
type Reply = Option<Value>;

async fn get_all(
    client: &Client,
    keys: impl IntoIterator<Item = String>,
) -> FredResult<Vec<Reply>> {
    // Not one MGET: in a cluster the keys lie on different servers.
    let pipeline = client.pipeline();
    let mut count = 0;
    for key in keys {
        pipeline.get::<(), _>(key).await?;
        count += 1;
    }
    replies(&pipeline, count).await
}

/// Sends a pipeline of `count` commands. Fails when all of them do, as without a connection.
async fn replies(pipeline: &Pipeline<Client>, count: usize) -> FredResult<Vec<Reply>> {
    let mut results: Vec<FredResult<Value>> = pipeline.try_all().await;
    if results.len() == count && results.iter().any(Result::is_ok) {
        return Ok(results.into_iter().map(Result::ok).collect());
    }
    match results.pop() {
        Some(Err(error)) => Err(error),
        _ => Err(Error::new(fred::error::ErrorKind::Parse, "replies are missing")),
    }
}

#[async_trait]
impl SharedCache for RedisCache {
    async fn look_up(&self, ask: &Ask) -> Option<Told> {
        if !self.is_asked() {
            self.count("results", "skipped");
            return None;
        }
        let token = token();
        let replies = self.observed("look_up", self.timeout, async {
            let pipeline = self.clients.look_ups.pipeline();
            for key in self.keys.stamps(ask) {
                pipeline.get::<(), _>(key).await?;
            }
            pipeline.get::<(), _>(self.keys.of("r", &ask.result)).await?;
            if let Some(embedding) = &ask.embedding {
                pipeline.get::<(), _>(self.keys.of("e", embedding)).await?;
            }
            if ask.claim {
                let (key, expire) =
                    (self.keys.of("lock", &ask.result), Some(Expiration::PX(CLAIM_MS)));
                pipeline
                    .set::<(), _, _>(key, token.as_str(), expire, Some(SetOptions::NX), false)
                    .await?;
            }
            let count = 4 + usize::from(ask.embedding.is_some()) + usize::from(ask.claim);
            replies(&pipeline, count).await
        });
        let replies = replies.await.ok()?;
        let stamps = stamps(&replies)?;
        let mut replies = replies.into_iter().skip(3);
        let stored = self.answer("results", &replies.next()?, stamps);
        let now = now_ms();
        let answer = stored.filter(|value| value.age(now) < value.fresh_for);
        if answer.is_some() {
            self.count("results", "hit");
        }
        let embedding = match ask.embedding {
            Some(_) => self.embedding(&replies.next()?, stamps),
            None => None,
        };
        // Where nothing can be written, as in a full Redis, nobody waits for another.
        let claimed = ask.claim && replies.next()?.is_none_or(|reply| !reply.is_null());
        let claim = claimed.then(|| self.claim(ask, token));
        let answer = answer.map(|value| value.into_answer(now));
        Some(Told { answer, embedding, stamps, claim })
    }

    fn keep_answer(&self, ask: &Ask, told: &Told, answer: &SharedAnswer) {
        let fresh_for = self.results.of(answer.hits == 0);
        let kept_for = match ask.stale {
            Some(_) if answer.hits > 0 => fresh_for.max(self.max_stale),
            _ => fresh_for,
        };
        if kept_for < Duration::from_millis(1) {
            return;
        }
        let value = ResultValue {
            made_ms: now_ms(),
            fresh_for,
            stamps: told.stamps.result,
            hits: answer.hits,
            json: answer.json.clone(),
        };
        let key = self.keys.of("r", &ask.result);
        if let (Some(stale), true) = (&ask.stale, answer.hits > 0) {
            // The name of the answer, not a second copy of it.
            let (key, value) = (self.keys.of("s", stale), hex(&ask.result).into_bytes().into());
            self.writer.send(Write::Set { key, value, expire_ms: milliseconds(kept_for) });
        }
        self.writer.send(Write::Set {
            key,
            value: value.encode(),
            expire_ms: milliseconds(kept_for),
        });
    }

    fn keep_embedding(&self, key: Digest, told: &Told, embedding: &Embedding) {
        let expire_ms = milliseconds(self.embeddings.of(false));
        if expire_ms == 0 {
            return;
        }
        let value = value::encode_embedding(embedding, told.stamps.all);
        self.writer.send(Write::Set { key: self.keys.of("e", &key), value, expire_ms });
    }

    async fn stale(&self, ask: &Ask) -> Option<SharedAnswer> {
        let stale = ask.stale?;
        if !self.is_asked() {
            return None;
        }
        let read = self.observed("stale", self.timeout, async {
            let look_ups = &self.clients.look_ups;
            let name: Option<String> = look_ups.get(self.keys.of("s", &stale)).await?;
            let Some(name) = name else { return Ok(Vec::new()) };
            let mut keys = self.keys.stamps(ask).to_vec();
            keys.push(format!("{}:r:{name}", self.keys.prefix));
            get_all(look_ups, keys).await
        });
        let replies = read.await.ok()?;
        let value = self.answer("stale", replies.get(3)?, stamps(&replies)?)?;
        let now = now_ms();
        if value.age(now) > self.max_stale {
            return None;
        }
        self.count("stale", "hit");
        Some(value.into_answer(now))
    }

    async fn invalidate(&self, what: Invalidation) -> bool {
        {
            let mut notes = self.notes();
            if notes.undelivered.len() >= MAX_UNDELIVERED {
                notes.undelivered.clear();
                notes.undelivered.push_back((Invalidation::All, token()));
            } else {
                notes.undelivered.push_back((what, token()));
            }
        }
        // While it is known to be down the watch delivers, once it is up.
        let delivered = self.breaker.is_closed() && self.deliver().await.is_ok();
        if !delivered {
            warn!("the invalidation could not be told to other servers; it will be");
        }
        delivered
    }

    fn is_up(&self) -> bool {
        self.is_asked() && self.subscribed.load(Ordering::Acquire)
    }

    fn is_asked(&self) -> bool {
        self.breaker.is_closed()
            && self.clients.look_ups.is_connected()
            && self.notes().undelivered.is_empty()
    }
}

/// Events as they happen.
pub struct CacheEvents(broadcast::Receiver<CacheEvent>);

impl CacheEvents {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<CacheEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(CacheEvent::Lost),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
