//! Numbers of eight bits, as inputs of a linear layer.

use std::ffi::CStr;

use tch::{Kind, TchError, Tensor};

use super::{Linear, onednn};

/// Largest number of a quantized input, which has no sign.
const INPUT_LEVELS: f64 = 255.0;

pub struct Quantized {
    pub input: Scale,
    /// What the result is quantized by, for the layer after it; otherwise it is fp32.
    pub output: Option<Scale>,
    /// One for each number of the result.
    pub weight_scales: Tensor,
    pub weight_zero_points: Tensor,
}

/// A number `x` is kept as `round(x / step) + zero_point`, from 0 to 255.
pub struct Scale {
    pub step: f64,
    pub zero_point: i64,
    /// The two once more, as oneDNN takes them.
    pub step_tensor: Tensor,
    pub zero_point_tensor: Tensor,
}

/// From the lowest to the highest number of what a layer was given, and zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    lowest: f64,
    highest: f64,
}

impl Range {
    pub fn widen(&mut self, x: &Tensor) -> Result<(), TchError> {
        self.lowest = self.lowest.min(f64::try_from(&x.f_min()?)?);
        self.highest = self.highest.max(f64::try_from(&x.f_max()?)?);
        Ok(())
    }
}

impl Quantized {
    pub fn share(&self) -> Self {
        Self {
            input: self.input.share(),
            output: self.output.as_ref().map(Scale::share),
            weight_scales: self.weight_scales.shallow_clone(),
            weight_zero_points: self.weight_zero_points.shallow_clone(),
        }
    }

    pub fn forward(&self, x: &Tensor, layer: &Linear, then: &CStr) -> Result<Tensor, TchError> {
        onednn::linear_int8(&self.input.quantize(x)?, layer, self, then)
    }

    pub fn forward_add(
        &self,
        x: &Tensor,
        residual: &Tensor,
        layer: &Linear,
    ) -> Result<Tensor, TchError> {
        onednn::linear_int8_add(&self.input.quantize(x)?, residual, layer, self)
    }
}

impl Scale {
    /// For the numbers of a range; what lies outside is cut. Zero is kept exactly.
    pub fn of(Range { lowest, highest }: Range) -> Result<Self, TchError> {
        let step = ((highest - lowest) / INPUT_LEVELS).max(f64::from(f32::MIN_POSITIVE));
        let zero_point = (-lowest / step).round() as i64;
        Ok(Self {
            step,
            zero_point,
            step_tensor: Tensor::f_from_slice(&[step as f32])?,
            zero_point_tensor: Tensor::f_from_slice(&[zero_point as i32])?,
        })
    }

    pub fn share(&self) -> Self {
        Self {
            step: self.step,
            zero_point: self.zero_point,
            step_tensor: self.step_tensor.shallow_clone(),
            zero_point_tensor: self.zero_point_tensor.shallow_clone(),
        }
    }

    /// What is quantized already stays as it is.
    pub fn quantize(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if x.kind() == Kind::Uint8 {
            return Ok(x.shallow_clone());
        }
        x.f_quantize_per_tensor(self.step, self.zero_point, Kind::QUInt8)?.f_int_repr()
    }
}
