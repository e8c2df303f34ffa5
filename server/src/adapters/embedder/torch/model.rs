//! The encoder: BERT over raw tensors, mean pooling or that of the first token, L2.
//!
//! Texts are not padded to the length of others. The rows of all of a batch lie one after the other, so
//! that everything but attention is one operation over all tokens whatever the lengths. On a CPU attention runs once
//! per distinct length, without a mask, so that a text's vector does not depend on its company. On a
//! GPU, where each call costs more than what it computes, it runs once over all.
//!
//! # Source
//! Devlin et al. 2018, "BERT" (arXiv:1810.04805); pooling as in Reimers and Gurevych 2019,
//! "Sentence-BERT", section 3 (arXiv:1908.10084).

use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};

use super::LoadError;
use super::few::{self, Few};
use super::files::{Pooling, Shape, Weights};
use super::layout::{Batch, Layout, filling, number, sizes};
use super::linear::{Linear, Range as Extent, Scale};

pub struct Bert {
    words: Tensor,
    /// Position and token type; every token is of type 0.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    shape: Shape,
    pooling: Pooling,
    device: Device,
    /// The same for few tokens, where there is such code.
    few: Option<Few>,
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
        let mut bert = Self {
            words: words.f_to_device(device)?,
            positions: positions.f_add(&types.f_get(0)?)?.f_to_device(device)?,
            norm: Norm::new(weights, "embeddings", &shape, device)?,
            layers,
            shape,
            pooling,
            device,
            few: None,
        };
        bert.take_few()?;
        Ok(bert)
    }

    /// Makes of the layers' panels, if they have some, what embeds few tokens.
    fn take_few(&mut self) -> Result<(), TchError> {
        let norm = self.norm.numbers()?;
        let layers: Option<Vec<_>> =
            self.layers.iter_mut().map(Layer::take_few).collect::<Result<_, _>>()?;
        let tables = [&self.words, &self.positions];
        let heads = self.shape.heads as usize;
        self.few = layers.and_then(|layers| Few::new(tables, norm, layers, heads, self.pooling));
        Ok(())
    }

    /// What embeds few tokens, for any thread; idle CPUs can help with that.
    pub fn few(&self) -> Option<Few> {
        self.few.as_ref().map(Few::share)
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
            few: self.few.as_ref().filter(|_| device == Device::Cpu).map(Few::share),
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
        let (tokens, _) = sizes(texts);
        if let Some(few) = self.few.as_ref().filter(|_| tokens <= few::MOST_TOKENS) {
            return few.embed(texts);
        }
        let batch = Batch::new(texts, filling(tokens), self.device)?;
        self.rows_of(&self.forward(&batch)?, texts.len())
    }

    /// The vectors of a batch's texts, where the model is.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor, TchError> {
        let mut hidden = self.look_up(batch)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &batch.layout, self.shape.heads)?.output;
        }
        let pooled = batch.layout.pool(&hidden, self.pooling)?;
        let norms = pooled.f_norm_scalaropt_dim(2, 1, true)?.f_clamp_min(1e-12)?;
        pooled.f_div(&norms)
    }

    /// The first so many vectors.
    pub fn rows_of(&self, vectors: &Tensor, texts: usize) -> Result<Vec<Arc<[f32]>>, TchError> {
        let rows = vectors
            .f_narrow(0, 0, number(texts).into())?
            .f_to_device(Device::Cpu)?
            .f_contiguous()?;
        let mut numbers = vec![0.0_f32; texts * self.dimension()];
        let count = numbers.len();
        rows.f_copy_data(&mut numbers, count)?;
        Ok(numbers.chunks_exact(self.dimension()).map(Arc::from).collect())
    }

    /// Puts plain linear layers into eight bits, for inputs in the range of those of `texts`.
    pub fn quantize(self, texts: &[Arc<[u32]>]) -> Result<Self, TchError> {
        let _guard = tch::no_grad_guard();
        let mut extents = vec![[Extent::default(); 4]; self.layers.len()];
        for text in texts.chunks(1) {
            let batch = Batch::new(text, 0, self.device)?;
            let mut hidden = self.look_up(&batch)?;
            for (layer, extents) in self.layers.iter().zip(&mut extents) {
                let steps = layer.forward(&hidden, &batch.layout, self.shape.heads)?;
                let inputs = [&hidden, &steps.attended, &steps.normed, &steps.inner];
                for (extent, input) in extents.iter_mut().zip(inputs) {
                    extent.widen(input)?;
                }
                hidden = steps.output;
            }
        }
        let layers = self.layers.into_iter().zip(extents);
        let layers = layers.map(|(layer, inputs)| layer.quantize(inputs));
        let mut quantized = Self { layers: layers.collect::<Result<_, _>>()?, ..self };
        quantized.take_few()?;
        Ok(quantized)
    }

    pub fn dimension(&self) -> usize {
        self.shape.hidden as usize
    }

    /// What the first layer is given.
    fn look_up(&self, batch: &Batch) -> Result<Tensor, TchError> {
        let words = self.words.f_index_select(0, &batch.ids)?;
        let positions = self.positions.f_index_select(0, &batch.places)?;
        self.norm.forward(&words.f_add(&positions)?)
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

    fn take_few(&mut self) -> Result<Option<few::Layer>, TchError> {
        let linears = [
            &mut self.query_key_value,
            &mut self.attention_output,
            &mut self.intermediate,
            &mut self.output,
        ];
        let [Some(query_key_value), Some(attention_output), Some(intermediate), Some(output)] =
            linears.map(Linear::take_panels)
        else {
            return Ok(None);
        };
        let attention_norm = self.attention_norm.numbers()?;
        let output_norm = self.output_norm.numbers()?;
        Ok(Some(few::Layer {
            query_key_value,
            attention_output,
            attention_norm,
            intermediate,
            output,
            output_norm,
        }))
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

    fn numbers(&self) -> Result<few::Norm, TchError> {
        let numbers = |tensor: &Tensor| Vec::try_from(&tensor.f_to_kind(Kind::Float)?);
        let (weight, bias) = (numbers(&self.weight)?, numbers(&self.bias)?);
        Ok(few::Norm { weight, bias, eps: self.eps as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::adapters::embedder::torch::{cpu_has_bf16, cpu_has_int8};

    const WIDTH: i64 = 64;

    fn random(shape: &[i64], kind: Kind) -> Tensor {
        (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.3).to_kind(kind)
    }

    fn norm(kind: Kind) -> Norm {
        let weight = (random(&[WIDTH], Kind::Float) + 1.0).to_kind(kind);
        Norm { weight, bias: random(&[WIDTH], kind), eps: 1e-12 }
    }

    fn bert(kind: Kind, pooling: Pooling, new_linear: fn(Tensor, Tensor) -> Linear) -> Bert {
        let linear =
            |to: i64, from: i64| new_linear(random(&[to, from], kind), random(&[to], kind));
        let layer = |_| Layer {
            query_key_value: linear(3 * WIDTH, WIDTH),
            attention_output: linear(WIDTH, WIDTH),
            attention_norm: norm(kind),
            intermediate: linear(2 * WIDTH, WIDTH),
            output: linear(WIDTH, 2 * WIDTH),
            output_norm: norm(kind),
        };
        let shape = json!({
            "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 2 * WIDTH, "max_position_embeddings": 64, "vocab_size": 100,
            "type_vocab_size": 1, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        });
        let mut bert = Bert {
            words: random(&[100, WIDTH], kind),
            positions: random(&[64, WIDTH], kind),
            norm: norm(kind),
            layers: (0..3).map(layer).collect(),
            shape: serde_json::from_value(shape).unwrap(),
            pooling,
            device: Device::Cpu,
            few: None,
        };
        bert.take_few().unwrap();
        bert
    }

    fn texts(lengths: &[u32]) -> Vec<Arc<[u32]>> {
        lengths
            .iter()
            .map(|&length| (0..length).map(|n| (7 * n + length) % 100).collect())
            .collect()
    }

    /// The smallest cosine between what the code for few tokens gives and what that for many does.
    fn likeness(bert: &Bert) -> f32 {
        let lengths: [&[u32]; 6] = [&[1], &[10], &[2, 2, 9], &[32], &[15, 17], &[1; 32]];
        let cosine = |lengths: &[u32]| {
            let texts = texts(lengths);
            assert!(bert.few.is_some() && lengths.iter().sum::<u32>() as usize <= few::MOST_TOKENS);
            let few = bert.embed(&texts).unwrap();
            let batch = Batch::new(&texts, 0, Device::Cpu).unwrap();
            let many = bert.rows_of(&bert.forward(&batch).unwrap(), texts.len()).unwrap();
            assert_eq!(few.len(), many.len());
            let dot =
                |(a, b): (&Arc<[f32]>, &Arc<[f32]>)| a.iter().zip(&**b).map(|(a, b)| a * b).sum();
            few.iter().zip(&many).map(dot).fold(1.0, f32::min)
        };
        lengths.map(cosine).into_iter().fold(1.0, f32::min)
    }

    #[test]
    fn few_tokens_get_the_vectors_that_they_get_among_many() {
        tch::set_num_threads(1);
        let _guard = tch::no_grad_guard();
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let fp32 = bert(Kind::Float, pooling, Linear::new);
            if fp32.few().is_none() {
                return println!("not run: this CPU has no AVX-512");
            }
            assert!(likeness(&fp32) > 0.999_999, "fp32: {}", likeness(&fp32));
            assert!(likeness(&fp32.on(Device::Cpu).unwrap()) > 0.999_999);
            if cpu_has_bf16() {
                let bf16 = bert(Kind::BFloat16, pooling, Linear::new);
                // Both round their inputs, in other places.
                assert!(likeness(&bf16) > 0.99, "bf16: {}", likeness(&bf16));
            }
            if cpu_has_int8() {
                let int8 = bert(Kind::Float, pooling, Linear::plain);
                let int8 = int8.quantize(&texts(&[3, 20, 40])).unwrap();
                assert!(likeness(&int8) > 0.999, "int8: {}", likeness(&int8));
            }
        }
    }

    #[test]
    fn few_tokens_that_the_model_does_not_have_are_an_error() {
        let bert = bert(Kind::Float, Pooling::Mean, Linear::new);
        assert!(bert.embed(&[Arc::from([1, 100])]).is_err());
    }
}
