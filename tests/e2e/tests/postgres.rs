//! The primary of Postgres is lost in every way, and moved on purpose.
