//! The model against sentence-transformers, and the way callers see it.
#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

mod families;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use serde::Deserialize;
use sextant_server::adapters::embedder::device::Device;
use sextant_server::adapters::embedder::precision::Precision;
use sextant_server::adapters::embedder::torch::{LoadError, TorchEmbedder, TorchOptions};
use sextant_server::domain::EmbeddingVersion;
use sextant_server::metrics::Metrics;
use sextant_server::ports::{Class, EmbedError, Embedder, Embedding, Urgency};

#[derive(Deserialize)]
struct Reference {
    texts: Vec<ReferenceText>,
}

#[derive(Deserialize)]
struct ReferenceText {
    text: Arc<str>,
    tokens: usize,
    truncated: bool,
    vector: String,
}

impl ReferenceText {
    fn vector(&self) -> Vec<f32> {
        let bytes = STANDARD.decode(&self.vector).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn reference() -> Vec<ReferenceText> {
    serde_json::from_str::<Reference>(include_str!("../reference/vectors.json")).unwrap().texts
}

fn options() -> TorchOptions {
    let model_dir =
        std::env::var_os("MODEL_DIR").expect("MODEL_DIR, which `make test` sets").into();
    TorchOptions { model_dir, device: Device::Cpu, workers: 2, ..TorchOptions::default() }
}

/// One for the tests that only embed.
static SHARED: LazyLock<TorchEmbedder> = LazyLock::new(|| load().0);

fn load() -> (TorchEmbedder, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let options = options();
    (TorchEmbedder::load(&options, Arc::clone(&metrics)).unwrap(), metrics)
}

fn relaxed(class: Class) -> Urgency {
    Urgency { class, deadline: Instant::now() + Duration::from_mins(5) }
}

async fn one(embedder: &TorchEmbedder, text: &Arc<str>) -> Embedding {
    let texts = vec![Arc::clone(text)];
    embedder.embed(texts, relaxed(Class::Interactive)).await.unwrap().remove(0)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn every_reference_text_has_the_vector_of_sentence_transformers() {
    for expected in reference() {
        let found = one(&SHARED, &expected.text).await;
        let beginning: String = expected.text.chars().take(40).collect();
        let cosine = cosine(&found.vector, &expected.vector());
        assert!(cosine > 0.999_99, "{beginning:?}: {cosine}");
        let difference = largest_difference(&found.vector, &expected.vector());
        assert!(difference < 1e-5, "{beginning:?}: {difference}");
        let norm = found.vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "{beginning:?}: {norm}");
        assert_eq!((found.tokens, found.truncated), (expected.tokens, expected.truncated));
    }
}

#[tokio::test]
async fn a_batch_does_not_change_the_vectors_of_its_texts() {
    let expected = reference();
    let texts: Vec<_> = expected.iter().map(|expected| Arc::clone(&expected.text)).collect();
    let batch = SHARED.embed(texts, relaxed(Class::Bulk)).await.unwrap();
    assert_eq!(batch.len(), expected.len());
    for (found, expected) in batch.iter().zip(&expected) {
        assert!(largest_difference(&found.vector, &expected.vector()) < 1e-5);
        let alone = one(&SHARED, &expected.text).await;
        assert!(largest_difference(&found.vector, &alone.vector) < 1e-5);
        assert_eq!((found.tokens, found.truncated), (alone.tokens, alone.truncated));
    }
}

#[tokio::test]
async fn a_text_above_the_limit_is_cut_and_says_so() {
    let long: Arc<str> = "word ".repeat(2_000).into();
    let huge: Arc<str> = "word ".repeat(200_000).into();
    let (long, huge) = (one(&SHARED, &long).await, one(&SHARED, &huge).await);
    assert_eq!((long.tokens, long.truncated), (SHARED.model().max_tokens, true));
    assert_eq!(long, huge);
    assert!(!one(&SHARED, &"a short one".into()).await.truncated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_equal_texts_at_once_are_embedded_a_few_times_and_counted() {
    let (embedder, metrics) = load();
    let text: Arc<str> = "the same question from everybody".into();
    let calls = (0..1_000).map(|_| one(&embedder, &text));
    let found = join_all(calls).await;
    assert!(found.iter().all(|embedding| embedding == &found[0]));
    let count = |outcome: &str| metrics.embed_texts.with_label_values(&[outcome]).get();
    assert_eq!(count("embedded") + count("joined"), 1_000);
    // A call that comes after the first answer starts a second one.
    assert!(count("joined") >= 500, "{} joined", count("joined"));
}

#[tokio::test]
async fn equal_texts_of_one_call_are_embedded_once() {
    let (embedder, metrics) = load();
    let text: Arc<str> = "again and again".into();
    let found = embedder.embed(vec![text; 1_000], relaxed(Class::Bulk)).await.unwrap();
    assert_eq!(found.len(), 1_000);
    assert_eq!(metrics.embed_texts.with_label_values(&["embedded"]).get(), 1);
    assert_eq!(metrics.embed_texts.with_label_values(&["joined"]).get(), 999);
    assert_eq!(metrics.embed_batch_size.get_sample_count(), 1);
}

#[tokio::test]
async fn a_mixed_load_is_computed_with_little_padding() {
    let (embedder, metrics) = load();
    let texts = (1..60).map(|words| format!("{words} {}", "word ".repeat(words * 4)).into());
    let found = embedder.embed(texts.collect(), relaxed(Class::Bulk)).await.unwrap();
    let tokens = found.iter().map(|embedding| embedding.tokens).sum::<usize>() as f64;
    let counted = |kind: &str| metrics.embed_tokens.with_label_values(&[kind]).get();
    let padding = counted("padding");
    assert!((counted("text") - tokens).abs() < 0.5);
    assert!(padding < 0.05 * tokens, "{padding} of {tokens}");
    assert!((metrics.embed_batch_tokens.get_sample_sum() - tokens - padding).abs() < 0.5);
}

#[tokio::test]
async fn no_texts_are_no_embeddings() {
    assert_eq!(SHARED.embed(Vec::new(), relaxed(Class::Bulk)).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_call_that_is_late_already_is_refused() {
    let urgency = Urgency { class: Class::Interactive, deadline: Instant::now() };
    let found = SHARED.embed(vec!["late".into()], urgency).await;
    assert_eq!(found, Err(EmbedError::DeadlineExceeded));
}

#[tokio::test]
async fn a_closed_embedder_answers_that_it_has_stopped() {
    let (embedder, _) = load();
    assert_eq!(embedder.health(), Ok(()));
    assert!(embedder.close(Duration::from_mins(1)));
    let found = embedder.embed(vec!["too late".into()], relaxed(Class::Interactive)).await;
    assert_eq!(found, Err(EmbedError::Stopped));
    assert!(embedder.health().is_err());
}

#[test]
fn the_model_is_known_by_its_content() {
    let model = SHARED.model();
    assert_eq!((model.version.dimension, model.max_tokens), (384, 256));
    assert_eq!((model.device.as_str(), model.version.hash.len()), ("cpu", 64));
    assert_eq!(model.version.date.len(), 10);
    assert!(load().0.model().version.is_compatible(&model.version));
}

#[tokio::test]
async fn bf16_gives_other_vectors_of_the_same_meaning() {
    if let Some(version) = of_less_precision(Precision::Bf16, "bf16-", 0.999).await {
        assert_eq!(version.hash, format!("bf16-{}", SHARED.model().version.hash));
    }
}

#[tokio::test]
async fn int8_gives_other_vectors_of_the_same_meaning() {
    of_less_precision(Precision::Int8, "int8-", 0.97).await;
}

/// The model's version, where the CPU has the precision.
async fn of_less_precision(
    precision: Precision,
    prefix: &str,
    least: f64,
) -> Option<EmbeddingVersion> {
    let load = || TorchEmbedder::load(&TorchOptions { precision, ..options() }, Arc::default());
    let less = match load() {
        Err(error @ (LoadError::NoBf16 | LoadError::NoInt8)) => {
            println!("not run: {error}");
            return None;
        }
        loaded => loaded.unwrap(),
    };
    let (version, full) = (&less.model().version, &SHARED.model().version);
    assert_eq!(version.hash.strip_prefix(prefix).unwrap().len(), full.hash.len());
    assert_eq!(version, &load().unwrap().model().version);
    assert!(!version.is_compatible(full));
    for ReferenceText { text, .. } in reference() {
        let (of_less, of_32) = (one(&less, &text).await, one(&SHARED, &text).await);
        let cosine = cosine(&of_less.vector, &of_32.vector);
        assert!(cosine > least, "{cosine}: {text:.40}");
        let length: f32 = of_less.vector.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
        assert_ne!(of_less.vector, of_32.vector, "it was computed with 32 bits");
    }
    Some(version.clone())
}

#[tokio::test]
async fn a_gpu_gives_the_vectors_of_a_cpu() {
    let texts: Vec<_> = reference().into_iter().map(|reference| reference.text).collect();
    for (precision, least) in [(Precision::Fp32, 0.999_99), (Precision::Bf16, 0.999)] {
        let options = TorchOptions { device: Device::AllCuda, precision, workers: 0, ..options() };
        let gpu = match TorchEmbedder::load(&options, Arc::default()) {
            Err(error @ LoadError::NoCuda { .. }) => return println!("not run: {error}"),
            loaded => loaded.unwrap(),
        };
        assert!(gpu.model().device.starts_with("cuda:0"), "{}", gpu.model().device);
        let found = gpu.embed(texts.clone(), relaxed(Class::Bulk)).await.unwrap();
        for (text, found) in texts.iter().zip(found) {
            for found in [found, one(&gpu, text).await] {
                let cosine = cosine(&found.vector, &one(&SHARED, text).await.vector);
                assert!(cosine > least, "{precision:?}: {cosine}: {text:.40}");
            }
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_that_says_so() {
    let options = TorchOptions { device: Device::Cuda(99), ..options() };
    let error = TorchEmbedder::load(&options, Arc::default()).err().unwrap();
    assert!(matches!(error, LoadError::NoCuda { asked: Device::Cuda(99), .. }), "{error}");
}

#[test]
fn a_broken_folder_is_refused_with_the_name_of_the_file() {
    let source = options().model_dir;
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let cases = HashMap::from([
        ("config.json", vec![None, Some("{".to_owned()), Some(config.replace("gelu", "relu"))]),
        ("tokenizer.json", vec![None, Some("{}".to_owned())]),
        ("model.safetensors", vec![None, Some(String::new()), Some("no weights".to_owned())]),
    ]);
    for (name, contents) in cases {
        for content in contents {
            let folder = tempfile::tempdir().unwrap();
            for file in ["config.json", "tokenizer.json", "model.safetensors"] {
                if file != name {
                    std::os::unix::fs::symlink(source.join(file), folder.path().join(file))
                        .unwrap();
                }
            }
            if let Some(content) = &content {
                std::fs::write(folder.path().join(name), content).unwrap();
            }
            let options = TorchOptions { model_dir: folder.path().to_owned(), ..options() };
            let error = TorchEmbedder::load(&options, Arc::default()).err().unwrap().to_string();
            assert!(error.contains(name), "{content:?}: {error}");
        }
    }
}
