//! A linear layer for few rows, with what follows it done in the same pass: its weights are read once,
//! from end to end. Measured on one core of an Intel Xeon, all layers of all-MiniLM-L6-v2 in fp32 at ten
//! rows: 1.8 ms, oneDNN 3.6, MKL 5.5; reading 32 bits of each weight alone takes 1.6.
//!
//! # Source
//! Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", for the order of
//! the weights; the panels are not blocked by depth, since no layer here is deep.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m128i, __m256bh, _mm512_add_epi32, _mm512_add_ps, _mm512_cvtneps_pbh, _mm512_cvtps_epi32,
    _mm512_cvtusepi32_epi8, _mm512_fmadd_ps, _mm512_max_epi32, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512,
};

use tch::{Device, Kind, TchError, Tensor};

use super::amx::{self, AMX};
use super::fp24::{self, FP24};
use super::lines::Lines;
use super::math::{LANES, gelu, load, store};
use super::tiles::{BF16, FP32, INT8, Next, ROWS, Tile, WIDTH};
use crate::adapters::embedder::torch::team::{Writer, share};

/// The weights `[outputs, inputs]` and what is added.
pub struct Panels {
    form: Form,
    /// Units of 32 bits in a row of the input.
    depth: usize,
    /// `[outputs / WIDTH, depth, WIDTH]` units, or their upper bytes.
    weights: Lines,
    /// Of each output: what its sum of products is multiplied by, and what is added to that.
    scales: Vec<f32>,
    bias: Vec<f32>,
}

/// What a unit of 32 bits of the weights is: one number in fp32, two in bf16, or four of eight bits.
#[derive(Clone, Copy, Debug)]
enum Form {
    Fp32,
    /// Fp32 without its last eight bits, kept in 24. Inputs are not rounded.
    Fp24,
    /// Inputs stay in fp32.
    Bf16,
    /// Inputs are rounded to bf16, too.
    Bf16Amx,
    /// An input `x` is `round(x / step) + zero_point`.
    Int8 {
        step: f32,
        zero_point: i32,
    },
}

/// What follows the layer.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    Nothing,
    /// In its exact form, with the error function.
    Gelu,
    /// Of the result's shape.
    Add(&'a [f32]),
}

impl Panels {
    /// Of a weight in fp32 or bf16; `None` where another form must do: on other CPUs and for other
    /// sizes.
    pub fn pack(weight: &Tensor, bias: &Tensor) -> Option<Self> {
        let forms = match weight.kind() {
            Kind::Float => [Form::Fp24, Form::Fp32],
            Kind::BFloat16 => [Form::Bf16Amx, Form::Bf16],
            _ => return None,
        };
        let form = forms.into_iter().find(|form| form.is_there())?;
        let bias = numbers(bias).ok()?;
        Self::of(form, weight, vec![1.0; bias.len()], bias)
    }

    /// Of a weight in eight bits, `scales` being those of its rows, for inputs of this scale.
    pub fn pack_int8(
        weight: &Tensor,
        scales: &Tensor,
        bias: &Tensor,
        (step, zero_point): (f64, i64),
    ) -> Option<Self> {
        let (step, zero_point) = (step as f32, zero_point as i32);
        let form = Form::Int8 { step, zero_point };
        let sums = weight.f_sum_dim_intlist(&[1_i64][..], false, Kind::Float).ok()?;
        let scales: Vec<f32> = numbers(scales).ok()?.iter().map(|scale| scale * step).collect();
        let all = numbers(bias).ok()?.into_iter().zip(numbers(&sums).ok()?).zip(&scales);
        let bias = all.map(|((bias, sum), scale)| bias - zero_point as f32 * sum * scale).collect();
        Self::of(form, weight, scales, bias)
    }

    fn of(form: Form, weight: &Tensor, scales: Vec<f32>, bias: Vec<f32>) -> Option<Self> {
        let in_unit = form.in_unit();
        let (outputs, inputs) = weight.size2().ok()?;
        let (outputs, inputs) = (outputs as usize, inputs as usize);
        if !form.is_there()
            || weight.device() != Device::Cpu
            || !outputs.is_multiple_of(WIDTH)
            || !inputs.is_multiple_of(in_unit * LANES)
        {
            return None;
        }
        let depth = inputs / in_unit;
        let shape = [outputs / WIDTH, WIDTH, depth, in_unit].map(size);
        let panels = weight.f_reshape(shape).ok()?.f_permute([0, 2, 1, 3]).ok()?;
        let panels = panels.f_contiguous().ok()?;
        let weights = if matches!(form, Form::Fp24) {
            let all = numbers(&panels.f_view(-1).ok()?).ok()?;
            Lines::copy(&[&fp24::shorten(&all)])
        } else {
            let count = outputs * depth / LANES;
            // SAFETY: the tensor has so many units of 32 bits, at the beginning of a line of the cache.
            let all = unsafe { std::slice::from_raw_parts(panels.data_ptr().cast(), count) };
            Lines::copy(&[all])
        };
        let weights = weights.into_iter().next()?;
        Some(Self { form, depth, weights, scales, bias })
    }

