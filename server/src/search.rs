//! Searching: cache, embed, look up, fuse, join documents.

mod answer;
mod key;
mod tiers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry::trace::SpanKind;

use crate::cache::shared::{SharedCache, Told};
use crate::cache::{CacheLimits, CacheStatus, CacheTier, Cacheable, MemoryCache, Ttl};
use crate::catalog::{Catalog, OpenCollection, SearchedIndex};
use crate::domain::fusion::{self, Scored};
use crate::domain::{EmbeddingVersion, Filter, Mode};
use crate::embedders::Embedders;
use crate::metrics::Metrics;
use crate::ports::{Class, EmbedError, Embedding, Facets, IndexError, StoreError, Urgency};
use crate::spans::Span;

pub use crate::cache::shared::Invalidation;
pub use answer::{Explanation, Hit, IndexInfo, Ranked, RetrieverScore, SearchExplanation};
pub use key::{Cursor, CursorError};
use key::{EmbeddingKey, ResultKey};

/// Deepest position that paging reaches: a cursor costs as much as all pages before it.
pub const MAX_DEPTH: usize = 1_000;
/// Facet values returned per field.
pub const MAX_FACET_VALUES: usize = 100;
/// How many candidates each retriever of a hybrid search gives to the fusion. The same for every
/// page, as the ranks in both lists make the scores: paging ends where both lists end.
const FUSION_WINDOW: usize = 300;

/// Share of the time to its deadline that a search may wait for its embedding.
const EMBED_SHARE: f64 = 0.8;
/// A request for more embeddings than this does not compete with queries.
const BULK_TEXTS: usize = 16;

/// A search as the use case takes it: checked and normalised.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct Query {
    /// Normalised text.
    pub text: String,
    pub mode: Mode,
    pub limit: usize,
    pub filter: Option<Arc<Filter>>,
    /// Hits with a score below are left out.
    pub min_score: Option<f32>,
    pub cursor: Option<Cursor>,
    pub facets: Vec<String>,
    pub snippet: bool,
    pub explain: bool,
    /// Whose answers may be shared: callers of one scope see the same documents.
    pub scope: &'static str,
    /// Do not answer from the cache.
    pub no_cache: bool,
    /// The collection wants no answer that is not known to be current.
    pub fresh: bool,
    pub deadline: Instant,
}

/// An answer. It is kept as the JSON that is sent, as it is sent more often than it is made.
#[derive(Clone)]
pub struct Answer(Arc<AnswerParts>);

pub struct AnswerParts {
    /// Members of the answer's JSON object that are the same however it was come by.
    pub json: Bytes,
    pub hits: usize,
    pub made_at: Instant,
}

impl std::ops::Deref for Answer {
    type Target = AnswerParts;
    fn deref(&self) -> &AnswerParts {
        &self.0
    }
}

impl Cacheable for Answer {
    fn bytes(&self) -> usize {
        self.json.len() + size_of::<AnswerParts>()
    }

    fn is_empty(&self) -> bool {
        self.hits == 0
    }

    fn age(&self) -> Duration {
        self.made_at.elapsed()
    }
}

impl Cacheable for Embedding {
    fn bytes(&self) -> usize {
        size_of_val(&*self.vector) + size_of::<Self>()
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// An answer and how it was come by.
pub struct Found {
    pub answer: Answer,
    pub status: CacheStatus,
    /// The tier that had the answer.
    pub tier: Option<CacheTier>,
    pub timings: Timings,
}

impl Found {
    /// The answer is old, as a part of the system did not answer.
    pub fn is_degraded(&self) -> bool {
        self.status == CacheStatus::Stale
    }
}

/// Time that each stage took, when it ran for this caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    pub embed: Option<Duration>,
    pub index: Option<Duration>,
    pub documents: Option<Duration>,
    pub total: Duration,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum SearchError {
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error("the deadline passed before the search was done")]
    DeadlineExceeded,
    #[error(transparent)]
    Index(Arc<IndexError>),
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("failed to write the answer: {0}")]
    Encode(String),
}

