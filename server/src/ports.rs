//! What the use cases need from the outside: one trait a need. The suites under `tests/contract`
//! say what every adapter must do.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::domain::fusion::Scored;
use crate::domain::{Collection, CollectionName, Document, EmbeddingVersion, Filter, Key, Schema};

// ---------------------------------------------------------------------------------- embedder ----

/// Turns texts into vectors.
#[async_trait]
pub trait Embedder: Send + Sync + 'static {
    /// The model, the same for the life of the embedder.
    fn model(&self) -> &ModelInfo;

    /// Embeds texts: mean of the last hidden layer over the tokens, then L2-normalised.
    ///
    /// # Shapes
    /// `n` texts give `n` embeddings, the `i`-th for `texts[i]`, each a vector of
    /// `model().version.dimension` numbers and norm 1 (±1e-5). A text above the model's
    /// `max_tokens` is cut there and says so.
    ///
    /// # Errors
    /// `Overloaded` at once when the queue cannot take all texts; `DeadlineExceeded` when the
    /// deadline passes before all of them are embedded; `Stopped` when the embedder has ended;
    /// `Failed` when the model failed. Texts of a call that was dropped are not embedded.
    ///
    /// # Source
    /// Pooling as in Reimers and Gurevych 2019, "Sentence-BERT", section 3 (arXiv:1908.10084).
    async fn embed(
        &self,
        texts: Vec<Arc<str>>,
        urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError>;

    /// As [`Self::embed`], but a full queue is waited for until the deadline: for texts that are only
    /// read as fast as they are embedded.
    async fn embed_patiently(
        &self,
        texts: Vec<Arc<str>>,
        urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        loop {
            match self.embed(texts.clone(), urgency).await {
                Err(EmbedError::Overloaded { retry_after })
                    if Instant::now() + retry_after < urgency.deadline =>
                {
                    let jitter = rand::random_range(0.5..1.0);
                    tokio::time::sleep(retry_after.mul_f64(jitter)).await;
                }
                result => return result,
            }
        }
    }

    /// Whether a text would be taken now. Cheap: under overload most requests end here.
    ///
    /// # Errors
    /// Those that `embed` would answer with at once.
    fn admit(&self, _text: &str, _urgency: Urgency) -> Result<(), EmbedError> {
        Ok(())
    }

    /// Whether the embedder can embed now; the reason when it cannot.
    fn health(&self) -> Result<(), String>;

    /// Returns, with the reason, when the embedder will not embed again in this process.
    async fn lost(&self) -> String {
        std::future::pending().await
    }

    /// Brings the gauges that change with time up to date, for a scrape.
    fn refresh_metrics(&self) {}
}

/// How soon an embedding is needed.
#[derive(Clone, Copy, Debug)]
pub struct Urgency {
    pub class: Class,
    /// An embedding that would come later is not made.
    pub deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits: a query.
    Interactive,
    /// Throughput matters: documents.
    Bulk,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    pub vector: Arc<[f32]>,
    /// Tokens that the model read, special ones included.
    pub tokens: usize,
    /// The text was longer than the model reads; its end is not in the vector.
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    pub version: EmbeddingVersion,
    pub max_tokens: usize,
    /// Where it runs, as in `cpu` or `cuda:0`.
    pub device: String,
    pub prompts: Prompts,
}

/// What a model was trained to read in front of a text, by what the text is; mostly nothing.
///
/// # Source
/// Wang et al. 2022, "Text Embeddings by Weakly-Supervised Contrastive Pre-training"
/// (arXiv:2212.03533).
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(default)]
pub struct Prompts {
    pub query: String,
    pub passage: String,
}

impl Prompts {
    /// What is embedded for a query. Without a prompt this is the text itself.
    pub fn of_query(&self, text: &str) -> Arc<str> {
        with_prompt(&self.query, text)
    }

    /// What is embedded for the text of a document.
    pub fn of_passage(&self, text: &str) -> Arc<str> {
        with_prompt(&self.passage, text)
    }
}

fn with_prompt(prompt: &str, text: &str) -> Arc<str> {
    if prompt.is_empty() { text.into() } else { format!("{prompt}{text}").into() }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    #[error("the embedding queue is full")]
    Overloaded {
        /// When the queue is expected to have room again.
        retry_after: Duration,
    },
    #[error("the deadline passed before the text was embedded")]
    DeadlineExceeded,
    #[error("the embedder has stopped")]
    Stopped,
    /// A remote embedder cannot be reached; it may be again in a moment.
    #[error("the embedder is not available: {0}")]
    Unavailable(String),
    #[error("the model failed: {0}")]
    Failed(String),
}

