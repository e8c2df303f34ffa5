//! Another index of a collection, for another model or other text fields: built beside the one that
//! is searched, brought up to the writes that go on meanwhile, and put in its place in one step.
//!
//! Searches go on throughout: each takes one index with its model and keeps to it. The index that
//! was searched before stays, and going back to it is the same work the other way round. What is
//! done is noted, so a build that was interrupted goes on where it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::domain::{Collection, CollectionName, EmbeddingVersion};
use crate::embedders::Embedders;
use crate::indexing;
use crate::ports::{
    ClaimedDocument, DocumentStore, Done, EmbedError, Embedder, IndexError, IndexedCollection,
    Missing, Outbox, SearchIndex, StoreError, StoredIndex,
};

/// Documents that are embedded and indexed together.
const CHUNK: usize = 256;
/// Share of the lease that a chunk may take, so that what it still sends cannot overtake the one
/// that goes on after it.
const WORK_SHARE: f64 = 0.8;
/// How long the workers leave the collection alone for one try to change over.
const HOLD: Duration = Duration::from_secs(10);
/// Tries to change over: each brings the index up to what was written during the one before.
const TRIES: u32 = 60;
const TRY_PAUSE: Duration = Duration::from_millis(100);
/// Without any progress for so long it ends. It can be begun again, and goes on where it was.
const PATIENCE: Duration = Duration::from_mins(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub struct Reindex {
    pub documents: Arc<dyn DocumentStore>,
    pub outbox: Arc<dyn Outbox>,
    pub index: Arc<dyn SearchIndex>,
    pub embedders: Embedders,
    /// Unique among all who build indexes.
    pub builder: String,
    /// That of the workers. A builder that has not come on for so long is taken to be dead, and
    /// another may go on; and a worker may write to an index for so long after it was replaced.
    pub lease: Duration,
}

/// What a collection is to be searched by.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    Index {
        text_fields: Vec<String>,
        model: EmbeddingVersion,
    },
    /// What it was searched by before.
    Previous,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    Begin,
    /// It is there, and lacks what was written since.
    GoOn(StoredIndex),
}

#[derive(Debug, thiserror::Error)]
pub enum ReindexError {
    #[error("there is no collection {0:?}")]
    NoCollection(String),
    #[error("collection {0:?} is searched so already")]
    Already(String),
    #[error("there is no index to go back to")]
    NoPrevious,
    #[error(
        "another index of this collection is half built, for {model} and the text fields {fields}: finish it, or discard it with --discard"
    )]
    HalfBuilt { model: String, fields: String },
    #[error("no embedder is configured for {0}: name its model in `embedder` or `next_embedder`")]
    NoEmbedder(String),
    #[error(
        "servers that do not run {model} would fail to search: {servers}. Give them the model as `next_embedder` and start them again"
    )]
    ServersLackModel { model: String, servers: String },
    #[error("another process is building this index, and has been at it until a moment ago")]
    Taken,
    #[error("document {id:?} cannot be indexed: {reason}. Change or delete it and begin again")]
    Document { id: String, reason: String },
    #[error("the collection is written to faster than the index is built")]
    CannotCatchUp,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error("a part took longer than its lease allows")]
    TooSlow,
}

impl ReindexError {
    /// Whether trying again may help.
    fn is_passing(&self) -> bool {
        match self {
            Self::TooSlow
            | Self::Store(StoreError::Unavailable { .. })
            | Self::Index(IndexError::Unavailable { .. }) => true,
            Self::Embed(error) => !matches!(error, EmbedError::Failed(_)),
            _ => false,
        }
    }
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub generation: i64,
    /// The collection's last generation when the build began, or went on.
    pub of: i64,
}

