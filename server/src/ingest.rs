//! Writing documents: check, embed what changed, commit, index, acknowledge.
//!
//! A write is acknowledged after the store has it on disk and every search sees it. The store
//! commits first, so an index can only lag behind, and what it lacks is replayed from the store.
//!
//! Where several servers share the store, a write is acknowledged when it is committed together
//! with its rows of the outbox; workers embed and index it, see [`crate::worker`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt, pin_mut, stream};
use tracing::warn;

use crate::catalog::{Catalog, CatalogError, OpenCollection};
use crate::domain::{Document, FieldError, Operation, Schema};
use crate::metrics::Metrics;
use crate::ports::{
    Changes, Class, Committed, DocumentWrite, EmbedError, Embedder, Embedding, IndexedDocument,
    Progress, StoreError, StoredVector, Urgency,
};

/// Documents that are embedded, committed and indexed together.
pub const CHUNK: usize = 256;
/// Chunks that are embedded while an earlier one is committed.
const CHUNKS_AHEAD: usize = 2;
/// When a write that was refused because of the backlog may be tried again.
const BACKLOG_RETRY: Duration = Duration::from_secs(5);
/// Pauses between two looks at an operation that is waited for.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

pub struct Ingest {
    pub catalog: Arc<Catalog>,
    pub embedder: Arc<dyn Embedder>,
    pub metrics: Arc<Metrics>,
    /// Longest time that a chunk may wait for its embeddings.
    pub embed_timeout: Duration,
    /// Documents that wait for the workers, as last counted, and how many may.
    pub backlog: Arc<AtomicU64>,
    pub max_backlog: u64,
}

/// What an upsert did.
#[derive(
    Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
pub struct Upserted {
    /// Documents written, in this request.
    pub upserted: u64,
    /// Of these, documents whose text was embedded; the text of the others had not changed.
    pub embedded: u64,
    /// Documents whose text was longer than the model reads: the end is not searched by meaning.
    pub truncated: u64,
    /// Generation of the collection that has all of them.
    pub generation: i64,
    /// Where workers index what was written: the operation to ask for, see `/v1/operations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub operation: Option<Operation>,
}

/// Why documents were not written.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The documents of one chunk that cannot be admitted; chunks before it were written.
    #[error("{}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Invalid(Vec<FieldError>),
    /// The document at this place is not JSON.
    #[error("document [{place}] is not JSON: {message}")]
    Malformed { place: usize, message: String },
    /// The input ended or failed before its end.
    #[error("the input cannot be read: {0}")]
    Broken(String),
    #[error("the input came too slowly")]
    TooSlow,
    #[error("the {0}")]
    TooLarge(String),
    #[error("the write was interrupted")]
    Interrupted,
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl From<StoreError> for IngestError {
    fn from(error: StoreError) -> Self {
        Self::Catalog(error.into())
    }
}

/// A failed stream of documents, with what was written before the failure.
#[derive(Debug)]
pub struct Interrupted {
    pub error: IngestError,
    pub written: Upserted,
}

impl Ingest {
    /// Writes a stream of documents chunk by chunk, holding a few chunks at a time. Each chunk is
    /// one transaction; on an error the chunks before it stay.
    pub async fn upsert_stream(
        &self,
        collection: &Arc<OpenCollection>,
        documents: impl Stream<Item = Result<Document, IngestError>> + Send,
    ) -> Result<Upserted, Interrupted> {
        let mut written = Upserted { generation: collection.generation(), ..Upserted::default() };
        let chunks = documents.chunks(CHUNK).enumerate().map(|(i, chunk)| async move {
            let chunk = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
            self.prepare(collection, chunk, i * CHUNK).await
        });
        let prepared = chunks.buffered(CHUNKS_AHEAD);
        pin_mut!(prepared);
        loop {
            let committed = async {
                let Some(chunk) = prepared.try_next().await? else { return Ok(None) };
                self.commit(collection, chunk).await.map(Some)
            };
            match committed.await {
                Ok(Some(chunk)) => {
                    written.operation = Operation::joined(written.operation, chunk.operation);
                    written.upserted += chunk.upserted;
                    written.embedded += chunk.embedded;
                    written.truncated += chunk.truncated;
                    written.generation = chunk.generation;
                }
                Ok(None) => return Ok(written),
                Err(error) => return Err(Interrupted { error, written }),
            }
        }
    }

    /// Writes one document.
    pub async fn upsert(
        &self,
        collection: &Arc<OpenCollection>,
        document: Document,
    ) -> Result<Upserted, IngestError> {
        self.upsert_stream(collection, stream::iter([Ok(document)]))
            .await
            .map_err(|interrupted| interrupted.error)
    }

