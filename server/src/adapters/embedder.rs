//! Embedders.

pub mod device;
pub mod hash;
#[cfg(feature = "torch")]
pub mod torch;
