//! Search indexes.

pub mod local;
pub mod milvus;
mod words;
