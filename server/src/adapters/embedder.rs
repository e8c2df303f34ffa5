//! Embedders.

pub mod batching;
pub mod device;
pub mod hash;
pub mod precision;
pub mod remote;
#[cfg(feature = "torch")]
pub mod torch;
