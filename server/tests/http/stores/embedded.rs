//! Documents and index in files of one server.

use std::path::Path;
use std::sync::Arc;

use sextant_server::adapters::documents::sqlite::SqliteStore;
use sextant_server::adapters::index::local::{LocalIndex, Options};
use sextant_server::ports::{DocumentStore, Outbox, SearchIndex};

/// Whether several servers could use the stores.
pub const SHARED: bool = false;

/// Where a test keeps its documents and its index.
pub struct Place(tempfile::TempDir);

pub struct Stores {
    pub documents: Arc<dyn DocumentStore>,
    pub outbox: Option<Arc<dyn Outbox>>,
    pub index: Arc<dyn SearchIndex>,
}

impl Place {
    #[allow(clippy::unused_async, reason = "the other form of it waits")]
    pub async fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub async fn open(&self) -> Stores {
        let documents = SqliteStore::open(&self.path().join("documents.db")).await.unwrap();
        let index = LocalIndex::open(&self.path().join("index"), Options::default()).unwrap();
        Stores { documents: Arc::new(documents), outbox: None, index: Arc::new(index) }
    }

    /// While no server uses it.
    #[allow(clippy::unused_async, reason = "the other form of it waits")]
    pub async fn lose_index(&self) {
        std::fs::remove_dir_all(self.path().join("index")).unwrap();
    }
}