/// Decides what is to be done to a collection.
///
/// # Errors
/// When it is done already, or cannot be done before something else.
pub fn plan(
    collection: &Collection,
    indexes: &[StoredIndex],
    wanted: &Wanted,
) -> Result<Plan, ReindexError> {
    let (text_fields, model) = match wanted {
        Wanted::Previous => {
            let retired = indexes.iter().filter(|index| index.retired.is_some());
            let last = retired.min_by_key(|index| index.retired);
            return last.cloned().map(Plan::GoOn).ok_or(ReindexError::NoPrevious);
        }
        Wanted::Index { text_fields, model } => (text_fields, model),
    };
    let is = |fields: &[String], other: &EmbeddingVersion| {
        fields == text_fields && other.is_compatible(model)
    };
    if is(&collection.schema.text_fields, &collection.embedding) {
        return Err(ReindexError::Already(collection.name.to_string()));
    }
    if let Some(index) = indexes.iter().find(|index| is(&index.text_fields, &index.embedding)) {
        return Ok(Plan::GoOn(index.clone()));
    }
    match indexes.iter().find(|index| index.retired.is_none()) {
        None => Ok(Plan::Begin),
        Some(other) => Err(ReindexError::HalfBuilt {
            model: other.embedding.model.clone(),
            fields: other.text_fields.join(", "),
        }),
    }
}

impl Reindex {
    pub async fn collection(&self, name: &CollectionName) -> Result<Collection, ReindexError> {
        let found = self.documents.collection(name).await?;
        found.ok_or_else(|| ReindexError::NoCollection(name.to_string()))
    }

    /// Builds what is wanted and changes over to it; returns the index that is searched now.
    pub async fn run(
        &self,
        name: &CollectionName,
        wanted: &Wanted,
        force: bool,
        mut tell: impl FnMut(Progress) + Send,
    ) -> Result<StoredIndex, ReindexError> {
        let collection = self.collection(name).await?;
        let indexes = self.outbox.indexes(collection.id).await?;
        let mut index = match plan(&collection, &indexes, wanted)? {
            Plan::GoOn(index) => index,
            Plan::Begin => {
                let Wanted::Index { text_fields, model } = wanted else {
                    return Err(ReindexError::NoPrevious);
                };
                self.outbox.add_index(collection.id, text_fields, model).await?
            }
        };
        let embedder = self
            .embedders
            .of(&index.embedding)
            .map_err(|_| ReindexError::NoEmbedder(index.embedding.model.clone()))?;
        if let Some(left) = index.retired.and_then(|ago| self.lease.checked_sub(ago)) {
            // A worker that began before it was replaced may still write to it.
            sleep(left).await;
        }
        let description = index.description(name);
        let of = collection.generation;
        self.patiently(|| self.take(&description)).await?;
        self.build(embedder, &mut index, &description, of, |generation| {
            tell(Progress { generation, of });
        })
        .await?;
        if !force {
            self.check_servers(&index.embedding).await?;
        }
        self.change_over(embedder, name, &mut index, &description).await?;
        self.patiently(|| async { Ok(self.index.publish(&description).await?) }).await?;
        self.drop_all_but_the_last(name, collection.id).await?;
        Ok(index)
    }

    /// Drops every index of a collection that is not searched.
    pub async fn discard(&self, name: &CollectionName) -> Result<usize, ReindexError> {
        let collection = self.collection(name).await?;
        let indexes = self.outbox.indexes(collection.id).await?;
        for index in &indexes {
            self.claim(index.id).await?;
            self.drop(name, index).await?;
        }
        Ok(indexes.len())
    }

    /// Opens the index, and takes care that nobody else builds it.
    async fn take(&self, description: &IndexedCollection) -> Result<(), ReindexError> {
        self.claim(description.id).await?;
        self.index.open(description).await?;
        Ok(())
    }

    /// Waits for the lease of a builder that ended without a word.
    async fn claim(&self, index: i64) -> Result<(), ReindexError> {
        let begun = Instant::now();
        loop {
            if self.outbox.claim_index(index, &self.builder, self.lease).await? {
                return Ok(());
            }
            if begun.elapsed() > self.lease {
                return Err(ReindexError::Taken);
            }
            sleep(jittered(FIRST_PAUSE)).await;
        }
    }

