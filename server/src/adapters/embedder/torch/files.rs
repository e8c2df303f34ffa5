//! The model's folder, as `sentence-transformers` writes it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::LoadError;
use crate::ports::Prompts;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const POOLING: &str = "1_Pooling/config.json";
const SENTENCE: &str = "sentence_bert_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";

/// A header is some kilobytes; more is not a file of weights.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Of `config.json`, what decides whether the rest can be read.
#[derive(Deserialize)]
struct Architecture {
    model_type: String,
}

/// `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Shape {
    #[serde(rename = "hidden_size")]
    pub hidden: i64,
    #[serde(rename = "num_hidden_layers")]
    pub layers: i64,
    #[serde(rename = "num_attention_heads")]
    pub heads: i64,
    #[serde(rename = "intermediate_size")]
    pub intermediate: i64,
    #[serde(rename = "max_position_embeddings")]
    pub max_positions: i64,
    #[serde(rename = "vocab_size")]
    pub vocabulary: i64,
    #[serde(rename = "type_vocab_size")]
    pub types: i64,
    pub layer_norm_eps: f64,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

/// From the vectors of a text's tokens to that of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    Mean,
    /// That of the first token, `[CLS]`.
    Cls,
}

/// `tokenizer_config.json`. Tokenizers without a bound have an astronomic number here.
#[derive(Deserialize)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
}

/// `config_sentence_transformers.json`: prompts by what the makers of the model call them.
#[derive(Default, Deserialize)]
struct PromptConfig {
    #[serde(default)]
    prompts: HashMap<String, String>,
}

pub struct ModelFiles {
    pub shape: Shape,
    pub pooling: Pooling,
    pub prompts: Prompts,
    pub max_tokens: usize,
    pub tokenizer_path: PathBuf,
    pub tokenizer: Vec<u8>,
    pub weights: Weights,
    /// blake3 of weights, tokenizer and configuration, and of pooling and prompts where they are not
    /// the usual ones.
    pub hash: String,
    /// Date of the newest of the three, as `YYYY-MM-DD`.
    pub date: String,
}

impl ModelFiles {
    /// The weights are given out as numbers of this kind. `given` are prompts of queries and passages
    /// in place of the model's own.
    pub fn read(folder: &Path, kind: Kind, given: [Option<&str>; 2]) -> Result<Self, LoadError> {
        let config_path = folder.join(CONFIG);
        let config = read(&config_path)?;
        // First of all: others have fields of other names.
        check_architecture(&config_path, &parse::<Architecture>(&config_path, &config)?)?;
        let shape: Shape = parse(&config_path, &config)?;
        shape.check(&config_path)?;
        let max_tokens = max_tokens(folder, &shape)?;
        let pooling = pooling(&folder.join(POOLING))?;
        let prompts = prompts(&folder.join(PROMPTS), given)?;
        let tokenizer_path = folder.join(TOKENIZER);
        let tokenizer = read(&tokenizer_path)?;
        let mut hasher = blake3::Hasher::new();
        let weights_path = folder.join(WEIGHTS);
        let weights = Weights::read(&weights_path, &mut hasher, kind)?;
        hasher.update(&tokenizer).update(&config);
        if pooling != Pooling::Mean {
            hasher.update(format!("{pooling:?}").as_bytes());
        }
        if prompts != Prompts::default() {
            hasher.update(format!("{prompts:?}").as_bytes());
        }
        let date = newest_date(&[&config_path, &tokenizer_path, &weights_path])?;
        let hash = hasher.finalize().to_hex().to_string();
        Ok(Self {
            shape,
            pooling,
            prompts,
            max_tokens,
            tokenizer_path,
            tokenizer,
            weights,
            hash,
            date,
        })
    }
}

fn check_architecture(path: &Path, architecture: &Architecture) -> Result<(), LoadError> {
    let Architecture { model_type } = architecture;
    if model_type == "bert" {
        return Ok(());
    }
    let reason = format!("model_type is {model_type:?}, only \"bert\" works");
    Err(LoadError::Unsupported { path: path.to_owned(), reason })
}

impl Shape {
    /// Refuses what would load and give other vectors than its makers meant.
    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported =
            |reason: String| Err(LoadError::Unsupported { path: path.to_owned(), reason });
        if self.hidden_act != "gelu" {
            return unsupported(format!(
                "hidden_act is {:?}, only \"gelu\" works",
                self.hidden_act
            ));
        }
        if self.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return unsupported("position_embedding_type must be \"absolute\"".to_owned());
        }
        let sizes = [
            self.hidden,
            self.layers,
            self.heads,
            self.intermediate,
            self.max_positions,
            self.vocabulary,
            self.types,
        ];
        if sizes.iter().any(|&size| size < 1) || self.hidden % self.heads != 0 {
            return unsupported("sizes must be above 0, heads a divisor of hidden_size".to_owned());
        }
        Ok(())
    }
}

/// What `sentence-transformers` takes: the file that says it, else the tokenizer's own bound, and no
/// more than the model has positions.
fn max_tokens(folder: &Path, shape: &Shape) -> Result<usize, LoadError> {
    let path = folder.join(SENTENCE);
    let set = parse_optional::<SentenceConfig>(&path)?.and_then(|config| config.max_seq_length);
    let of_tokenizer = parse_optional::<TokenizerConfig>(&folder.join(TOKENIZER_CONFIG))?
        .and_then(|config| config.model_max_length)
        .map_or(usize::MAX, |length| length as usize);
    let tokens = set.unwrap_or(of_tokenizer).min(shape.max_positions as usize);
    if tokens < 8 {
        let reason = format!("max_seq_length is {tokens}, at least 8 are needed");
        return Err(LoadError::Unsupported { path, reason });
    }
    Ok(tokens)
}

