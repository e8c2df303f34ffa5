//! What every adapter of a port must do: one suite a port, run on each adapter.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

mod cache;
mod documents;
mod embedder;
mod index;
mod outbox;
mod postgres;