    /// Deletes documents; those that do not exist are no error.
    pub async fn delete(
        &self,
        collection: &Arc<OpenCollection>,
        ids: Vec<String>,
    ) -> Result<Deleted, IngestError> {
        let this = self.clone_parts();
        let collection = Arc::clone(collection);
        // On its own task: a client that leaves must not leave the index behind the store.
        run_to_end(async move {
            let mut indexed = collection.writer.lock().await;
            let committed = this.catalog.store.delete(collection.id, &ids).await?;
            let deleted = committed.keys.len() as u64;
            if deleted == 0 {
                return Ok(Deleted::default());
            }
            if this.catalog.outbox.is_some() {
                let operation = Operation::of(&collection.name, committed.generation, deleted);
                return Ok(Deleted { deleted, operation: Some(operation) });
            }
            let changes = Changes {
                generation: committed.generation,
                upserts: Vec::new(),
                deletes: committed.keys.clone(),
            };
            this.index(&collection, &mut indexed, &committed, changes).await?;
            Ok(Deleted { deleted, operation: None })
        })
        .await
    }

    fn clone_parts(&self) -> Writer {
        Writer { catalog: Arc::clone(&self.catalog), metrics: Arc::clone(&self.metrics) }
    }

    /// Checks a chunk and embeds the texts that are new or changed.
    async fn prepare(
        &self,
        collection: &OpenCollection,
        documents: Vec<Document>,
        first: usize,
    ) -> Result<Prepared, IngestError> {
        let documents = last_of_each(documents, first);
        let mut schema = (*collection.schema()).clone();
        admit_all(documents.iter().map(|(place, d)| (*place, d)), &mut schema)?;
        let texts: Vec<Arc<str>> =
            documents.iter().map(|(_, document)| document.text(&schema).into()).collect();
        let hashes: Vec<[u8; 32]> =
            texts.iter().map(|text| text_hash(&schema.text_fields, text)).collect();
        if self.catalog.outbox.is_some() {
            self.room()?;
            let writes = documents
                .into_iter()
                .zip(texts.iter().zip(hashes))
                .map(|((place, document), (text, text_hash))| {
                    let text = text.to_string();
                    (place, DocumentWrite { document, text, text_hash, embedding: None })
                })
                .collect();
            return Ok(Prepared { truncated: 0, writes, embedded: 0 });
        }
        let ids: Vec<String> = documents.iter().map(|(_, d)| d.id.clone()).collect();
        let stored = self.catalog.store.embedded(collection.id, &ids).await?;
        let known: Vec<_> = stored
            .into_iter()
            .zip(&hashes)
            .map(|(stored, hash)| stored.filter(|stored| stored.text_hash == *hash))
            .collect();
        let wanted: Vec<usize> = (0..texts.len()).filter(|i| known[*i].is_none()).collect();
        let prompts = &self.embedder.model().prompts;
        let wanted_texts = wanted.iter().map(|i| prompts.of_passage(&texts[*i])).collect();
        let deadline = Instant::now() + self.embed_timeout;
        let urgency = Urgency { class: Class::Bulk, deadline };
        let mut embeddings: HashMap<usize, _> = wanted
            .iter()
            .copied()
            .zip(self.embedder.embed_patiently(wanted_texts, urgency).await?)
            .collect();
        let embedded = embeddings.len() as u64;
        let mut writes = Vec::with_capacity(documents.len());
        let mut truncated = 0;
        for (i, ((place, document), known)) in documents.into_iter().zip(known).enumerate() {
            let embedding = match (known, embeddings.remove(&i)) {
                (Some(stored), _) => stored.embedding,
                (None, Some(Embedding { vector, truncated, .. })) => {
                    StoredVector { vector, truncated }
                }
                (None, None) => return Err(EmbedError::Failed("too few vectors".into()).into()),
            };
            truncated += u64::from(embedding.truncated);
            let write = DocumentWrite {
                document,
                text: texts[i].to_string(),
                text_hash: hashes[i],
                embedding: Some(embedding),
            };
            writes.push((place, write));
        }
        Ok(Prepared { truncated, writes, embedded })
    }

    async fn commit(
        &self,
        collection: &Arc<OpenCollection>,
        prepared: Prepared,
    ) -> Result<Upserted, IngestError> {
        let this = self.clone_parts();
        let collection = Arc::clone(collection);
        run_to_end(async move { this.commit(&collection, prepared).await }).await
    }

    /// Refuses a write when too many documents wait for the workers.
    fn room(&self) -> Result<(), IngestError> {
        let waiting = self.backlog.load(Ordering::Relaxed);
        if waiting <= self.max_backlog {
            return Ok(());
        }
        Err(EmbedError::Overloaded { retry_after: BACKLOG_RETRY }.into())
    }

    /// Waits until what was written is indexed, at most until `deadline`; what became of it.
    pub async fn wait(
        &self,
        operation: &Operation,
        deadline: Instant,
    ) -> Result<Progress, IngestError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let progress = self.progress(operation).await?;
            if progress.pending == 0 || Instant::now() + pause >= deadline {
                return Ok(progress);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    pub async fn progress(&self, operation: &Operation) -> Result<Progress, IngestError> {
        let collection = self.catalog.get(&operation.collection).await?;
        match &self.catalog.outbox {
            Some(outbox) => {
                Ok(outbox.progress(collection.id, operation.first..=operation.last).await?)
            }
            None => Ok(Progress::default()),
        }
    }
}

/// What a deletion did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deleted {
    pub deleted: u64,
    pub operation: Option<Operation>,
}

