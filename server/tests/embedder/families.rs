//! Models of the BERT family from a folder: tiny ones with random weights, made here, against a
//! plain computation in `f64`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sextant_server::adapters::embedder::torch::{LoadError, TorchEmbedder, TorchOptions};
use sextant_server::ports::{Class, Embedder, Prompts};
use tempfile::TempDir;

use super::{cosine, one, relaxed};

const HIDDEN: usize = 32;
const INNER: usize = 48;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const POSITIONS: usize = 512;
const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", "passage", "bend", "the", "knees", "push",
    "away",
];
const EPS: f64 = 1e-6;

/// Row by row.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    numbers: Vec<f64>,
}

impl Matrix {
    fn row(&self, row: usize) -> &[f64] {
        &self.numbers[row * self.columns..][..self.columns]
    }
}

/// A model with its weights by name.
struct Tiny {
    tensors: BTreeMap<String, Matrix>,
}

impl Tiny {
    fn random(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, rows: usize, columns: usize| {
            // As the file keeps them.
            let number = |_| f64::from(random.random_range(-0.5_f32..0.5));
            let numbers = (0..rows * columns).map(number).collect();
            tensors.insert(name, Matrix { rows, columns, numbers });
        };
        let table = |name: &str| format!("embeddings.{name}_embeddings.weight");
        add(table("word"), WORDS.len(), HIDDEN);
        add(table("position"), POSITIONS, HIDDEN);
        add(table("token_type"), 2, HIDDEN);
        let mut layers = vec![("embeddings.LayerNorm".to_owned(), HIDDEN, 0)];
        for layer in 0..LAYERS {
            for (part, to, from) in [
                ("attention.self.query", HIDDEN, HIDDEN),
                ("attention.self.key", HIDDEN, HIDDEN),
                ("attention.self.value", HIDDEN, HIDDEN),
                ("attention.output.dense", HIDDEN, HIDDEN),
                ("attention.output.LayerNorm", HIDDEN, 0),
                ("intermediate.dense", INNER, HIDDEN),
                ("output.dense", HIDDEN, INNER),
                ("output.LayerNorm", HIDDEN, 0),
            ] {
                layers.push((format!("encoder.layer.{layer}.{part}"), to, from));
            }
        }
        for (name, to, from) in layers {
            // A norm has one weight a number.
            add(format!("{name}.weight"), to, from.max(1));
            add(format!("{name}.bias"), to, 1);
        }
        Self { tensors }
    }

