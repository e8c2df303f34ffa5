//! An index inside the process: vectors in memory with snapshots on disk, full text on disk.
//!
//! A change is durable in the full text on return and in the vectors with their next snapshot.
//! `open` tells the older of the two generations and the caller applies what came after it once
//! more; applying a change again changes nothing. Damaged files count as generation 0.

mod bm25;
mod filter;
mod text;
mod vectors;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread;

use async_trait::async_trait;

use crate::domain::fusion::Scored;
use crate::domain::{Filter, Key};
use crate::ports::{Changes, Facets, IndexError, IndexedCollection, SearchIndex};
use text::{Text, Writer};
use vectors::Vectors;

/// Folders of dropped collections carry this until they are gone.
const DROPPED: &str = "dropped";

/// How the index trades memory, speed and recall.
#[derive(Clone, Debug)]
pub struct Options {
    /// Links per vector: memory and recall.
    pub connectivity: usize,
    /// Candidates per insertion: time to insert and recall.
    pub expansion_add: usize,
    /// Candidates per search: time to search and recall.
    pub expansion_search: usize,
    /// Changes after which vectors are saved, or an eighth of the collection if that is more: as
    /// many are replayed after a crash.
    pub snapshot_every: usize,
    /// Memory of one open writer of full text, in bytes; at least 15 million.
    pub writer_memory_bytes: usize,
    /// Writers of full text that stay open, one a collection; the one not used for longest is
    /// closed first.
    pub max_writers: usize,
    /// Threads that insert vectors. Twice as many searches run at the same time.
    pub threads: NonZeroUsize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connectivity: 16,
            expansion_add: 128,
            expansion_search: 128,
            snapshot_every: 20_000,
            writer_memory_bytes: 50_000_000,
            max_writers: 4,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// The embedded [`SearchIndex`]: one folder, used by one process.
#[derive(Clone)]
pub struct LocalIndex {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    options: Options,
    open: RwLock<HashMap<i64, Arc<LocalCollection>>>,
    /// Held while collections are opened or dropped; in it the lock of the root folder, until
    /// the index is closed.
    lifecycle: Mutex<Option<File>>,
    /// Collections with an open writer, the last used at the end.
    writers: Mutex<VecDeque<Weak<LocalCollection>>>,
}

struct LocalCollection {
    id: i64,
    text: Text,
    vectors: Vectors,
    options: Options,
    progress: Mutex<Progress>,
}

/// How far changes have come. Whoever holds it is the only one to change the collection.
struct Progress {
    writer: Option<Writer>,
    text: i64,
    vectors: i64,
    /// Changes since the last snapshot.
    unsaved: usize,
    /// A change failed half-way: only the files tell what is there.
    broken: bool,
    /// Dropped or closed while somebody still held the collection.
    closed: bool,
}

/// Makes an error of what failed.
fn failed<E>(action: &'static str) -> impl FnOnce(E) -> IndexError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| IndexError::Io { action, source: error.into() }
}

/// A panic under one of these locks leaves nothing half-done that is not marked as such.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T, F>(work: F) -> Result<T, IndexError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, IndexError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|_| IndexError::Lost)?
}

