//! The collections that are open in this process: what searches and writes must agree on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::domain::collection::{Freshness, SchemaChange};
use crate::domain::{Collection, CollectionName, EmbeddingVersion, FieldError, Schema};
use crate::metrics::Metrics;
use crate::ports::{DocumentStore, IndexError, IndexedCollection, Outbox, SearchIndex, StoreError};

/// Documents replayed into an index at a time.
const REPLAY_CHUNK: usize = 2_000;
/// A collection that was opened so recently is kept although a list does not have it: the list may
/// be a moment old.
const SETTLED: Duration = Duration::from_secs(10);
/// Between two tries to open what a starting server cannot open yet.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for the database to say how far a collection can be searched.
const FRESHNESS_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Catalog {
    pub store: Arc<dyn DocumentStore>,
    pub index: Arc<dyn SearchIndex>,
    /// Where writes leave their work for the workers, in stores that several servers share; without
    /// it this server alone indexes what it writes.
    pub outbox: Option<Arc<dyn Outbox>>,
    /// The model that this server runs, with which new collections are made.
    pub model: EmbeddingVersion,
    /// Another that it runs, around a change of models.
    next_model: Option<EmbeddingVersion>,
    /// Of new collections that do not say.
    default_freshness: Freshness,
    metrics: Arc<Metrics>,
    open: RwLock<HashMap<CollectionName, Arc<OpenCollection>>>,
    /// Held while collections are created and deleted.
    changing: Mutex<()>,
}

/// A collection that is open.
pub struct OpenCollection {
    pub id: i64,
    pub name: CollectionName,
    pub created_at_ms: i64,
    searched: RwLock<Arc<SearchedIndex>>,
    schema: RwLock<Arc<Schema>>,
    /// The last change that searches are sure to see: raised after the index has it.
    generation: AtomicI64,
    /// Whether the index of this server has been opened.
    indexed: AtomicBool,
    opened: Instant,
    documents: AtomicU64,
    /// One writer at a time; holds the generation that the index has, `None` when it is not known.
    pub writer: Mutex<Option<i64>>,
}

