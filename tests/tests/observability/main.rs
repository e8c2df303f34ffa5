//! What a running server tells of itself: traces to a collector, logs.
#![allow(clippy::unwrap_used, reason = "test code")]

mod collector;
mod logs;
mod traces;