impl From<IndexError> for SearchError {
    fn from(error: IndexError) -> Self {
        Self::Index(Arc::new(error))
    }
}

impl From<serde_json::Error> for SearchError {
    fn from(error: serde_json::Error) -> Self {
        Self::Encode(error.to_string())
    }
}

impl From<StoreError> for SearchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

pub struct Search {
    pub catalog: Arc<Catalog>,
    embedders: Embedders,
    metrics: Arc<Metrics>,
    results: MemoryCache<ResultKey, Answer>,
    results_limits: CacheLimits,
    results_ttl: Ttl,
    embeddings: MemoryCache<EmbeddingKey, Embedding>,
    embeddings_ttl: Ttl,
    shared: Option<Arc<dyn SharedCache>>,
    stale: Option<tiers::Stale>,
    /// Raised with every invalidation: what was being computed meanwhile is not kept.
    epoch: AtomicU64,
}

impl Search {
    pub fn new(
        catalog: Arc<Catalog>,
        embedders: impl Into<Embedders>,
        metrics: Arc<Metrics>,
        results_limits: CacheLimits,
        embeddings: CacheLimits,
    ) -> Self {
        let evictions = |tier| metrics.cache_evictions.with_label_values(&[tier]);
        let (results, results_ttl) = MemoryCache::new(results_limits, evictions("results"));
        let (embeddings, embeddings_ttl) = MemoryCache::new(embeddings, evictions("embeddings"));
        Self {
            catalog,
            embedders: embedders.into(),
            metrics,
            results,
            results_limits,
            results_ttl,
            embeddings,
            embeddings_ttl,
            shared: None,
            stale: None,
            epoch: AtomicU64::new(0),
        }
    }

    /// Answers a query, from the cache when it can. `generation`: that of the documents, when it is
    /// known to be current; the cache is passed by when it is not.
    pub async fn run(
        &self,
        collection: &Arc<OpenCollection>,
        generation: Option<i64>,
        query: &Query,
    ) -> Result<Found, SearchError> {
        let started = Instant::now();
        let index = &collection.searched();
        // Read before the index is: an answer made while a write goes on is then kept under the
        // generation before that write and never given after it.
        let Some(generation) = generation else {
            return Box::pin(self.run_uncached(collection, index, query, started)).await;
        };
        let key = key::result_key(collection.id, index, generation, query);
        if !query.no_cache
            && let Some(answer) = self.results.get(&key).await
        {
            let timings = Timings::default();
            let tier = Some(CacheTier::Memory);
            return Ok(self.found(answer, CacheStatus::Hit, tier, timings, started));
        }
        let request = tiers::Request { collection, index, generation, key, query };
        // The far tier may have the answer, and is asked once for all; it knows whom to refuse.
        let admitted = if self.asked().is_none() { self.admit(index, query).await } else { Ok(()) };
        // Boxed: hits and refusals, which end before, would carry the room of all that about.
        let found = match admitted {
            Ok(()) => Box::pin(self.run_missed(&request, started)).await,
            Err(refused @ EmbedError::Overloaded { .. }) => return Err(refused.into()),
            Err(error) => Err(error.into()),
        };
        match found {
            Err(error) => Box::pin(self.run_stale(&request, error, started)).await,
            found => found,
        }
    }

