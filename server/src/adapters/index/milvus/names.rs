//! What is made in Milvus for a collection is called.

use crate::ports::IndexedCollection;

/// Of an index, as searches and changes use it.
pub fn name(prefix: &str, index: &IndexedCollection) -> String {
    format!("{prefix}_{}_v{}", index.collection, index.id)
}

/// By which others find the index that is searched.
pub fn alias(prefix: &str, collection: i64) -> String {
    format!("{prefix}_{collection}")
}

/// Of the small collection that says up to which generation each index has every change.
pub fn generations(prefix: &str) -> String {
    format!("{prefix}_meta")
}