impl LocalIndex {
    /// Takes the folder `root`, made when it is not there, and removes what interrupted drops
    /// left in it. Blocks the thread, for a moment.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(root: &Path, options: Options) -> Result<Self, IndexError> {
        fs::create_dir_all(root).map_err(failed("create"))?;
        let guard = File::create(root.join("lock")).map_err(failed("lock"))?;
        guard.try_lock().map_err(|_| {
            let reason = format!("{} is used by another process", root.display());
            failed("lock")(io::Error::other(reason))
        })?;
        for entry in fs::read_dir(root).map_err(failed("read"))? {
            let path = entry.map_err(failed("read"))?.path();
            if path.extension().is_some_and(|extension| extension == DROPPED) {
                fs::remove_dir_all(&path).map_err(failed("drop a collection of"))?;
            }
        }
        let inner = Inner {
            root: root.to_owned(),
            options,
            open: RwLock::default(),
            lifecycle: Mutex::new(Some(guard)),
            writers: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs a search on a blocking thread.
    async fn search<T, F>(&self, collection: i64, search: F) -> Result<T, IndexError>
    where
        T: Send + 'static,
        F: FnOnce(&LocalCollection) -> Result<T, IndexError> + Send + 'static,
    {
        let collection = self.inner.get(collection)?;
        blocking(move || search(&collection)).await
    }
}

impl Inner {
    fn get(&self, id: i64) -> Result<Arc<LocalCollection>, IndexError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).cloned().ok_or(IndexError::NotOpen(id))
    }

    fn take(&self, id: i64) -> Option<Arc<LocalCollection>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    fn folder(&self, id: i64) -> PathBuf {
        self.root.join(id.to_string())
    }

    fn open(&self, collection: &IndexedCollection) -> Result<i64, IndexError> {
        let lifecycle = lock(&self.lifecycle);
        if lifecycle.is_none() {
            return Err(failed("open")(io::Error::other("it was closed")));
        }
        if let Ok(present) = self.get(collection.id) {
            if let Some(generation) = present.generation(collection.dimension) {
                return Ok(generation);
            }
            self.take(collection.id);
            present.abandon();
        }
        let folder = self.folder(collection.id);
        let opened =
            LocalCollection::open(collection.id, &folder, collection.dimension, &self.options)?;
        let generation = lock(&opened.progress).generation();
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(collection.id, Arc::new(opened));
        Ok(generation)
    }

    fn apply(&self, id: i64, changes: &Changes) -> Result<(), IndexError> {
        let collection = self.get(id)?;
        self.make_room_for(&collection);
        collection.apply(changes)
    }

    /// Closes writers until this collection may have one as well. Those at work are left alone,
    /// so there may be more of them than there should, but not more than changes at a time.
    fn make_room_for(&self, collection: &Arc<LocalCollection>) {
        let mut idle = Vec::new();
        {
            let mut writers = lock(&self.writers);
            writers.retain(|writer| {
                writer.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, collection))
            });
            writers.push_back(Arc::downgrade(collection));
            let mut excess = writers.len().saturating_sub(self.options.max_writers.max(1));
            writers.retain(|writer| {
                let Some(other) = writer.upgrade() else { return false };
                if excess == 0 || Arc::ptr_eq(&other, collection) {
                    return true;
                }
                let Ok(mut progress) = other.progress.try_lock() else { return true };
                excess -= 1;
                idle.extend(progress.writer.take());
                false
            });
        }
        for writer in idle {
            finish(writer);
        }
    }

    fn drop_collection(&self, id: i64) -> Result<(), IndexError> {
        let _lifecycle = lock(&self.lifecycle);
        if let Some(collection) = self.take(id) {
            collection.abandon();
        }
        // Renamed first: half a folder is never taken for a collection.
        let dropped = self.root.join(format!("{id}.{DROPPED}"));
        match fs::rename(self.folder(id), &dropped) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(failed("drop a collection of"))?,
        }
        fs::remove_dir_all(&dropped).map_err(failed("drop a collection of"))
    }

    fn close(&self) -> Result<(), IndexError> {
        let mut lifecycle = lock(&self.lifecycle);
        let open = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *open)
        };
        let mut outcome = Ok(());
        for collection in open.into_values() {
            outcome = outcome.and(collection.close());
        }
        *lifecycle = None;
        outcome
    }
}

/// Lets a writer end its merges. What it committed is durable whether they succeed or not.
fn finish(writer: Writer) {
    if let Err(error) = writer.wait_merging_threads() {
        tracing::warn!(%error, "a merge of full text failed");
    }
}

impl Progress {
    fn generation(&self) -> i64 {
        self.text.min(self.vectors)
    }
}

impl LocalCollection {
    fn open(
        id: i64,
        folder: &Path,
        dimension: usize,
        options: &Options,
    ) -> Result<Self, IndexError> {
        fs::create_dir_all(folder).map_err(failed("create"))?;
        let (text, text_generation) = Text::open(&folder.join("text"), options)?;
        if text_generation == 0 {
            // Vectors alone may be of documents whose deletion nobody remembers.
            vectors::forget(folder).map_err(failed("clear"))?;
        }
        let (vectors, vectors_generation) = Vectors::open(folder, dimension, options)?;
        let progress = Progress {
            writer: None,
            text: text_generation,
            vectors: vectors_generation,
            unsaved: 0,
            broken: false,
            closed: false,
        };
        Ok(Self { id, text, vectors, options: options.clone(), progress: Mutex::new(progress) })
    }

    /// The generation, unless the collection must be opened anew from its files.
    fn generation(&self, dimension: usize) -> Option<i64> {
        let progress = lock(&self.progress);
        let usable = !progress.broken && self.vectors.dimension() == dimension;
        usable.then(|| progress.generation())
    }