    /// Asks the far tier or computes, once for all who ask meanwhile.
    async fn run_missed(
        &self,
        request: &tiers::Request<'_>,
        started: Instant,
    ) -> Result<Found, SearchError> {
        let (key, query) = (request.key, request.query);
        let epoch = self.epoch.load(Ordering::Acquire);
        let mut work = tiers::Work::default();
        let ttl = self.near_ttl(self.results_ttl);
        // Boxed: it is moved about until it is polled.
        let compute = Box::pin(self.shared_or_compute(request, &mut work));
        let computed = async {
            if query.no_cache {
                let answer = compute.await?;
                self.results.put(key, answer.clone(), ttl).await;
                return Ok((answer, CacheStatus::Bypass));
            }
            self.results.get_or_compute(key, ttl, compute).await
        };
        let (answer, mut status) = tokio::time::timeout_at(query.deadline.into(), computed)
            .await
            .unwrap_or(Err(SearchError::DeadlineExceeded))?;
        if self.epoch.load(Ordering::Acquire) != epoch {
            self.results.remove(&key).await;
        } else if matches!(status, CacheStatus::Miss | CacheStatus::Bypass) {
            self.keep_for_later(request, &answer).await;
        }
        let tier = work.from_shared.then_some(CacheTier::Redis);
        if tier.is_some() && status == CacheStatus::Miss {
            status = CacheStatus::Hit;
        }
        Ok(self.found(answer, status, tier, work.timings, started))
    }

    async fn run_uncached(
        &self,
        collection: &Arc<OpenCollection>,
        index: &SearchedIndex,
        query: &Query,
        started: Instant,
    ) -> Result<Found, SearchError> {
        self.admit(index, query).await?;
        let mut timings = Timings::default();
        let generation = collection.generation();
        let compute = self.compute(collection, index, generation, query, None, &mut timings);
        let answer = tokio::time::timeout_at(query.deadline.into(), compute)
            .await
            .unwrap_or(Err(SearchError::DeadlineExceeded))?;
        Ok(self.found(answer, CacheStatus::Bypass, None, timings, started))
    }

    fn found(
        &self,
        answer: Answer,
        status: CacheStatus,
        tier: Option<CacheTier>,
        mut timings: Timings,
        started: Instant,
    ) -> Found {
        self.metrics.cache_requests.with_label_values(&["results", status.as_str()]).inc();
        timings.total = started.elapsed();
        self.observe(&timings, status);
        Found { answer, status, tier, timings }
    }

    /// Refuses a search whose text would have to be embedded when the embedder cannot take it,
    /// before anything is set up for it: under overload this is most of the work.
    async fn admit(&self, index: &SearchedIndex, query: &Query) -> Result<(), EmbedError> {
        if !query.mode.uses_vectors() {
            return Ok(());
        }
        let embedder = self.embedders.of(&index.embedding)?;
        let refused = embedder.admit(&query.text, interactive(query.deadline));
        if refused.is_err() && !query.no_cache {
            let text = embedder.model().prompts.of_query(&query.text);
            let key = EmbeddingKey::new(&index.embedding, &text);
            if self.embeddings.get(&key).await.is_some() {
                return Ok(());
            }
        }
        refused
    }

    /// Identifies the answer that a query has at a generation, without making it.
    pub fn tag(&self, collection: &OpenCollection, generation: i64, query: &Query) -> [u8; 16] {
        key::result_key(collection.id, &collection.searched(), generation, query).tag()
    }

