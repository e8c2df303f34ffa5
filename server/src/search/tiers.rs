//! A search's way through the tiers of the cache after the near one had nothing, and what empties
//! them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::Rng;

use super::key::{self, EmbeddingKey, ResultKey};
use super::{Answer, AnswerParts, Found, Query, Search, SearchError, Timings};
use crate::cache::shared::{Ask, CacheEvent, Invalidation, SharedAnswer, SharedCache, Told};
use crate::cache::{CacheLimits, CacheStatus, CacheTier, Cacheable, MemoryCache, Ttl};
use crate::catalog::{OpenCollection, SearchedIndex};
use crate::ports::{EmbedError, IndexError};

/// Longest time to live of what is kept while invalidations of other servers cannot arrive: about
/// as long as a person who forgot an answer waits before looking for the reason.
const BLIND_TTL: Duration = Duration::from_secs(30);
/// Longest wait for another server to compute an answer, and the share of the time to the deadline
/// that it may take: then this one computes it, too.
const MAX_PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_SHARE: f64 = 0.25;
/// Pauses between looking whether the other server is done, in milliseconds.
const POLL_MS: std::ops::Range<u64> = 5..15;
/// One part in so many of the near tier is for answers that may be given when no other can.
const STALE_PART: u64 = 4;

/// The last answers, for when no other can be computed. They share their bytes with the entries of
/// the results while these live.
pub struct Stale {
    pub answers: MemoryCache<ResultKey, Answer>,
    ttl: Ttl,
    max_age: Duration,
}

/// What is searched for.
pub struct Request<'a> {
    pub collection: &'a Arc<OpenCollection>,
    pub index: &'a SearchedIndex,
    pub generation: i64,
    pub key: ResultKey,
    pub query: &'a Query,
}

impl Request<'_> {
    fn stale_key(&self) -> ResultKey {
        key::stale_key(self.collection.id, self.index, self.query)
    }
}

/// What answering took.
#[derive(Default)]
pub struct Work {
    pub timings: Timings,
    pub from_shared: bool,
}

impl Search {
    /// Adds the tier that servers share.
    pub fn with_shared(self, shared: Option<Arc<dyn SharedCache>>) -> Self {
        Self { shared, ..self }
    }

    /// Keeps answers for up to `max_age`, to be given when the index or the embedder cannot be
    /// reached. Their memory is taken from that of the results. Of use where these are other
    /// servers; zero changes nothing.
    pub fn with_max_stale(mut self, max_age: Duration) -> Self {
        if max_age.is_zero() {
            return self;
        }
        let limits = self.results_limits;
        let part = limits.max_bytes / STALE_PART;
        let evictions = |tier| self.metrics.cache_evictions.with_label_values(&[tier]);
        let results_limits = CacheLimits { max_bytes: limits.max_bytes - part, ..limits };
        let (results, results_ttl) = MemoryCache::new(results_limits, evictions("results"));
        (self.results, self.results_ttl) = (results, results_ttl);
        // An answer without hits is no use: it cannot be told from a part that is missing.
        let stale = CacheLimits { max_bytes: part, ttl: max_age, empty_ttl: Duration::ZERO };
        let (answers, ttl) = MemoryCache::new(stale, evictions("stale"));
        self.stale = Some(Stale { answers, ttl, max_age });
        self
    }

    /// The far tier, when it would be asked now.
    pub(super) fn asked(&self) -> Option<&dyn SharedCache> {
        self.shared.as_deref().filter(|shared| shared.is_asked())
    }

    /// Times to live in the near tier now.
    pub(super) fn near_ttl(&self, ttl: Ttl) -> Ttl {
        match &self.shared {
            Some(shared) if !shared.is_up() => ttl.at_most(BLIND_TTL),
            _ => ttl,
        }
    }

    /// The answer from the far tier; when it has none, computed here or, by another server that
    /// was first, there.
    pub(super) async fn shared_or_compute(
        &self,
        request: &Request<'_>,
        work: &mut Work,
    ) -> Result<Answer, SearchError> {
        let Request { collection, index, generation, query, .. } = *request;
        let Some(shared) = self.asked() else {
            let timings = &mut work.timings;
            return self.compute(collection, index, generation, query, None, timings).await;
        };
        let ask = self.ask(request).await;
        let told = self.ask_shared(shared, &ask, query).await;
        if !query.no_cache
            && let Some(answer) = told.as_ref().and_then(|told| told.answer.as_ref())
        {
            work.from_shared = true;
            return Ok(known(answer));
        }
        if let Some((key, embedding)) = ask
            .embedding
            .filter(|_| !query.no_cache)
            .zip(told.as_ref().and_then(|told| told.embedding.clone()))
        {
            self.embeddings.put(EmbeddingKey(key), embedding, self.embeddings_ttl).await;
        }
        self.admit(index, query).await?;
        let timings = &mut work.timings;
        let told = told.as_ref();
        let answer = self.compute(collection, index, generation, query, told, timings).await?;
        // The claim goes with `told`, after the answer was handed over: who waits finds it.
        if let Some(told) = told {
            let kept =
                SharedAnswer { json: answer.json.clone(), hits: answer.hits, age: Duration::ZERO };
            shared.keep_answer(&ask, told, &kept);
        }
        Ok(answer)
    }

