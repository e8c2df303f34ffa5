//! Words and attributes of one collection, in a tantivy index.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering as MemoryOrder};

use serde::{Deserialize, Serialize};
use tantivy::columnar::{Column, StrColumn};
use tantivy::indexer::{IndexWriterOptions, LogMergePolicy};
use tantivy::query::{AllQuery, BooleanQuery, EnableScoring, Occur, Query, TermQuery, Weight};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, JsonObjectOptions, OwnedValue, Schema,
    TextFieldIndexing, TextOptions,
};
use tantivy::tokenizer::{PreTokenizedString, TextAnalyzer, Token};
use tantivy::{
    DocId, Index, IndexReader, IndexWriter, ReloadPolicy, Searcher, SegmentReader, TantivyDocument,
    TantivyError, Term,
};

use super::bm25::{self, LENGTH};
use super::filter::{
    ATTRIBUTES, FilterFields, ID, NUMBERS, escape, indexed_number, indexed_string,
};
use super::{Options, failed};
use crate::adapters::index::words::{self, QueryWords};
use crate::domain::fusion::{self, Scored};
use crate::domain::{Filter, Key, Value};
use crate::ports::{Changes, FacetValue, Facets, IndexError, IndexedDocument};

/// An index of another format, other words of the same text included, is made anew.
const FORMAT: u32 = 2;
const KEY: &str = "key";
const WORDS: &str = "words";
/// Share of deleted documents that makes a segment worth writing again.
const DELETED_BEFORE_MERGE: f32 = 0.3;

pub struct Text {
    index: Index,
    reader: IndexReader,
    key: Field,
    id: Field,
    words: Field,
    length: Field,
    attributes: Field,
    numbers: Field,
    filters: FilterFields,
    analyzer: TextAnalyzer,
    query_words: QueryWords,
    /// Words of a document on average, as of the last commit: the bits of an `f32`.
    average_length: AtomicU32,
    writer_memory_bytes: usize,
}

/// What a commit says of itself.
#[derive(Serialize, Deserialize)]
struct Payload {
    format: u32,
    generation: i64,
}

pub type Writer = IndexWriter<TantivyDocument>;

