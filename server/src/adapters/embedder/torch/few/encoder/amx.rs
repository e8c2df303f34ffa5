//! Sums of products of some rows and a panel in bf16, by the CPU's tiles: registers of 16 rows of 64 bytes.
//! Written in assembler, since Rust's functions for them are not stable.
//!
//! # Source
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, "Programming with
//! Intel AMX"; Linux's Documentation/arch/x86/xstate.rst for the permission.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use super::lines::Line;
use super::math::LANES;
use super::tiles::{Next, ROWS, Tile, WIDTH, of_all_heights};

/// What the CPU and this process have of it: the kernel gives a process the room for the registers when
/// it is asked.
pub fn is_there() -> bool {
    static IS_THERE: LazyLock<bool> = LazyLock::new(|| cpu_has_it() && kernel_allows_it());
    *IS_THERE
}

fn cpu_has_it() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let features = __cpuid_count(7, 0).edx;
    features & BF16 != 0 && features & TILE != 0
}

#[cfg(target_os = "linux")]
fn kernel_allows_it() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: it touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn kernel_allows_it() -> bool {
    false
}

/// Of the registers: 0 and 1 hold the sums, 2 rows of the input, 3 and 4 weights.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    const fn of(height: u8) -> Self {
        let mut row_bytes = [0; 16];
        let mut rows = [0; 16];
        let heights = [height, height, height, LANES as u8, LANES as u8];
        let mut register = 0;
        while register < heights.len() {
            row_bytes[register] = size_of::<Line>() as u16;
            rows[register] = heights[register];
            register += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// # Safety
/// [`is_there`]; the slices are of `HEIGHT` rows and of a panel.
unsafe fn tile<const HEIGHT: usize>(
    x: &[u32],
    weights: &[Line],
    _: Next,
    sums: &mut [[f32; WIDTH]; ROWS],
) {
    let config: &'static Config = const { &Config::of(HEIGHT as u8) };
    let depth = weights.len() / 2;
    // SAFETY: each step reads 16 units of each row and as many pairs of lines, and the panel's depth is
    // a multiple of that.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm2, [{x} + {in_row}]",
            "tileloadd tmm3, [{weights} + {pair}]",
            "tileloadd tmm4, [{weights} + {pair} + 64]",
            "tdpbf16ps tmm0, tmm2, tmm3",
            "tdpbf16ps tmm1, tmm2, tmm4",
            "add {x}, 64",
            "add {weights}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {pair}], tmm0",
            "tilestored [{sums} + {pair} + 64], tmm1",
            "tilerelease",
            config = in(reg) config,
            x = inout(reg) x.as_ptr() => _,
            in_row = in(reg) depth * size_of::<u32>(),
            weights = inout(reg) weights.as_ptr() => _,
            pair = in(reg) 2 * size_of::<Line>(),
            steps = inout(reg) depth / LANES => _,
            sums = in(reg) sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
}

pub const AMX: [Tile; ROWS] = of_all_heights!(tile);
