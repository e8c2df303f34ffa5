//! The outside of the ports.

pub mod cache;
pub mod documents;
pub mod embedder;
pub mod index;