impl Text {
    /// Opens the index in the folder, or makes an empty one where there is none that can be used.
    /// Returns the generation as well, 0 for empty.
    pub fn open(folder: &Path, options: &Options) -> Result<(Self, i64), IndexError> {
        match Self::load(folder, options) {
            Ok(Some(loaded)) => return Ok(loaded),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "full text will be built anew: its files cannot be used");
            }
        }
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("create")(error));
            }
            _ => {}
        }
        fs::create_dir_all(folder).map_err(failed("create"))?;
        let index = Index::create_in_dir(folder, schema()).map_err(failed("create"))?;
        Ok((Self::new(index, options).map_err(failed("create"))?, 0))
    }

    fn load(folder: &Path, options: &Options) -> Result<Option<(Self, i64)>, TantivyError> {
        if !folder.join("meta.json").is_file() {
            return Ok(None);
        }
        let index = Index::open_in_dir(folder)?;
        if index.schema() != schema() {
            return Err(TantivyError::SchemaError("it has another schema".to_owned()));
        }
        let generation = match index.load_metas()?.payload {
            None => 0, // made, and nothing committed since
            Some(payload) => {
                let payload: Payload = serde_json::from_str(&payload).map_err(io::Error::other)?;
                if payload.format != FORMAT {
                    return Err(TantivyError::SchemaError("it has another format".to_owned()));
                }
                payload.generation
            }
        };
        let damaged = index.validate_checksum()?;
        if !damaged.is_empty() {
            let message = format!("the checksums of {damaged:?} differ");
            return Err(TantivyError::InternalError(message));
        }
        Ok(Some((Self::new(index, options)?, generation)))
    }

    fn new(index: Index, options: &Options) -> Result<Self, TantivyError> {
        let schema = index.schema();
        index.tokenizers().register(WORDS, words::analyzer());
        let reader: IndexReader =
            index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let average_length = bm25::average_length(&reader.searcher())?;
        Ok(Self {
            reader,
            key: schema.get_field(KEY)?,
            id: schema.get_field(ID)?,
            words: schema.get_field(WORDS)?,
            length: schema.get_field(LENGTH)?,
            attributes: schema.get_field(ATTRIBUTES)?,
            numbers: schema.get_field(NUMBERS)?,
            filters: FilterFields::of(&schema)?,
            analyzer: words::analyzer(),
            query_words: QueryWords::new(),
            average_length: AtomicU32::new(average_length.to_bits()),
            writer_memory_bytes: options.writer_memory_bytes,
            index,
        })
    }

    pub fn writer(&self) -> Result<Writer, IndexError> {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(self.writer_memory_bytes)
            .build();
        let writer: Writer = self.index.writer_with_options(options).map_err(failed("change"))?;
        // A commit that was cut off leaves files behind, and the replay of its changes would fail
        // on writing files of the same names.
        writer.garbage_collect_files().wait().map_err(failed("change"))?;
        let mut merges = LogMergePolicy::default();
        merges.set_del_docs_ratio_before_merge(DELETED_BEFORE_MERGE);
        writer.set_merge_policy(Box::new(merges));
        Ok(writer)
    }

    /// Applies changes and commits them with the generation, visible and durable on return.
    pub fn apply(
        &self,
        writer: &mut Writer,
        changes: &Changes,
        generation: i64,
    ) -> Result<(), IndexError> {
        for key in &changes.deletes {
            writer.delete_term(Term::from_field_i64(self.key, *key));
        }
        for upsert in &changes.upserts {
            writer.delete_term(Term::from_field_i64(self.key, upsert.key));
            writer.add_document(self.document(upsert)).map_err(failed("change"))?;
        }
        let payload = serde_json::to_string(&Payload { format: FORMAT, generation })
            .map_err(failed("commit"))?;
        let mut commit = writer.prepare_commit().map_err(failed("commit"))?;
        commit.set_payload(&payload);
        commit.commit().map_err(failed("commit"))?;
        self.reader.reload().map_err(failed("read"))?;
        let average = bm25::average_length(&self.reader.searcher()).map_err(failed("read"))?;
        self.average_length.store(average.to_bits(), MemoryOrder::Relaxed);
        Ok(())
    }

    fn document(&self, indexed: &IndexedDocument) -> TantivyDocument {
        let mut attributes = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for (name, value) in &indexed.document.fields {
            let string = |string: &String| OwnedValue::Str(indexed_string(string));
            let value = match value {
                Value::Bool(bool) => OwnedValue::Bool(*bool),
                Value::String(value) => string(value),
                Value::Strings(values) if values.is_empty() => continue,
                Value::Strings(values) => OwnedValue::Array(values.iter().map(string).collect()),
                Value::Number(number) => {
                    if let Some(number) = number.as_f64() {
                        numbers.insert(name.clone(), OwnedValue::Str(indexed_number(number)));
                    }
                    continue;
                }
            };
            attributes.insert(name.clone(), value);
        }
        let mut document = TantivyDocument::new();
        document.add_i64(self.key, indexed.key);
        document.add_text(self.id, &indexed.document.id);
        let mut words = PreTokenizedString { text: String::new(), tokens: Vec::new() };
        words::for_each(&self.analyzer, &indexed.text, |word| {
            let position = words.tokens.len();
            words.tokens.push(Token { position, text: word.to_owned(), ..Token::default() });
            true
        });
        document.add_u64(self.length, words.tokens.len() as u64);
        document.add_pre_tokenized_text(self.words, words);
        document.add_object(self.attributes, attributes);
        document.add_object(self.numbers, numbers);
        document
    }

    pub fn count(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    /// Keys of the documents that the filter matches, of all without one.
    pub fn keys(&self, filter: Option<&Filter>) -> Result<Vec<Key>, IndexError> {
        let collect = || -> Result<Vec<Key>, TantivyError> {
            let searcher = self.reader.searcher();
            let weight = self.restriction(None, filter).weight(unscored(&searcher))?;
            let mut keys = Vec::new();
            for segment in searcher.segment_readers() {
                let column = keys_of(segment)?;
                for_each_match(weight.as_ref(), segment, |document| {
                    keys.extend(column.first(document));
                })?;
            }
            Ok(keys)
        };
        collect().map_err(failed("filter"))
    }

    /// The documents with the highest BM25 score for any word of the text.
    pub fn matching(
        &self,
        text: &str,
        filter: Option<&Filter>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let search = || -> Result<Vec<Scored>, TantivyError> {
            let searcher = self.reader.searcher();
            let words = self.query_words.of(text);
            if words.is_empty() || limit == 0 {
                return Ok(Vec::new());
            }
            let average = f32::from_bits(self.average_length.load(MemoryOrder::Relaxed));
            let words = bm25::Words::new(&searcher, self.words, &words, average)?;
            let mut best = Best::new(limit);
            let restriction = match filter {
                Some(filter) if !filter.is_empty() => {
                    Some(self.filters.query(filter).weight(unscored(&searcher))?)
                }
                _ => None,
            };
            for segment in searcher.segment_readers() {
                let scores = words.scores(segment)?;
                let keys = keys_of(segment)?;
                let mut offer = |document: DocId| {
                    let score = scores[document as usize];
                    if score > 0.0 && best.may_take(score) {
                        best.extend(keys.first(document).map(|key| Scored { key, score }));
                    }
                };
                match &restriction {
                    Some(weight) => for_each_match(weight.as_ref(), segment, offer)?,
                    None => segment.doc_ids_alive().for_each(&mut offer),
                }
            }
            Ok(best.into_sorted())
        };
        search().map_err(failed("search"))
    }

    pub fn facets(
        &self,
        text: Option<&str>,
        filter: Option<&Filter>,
        fields: &[String],
        values: usize,
    ) -> Result<Facets, IndexError> {
        let count = || -> Result<Facets, TantivyError> {
            let searcher = self.reader.searcher();
            let weight = self.restriction(text, filter).weight(unscored(&searcher))?;
            let mut totals: Vec<HashMap<String, u64>> = vec![HashMap::new(); fields.len()];
            for segment in searcher.segment_readers() {
                let mut counts = fields
                    .iter()
                    .map(|field| FacetCounts::of(segment, field))
                    .collect::<Result<Vec<_>, _>>()?;
                for_each_match(weight.as_ref(), segment, |document| {
                    for counts in &mut counts {
                        counts.add(document);
                    }
                })?;
                for (counts, total) in counts.into_iter().zip(&mut totals) {
                    counts.add_to(total)?;
                }
            }
            let ranked = fields.iter().cloned().zip(totals.into_iter().map(|t| ranked(t, values)));
            Ok(Facets(ranked.collect()))
        };
        count().map_err(failed("count facets of"))
    }

    /// The documents that hold a word of the text, where there is one, and match the filter.
    fn restriction(&self, text: Option<&str>, filter: Option<&Filter>) -> Box<dyn Query> {
        let mut parts: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        if let Some(text) = text {
            let words = self.query_words.of(text).into_iter();
            let any = words.map(|word| (Occur::Should, self.word(&word))).collect();
            parts.push((Occur::Must, Box::new(BooleanQuery::new(any))));
        }
        if let Some(filter) = filter.filter(|filter| !filter.is_empty()) {
            parts.push((Occur::Must, self.filters.query(filter)));
        }
        if parts.is_empty() {
            return Box::new(AllQuery);
        }
        Box::new(BooleanQuery::new(parts))
    }

    fn word(&self, word: &str) -> Box<dyn Query> {
        let term = Term::from_field_text(self.words, word);
        Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs))
    }
}

