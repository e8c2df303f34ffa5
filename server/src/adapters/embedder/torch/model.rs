//! The encoder: BERT over raw tensors, mean pooling or that of the first token, L2.
//!
//! A batch has no padding. The rows of all its texts lie one after the other, so that everything
//! but attention is one operation over all tokens whatever the lengths. On a CPU attention runs once
//! per distinct length, without a mask, so that a text's vector does not depend on its company. On a
//! GPU, where each call costs more than what it computes, it runs once over all.
//!
//! # Source
//! Devlin et al. 2018, "BERT" (arXiv:1810.04805); pooling as in Reimers and Gurevych 2019,
//! "Sentence-BERT", section 3 (arXiv:1908.10084).

use std::ops::Range;
use std::sync::Arc;

use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::files::{Pooling, Shape, Weights};
use super::linear::{Linear, Range as Extent, Scale};
use super::{LoadError, cuda};

/// Of `embedding_bag`.
const BAG_MEAN: i64 = 1;

pub struct Bert {
    words: Tensor,
    /// Position and token type; every token is of type 0.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    shape: Shape,
    pooling: Pooling,
    device: Device,
}

struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

/// What a layer makes, one step after the other.
struct Steps {
    attended: Tensor,
    normed: Tensor,
    inner: Tensor,
    output: Tensor,
}

/// Where the texts of a batch lie in its rows.
enum Layout {
    /// One group after the other.
    Grouped(Vec<Group>),
    /// On a GPU: the first row of every text and the end of the last, all rows, in 32 bits; the
    /// length of the longest text.
    Ragged { starts: Tensor, rows: Tensor, longest: i64 },
}

/// The rows of the texts of one length.
struct Group {
    rows: Range<i64>,
    texts: i64,
    length: i64,
}

