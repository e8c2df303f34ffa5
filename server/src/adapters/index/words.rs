//! What a word is and how much it counts, the same for every index.

use tantivy::tokenizer::{
    AsciiFoldingFilter, Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer,
    StopWordFilter, TextAnalyzer,
};
use unicode_normalization::UnicodeNormalization;

/// How soon further occurrences of a word count less, and how much long documents are marked down.
/// The values are those of Lucene and of Milvus.
pub const BM25_K1: f32 = 1.2;
pub const BM25_B: f32 = 0.75;

/// Longest word, in bytes: what is longer is not a word.
const MAX_WORD_BYTES: usize = 128;
/// Most words of one query: each is a list of documents to go through.
const MAX_QUERY_WORDS: usize = 64;

/// Letters and digits in lower case, without accents, cut to English word stems. For text that is
/// [`composed`].
pub fn analyzer() -> TextAnalyzer {
    words(StopWordFilter::remove([]))
}

fn words(without: StopWordFilter) -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(MAX_WORD_BYTES))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .filter(without)
        .filter(Stemmer::new(Language::English))
        .build()
}

/// A letter and its accent as one character, however they were written.
pub fn composed(text: &str) -> String {
    text.nfc().collect()
}

/// Calls `each` with the words of a text in their order until it returns false.
pub fn for_each(analyzer: &TextAnalyzer, text: &str, mut each: impl FnMut(&str) -> bool) {
    let (mut analyzer, text) = (analyzer.clone(), composed(text));
    let mut stream = analyzer.token_stream(&text);
    while stream.advance() && each(&stream.token().text) {}
}

/// Finds the words to look for.
pub struct QueryWords {
    /// Words of a query without those that every text has, and with them.
    rare: TextAnalyzer,
    all: TextAnalyzer,
}

impl QueryWords {
    pub fn new() -> Self {
        let common = StopWordFilter::new(Language::English);
        let rare = words(common.unwrap_or_else(|| StopWordFilter::remove([])));
        Self { rare, all: analyzer() }
    }

    /// The words to look for, sorted. Words that every English text has are left out unless
    /// there are no others: they would match nearly all documents and rank none.
    pub fn of(&self, text: &str) -> Vec<String> {
        let mut words = distinct(&self.rare, text);
        if words.is_empty() {
            words = distinct(&self.all, text);
        }
        words.sort_unstable();
        words
    }
}

impl Default for QueryWords {
    fn default() -> Self {
        Self::new()
    }
}

fn distinct(analyzer: &TextAnalyzer, text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for_each(analyzer, text, |word| {
        if !words.iter().any(|other| other == word) {
            words.push(word.to_owned());
        }
        words.len() < MAX_QUERY_WORDS
    });
    words
}
