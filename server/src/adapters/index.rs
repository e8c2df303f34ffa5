//! Search indexes.

pub mod local;
