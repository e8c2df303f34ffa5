//! Sextant's server: semantic search over collections of documents.
//!
//! `main -> cli -> {http, adapters}`, `http -> {search, ingest} -> ports -> domain`,
//! `adapters -> ports`. An adapter knows one client library, never another adapter or HTTP.

pub mod adapters;
pub mod domain;
pub mod metrics;
pub mod ports;