// ------------------------------------------------------------------------------ search index ----

/// Finds keys of documents by vector, by words and by attributes. Holds nothing that cannot be
/// made again from the document store.
///
/// Filters are exact: a search returns `limit` hits whenever that many documents match.
#[async_trait]
pub trait SearchIndex: Send + Sync + 'static {
    /// Opens or creates the index of a collection and returns the generation up to which it has
    /// every change; 0 for a new one.
    async fn open(&self, collection: &IndexedCollection) -> Result<i64, IndexError>;

    /// Applies changes, visible to every search that starts after the return and durable at once
    /// or, when lost, told by the generation that the next `open` returns. Applying the same
    /// changes twice changes nothing. Changes come in the order of their generations.
    async fn apply(&self, collection: i64, changes: Changes) -> Result<(), IndexError>;

    /// The `limit` documents nearest to `vector` by cosine similarity, best first; scores in
    /// [-1, 1].
    async fn nearest(
        &self,
        collection: i64,
        vector: Arc<[f32]>,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError>;

    /// The `limit` documents with the highest BM25 score for any word of `text`, best first;
    /// scores above 0. The text is plain words: no query syntax.
    ///
    /// # Source
    /// Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    async fn matching(
        &self,
        collection: i64,
        text: &str,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError>;

    /// Whether [`Self::matching`] can be asked; where it cannot, a search that names no mode is one
    /// by vectors.
    fn has_full_text(&self) -> bool {
        true
    }

    /// Counts the documents per value of each field (string, strings or bool), most frequent
    /// first, then by value, at most `values` a field. Counts are exact. With `text` only
    /// documents that hold a word of it are counted.
    async fn facets(
        &self,
        collection: i64,
        text: Option<&str>,
        filter: Option<Arc<Filter>>,
        fields: &[String],
        values: usize,
    ) -> Result<Facets, IndexError>;

    /// The versions of up to `limit` documents in the order of their keys, after `after`, where
    /// the index keeps versions.
    async fn versions(
        &self,
        _collection: i64,
        _after: Option<Key>,
        _limit: usize,
    ) -> Result<Vec<Version>, IndexError> {
        Err(IndexError::Unsupported("this index keeps no versions"))
    }

    /// Documents in the index.
    async fn count(&self, collection: i64) -> Result<u64, IndexError>;

    /// Makes an index the one that others than this server find under the collection's name.
    async fn publish(&self, _collection: &IndexedCollection) -> Result<(), IndexError> {
        Ok(())
    }

    /// Deletes an index; one that does not exist is no error.
    async fn drop_collection(&self, collection: &IndexedCollection) -> Result<(), IndexError>;

    /// Whether the index can be searched now; the reason when it cannot.
    async fn health(&self) -> Result<(), IndexError> {
        Ok(())
    }

    /// Makes everything durable and lets go of files.
    async fn close(&self) -> Result<(), IndexError>;
}

/// What an index must know of a collection.
#[derive(Clone, Debug)]
pub struct IndexedCollection {
    /// The number of the index, by which the other calls name it; a collection can have several.
    pub id: i64,
    pub collection: i64,
    pub name: CollectionName,
    pub dimension: usize,
}

impl IndexedCollection {
    /// The index in which a collection is searched.
    pub fn of(collection: &Collection) -> Self {
        Self {
            id: collection.index,
            collection: collection.id,
            name: collection.name.clone(),
            dimension: collection.embedding.dimension,
        }
    }
}

/// Changes of one generation range of a collection.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The newest generation that these changes hold.
    pub generation: i64,
    pub upserts: Vec<IndexedDocument>,
    pub deletes: Vec<Key>,
}

#[derive(Clone, Debug)]
pub struct IndexedDocument {
    pub key: Key,
    /// Generation of its last change.
    pub version: i64,
    /// Identifier and attributes, see [`Document::without_texts`].
    pub document: Document,
    /// The searched text, see [`Document::text`].
    pub text: String,
    pub vector: Arc<[f32]>,
}

