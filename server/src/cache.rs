//! The near tier of the caches, in this process: bounded in bytes, least recently used out first, expiring with jitter,
//! computing each missing key once however many ask for it. The far tier, which servers share, is a
//! port: [`shared::SharedCache`].

pub mod shared;

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use prometheus::IntCounter;
use rand::Rng;

/// Share of the time to live by which an entry's own may differ, so that entries made together
/// do not expire together.
const JITTER: f64 = 0.1;
/// Estimate of the bytes that an entry costs besides its key and value.
const ENTRY_OVERHEAD: usize = 160;

/// What a cache must know of its values.
pub trait Cacheable: Clone + Send + Sync + 'static {
    /// Bytes that the value holds.
    fn bytes(&self) -> usize;
    /// An answer without content, kept shorter.
    fn is_empty(&self) -> bool;
    /// How long ago it was made; what comes from elsewhere lives only the rest of its time here.
    fn age(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    pub max_bytes: u64,
    pub ttl: Duration,
    /// Time to live of an empty value.
    pub empty_ttl: Duration,
}

/// How a value was come by.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum CacheStatus {
    /// It was there.
    Hit,
    /// It was computed.
    Miss,
    /// Somebody else was computing it.
    Coalesced,
    /// It was computed although it may have been there, as the caller wished.
    Bypass,
    /// An old one was there, and a new one cannot be computed now.
    Stale,
}

impl CacheStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
            Self::Bypass => "bypass",
            Self::Stale => "stale",
        }
    }
}

/// Where a value was.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum CacheTier {
    /// In this process.
    Memory,
    /// In the tier that servers share.
    Redis,
}

impl CacheTier {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}

pub struct MemoryCache<K, V> {
    entries: Cache<K, Entry<V>>,
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    ttl: Duration,
}

struct OwnTtl;

impl<K, V> Expiry<K, Entry<V>> for OwnTtl {
    fn expire_after_create(&self, _: &K, entry: &Entry<V>, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(
        &self,
        _: &K,
        entry: &Entry<V>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

impl<K, V> MemoryCache<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Cacheable,
{
    /// `evictions` counts what is given up since there is no room for it.
    pub fn new(limits: CacheLimits, evictions: IntCounter) -> (Self, Ttl) {
        let entries = Cache::builder()
            .max_capacity(limits.max_bytes)
            .weigher(|_, entry: &Entry<V>| {
                let bytes = entry.value.bytes() + size_of::<K>() + ENTRY_OVERHEAD;
                u32::try_from(bytes).unwrap_or(u32::MAX)
            })
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    evictions.inc();
                }
            })
            .expire_after(OwnTtl)
            .support_invalidation_closures()
            .build();
        (Self { entries }, Ttl { ttl: limits.ttl, empty_ttl: limits.empty_ttl })
    }

    /// The value when it is there.
    pub async fn get(&self, key: &K) -> Option<V> {
        self.entries.get(key).await.map(|entry| entry.value)
    }

    /// The value, computed when it is not there. Of equal keys one is computed at a time; an error
    /// goes to all who wait for it and is not kept.
    pub async fn get_or_compute<E, F>(
        &self,
        key: K,
        ttl: Ttl,
        compute: F,
    ) -> Result<(V, CacheStatus), E>
    where
        E: Clone + Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        if let Some(value) = self.get(&key).await {
            return Ok((value, CacheStatus::Hit));
        }
        let computed = AtomicBool::new(false);
        let entry = self
            .entries
            .try_get_with(key, async {
                computed.store(true, Ordering::Relaxed);
                let value = compute.await?;
                Ok(Entry { ttl: ttl.left(&value), value })
            })
            .await
            .map_err(|error: Arc<E>| (*error).clone())?;
        let status = if computed.into_inner() { CacheStatus::Miss } else { CacheStatus::Coalesced };
        Ok((entry.value, status))
    }

    pub async fn put(&self, key: K, value: V, ttl: Ttl) {
        let ttl = ttl.left(&value);
        self.entries.insert(key, Entry { value, ttl }).await;
    }

    pub async fn remove(&self, key: &K) -> bool {
        self.entries.remove(key).await.is_some()
    }

    pub fn clear(&self) {
        self.entries.invalidate_all();
    }

    /// Forgets the entries whose key satisfies the predicate.
    pub fn remove_if(&self, predicate: impl Fn(&K, &V) -> bool + Send + Sync + 'static) {
        // The only error is a cache built without this support, which `new` does not build.
        let _ = self.entries.invalidate_entries_if(move |key, entry| predicate(key, &entry.value));
    }

    /// Entries and bytes, after pending evictions were done.
    pub async fn usage(&self) -> (u64, u64) {
        self.entries.run_pending_tasks().await;
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

/// Times to live, jittered per entry.
#[derive(Clone, Copy, Debug)]
pub struct Ttl {
    ttl: Duration,
    empty_ttl: Duration,
}

impl Ttl {
    pub fn new(ttl: Duration, empty_ttl: Duration) -> Self {
        Self { ttl, empty_ttl }
    }

    /// These times, but at most `limit`.
    pub fn at_most(self, limit: Duration) -> Self {
        Self { ttl: self.ttl.min(limit), empty_ttl: self.empty_ttl.min(limit) }
    }

    /// No value's time is longer.
    pub fn longest(self) -> Duration {
        self.ttl.max(self.empty_ttl).mul_f64(1.0 + JITTER)
    }

    /// The time of a new value.
    pub fn of(self, empty: bool) -> Duration {
        let ttl = if empty { self.empty_ttl } else { self.ttl };
        ttl.mul_f64(rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER))
    }

    fn left(self, value: &impl Cacheable) -> Duration {
        self.of(value.is_empty()).saturating_sub(value.age())
    }
}