    fn apply(&self, changes: &Changes) -> Result<(), IndexError> {
        for upsert in &changes.upserts {
            self.vectors.check(&upsert.vector)?;
        }
        let mut progress = lock(&self.progress);
        if progress.closed {
            return Err(IndexError::NotOpen(self.id));
        }
        if progress.broken {
            let reason = "an earlier change failed; open the collection again";
            return Err(failed("change")(io::Error::other(reason)));
        }
        // Until the end is reached nothing is known of what was changed, also after a panic.
        progress.broken = true;
        let mut writer = match progress.writer.take() {
            Some(writer) => writer,
            None => self.text.writer()?,
        };
        let generation = progress.text.max(changes.generation);
        self.vectors.remove(&changes.deletes)?;
        self.vectors.upsert(&distinct(changes))?;
        self.text.apply(&mut writer, changes, generation)?;
        progress.writer = Some(writer);
        progress.text = generation;
        progress.vectors = progress.vectors.max(changes.generation);
        progress.unsaved += changes.upserts.len() + changes.deletes.len();
        progress.broken = false;
        if progress.unsaved >= self.options.snapshot_every.max(self.vectors.len() / 8) {
            // A snapshot is worth a replay, no more: without it the change is still complete.
            if let Err(error) = self.save(&mut progress) {
                tracing::warn!(collection = self.id, %error, "vectors were not saved");
                progress.unsaved = 1;
            }
        }
        Ok(())
    }

    fn save(&self, progress: &mut Progress) -> Result<(), IndexError> {
        self.vectors.save(progress.vectors)?;
        progress.unsaved = 0;
        Ok(())
    }

    fn close(&self) -> Result<(), IndexError> {
        let mut progress = lock(&self.progress);
        progress.closed = true;
        if let Some(writer) = progress.writer.take() {
            finish(writer);
        }
        if progress.broken || progress.unsaved == 0 {
            return Ok(());
        }
        self.save(&mut progress)
    }

    /// Lets go of the files as they are.
    fn abandon(&self) {
        let mut progress = lock(&self.progress);
        progress.closed = true;
        progress.writer = None;
    }

    fn nearest(
        &self,
        vector: &[f32],
        filter: Option<&Filter>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        self.vectors.check(vector)?;
        if limit == 0 {
            return Ok(Vec::new());
        }
        match filter.filter(|filter| !filter.is_empty()) {
            None => self.vectors.nearest(vector, limit, || self.text.keys(None)),
            Some(filter) => self.vectors.nearest_of(vector, self.text.keys(Some(filter))?, limit),
        }
    }
}

/// The vectors to add; of documents with the same key the last.
fn distinct(changes: &Changes) -> Vec<(Key, &[f32])> {
    let mut seen = HashSet::with_capacity(changes.upserts.len());
    let newest = changes.upserts.iter().rev().filter(|upsert| seen.insert(upsert.key));
    let mut vectors: Vec<(Key, &[f32])> =
        newest.map(|upsert| (upsert.key, &*upsert.vector)).collect();
    vectors.reverse();
    vectors
}

#[async_trait]
impl SearchIndex for LocalIndex {
    async fn open(&self, collection: &IndexedCollection) -> Result<i64, IndexError> {
        let (inner, collection) = (Arc::clone(&self.inner), collection.clone());
        blocking(move || inner.open(&collection)).await
    }

    async fn apply(&self, collection: i64, changes: Changes) -> Result<(), IndexError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.apply(collection, &changes)).await
    }

    async fn nearest(
        &self,
        collection: i64,
        vector: Arc<[f32]>,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        self.search(collection, move |it| it.nearest(&vector, filter.as_deref(), limit)).await
    }

    async fn matching(
        &self,
        collection: i64,
        text: &str,
        filter: Option<Arc<Filter>>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let text = text.to_owned();
        self.search(collection, move |it| it.text.matching(&text, filter.as_deref(), limit)).await
    }

    async fn facets(
        &self,
        collection: i64,
        text: Option<&str>,
        filter: Option<Arc<Filter>>,
        fields: &[String],
        values: usize,
    ) -> Result<Facets, IndexError> {
        let (text, fields) = (text.map(str::to_owned), fields.to_vec());
        self.search(collection, move |it| {
            it.text.facets(text.as_deref(), filter.as_deref(), &fields, values)
        })
        .await
    }

    async fn count(&self, collection: i64) -> Result<u64, IndexError> {
        Ok(self.inner.get(collection)?.text.count())
    }

    async fn drop_collection(&self, collection: &IndexedCollection) -> Result<(), IndexError> {
        let (inner, id) = (Arc::clone(&self.inner), collection.id);
        blocking(move || inner.drop_collection(id)).await
    }

    async fn close(&self) -> Result<(), IndexError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.close()).await
    }
}
