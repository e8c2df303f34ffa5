//! The numbers that the model computes with. Known without libtorch too, as the device is.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Fp32,
    /// Of 16 bits, with the range of fp32 and 8 bits of fraction.
    Bf16,
    /// Of 8 bits in the linear layers, fp32 between them.
    Int8,
}
