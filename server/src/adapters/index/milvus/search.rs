//! What is done with the answers to searches, and when they are short of documents.
//!
//! The same for every client of the library: the calls themselves are in [`super::reads`] and
//! [`super::v1::reads`].

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::client::{Client, Servers, jittered, unavailable};
use super::facets::Counts;
use super::{MilvusOptions, OpenCollection, rows};
use crate::domain::Key;
use crate::domain::fusion::{self, Scored};
use crate::metrics::Metrics;
use crate::ports::{IndexError, Version};

/// Hits that are asked for beyond the limit at first, so that equal scores can be ordered by key.
const TIES: usize = 1;
/// Most hits of one search that a server allows.
pub const MAX_HITS: usize = 16_384;
/// Candidates per search of vectors: time to search and recall.
pub const EXPANSION_SEARCH: usize = 128;
/// The field of a query that is the number of rows.
pub const COUNT: &str = "count(*)";
/// Rows of one page; fewer when their bytes are too many.
const PAGE: usize = 1_000;
/// Before an answer that cannot be is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What an answer with fewer hits than asked for means.
pub enum Shortage {
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

/// What is read of every row of a page.
pub enum Each<'a> {
    Vector(&'a mut (dyn FnMut(Key, &[f32]) + Send)),
    Attributes(&'a mut (dyn FnMut(&Json) + Send)),
    Version(&'a mut (dyn FnMut(Key, i64) + Send)),
}

impl Each<'_> {
    /// The field of the rows that is needed beside their keys.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Vector(_) => rows::VECTOR,
            Self::Attributes(_) => rows::ATTRIBUTES,
            Self::Version(_) => rows::VERSION,
        }
    }
}

/// How many rows a page had, and the last of their keys.
pub struct Page {
    pub rows: usize,
    pub last: Option<Key>,
}

/// The calls that read, each made once, and what is made of their answers.
pub trait Reads: Sync {
    type Client: Client;

    fn options(&self) -> &MilvusOptions;

    fn metrics(&self) -> &Metrics;

    /// The best `limit` hits, at most [`MAX_HITS`], best first, equal scores by key.
    async fn search_once(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError>;

    async fn count_rows(
        &self,
        collection: &OpenCollection,
        expression: &str,
    ) -> Result<u64, IndexError>;

    /// Rows that match, those with the lowest keys.
    async fn page(
        &self,
        collection: &OpenCollection,
        expression: &str,
        limit: usize,
        each: &mut Each<'_>,
    ) -> Result<Page, IndexError>;

    /// The best hits among the documents of an expression. Asks until there is an answer that can
    /// be. The caller bounds the time; the last fifth of it is not begun, so that the reason
    /// reaches the caller.
    async fn find(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let until = Instant::now() + self.options().timeout.mul_f64(0.8);
        loop {
            if let Some(hits) = self.ask(collection, wanted, expression, limit).await? {
                if !hits.is_empty() {
                    collection.set_seen(Some(Instant::now()));
                }
                return Ok(hits);
            }
            self.metrics().milvus_short_answers.inc();
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
        let mut fetched = (limit + TIES).min(MAX_HITS);
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

    fn lost_sight(&self, action: &'static str) -> IndexError {
        self.metrics().milvus_short_answers.inc();
        unavailable(action, "it does not see the documents that it has".to_owned())
    }

    /// The documents in a collection.
    async fn count_all(&self, collection: &OpenCollection) -> Result<u64, IndexError> {
        let count = self.count_rows(collection, "").await?;
        if count > 0 {
            collection.set_seen(Some(Instant::now()));
        } else if collection.had_documents_lately() {
            return Err(self.lost_sight("count the documents of"));
        }
        Ok(count)
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
        let mut each = |key, row: &[f32]| {
            hits.push(Scored { key, score: cosine(vector, row) });
            if hits.len() > 2 * limit.max(PAGE) {
                fusion::sort(&mut hits);
                hits.truncate(limit);
            }
        };
        self.pages(collection, expression, Each::Vector(&mut each)).await?;
        fusion::sort(&mut hits);
        hits.truncate(limit);
        Ok(hits)
    }

    async fn count_values(
        &self,
        collection: &OpenCollection,
        expression: &str,
        counts: &mut Counts<'_>,
    ) -> Result<(), IndexError> {
        let mut any = false;
        let mut each = |attributes: &Json| {
            any = true;
            counts.add(attributes);
        };
        self.pages(collection, expression, Each::Attributes(&mut each)).await?;
        if !any && self.is_lost(collection).await? {
            return Err(self.lost_sight("search"));
        }
        Ok(())
    }

    /// The first versions after a key.
    async fn versions_after(
        &self,
        collection: &OpenCollection,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Vec<Version>, IndexError> {
        let mut versions = Vec::new();
        let mut each = |key, version| versions.push(Version { key, version });
        let expression = after.map(|key| format!("{} > {key}", rows::KEY)).unwrap_or_default();
        let page = self.page(collection, &expression, limit, &mut Each::Version(&mut each)).await?;
        if page.rows == 0 && self.is_lost(collection).await? {
            return Err(self.lost_sight("read"));
        }
        versions.sort_unstable_by_key(|version| version.key);
        Ok(versions)
    }

    /// Goes through the rows that match, in the order of their keys.
    async fn pages(
        &self,
        collection: &OpenCollection,
        expression: &str,
        mut each: Each<'_>,
    ) -> Result<(), IndexError> {
        let (mut after, mut size): (Option<Key>, usize) = (None, PAGE);
        loop {
            let here = match (after, expression) {
                (None, _) => expression.to_owned(),
                (Some(key), "") => format!("{} > {key}", rows::KEY),
                (Some(key), _) => format!("({expression}) and {} > {key}", rows::KEY),
            };
            let page = match self.page(collection, &here, size, &mut each).await {
                Err(error) if Servers::<Self::Client>::is_too_large(&error) && size > 1 => {
                    size /= 2;
                    continue;
                }
                page => page?,
            };
            after = after.max(page.last);
            if page.rows < size {
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
