//! Where oneDNN is not: `linear` is what there is.

use std::ffi::CStr;

use tch::{TchError, Tensor};

use super::Linear;
use super::quantized::Quantized;

pub fn pack(_: &Tensor) -> Option<Tensor> {
    None
}

pub fn pack_int8(_: &Tensor) -> Result<Tensor, TchError> {
    Err(TchError::Torch("there is no layer of eight bits here".to_owned()))
}

pub fn linear_int8(_: &Tensor, _: &Linear, _: &Quantized, _: &CStr) -> Result<Tensor, TchError> {
    pack_int8(&Tensor::new())
}

pub fn linear_int8_add(
    x: &Tensor,
    _: &Tensor,
    _: &Linear,
    _: &Quantized,
) -> Result<Tensor, TchError> {
    pack_int8(x)
}

pub fn linear(x: &Tensor, w: &Tensor, b: &Tensor, _: &CStr) -> Result<Tensor, TchError> {
    x.f_linear(w, Some(b))
}

pub fn linear_add(x: &Tensor, other: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    x.f_linear(w, Some(b))?.f_add(other)
}
