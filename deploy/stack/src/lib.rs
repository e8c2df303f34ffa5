//! Real servers on loopback: Redis, Postgres with a streaming replica, Milvus, load balancers.
//! Each listens on a port of its own, keeps its files in a folder of its own and ends with the
//! value that stands for it.

pub mod milvus;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
mod shared;

pub use process::{Process, StackError, free_port, until};
