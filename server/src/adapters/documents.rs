//! Document stores.

pub mod postgres;
pub mod sqlite;
