//! Sextant's server: semantic search over collections of documents.
//!
//! `main -> cli -> {http, adapters}`, `http -> {search, ingest} -> ports -> domain`,
//! `adapters -> ports`. An adapter knows one client library, never another adapter or HTTP.

pub mod adapters;
pub mod auth;
pub mod breaker;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod domain;
pub mod embedders;
pub mod http;
pub mod indexing;
pub mod ingest;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod popularity;
pub mod ports;
pub mod reindex;
pub mod search;
pub mod spans;
pub mod split;
pub mod strict;
pub mod verify;
pub mod worker;