/// The one mode that is set; without the file it is the mean, as in `sentence-transformers`.
fn pooling(path: &Path) -> Result<Pooling, LoadError> {
    const MODE: &str = "pooling_mode_";
    let Some(config) = parse_optional::<HashMap<String, serde_json::Value>>(path)? else {
        return Ok(Pooling::Mean);
    };
    let set = config.iter().filter(|(name, value)| name.starts_with(MODE) && **value == true);
    let mut modes: Vec<&str> = set.map(|(name, _)| &name[MODE.len()..]).collect();
    modes.sort_unstable();
    match modes[..] {
        ["mean_tokens"] => Ok(Pooling::Mean),
        ["cls_token"] => Ok(Pooling::Cls),
        _ => {
            let reason = format!("pooling is {modes:?}, only mean_tokens or cls_token works");
            Err(LoadError::Unsupported { path: path.to_owned(), reason })
        }
    }
}

fn prompts(path: &Path, given: [Option<&str>; 2]) -> Result<Prompts, LoadError> {
    let own = parse_optional::<PromptConfig>(path)?.unwrap_or_default().prompts;
    let one = |given: Option<&str>, names: &[&str]| {
        let own = || names.iter().find_map(|name| own.get(*name).map(String::as_str));
        given.or_else(own).unwrap_or_default().to_owned()
    };
    let [query, passage] = given;
    Ok(Prompts { query: one(query, &["query"]), passage: one(passage, &["passage", "document"]) })
}

fn newest_date(paths: &[&Path]) -> Result<String, LoadError> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for &path in paths {
        let time = path.metadata().and_then(|data| data.modified());
        newest = newest.max(time.map_err(|source| LoadError::Read { path: path.into(), source })?);
    }
    Ok(humantime::format_rfc3339_seconds(newest).to_string().chars().take(10).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match read(path) {
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn parse_optional<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    read_optional(path)?.map(|bytes| parse(path, &bytes)).transpose()
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LoadError::Parse { path: path.to_owned(), reason: error.to_string() })
}

/// The tensors of a `.safetensors` file: a length, a JSON header of that length, then the numbers.
/// Read one tensor at a time, so that the file is never in memory as a whole beside the model.
pub struct Weights {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
    /// What they are given out as.
    kind: Kind,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<i64>,
    data_offsets: (u64, u64),
}

impl Weights {
    fn read(path: &Path, hasher: &mut blake3::Hasher, kind: Kind) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Read { path: path.to_owned(), source };
        let invalid = |reason: String| LoadError::Parse { path: path.to_owned(), reason };
        let file = File::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let mut file = BufReader::new(file);
        let mut take = |bytes: u64| -> Result<Vec<u8>, LoadError> {
            let mut buffer = vec![0; bytes as usize];
            file.read_exact(&mut buffer).map_err(failed)?;
            hasher.update(&buffer);
            Ok(buffer)
        };
        let length = take(8)?.try_into().map_or(u64::MAX, u64::from_le_bytes);
        if length > MAX_HEADER_BYTES.min(file_bytes) {
            return Err(invalid("it has no safetensors header".to_owned()));
        }
        let header: HashMap<String, serde_json::Value> = parse(path, &take(length)?)?;
        let mut entries = Vec::new();
        for (name, value) in header {
            if name != "__metadata__" {
                let entry: Entry = serde_json::from_value(value)
                    .map_err(|error| invalid(format!("tensor {name}: {error}")))?;
                entries.push((name, entry));
            }
        }
        entries.sort_by_key(|(_, entry)| entry.data_offsets);
        let mut tensors = HashMap::new();
        let mut offset = 0;
        for (name, entry) in entries {
            let (start, end) = entry.data_offsets;
            let stored = kind_of(&entry.dtype)
                .ok_or_else(|| invalid(format!("tensor {name} is of type {}", entry.dtype)))?;
            let numbers: Option<u64> = entry
                .shape
                .iter()
                .try_fold(1_u64, |product, &size| product.checked_mul(u64::try_from(size).ok()?));
            let bytes = numbers.and_then(|n| n.checked_mul(stored.elt_size_in_bytes() as u64));
            // The format has neither gaps nor overlaps.
            if start != offset || end.checked_sub(start) != bytes || end > file_bytes {
                return Err(invalid(format!("tensor {name} does not lie where it should")));
            }
            offset = end;
            let data = take(end - start)?;
            let tensor = Tensor::f_from_data_size(&data, &entry.shape, stored)?;
            tensors.insert(name, tensor);
        }
        Ok(Self { path: path.to_owned(), tensors, kind })
    }

    /// Takes a tensor of this shape out.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let unsupported =
            |reason: String| LoadError::Unsupported { path: self.path.clone(), reason };
        // Some files name the whole model in front.
        let tensor = self
            .tensors
            .remove(name)
            .or_else(|| self.tensors.remove(&format!("bert.{name}")))
            .ok_or_else(|| unsupported(format!("tensor {name} is missing")))?;
        if tensor.size() != shape {
            let reason = format!("tensor {name} is {:?} instead of {shape:?}", tensor.size());
            return Err(unsupported(reason));
        }
        Ok(tensor.f_to_kind(self.kind)?)
    }
}

fn kind_of(dtype: &str) -> Option<Kind> {
    Some(match dtype {
        "F64" => Kind::Double,
        "F32" => Kind::Float,
        "F16" => Kind::Half,
        "BF16" => Kind::BFloat16,
        // Tables of positions, which are not used.
        "I64" => Kind::Int64,
        "I32" => Kind::Int,
        _ => return None,
    })
}