fn schema() -> Schema {
    let raw = TextFieldIndexing::default()
        .set_tokenizer("raw")
        .set_fieldnorms(false)
        .set_index_option(IndexRecordOption::Basic);
    let words = TextFieldIndexing::default()
        .set_tokenizer(WORDS)
        .set_fieldnorms(false)
        .set_index_option(IndexRecordOption::WithFreqs);
    let values = JsonObjectOptions::default().set_indexing_options(raw.clone()).set_fast("raw");
    let mut schema = Schema::builder();
    schema.add_i64_field(KEY, INDEXED | FAST);
    schema.add_text_field(ID, TextOptions::default().set_indexing_options(raw));
    schema.add_text_field(WORDS, TextOptions::default().set_indexing_options(words));
    schema.add_u64_field(LENGTH, FAST);
    schema.add_json_field(ATTRIBUTES, values.clone());
    schema.add_json_field(NUMBERS, values);
    schema.build()
}

fn unscored(searcher: &Searcher) -> EnableScoring<'_> {
    EnableScoring::disabled_from_searcher(searcher)
}

fn keys_of(segment: &SegmentReader) -> Result<Column<i64>, TantivyError> {
    segment.fast_fields().i64(KEY)
}

/// Visits the documents of a segment that match and are not deleted.
fn for_each_match(
    weight: &dyn Weight,
    segment: &SegmentReader,
    mut visit: impl FnMut(DocId),
) -> Result<(), TantivyError> {
    weight.for_each_no_score(segment, &mut |documents| match segment.alive_bitset() {
        Some(alive) => {
            documents.iter().copied().filter(|doc| alive.is_alive(*doc)).for_each(&mut visit);
        }
        None => documents.iter().copied().for_each(&mut visit),
    })
}

