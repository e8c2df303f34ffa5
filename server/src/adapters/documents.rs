//! Document stores.

pub mod sqlite;
