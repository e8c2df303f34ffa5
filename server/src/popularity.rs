//! What people search for: counts per normalised query, gathered in memory and stored now and then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::metrics::Metrics;
use crate::ports::{DocumentStore, QueryCount, StoreError};

/// Distinct queries that wait to be stored; more are dropped and counted.
const MAX_PENDING: usize = 10_000;
/// Callers whose typing is followed.
const MAX_CALLERS: usize = 10_000;
/// A query that continues the caller's last one within this time replaces it: of "s", "sq",
/// "squat" typed into a search box only "squat" was meant.
const TYPING_PAUSE: Duration = Duration::from_secs(2);

pub struct Popularity {
    pending: Mutex<Pending>,
    store: Arc<dyn DocumentStore>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Pending {
    counts: HashMap<(i64, String), Count>,
    typing: HashMap<(i64, u64), Typed>,
}

#[derive(Clone, Copy)]
struct Count {
    searches: u64,
    hits: u64,
    last_used_ms: i64,
}

struct Typed {
    query: String,
    hits: u64,
    at: Instant,
    at_ms: i64,
}

impl Pending {
    /// Takes note of a search; returns false when it had to be dropped.
    fn record(
        &mut self,
        collection: i64,
        caller: u64,
        query: &str,
        hits: u64,
        at: Instant,
        at_ms: i64,
    ) -> bool {
        let slot = (collection, caller);
        let typed = Typed { query: query.to_owned(), hits, at, at_ms };
        if let Some(last) = self.typing.get_mut(&slot) {
            let continues = at.saturating_duration_since(last.at) < TYPING_PAUSE
                && last.query != query
                && (query.starts_with(&last.query) || last.query.starts_with(query));
            let finished = std::mem::replace(last, typed);
            return continues || self.count(collection, finished);
        }
        if self.typing.len() >= MAX_CALLERS {
            return self.count(collection, typed);
        }
        self.typing.insert(slot, typed);
        true
    }

    fn count(&mut self, collection: i64, typed: Typed) -> bool {
        let key = (collection, typed.query);
        let full = self.counts.len() >= MAX_PENDING;
        let count = match self.counts.get_mut(&key) {
            Some(count) => count,
            None if full => return false,
            None => {
                self.counts.entry(key).or_insert(Count { searches: 0, hits: 0, last_used_ms: 0 })
            }
        };
        count.searches += 1;
        count.hits = typed.hits;
        count.last_used_ms = typed.at_ms;
        true
    }

    /// Takes counts back that could not be stored; returns the searches for which there was no room.
    fn put_back(&mut self, count: QueryCount) -> u64 {
        let key = (count.collection, count.query);
        if self.counts.len() >= MAX_PENDING && !self.counts.contains_key(&key) {
            return count.searches;
        }
        // What came meanwhile is newer.
        let Count { searches, .. } = self.counts.entry(key).or_insert(Count {
            searches: 0,
            hits: count.hits,
            last_used_ms: count.last_used_ms,
        });
        *searches += count.searches;
        0
    }

    /// Takes what can be stored: counts, and queries that nobody is typing on any more.
    fn drain(&mut self, now: Instant, all: bool) -> Vec<QueryCount> {
        let finished: Vec<(i64, u64)> = self
            .typing
            .iter()
            .filter(|(_, typed)| all || now.saturating_duration_since(typed.at) >= TYPING_PAUSE)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in finished {
            if let Some(typed) = self.typing.remove(&slot) {
                self.count(slot.0, typed);
            }
        }
        self.counts
            .drain()
            .map(|((collection, query), count)| QueryCount {
                collection,
                query,
                searches: count.searches,
                hits: count.hits,
                last_used_ms: count.last_used_ms,
            })
            .collect()
    }
}

impl Popularity {
    pub fn new(store: Arc<dyn DocumentStore>, metrics: Arc<Metrics>) -> Self {
        Self { pending: Mutex::default(), store, metrics }
    }

