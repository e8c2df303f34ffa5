//! Sums of products of some rows and a panel, for each form of numbers.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_and_epi32, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi32,
};

use super::lines::Line;
use super::math::{LANES, store};

/// Outputs of a panel: two registers.
pub const WIDTH: usize = 2 * LANES;
/// Rows at a time: with two registers each, and three or more besides, they fill the 32 there are.
pub const ROWS: usize = 14;
/// How far ahead weights are asked for, in lines: about the latency of the last cache.
const NEAR: usize = 48;

/// The sums of products of some rows and a panel.
pub type Tile = unsafe fn(x: &[u32], weights: &[Line], next: Next, sums: &mut [[f32; WIDTH]; ROWS]);

/// What is asked for while a panel is computed: of the next one, what falls to this block of rows. Several
/// blocks take longer than their panel takes to be read: only so the memory is never idle.
#[derive(Clone, Copy)]
pub struct Next {
    start: *const Line,
    /// For each line of the panel that is computed.
    bytes: usize,
}

impl Next {
    /// Of a panel of as many lines as the one that is computed.
    pub fn new(panel: &[Line], block: usize, blocks: usize) -> Self {
        let start = panel[panel.len() * block / blocks..].as_ptr();
        Self { start, bytes: size_of::<Line>() / blocks }
    }

    /// Where there is no next one.
    pub fn none(panel: &[Line]) -> Self {
        Self { start: panel.as_ptr(), bytes: 0 }
    }

    /// Asks for so many lines soon to come of the panel that is computed, which is done up to `line`, its
    /// `done`th, and for what belongs to them of the next one. Nothing is read: both may lie beyond the
    /// panels.
    #[inline]
    #[target_feature(enable = "sse")]
    pub fn ask<const LINES: usize>(self, line: *const Line, done: usize) {
        let start = self.start.wrapping_byte_add(done * self.bytes);
        for at in 0..LINES {
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(NEAR + at).cast());
            _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast());
        }
    }
}

/// What is made for a height, for 1 to `ROWS` rows.
macro_rules! of_all_heights {
    ($tile:ident) => {
        [
            $tile::<1>,
            $tile::<2>,
            $tile::<3>,
            $tile::<4>,
            $tile::<5>,
            $tile::<6>,
            $tile::<7>,
            $tile::<8>,
            $tile::<9>,
            $tile::<10>,
            $tile::<11>,
            $tile::<12>,
            $tile::<13>,
            $tile::<14>,
        ]
    };
}
pub(super) use of_all_heights;

/// Tiles for 1 to `ROWS` rows. `$dot` adds the products of a row's units, `$x`, and a register of
/// weights to a sum.
macro_rules! tiles {
    (
        $tile:ident,
        $tiles:ident,
        $features:literal,
        $units:literal,
        ($sum:ident, $x:ident, $weights:ident) => $dot:expr,
        $all:ident => $floats:expr
    ) => {
        /// # Safety
        /// The CPU has the features; the slices are of `HEIGHT` rows and of a panel.
        #[target_feature(enable = $features)]
        unsafe fn $tile<const HEIGHT: usize>(
            x: &[u32],
            weights: &[Line],
            next: Next,
            sums: &mut [[f32; WIDTH]; ROWS],
        ) {
            let depth = weights.len() / 2;
            let (x, weights) = (x.as_ptr(), weights.as_ptr());
            let mut all = [[_mm512_setzero_si512(); 2]; HEIGHT];
            // SAFETY: within the slices.
            unsafe {
                for unit in 0..depth {
                    let line = weights.add(2 * unit);
                    let halves = [load_line(line), load_line(line.add(1))];
                    next.ask::<2>(line, 2 * unit);
                    for (row, sums) in all.iter_mut().enumerate() {
                        let $x = x.add($units * (row * depth + unit));
                        for ($sum, $weights) in sums.iter_mut().zip(halves) {
                            *$sum = $dot;
                        }
                    }
                }
            }
            for (all, sums) in all.into_iter().zip(sums) {
                for ($all, sums) in all.into_iter().zip(sums.chunks_exact_mut(LANES)) {
                    store($floats, sums);
                }
            }
        }

        pub const $tiles: [Tile; ROWS] = of_all_heights!($tile);
    };
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_line(line: *const Line) -> __m512i {
    // SAFETY: the caller's; it is aligned.
    unsafe { _mm512_load_si512(line.cast()) }
}

/// A number of the input, in all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub unsafe fn spread(x: *const u32) -> __m512 {
    // SAFETY: the caller's.
    _mm512_castsi512_ps(_mm512_set1_epi32(unsafe { x.read() }.cast_signed()))
}

tiles!(
    fp32,
    FP32,
    "avx512f",
    1,
    (sum, x, weights) => {
        let sum = _mm512_castsi512_ps(*sum);
        _mm512_castps_si512(_mm512_fmadd_ps(spread(x), _mm512_castsi512_ps(weights), sum))
    },
    sum => _mm512_castsi512_ps(sum)
);

/// The upper half of each unit.
const UPPER: i32 = 0xffff_0000_u32.cast_signed();

// The CPU's own instruction for bf16 takes more than twice as long as two for fp32.
tiles!(
    bf16,
    BF16,
    "avx512f",
    2,
    (sum, x, weights) => {
        let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights));
        let second = _mm512_castsi512_ps(_mm512_and_epi32(weights, _mm512_set1_epi32(UPPER)));
        let sum = _mm512_fmadd_ps(spread(x), first, _mm512_castsi512_ps(*sum));
        _mm512_castps_si512(_mm512_fmadd_ps(spread(x.add(1)), second, sum))
    },
    sum => _mm512_castsi512_ps(sum)
);

tiles!(
    int8,
    INT8,
    "avx512f,avx512vnni",
    1,
    (sum, x, weights) => {
        _mm512_dpbusd_epi32(*sum, _mm512_set1_epi32(x.read().cast_signed()), weights)
    },
    sum => _mm512_cvtepi32_ps(sum)
);
