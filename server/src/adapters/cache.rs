//! Cache tiers.

pub mod memory;