/// The best so far, at most `limit`; of equal scores the smaller keys.
struct Best {
    limit: usize,
    /// The worst on top.
    hits: BinaryHeap<Reverse<Ranked>>,
}

struct Ranked(Scored);

impl Best {
    fn new(limit: usize) -> Self {
        Self { limit, hits: BinaryHeap::new() }
    }

    /// Cheaper to ask than to look up a key.
    fn may_take(&self, score: f32) -> bool {
        self.hits.len() < self.limit
            || self.hits.peek().is_some_and(|Reverse(worst)| score >= worst.0.score)
    }

    fn extend(&mut self, hit: Option<Scored>) {
        let Some(hit) = hit else { return };
        self.hits.push(Reverse(Ranked(hit)));
        if self.hits.len() > self.limit {
            self.hits.pop();
        }
    }

    fn into_sorted(self) -> Vec<Scored> {
        let mut hits: Vec<Scored> = self.hits.into_iter().map(|Reverse(hit)| hit.0).collect();
        fusion::sort(&mut hits);
        hits
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.score.total_cmp(&other.0.score).then(other.0.key.cmp(&self.0.key))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Documents per value of one field in one segment.
struct FacetCounts {
    strings: Option<(StrColumn, Vec<u64>)>,
    bools: Option<Column<bool>>,
    bool_counts: [u64; 2],
    /// Values of one document, kept for its memory.
    values: Vec<u64>,
}

impl FacetCounts {
    fn of(segment: &SegmentReader, field: &str) -> Result<Self, TantivyError> {
        let name = format!("{ATTRIBUTES}.{}", escape(field));
        let strings = segment.fast_fields().str(&name)?.map(|column| {
            let counts = vec![0; column.num_terms()];
            (column, counts)
        });
        let bools = segment.fast_fields().column_opt::<bool>(&name)?;
        Ok(Self { strings, bools, bool_counts: [0; 2], values: Vec::new() })
    }

    fn add(&mut self, document: DocId) {
        if let Some((column, counts)) = &mut self.strings {
            self.values.clear();
            self.values.extend(column.term_ords(document));
            // A list may name a value twice; the document counts once.
            self.values.sort_unstable();
            self.values.dedup();
            for value in &self.values {
                counts[*value as usize] += 1;
            }
        }
        if let Some(value) = self.bools.as_ref().and_then(|column| column.first(document)) {
            self.bool_counts[usize::from(value)] += 1;
        }
    }

    fn add_to(self, totals: &mut HashMap<String, u64>) -> Result<(), TantivyError> {
        for (value, count) in ["false", "true"].into_iter().zip(self.bool_counts) {
            if count > 0 {
                *totals.entry(value.to_owned()).or_default() += count;
            }
        }
        let Some((column, counts)) = self.strings else { return Ok(()) };
        let present: Vec<u64> =
            (0..).zip(&counts).filter(|(_, c)| **c > 0).map(|(v, _)| v).collect();
        let mut present_counts = counts.into_iter().filter(|count| *count > 0);
        column.dictionary().sorted_ords_to_term_cb(&present, |value| {
            let count = present_counts.next().unwrap_or(0);
            *totals.entry(String::from_utf8_lossy(value).into_owned()).or_default() += count;
        })?;
        Ok(())
    }
}

fn ranked(counts: HashMap<String, u64>, values: usize) -> Vec<FacetValue> {
    let mut ranked: Vec<FacetValue> =
        counts.into_iter().map(|(value, count)| FacetValue { value, count }).collect();
    ranked.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
    ranked.truncate(values);
    ranked
}
