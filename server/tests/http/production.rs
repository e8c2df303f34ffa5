//! The same tests of the router over Postgres, Milvus and a worker. Only `embedded` stays out.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod access;
mod app;
mod cache;
mod collections;
mod documents;
mod embeddings;
mod inside;
mod search;
mod service;
#[path = "stores/production.rs"]
mod stores;
