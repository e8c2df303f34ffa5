//! The outside of the ports.

pub mod embedder;
