//! `y = x Wᵀ + b`, with what follows it done in the same pass.
//!
//! On x86 CPUs the weights are laid out anew once, at load, for oneDNN. libtorch's ordinary `linear`
//! goes to MKL, which uses half the width of the vector unit on processors that are not Intel's:
//! measured on an AMD EPYC (Zen 5), one core, 110 against oneDNN's 250 GFLOP/s from 64 rows on, and 70
//! against 160 for the ten rows of a short query. It adds the residual and takes the GELU while the
//! result is still in the cache, and has a form for eight bits, too.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod onednn;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "linear/without.rs"]
mod onednn;
mod quantized;

use tch::{Device, Kind, TchError, Tensor};

use super::few::Panels;
use quantized::Quantized;
pub use quantized::{Range, Scale};

/// Largest magnitude of a quantized weight.
const WEIGHT_LEVELS: f64 = 127.0;

pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    form: Form,
    /// The same for few rows, until it is taken.
    panels: Option<Panels>,
}

enum Form {
    /// As the model has them.
    Plain,
    /// In oneDNN's layout.
    Packed,
    /// In that of oneDNN's layer of eight bits.
    Quantized(Quantized),
}

impl Linear {
    /// Takes a weight of shape `[out, in]` and a bias of shape `[out]`.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        if weight.device() == Device::Cpu
            && let Some(packed) = onednn::pack(&weight)
        {
            let panels = Panels::pack(&weight, &bias);
            return Self { weight: packed, bias, form: Form::Packed, panels };
        }
        Self::plain(weight, bias)
    }

    /// One that is to be quantized later.
    pub fn plain(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias, form: Form::Plain, panels: None }
    }

    /// A plain layer in eight bits: `input` is what its inputs are quantized by, `output` what its
    /// results are, when the next layer takes them so. Every row of the weight has a scale of its
    /// own.
    ///
    /// # Errors
    /// Where this libtorch cannot.
    ///
    /// # Source
    /// Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    /// Integer-Arithmetic-Only Inference", section 2 (arXiv:1712.05877).
    pub fn quantize(self, input: Scale, output: Option<Scale>) -> Result<Self, TchError> {
        let largest = self.weight.f_abs()?.f_amax([1], true)?;
        let scales =
            largest.f_div_scalar(WEIGHT_LEVELS)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        let weight = self
            .weight
            .f_div(&scales)?
            .f_round()?
            .f_clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS)?
            .f_to_kind(Kind::Int8)?;
        let weight_scales = scales.f_flatten(0, -1)?;
        let weight_zero_points = weight_scales.f_zeros_like()?.f_to_kind(Kind::Int)?;
        let panels =
            Panels::pack_int8(&weight, &weight_scales, &self.bias, (input.step, input.zero_point));
        let quantized = Quantized { input, output, weight_scales, weight_zero_points };
        let form = Form::Quantized(quantized);
        Ok(Self { weight: onednn::pack_int8(&weight)?, bias: self.bias, form, panels })
    }

    pub fn take_panels(&mut self) -> Option<Panels> {
        self.panels.take()
    }

    /// The same layer for another thread or device: the weights are shared where they are there. Only
    /// a plain layer can be on a GPU.
    pub fn on(&self, device: Device) -> Result<Self, TchError> {
        let form = match &self.form {
            Form::Plain => {
                let (weight, bias) = (&self.weight, &self.bias);
                return Ok(Self::plain(weight.f_to_device(device)?, bias.f_to_device(device)?));
            }
            Form::Packed => Form::Packed,
            Form::Quantized(quantized) => Form::Quantized(quantized.share()),
        };
        let (weight, bias) = (self.weight.shallow_clone(), self.bias.shallow_clone());
        Ok(Self { weight, bias, form, panels: None })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.form {
            Form::Plain => x.f_linear(&self.weight, Some(&self.bias)),
            Form::Packed => onednn::linear(x, &self.weight, &self.bias, c"none"),
            Form::Quantized(quantized) => quantized.forward(x, self, c"none"),
        }
    }

    /// GELU of the layer, in its exact form with the error function.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.form {
            Form::Plain => x.f_linear(&self.weight, Some(&self.bias))?.f_gelu("none"),
            Form::Packed => onednn::linear(x, &self.weight, &self.bias, c"gelu"),
            Form::Quantized(quantized) => quantized.forward(x, self, c"gelu"),
        }
    }

    /// The layer plus `residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor, TchError> {
        match &self.form {
            Form::Plain => x.f_linear(&self.weight, Some(&self.bias))?.f_add(residual),
            Form::Packed => onednn::linear_add(x, residual, &self.weight, &self.bias),
            Form::Quantized(quantized) => quantized.forward_add(x, residual, self),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_packed_layer_computes_what_a_plain_one_does() {
        compare(Kind::Float, 1e-3);
    }

    #[test]
    fn a_packed_layer_of_bf16_computes_what_a_plain_one_of_fp32_does() {
        if !crate::adapters::embedder::torch::cpu_has_bf16() {
            return println!("not run: this CPU has no bf16");
        }
        // Results of up to 64 have neighbours 0.25 apart.
        compare(Kind::BFloat16, 0.5);
    }

    fn compare(kind: Kind, tolerance: f64) {
        tch::set_num_threads(1);
        let _guard = tch::no_grad_guard();
        // Numbers that bf16 has, so that only the layer's own rounding differs.
        let random = |shape: [i64; 2]| {
            Tensor::randn(shape, (Kind::BFloat16, tch::Device::Cpu)).to_kind(Kind::Float)
        };
        let (weight, bias) = (random([96, 64]), random([1, 96]).view([96]));
        let layer = Linear::new(weight.to_kind(kind), bias.to_kind(kind));
        let is_plain = matches!(layer.form, Form::Plain);
        assert_eq!(is_plain, !cfg!(all(target_os = "linux", target_arch = "x86_64")));
        let plain = Linear::plain(weight, bias);
        for rows in [1, 3, 14, 15, 16, 300] {
            let (x, residual) = (random([rows, 64]), random([rows, 96]));
            let (x_kind, residual_kind) = (x.to_kind(kind), residual.to_kind(kind));
            for (ours, theirs) in [
                (layer.forward(&x_kind), plain.forward(&x)),
                (layer.forward_gelu(&x_kind), plain.forward_gelu(&x)),
                (layer.forward_add(&x_kind, &residual_kind), plain.forward_add(&x, &residual)),
                (
                    layer.on(Device::Cpu).unwrap().forward(&x_kind),
                    plain.on(Device::Cpu).unwrap().forward(&x),
                ),
            ] {
                let ours = ours.unwrap();
                assert_eq!(ours.kind(), kind);
                let difference = (ours.to_kind(Kind::Float) - theirs.unwrap()).abs().max();
                assert!(f64::try_from(&difference).unwrap() < tolerance, "{rows} rows");
            }
        }
    }

    #[test]
    fn a_layer_of_eight_bits_computes_nearly_what_a_plain_one_does() {
        if !crate::adapters::embedder::torch::cpu_has_int8() {
            return println!("not run: this CPU has no int8");
        }
        tch::set_num_threads(1);
        let _guard = tch::no_grad_guard();
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, tch::Device::Cpu));
        let plain = || Linear::plain(random([96, 64]), random([1, 96]).view([96]));
        let scale = |x: &Tensor| {
            let mut range = Range::default();
            range.widen(x).unwrap();
            Scale::of(range).unwrap()
        };
        let (first, x, residual) = (plain(), random([300, 64]), random([300, 96]));
        let exact = first.forward(&x).unwrap();
        let gelu = first.forward_gelu(&x).unwrap();
        let sum = first.forward_add(&x, &residual).unwrap();
        let layer = first.on(Device::Cpu).unwrap().quantize(scale(&x), None).unwrap();
        // Of the 64 products of a sum each is off by half a step of 1/40 or so.
        for (ours, theirs) in [
            (layer.forward(&x), &exact),
            (layer.forward_add(&x, &residual), &sum),
            (layer.on(Device::Cpu).unwrap().forward(&x), &exact),
        ] {
            let difference = (ours.unwrap() - theirs).abs().max();
            assert!(f64::try_from(&difference).unwrap() < 1.0);
        }
        let passes_on = first.quantize(scale(&x), Some(scale(&gelu))).unwrap();
        let eight_bits = passes_on.forward_gelu(&x).unwrap();
        assert_eq!(eight_bits.kind(), Kind::Uint8);
        let Scale { step, zero_point, .. } = scale(&gelu);
        let difference = ((eight_bits.to_kind(Kind::Float) - zero_point) * step - gelu).abs().max();
        assert!(f64::try_from(&difference).unwrap() < 1.0);
    }
}
