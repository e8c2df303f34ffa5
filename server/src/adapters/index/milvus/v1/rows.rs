//! Documents as rows, and the collections that hold them, in the types of the first client. The
//! words of a text are not kept: such servers cannot search them.

use milvus::proto::schema::DataType;
use milvus::v1::data::FieldColumn;
use milvus::v1::error::Result;
use milvus::v1::index::{IndexParams, IndexType, MetricType};
use milvus::v1::schema::{CollectionSchema, CollectionSchemaBuilder, FieldSchema};
use milvus::v1::value::ValueVec;

use crate::adapters::index::milvus::rows::{
    ATTRIBUTES, COLLECTION, CONNECTIVITY, EXPANSION_ADD, GENERATION, ID, KEY, MAX_ID_BYTES, UNUSED,
    VECTOR, VERSION, attributes,
};
use crate::ports::IndexedDocument;

const UNUSED_DIMENSION: i64 = 2;

/// A field with the index that it needs.
pub type Indexed = (&'static str, IndexParams);

pub fn schema(name: &str, dimension: i64) -> Result<CollectionSchema> {
    CollectionSchemaBuilder::new(name, "")
        .add_field(FieldSchema::new_primary_int64(KEY, "", false))
        .add_field(FieldSchema::new_float_vector(VECTOR, "", dimension))
        .add_field(FieldSchema::new_int64(VERSION, ""))
        .add_field(FieldSchema::new_varchar(ID, "", MAX_ID_BYTES.into()))
        .add_field(FieldSchema {
            name: ATTRIBUTES.to_owned(),
            dtype: DataType::Json,
            ..FieldSchema::empty()
        })
        .build()
}

pub fn index() -> Indexed {
    let parameters = [("M", CONNECTIVITY), ("efConstruction", EXPANSION_ADD)];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let name = VECTOR.to_owned();
    let index = IndexParams::new(name, IndexType::HNSW, MetricType::COSINE, parameters.into());
    (VECTOR, index)
}

pub fn generations_schema(name: &str) -> Result<CollectionSchema> {
    CollectionSchemaBuilder::new(name, "")
        .add_field(FieldSchema::new_primary_int64(COLLECTION, "", false))
        .add_field(FieldSchema::new_int64(GENERATION, ""))
        .add_field(FieldSchema::new_float_vector(UNUSED, "", UNUSED_DIMENSION))
        .build()
}

pub fn generations_index() -> Indexed {
    let name = UNUSED.to_owned();
    (UNUSED, IndexParams::new(name, IndexType::Flat, MetricType::L2, [].into()))
}

pub fn generation_row(collection: i64, generation: i64) -> Vec<FieldColumn> {
    vec![
        column(COLLECTION, DataType::Int64, ValueVec::Long(vec![collection])),
        column(GENERATION, DataType::Int64, ValueVec::Long(vec![generation])),
        vectors(UNUSED, UNUSED_DIMENSION, vec![0.0, 1.0]),
    ]
}

/// All documents of a batch have vectors of the same length.
pub fn columns(documents: &[&IndexedDocument], dimension: i64) -> Vec<FieldColumn> {
    let documents = || documents.iter().copied();
    let attributes = documents().map(|it| attributes(&it.document).to_string().into_bytes());
    vec![
        column(KEY, DataType::Int64, ValueVec::Long(documents().map(|it| it.key).collect())),
        vectors(VECTOR, dimension, documents().flat_map(|it| it.vector.iter().copied()).collect()),
        column(
            VERSION,
            DataType::Int64,
            ValueVec::Long(documents().map(|it| it.version).collect()),
        ),
        column(
            ID,
            DataType::VarChar,
            ValueVec::String(documents().map(|it| it.document.id.clone()).collect()),
        ),
        column(ATTRIBUTES, DataType::Json, ValueVec::Json(attributes.collect())),
    ]
}

fn column(name: &str, dtype: DataType, value: ValueVec) -> FieldColumn {
    FieldColumn { name: name.to_owned(), dtype, value, dim: 1, max_length: 0, is_dynamic: false }
}

fn vectors(name: &str, dim: i64, numbers: Vec<f32>) -> FieldColumn {
    FieldColumn { dim, ..column(name, DataType::FloatVector, ValueVec::Float(numbers)) }
}
