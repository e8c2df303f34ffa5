//! Memory for weights, in lines of the cache, so that a register of 64 bytes is not loaded from two, and
//! in large pages where there are some: a query reads all of it, and would else spend a quarter of its
//! time on looking pages up.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;

/// 16 numbers of 32 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([u32; 16]);

impl Line {
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let (units, _) = bytes.as_chunks::<4>();
        Self(std::array::from_fn(|unit| u32::from_le_bytes(units[unit])))
    }
}

const LARGE_PAGE: usize = 2 << 20;

/// A part of a piece of memory.
pub struct Lines {
    memory: Arc<Memory>,
    range: Range<usize>,
}

struct Memory {
    start: NonNull<Line>,
    layout: Layout,
}

// SAFETY: it is written only where nobody else has it.
unsafe impl Send for Memory {}
// SAFETY: the same.
unsafe impl Sync for Memory {}

impl Memory {
    /// To be written.
    fn new(lines: usize) -> Self {
        let bytes = lines.max(1) * size_of::<Line>();
        let align = if bytes < LARGE_PAGE { align_of::<Line>() } else { LARGE_PAGE };
        let layout = Layout::from_size_align(bytes, align);
        let Ok(layout) = layout else { handle_alloc_error(Layout::new::<Line>()) };
        // SAFETY: it has at least one line.
        let start = unsafe { alloc(layout) };
        #[allow(clippy::cast_ptr_alignment, reason = "the layout has it")]
        let Some(start) = NonNull::new(start.cast::<Line>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if align == LARGE_PAGE {
            // SAFETY: advice about memory of ours. One that is not taken is no matter.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Self { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) }
    }
}

impl Lines {
    /// A copy of each, in one piece of memory.
    pub fn copy(parts: &[&[Line]]) -> Vec<Self> {
        let memory = Memory::new(parts.iter().map(|part| part.len()).sum());
        let mut end = 0;
        let mut ranges = Vec::new();
        for part in parts {
            // SAFETY: there is room for all of them, and nobody else has it yet.
            unsafe {
                let to = memory.start.add(end);
                to.copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len());
            }
            ranges.push(end..end + part.len());
            end += part.len();
        }
        let memory = Arc::new(memory);
        ranges.into_iter().map(|range| Self { memory: Arc::clone(&memory), range }).collect()
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        let Range { start, end } = self.range;
        // SAFETY: `copy` has written them, and nobody writes again.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(start).as_ptr(), end - start) }
    }
}
