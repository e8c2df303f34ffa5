//! The encoder itself, for AVX-512.

mod amx;
mod fp24;
mod lines;
mod math;
mod panels;
mod tiles;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};

use super::{Layer, MOST_TOKENS, Norm};
use crate::adapters::embedder::torch::files::Pooling;
use crate::adapters::embedder::torch::team::{Writer, share};
use math::{LANES, MOST_HEAD, layer_norm};
pub use panels::Panels;
use panels::Then;

pub struct Few {
    /// `[vocabulary, width]` and `[max_positions, width]`, fp32 or bf16.
    words: Tensor,
    positions: Tensor,
    rest: Arc<Rest>,
    scratch: RefCell<Scratch>,
}

/// What workers share.
struct Rest {
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    pooling: Pooling,
}

/// Room for `MOST_TOKENS` rows of each step, so that a batch allocates nothing.
struct Scratch {
    hidden: Vec<f32>,
    projected: Vec<f32>,
    attended: Vec<f32>,
    normed: Vec<f32>,
    inner: Vec<f32>,
    /// A layer's input as its weights need it.
    units: Vec<u32>,
}

impl Scratch {
    fn new(width: usize, inner: usize) -> Self {
        let rows = |width: usize| vec![0.0; MOST_TOKENS * width];
        Self {
            hidden: rows(width),
            projected: rows(3 * width),
            attended: rows(width),
            normed: rows(width),
            inner: rows(inner),
            units: vec![0; MOST_TOKENS * inner.max(width)],
        }
    }
}

impl Few {
    /// `None` for sizes that the code is not made for.
    pub fn new(
        [words, positions]: [&Tensor; 2],
        norm: Norm,
        mut layers: Vec<Layer>,
        heads: usize,
        pooling: Pooling,
    ) -> Option<Self> {
        let width = norm.weight.len();
        let fits =
            fits(width, heads) && [words, positions].iter().all(|table| table.is_contiguous());
        if !fits {
            return None;
        }
        let inner = layers.first()?.intermediate.outputs();
        let panels = layers.iter_mut().flat_map(|layer| {
            let Layer { query_key_value, attention_output, intermediate, output, .. } = layer;
            [query_key_value, attention_output, intermediate, output]
        });
        Panels::gather(&mut panels.collect::<Vec<_>>());
        Some(Self {
            words: words.shallow_clone(),
            positions: positions.shallow_clone(),
            rest: Arc::new(Rest { norm, layers, heads, pooling }),
            scratch: RefCell::new(Scratch::new(width, inner)),
        })
    }

    /// The same for another thread.
    pub fn share(&self) -> Self {
        let scratch = self.scratch.borrow();
        Self {
            words: self.words.shallow_clone(),
            positions: self.positions.shallow_clone(),
            rest: Arc::clone(&self.rest),
            scratch: RefCell::new(Scratch::new(self.width(), scratch.inner.len() / MOST_TOKENS)),
        }
    }

    fn width(&self) -> usize {
        self.rest.norm.weight.len()
    }

    /// One vector of norm 1 per text, of at most `MOST_TOKENS` tokens in all.
    pub fn embed(&self, texts: &[Arc<[u32]>]) -> Result<Vec<Arc<[f32]>>, TchError> {
        let width = self.width();
        let scratch = &mut *self.scratch.borrow_mut();
        let rows = self.look_up(texts, &mut scratch.hidden)?;
        self.rest.norm.apply(&mut scratch.hidden[..rows * width]);
        for layer in &self.rest.layers {
            layer.forward(scratch, rows, texts, self.rest.heads);
        }
        let mut end = 0;
        let of_text = |text: &Arc<[u32]>| {
            let start = end;
            end += text.len();
            pooled(&scratch.hidden[start * width..end * width], width, self.rest.pooling)
        };
        Ok(texts.iter().map(of_text).collect())
    }

    /// Words and positions, added up, row by row. How many rows.
    fn look_up(&self, texts: &[Arc<[u32]>], hidden: &mut [f32]) -> Result<usize, TchError> {
        let width = self.width();
        let mut rows = 0;
        for text in texts {
            for (place, &id) in text.iter().enumerate() {
                let row = hidden[rows * width..].get_mut(..width);
                let row = row.ok_or_else(|| TchError::Torch("too many tokens".to_owned()))?;
                read(&self.words, id as usize, row, |to, from| *to = from)?;
                read(&self.positions, place, row, |to, from| *to += from)?;
                rows += 1;
            }
        }
        Ok(rows)
    }
}

