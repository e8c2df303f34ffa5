//! For tests that are not about the model: hashed words, no model file.

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::EmbeddingVersion;
use crate::ports::{EmbedError, Embedder, Embedding, ModelInfo, Prompts, Urgency};

const NAME: &str = "hashed-words";
const MAX_TOKENS: usize = 256;

/// Every word adds a pseudo-random direction: texts that share words are near each other.
pub struct HashEmbedder {
    seed: u8,
    model: ModelInfo,
}

impl HashEmbedder {
    pub fn new(dimension: usize) -> Self {
        Self::seeded(dimension, 0)
    }

    /// Vectors of two seeds have nothing to do with each other, as those of two models.
    pub fn seeded(dimension: usize, seed: u8) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&dimension.to_le_bytes()).update(&[seed]);
        let version = EmbeddingVersion {
            model: if seed == 0 { NAME.to_owned() } else { format!("{NAME}-{seed}") },
            date: "2026-11-23".to_owned(),
            hash: hasher.finalize().to_hex().to_string(),
            dimension,
        };
        Self {
            seed,
            model: ModelInfo {
                version,
                max_tokens: MAX_TOKENS,
                device: "cpu".to_owned(),
                prompts: Prompts::default(),
            },
        }
    }

    /// Texts with other prompts get other vectors, as of a model.
    pub fn with_prompts(mut self, prompts: Prompts) -> Self {
        if prompts != Prompts::default() {
            let hash = format!("{}{prompts:?}", self.model.version.hash);
            self.model.version.hash = blake3::hash(hash.as_bytes()).to_hex().to_string();
        }
        self.model.prompts = prompts;
        self
    }

    fn embed_one(&self, text: &str) -> Embedding {
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let mut vector = vec![0.0_f32; self.model.version.dimension];
        // A constant direction keeps the vector of an empty text away from zero.
        vector[0] = 0.01;
        for word in words.iter().take(MAX_TOKENS) {
            let mut bytes = vec![0_u8; vector.len() * 2];
            blake3::Hasher::new()
                .update(&[self.seed])
                .update(word.as_bytes())
                .finalize_xof()
                .fill(&mut bytes);
            for (value, pair) in vector.iter_mut().zip(bytes.chunks_exact(2)) {
                *value += f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0;
            }
        }
        let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        for value in &mut vector {
            *value /= norm;
        }
        Embedding {
            vector: vector.into(),
            tokens: words.len().min(MAX_TOKENS),
            truncated: words.len() > MAX_TOKENS,
        }
    }
}

#[async_trait]
impl Embedder for HashEmbedder {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    async fn embed(
        &self,
        texts: Vec<Arc<str>>,
        _urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError> {
        Ok(texts.iter().map(|text| self.embed_one(text)).collect())
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}
