//! Sextant on a real Kubernetes: installed as the README says, used, and broken on purpose.
//!
//! One test at a time, on one stack that the first of them installs: `make e2e`.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod faults;
mod install;
mod lifecycle;
mod milvus;
mod milvus_cluster;
mod monitoring;
mod operator;
mod postgres;
mod security;
mod serving;
mod soak;
mod support;
mod volumes;
