//! Where the texts of a batch lie: the rows of all of them one after the other.

use std::ops::Range;
use std::sync::Arc;

use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::cuda;
use super::few;
use super::files::Pooling;

/// Of `embedding_bag`.
const BAG_MEAN: i64 = 1;
/// A batch on a CPU of more rows is filled up, to one of a few sizes: oneDNN makes kernels for each
/// number of rows that it meets, which takes milliseconds and some hundred kilobytes.
const UNFILLED_ROWS: usize = 32;
/// Sizes between a power of two and the next.
const SIZES: usize = 8;
const LARGEST_STEP: usize = 64;

/// Token ids and where they lie, where the model is.
pub struct Batch {
    /// In 32 bits: the ids, and their places in their texts.
    pub ids: Tensor,
    pub places: Tensor,
    pub layout: Layout,
}

pub enum Layout {
    /// One group after the other.
    Grouped(Vec<Group>),
    /// On a GPU: the first row of every text and the end of the last, all rows, in 32 bits; no text
    /// is longer than `longest`.
    Ragged { starts: Tensor, rows: Tensor, longest: i64 },
}

/// The rows of the texts of one length.
pub struct Group {
    rows: Range<i64>,
    texts: i64,
    length: i64,
}

impl Batch {
    /// Of texts of which those of equal length stand together. On a CPU so many rows are added, each a
    /// text behind them.
    pub fn new(texts: &[Arc<[u32]>], filling: usize, device: Device) -> Result<Self, TchError> {
        if let Device::Cuda(_) = device {
            let (tokens, longest) = sizes(texts);
            let numbers = in_one_piece(texts, tokens, texts.len());
            let numbers = cuda::upload(&Tensor::f_from_slice(&numbers)?, device)?;
            return Self::in_one_piece(&numbers, tokens, longest);
        }
        let mut ids: Vec<i32> =
            texts.iter().flat_map(|ids| ids.iter()).map(|&id| id.cast_signed()).collect();
        let mut places: Vec<i32> = texts.iter().flat_map(|ids| 0..count(ids)).collect();
        let mut groups = groups(texts);
        if filling > 0 {
            let (start, texts) = (i64::from(count(&ids)), i64::from(number(filling)));
            groups.push(Group { rows: start..start + texts, texts, length: 1 });
            for numbers in [&mut ids, &mut places] {
                numbers.resize(numbers.len() + filling, 0);
            }
        }
        Ok(Self {
            ids: Tensor::f_from_slice(&ids)?,
            places: Tensor::f_from_slice(&places)?,
            layout: Layout::Grouped(groups),
        })
    }

    /// Of the numbers that `in_one_piece` gives for so many tokens, on a GPU.
    pub fn in_one_piece(numbers: &Tensor, tokens: usize, longest: usize) -> Result<Self, TchError> {
        let (tokens, all) = (i64::from(number(tokens)), numbers.size1()?);
        let part = |number: i64| numbers.f_narrow(0, number * tokens, tokens);
        let starts = numbers.f_narrow(0, 3 * tokens, all - 3 * tokens)?;
        let layout = Layout::Ragged { starts, rows: part(2)?, longest: number(longest).into() };
        Ok(Self { ids: part(0)?, places: part(1)?, layout })
    }
}

/// Rows that fill up a batch of so many tokens, less than an eighth of them, on average 3 %.
pub fn filling(tokens: usize) -> usize {
    if tokens <= UNFILLED_ROWS {
        return 0;
    }
    let step = (tokens.next_power_of_two() / 2 / SIZES).min(LARGEST_STEP);
    tokens.next_multiple_of(step) - tokens
}

/// Tokens of all texts and of the longest.
pub fn sizes(texts: &[Arc<[u32]>]) -> (usize, usize) {
    let lengths = || texts.iter().map(|ids| ids.len());
    (lengths().sum(), lengths().max().unwrap_or_default())
}

