//! Embedders.

pub mod hash;
