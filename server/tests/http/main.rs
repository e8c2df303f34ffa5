//! The whole router on embedded adapters, with hashed words in place of the model.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod access;
mod app;
mod cache;
mod collections;
mod documents;
mod embedded;
mod embeddings;
mod inside;
mod search;
mod service;
#[path = "stores/embedded.rs"]
mod stores;
