//! The linear layer in fp32 on CPUs with AVX-512: own code, since a query has a dozen rows, for which
//! libraries are slow. Measured on one core of an Intel Xeon, all layers of all-MiniLM-L6-v2 at ten
//! rows: 1.8 ms, oneDNN 3.6, MKL 5.5; reading the weights alone takes 1.6. With many rows oneDNN is
//! faster.
//!
//! # Source
//! Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", for the order of
//! the weights; the panels are not blocked by depth, since no layer here is deep.

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_abs_ps, _mm512_add_ps, _mm512_and_epi32,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_loadu_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_or_epi32, _mm512_roundscale_ps,
    _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use tch::{Device, Kind, TchError, Tensor};

use crate::adapters::embedder::torch::team::share;

/// Outputs of a panel: two registers of 16 numbers.
const WIDTH: i64 = 32;
const COLUMNS: usize = WIDTH as usize;
const LANES: usize = 16;
/// Rows at a time: with two registers each, and three besides, they fill the 32 there are.
const ROWS: usize = 14;
/// How far ahead weights are asked for, in numbers: about the latency of the last cache.
const AHEAD: usize = 24 * COLUMNS;

/// What follows the layer, in the same pass.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    Nothing,
    /// In its exact form, with the error function.
    Gelu,
    /// Of the result's shape.
    Add(&'a Tensor),
}

pub fn are_for(kind: Kind, device: Device) -> bool {
    let is_there = std::arch::is_x86_feature_detected!("avx512f");
    is_there && kind == Kind::Float && device == Device::Cpu
}

/// A weight `[out, in]` in panels of `WIDTH` outputs, each with its inputs one after the other:
/// `[out / WIDTH, in, WIDTH]`. `None` where another form must do: on other CPUs, for other numbers and
/// sizes.
pub fn pack(weight: &Tensor) -> Option<Tensor> {
    let (outputs, inputs) = weight.size2().ok()?;
    if !are_for(weight.kind(), weight.device()) || outputs % WIDTH != 0 {
        return None;
    }
    let panels = weight.f_reshape([-1, WIDTH, inputs]).ok()?;
    panels.f_transpose(1, 2).and_then(|panels| panels.f_contiguous()).ok()
}

/// `[rows, in]` to `[rows, out]` by a packed weight; the bias is `[out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, then: Then) -> Result<Tensor, TchError> {
    let x = x.f_contiguous()?;
    let (rows, inputs) = x.size2()?;
    let (panels, depth, _) = weight.size3()?;
    let outputs = panels * WIDTH;
    let result = Tensor::f_empty([rows, outputs], (Kind::Float, Device::Cpu))?;
    let other = match then {
        Then::Add(other) => Some(other.f_contiguous()?),
        Then::Nothing | Then::Gelu => None,
    };
    let is_right = |tensor: &Tensor, size: &[i64]| {
        tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.size() == size
    };
    let fits = is_right(&x, &[rows, depth])
        && is_right(bias, &[outputs])
        && other.as_ref().is_none_or(|other| is_right(other, &[rows, outputs]));
    if !fits {
        let what = format!("a layer from {depth} to {outputs} numbers was given {inputs}");
        return Err(TchError::Torch(what));
    }
    let call = Call {
        inputs: inputs as usize,
        outputs: outputs as usize,
        rows: rows as usize,
        x: x.data_ptr().cast(),
        weights: weight.data_ptr().cast(),
        bias: bias.data_ptr().cast(),
        result: result.data_ptr().cast(),
        other: other.as_ref().map_or(std::ptr::null(), |other| other.data_ptr().cast()),
    };
    // SAFETY: the CPU has AVX-512, or the weight would not be packed; all is of the sizes that `call`
    // has, and one number lies after the other.
    unsafe {
        match then {
            Then::Nothing => call.run::<NOTHING>(),
            Then::Gelu => call.run::<GELU>(),
            Then::Add(_) => call.run::<ADD>(),
        }
    }
    Ok(result)
}

const NOTHING: u8 = 0;
const GELU: u8 = 1;
const ADD: u8 = 2;

struct Call {
    inputs: usize,
    outputs: usize,
    rows: usize,
    x: *const f32,
    weights: *const f32,
    bias: *const f32,
    result: *mut f32,
    other: *const f32,
}

// SAFETY: panels write different columns of the result, and read what nobody writes.
unsafe impl Sync for Call {}

impl Call {
    /// # Safety
    /// The pointers are to what the numbers say; with `ADD` also `other`, which has the result's size.
    unsafe fn run<const THEN: u8>(&self) {
        share(self.outputs / COLUMNS, |panel| {
            let blocks = self.rows.div_ceil(ROWS);
            let mut row = 0;
            for block in 0..blocks {
                // Of about the same height: a last one of few rows would be a waste.
                let height = (self.rows - row).div_ceil(blocks - block);
                let at = row * self.outputs + panel * COLUMNS;
                // SAFETY: all lie within their tensors.
                unsafe {
                    let tile = Tile {
                        x: self.x.add(row * self.inputs),
                        weights: self.weights.add(panel * COLUMNS * self.inputs),
                        bias: self.bias.add(panel * COLUMNS),
                        result: self.result.add(at),
                        other: if THEN == ADD { self.other.add(at) } else { self.other },
                        inputs: self.inputs,
                        outputs: self.outputs,
                    };
                    tile.of_height::<THEN>(height);
                }
                row += height;
            }
        });
    }
}