impl Bert {
    /// `new_linear` makes a layer of its weight and bias.
    pub fn new(
        weights: &mut Weights,
        shape: Shape,
        pooling: Pooling,
        device: Device,
        new_linear: impl Fn(Tensor, Tensor) -> Linear,
    ) -> Result<Self, LoadError> {
        let _guard = tch::no_grad_guard();
        let (hidden, inner) = (shape.hidden, shape.intermediate);
        let mut layers = Vec::new();
        for layer in 0..shape.layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let mut fused = Vec::new();
            for kind in ["weight", "bias"] {
                let size: &[i64] = if kind == "weight" { &[hidden, hidden] } else { &[hidden] };
                let mut parts = Vec::new();
                for part in ["query", "key", "value"] {
                    let part = name(&format!("attention.self.{part}.{kind}"));
                    parts.push(weights.take(&part, size)?);
                }
                fused.push(Tensor::f_cat(&parts, 0)?.f_to_device(device)?);
            }
            let bias = fused.swap_remove(1);
            let query_key_value = new_linear(fused.swap_remove(0), bias);
            let mut linear = |part: &str, to: i64, from: i64| -> Result<Linear, LoadError> {
                let weight = weights.take(&name(&format!("{part}.weight")), &[to, from])?;
                let bias = weights.take(&name(&format!("{part}.bias")), &[to])?;
                Ok(new_linear(weight.f_to_device(device)?, bias.f_to_device(device)?))
            };
            let attention_output = linear("attention.output.dense", hidden, hidden)?;
            let intermediate = linear("intermediate.dense", inner, hidden)?;
            let output = linear("output.dense", hidden, inner)?;
            layers.push(Layer {
                query_key_value,
                attention_output,
                attention_norm: Norm::new(weights, &name("attention.output"), &shape, device)?,
                intermediate,
                output,
                output_norm: Norm::new(weights, &name("output"), &shape, device)?,
            });
        }
        let words =
            weights.take("embeddings.word_embeddings.weight", &[shape.vocabulary, hidden])?;
        let positions = weights
            .take("embeddings.position_embeddings.weight", &[shape.max_positions, hidden])?;
        let types =
            weights.take("embeddings.token_type_embeddings.weight", &[shape.types, hidden])?;
        Ok(Self {
            words: words.f_to_device(device)?,
            positions: positions.f_add(&types.f_get(0)?)?.f_to_device(device)?,
            norm: Norm::new(weights, "embeddings", &shape, device)?,
            layers,
            shape,
            pooling,
            device,
        })
    }

    /// The same model for another thread or device: the weights are shared where they are there.
    pub fn on(&self, device: Device) -> Result<Self, TchError> {
        let layers = self.layers.iter().map(|layer| layer.on(device));
        Ok(Self {
            words: self.words.f_to_device(device)?,
            positions: self.positions.f_to_device(device)?,
            norm: self.norm.on(device)?,
            layers: layers.collect::<Result<_, _>>()?,
            shape: self.shape.clone(),
            pooling: self.pooling,
            device,
        })
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Embeds token ids, row `i` of the result for `texts[i]`. Texts of equal length must stand
    /// together, for speed only: on a CPU each run of one length is one call of attention.
    ///
    /// # Shapes
    /// `n` texts of 1 to `max_positions` ids below the vocabulary give `n` vectors of `hidden`
    /// numbers of norm 1.
    pub fn embed(&self, texts: &[Arc<[u32]>]) -> Result<Vec<Arc<[f32]>>, TchError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (mut hidden, layout) = self.look_up(texts)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &layout, self.shape.heads)?.output;
        }
        let pooled = layout.pool(&hidden, self.pooling)?;
        let norms = pooled.f_norm_scalaropt_dim(2, 1, true)?.f_clamp_min(1e-12)?;
        let rows = pooled.f_div(&norms)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut numbers = vec![0.0_f32; texts.len() * self.dimension()];
        let count = numbers.len();
        rows.f_copy_data(&mut numbers, count)?;
        Ok(numbers.chunks_exact(self.dimension()).map(Arc::from).collect())
    }

    /// Puts plain linear layers into eight bits, for inputs in the range of those of `texts`.
    pub fn quantize(self, texts: &[Arc<[u32]>]) -> Result<Self, TchError> {
        let _guard = tch::no_grad_guard();
        let mut extents = vec![[Extent::default(); 4]; self.layers.len()];
        for text in texts.chunks(1) {
            let (mut hidden, layout) = self.look_up(text)?;
            for (layer, extents) in self.layers.iter().zip(&mut extents) {
                let steps = layer.forward(&hidden, &layout, self.shape.heads)?;
                let inputs = [&hidden, &steps.attended, &steps.normed, &steps.inner];
                for (extent, input) in extents.iter_mut().zip(inputs) {
                    extent.widen(input)?;
                }
                hidden = steps.output;
            }
        }
        let layers = self.layers.into_iter().zip(extents);
        let layers = layers.map(|(layer, inputs)| layer.quantize(inputs));
        Ok(Self { layers: layers.collect::<Result<_, _>>()?, ..self })
    }

    pub fn dimension(&self) -> usize {
        self.shape.hidden as usize
    }

    /// What the first layer is given, and where the texts lie in it.
    fn look_up(&self, texts: &[Arc<[u32]>]) -> Result<(Tensor, Layout), TchError> {
        let mut numbers: Vec<i32> =
            texts.iter().flat_map(|ids| ids.iter().copied()).map(u32::cast_signed).collect();
        let tokens = count(&numbers);
        numbers.extend(texts.iter().flat_map(|ids| 0..count(ids)));
        let ragged = matches!(self.device, Device::Cuda(_));
        if ragged {
            numbers.extend(0..tokens);
            numbers.extend(starts(texts));
        }
        // All at once: on a GPU a copy costs what a kernel does.
        let mut numbers = Tensor::f_from_slice(&numbers)?;
        if ragged {
            numbers = cuda::upload(&numbers, self.device)?;
        }
        let part = |number: i32, length: i32| {
            numbers.f_narrow(0, i64::from(number * tokens), length.into())
        };
        let words = self.words.f_index_select(0, &part(0, tokens)?)?;
        let positions = self.positions.f_index_select(0, &part(1, tokens)?)?;
        let hidden = self.norm.forward(&words.f_add(&positions)?)?;
        let layout = if ragged {
            let longest = texts.iter().map(|ids| count(ids)).max().unwrap_or_default().into();
            let (rows, starts) = (part(2, tokens)?, part(3, count(texts) + 1)?);
            Layout::Ragged { starts, rows, longest }
        } else {
            Layout::Grouped(groups(texts))
        };
        Ok((hidden, layout))
    }
}