impl Layer {
    /// From and to `hidden`.
    fn forward(&self, scratch: &mut Scratch, rows: usize, texts: &[Arc<[u32]>], heads: usize) {
        let Scratch { hidden, projected, attended, normed, inner, units } = scratch;
        let width = self.attention_output.outputs();
        let all = rows * width;
        self.query_key_value.forward(&hidden[..all], units, Then::Nothing, projected);
        let writer = Writer::new(attended);
        share(heads, |head, _| {
            let mut start = 0;
            for text in texts {
                let rows = start..start + text.len();
                start = rows.end;
                // SAFETY: heads write different columns.
                unsafe { math::attend(projected, rows, [width, head, heads], &writer) }
            }
        });
        self.attention_output.forward(&attended[..all], units, Then::Add(&hidden[..all]), normed);
        self.attention_norm.apply(&mut normed[..all]);
        self.intermediate.forward(&normed[..all], units, Then::Gelu, inner);
        let inner = &inner[..rows * self.intermediate.outputs()];
        self.output.forward(inner, units, Then::Add(&normed[..all]), hidden);
        self.output_norm.apply(&mut hidden[..all]);
    }
}

impl Norm {
    fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.weight.len()) {
            // SAFETY: without AVX-512 there would be no panels, and no `Few`.
            unsafe { layer_norm(row, &self.weight, &self.bias, self.eps) }
        }
    }
}

/// Whether heads are of a size that the code is made for.
fn fits(width: usize, heads: usize) -> bool {
    width.is_multiple_of(heads * LANES) && width / heads <= MOST_HEAD
}

/// Attention over short texts of one length, which lie in these rows: from `[tokens, 3 * width]` to
/// these rows of `[tokens, width]`. False for tensors and sizes that the code is not made for.
pub fn attend(
    projected: &Tensor,
    rows: Range<i64>,
    length: i64,
    heads: i64,
    attended: &mut Tensor,
) -> bool {
    let is_plain =
        |x: &Tensor| x.kind() == Kind::Float && x.device() == Device::Cpu && x.is_contiguous();
    let [start, end, length, heads] = [rows.start, rows.end, length, heads].map(|n| n as usize);
    let Ok((_, width)) = attended.size2() else { return false };
    let width = width as usize;
    if !is_plain(projected)
        || !is_plain(attended)
        || projected.numel() != 3 * attended.numel()
        || length > MOST_TOKENS
        || !fits(width, heads)
        || !is_x86_feature_detected!("avx512f")
    {
        return false;
    }
    // SAFETY: both are of so many numbers, one after the other, and nobody writes to them meanwhile.
    let (projected, attended) = unsafe {
        let (from, to) = (projected.data_ptr().cast::<f32>(), attended.data_ptr().cast::<f32>());
        (
            std::slice::from_raw_parts(from, projected.numel()),
            std::slice::from_raw_parts_mut(to, attended.numel()),
        )
    };
    let writer = Writer::new(attended);
    for start in (start..end).step_by(length) {
        for head in 0..heads {
            // SAFETY: looked for above; this thread writes one part after the other.
            unsafe { math::attend(projected, start..start + length, [width, head, heads], &writer) }
        }
    }
    true
}

fn pooled(rows: &[f32], width: usize, pooling: Pooling) -> Arc<[f32]> {
    let mut vector = rows[..width].to_vec();
    if pooling == Pooling::Mean {
        for row in rows[width..].chunks_exact(width) {
            for (sum, number) in vector.iter_mut().zip(row) {
                *sum += number;
            }
        }
    }
    // Of the mean and of the sum it is the same.
    let norm = vector.iter().map(|number| number * number).sum::<f32>().sqrt().max(1e-12);
    vector.iter().map(|number| number / norm).collect()
}

/// Does something with each number of a row of a table.
fn read(
    table: &Tensor,
    row: usize,
    to: &mut [f32],
    with: impl Fn(&mut f32, f32),
) -> Result<(), TchError> {
    let rows = table.numel() / to.len();
    if row >= rows {
        return Err(TchError::Torch(format!("index {row} out of range, of {rows} rows")));
    }
    let offset = row * to.len();
    // SAFETY: the row is one of the tensor's, whose numbers lie one after the other.
    unsafe {
        if table.kind() == Kind::BFloat16 {
            let from = table.data_ptr().cast::<u16>().add(offset);
            let from = std::slice::from_raw_parts(from, to.len());
            let wide = |&from: &u16| f32::from_bits(u32::from(from) << 16);
            to.iter_mut().zip(from).for_each(|(to, from)| with(to, wide(from)));
        } else {
            let from = table.data_ptr().cast::<f32>().add(offset);
            let from = std::slice::from_raw_parts(from, to.len());
            to.iter_mut().zip(from).for_each(|(to, &from)| with(to, from));
        }
    }
    Ok(())
}
