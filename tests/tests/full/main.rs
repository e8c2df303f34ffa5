//! The tests of the router that ask for nothing but HTTP, over what `make run-full` starts: nginx
//! before three servers that share Postgres with a replica, Redis and Milvus.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "../../../server/tests/http/access.rs"]
mod access;
mod app;
#[path = "../../../server/tests/http/cache.rs"]
mod cache;
#[path = "../../../server/tests/http/collections.rs"]
mod collections;
#[path = "../../../server/tests/http/documents.rs"]
mod documents;
#[path = "../../../server/tests/http/embeddings.rs"]
mod embeddings;
#[path = "../../../server/tests/http/search.rs"]
mod search;
#[path = "../../../server/tests/http/service.rs"]
mod service;
