//! What every cache tier must do.

mod redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntCounter;
use sextant_server::cache::{CacheLimits, CacheStatus, Cacheable, MemoryCache, Ttl};
use tokio::sync::Notify;

#[derive(Clone, Debug, PartialEq)]
struct Text(Arc<str>);

impl Cacheable for Text {
    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn text(text: &str) -> Text {
    Text(text.into())
}

fn cache(max_bytes: u64, ttl: Duration, empty_ttl: Duration) -> (Arc<MemoryCache<u32, Text>>, Ttl) {
    let (cache, ttl) = MemoryCache::new(
        CacheLimits { max_bytes, ttl, empty_ttl },
        IntCounter::new("evictions", "of a test").unwrap(),
    );
    (Arc::new(cache), ttl)
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_value_is_computed_once_and_then_there() {
    let (cache, ttl) = cache(10_000, HOUR, HOUR);
    let compute = || async { Ok::<_, String>(text("a")) };
    assert_eq!(cache.get_or_compute(1, ttl, compute()).await, Ok((text("a"), CacheStatus::Miss)));
    assert_eq!(cache.get_or_compute(1, ttl, compute()).await, Ok((text("a"), CacheStatus::Hit)));
    assert!(cache.remove(&1).await);
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn equal_keys_wait_for_one_computation() {
    let (cache, ttl) = cache(10_000, HOUR, HOUR);
    let (computed, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (cache, computed, go) =
                (Arc::clone(&cache), Arc::clone(&computed), Arc::clone(&go));
            tokio::spawn(async move {
                let compute = async {
                    computed.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    Ok::<_, String>(text("a"))
                };
                cache.get_or_compute(1, ttl, compute).await.unwrap().1
            })
        })
        .collect();
    while computed.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    let mut misses = 0;
    for task in tasks {
        misses += usize::from(task.await.unwrap() == CacheStatus::Miss);
    }
    assert_eq!((misses, computed.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn when_the_one_that_computes_leaves_another_takes_over() {
    let (cache, ttl) = cache(10_000, HOUR, HOUR);
    let started = Arc::new(Notify::new());
    let leaver = {
        let (cache, started) = (Arc::clone(&cache), Arc::clone(&started));
        tokio::spawn(async move {
            let compute = async {
                started.notify_one();
                std::future::pending::<Result<Text, String>>().await
            };
            cache.get_or_compute(1, ttl, compute).await
        })
    };
    started.notified().await;
    let follower = {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move {
            cache.get_or_compute(1, ttl, async { Ok::<_, String>(text("b")) }).await
        })
    };
    tokio::task::yield_now().await;
    leaver.abort();
    assert_eq!(follower.await.unwrap().unwrap().0, text("b"));
}

#[tokio::test]
async fn an_error_goes_to_the_caller_and_is_not_kept() {
    let (cache, ttl) = cache(10_000, HOUR, HOUR);
    let failed = cache.get_or_compute(1, ttl, async { Err("no".to_owned()) }).await;
    assert_eq!(failed, Err("no".to_owned()));
    let computed = cache.get_or_compute(1, ttl, async { Ok::<_, String>(text("a")) }).await;
    assert_eq!(computed, Ok((text("a"), CacheStatus::Miss)));
}

#[tokio::test]
async fn bytes_are_bounded_and_the_least_recently_used_goes_first() {
    let (cache, ttl) = cache(5_000, HOUR, HOUR);
    let value = text(&"x".repeat(1_000));
    for key in 0..4 {
        cache.put(key, value.clone(), ttl).await;
    }
    cache.usage().await;
    assert!(cache.get(&0).await.is_some());
    cache.usage().await;
    cache.put(4, value.clone(), ttl).await;
    let (entries, bytes) = cache.usage().await;
    assert_eq!(entries, 4);
    assert!(bytes <= 5_000);
    assert!(cache.get(&0).await.is_some(), "used last");
    assert!(cache.get(&1).await.is_none(), "not used for longest");
}

#[tokio::test]
async fn empty_values_have_a_time_to_live_of_their_own() {
    let (cache, ttl) = cache(10_000, HOUR, Duration::ZERO);
    cache.put(1, text(""), ttl).await;
    cache.put(2, text("a"), ttl).await;
    assert_eq!(cache.get(&1).await, None);
    assert!(cache.get(&2).await.is_some());
}

#[tokio::test]
async fn entries_are_forgotten_by_predicate_or_all() {
    let (cache, ttl) = cache(10_000, HOUR, HOUR);
    for key in 0..10 {
        cache.put(key, text("a"), ttl).await;
    }
    cache.remove_if(|key, _| key % 2 == 0);
    assert_eq!((cache.get(&2).await, cache.get(&3).await), (None, Some(text("a"))));
    cache.clear();
    assert_eq!(cache.get(&3).await, None);
}
