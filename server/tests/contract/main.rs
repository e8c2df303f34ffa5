//! What every adapter of a port must do: one suite a port, run on each adapter.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod documents;
mod index;
