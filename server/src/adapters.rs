//! The outside of the ports.

pub mod documents;
pub mod embedder;
pub mod index;