    /// Puts the weights of layers one after the other.
    pub fn gather(all: &mut [&mut Self]) {
        let old: Vec<_> = all.iter().map(|panels| &*panels.weights).collect();
        let new = Lines::copy(&old);
        for (panels, weights) in all.iter_mut().zip(new) {
            panels.weights = weights;
        }
    }

    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// From rows of inputs to as many of outputs, at the beginning of `result`. `units` is room for the
    /// inputs in the layer's form.
    pub fn forward(&self, x: &[f32], units: &mut [u32], then: Then, result: &mut [f32]) {
        let outputs = self.outputs();
        let rows = x.len() / (self.depth * self.form.in_unit());
        let in_row = self.depth * self.form.units_of_input();
        // SAFETY: as below.
        let units = unsafe { self.form.units(x, &mut units[..rows * in_row]) };
        let writer = Writer::new(&mut result[..rows * outputs]);
        let lines = self.form.lines(self.depth);
        let weights_of = |panel: usize| &self.weights[panel * lines..][..lines];
        share(outputs / WIDTH, |panel, next| {
            let weights = weights_of(panel);
            let blocks = rows.div_ceil(ROWS);
            let mut row = 0;
            for block in 0..blocks {
                // Of about the same height: a last one of few rows would be a waste.
                let height = (rows - row).div_ceil(blocks - block);
                let mut sums = [[0.0; WIDTH]; ROWS];
                let x = &units[row * in_row..][..height * in_row];
                let next = next
                    .map_or(Next::none(weights), |next| Next::new(weights_of(next), block, blocks));
                // SAFETY: panels are packed only where the CPU has what their form needs; `height`
                // rows and a panel are there; panels write different columns.
                unsafe {
                    self.form.tiles()[height - 1](x, weights, next, &mut sums);
                    for (sums, row) in sums[..height].iter().zip(row..) {
                        let start = row * outputs + panel * WIDTH;
                        let columns = panel * WIDTH..(panel + 1) * WIDTH;
                        let result = writer.part(start..start + WIDTH);
                        let then = match then {
                            Then::Add(other) => Then::Add(&other[start..start + WIDTH]),
                            then => then,
                        };
                        let (scales, bias) = (&self.scales[columns.clone()], &self.bias[columns]);
                        finish(sums, scales, bias, then, result);
                    }
                }
                row += height;
            }
        });
    }
}

/// What remains of a row of a panel after its sums of products.
#[target_feature(enable = "avx512f")]
fn finish(sums: &[f32], scales: &[f32], bias: &[f32], then: Then, result: &mut [f32]) {
    for at in [0, LANES] {
        let sum = _mm512_fmadd_ps(load(&sums[at..]), load(&scales[at..]), load(&bias[at..]));
        let sum = match then {
            Then::Nothing => sum,
            Then::Gelu => gelu(sum),
            Then::Add(other) => _mm512_add_ps(sum, load(&other[at..])),
        };
        store(sum, &mut result[at..]);
    }
}

/// None of a tensor is larger than fits.
fn size(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    Vec::try_from(&tensor.f_to_kind(Kind::Float)?)
}

impl Form {
    /// Whether the CPU has what it needs.
    fn is_there(self) -> bool {
        is_x86_feature_detected!("avx512f")
            && match self {
                Self::Fp32 | Self::Bf16 => true,
                Self::Fp24 => {
                    is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vbmi")
                }
                Self::Bf16Amx => amx::is_there() && is_x86_feature_detected!("avx512bf16"),
                Self::Int8 { .. } => is_x86_feature_detected!("avx512vnni"),
            }
    }

    /// Of a panel.
    fn lines(self, depth: usize) -> usize {
        match self {
            Self::Fp24 => depth / 2 * fp24::PAIR,
            _ => 2 * depth,
        }
    }

    fn in_unit(self) -> usize {
        match self {
            Self::Fp32 | Self::Fp24 => 1,
            Self::Bf16 | Self::Bf16Amx => 2,
            Self::Int8 { .. } => 4,
        }
    }

