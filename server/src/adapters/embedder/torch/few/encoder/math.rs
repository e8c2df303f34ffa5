//! What is between the linear layers, for AVX-512. Who calls it has looked whether the CPU has it.

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_abs_ps, _mm512_add_ps, _mm512_and_epi32, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_mask_i32gather_ps, _mm512_mask_mul_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_mullo_epi32,
    _mm512_or_epi32, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps,
    _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
    _mm512_storeu_ps, _mm512_sub_ps,
};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::MOST_TOKENS;
use crate::adapters::embedder::torch::team::Writer;

/// Numbers of a register.
pub const LANES: usize = 16;
/// Registers for a number of each token.
const BLOCKS: usize = MOST_TOKENS / LANES;
/// Largest size of a head.
pub const MOST_HEAD: usize = 128;

/// Makes a row's mean zero and its variance one, then scales it by `weight` and adds `bias`. The length
/// is a multiple of `LANES`.
#[target_feature(enable = "avx512f")]
pub fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = row.len() as f32;
    let mut sum = _mm512_setzero_ps();
    for row in row.chunks_exact(LANES) {
        sum = _mm512_add_ps(sum, load(row));
    }
    let mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / count);
    let mut squares = _mm512_setzero_ps();
    for row in row.chunks_exact(LANES) {
        let off = _mm512_sub_ps(load(row), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    let variance = _mm512_reduce_add_ps(squares) / count;
    let scale = _mm512_set1_ps(1.0 / (variance + eps).sqrt());
    let parameters = weight.chunks_exact(LANES).zip(bias.chunks_exact(LANES));
    for (row, (weight, bias)) in row.chunks_exact_mut(LANES).zip(parameters) {
        let normed = _mm512_mul_ps(_mm512_sub_ps(load(row), mean), scale);
        store(_mm512_fmadd_ps(normed, load(weight), load(bias)), row);
    }
}

/// Attention of one head over the rows of a text, `MOST_TOKENS` at most: from `[tokens, 3 * width]`, query,
/// key and value, to its columns of `[tokens, width]`.
///
/// # Safety
/// The CPU has AVX-512; `width / heads` is a multiple of `LANES`, `MOST_HEAD` at most; nobody else uses
/// these columns.
#[target_feature(enable = "avx512f")]
pub unsafe fn attend(
    projected: &[f32],
    rows: Range<usize>,
    [width, head, heads]: [usize; 3],
    attended: &Writer<f32>,
) {
    let size = width / heads;
    let scale = _mm512_set1_ps(1.0 / (size as f32).sqrt());
    let part =
        |row: usize, part: usize| &projected[(3 * row + part) * width + head * size..][..size];
    // The keys with a lane for each token: so all of a query's products with them come at once.
    let mut keys = [[MaybeUninit::uninit(); MOST_HEAD]; BLOCKS];
    let stride = _mm512_set1_epi32(3 * (width as u32).cast_signed());
    let steps = _mm512_mullo_epi32(
        stride,
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    );
    let blocks = rows.clone().step_by(LANES).map(|first| (first, lanes(rows.end - first)));
    for (keys, (first, lanes)) in keys.iter_mut().zip(blocks.clone()) {
        let first = projected[(3 * first + 1) * width + head * size..].as_ptr();
        for (place, key) in keys[..size].iter_mut().enumerate() {
            let none = _mm512_setzero_ps();
            // SAFETY: the first row of the block and so many others are there.
            let numbers =
                unsafe { _mm512_mask_i32gather_ps::<4>(none, lanes, steps, first.add(place)) };
            key.write(numbers);
        }
    }
    for row in rows.clone() {
        let query = part(row, 0);
        let mut scores = [_mm512_set1_ps(f32::NEG_INFINITY); BLOCKS];
        for ((score, keys), (_, lanes)) in scores.iter_mut().zip(&keys).zip(blocks.clone()) {
            let mut sums = [_mm512_setzero_ps(); 2];
            for (query, keys) in query.chunks_exact(2).zip(keys.chunks_exact(2)) {
                for ((sum, &query), key) in sums.iter_mut().zip(query).zip(keys) {
                    // SAFETY: written above, for as many numbers as a query has.
                    let key = unsafe { key.assume_init() };
                    *sum = _mm512_fmadd_ps(_mm512_set1_ps(query), key, *sum);
                }
            }
            let sum = _mm512_add_ps(sums[0], sums[1]);
            *score = _mm512_mask_mul_ps(*score, lanes, sum, scale);
        }
        let shares = softmax(scores);
        let start = row * width + head * size;
        // SAFETY: the caller's promise.
        let result = unsafe { attended.part(start..start + size) };
        for (lane, result) in result.chunks_exact_mut(LANES).enumerate() {
            let mut sum = _mm512_setzero_ps();
            for (&share, other) in shares.iter().flatten().zip(rows.clone()) {
                let value = load(&part(other, 2)[lane * LANES..]);
                sum = _mm512_fmadd_ps(_mm512_set1_ps(share), value, sum);
            }
            store(sum, result);
        }
    }
}

/// The first so many.
fn lanes(count: usize) -> __mmask16 {
    if count < LANES { (1 << count) - 1 } else { __mmask16::MAX }
}

/// What is negative infinity gets next to nothing.
#[inline]
#[target_feature(enable = "avx512f")]
fn softmax(scores: [__m512; BLOCKS]) -> [[f32; LANES]; BLOCKS] {
    let [first, second] = scores;
    let largest = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(first, second)));
    let [first, second] =
        [first, second].map(|score| exp_of_negative(_mm512_sub_ps(largest, score)));
    let share = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(_mm512_add_ps(first, second)));
    let mut shares = [[0.0; LANES]; BLOCKS];
    for (number, shares) in [first, second].into_iter().zip(&mut shares) {
        store(_mm512_mul_ps(number, share), shares);
    }
    shares
}

/// `x / 2 * (1 + erf(x / √2))`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn gelu(x: __m512) -> __m512 {
    let number = |number: f32| _mm512_set1_ps(number);
    let erf = erf(_mm512_mul_ps(x, number(std::f32::consts::FRAC_1_SQRT_2)));
    let half = _mm512_mul_ps(x, number(0.5));
    _mm512_fmadd_ps(half, erf, half)
}

/// Right to 2e-7.
///
/// # Source
/// Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 7.1.26.
#[inline]
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
#[inline]
#[target_feature(enable = "avx512f")]
fn exp_of_negative(x: __m512) -> __m512 {
    let number = |number: f32| _mm512_set1_ps(number);
    // Beyond, it is next to nothing; what is smaller than a normal number takes a CPU a hundred times as
    // long.
    let x = _mm512_max_ps(_mm512_sub_ps(number(0.0), x), number(-80.0));
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

#[inline]
#[target_feature(enable = "avx512f")]
pub fn load(from: &[f32]) -> __m512 {
    assert!(from.len() >= LANES);
    // SAFETY: so many numbers are there.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub fn store(numbers: __m512, to: &mut [f32]) {
    assert!(to.len() >= LANES);
    // SAFETY: so many numbers are there.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), numbers) }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

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