/// The index in which a collection is searched, and the model of its vectors. Another can take its
/// place at any time: a search takes this once and keeps to it.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchedIndex {
    pub id: i64,
    pub embedding: EmbeddingVersion,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("there is no collection {0:?}")]
    NotFound(String),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    #[error(
        "collection {collection:?} was embedded by {theirs}, this server runs {ours}: vectors of two \
         models cannot be compared. Start the server with the model {theirs}, or delete the \
         collection and import its documents again"
    )]
    OtherModel { collection: String, theirs: String, ours: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl Catalog {
    /// Opens every collection of the store and brings its index up to date.
    pub async fn open(
        store: Arc<dyn DocumentStore>,
        index: Arc<dyn SearchIndex>,
        outbox: Option<Arc<dyn Outbox>>,
        model: EmbeddingVersion,
        metrics: Arc<Metrics>,
    ) -> Result<Self, CatalogError> {
        let catalog = Self {
            store,
            index,
            outbox,
            model,
            next_model: None,
            default_freshness: Freshness::default(),
            metrics,
            open: RwLock::default(),
            changing: Mutex::default(),
        };
        for collection in catalog.store.collections().await? {
            let name = collection.name.clone();
            if !collection.embedding.is_compatible(&catalog.model) {
                warn!(
                    collection = %name, theirs = collection.embedding.model,
                    ours = catalog.model.model, "collection was embedded by another model",
                );
            }
            catalog.admit(collection).await?;
        }
        Ok(catalog)
    }

    /// Adds a second model that this server runs.
    #[must_use]
    pub fn with_next_model(self, next_model: Option<EmbeddingVersion>) -> Self {
        Self { next_model, ..self }
    }

    /// What new collections are that do not say.
    #[must_use]
    pub fn with_default_freshness(self, default_freshness: Freshness) -> Self {
        Self { default_freshness, ..self }
    }

    /// Whether this server can embed queries for a collection.
    pub fn runs(&self, model: &EmbeddingVersion) -> bool {
        [Some(&self.model), self.next_model.as_ref()]
            .into_iter()
            .flatten()
            .any(|ours| ours.is_compatible(model))
    }

    /// Opens a collection's index, replays what it misses and makes it known.
    async fn admit(&self, collection: Collection) -> Result<Arc<OpenCollection>, CatalogError> {
        let searched = SearchedIndex { id: collection.index, embedding: collection.embedding };
        let open = Arc::new(OpenCollection {
            id: collection.id,
            name: collection.name.clone(),
            searched: RwLock::new(Arc::new(searched)),
            created_at_ms: collection.created_at_ms,
            schema: RwLock::new(Arc::new(collection.schema)),
            generation: AtomicI64::new(0),
            indexed: AtomicBool::new(false),
            opened: Instant::now(),
            documents: AtomicU64::new(collection.documents),
            writer: Mutex::new(None),
        });
        if self.outbox.is_some() {
            open.generation.store(collection.visible_generation, Ordering::Release);
            self.open_index(&open).await?;
        } else {
            self.open_and_replay(&open, collection.generation).await?;
        }
        self.set_document_metric(&open);
        let mut all = self.open.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(collection.name, Arc::clone(&open));
        Ok(open)
    }

    /// Opens an index that workers keep up to date. One that is not available now is opened later,
    /// see [`Self::refresh`].
    async fn open_index(&self, open: &OpenCollection) -> Result<(), CatalogError> {
        match self.open_shared(&open.description(), open.generation()).await {
            Ok(()) => open.indexed.store(true, Ordering::Release),
            Err(CatalogError::Index(error @ IndexError::Unavailable { .. })) => {
                self.metrics.background_failures.with_label_values(&["index"]).inc();
                warn!(collection = %open.name, %error, "the index is not available yet");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Opens an index that workers keep up to date. When it has lost what it had, all documents are
    /// left to them again. `visible`: a generation that it has had.
    pub async fn open_shared(
        &self,
        collection: &IndexedCollection,
        visible: i64,
    ) -> Result<(), CatalogError> {
        let at = self.index.open(collection).await?;
        if at == 0
            && visible > 0
            && let Some(outbox) = &self.outbox
        {
            let documents = outbox.enqueue_all(collection.collection).await?;
            warn!(collection = %collection.name, documents, "the index was lost, making it anew");
        }
        Ok(())
    }

    async fn open_and_replay(
        &self,
        open: &OpenCollection,
        generation: i64,
    ) -> Result<(), CatalogError> {
        let mut indexed = open.writer.lock().await;
        let mut durable = self.index.open(&open.description()).await?;
        if durable > generation {
            // The documents were restored from an older copy: what the index knows more is wrong.
            warn!(collection = %open.name, "the index is newer than the documents, making it anew");
            self.index.drop_collection(&open.description()).await?;
            durable = self.index.open(&open.description()).await?;
        }
        // Only now, as the index comes from the disk, is what it has known to be durable.
        self.store.forget_deletions(open.id, durable).await?;
        if let Err(CatalogError::Index(error)) = self.replay(open, durable, &mut indexed).await {
            self.metrics.background_failures.with_label_values(&["index"]).inc();
            warn!(collection = %open.name, %error, "the index cannot be brought up to date, making it anew");
            self.index.drop_collection(&open.description()).await?;
            let empty = self.index.open(&open.description()).await?;
            self.replay(open, empty, &mut indexed).await?;
        }
        Ok(())
    }

    /// Takes over what other servers did to the collections: new ones, deleted ones, schemas, and
    /// how far each can be searched. Nothing to do where no other server is.
    pub async fn refresh(&self) -> Result<(), CatalogError> {
        if self.outbox.is_none() {
            return Ok(());
        }
        let stored = self.store.collections().await?;
        let ids: HashSet<i64> = stored.iter().map(|collection| collection.id).collect();
        for open in self.all() {
            if !ids.contains(&open.id) && open.opened.elapsed() > SETTLED {
                self.forget(&open);
            }
        }
        for collection in stored {
            let known =
                self.known(collection.name.as_str()).filter(|open| open.id == collection.id);
            match known {
                Some(open) => {
                    if collection.index == open.searched().id {
                        self.take_over(&open, &collection).await?;
                    } else {
                        // Asked of the primary: the list may be of a moment before the change.
                        self.reload(&open).await?;
                    }
                    self.set_document_metric(&open);
                    if !open.indexed.load(Ordering::Acquire) {
                        self.open_index(&open).await?;
                    }
                }
                None => {
                    self.admit(collection).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until every index is open, at most so long. A new server that could only say that its
    /// index is not available is not to be asked while others are there.
    pub async fn wait_for_indexes(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let is_open = |open: &Arc<OpenCollection>| open.indexed.load(Ordering::Acquire);
        while self.outbox.is_some() && !self.all().iter().all(is_open) && Instant::now() < deadline
        {
            tokio::time::sleep(OPEN_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
            if let Err(error) = self.refresh().await {
                warn!(%error, "the collections could not be looked at");
            }
        }
    }

    /// Takes over a collection's schema from the store; true when it was another one.
    pub async fn reload(&self, open: &OpenCollection) -> Result<bool, CatalogError> {
        let known = open.schema();
        if let Some(stored) = self.store.collection(&open.name).await?
            && stored.id == open.id
        {
            self.take_over(open, &stored).await?;
        }
        Ok(*open.schema() != *known)
    }

    /// Takes over the store's view of a collection, which may be a moment old.
    async fn take_over(
        &self,
        open: &OpenCollection,
        stored: &Collection,
    ) -> Result<(), CatalogError> {
        // Not for a view that is older than what is known already.
        if stored.index != open.searched().id && stored.visible_generation >= open.generation() {
            // Open before any search comes to it.
            self.index.open(&IndexedCollection::of(stored)).await?;
            let searched = SearchedIndex { id: stored.index, embedding: stored.embedding.clone() };
            info!(collection = %open.name, index = searched.id, model = searched.embedding.model,
                "searching another index from now on");
            *open.searched.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(searched);
            open.indexed.store(true, Ordering::Release);
        }
        open.generation.fetch_max(stored.visible_generation, Ordering::Release);
        open.documents.store(stored.documents, Ordering::Relaxed);
        if *open.schema() != stored.schema {
            open.set_schema(stored.schema.clone());
        }
        Ok(())
    }

    /// Tells that searches of a collection see its changes up to `generation`.
    pub fn raise(&self, collection: i64, generation: i64) {
        let all = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.values().find(|open| open.id == collection) {
            open.generation.fetch_max(generation, Ordering::Release);
        }
    }

    /// The generation that an answer must be of to hold every acknowledged write; `None` when that
    /// cannot be known now.
    pub async fn current_generation(&self, open: &OpenCollection) -> Option<i64> {
        if self.outbox.is_none() || open.schema().freshness == Freshness::Bounded {
            return Some(open.generation());
        }
        let read = self.store.collection(&open.name);
        let stored = tokio::time::timeout(FRESHNESS_TIMEOUT, read).await.ok()?.ok()??;
        if stored.id != open.id {
            return None;
        }
        self.take_over(open, &stored).await.ok()?;
        Some(stored.visible_generation)
    }

    /// Makes the index agree with the store again after a failed or interrupted write. The caller
    /// holds the collection's writer.
    pub async fn catch_up(
        &self,
        open: &OpenCollection,
        indexed: &mut Option<i64>,
    ) -> Result<(), CatalogError> {
        *indexed = None;
        let at = self.index.open(&open.description()).await?;
        self.replay(open, at, indexed).await
    }

    async fn replay(
        &self,
        open: &OpenCollection,
        mut at: i64,
        indexed: &mut Option<i64>,
    ) -> Result<(), CatalogError> {
        loop {
            let changes = self.store.changes(open.id, at, REPLAY_CHUNK).await?;
            if changes.upserts.is_empty() && changes.deletes.is_empty() {
                break;
            }
            let (generation, documents) = (changes.generation, changes.upserts.len());
            info!(collection = %open.name, generation, documents, "replaying changes into the index");
            self.index.apply(open.searched().id, changes).await?;
            at = generation;
        }
        *indexed = Some(at);
        open.generation.fetch_max(at, Ordering::Release);
        Ok(())
    }

    /// Catches up the collections whose index is behind because a write failed half-way, or because
    /// it was lost.
    pub async fn repair(&self) -> Result<(), CatalogError> {
        for open in self.all() {
            if self.outbox.is_some() {
                self.open_shared(&open.description(), open.generation()).await?;
                continue;
            }
            // A collection that is being written to is repaired by its writer.
            if let Ok(mut indexed) = open.writer.try_lock()
                && indexed.is_none()
            {
                self.catch_up(&open, &mut indexed).await?;
            }
        }
        Ok(())
    }

    fn known(&self, name: &str) -> Option<Arc<OpenCollection>> {
        let parsed = CollectionName::parse(name).ok()?;
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&parsed).cloned()
    }

    pub async fn get(&self, name: &str) -> Result<Arc<OpenCollection>, CatalogError> {
        if let Some(open) = self.known(name) {
            return Ok(open);
        }
        let missing = || CatalogError::NotFound(name.to_owned());
        let parsed = CollectionName::parse(name).map_err(|_| missing())?;
        if self.outbox.is_none() {
            return Err(missing());
        }
        // Another server may have made it a moment ago.
        let collection = self.store.collection(&parsed).await?.ok_or_else(missing)?;
        self.admit(collection).await
    }

    /// As [`Self::get`], and the collection's vectors are of this server's model.
    pub async fn get_compatible(&self, name: &str) -> Result<Arc<OpenCollection>, CatalogError> {
        let open = self.get(name).await?;
        let theirs = open.searched();
        if self.runs(&theirs.embedding) {
            return Ok(open);
        }
        let describe = |version: &EmbeddingVersion| {
            format!("{} ({})", version.model, version.hash.get(..12).unwrap_or_default())
        };
        Err(CatalogError::OtherModel {
            collection: name.to_owned(),
            theirs: describe(&theirs.embedding),
            ours: describe(&self.model),
        })
    }

    /// Every open collection, by name.
    pub fn all(&self) -> Vec<Arc<OpenCollection>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = open.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Creates a collection or changes its schema; true when it was created. What the change does
    /// not name stays as it is.
    pub async fn put(
        &self,
        name: &str,
        change: SchemaChange,
    ) -> Result<(Arc<OpenCollection>, bool), CatalogError> {
        let parsed =
            CollectionName::parse(name).map_err(|fault| CatalogError::Invalid(vec![fault]))?;
        let _changing = self.changing.lock().await;
        match self.get(name).await {
            Ok(open) => return Ok((self.change(open, change).await?, false)),
            Err(CatalogError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let text_fields = change.text_fields.clone().unwrap_or_else(Schema::default_text_fields);
        let freshness = self.default_freshness;
        let schema = checked(&Schema { text_fields, freshness, ..Schema::default() }, change)?;
        let collection = match self.store.create_collection(&parsed, &schema, &self.model).await {
            // Another server was quicker.
            Err(StoreError::Exists) if self.outbox.is_some() => {
                return Ok((self.get(name).await?, false));
            }
            created => created?,
        };
        let id = collection.id;
        match self.admit(collection).await {
            Ok(open) => Ok((open, true)),
            Err(error) => {
                // Not half a collection: the name is free for another try.
                self.store.delete_collection(id).await?;
                Err(error)
            }
        }
    }

    async fn change(
        &self,
        open: Arc<OpenCollection>,
        change: SchemaChange,
    ) -> Result<Arc<OpenCollection>, CatalogError> {
        let writer = open.writer.lock().await;
        let schema = checked(&open.schema(), change)?;
        self.store.update_schema(open.id, &schema).await?;
        open.set_schema(schema);
        drop(writer);
        Ok(open)
    }

    fn forget(&self, open: &OpenCollection) {
        let mut all = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if all.get(&open.name).is_some_and(|known| known.id == open.id) {
            all.remove(&open.name);
            // The name may be a label no more: a series per deleted collection would pile up.
            let _ = self.metrics.documents.remove_label_values(&[open.name.as_str()]);
        }
    }

    pub async fn delete(&self, name: &str) -> Result<(), CatalogError> {
        let _changing = self.changing.lock().await;
        let open = self.get(name).await?;
        let _writer = open.writer.lock().await;
        let searched = open.description();
        let mut indexes = vec![searched.clone()];
        if let Some(outbox) = &self.outbox {
            let others = outbox.indexes(open.id).await?;
            indexes.extend(others.into_iter().map(|other| other.description(&open.name)));
        }
        self.store.delete_collection(open.id).await?;
        self.forget(&open);
        for index in &indexes {
            self.index.drop_collection(index).await?;
        }
        Ok(())
    }

    /// Tells how many documents there are now and that the index has them.
    pub fn committed(&self, open: &OpenCollection, generation: i64, documents: u64) {
        open.documents.store(documents, Ordering::Relaxed);
        open.generation.fetch_max(generation, Ordering::Release);
        self.set_document_metric(open);
    }

    fn set_document_metric(&self, open: &OpenCollection) {
        self.metrics
            .documents
            .with_label_values(&[open.name.as_str()])
            .set(i64::try_from(open.documents()).unwrap_or(i64::MAX));
    }
}

/// The schema after a change, when it is acceptable.
fn checked(present: &Schema, change: SchemaChange) -> Result<Schema, CatalogError> {
    let next = present.changed(change);
    let mut faults = present.change_faults(&next);
    faults.extend(next.faults());
    if faults.is_empty() { Ok(next) } else { Err(CatalogError::Invalid(faults)) }
}

impl OpenCollection {
    fn description(&self) -> IndexedCollection {
        let searched = self.searched();
        IndexedCollection {
            id: searched.id,
            collection: self.id,
            name: self.name.clone(),
            dimension: searched.embedding.dimension,
        }
    }

    pub fn searched(&self) -> Arc<SearchedIndex> {
        Arc::clone(&self.searched.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.schema.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_schema(&self, schema: Schema) {
        *self.schema.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(schema);
    }

    pub fn generation(&self) -> i64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn documents(&self) -> u64 {
        self.documents.load(Ordering::Relaxed)
    }
}
