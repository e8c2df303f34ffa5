//! How well documents match words: BM25.
//!
//! tantivy keeps a document's length as one of 256 and counts deleted documents until they are
//! merged away. Here lengths are exact and only documents that are there count, so that scores do
//! not depend on how a collection came about, and agree with those of an index in Milvus.
//!
//! # Source
//! Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the
//! weight of a word as in Lucene, where it is never negative.

use tantivy::columnar::Column;
use tantivy::postings::Postings;
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocSet, Searcher, SegmentReader, TERMINATED, TantivyError, Term};

use crate::adapters::index::words::{BM25_B, BM25_K1};

/// Column of the number of words.
pub const LENGTH: &str = "length";

/// Words in a document that is there, on average.
pub fn average_length(searcher: &Searcher) -> Result<f32, TantivyError> {
    let mut words = 0;
    for segment in searcher.segment_readers() {
        let lengths = lengths(segment)?;
        words += segment.doc_ids_alive().filter_map(|doc| lengths.first(doc)).sum::<u64>();
    }
    Ok((words as f64 / searcher.num_docs().max(1) as f64) as f32)
}

fn lengths(segment: &SegmentReader) -> Result<Column<u64>, TantivyError> {
    segment.fast_fields().u64(LENGTH)
}

/// The words of a query, each with its weight.
pub struct Words {
    weights: Vec<(Term, f32)>,
    field: Field,
    average_length: f32,
}

impl Words {
    pub fn new(
        searcher: &Searcher,
        field: Field,
        words: &[String],
        average_length: f32,
    ) -> Result<Self, TantivyError> {
        let documents = searcher.num_docs();
        let weight = |word: &String| {
            let term = Term::from_field_text(field, word);
            let holders = holders(searcher, field, &term)?;
            Ok((term, weight(holders, documents)))
        };
        let weights = words.iter().map(weight).collect::<Result<_, TantivyError>>()?;
        Ok(Self { weights, field, average_length })
    }

    /// The scores of a segment's documents, 0 without any of the words.
    ///
    /// Adds the scores word by word, in the order of the words, where a walk over all words at
    /// once would skip documents that cannot be among the best: its sums depend on the order in
    /// which it meets the words, and documents with the same text would get different scores.
    pub fn scores(&self, segment: &SegmentReader) -> Result<Vec<f32>, TantivyError> {
        let inverted = segment.inverted_index(self.field)?;
        let lengths = lengths(segment)?;
        let mut scores = vec![0.0; segment.max_doc() as usize];
        for (term, weight) in &self.weights {
            let Some(mut postings) = inverted.read_postings(term, IndexRecordOption::WithFreqs)?
            else {
                continue;
            };
            let mut document = postings.doc();
            while document != TERMINATED {
                let length = lengths.first(document).unwrap_or_default() as f32;
                let saturated = self.saturated(postings.term_freq() as f32, length);
                scores[document as usize] += weight * saturated;
                document = postings.advance();
            }
        }
        Ok(scores)
    }

    /// Each further occurrence counts less, and all count less in a long document.
    fn saturated(&self, frequency: f32, length: f32) -> f32 {
        let norm = BM25_K1 * (1.0 - BM25_B + BM25_B * length / self.average_length);
        frequency * (BM25_K1 + 1.0) / (frequency + norm)
    }
}

/// A rare word weighs more.
fn weight(holders: u64, documents: u64) -> f32 {
    let (holders, documents) = (holders as f64, documents as f64);
    ((documents - holders + 0.5) / (holders + 0.5)).ln_1p() as f32
}

/// Documents that are there and have the word.
fn holders(searcher: &Searcher, field: Field, term: &Term) -> Result<u64, TantivyError> {
    let mut holders = 0;
    for segment in searcher.segment_readers() {
        let inverted = segment.inverted_index(field)?;
        holders += match segment.alive_bitset() {
            None => inverted.doc_freq(term)?,
            Some(alive) => inverted
                .read_postings(term, IndexRecordOption::Basic)?
                .map_or(0, |postings| postings.doc_freq_given_deletes(alive)),
        };
    }
    Ok(u64::from(holders))
}
