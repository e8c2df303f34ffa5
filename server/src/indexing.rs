//! From rows that an index lacks to its changes: for workers, and for builds of another index.

use std::sync::Arc;
use std::time::Instant;

use crate::domain::Schema;
use crate::ports::{
    Changes, ClaimedDocument, ClaimedRow, Class, Done, EmbedError, Embedder, IndexedDocument,
    Prompts, StoredVector, Urgency,
};

/// Embeds the documents that have no vector and makes the changes of all rows; with them what is to
/// be stored when the index has them.
///
/// # Errors
/// Those of the embedder.
pub async fn changes(
    embedder: &dyn Embedder,
    schema: &Schema,
    rows: Vec<ClaimedRow>,
    deadline: Instant,
) -> Result<(Changes, Vec<Done>), EmbedError> {
    let prompts = &embedder.model().prompts;
    let texts: Vec<Arc<str>> =
        rows.iter().filter_map(|row| text_to_embed(row, schema, prompts)).collect();
    let urgency = Urgency { class: Class::Bulk, deadline };
    let mut embeddings = embedder.embed_patiently(texts, urgency).await?.into_iter();
    let mut changes = Changes::default();
    let mut done = Vec::with_capacity(rows.len());
    for ClaimedRow { key, version, document } in rows {
        changes.generation = changes.generation.max(version);
        let mut made = None;
        match document {
            None => changes.deletes.push(key),
            Some(ClaimedDocument { document, embedding }) => {
                let known = embedding.is_some();
                let next = || {
                    let embedding = embeddings.next()?;
                    let (vector, truncated) = (embedding.vector, embedding.truncated);
                    Some(StoredVector { vector, truncated })
                };
                let stored = embedding
                    .or_else(next)
                    .ok_or_else(|| EmbedError::Failed("too few vectors came back".to_owned()))?;
                let vector = Arc::clone(&stored.vector);
                changes.upserts.push(IndexedDocument::of(key, version, document, schema, vector));
                made = (!known).then_some(stored);
            }
        }
        done.push(Done { key, version, embedding: made });
    }
    Ok((changes, done))
}

fn text_to_embed(row: &ClaimedRow, schema: &Schema, prompts: &Prompts) -> Option<Arc<str>> {
    match &row.document {
        Some(ClaimedDocument { document, embedding: None }) => {
            Some(prompts.of_passage(&document.text(schema)))
        }
        _ => None,
    }
}
