//! The far tier of the caches: shared by equal servers, never needed by any of them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ports::Embedding;

/// Hash of what a value answers; the same in every server.
pub type Digest = [u8; 16];

/// A cache that servers share. What is down or slow looks empty: no call fails, none takes longer
/// than the adapter's timeout, and while it is known to be down none takes any time.
#[async_trait]
pub trait SharedCache: Send + Sync + 'static {
    /// Everything that a search needs to know, in one trip; `None` when it cannot be known.
    async fn look_up(&self, ask: &Ask) -> Option<Told>;

    /// Keeps an answer, later. What `told` said before the answer was computed decides whether an
    /// invalidation came since.
    fn keep_answer(&self, ask: &Ask, told: &Told, answer: &SharedAnswer);

    /// Keeps an embedding, later.
    fn keep_embedding(&self, key: Digest, told: &Told, embedding: &Embedding);

    /// The last answer that was kept for a question, whatever the documents were then.
    async fn stale(&self, ask: &Ask) -> Option<SharedAnswer>;

    /// Forgets, here and in every server. False when it cannot be told now: then it is told again
    /// until it is, and until then this server takes nothing from here.
    async fn invalidate(&self, what: Invalidation) -> bool;

    /// Whether it answers, and other servers' invalidations arrive.
    fn is_up(&self) -> bool;

    /// Whether a look-up would be tried now.
    fn is_asked(&self) -> bool;
}

#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub result: Digest,
    /// Of the question without the documents' generation, when stale answers are wanted at all.
    pub stale: Option<Digest>,
    pub embedding: Option<Digest>,
    pub collection: i64,
    /// [`Invalidation::query_hash`] of the query's text.
    pub query: u64,
    /// Asks to be the one server that computes the answer when it is not there.
    pub claim: bool,
}

pub struct Told {
    pub answer: Option<SharedAnswer>,
    pub embedding: Option<Embedding>,
    /// Which invalidations there had been.
    pub stamps: Stamps,
    /// The answer is this server's to compute until this is dropped; `None`: another's.
    pub claim: Option<Claim>,
}

/// Dropping it lets another server compute.
pub type Claim = Box<dyn Send + Sync>;

/// Hashes of the last invalidations' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// Of everything.
    pub all: u64,
    /// Of everything, the collection and the query.
    pub result: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SharedAnswer {
    pub json: Bytes,
    pub hits: usize,
    /// How long ago it was computed.
    pub age: Duration,
}

/// What to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    All,
    Collection(i64),
    /// A query, by its hash, in one collection or in every one.
    Query {
        collection: Option<i64>,
        query: u64,
    },
}

impl Invalidation {
    pub fn query(collection: Option<i64>, text: &str) -> Self {
        Self::Query { collection, query: Self::query_hash(text) }
    }

    /// Names a normalised query; the same in every server.
    pub fn query_hash(text: &str) -> u64 {
        let hash = blake3::hash(text.as_bytes());
        u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
    }
}

/// What other servers, or this one, told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Searches of the collection see changes up to this generation.
    Generation {
        collection: i64,
        generation: i64,
    },
    Invalidated(Invalidation),
    /// Events may have been missed.
    Lost,
}
