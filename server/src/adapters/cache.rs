//! The far tier of the caches.

pub mod redis;