    /// Brings the index up to a generation. What is committed meanwhile is for the next time: it could
    /// go on without end.
    async fn build(
        &self,
        embedder: &Arc<dyn Embedder>,
        index: &mut StoredIndex,
        description: &IndexedCollection,
        until: i64,
        mut tell: impl FnMut(i64),
    ) -> Result<(), ReindexError> {
        while index.generation < until {
            let at = &*index;
            let generation = self
                .patiently(|| async {
                    timeout(self.lease.mul_f64(WORK_SHARE), self.chunk(embedder, at, description))
                        .await
                        .unwrap_or(Err(ReindexError::TooSlow))
                })
                .await?;
            tell(generation);
            if generation == index.generation {
                // The last changes were documents that are gone by now.
                break;
            }
            index.generation = generation;
        }
        Ok(())
    }

    /// Brings the index up to the next changes; the generation that it has then.
    async fn chunk(
        &self,
        embedder: &Arc<dyn Embedder>,
        index: &StoredIndex,
        description: &IndexedCollection,
    ) -> Result<i64, ReindexError> {
        let missing = self.outbox.missing(index, CHUNK).await?;
        if missing.generation == index.generation {
            return Ok(index.generation);
        }
        let done = match self.apply(embedder, &missing, description).await {
            Err(error) if is_of_a_document(&error) => {
                return Err(self.culprit(embedder, &missing, description).await.unwrap_or(error));
            }
            done => done?,
        };
        let noted =
            self.outbox.advance(index.id, &self.builder, missing.generation, &done, self.lease);
        if noted.await? { Ok(missing.generation) } else { Err(ReindexError::Taken) }
    }

    async fn apply(
        &self,
        embedder: &Arc<dyn Embedder>,
        missing: &Missing,
        description: &IndexedCollection,
    ) -> Result<Vec<Done>, ReindexError> {
        let deadline = Instant::now() + self.lease.mul_f64(WORK_SHARE);
        let rows = missing.rows.clone();
        let (changes, done) =
            indexing::changes(&**embedder, &missing.schema, rows, deadline).await?;
        self.index.apply(description.id, changes).await?;
        Ok(done)
    }

    /// Which document spoils a chunk: each alone shows it.
    async fn culprit(
        &self,
        embedder: &Arc<dyn Embedder>,
        missing: &Missing,
        description: &IndexedCollection,
    ) -> Option<ReindexError> {
        for row in &missing.rows {
            let Some(ClaimedDocument { document, .. }) = &row.document else { continue };
            let alone = Missing { rows: vec![row.clone()], ..missing.clone() };
            match self.apply(embedder, &alone, description).await {
                Ok(_) => {}
                Err(error) if is_of_a_document(&error) => {
                    let (id, reason) = (document.id.clone(), error.to_string());
                    return Some(ReindexError::Document { id, reason });
                }
                Err(error) => return Some(error),
            }
        }
        None
    }

    async fn check_servers(&self, model: &EmbeddingVersion) -> Result<(), ReindexError> {
        let servers = self
            .patiently(|| async { Ok(self.outbox.servers_without(&model.hash).await?) })
            .await?;
        if servers.is_empty() {
            return Ok(());
        }
        let (model, servers) = (model.model.clone(), servers.join(", "));
        Err(ReindexError::ServersLackModel { model, servers })
    }

    /// Puts the index in the place of the one that is searched.
    async fn change_over(
        &self,
        embedder: &Arc<dyn Embedder>,
        name: &CollectionName,
        index: &mut StoredIndex,
        description: &IndexedCollection,
    ) -> Result<(), ReindexError> {
        for _ in 0..TRIES {
            // Nothing more becomes visible from here on, save what workers have at hand.
            self.patiently(|| async { Ok(self.outbox.hold(index.collection, HOLD).await?) })
                .await?;
            let until = self.patiently(|| self.collection(name)).await?.generation;
            self.build(embedder, index, description, until, |_| {}).await?;
            let at = &*index;
            let activated = self
                .patiently(|| async { Ok(self.outbox.activate(at, &self.builder).await?) })
                .await?;
            if activated {
                return Ok(());
            }
            sleep(jittered(TRY_PAUSE)).await;
        }
        Err(ReindexError::CannotCatchUp)
    }

