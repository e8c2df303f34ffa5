//! Where there is no AVX-512: there is no such encoder.

use std::ops::Range;
use std::sync::Arc;

use tch::{TchError, Tensor};

use super::{Layer, Norm};
use crate::adapters::embedder::torch::files::Pooling;

pub enum Few {}

pub enum Panels {}

impl Panels {
    pub fn pack(_: &Tensor, _: &Tensor) -> Option<Self> {
        None
    }

    pub fn pack_int8(_: &Tensor, _: &Tensor, _: &Tensor, _: (f64, i64)) -> Option<Self> {
        None
    }
}

impl Few {
    pub fn new(_: [&Tensor; 2], _: Norm, _: Vec<Layer>, _: usize, _: Pooling) -> Option<Self> {
        None
    }

    pub fn share(&self) -> Self {
        match *self {}
    }

    pub fn embed(&self, _: &[Arc<[u32]>]) -> Result<Vec<Arc<[f32]>>, TchError> {
        match *self {}
    }
}

pub fn attend(_: &Tensor, _: Range<i64>, _: i64, _: i64, _: &mut Tensor) -> bool {
    false
}
