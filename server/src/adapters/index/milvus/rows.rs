//! Documents as rows of Milvus, and the collections that hold them.

use milvus::v2::prelude::{
    CollectionSchema, DataType, FieldData, FieldSchema, Function, FunctionType, IndexParam,
    IndexType, MetricType,
};
use serde_json::{Map, Value as Json, json};
use tantivy::tokenizer::TextAnalyzer;

use crate::adapters::index::words;
use crate::domain::{Document, Value};
use crate::ports::IndexedDocument;

pub const KEY: &str = "key";
pub const VECTOR: &str = "vector";
/// BM25 weights of the words, made by the server.
pub const WEIGHTS: &str = "weights";
pub const WORDS: &str = "words";
pub const ID: &str = "id";
pub const VERSION: &str = "version";
/// Strings (always lists), numbers and bools of a document by name, each kind an object of its own.
pub const ATTRIBUTES: &str = "attributes";
pub const STRINGS: &str = "strings";
pub const NUMBERS: &str = "numbers";
pub const BOOLS: &str = "bools";

/// Of the collection of generations.
pub const COLLECTION: &str = "collection";
pub const GENERATION: &str = "generation";
/// Older servers refuse a collection without a vector.
pub const UNUSED: &str = "unused";

/// Longest string of the server, in bytes. What comes after it is not found by its words.
const MAX_WORDS_BYTES: usize = 65_535;
/// Longest identifier, in bytes.
pub const MAX_ID_BYTES: u16 = 1_024;
/// A longer string, in bytes, is known by its hash: the attributes of a document may not be more
/// than 65,536 bytes together.
const MAX_STRING_BYTES: usize = 4_096;
/// Rows and about how many bytes of one request.
const BATCH_ROWS: usize = 512;
const BATCH_BYTES: usize = 4_000_000;

/// HNSW: links per vector and candidates per insertion.
pub const CONNECTIVITY: &str = "16";
pub const EXPANSION_ADD: &str = "200";

pub fn schema(dimension: u32) -> CollectionSchema {
    let field = |name: &str, kind| FieldSchema::new().name(name).data_type(kind);
    CollectionSchema::new()
        .add_field(field(KEY, DataType::Int64).primary_key(true))
        .add_field(field(VECTOR, DataType::FloatVector).dimension(dimension))
        .add_field(field(VERSION, DataType::Int64))
        .add_field(field(ID, DataType::VarChar).max_length(MAX_ID_BYTES.into()))
        .add_field(
            // The words are analysed before they come here; the server only takes them apart.
            field(WORDS, DataType::VarChar)
                .max_length(65_535)
                .enable_analyzer(true)
                .enable_match(true)
                .analyzer_params(json!({"tokenizer": "standard"})),
        )
        .add_field(field(WEIGHTS, DataType::SparseFloatVector))
        .add_field(field(ATTRIBUTES, DataType::Json))
        .add_function(
            Function::new()
                .name("bm25")
                .function_type(FunctionType::Bm25)
                .input_fields([WORDS])
                .output_fields([WEIGHTS]),
        )
}

pub fn indexes() -> Vec<IndexParam> {
    let graph = [("M", CONNECTIVITY), ("efConstruction", EXPANSION_ADD)];
    let graph = graph.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // Servers have defaults of their own, and milvus-lite reads no parameters but in this form.
    let weights = json!({
        "bm25_k1": words::BM25_K1.to_string(),
        "bm25_b": words::BM25_B.to_string(),
    });
    let weights = [("params".to_owned(), weights.to_string())];
    vec![
        IndexParam::new()
            .field_name(VECTOR)
            .index_type(IndexType::Hnsw)
            .metric_type(MetricType::Cosine)
            .extra_params(graph.into()),
        IndexParam::new()
            .field_name(WEIGHTS)
            .index_type(IndexType::SparseInvertedIndex)
            .metric_type(MetricType::Bm25)
            .extra_params(weights.into()),
    ]
}

pub fn generations_schema() -> CollectionSchema {
    let field = |name: &str, kind| FieldSchema::new().name(name).data_type(kind);
    CollectionSchema::new()
        .add_field(field(COLLECTION, DataType::Int64).primary_key(true))
        .add_field(field(GENERATION, DataType::Int64))
        .add_field(field(UNUSED, DataType::FloatVector).dimension(2))
}

pub fn generations_indexes() -> Vec<IndexParam> {
    vec![
        IndexParam::new()
            .field_name(UNUSED)
            .index_type(IndexType::Flat)
            .metric_type(MetricType::L2),
    ]
}

pub fn generation_row(collection: i64, generation: i64) -> Vec<FieldData> {
    vec![
        FieldData::Int64 { name: COLLECTION.to_owned(), values: vec![collection] },
        FieldData::Int64 { name: GENERATION.to_owned(), values: vec![generation] },
        FieldData::FloatVector { name: UNUSED.to_owned(), values: vec![vec![0.0, 1.0]] },
    ]
}

