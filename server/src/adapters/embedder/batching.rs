//! In which order texts are embedded. Known without libtorch too, as the device is.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Batching {
    /// Queries before documents, which have a share of their own; those first that are needed first.
    #[default]
    Deadline,
    /// As they come.
    Fifo,
}