    /// Takes note of a search by a caller (any number that tells callers apart).
    pub fn record(&self, collection: i64, caller: u64, query: &str, hits: usize) {
        if query.is_empty() {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if !pending.record(collection, caller, query, hits as u64, Instant::now(), at_ms) {
            self.metrics.popularity_dropped.inc();
        }
    }

    /// Stores what was gathered; with `all` also queries that may still be typed on.
    pub async fn flush(&self, all: bool) -> Result<(), StoreError> {
        let counts = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.drain(Instant::now(), all)
        };
        if counts.is_empty() {
            return Ok(());
        }
        let Err(error) = self.store.record_queries(&counts).await else { return Ok(()) };
        // Kept for the next flush as far as there is room. What another failure drops is statistics:
        // it is counted, and the failure told.
        let mut dropped: u64 = counts.iter().map(|count| count.searches).sum();
        if matches!(error, StoreError::Unavailable { .. }) {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            dropped = counts.into_iter().map(|count| pending.put_back(count)).sum();
        }
        self.metrics.popularity_dropped.inc_by(dropped as f64);
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(pending: &mut Pending, now: Instant) -> Vec<(String, u64)> {
        let mut counts: Vec<_> =
            pending.drain(now, false).into_iter().map(|c| (c.query, c.searches)).collect();
        counts.sort();
        counts
    }

    #[test]
    fn of_a_query_typed_letter_by_letter_the_last_form_counts() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        for (i, query) in ["s", "sq", "squat"].into_iter().enumerate() {
            pending.record(1, 7, query, 3, start + Duration::from_millis(150 * i as u64), 0);
        }
        let later = start + Duration::from_secs(10);
        assert_eq!(drained(&mut pending, later), [("squat".to_owned(), 1)]);
    }

    #[test]
    fn the_same_query_again_counts_again_and_callers_do_not_mix() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        pending.record(1, 7, "squat", 3, start, 0);
        pending.record(1, 7, "squat", 3, start, 0);
        pending.record(1, 8, "squat jump", 3, start, 0);
        let later = start + Duration::from_secs(10);
        let expected = [("squat".to_owned(), 2), ("squat jump".to_owned(), 1)];
        assert_eq!(drained(&mut pending, later), expected);
    }

    #[test]
    fn what_could_not_be_stored_is_kept_with_what_came_since() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        let later = start + Duration::from_secs(10);
        pending.record(1, 7, "squat", 3, start, 5);
        let taken = pending.drain(later, true);
        pending.record(1, 8, "squat", 4, start, 6);
        let newer = pending.drain(later, true);
        for count in newer.into_iter().chain(taken) {
            assert_eq!(pending.put_back(count), 0);
        }
        let counts = pending.drain(later, false);
        assert_eq!((counts[0].searches, counts[0].hits, counts[0].last_used_ms), (2, 4, 6));
        for number in 0..MAX_PENDING {
            pending.record(1, number as u64, &number.to_string(), 0, start, 0);
        }
        let full = pending.drain(later, true);
        let kept = full.len();
        for count in full {
            assert_eq!(pending.put_back(count), 0);
        }
        assert_eq!(kept, MAX_PENDING);
        let one_more =
            QueryCount { collection: 2, query: "x".into(), searches: 9, hits: 0, last_used_ms: 0 };
        assert_eq!(pending.put_back(one_more), 9);
    }

    #[test]
    fn memory_is_bounded_and_what_is_dropped_is_told() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        let mut dropped = 0;
        for caller in 0..(MAX_CALLERS + MAX_PENDING + 5) {
            let query = format!("query {caller}");
            dropped += usize::from(!pending.record(1, caller as u64, &query, 0, start, 0));
        }
        assert_eq!(dropped, 5);
        assert_eq!(pending.counts.len(), MAX_PENDING);
    }
}