struct Prepared {
    truncated: u64,
    /// With their places in the input.
    writes: Vec<(usize, DocumentWrite)>,
    embedded: u64,
}

/// The parts of [`Ingest`] that a commit needs, on a task of its own.
struct Writer {
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
}

impl Writer {
    async fn commit(
        &self,
        collection: &OpenCollection,
        prepared: Prepared,
    ) -> Result<Upserted, IngestError> {
        let mut indexed = collection.writer.lock().await;
        // Again, as another writer may have given an attribute its type meanwhile.
        let present = collection.schema();
        let mut schema = (*present).clone();
        admit_all(prepared.writes.iter().map(|(place, w)| (*place, &w.document)), &mut schema)?;
        let changed = (schema != *present).then_some(&schema);
        let writes: Vec<DocumentWrite> = prepared.writes.into_iter().map(|(_, w)| w).collect();
        let committed = self.catalog.store.upsert(collection.id, &writes, changed).await?;
        collection.set_schema(schema.clone());
        let queued = self.catalog.outbox.is_some();
        let count = writes.len() as u64;
        let upserted = Upserted {
            operation: queued.then(|| Operation::of(&collection.name, committed.generation, count)),
            upserted: writes.len() as u64,
            embedded: prepared.embedded,
            truncated: prepared.truncated,
            generation: committed.generation,
        };
        if queued {
            return Ok(upserted);
        }
        let upserts = committed
            .keys
            .iter()
            .zip(writes)
            .filter_map(|(key, write)| {
                Some(IndexedDocument {
                    key: *key,
                    version: committed.generation,
                    document: write.document.without_texts(&schema),
                    text: write.text,
                    vector: write.embedding?.vector,
                })
            })
            .collect();
        let changes = Changes { generation: committed.generation, upserts, deletes: Vec::new() };
        self.index(collection, &mut indexed, &committed, changes).await?;
        Ok(upserted)
    }

    /// Brings the index up to a commit. When the index is not at the generation before, because an
    /// earlier write failed between store and index, it is caught up from the store instead.
    async fn index(
        &self,
        collection: &OpenCollection,
        indexed: &mut Option<i64>,
        committed: &Committed,
        changes: Changes,
    ) -> Result<(), IngestError> {
        if indexed.take() == Some(committed.generation - 1) {
            match self.catalog.index.apply(collection.id, changes).await {
                Ok(()) => *indexed = Some(committed.generation),
                Err(error) => {
                    self.metrics.background_failures.with_label_values(&["index"]).inc();
                    warn!(collection = %collection.name, %error, "index failed, replaying");
                }
            }
        }
        if indexed.is_none() {
            self.catalog.catch_up(collection, indexed).await?;
        }
        self.catalog.committed(collection, committed.generation, committed.documents);
        self.metrics.cache_invalidations.with_label_values(&["write"]).inc();
        Ok(())
    }
}

/// Tells whether a text is still the one that was embedded. With the fields that it was made of, as
/// a server may not know yet that others are searched now.
fn text_hash(fields: &[String], text: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in fields.iter().map(String::as_str).chain([text]) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// Runs a write on a task of its own, so that it ends even when its client has left.
async fn run_to_end<T: Send + 'static>(
    write: impl Future<Output = Result<T, IngestError>> + Send + 'static,
) -> Result<T, IngestError> {
    tokio::spawn(write).await.unwrap_or(Err(IngestError::Interrupted))
}

/// Of documents with the same identifier the last one counts; each with its place in the input.
fn last_of_each(documents: Vec<Document>, first: usize) -> Vec<(usize, Document)> {
    let mut seen = HashSet::new();
    let mut kept: Vec<(usize, Document)> = documents
        .into_iter()
        .enumerate()
        .rev()
        .filter(|(_, document)| seen.insert(document.id.clone()))
        .map(|(i, document)| (first + i, document))
        .collect();
    kept.reverse();
    kept
}

/// Checks documents, given with their places, adding their new attributes to the schema.
fn admit_all<'a>(
    documents: impl Iterator<Item = (usize, &'a Document)>,
    schema: &mut Schema,
) -> Result<(), IngestError> {
    let mut faults = Vec::new();
    for (place, document) in documents {
        if let Err(more) = document.admit(schema, &format!("[{place}]")) {
            faults.extend(more);
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(IngestError::Invalid(faults)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_two_documents_with_one_identifier_the_last_counts_and_keeps_its_place() {
        let document =
            |id: &str, name: &str| Document::parse(json!({"id": id, "name": name}), "").unwrap();
        let kept =
            last_of_each(vec![document("a", "1"), document("b", "2"), document("a", "3")], 10);
        let places: Vec<_> = kept.iter().map(|(place, d)| (*place, d.id.as_str())).collect();
        assert_eq!(places, [(11, "b"), (12, "a")]);
    }
}