    async fn compute(
        &self,
        collection: &OpenCollection,
        searched: &SearchedIndex,
        generation: i64,
        query: &Query,
        told: Option<&Told>,
        timings: &mut Timings,
    ) -> Result<Answer, SearchError> {
        let index = &self.catalog.index;
        let model = &searched.embedding;
        let embedding = if query.mode.uses_vectors() {
            let clock = Instant::now();
            let span = Span::child("embed", SpanKind::Internal);
            let embedding = span.run(self.embed(model, query, told)).await?;
            timings.embed = Some(clock.elapsed());
            Some(embedding)
        } else {
            None
        };

        let clock = Instant::now();
        // One more than is shown tells whether there is a next page.
        let wanted = query.cursor.as_ref().map_or(0, |cursor| cursor.depth) + query.limit + 1;
        let candidates = match query.mode {
            Mode::Hybrid => FUSION_WINDOW,
            Mode::Dense | Mode::Lexical => wanted,
        };
        let dense = async {
            match &embedding {
                Some(embedding) => {
                    let vector = Arc::clone(&embedding.vector);
                    index.nearest(searched.id, vector, query.filter.clone(), candidates).await
                }
                None => Ok(Vec::new()),
            }
        };
        let lexical = async {
            if query.mode.uses_words() {
                index.matching(searched.id, &query.text, query.filter.clone(), candidates).await
            } else {
                Ok(Vec::new())
            }
        };
        let facets = self.facets(searched, query);
        // All to their end: one of them may be the call that tries an index which was left alone.
        // Given up as soon as another is refused, it would never find that the index is back.
        let all = async { tokio::join!(dense, lexical, facets) };
        let (dense, lexical, facets) = Span::child("index", SpanKind::Internal).run(all).await;
        let (dense, lexical, facets) = (dense?, lexical?, facets?);
        let ranked = match query.mode {
            Mode::Dense => dense.clone(),
            Mode::Lexical => lexical.clone(),
            Mode::Hybrid => fusion::reciprocal_rank(&[&dense, &lexical]),
        };
        let page = page(ranked, query);
        timings.index = Some(clock.elapsed());

        let clock = Instant::now();
        let keys: Vec<_> = page.hits.iter().map(|hit| hit.key).collect();
        let span = Span::child("documents", SpanKind::Internal);
        let documents = span.run(self.catalog.store.fetch(collection.id, &keys)).await?;
        let ranked = Ranked {
            collection,
            generation,
            model: &model.model,
            query,
            page: &page.hits,
            documents,
            dense: &dense,
            lexical: &lexical,
            facets,
            embedding: embedding.as_ref(),
            next_cursor: page.next.map(|cursor| cursor.encode()),
        };
        let answer = answer::answer(ranked)?;
        timings.documents = Some(clock.elapsed());
        Ok(Answer(Arc::new(answer)))
    }

    /// Counts the values of the facets that were asked for.
    async fn facets(
        &self,
        searched: &SearchedIndex,
        query: &Query,
    ) -> Result<Option<Facets>, IndexError> {
        if query.facets.is_empty() {
            return Ok(None);
        }
        // By meaning every document is a hit, more or less; by words those that hold one.
        let text = (query.mode == Mode::Lexical).then_some(query.text.as_str());
        let mut counted = Vec::with_capacity(query.facets.len());
        for field in &query.facets {
            // What a person ticked in a facet must not hide the facet's other values.
            let filter = query.filter.as_ref().map(|filter| Arc::new(filter.without_field(field)));
            let fields = std::slice::from_ref(field);
            let facets = self
                .catalog
                .index
                .facets(searched.id, text, filter, fields, MAX_FACET_VALUES)
                .await?;
            counted.extend(facets.0);
        }
        Ok(Some(Facets(counted)))
    }

    /// Embeds a query's text, from the embedding cache when it can.
    async fn embed(
        &self,
        model: &EmbeddingVersion,
        query: &Query,
        told: Option<&Told>,
    ) -> Result<Embedding, SearchError> {
        let embedder = self.embedders.of(model)?;
        let text = embedder.model().prompts.of_query(&query.text);
        let key = EmbeddingKey::new(model, &text);
        let compute = async {
            let mut rows = embedder.embed(vec![text], interactive(query.deadline)).await?;
            rows.pop().ok_or_else(|| EmbedError::Failed("no vector came back".to_owned()))
        };
        let ttl = self.embeddings_ttl;
        let result = if query.no_cache {
            match compute.await {
                Ok(embedding) => {
                    self.embeddings.put(key, embedding.clone(), ttl).await;
                    Ok((embedding, CacheStatus::Bypass))
                }
                Err(error) => Err(error),
            }
        } else {
            self.embeddings.get_or_compute(key, ttl, compute).await
        };
        let (embedding, status) = result?;
        if let (Some(shared), Some(told)) = (&self.shared, told)
            && matches!(status, CacheStatus::Miss | CacheStatus::Bypass)
        {
            shared.keep_embedding(key.0, told, &embedding);
        }
        self.metrics.cache_requests.with_label_values(&["embeddings", status.as_str()]).inc();
        Ok(embedding)
    }

