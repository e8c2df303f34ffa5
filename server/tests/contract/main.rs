//! What every adapter of a port must do: one suite a port, run on each adapter.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

#[path = "../http/app.rs"]
#[allow(dead_code, reason = "shared with the tests of the router")]
mod app;
mod cache;
mod documents;
mod embedder;
mod index;
mod indexes;
mod outbox;
mod postgres;
#[path = "../http/stores/embedded.rs"]
#[allow(dead_code, reason = "shared with the tests of the router")]
mod stores;
mod tls;
mod verify;