    async fn ask(&self, request: &Request<'_>) -> Ask {
        let (collection, query) = (request.collection, request.query);
        let key = EmbeddingKey::new(&request.index.embedding, &query.text);
        let wanted = query.mode.uses_vectors() && self.embeddings.get(&key).await.is_none();
        Ask {
            result: request.key.tag(),
            stale: self.stale.as_ref().map(|_| request.stale_key().tag()),
            embedding: wanted.then_some(key.0),
            collection: collection.id,
            query: request.key.query,
            claim: !query.no_cache,
        }
    }

    /// Asks until there is an answer, or the answer is this server's to compute, or it has waited
    /// long enough.
    async fn ask_shared(&self, shared: &dyn SharedCache, ask: &Ask, query: &Query) -> Option<Told> {
        let now = Instant::now();
        let left = query.deadline.saturating_duration_since(now);
        let patience = now + left.mul_f64(PATIENCE_SHARE).min(MAX_PATIENCE);
        loop {
            let told = shared.look_up(ask).await?;
            let done = told.answer.is_some() || told.claim.is_some() || !ask.claim;
            if done || Instant::now() >= patience {
                return Some(told);
            }
            let pause = rand::rng().random_range(POLL_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Keeps an answer for when no other can be computed.
    pub(super) async fn keep_for_later(&self, request: &Request<'_>, answer: &Answer) {
        if let Some(stale) = &self.stale
            && answer.hits > 0
        {
            stale.answers.put(request.stale_key(), answer.clone(), stale.ttl).await;
        }
    }

    /// The last answer to the question when `error` tells that a new one cannot be computed now,
    /// else the error.
    pub(super) async fn run_stale(
        &self,
        request: &Request<'_>,
        error: SearchError,
        started: Instant,
    ) -> Result<Found, SearchError> {
        let reason = match &error {
            SearchError::Index(index) if matches!(**index, IndexError::Unavailable { .. }) => {
                "index"
            }
            SearchError::Embed(EmbedError::Unavailable(_)) => "embedder",
            _ => return Err(error),
        };
        let wanted = !request.query.fresh && !request.query.no_cache;
        let Some(stale) = self.stale.as_ref().filter(|_| wanted) else { return Err(error) };
        let key = request.stale_key();
        let near = stale.answers.get(&key).await.filter(|answer| answer.age() <= stale.max_age);
        let (answer, tier) = if let Some(answer) = near {
            (answer, CacheTier::Memory)
        } else {
            let Some(shared) = self.asked() else { return Err(error) };
            let ask = self.ask(request).await;
            let Some(answer) = shared.stale(&ask).await else { return Err(error) };
            let answer = known(&answer);
            stale.answers.put(key, answer.clone(), stale.ttl).await;
            (answer, CacheTier::Redis)
        };
        self.metrics.degraded_responses.with_label_values(&[reason]).inc();
        let timings = Timings::default();
        Ok(self.found(answer, CacheStatus::Stale, Some(tier), timings, started))
    }

    /// Forgets answers: of a collection, of one query in it, or all, embeddings included; in every
    /// server. False when the others can only be told later.
    pub async fn invalidate(&self, what: Invalidation) -> bool {
        let label = match what {
            Invalidation::All => "all",
            Invalidation::Collection(_) => "collection",
            Invalidation::Query { .. } => "query",
        };
        self.metrics.cache_invalidations.with_label_values(&[label]).inc();
        let everywhere = match &self.shared {
            Some(shared) => shared.invalidate(what).await,
            None => true,
        };
        // After the far tier: what it gave before is forgotten here, too.
        self.forget(what);
        everywhere
    }

    /// Does what an event of the far tier asks of the near one.
    pub fn on_event(&self, event: &CacheEvent) {
        match event {
            CacheEvent::Invalidated(what) => self.forget(*what),
            // Results alone: an embedding depends on nothing but its key, and to embed everything
            // anew at once would be the larger harm.
            CacheEvent::Lost => {
                self.epoch.fetch_add(1, Ordering::AcqRel);
                self.results.clear();
                if let Some(stale) = &self.stale {
                    stale.answers.clear();
                }
            }
            CacheEvent::Generation { .. } => {}
        }
    }

    fn forget(&self, what: Invalidation) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let stale = self.stale.as_ref().map(|stale| &stale.answers);
        for answers in [Some(&self.results), stale].into_iter().flatten() {
            match what {
                Invalidation::All => answers.clear(),
                Invalidation::Collection(id) => {
                    answers.remove_if(move |key, _| key.collection == id);
                }
                Invalidation::Query { collection, query } => answers.remove_if(move |key, _| {
                    key.query == query && collection.is_none_or(|id| key.collection == id)
                }),
            }
        }
        if what == Invalidation::All {
            self.embeddings.clear();
        }
    }
}

/// An answer of the far tier.
fn known(answer: &SharedAnswer) -> Answer {
    let now = Instant::now();
    Answer(Arc::new(AnswerParts {
        json: answer.json.clone(),
        hits: answer.hits,
        made_at: now.checked_sub(answer.age).unwrap_or(now),
    }))
}
