//! Text to token ids.

use std::path::Path;
use std::sync::Arc;

use tokenizers::{Tokenizer, TruncationParams};

use super::LoadError;

/// No token of ordinary text has so many characters. What lies further back cannot reach the
/// model, so that a huge text costs no more than a long one.
const CHARS_PER_TOKEN: usize = 250;

pub struct Tokens {
    /// What the model reads, special tokens included; at least one.
    pub ids: Arc<[u32]>,
    pub truncated: bool,
}

pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_chars: usize,
}

impl TextTokenizer {
    pub fn from_bytes(path: &Path, json: &[u8], max_tokens: usize) -> Result<Self, LoadError> {
        let parse = |source: tokenizers::Error| LoadError::Parse {
            path: path.to_owned(),
            reason: source.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(parse)?;
        tokenizer
            .with_truncation(Some(TruncationParams {
                max_length: max_tokens,
                ..Default::default()
            }))
            .map_err(parse)?;
        // The file may ask for padding to a fixed length; a batch here has none.
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, max_chars: max_tokens * CHARS_PER_TOKEN })
    }

    /// # Errors
    /// The tokenizer's own words; none is known to fail on text.
    pub fn tokens(&self, text: &str) -> Result<Tokens, String> {
        let cut = self.cut(text);
        let encoding = self.tokenizer.encode_fast(cut, true).map_err(|error| error.to_string())?;
        if encoding.is_empty() {
            return Err("the tokenizer made no token".to_owned());
        }
        let truncated = cut.len() < text.len() || !encoding.get_overflowing().is_empty();
        Ok(Tokens { ids: encoding.get_ids().into(), truncated })
    }

    /// How many tokens it knows, to be checked against the model.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    fn cut<'a>(&self, text: &'a str) -> &'a str {
        // No text has more characters than bytes.
        if text.len() <= self.max_chars {
            return text;
        }
        text.char_indices().nth(self.max_chars).map_or(text, |(end, _)| &text[..end])
    }
}