    /// Embeds texts as they are: those that the embedding cache has not, in one call. Without a
    /// class their number decides it.
    pub async fn embed_all(
        &self,
        texts: &[String],
        class: Option<Class>,
        deadline: Instant,
    ) -> Result<Vec<Embedding>, SearchError> {
        let embedder = self.embedders.first();
        let model = &embedder.model().version;
        let keys: Vec<_> = texts.iter().map(|text| EmbeddingKey::new(model, text)).collect();
        let mut rows = Vec::with_capacity(texts.len());
        for key in &keys {
            rows.push(self.embeddings.get(key).await);
        }
        let missing: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].is_none()).collect();
        let count = |result: &str, times: usize| {
            let counter = self.metrics.cache_requests.with_label_values(&["embeddings", result]);
            counter.inc_by(times as u64);
        };
        count("hit", rows.len() - missing.len());
        count("miss", missing.len());
        let by_number = if missing.len() > BULK_TEXTS { Class::Bulk } else { Class::Interactive };
        let class = class.unwrap_or(by_number);
        let wanted = missing.iter().map(|i| texts[*i].as_str().into()).collect();
        let computed = embedder.embed(wanted, Urgency { class, deadline }).await?;
        for (i, embedding) in missing.into_iter().zip(computed) {
            self.embeddings.put(keys[i], embedding.clone(), self.embeddings_ttl).await;
            rows[i] = Some(embedding);
        }
        let rows: Option<Vec<Embedding>> = rows.into_iter().collect();
        rows.ok_or_else(|| EmbedError::Failed("too few vectors came back".to_owned()).into())
    }

    /// Brings the cache gauges up to date.
    pub async fn refresh_metrics(&self) {
        let mut tiers = vec![
            ("results", self.results.usage().await),
            ("embeddings", self.embeddings.usage().await),
        ];
        if let Some(stale) = &self.stale {
            tiers.push(("stale", stale.answers.usage().await));
        }
        for (tier, (entries, bytes)) in tiers {
            let as_gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            self.metrics.cache_entries.with_label_values(&[tier]).set(as_gauge(entries));
            self.metrics.cache_bytes.with_label_values(&[tier]).set(as_gauge(bytes));
        }
    }

    fn observe(&self, timings: &Timings, status: CacheStatus) {
        let mut rest = timings.total;
        let stages =
            [("embed", timings.embed), ("index", timings.index), ("documents", timings.documents)];
        for (stage, time) in stages {
            if let Some(time) = time {
                self.metrics.search_stage.with_label_values(&[stage]).observe(time.as_secs_f64());
                rest = rest.saturating_sub(time);
            }
        }
        // What another caller computed was waited for, not looked up.
        let stage = if status == CacheStatus::Coalesced { "wait" } else { "cache" };
        self.metrics.search_stage.with_label_values(&[stage]).observe(rest.as_secs_f64());
    }
}

/// How soon a search with this deadline needs its embedding: the rest of the time is for what
/// comes after.
fn interactive(deadline: Instant) -> Urgency {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    Urgency { class: Class::Interactive, deadline: now + left.mul_f64(EMBED_SHARE) }
}

struct Page {
    hits: Vec<Scored>,
    next: Option<Cursor>,
}

/// Cuts the page of a query out of the ranking.
fn page(mut ranked: Vec<Scored>, query: &Query) -> Page {
    if let Some(min_score) = query.min_score {
        ranked.retain(|hit| hit.score >= min_score);
    }
    let depth = query.cursor.as_ref().map_or(0, |cursor| cursor.depth);
    if let Some(cursor) = &query.cursor {
        ranked.retain(|hit| cursor.is_before(hit));
    }
    let more = ranked.len() > query.limit;
    ranked.truncate(query.limit);
    let depth = depth + ranked.len();
    let next = ranked
        .last()
        .filter(|_| more && depth < MAX_DEPTH)
        .map(|last| Cursor::after(last, depth, query));
    Page { hits: ranked, next }
}