    /// Keeps one index to go back to.
    async fn drop_all_but_the_last(
        &self,
        name: &CollectionName,
        collection: i64,
    ) -> Result<(), ReindexError> {
        let mut retired = self.outbox.indexes(collection).await?;
        retired.retain(|index| index.retired.is_some());
        retired.sort_by_key(|index| index.retired);
        for index in retired.iter().skip(1) {
            self.drop(name, index).await?;
        }
        Ok(())
    }

    async fn drop(&self, name: &CollectionName, index: &StoredIndex) -> Result<(), ReindexError> {
        let description = index.description(name);
        self.patiently(|| async { Ok(self.index.drop_collection(&description).await?) }).await?;
        self.patiently(|| async { Ok(self.outbox.forget_index(index.id).await?) }).await
    }

    /// Does something that may be done twice, again and again while what it needs is away.
    async fn patiently<T, F>(&self, mut work: impl FnMut() -> F) -> Result<T, ReindexError>
    where
        F: Future<Output = Result<T, ReindexError>>,
    {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match work().await {
                Err(error) if error.is_passing() && begun.elapsed() < PATIENCE => {
                    tracing::warn!(%error, "trying again");
                    sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

fn is_of_a_document(error: &ReindexError) -> bool {
    matches!(
        error,
        ReindexError::Embed(EmbedError::Failed(_)) | ReindexError::Index(IndexError::Io { .. })
    )
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Schema;

    fn model(hash: &str) -> EmbeddingVersion {
        let (model, date) = (format!("model-{hash}"), "2026-11-23".to_owned());
        EmbeddingVersion { model, date, hash: hash.to_owned(), dimension: 2 }
    }

    fn collection() -> Collection {
        Collection {
            id: 7,
            name: CollectionName::parse("exercises").unwrap(),
            schema: Schema::default(),
            embedding: model("a"),
            index: 7,
            generation: 1,
            visible_generation: 1,
            documents: 1,
            created_at_ms: 0,
        }
    }

    fn index(id: i64, hash: &str, retired: Option<u64>) -> StoredIndex {
        StoredIndex {
            id,
            collection: 7,
            text_fields: Schema::default_text_fields(),
            embedding: model(hash),
            generation: 0,
            created_at_ms: id,
            retired: retired.map(Duration::from_secs),
        }
    }

    fn by(hash: &str) -> Wanted {
        Wanted::Index { text_fields: Schema::default_text_fields(), model: model(hash) }
    }

    #[test]
    fn a_build_that_was_interrupted_goes_on() {
        assert_eq!(plan(&collection(), &[], &by("b")).unwrap(), Plan::Begin);
        let half = index(8, "b", None);
        let found = plan(&collection(), std::slice::from_ref(&half), &by("b")).unwrap();
        assert_eq!(found, Plan::GoOn(half));
    }

    #[test]
    fn what_is_searched_already_is_not_built_again() {
        assert!(matches!(plan(&collection(), &[], &by("a")), Err(ReindexError::Already(_))));
        let name_only = Wanted::Index { text_fields: vec!["name".into()], model: model("a") };
        assert_eq!(plan(&collection(), &[], &name_only).unwrap(), Plan::Begin);
    }

    #[test]
    fn two_indexes_are_not_built_at_once() {
        let half = index(8, "b", None);
        let error = plan(&collection(), &[half], &by("c")).unwrap_err();
        assert!(error.to_string().contains("model-b"), "{error}");
    }

    #[test]
    fn going_back_is_to_the_index_that_was_replaced_last() {
        let indexes = [index(9, "d", None), index(7, "b", Some(60)), index(8, "c", Some(5))];
        let found = plan(&collection(), &indexes, &Wanted::Previous).unwrap();
        assert_eq!(found, Plan::GoOn(indexes[2].clone()));
        let none = plan(&collection(), &indexes[..1], &Wanted::Previous);
        assert!(matches!(none, Err(ReindexError::NoPrevious)));
    }
}