impl IndexedDocument {
    /// A whole document as an index keeps it.
    pub fn of(
        key: Key,
        version: i64,
        document: Document,
        schema: &Schema,
        vector: Arc<[f32]>,
    ) -> Self {
        let text = document.text(schema);
        Self { key, version, document: document.without_texts(schema), text, vector }
    }
}

/// Per requested field, in the order of the request: its values with their counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facets(pub Vec<(String, Vec<FacetValue>)>);

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct FacetValue {
    pub value: String,
    pub count: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("failed to {action} the index")]
    Io {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The index cannot be reached; it may be again in a moment.
    #[error("failed to {action} the index: it is not available")]
    Unavailable {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The index cannot do this at all, and says why.
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("collection {0} is not open")]
    NotOpen(i64),
    #[error("the index worker was lost")]
    Lost,
}

// ---------------------------------------------------------------------------- document store ----

/// The source of truth: collections, documents with their vectors, query counts.
#[async_trait]
pub trait DocumentStore: Send + Sync + 'static {
    async fn collections(&self) -> Result<Vec<Collection>, StoreError>;

    async fn collection(&self, name: &CollectionName) -> Result<Option<Collection>, StoreError>;

    /// # Errors
    /// `Exists` when there is a collection of this name.
    async fn create_collection(
        &self,
        name: &CollectionName,
        schema: &Schema,
        embedding: &EmbeddingVersion,
    ) -> Result<Collection, StoreError>;

    async fn update_schema(&self, collection: i64, schema: &Schema) -> Result<(), StoreError>;

    /// Deletes a collection with all it holds; false when there was none.
    async fn delete_collection(&self, collection: i64) -> Result<bool, StoreError>;

    /// Writes documents and, when given, the schema in one transaction, durable on return. Of
    /// documents with the same identifier in one call the last one counts.
    /// Returns the new generation and, per document of `writes`, its key.
    async fn upsert(
        &self,
        collection: i64,
        writes: &[DocumentWrite],
        schema: Option<&Schema>,
    ) -> Result<Committed, StoreError>;

    /// Deletes documents in one transaction, durable on return. Keys of those that existed.
    async fn delete(&self, collection: i64, ids: &[String]) -> Result<Committed, StoreError>;

    /// The stored vector and text hash of those of the documents that exist.
    async fn embedded(
        &self,
        collection: i64,
        ids: &[String],
    ) -> Result<Vec<Option<StoredEmbedding>>, StoreError>;

    async fn get(&self, collection: i64, id: &str) -> Result<Option<StoredDocument>, StoreError>;

    /// The documents of these keys, in their order; `None` where one is gone.
    async fn fetch(
        &self,
        collection: i64,
        keys: &[Key],
    ) -> Result<Vec<Option<Document>>, StoreError>;

    /// Up to `limit` documents in the order of their identifiers, after `after`.
    async fn list(
        &self,
        collection: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredDocument>, StoreError>;

    /// Changes after `generation` in order, about `limit` of them; empty when there are none.
    async fn changes(
        &self,
        collection: i64,
        generation: i64,
        limit: usize,
    ) -> Result<Changes, StoreError>;

    /// Forgets deletions up to a generation that every index has durably.
    async fn forget_deletions(&self, collection: i64, generation: i64) -> Result<(), StoreError>;

    /// Adds counts to the query log.
    async fn record_queries(&self, counts: &[QueryCount]) -> Result<(), StoreError>;

    /// Queries of a collection, the most frequent first.
    async fn queries(
        &self,
        collection: i64,
        selection: QuerySelection<'_>,
        limit: usize,
    ) -> Result<Vec<QueryStatistics>, StoreError>;

    /// A mark that survives restarts: whether a thing was done once.
    async fn mark(&self, name: &str) -> Result<bool, StoreError>;
    async fn set_mark(&self, name: &str) -> Result<(), StoreError>;

    async fn health(&self) -> Result<(), StoreError>;

    async fn close(&self);
}

