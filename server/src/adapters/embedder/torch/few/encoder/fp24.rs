//! Sums of products of some rows and a panel whose weights are numbers in fp32 without their last eight
//! bits: a query takes as long as it takes to read the weights, and so reads a quarter less. What is
//! left, 16 significant bits, is twice what bf16 has; sums and all else are in fp32.

use std::arch::x86_64::{
    _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_permutexvar_epi8,
    _mm512_setzero_ps,
};

use super::lines::Line;
use super::math::{LANES, store};
use super::tiles::{Next, ROWS, Tile, WIDTH, of_all_heights, spread};

/// Lines of two units of a panel.
pub const PAIR: usize = 3;
/// Bytes of a number.
const NUMBER: usize = 3;
/// Where the numbers for each of a pair's four registers are read from: 48 bytes within 64, none of
/// which belong to the next pair.
const PLACES: [usize; 4] = [0, 48, 80, 128];
/// Of the 64 bytes for a register of a pair's second unit, those before its own.
const BEFORE: usize = 16;

/// The nearest number in fp32 whose last byte is the one before it: it need not be kept, and not be
/// cleared in a register, which would take as long as to fetch it.
pub fn rounded(number: f32) -> f32 {
    let bits = number.to_bits();
    let low = bits & 0xffff;
    f32::from_bits(bits - low + (low + 128) / 257 * 257)
}

/// Numbers in fp32, rounded, without their last bytes.
pub fn shorten(numbers: &[f32]) -> Vec<Line> {
    let mut bytes = Vec::with_capacity(NUMBER * numbers.len());
    for &number in numbers {
        bytes.extend_from_slice(&rounded(number).to_le_bytes()[1..]);
    }
    let (lines, rest) = bytes.as_chunks();
    debug_assert!(rest.is_empty(), "panels are whole lines");
    lines.iter().map(Line::from_bytes).collect()
}

/// Which of 64 bytes come where: the first of each number twice.
const fn order(before: usize) -> [u8; 4 * LANES] {
    let mut order = [0; 4 * LANES];
    let mut byte = 0;
    while byte < order.len() {
        let of_number = (byte % 4).saturating_sub(1);
        order[byte] = (before + NUMBER * (byte / 4) + of_number) as u8;
        byte += 1;
    }
    order
}

/// # Safety
/// The CPU has the features; the slices are of `HEIGHT` rows and of a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn tile<const HEIGHT: usize>(
    x: &[u32],
    weights: &[Line],
    next: Next,
    sums: &mut [[f32; WIDTH]; ROWS],
) {
    let pairs = weights.len() / PAIR;
    let depth = 2 * pairs;
    let (x, weights) = (x.as_ptr(), weights.as_ptr());
    let mut all = [[_mm512_setzero_ps(); 2]; HEIGHT];
    // SAFETY: each load is of 64 bytes from byte 128 at most of a pair's 192; `x` has `HEIGHT` rows of
    // `depth` units.
    unsafe {
        let orders = const { [order(0), order(BEFORE)] };
        let orders = orders.map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        for pair in 0..pairs {
            let line = weights.add(PAIR * pair);
            next.ask::<PAIR>(line, PAIR * pair);
            for (unit, &order) in orders.iter().enumerate() {
                let half = |half: usize| {
                    let part = 2 * unit + half;
                    let bytes = _mm512_loadu_si512(line.cast::<u8>().add(PLACES[part]).cast());
                    let number = _mm512_permutexvar_epi8(order, bytes);
                    _mm512_castsi512_ps(number)
                };
                let halves = [half(0), half(1)];
                for (row, sums) in all.iter_mut().enumerate() {
                    let x = spread(x.add(row * depth + 2 * pair + unit));
                    for (sum, weights) in sums.iter_mut().zip(halves) {
                        *sum = _mm512_fmadd_ps(x, weights, *sum);
                    }
                }
            }
        }
    }
    for (all, sums) in all.into_iter().zip(sums) {
        for (all, sums) in all.into_iter().zip(sums.chunks_exact_mut(LANES)) {
            store(all, sums);
        }
    }
}

pub const FP24: [Tile; ROWS] = of_all_heights!(tile);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounded_number_differs_by_half_of_its_last_kept_bit_and_is_what_its_bytes_say() {
        let mut bits = 0x1234_5678_u32;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = f32::from_bits(bits);
            if !number.is_normal() {
                continue;
            }
            let rounded = rounded(number);
            let difference = (f64::from(rounded) - f64::from(number)).abs();
            assert!(difference <= f64::from(number.abs()) / 65_536.0, "{number:e}");
            let bytes = rounded.to_le_bytes();
            assert_eq!(bytes[0], bytes[1], "{number:e}");
        }
        for number in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(rounded(number).to_bits(), number.to_bits());
        }
    }
}
