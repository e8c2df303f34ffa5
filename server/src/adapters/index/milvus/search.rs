//! Searches, and what is done when an answer is short of documents.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use milvus::v2::prelude::{Ids, QueryRequest, QueryResults, SearchRequest, SearchVectors};

use super::client::{failed, is_too_large, jittered, unavailable};
use super::facets::Counts;
use super::{MilvusIndex, OpenCollection, rows};
use crate::domain::Key;
use crate::domain::fusion::{self, Scored};
use crate::ports::IndexError;

/// Hits that are asked for beyond the limit at first, so that equal scores can be ordered by key.
pub const TIES: usize = 32;
/// Most hits of one search that a server allows.
const MAX_HITS: usize = 16_384;
/// Candidates per search of vectors: time to search and recall.
const EXPANSION_SEARCH: usize = 128;
/// Rows of one page; fewer when their bytes are too many.
const PAGE: usize = 1_000;
/// Before an answer that cannot be is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What an answer with fewer hits than asked for means.
enum Shortage {
    /// There are no more.
    None,
    /// The graph of vectors did not lead to all of them.
    Unreached,
    /// The server has lost sight of the documents.
    Lost,
}

/// What is looked for.
pub enum Wanted {
    Near(Vec<f32>),
    Words(String),
}

impl MilvusIndex {
    /// The best hits among the documents of an expression. Asks until there is an answer that can
    /// be. The caller bounds the time; the last fifth of it is not begun, so that the reason
    /// reaches the caller.
    pub(super) async fn find(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let until = Instant::now() + self.options.timeout.mul_f64(0.8);
        loop {
            if let Some(hits) = self.ask(collection, wanted, expression, limit).await? {
                if !hits.is_empty() {
                    collection.set_seen(Some(Instant::now()));
                }
                return Ok(hits);
            }
            self.metrics.milvus_short_answers.inc();
            let pause = jittered(RETRY_PAUSE);
            if Instant::now() + pause > until {
                let reason = "it answers without the documents that it has".to_owned();
                return Err(unavailable("search", reason));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// `None` when the answer lacks documents.
    async fn ask(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        limit: usize,
    ) -> Result<Option<Vec<Scored>>, IndexError> {
        let hits = self.search(collection, wanted, expression, limit).await?;
        match wanted {
            Wanted::Near(vector) if hits.len() < limit => {
                match self.shortage(collection, expression, hits.len()).await? {
                    Shortage::None => Ok(Some(hits)),
                    Shortage::Unreached => {
                        let hits = self.scan(collection, vector, expression, limit).await?;
                        Ok(Some(hits).filter(|hits| !hits.is_empty()))
                    }
                    Shortage::Lost => Ok(None),
                }
            }
            Wanted::Words(_) if hits.is_empty() => {
                Ok((!self.is_lost(collection).await?).then_some(hits))
            }
            _ => Ok(Some(hits)),
        }
    }

    /// Searches; best first, equal scores by key. Asks for more when the cut falls among equal
    /// scores: those that are left out must be the last by key, or paging would lose them.
    async fn search(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let mut fetched = (limit + TIES).min(MAX_HITS).max(limit);
        loop {
            let mut hits = self.search_once(collection, wanted, expression, fetched).await?;
            let last = hits.last().map(|hit| hit.score);
            let decided = hits.get(limit - 1).map(|hit| hit.score) != last;
            if decided || hits.len() < fetched || fetched >= MAX_HITS {
                hits.truncate(limit);
                return Ok(hits);
            }
            fetched = (fetched * 4).min(MAX_HITS);
        }
    }

    async fn search_once(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        fetched: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let count = i64::try_from(fetched).map_err(failed("search"))?;
        let (field, parameters) = match wanted {
            Wanted::Near(_) => {
                let expansion = fetched.max(EXPANSION_SEARCH).to_string();
                (rows::VECTOR, HashMap::from([("ef".to_owned(), expansion)]))
            }
            Wanted::Words(_) => (rows::WEIGHTS, HashMap::new()),
        };
        let vectors = || match wanted {
            Wanted::Near(vector) => SearchVectors::Float(vec![vector.clone()]),
            Wanted::Words(words) => SearchVectors::EmbeddedText(vec![words.clone()]),
        };
        let answer = self
            .servers
            .read("search", &collection.name, |client| {
                let request = SearchRequest::builder()
                    .collection_name(collection.name.as_str())
                    .vector_field(field)
                    .vectors(vectors())
                    .filter(expression)
                    .limit(count)
                    .extra_params(parameters.clone())
                    .consistency_level(self.options.consistency.into())
                    .build();
                async move { client.search(request?).await }
            })
            .await?;
        let Some(result) = answer.results().iter().next() else { return Ok(Vec::new()) };
        let Ids::Int64(keys) = result.get_ids() else { return Ok(Vec::new()) };
        let hits = keys.iter().zip(result.get_scores()).map(|(&key, &score)| Scored { key, score });
        let mut hits: Vec<Scored> = match wanted {
            Wanted::Near(_) => {
                hits.map(|hit| Scored { score: hit.score.clamp(-1.0, 1.0), ..hit }).collect()
            }
            // BM25 is never below 0; milvus-lite writes it with the sign changed.
            Wanted::Words(_) => hits
                .map(|hit| Scored { score: hit.score.abs(), ..hit })
                .filter(|hit| hit.score > 0.0)
                .collect(),
        };
        fusion::sort(&mut hits);
        Ok(hits)
    }

    async fn shortage(
        &self,
        collection: &OpenCollection,
        expression: &str,
        hits: usize,
    ) -> Result<Shortage, IndexError> {
        let matching = self.count_rows(collection, expression).await?;
        if matching > hits as u64 {
            return Ok(Shortage::Unreached);
        }
        // Without a filter this was the number of all documents already.
        let lost = match (hits, expression) {
            (0, "") => collection.had_documents_lately(),
            (0, _) => self.is_lost(collection).await?,
            _ => false,
        };
        Ok(if lost { Shortage::Lost } else { Shortage::None })
    }

    /// Whether the server sees no documents in a collection that has some.
    async fn is_lost(&self, collection: &OpenCollection) -> Result<bool, IndexError> {
        Ok(collection.had_documents_lately() && self.count_rows(collection, "").await? == 0)
    }

    /// The documents in a collection.
    pub(super) async fn count_all(&self, collection: &OpenCollection) -> Result<u64, IndexError> {
        let count = self.count_rows(collection, "").await?;
        if count > 0 {
            collection.set_seen(Some(Instant::now()));
        } else if collection.had_documents_lately() {
            self.metrics.milvus_short_answers.inc();
            let reason = "it does not see the documents that it has".to_owned();
            return Err(unavailable("count the documents of", reason));
        }
        Ok(count)
    }

    async fn count_rows(
        &self,
        collection: &OpenCollection,
        expression: &str,
    ) -> Result<u64, IndexError> {
        const COUNT: &str = "count(*)";
        let answer = self
            .servers
            .read("search", &collection.name, |client| {
                let request = QueryRequest::builder()
                    .collection_name(collection.name.as_str())
                    .filter(expression)
                    .output_fields([COUNT])
                    .consistency_level(self.options.consistency.into())
                    .build();
                async move { client.query(request?).await }
            })
            .await?;
        let mut rows = answer.results().rows().map_err(failed("search"))?;
        let count =
            rows.next().map_or(Ok(0), |row| row.get_i64(COUNT)).map_err(failed("search"))?;
        u64::try_from(count).map_err(failed("search"))
    }

    /// Compares the vector with that of every row that matches: exact, and slow.
    async fn scan(
        &self,
        collection: &OpenCollection,
        vector: &[f32],
        expression: &str,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let mut hits: Vec<Scored> = Vec::new();
        self.pages(collection, expression, rows::VECTOR, |page| {
            for row in page.rows()? {
                let score = cosine(vector, row.get_float_vector(rows::VECTOR)?);
                hits.push(Scored { key: row.get_i64(rows::KEY)?, score });
            }
            if hits.len() > 2 * limit.max(PAGE) {
                fusion::sort(&mut hits);
                hits.truncate(limit);
            }
            Ok(())
        })
        .await?;
        fusion::sort(&mut hits);
        hits.truncate(limit);
        Ok(hits)
    }

    pub(super) async fn count_values(
        &self,
        collection: &OpenCollection,
        expression: &str,
        counts: &mut Counts<'_>,
    ) -> Result<(), IndexError> {
        let mut any = false;
        self.pages(collection, expression, rows::ATTRIBUTES, |page| {
            for row in page.rows()? {
                any = true;
                counts.add(row.get_json(rows::ATTRIBUTES)?);
            }
            Ok(())
        })
        .await?;
        if !any && self.is_lost(collection).await? {
            self.metrics.milvus_short_answers.inc();
            let reason = "it does not see the documents that it has".to_owned();
            return Err(unavailable("search", reason));
        }
        Ok(())
    }

    /// Goes through the rows that match, in the order of their keys.
    async fn pages(
        &self,
        collection: &OpenCollection,
        expression: &str,
        field: &str,
        mut each: impl FnMut(&QueryResults) -> milvus::v2::error::Result<()>,
    ) -> Result<(), IndexError> {
        // Servers sort by key only for these.
        let parameters = [("iterator", "False"), ("reduce_stop_for_best", "True")];
        let parameters: HashMap<String, String> =
            parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (mut after, mut size): (Option<Key>, usize) = (None, PAGE);
        loop {
            let here = match (after, expression) {
                (None, _) => expression.to_owned(),
                (Some(key), "") => format!("{} > {key}", rows::KEY),
                (Some(key), _) => format!("({expression}) and {} > {key}", rows::KEY),
            };
            let limit = i64::try_from(size).map_err(failed("search"))?;
            let page = self
                .servers
                .read("search", &collection.name, |client| {
                    let request = QueryRequest::builder()
                        .collection_name(collection.name.as_str())
                        .filter(here.as_str())
                        .output_fields([rows::KEY, field])
                        .limit(limit)
                        .extra_params(parameters.clone())
                        .consistency_level(self.options.consistency.into())
                        .build();
                    async move { client.query(request?).await }
                })
                .await;
            let page = match page {
                Err(error) if is_too_large(&error) && size > 1 => {
                    size /= 2;
                    continue;
                }
                page => page?,
            };
            let page = page.results();
            if page.is_empty() {
                return Ok(());
            }
            let rows = page.rows().map_err(failed("search"))?;
            let count = rows.len();
            for row in rows {
                let key = row.get_i64(rows::KEY).map_err(failed("search"))?;
                after = after.max(Some(key));
            }
            each(page).map_err(failed("search"))?;
            if count < size {
                return Ok(());
            }
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0) } else { 0.0 }
}