/// Some rows of the result, as wide as a panel.
struct Tile {
    x: *const f32,
    weights: *const f32,
    bias: *const f32,
    result: *mut f32,
    other: *const f32,
    inputs: usize,
    outputs: usize,
}

impl Tile {
    unsafe fn of_height<const THEN: u8>(&self, height: usize) {
        // SAFETY: the caller's.
        unsafe {
            match height {
                1 => self.compute::<1, THEN>(),
                2 => self.compute::<2, THEN>(),
                3 => self.compute::<3, THEN>(),
                4 => self.compute::<4, THEN>(),
                5 => self.compute::<5, THEN>(),
                6 => self.compute::<6, THEN>(),
                7 => self.compute::<7, THEN>(),
                8 => self.compute::<8, THEN>(),
                9 => self.compute::<9, THEN>(),
                10 => self.compute::<10, THEN>(),
                11 => self.compute::<11, THEN>(),
                12 => self.compute::<12, THEN>(),
                13 => self.compute::<13, THEN>(),
                _ => self.compute::<ROWS, THEN>(),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn compute<const HEIGHT: usize, const THEN: u8>(&self) {
        // SAFETY: `HEIGHT` rows of `inputs` numbers at `x`, of `WIDTH` at `result` and `other`, each
        // `outputs` after the one before; a panel at `weights`. What is asked for ahead is not read.
        unsafe {
            let bias = [_mm512_loadu_ps(self.bias), _mm512_loadu_ps(self.bias.add(LANES))];
            let mut sums = [bias; HEIGHT];
            let mut weights = self.weights;
            for input in 0..self.inputs {
                let left = _mm512_loadu_ps(weights);
                let right = _mm512_loadu_ps(weights.add(LANES));
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD + LANES).cast());
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*self.x.add(row * self.inputs + input));
                    sums[0] = _mm512_fmadd_ps(x, left, sums[0]);
                    sums[1] = _mm512_fmadd_ps(x, right, sums[1]);
                }
                weights = weights.add(COLUMNS);
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (half, sum) in sums.into_iter().enumerate() {
                    let at = row * self.outputs + half * LANES;
                    let sum = match THEN {
                        GELU => gelu(sum),
                        ADD => _mm512_add_ps(sum, _mm512_loadu_ps(self.other.add(at))),
                        _ => sum,
                    };
                    _mm512_storeu_ps(self.result.add(at), sum);
                }
            }
        }
    }
}

/// `x / 2 * (1 + erf(x / √2))`.
#[target_feature(enable = "avx512f")]
fn gelu(x: __m512) -> __m512 {
    let number = |number: f32| _mm512_set1_ps(number);
    let erf = erf(_mm512_mul_ps(x, number(std::f32::consts::FRAC_1_SQRT_2)));
    let half = _mm512_mul_ps(x, number(0.5));
    _mm512_fmadd_ps(half, erf, half)
}

/// Right to 2e-7.
///
/// # Source
/// Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 7.1.26.
#[target_feature(enable = "avx512f")]
fn erf(x: __m512) -> __m512 {
    let number = |number: f32| _mm512_set1_ps(number);
    let one = number(1.0);
    let size = _mm512_abs_ps(x);
    let t = _mm512_div_ps(one, _mm512_fmadd_ps(number(0.327_591_1), size, one));
    let mut sum = number(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        sum = _mm512_fmadd_ps(sum, t, number(coefficient));
    }
    let tail = _mm512_mul_ps(_mm512_mul_ps(sum, t), exp_of_negative(_mm512_mul_ps(size, size)));
    let sign = _mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MIN));
    let positive = _mm512_castps_si512(_mm512_sub_ps(one, tail));
    _mm512_castsi512_ps(_mm512_or_epi32(positive, sign))
}

/// `exp(-x)` of what is not negative: a power of two, and the Taylor series of the rest.
#[target_feature(enable = "avx512f")]
fn exp_of_negative(x: __m512) -> __m512 {
    let number = |number: f32| _mm512_set1_ps(number);
    // Beyond, the result is zero.
    let x = _mm512_max_ps(_mm512_sub_ps(number(0.0), x), number(-104.0));
    let power = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, number(std::f32::consts::LOG2_E)));
    // The logarithm of two in two parts, so that the product loses nothing.
    let rest = _mm512_fnmadd_ps(power, number(0.693_359_4), x);
    let rest = _mm512_fnmadd_ps(power, number(-2.121_944_4e-4), rest);
    let mut sum = number(1.0 / 720.0);
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = _mm512_fmadd_ps(sum, rest, number(coefficient));
    }
    _mm512_scalef_ps(sum, power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_that_of_libtorch() {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return println!("not run: this CPU has no AVX-512");
        }
        let x = Tensor::linspace(-12.0, 12.0, 4096, (Kind::Float, Device::Cpu));
        let expected = x.to_kind(Kind::Double).gelu("none");
        let numbers = Vec::<f32>::try_from(&x).unwrap();
        let mut found = numbers.clone();
        for (from, to) in numbers.chunks_exact(LANES).zip(found.chunks_exact_mut(LANES)) {
            // SAFETY: the CPU has it; 16 numbers each.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), gelu(_mm512_loadu_ps(from.as_ptr()))) }
        }
        let difference = (Tensor::from_slice(&found).to_kind(Kind::Double) - expected).abs().max();
        assert!(f64::try_from(&difference).unwrap() < 1e-6, "{difference:?}");
    }
}