    /// As `sentence-transformers` would write it.
    fn save(&self, folder: &Path) {
        let write = |name: &str, value: &Value| {
            std::fs::write(folder.join(name), value.to_string()).unwrap();
        };
        write(
            "config.json",
            &json!({
                "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN,
                "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
                "vocab_size": WORDS.len(), "type_vocab_size": 2, "layer_norm_eps": EPS,
            }),
        );
        let vocabulary: BTreeMap<_, _> = WORDS.iter().zip(0..).collect();
        let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
        let known =
            |token: &str| json!({"id": token, "ids": [vocabulary[&token]], "tokens": [token]});
        write(
            "tokenizer.json",
            &json!({
                "version": "1.0",
                "normalizer": {
                    "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true,
                },
                "pre_tokenizer": {"type": "BertPreTokenizer"},
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {"[CLS]": known("[CLS]"), "[SEP]": known("[SEP]")},
                },
                "model": {
                    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": vocabulary,
                },
            }),
        );
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, tensor) in &self.tensors {
            let begin = data.len();
            data.extend(tensor.numbers.iter().flat_map(|number| (*number as f32).to_le_bytes()));
            let is_flat = name.ends_with("bias") || name.contains("LayerNorm");
            let shape =
                if is_flat { json!([tensor.rows]) } else { json!([tensor.rows, tensor.columns]) };
            let entry =
                json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert(name.clone(), entry);
        }
        let header = Value::from(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length, header.as_bytes(), &data].concat();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
    }

    /// Vectors of all tokens, one a row.
    ///
    /// # Source
    /// Devlin et al. 2018, "BERT" (arXiv:1810.04805); Vaswani et al. 2017 (arXiv:1706.03762).
    fn tokens(&self, words: &[&str]) -> Vec<Vec<f64>> {
        let of = |table: &str, row: usize| {
            self.tensors[&format!("embeddings.{table}_embeddings.weight")].row(row)
        };
        let mut hidden: Vec<Vec<f64>> = Vec::new();
        for (place, word) in words.iter().enumerate() {
            let id = WORDS.iter().position(|known| known == word).unwrap();
            let parts = [of("word", id), of("position", place), of("token_type", 0)];
            hidden.push((0..HIDDEN).map(|i| parts.iter().map(|part| part[i]).sum()).collect());
        }
        for row in &mut hidden {
            self.norm("embeddings", row);
        }
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let all = |part: &str, rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
                rows.iter().map(|row| self.linear(&name(part), row)).collect()
            };
            let [queries, keys, values] = ["query", "key", "value"]
                .map(|part| all(&format!("attention.self.{part}"), &hidden));
            let width = HIDDEN / HEADS;
            let mut attended = vec![vec![0.0; HIDDEN]; hidden.len()];
            for head in 0..HEADS {
                let part = |row: &Vec<f64>| row[head * width..][..width].to_vec();
                for (row, query) in queries.iter().enumerate() {
                    let score = |key: &Vec<f64>| {
                        let dot: f64 = part(query).iter().zip(part(key)).map(|(a, b)| a * b).sum();
                        (dot / (width as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let sum: f64 = scores.iter().sum();
                    for (score, value) in scores.iter().zip(&values) {
                        for (i, number) in part(value).iter().enumerate() {
                            attended[row][head * width + i] += score / sum * number;
                        }
                    }
                }
            }
            let projected = all("attention.output.dense", &attended);
            self.add_and_norm(&name("attention.output"), &mut hidden, &projected);
            let mut inner = all("intermediate.dense", &hidden);
            inner.iter_mut().flatten().for_each(|x| *x = gelu(*x));
            let projected = all("output.dense", &inner);
            self.add_and_norm(&name("output"), &mut hidden, &projected);
        }
        hidden
    }

    fn add_and_norm(&self, name: &str, hidden: &mut [Vec<f64>], more: &[Vec<f64>]) {
        for (row, more) in hidden.iter_mut().zip(more) {
            row.iter_mut().zip(more).for_each(|(x, more)| *x += more);
            self.norm(name, row);
        }
    }

    fn norm(&self, name: &str, row: &mut [f64]) {
        let of = |kind: &str| &self.tensors[&format!("{name}.LayerNorm.{kind}")].numbers;
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        for (i, x) in row.iter_mut().enumerate() {
            *x = (*x - mean) / (variance + EPS).sqrt() * of("weight")[i] + of("bias")[i];
        }
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.tensors[&format!("{name}.weight")];
        let bias = &self.tensors[&format!("{name}.bias")].numbers;
        let one = |row: usize| -> f64 { weight.row(row).iter().zip(x).map(|(w, x)| w * x).sum() };
        (0..weight.rows).map(|row| one(row) + bias[row]).collect()
    }
}

/// # Source
/// Hendrycks and Gimpel 2016 (arXiv:1606.08415). The error function by its Maclaurin series, which
/// is exact enough for the small numbers here.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..60 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    x * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI) / 2.0
}

fn folder(files: &[(&str, Value)]) -> (Tiny, TempDir) {
    let (tiny, folder) = (Tiny::random(7), tempfile::tempdir().unwrap());
    tiny.save(folder.path());
    for (name, value) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    }
    (tiny, folder)
}

fn load(folder: &TempDir, change: impl Fn(&mut TorchOptions)) -> Result<TorchEmbedder, LoadError> {
    let mut options =
        TorchOptions { model_dir: folder.path().to_owned(), workers: 1, ..super::options() };
    change(&mut options);
    TorchEmbedder::load(&options, Arc::default())
}