/// Documents in batches that a server takes, each a list of columns.
pub fn batches(documents: &[&IndexedDocument]) -> impl Iterator<Item = Vec<FieldData>> {
    let analyzer = words::analyzer();
    split(documents).map(move |batch| columns(batch, &analyzer))
}

/// Documents in batches that a server takes.
pub fn split<'a, 'b>(
    documents: &'a [&'b IndexedDocument],
) -> impl Iterator<Item = &'a [&'b IndexedDocument]> {
    let mut rest = documents;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let fits = |document: &&IndexedDocument| {
            bytes += document.text.len() + 4 * document.vector.len();
            bytes <= BATCH_BYTES
        };
        let count = rest.iter().take(BATCH_ROWS).copied().take_while(fits).count().max(1);
        let (batch, after) = rest.split_at(count);
        rest = after;
        Some(batch)
    })
}

fn columns(documents: &[&IndexedDocument], analyzer: &TextAnalyzer) -> Vec<FieldData> {
    let documents = || documents.iter().copied();
    let int64 = |name: &str, values| FieldData::Int64 { name: name.to_owned(), values };
    let strings = |name: &str, values| FieldData::VarChar { name: name.to_owned(), values };
    vec![
        int64(KEY, documents().map(|it| it.key).collect()),
        FieldData::FloatVector {
            name: VECTOR.to_owned(),
            values: documents().map(|it| it.vector.to_vec()).collect(),
        },
        int64(VERSION, documents().map(|it| it.version).collect()),
        strings(ID, documents().map(|it| it.document.id.clone()).collect()),
        strings(WORDS, documents().map(|it| words_of(analyzer, &it.text)).collect()),
        FieldData::Json {
            name: ATTRIBUTES.to_owned(),
            values: documents().map(|it| attributes(&it.document)).collect(),
        },
    ]
}

/// The words of a text, as many as a row holds.
fn words_of(analyzer: &TextAnalyzer, text: &str) -> String {
    let mut joined = String::new();
    words::for_each(analyzer, text, |word| {
        let fits = joined.len() + 1 + word.len() <= MAX_WORDS_BYTES;
        if fits {
            if !joined.is_empty() {
                joined.push(' ');
            }
            joined.push_str(word);
        }
        fits
    });
    joined
}

pub fn attributes(document: &Document) -> Json {
    let (mut strings, mut numbers, mut bools) = (Map::new(), Map::new(), Map::new());
    for (name, value) in &document.fields {
        match value {
            Value::String(string) => {
                strings.insert(name.clone(), json!([indexed_string(string)]));
            }
            // An empty list counts as not there.
            Value::Strings(list) if list.is_empty() => {}
            Value::Strings(list) => {
                let mut values: Vec<String> = list.iter().map(|it| indexed_string(it)).collect();
                values.sort_unstable();
                values.dedup();
                strings.insert(name.clone(), json!(values));
            }
            Value::Number(number) => {
                numbers.insert(name.clone(), json!(number.as_f64()));
            }
            Value::Bool(bool) => {
                bools.insert(name.clone(), json!(bool));
            }
        }
    }
    json!({ STRINGS: strings, NUMBERS: numbers, BOOLS: bools })
}

/// The values of an attribute in a row, as facets count them.
pub fn values<'a>(attributes: &'a Json, name: &str) -> Vec<&'a str> {
    let strings = attributes[STRINGS][name].as_array().into_iter().flatten();
    let bools = attributes[BOOLS][name].as_bool().map(|bool| if bool { "true" } else { "false" });
    strings.filter_map(Json::as_str).chain(bools).collect()
}

/// A string as the attributes hold it.
pub fn indexed_string(string: &str) -> String {
    if string.len() <= MAX_STRING_BYTES {
        return string.to_owned();
    }
    format!("\u{0}{}", blake3::hash(string.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn document(key: i64, text: &str) -> IndexedDocument {
        let document = Document { id: key.to_string(), fields: [].into() };
        let vector = Arc::from([0.5; 4]);
        IndexedDocument { key, version: 1, document, text: text.to_owned(), vector }
    }

    #[test]
    fn batches_are_bounded_and_hold_every_document_once() {
        let large = "a ".repeat(BATCH_BYTES);
        let documents: Vec<IndexedDocument> = (0..1_200)
            .map(|key| document(key, if key == 700 { &large } else { "squat" }))
            .collect();
        let documents: Vec<&IndexedDocument> = documents.iter().collect();
        let mut keys = Vec::new();
        for batch in batches(&documents) {
            let FieldData::Int64 { values, .. } = &batch[0] else { panic!("{batch:?}") };
            assert!(values.len() <= BATCH_ROWS);
            keys.extend_from_slice(values);
        }
        assert!(keys.iter().copied().eq(0..1_200));
    }

    #[test]
    fn words_are_cut_between_words() {
        let text = "wörd12345 ".repeat(10_000);
        let words = words_of(&words::analyzer(), &text);
        assert!(words.len() <= MAX_WORDS_BYTES && words.len() > MAX_WORDS_BYTES - 12);
        assert!(words.split(' ').all(|word| word == "word12345"));
    }
}