    /// Of an input, for a unit of the weights.
    fn units_of_input(self) -> usize {
        match self {
            Self::Fp32 | Self::Fp24 | Self::Bf16Amx | Self::Int8 { .. } => 1,
            Self::Bf16 => 2,
        }
    }

    /// An input as its weights need it, in the room for it where it is not that already.
    ///
    /// # Safety
    /// The CPU has what the form needs.
    unsafe fn units<'a>(self, x: &'a [f32], units: &'a mut [u32]) -> &'a [u32] {
        match self {
            // SAFETY: both are 32 bits, of any kind.
            Self::Fp32 | Self::Fp24 | Self::Bf16 => unsafe {
                return std::slice::from_raw_parts(x.as_ptr().cast(), x.len());
            },
            // SAFETY: the caller's.
            Self::Bf16Amx => unsafe { to_bf16(x, units) },
            // SAFETY: the caller's.
            Self::Int8 { step, zero_point } => unsafe { to_bytes(x, step, zero_point, units) },
        }
        units
    }

    fn tiles(self) -> &'static [Tile; ROWS] {
        match self {
            Self::Fp32 => &FP32,
            Self::Fp24 => &FP24,
            Self::Bf16 => &BF16,
            Self::Bf16Amx => &AMX,
            Self::Int8 { .. } => &INT8,
        }
    }
}

/// Pairs of numbers, each rounded to the nearest one in bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
fn to_bf16(x: &[f32], units: &mut [u32]) {
    for (units, x) in units.chunks_exact_mut(LANES / 2).zip(x.chunks_exact(LANES)) {
        let pairs = _mm512_cvtneps_pbh(load(x));
        // SAFETY: 32 bytes each; any bits are units.
        unsafe { units.as_mut_ptr().cast::<__m256bh>().write_unaligned(pairs) }
    }
}

/// Numbers in eight bits, as libtorch's `quantize_per_tensor` makes them.
#[target_feature(enable = "avx512f")]
fn to_bytes(x: &[f32], step: f32, zero_point: i32, units: &mut [u32]) {
    let (scale, zero_point) = (_mm512_set1_ps(1.0 / step), _mm512_set1_epi32(zero_point));
    for (units, x) in units.chunks_exact_mut(LANES / 4).zip(x.chunks_exact(LANES)) {
        // The nearest, of two the even one.
        let level = _mm512_cvtps_epi32(_mm512_mul_ps(load(x), scale));
        let level = _mm512_add_epi32(level, zero_point);
        let bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(level, _mm512_setzero_si512()));
        // SAFETY: 16 bytes each; any bits are units.
        unsafe { units.as_mut_ptr().cast::<__m128i>().write_unaligned(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_gives_for_any_number_of_rows_what_its_numbers_give() {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        for form in [Form::Fp32, Form::Fp24, Form::Bf16, Form::Bf16Amx] {
            if !form.is_there() {
                println!("{form:?} not run: this CPU does not have it");
                continue;
            }
            let (weight, bias) = (random(&[96, 64]), random(&[96]));
            let weight = match form {
                Form::Fp32 | Form::Fp24 => weight,
                _ => weight.to_kind(Kind::BFloat16),
            };
            let scales = vec![1.0; 96];
            let panels = Panels::of(form, &weight, scales, numbers(&bias).unwrap()).unwrap();
            let seen_weight = match form {
                Form::Fp24 => {
                    let all = numbers(&weight.flatten(0, 1)).unwrap();
                    let rounded: Vec<f32> = all.into_iter().map(fp24::rounded).collect();
                    Tensor::from_slice(&rounded).reshape([96, 64])
                }
                _ => weight,
            };
            for rows in 1..=32 {
                let x = random(&[rows, 64]);
                let seen = match form {
                    Form::Bf16Amx => x.to_kind(Kind::BFloat16),
                    _ => x.copy(),
                };
                let expected = double(&seen).linear(&double(&seen_weight), Some(&double(&bias)));
                let mut found = vec![0.0; rows as usize * 96];
                let mut units = vec![0; rows as usize * 64];
                panels.forward(
                    &numbers(&x.flatten(0, 1)).unwrap(),
                    &mut units,
                    Then::Nothing,
                    &mut found,
                );
                let difference =
                    (double(&Tensor::from_slice(&found)) - expected.flatten(0, 1)).abs().max();
                let difference = f64::try_from(&difference).unwrap();
                assert!(difference < 1e-4, "{form:?}, {rows} rows: {difference}");
            }
        }
    }
}