impl Layer {
    fn on(&self, device: Device) -> Result<Self, TchError> {
        Ok(Self {
            query_key_value: self.query_key_value.on(device)?,
            attention_output: self.attention_output.on(device)?,
            attention_norm: self.attention_norm.on(device)?,
            intermediate: self.intermediate.on(device)?,
            output: self.output.on(device)?,
            output_norm: self.output_norm.on(device)?,
        })
    }

    fn quantize(self, inputs: [Extent; 4]) -> Result<Self, TchError> {
        let [x, attended, normed, inner] = inputs;
        let inner = Scale::of(inner)?;
        Ok(Self {
            query_key_value: self.query_key_value.quantize(Scale::of(x)?, None)?,
            attention_output: self.attention_output.quantize(Scale::of(attended)?, None)?,
            intermediate: self.intermediate.quantize(Scale::of(normed)?, Some(inner.share()))?,
            output: self.output.quantize(inner, None)?,
            ..self
        })
    }

    fn forward(&self, x: &Tensor, layout: &Layout, heads: i64) -> Result<Steps, TchError> {
        let projected = self.query_key_value.forward(x)?;
        let attended = layout.attend(&projected, heads)?;
        let sum = self.attention_output.forward_add(&attended, x)?;
        let normed = self.attention_norm.forward(&sum)?;
        let inner = self.intermediate.forward_gelu(&normed)?;
        let output = self.output_norm.forward(&self.output.forward_add(&inner, &normed)?)?;
        Ok(Steps { attended, normed, inner, output })
    }
}

impl Norm {
    fn new(
        weights: &mut Weights,
        part: &str,
        shape: &Shape,
        device: Device,
    ) -> Result<Self, LoadError> {
        let mut take = |kind: &str| -> Result<Tensor, LoadError> {
            let tensor = weights.take(&format!("{part}.LayerNorm.{kind}"), &[shape.hidden])?;
            Ok(tensor.f_to_device(device)?)
        };
        Ok(Self { weight: take("weight")?, bias: take("bias")?, eps: shape.layer_norm_eps })
    }

    fn on(&self, device: Device) -> Result<Self, TchError> {
        let (weight, bias) = (self.weight.f_to_device(device)?, self.bias.f_to_device(device)?);
        Ok(Self { weight, bias, eps: self.eps })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

impl Layout {
    /// `[tokens, 3 * width]` to `[tokens, width]`.
    fn attend(&self, projected: &Tensor, heads: i64) -> Result<Tensor, TchError> {
        match self {
            Self::Grouped(groups) => {
                let attended = groups.iter().map(|group| attention(&group.of(projected)?, heads));
                joined(attended.collect::<Result<_, _>>()?)
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
    fn pool(&self, hidden: &Tensor, pooling: Pooling) -> Result<Tensor, TchError> {
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
    /// Its rows of `[tokens, width]` as `[texts, length, width]`.
    fn of(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_narrow(0, self.rows.start, self.rows.end - self.rows.start)?.f_view([
            self.texts,
            self.length,
            -1,
        ])
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

/// The first row of every text, and the end of the last.
fn starts(texts: &[Arc<[u32]>]) -> impl Iterator<Item = i32> {
    let lengths = texts.iter().map(|ids| count(ids));
    [0].into_iter().chain(lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    }))
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

/// No batch has more than fits.
fn count<T>(slice: &[T]) -> i32 {
    i32::try_from(slice.len()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_pooled_alike_in_groups_and_in_one_piece() {
        let texts: Vec<Arc<[u32]>> = [2, 2, 5, 1].map(|length| vec![0; length].into()).into();
        let hidden = Tensor::randn([10, 8], (Kind::Float, Device::Cpu));
        let starts: Vec<i32> = starts(&texts).collect();
        assert_eq!(starts, [0, 2, 4, 9, 10]);
        let rows: Vec<i32> = (0..10).collect();
        let (starts, rows) = (Tensor::from_slice(&starts), Tensor::from_slice(&rows));
        let ragged = Layout::Ragged { starts, rows, longest: 5 };
        let grouped = Layout::Grouped(groups(&texts));
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let pooled = [&ragged, &grouped].map(|layout| layout.pool(&hidden, pooling).unwrap());
            assert_eq!(pooled[0].size(), [4, 8]);
            assert!(pooled[0].allclose(&pooled[1], 1e-6, 1e-6, false), "{pooling:?}");
        }
    }
}