/// All that a GPU is told of texts, at once, since a copy costs what a kernel does: ids, places, rows
/// (so many `tokens` of each), the first row of every text, the end of the last. What the texts lack
/// of the tokens is a text of its own, at the end of `count` texts; those between are empty. No text
/// begins behind the last row.
pub fn in_one_piece(texts: &[Arc<[u32]>], tokens: usize, count: usize) -> Vec<i32> {
    let mut numbers = vec![0; 3 * tokens + count + 1];
    let (ids, rest) = numbers.split_at_mut(tokens);
    let (places, rest) = rest.split_at_mut(tokens);
    let (rows, starts) = rest.split_at_mut(tokens);
    for (row, number) in rows.iter_mut().zip(0..) {
        *row = number;
    }
    let mut end = 0;
    for (text, start) in texts.iter().zip(&mut *starts) {
        *start = number(end);
        for (place, &id) in text.iter().enumerate() {
            ids[end] = id.cast_signed();
            places[end] = number(place);
            end += 1;
        }
    }
    starts[texts.len()..count].fill(number(end));
    starts[count] = number(tokens);
    numbers
}

impl Layout {
    /// `[tokens, 3 * width]` to `[tokens, width]`.
    pub fn attend(&self, projected: &Tensor, heads: i64) -> Result<Tensor, TchError> {
        match self {
            Self::Grouped(groups) => {
                let (tokens, width) = projected.size2()?;
                let options = (projected.kind(), projected.device());
                let mut attended = Tensor::f_empty([tokens, width / 3], options)?;
                for group in groups {
                    let rows = group.rows.clone();
                    if !few::attend(projected, rows, group.length, heads, &mut attended) {
                        let of_group = attention(&group.of(projected)?, heads)?;
                        group.rows_of(&attended)?.f_copy_(&of_group)?;
                    }
                }
                Ok(attended)
            }
            Self::Ragged { starts, longest, .. } => {
                let (tokens, width) = projected.size2()?;
                let parts = projected.f_view([tokens, 3, heads, width / 3 / heads])?;
                let part = |index: i64| parts.f_select(1, index);
                let parts = [part(0)?, part(1)?, part(2)?];
                cuda::attention(&parts, starts, *longest)?.f_reshape([tokens, width / 3])
            }
        }
    }

    /// `[tokens, hidden]` to `[texts, hidden]` in fp32.
    pub fn pool(&self, hidden: &Tensor, pooling: Pooling) -> Result<Tensor, TchError> {
        match (self, pooling) {
            (Self::Grouped(groups), _) => {
                let pooled = groups.iter().map(|group| {
                    let hidden = group.of(hidden)?;
                    match pooling {
                        Pooling::Mean => hidden.f_mean_dim(1, false, Kind::Float),
                        Pooling::Cls => hidden.f_select(1, 0)?.f_to_kind(Kind::Float),
                    }
                });
                joined(pooled.collect::<Result<_, _>>()?)
            }
            (Self::Ragged { starts, rows, .. }, Pooling::Mean) => {
                let hidden = hidden.f_to_kind(Kind::Float)?;
                let none = None::<Tensor>;
                let bags = Tensor::f_embedding_bag(
                    &hidden, rows, starts, false, BAG_MEAN, false, none, true,
                )?;
                Ok(bags.0)
            }
            (Self::Ragged { starts, .. }, Pooling::Cls) => {
                let firsts = starts.f_narrow(0, 0, starts.size1()? - 1)?;
                hidden.f_index_select(0, &firsts)?.f_to_kind(Kind::Float)
            }
        }
    }
}

impl Group {
    /// Its rows of `[tokens, width]`.
    fn rows_of(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_narrow(0, self.rows.start, self.rows.end - self.rows.start)
    }

    /// Its rows of `[tokens, width]` as `[texts, length, width]`.
    fn of(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.rows_of(x)?.f_view([self.texts, self.length, -1])
    }
}

/// `[texts, length, 3 * width]` to `[texts * length, width]`.
fn attention(projected: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let (texts, length, width) = projected.size3()?;
    let parts = projected.f_view([texts, length, 3, heads, width / 3 / heads])?;
    let part = |index: i64| parts.i((.., .., index)).f_transpose(1, 2);
    Tensor::f_scaled_dot_product_attention(
        &part(0)?,
        &part(1)?,
        &part(2)?,
        None::<Tensor>,
        0.0,
        false,
        None,
        false,
    )?
    .f_transpose(1, 2)?
    .f_reshape([texts * length, width / 3])
}

