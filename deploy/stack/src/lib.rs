//! Real servers on loopback: Redis, Postgres with a streaming replica, Milvus, load balancers and
//! Prometheus. Each listens on a port of its own, keeps its files in a folder of its own and ends
//! with the value that stands for it.

pub mod kubernetes;
pub mod milvus;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod redis;
mod shared;

pub use process::{Process, StackError, free_port, until};

use std::path::PathBuf;

/// A folder that a variable names, or one of the cache.
pub fn cached(variable: &str, name: &str) -> PathBuf {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    path(variable).unwrap_or_else(|| cache().unwrap_or_default().join("sextant").join(name))
}
