//! The models of a server: one, or two around a change of models.

use std::sync::Arc;

use crate::domain::EmbeddingVersion;
use crate::ports::{EmbedError, Embedder};

#[derive(Clone)]
pub struct Embedders {
    first: Arc<dyn Embedder>,
    next: Option<Arc<dyn Embedder>>,
}

impl From<Arc<dyn Embedder>> for Embedders {
    fn from(first: Arc<dyn Embedder>) -> Self {
        Self { first, next: None }
    }
}

impl Embedders {
    #[must_use]
    pub fn with_next(self, next: Option<Arc<dyn Embedder>>) -> Self {
        Self { next, ..self }
    }

    /// The one that new collections and `/v1/embeddings` use.
    pub fn first(&self) -> &Arc<dyn Embedder> {
        &self.first
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Embedder>> {
        std::iter::once(&self.first).chain(&self.next)
    }

    /// The one of a model.
    ///
    /// # Errors
    /// `Failed` when there is none: who asks has looked before whether there is.
    pub fn of(&self, model: &EmbeddingVersion) -> Result<&Arc<dyn Embedder>, EmbedError> {
        self.all()
            .find(|embedder| embedder.model().version.is_compatible(model))
            .ok_or_else(|| EmbedError::Failed(format!("this server does not run {}", model.model)))
    }

    /// Returns, with the reason, when one of them will not embed again in this process.
    pub async fn lost(&self) -> String {
        let all = self.all().map(|embedder| embedder.lost());
        futures::future::select_all(all).await.0
    }

    /// The hashes of the models.
    pub fn hashes(&self) -> Vec<String> {
        self.all().map(|embedder| embedder.model().version.hash.clone()).collect()
    }
}