fn joined(mut parts: Vec<Tensor>) -> Result<Tensor, TchError> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::f_cat(&parts, 0) }
}

fn groups(texts: &[Arc<[u32]>]) -> Vec<Group> {
    let mut start = 0;
    texts
        .chunk_by(|a, b| a.len() == b.len())
        .map(|run| {
            let (texts, length) = (count(run).into(), count(&run[0]).into());
            let rows = start..start + texts * length;
            start = rows.end;
            Group { rows, texts, length }
        })
        .collect()
}

fn count<T>(slice: &[T]) -> i32 {
    number(slice.len())
}

/// No batch has more than fits.
pub fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn texts<const N: usize>(lengths: [u32; N]) -> Vec<Arc<[u32]>> {
        lengths.map(|length| (10..10 + length).collect()).into()
    }

    #[test]
    fn batches_are_filled_to_few_sizes_by_little() {
        let all = 1..=512;
        let sizes: BTreeSet<usize> = all.clone().map(|tokens| tokens + filling(tokens)).collect();
        assert_eq!(sizes.len(), UNFILLED_ROWS + 4 * SIZES);
        assert!(all.clone().all(|tokens| filling(tokens) * 8 < tokens));
        let (filled, tokens) = all.fold((0, 0), |(a, b), tokens| (a + filling(tokens), b + tokens));
        assert!(filled * 25 < tokens, "{filled} of {tokens}");
        assert_eq!(filling(16_385), 63);
    }

    #[test]
    fn what_fills_a_batch_up_changes_no_text() {
        let texts = texts([3, 3, 4]);
        let exact = Batch::new(&texts, 0, Device::Cpu).unwrap();
        let filled = Batch::new(&texts, 5, Device::Cpu).unwrap();
        assert_eq!(filled.ids.size(), [15]);
        assert_eq!(filled.places.size(), [15]);
        let projected = Tensor::randn([15, 24], (Kind::Float, Device::Cpu));
        let attended = |batch: &Batch, rows| batch.layout.attend(&projected.narrow(0, 0, rows), 2);
        let (one, other) = (attended(&exact, 10).unwrap(), attended(&filled, 15).unwrap());
        assert!(one.equal(&other.narrow(0, 0, 10)));
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let of_texts = filled.layout.pool(&other, pooling).unwrap().narrow(0, 0, 3);
            assert!(exact.layout.pool(&one, pooling).unwrap().equal(&of_texts), "{pooling:?}");
        }
    }

    #[test]
    fn texts_are_pooled_alike_in_groups_and_in_one_piece() {
        let texts = texts([2, 2, 5, 1]);
        let hidden = Tensor::randn([10, 8], (Kind::Float, Device::Cpu));
        let numbers = Tensor::from_slice(&in_one_piece(&texts, 10, 4));
        let ragged = Batch::in_one_piece(&numbers, 10, 5).unwrap();
        let grouped = Batch::new(&texts, 0, Device::Cpu).unwrap();
        for (one, other) in [(&ragged.ids, &grouped.ids), (&ragged.places, &grouped.places)] {
            assert!(one.equal(other));
        }
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let [a, b] = [&ragged, &grouped].map(|it| it.layout.pool(&hidden, pooling).unwrap());
            assert_eq!(a.size(), [4, 8]);
            assert!(a.allclose(&b, 1e-6, 1e-6, false), "{pooling:?}");
        }
    }

    #[test]
    fn room_that_texts_leave_is_a_text_behind_them() {
        let numbers = in_one_piece(&texts([2, 3]), 8, 4);
        assert_eq!(numbers[..8], [10, 11, 10, 11, 12, 0, 0, 0]);
        assert_eq!(numbers[8..16], [0, 1, 0, 1, 2, 0, 0, 0]);
        assert_eq!(numbers[16..24], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers[24..], [0, 2, 5, 5, 8]);
        let hidden = Tensor::ones([8, 3], (Kind::Float, Device::Cpu));
        let batch = Batch::in_one_piece(&Tensor::from_slice(&numbers), 8, 8).unwrap();
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let pooled = batch.layout.pool(&hidden, pooling).unwrap();
            let of_texts = pooled.narrow(0, 0, 2);
            assert!(of_texts.equal(&of_texts.ones_like()), "{pooling:?}");
        }
    }
}