#[derive(Clone, Debug)]
pub struct DocumentWrite {
    pub document: Document,
    pub text: String,
    pub text_hash: [u8; 32],
    /// `None` leaves embedding and indexing to a worker: a store with an [`Outbox`] commits a row
    /// of it with the document; other stores refuse.
    pub embedding: Option<StoredVector>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoredVector {
    pub vector: Arc<[f32]>,
    /// The text was longer than the model reads.
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoredEmbedding {
    pub text_hash: [u8; 32],
    pub embedding: StoredVector,
}

/// The outcome of a write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    pub generation: i64,
    pub keys: Vec<Key>,
    /// Documents of the collection after the write.
    pub documents: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoredDocument {
    pub key: Key,
    pub document: Document,
    /// Generation of its last change: the document's version.
    pub generation: i64,
    pub updated_at_ms: i64,
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryCount {
    pub collection: i64,
    /// Normalised, see [`crate::domain::normalise`].
    pub query: String,
    pub searches: u64,
    /// Hits of the last search.
    pub hits: u64,
    pub last_used_ms: i64,
}

#[derive(Clone, Copy, Debug)]
pub enum QuerySelection<'a> {
    All,
    WithoutHits,
    /// Those that begin so and have hits.
    Prefix(&'a str),
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct QueryStatistics {
    pub query: String,
    pub searches: u64,
    /// Hits of the last search.
    pub hits: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub last_used_ms: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the collection exists already")]
    Exists,
    #[error("the collection does not exist any more")]
    NoCollection,
    #[error("this store has no outbox: a document needs its vector")]
    NoOutbox,
    /// Another server changed the collection meanwhile, so that the write does not fit any more.
    #[error("{0}")]
    Conflict(String),
    /// The store cannot be reached, or not for writing; it may be again in a moment.
    #[error("failed to {action}: the database is not available")]
    Unavailable {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("failed to {action}")]
    Query {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// ------------------------------------------------------------------------------------ outbox ----

/// What committed writes still owe the index, in a store that several servers share. A document
/// has at most one row, of its newest version: writing it again before a worker came to it makes
/// no second one, and two workers never have the same document at once.
///
/// # Source
/// The transactional outbox, as in Richardson 2018, "Microservices Patterns", section 3.3.
#[async_trait]
pub trait Outbox: Indexes {
    /// Takes up to `limit` rows of one collection for `lease`, the oldest first and bulk writes
    /// after all others. Rows whose lease has run out are taken again. Empty when nothing is due in
    /// a collection that is searched by one of the models, given by their hashes.
    async fn claim(
        &self,
        worker: &str,
        models: &[String],
        limit: usize,
        lease: Duration,
    ) -> Result<Option<Claimed>, StoreError>;

    /// Stores the vectors of what was indexed and removes its rows; a row whose document was
    /// written again meanwhile, or which another worker has now, stays, and so do all of them when
    /// the collection has another index since they were claimed. Raises the collection's visible
    /// generation, which is returned.
    async fn complete(
        &self,
        worker: &str,
        collection: i64,
        done: &[Done],
    ) -> Result<i64, StoreError>;

    /// Gives rows back after a failure: each is due again after `delay`, or, when it failed
    /// `max_attempts` times, is set aside with the reason. `None` gives rows back without counting
    /// an attempt. Returns how many were set aside.
    async fn release(
        &self,
        worker: &str,
        collection: i64,
        keys: &[Key],
        failure: Option<&Failure>,
    ) -> Result<u64, StoreError>;

    /// What became of the writes of some generations of a collection.
    async fn progress(
        &self,
        collection: i64,
        generations: RangeInclusive<i64>,
    ) -> Result<Progress, StoreError>;

    /// Documents set aside, in the order of their identifiers after `after`.
    async fn set_aside(
        &self,
        collection: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SetAside>, StoreError>;

    /// Makes everything set aside in a collection due again; how many there were.
    async fn retry(&self, collection: i64) -> Result<u64, StoreError>;

    /// Makes a row for every document of a collection that has none, after an index lost them; how
    /// many.
    async fn enqueue_all(&self, collection: i64) -> Result<u64, StoreError>;

    /// As [`Self::enqueue_all`] for some keys. One that is no document's is to be deleted from the
    /// index.
    async fn enqueue(&self, collection: i64, keys: &[Key]) -> Result<u64, StoreError>;

    /// What the index of a collection must have: up to `limit` documents and rows, each in the order
    /// of their keys after `after`.
    async fn expected(
        &self,
        collection: i64,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Expected, StoreError>;

    /// Rows that wait, and the age of the oldest.
    async fn backlog(&self) -> Result<Backlog, StoreError>;
}

/// Rows of the outbox that a worker has.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    pub collection: Collection,
    pub rows: Vec<ClaimedRow>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedRow {
    pub key: Key,
    /// Generation of the document's last change.
    pub version: i64,
    /// `None` when the document was deleted.
    pub document: Option<ClaimedDocument>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedDocument {
    pub document: Document,
    /// The vector when it is that of the present text.
    pub embedding: Option<StoredVector>,
}

/// Generation of a document's last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub key: Key,
    pub version: i64,
}

/// A part of what an index must have.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// The index that is searched.
    pub index: i64,
    /// Of the whole collection, those for which no row waits.
    pub documents: u64,
    pub versions: Vec<Version>,
    /// Those for which rows wait: the index may have them in any version.
    pub waiting: Vec<Key>,
}

/// A claimed row whose change the index has.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub key: Key,
    pub version: i64,
    /// A vector that was made for it.
    pub embedding: Option<StoredVector>,
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: String,
    pub max_attempts: u32,
    pub delay: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents of those generations that wait or are being worked on.
    pub pending: u64,
    /// Documents of those generations that were set aside.
    pub set_aside: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SetAside {
    pub id: String,
    pub version: i64,
    pub attempts: u32,
    pub reason: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    pub rows: u64,
    pub oldest: Duration,
    pub set_aside: u64,
}

// --------------------------------------------------------------------------------- indexes ----

/// The indexes of a collection beside the one that is searched, and how one takes its place.
#[async_trait]
pub trait Indexes: Send + Sync + 'static {
    /// Indexes of a collection that are not searched, the newest first.
    async fn indexes(&self, collection: i64) -> Result<Vec<StoredIndex>, StoreError>;

    /// Begins a new index, without any document yet.
    async fn add_index(
        &self,
        collection: i64,
        text_fields: &[String],
        embedding: &EmbeddingVersion,
    ) -> Result<StoredIndex, StoreError>;

    /// What an index lacks, in the order of the changes: about `limit` documents after
    /// `index.generation`, and the generation that they bring it to.
    async fn missing(&self, index: &StoredIndex, limit: usize) -> Result<Missing, StoreError>;

    /// Takes an index for `lease`, to bring it up to date; false while another builder has it.
    async fn claim_index(
        &self,
        index: i64,
        builder: &str,
        lease: Duration,
    ) -> Result<bool, StoreError>;

    /// Tells that an index has every change up to a generation, stores the vectors that were made
    /// for it, save those of documents that were changed since, and renews the lease. False when
    /// another builder has the index now.
    async fn advance(
        &self,
        index: i64,
        builder: &str,
        generation: i64,
        done: &[Done],
        lease: Duration,
    ) -> Result<bool, StoreError>;

    /// Has the workers leave a collection alone, for this long at most, so that what searches see
    /// does not change while another index takes over.
    async fn hold(&self, collection: i64, at_most: Duration) -> Result<(), StoreError>;

    /// Makes an index the one that is searched, ends the hold and raises the visible generation,
    /// unless the present index has something that this one lacks, or another builder has it: then
    /// false. The present one is kept as retired.
    async fn activate(&self, index: &StoredIndex, builder: &str) -> Result<bool, StoreError>;

    /// Forgets an index that is not searched.
    async fn forget_index(&self, index: i64) -> Result<(), StoreError>;

    /// Tells which models a server runs, by their hashes; to be told again every few seconds.
    async fn announce(&self, server: &str, models: &[String]) -> Result<(), StoreError>;

    /// Servers that were announced of late and do not run a model.
    async fn servers_without(&self, model: &str) -> Result<Vec<String>, StoreError>;
}

/// An index that is being built, or that was searched before.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredIndex {
    pub id: i64,
    pub collection: i64,
    pub text_fields: Vec<String>,
    pub embedding: EmbeddingVersion,
    /// It has every change up to this one.
    pub generation: i64,
    pub created_at_ms: i64,
    /// How long ago another took its place; `None` while it is being built.
    pub retired: Option<Duration>,
}

impl StoredIndex {
    pub fn description(&self, name: &CollectionName) -> IndexedCollection {
        IndexedCollection {
            id: self.id,
            collection: self.collection,
            name: name.clone(),
            dimension: self.embedding.dimension,
        }
    }
}

/// What an index lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Missing {
    pub generation: i64,
    /// The collection's schema with the text fields of the index.
    pub schema: Schema,
    pub rows: Vec<ClaimedRow>,
}