fn pooled_by(mode: &str) -> (&'static str, Value) {
    let mut config = json!({
        "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": false,
        "pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": false,
        "include_prompt": true,
    });
    config[format!("pooling_mode_{mode}")] = true.into();
    ("1_Pooling/config.json", config)
}

#[tokio::test]
async fn a_model_from_a_folder_gives_the_vectors_of_a_plain_computation() {
    let words = ["[CLS]", "bend", "the", "knees", "[SEP]"];
    for mode in ["mean_tokens", "cls_token"] {
        let (tiny, folder) = folder(&[pooled_by(mode)]);
        let embedder = load(&folder, |_| ()).unwrap();
        assert_eq!(embedder.model().version.dimension, HIDDEN);
        let rows = tiny.tokens(&words);
        let expected: Vec<f32> = (0..HIDDEN)
            .map(|i| match mode {
                "cls_token" => rows[0][i],
                _ => rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64,
            })
            .map(|x| x as f32)
            .collect();
        let found = one(&embedder, &"Bend the knees".into()).await;
        assert_eq!(found.tokens, words.len());
        let length = cosine(&expected, &expected).sqrt();
        let cosine = cosine(&expected, &found.vector) / length;
        assert!(cosine > 0.999_999, "{mode}: {cosine}");
    }
}

#[tokio::test]
async fn a_model_of_512_tokens_reads_all_of_them() {
    let config = ("tokenizer_config.json", json!({"model_max_length": 512}));
    let text: Arc<str> = "bend the knees push away ".repeat(200).into();
    let (_, folder) = folder(&[config]);
    let embedder = load(&folder, |_| ()).unwrap();
    let whole = one(&embedder, &text).await;
    assert_eq!((embedder.model().max_tokens, whole.tokens, whole.truncated), (512, 512, true));
    let (_, shorter) =
        self::folder(&[("sentence_bert_config.json", json!({"max_seq_length": 128}))]);
    let cut = one(&load(&shorter, |_| ()).unwrap(), &text).await;
    assert_eq!(cut.tokens, 128);
}

#[tokio::test]
async fn prompts_come_from_the_model_or_the_configuration_and_make_vectors_others() {
    let config = json!({"prompts": {"query": "query: ", "document": "passage: "}});
    let (_, with) = folder(&[("config_sentence_transformers.json", config)]);
    let (_, without) = folder(&[]);
    let prompts = |query: &str, passage: &str| Prompts {
        query: query.to_owned(),
        passage: passage.to_owned(),
    };
    let own = load(&with, |_| ()).unwrap();
    assert_eq!(own.model().prompts, prompts("query: ", "passage: "));
    let none = load(&without, |_| ()).unwrap();
    assert_eq!(none.model().prompts, Prompts::default());
    let given = load(&without, |options| {
        options.query_prompt = Some("query: ".to_owned());
        options.passage_prompt = Some("passage: ".to_owned());
    })
    .unwrap();
    assert_eq!(given.model().prompts, own.model().prompts);
    let taken_away = load(&with, |options| options.query_prompt = Some(String::new())).unwrap();
    assert_eq!(taken_away.model().prompts, prompts("", "passage: "));
    assert_eq!(own.model().version.hash, given.model().version.hash);
    assert_ne!(own.model().version.hash, none.model().version.hash);
    assert_ne!(own.model().version.hash, taken_away.model().version.hash);
    // Callers put them in front.
    let texts = vec!["bend".into(), own.model().prompts.of_query("bend")];
    let rows = own.embed(texts, relaxed(Class::Interactive)).await.unwrap();
    assert_eq!(rows[1].tokens, rows[0].tokens + 2);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (file, name) in [
        (("config.json", json!({"model_type": "xlm-roberta"})), "xlm-roberta"),
        (("config.json", json!({"model_type": "modernbert", "hidden_size": 8})), "modernbert"),
        (pooled_by("max_tokens"), "max_tokens"),
        (pooled_by("lasttoken"), "lasttoken"),
    ] {
        let (_, folder) = folder(&[file]);
        let error = load(&folder, |_| ()).err().unwrap();
        assert!(matches!(error, LoadError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}
