//! The whole router on embedded adapters, with hashed words in place of the model.

mod access;
mod app;
mod cache;
mod collections;
mod documents;
mod embeddings;
mod search;
mod service;
