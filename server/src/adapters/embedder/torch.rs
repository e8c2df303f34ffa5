//! The model in libtorch, on its own threads.

mod batch;
mod cuda;
mod few;
mod files;
mod layout;
mod linear;
mod model;
mod pool;
mod recordings;
mod shim;
mod speed;
mod team;
mod tokenizer;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::timeout_at;

use super::batching::Batching;
use super::device::Device;
use super::precision::Precision;
use crate::domain::EmbeddingVersion;
use crate::metrics::Metrics;
use crate::ports::{EmbedError, Embedder, Embedding, ModelInfo, Urgency};
use batch::{Limits, Reserved};
use few::Few;
use files::ModelFiles;
use linear::Linear;
use model::Bert;
use pool::{AtOnce, Fault, Forward, Pool, Rows, Share};
use recordings::Recordings;
use speed::Speed;
use team::Team;
use tokenizer::{TextTokenizer, Tokens};

/// Large enough for full use of a core, small enough that a query behind a batch of documents
/// waits some tens of milliseconds.
const CPU_BATCH_TOKENS: usize = 512;
const CUDA_BATCH_TOKENS: usize = 16_384;
/// Less would waste a CPU's vector units; a GPU takes hardly longer for all than for half.
const CPU_SHARE_TOKENS: usize = 128;
const CUDA_SHARE_TOKENS: usize = CUDA_BATCH_TOKENS / 2;
/// On each GPU: while one waits for it, another prepares what comes next.
const CUDA_WORKERS: usize = 2;
/// Every text has the two special tokens.
const SPECIAL_TOKENS: usize = 2;
/// Rather less than English has, so that most texts need no more than was expected of them.
const BYTES_PER_TOKEN: usize = 4;
/// What a thread tokenizes at a time, about a millisecond's work: more is shared among the CPUs.
const TOKENIZED_BYTES: usize = 2048;
/// Fewer bytes are tokenized where they come from: that takes no longer than handing them over.
const TOKENIZED_AT_ONCE: usize = 256;
/// How often a busy model looks how many CPUs it may use.
const SHARE_PERIOD: Duration = Duration::from_secs(5);
/// Texts of many kinds, one a line: they show the range of the numbers between the layers, by which
/// those are put into eight bits.
const CALIBRATION: &str = include_str!("torch/calibration.txt");
/// Of a short query.
const WARM_UP_TOKENS: usize = 10;
/// Close to what one core does, until the warm-up has measured it.
const GUESSED_TOKENS_PER_SECOND: f64 = 5_000.0;

#[derive(Clone, Debug)]
pub struct TorchOptions {
    /// The folder with `model.safetensors`, `tokenizer.json` and `config.json`.
    pub model_dir: PathBuf,
    /// What the model is called; its files do not say it.
    pub model_name: String,
    /// In place of what the model's files say.
    pub query_prompt: Option<String>,
    pub passage_prompt: Option<String>,
    pub device: Device,
    pub precision: Precision,
    pub batching: Batching,
    /// Threads that each embed a batch at a time, on a CPU in all, of GPUs on each; 0 for one per CPU
    /// of the process's share, or per GPU.
    pub workers: usize,
    /// Largest batch in tokens; 0 for what suits the device. One text always fits.
    pub max_batch_tokens: usize,
    /// Texts that may wait.
    pub queue_texts: usize,
    /// Tokens that may wait.
    pub queue_tokens: usize,
}

impl Default for TorchOptions {
    fn default() -> Self {
        Self {
            model_dir: PathBuf::new(),
            model_name: "all-MiniLM-L6-v2".to_owned(),
            query_prompt: None,
            passage_prompt: None,
            device: Device::Auto,
            precision: Precision::Fp32,
            batching: Batching::Deadline,
            workers: 0,
            max_batch_tokens: 0,
            queue_texts: 4096,
            queue_tokens: 512 * 1024,
        }
    }
}

/// Why the model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "failed to read {path:?}: the model's folder must hold model.safetensors, tokenizer.json \
         and config.json as sentence-transformers writes them"
    )]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is not what it should be: {reason}; copy the model again")]
    Parse { path: PathBuf, reason: String },
    #[error("{path:?} describes a model that is not supported: {reason}")]
    Unsupported { path: PathBuf, reason: String },
    #[error("device {asked} is not there, {found}; use auto or cpu")]
    NoCuda { asked: Device, found: String },
    #[error("this CPU has no bf16 (AVX512-BF16): use the precision fp32, or a GPU")]
    NoBf16,
    #[error(
        "int8 is for CPUs with AVX512-VNNI or AVX-VNNI, and this is none: use the precision fp32, \
         or bf16 on a GPU"
    )]
    NoInt8,
    #[error("libtorch failed to load the model")]
    Torch(#[from] tch::TchError),
    #[error("the model failed to embed a first text: {0}")]
    WarmUp(String),
    #[error("failed to start a thread")]
    StartThread(#[source] std::io::Error),
}

/// A sentence-transformers model of the BERT family, batched over all callers.
pub struct TorchEmbedder {
    model: ModelInfo,
    tokenizer: Arc<TextTokenizer>,
    /// Bounds the threads that tokenize, which share the CPUs with the model.
    tokenizing: Semaphore,
    pool: Pool,
    team: Arc<Team>,
}

impl TorchEmbedder {
    /// Reads the model, warms it up and starts its threads. Takes about a second and blocks.
    pub fn load(options: &TorchOptions, metrics: Arc<Metrics>) -> Result<Self, LoadError> {
        let devices = devices(options.device)?;
        let device = devices[0];
        // Without this libtorch would start a team of threads here that then spins on every CPU.
        tch::set_num_threads(1);
        let kind = kind(options.precision, device)?;
        let given = [&options.query_prompt, &options.passage_prompt].map(Option::as_deref);
        let mut files = ModelFiles::read(&options.model_dir, kind, given)?;
        let tokenizer =
            TextTokenizer::from_bytes(&files.tokenizer_path, &files.tokenizer, files.max_tokens)?;
        if tokenizer.vocabulary() > files.shape.vocabulary as usize {
            let reason = "it has more tokens than the model".to_owned();
            return Err(LoadError::Unsupported { path: files.tokenizer_path, reason });
        }
        let new_linear = match options.precision {
            Precision::Int8 => Linear::plain,
            Precision::Fp32 | Precision::Bf16 => Linear::new,
        };
        let (shape, pooling) = (files.shape.clone(), files.pooling);
        let mut bert = Bert::new(&mut files.weights, shape, pooling, device, new_linear)?;
        if options.precision == Precision::Int8 {
            bert = bert.quantize(&calibration(&tokenizer)?)?;
        }
        let version = EmbeddingVersion {
            model: options.model_name.clone(),
            date: files.date,
            // Vectors of another precision are others.
            hash: match options.precision {
                Precision::Fp32 => files.hash,
                Precision::Bf16 => format!("bf16-{}", files.hash),
                Precision::Int8 => {
                    let text = format!("{}{CALIBRATION}", files.hash);
                    format!("int8-{}", blake3::hash(text.as_bytes()).to_hex())
                }
            },
            dimension: bert.dimension(),
        };
        let (max_tokens, prompts) = (files.max_tokens, files.prompts);
        // What the model does not use of the weights goes before it runs.
        drop((files.weights, files.tokenizer));

        let cpus = cpus_now();
        let follows_share = device == tch::Device::Cpu && options.workers == 0;
        let (workers, batch_tokens, share_tokens) = if device == tch::Device::Cpu {
            let workers = if follows_share { cpus } else { options.workers };
            (workers, CPU_BATCH_TOKENS, CPU_SHARE_TOKENS)
        } else {
            let of_each = if options.workers == 0 { CUDA_WORKERS } else { options.workers };
            (of_each * devices.len(), CUDA_BATCH_TOKENS, CUDA_SHARE_TOKENS)
        };
        let set = options.max_batch_tokens;
        let limits = Limits {
            texts: options.queue_texts,
            tokens: options.queue_tokens,
            batch_tokens: if set == 0 { batch_tokens } else { set.max(max_tokens) },
            share_tokens,
            workers,
            batching: options.batching,
        };
        let speed = warm_up(&bert, &limits, max_tokens)?;
        let share = follows_share.then(|| Share { every: SHARE_PERIOD, ask: Box::new(cpus_now) });
        let all = if follows_share { cpus_of_machine().max(workers) } else { workers };
        let berts = devices.iter().map(|&device| bert.on(device)).collect::<Result<Vec<_>, _>>()?;
        for &device in &devices {
            if let tch::Device::Cuda(index) = device {
                // The workers' streams do not wait for this thread's.
                tch::Cuda::synchronize(i64::try_from(index).unwrap_or(i64::MAX));
            }
        }
        let few = bert.few();
        let helpers = few.as_ref().map_or(0, |_| all.saturating_sub(1));
        let team = Arc::new(Team::new(helpers).map_err(LoadError::StartThread)?);
        let worker = |number: usize| -> Result<Worker, LoadError> {
            let bert = &berts[number % berts.len()];
            let bert = bert.on(bert.device())?;
            Ok(Worker { bert, recordings: Recordings::default(), guard: None })
        };
        let models = (0..all).map(worker).collect::<Result<_, _>>()?;
        let at_once = few.map(|few| AtOnce {
            tokens: few::MOST_TOKENS,
            forward: Box::new(Query { few, team: Arc::clone(&team) }),
        });
        let pool = Pool::start(models, limits, speed, metrics, share, at_once)
            .map_err(LoadError::StartThread)?;
        let names = devices.iter().map(|device| match device {
            tch::Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        });
        let device = names.collect::<Vec<_>>().join(",");
        Ok(Self {
            model: ModelInfo { version, max_tokens, device, prompts },
            tokenizer: Arc::new(tokenizer),
            tokenizing: Semaphore::new(cpus),
            pool,
            team,
        })
    }

    /// Answers those who wait with `Stopped` and waits for running batches, at most `limit`; true
    /// when all threads have ended. Blocks. Dropping the embedder does the same.
    pub fn close(&self, limit: Duration) -> bool {
        self.pool.close(limit)
    }

    fn expected_tokens(&self, text: &str) -> usize {
        (SPECIAL_TOKENS + text.len() / BYTES_PER_TOKEN).min(self.model.max_tokens)
    }

    async fn tokens(&self, texts: Vec<Arc<str>>) -> Result<Vec<Tokens>, EmbedError> {
        if texts.iter().map(|text| text.len()).sum::<usize>() <= TOKENIZED_AT_ONCE {
            let tokens = texts.iter().map(|text| self.tokenizer.tokens(text)).collect();
            return Result::map_err(tokens, EmbedError::Failed);
        }
        let parts = in_parts(texts, TOKENIZED_BYTES).into_iter().map(|part| self.tokens_of(part));
        Ok(try_join_all(parts).await?.into_iter().flatten().collect())
    }

    async fn tokens_of(&self, texts: Vec<Arc<str>>) -> Result<Vec<Tokens>, EmbedError> {
        let tokenizer = Arc::clone(&self.tokenizer);
        let tokenize = move || texts.iter().map(|text| tokenizer.tokens(text)).collect();
        let _permit = self.tokenizing.acquire().await.map_err(|_| EmbedError::Stopped)?;
        // Not on an async thread: a long list would keep cached answers waiting.
        let tokens: Result<Vec<Tokens>, String> =
            tokio::task::spawn_blocking(tokenize).await.map_err(|_| EmbedError::Stopped)?;
        tokens.map_err(EmbedError::Failed)
    }

    async fn embed_now(
        &self,
        texts: Vec<Arc<str>>,
        urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError> {
        let tokens = texts.iter().map(|text| self.expected_tokens(text)).sum();
        let reservation = self.pool.reserve(Reserved { texts: texts.len(), tokens }, urgency)?;
        if tokens <= few::MOST_TOKENS {
            self.team.rouse(reservation.idle);
        }
        let tokens = self.tokens(texts).await?;
        // Who is about to ask, too, comes first: what comes together is computed together.
        yield_now().await;
        let ids = tokens.iter().map(|tokens| Arc::clone(&tokens.ids)).collect();
        let rows = self
            .pool
            .submit(reservation, ids, urgency)?
            .await
            .map_err(|_| EmbedError::Stopped)??;
        let embedding = |(tokens, vector): (Tokens, _)| Embedding {
            vector,
            tokens: tokens.ids.len(),
            truncated: tokens.truncated,
        };
        Ok(tokens.into_iter().zip(rows).map(embedding).collect())
    }
}

#[async_trait]
impl Embedder for TorchEmbedder {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    async fn embed(
        &self,
        texts: Vec<Arc<str>>,
        urgency: Urgency,
    ) -> Result<Vec<Embedding>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        // The queue drops what is late when it comes to it; nobody waits for that.
        timeout_at(urgency.deadline.into(), self.embed_now(texts, urgency))
            .await
            .unwrap_or(Err(EmbedError::DeadlineExceeded))
    }

    fn admit(&self, text: &str, urgency: Urgency) -> Result<(), EmbedError> {
        let room = Reserved { texts: 1, tokens: self.expected_tokens(text) };
        self.pool.reserve(room, urgency).map(drop)
    }

    fn health(&self) -> Result<(), String> {
        self.pool.health()
    }

    async fn lost(&self) -> String {
        self.pool.lost().await
    }

    fn refresh_metrics(&self) {
        self.pool.refresh_gauges();
    }
}

/// Runs of texts of so many bytes or little more, in their order.
fn in_parts(texts: Vec<Arc<str>>, bytes: usize) -> Vec<Vec<Arc<str>>> {
    let mut parts: Vec<Vec<Arc<str>>> = Vec::new();
    let mut room = 0;
    for text in texts {
        let length = text.len();
        match parts.last_mut() {
            Some(part) if room > 0 => part.push(text),
            _ => {
                parts.push(vec![text]);
                room = bytes;
            }
        }
        room = room.saturating_sub(length);
    }
    parts
}

struct Worker {
    bert: Bert,
    /// Of a GPU alone.
    recordings: Recordings,
    guard: Option<tch::NoGradGuard>,
}

impl Forward for Worker {
    fn start(&mut self) -> Result<(), String> {
        // All are settings of the thread.
        tch::set_num_threads(1);
        self.guard = Some(tch::no_grad_guard());
        let mut warm_up = || {
            if let tch::Device::Cuda(index) = self.bert.device() {
                cuda::use_own_stream(index)?;
                self.recordings = Recordings::new(&self.bert).unwrap_or_else(|error| {
                    tracing::warn!(%error, "small batches are not recorded, and slower by that");
                    Recordings::default()
                });
            }
            // What libraries keep for each thread is made before the first query.
            self.bert.embed(&[Arc::from([0; WARM_UP_TOKENS])]).map(drop)
        };
        warm_up().map_err(|error: tch::TchError| error.to_string())
    }

    fn embed(&mut self, texts: &[Arc<[u32]>], _: usize) -> Result<Rows, Fault> {
        let recorded = self.recordings.embed(&self.bert, texts);
        recorded.unwrap_or_else(|| self.bert.embed(texts)).map_err(|error| fault(error.to_string()))
    }

    fn padding(&self, texts: &[Arc<[u32]>]) -> usize {
        let (tokens, _) = layout::sizes(texts);
        match self.bert.device() {
            tch::Device::Cpu => layout::filling(tokens),
            _ => self.recordings.tokens(texts).map_or(0, |all| all - tokens),
        }
    }
}

/// The model for few tokens, on whatever thread a query comes by.
struct Query {
    few: Few,
    team: Arc<Team>,
}

impl Forward for Query {
    fn embed(&mut self, texts: &[Arc<[u32]>], idle: usize) -> Result<Rows, Fault> {
        let rows = self.team.assist(idle, || self.few.embed(texts));
        rows.map_err(|error| fault(error.to_string()))
    }
}

/// libtorch tells its errors in words only. Of CUDA's all but a lack of memory stay: every later call
/// of the process fails, too.
///
/// # Source
/// CUDA Runtime API, `cudaError_t`, on errors that leave a process in a state without a way back.
fn fault(reason: String) -> Fault {
    let says = |words: &str| reason.contains(words);
    if says("out of memory") || says("CUBLAS_STATUS_ALLOC_FAILED") {
        Fault::OutOfMemory(reason)
    } else if says("CUDA error") || says("CUBLAS_STATUS") || says("CUDNN_STATUS") {
        Fault::Lost(reason)
    } else {
        Fault::Failed(reason)
    }
}

/// What the process may use: its affinity and the quota of its cgroup.
fn cpus_now() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// What it could ever use: more threads than these are never needed.
fn cpus_of_machine() -> usize {
    std::fs::read_to_string("/proc/cpuinfo")
        .map_or(0, |text| text.lines().filter(|line| line.starts_with("processor")).count())
}

/// At least one.
fn devices(asked: Device) -> Result<Vec<tch::Device>, LoadError> {
    if asked == Device::Cpu {
        return Ok(vec![tch::Device::Cpu]);
    }
    let none = |found: String| match asked {
        Device::Auto => {
            tracing::info!(found, "no GPU is used");
            Ok(vec![tch::Device::Cpu])
        }
        asked => Err(LoadError::NoCuda { asked, found }),
    };
    match (cuda::count(), asked) {
        (Err(reason), _) => none(reason),
        (Ok(found), Device::Cuda(asked)) if asked < found => Ok(vec![tch::Device::Cuda(asked)]),
        (Ok(found), Device::Auto | Device::AllCuda) if found > 0 => {
            Ok((0..found).map(tch::Device::Cuda).collect())
        }
        (Ok(found), _) => none(format!("libtorch sees {found} GPUs")),
    }
}

fn kind(precision: Precision, device: tch::Device) -> Result<tch::Kind, LoadError> {
    match (precision, device) {
        (Precision::Fp32, _) => Ok(tch::Kind::Float),
        // It would be emulated, slower than fp32.
        (Precision::Bf16, tch::Device::Cpu) if !cpu_has_bf16() => Err(LoadError::NoBf16),
        (Precision::Bf16, _) => Ok(tch::Kind::BFloat16),
        (Precision::Int8, tch::Device::Cpu) if cpu_has_int8() => Ok(tch::Kind::Float),
        (Precision::Int8, _) => Err(LoadError::NoInt8),
    }
}

fn calibration(tokenizer: &TextTokenizer) -> Result<Vec<Arc<[u32]>>, LoadError> {
    let tokens = |text| tokenizer.tokens(text).map_err(LoadError::WarmUp);
    CALIBRATION.lines().map(|text| Ok(tokens(text)?.ids)).collect()
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_bf16() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_int8() -> bool {
    std::arch::is_x86_feature_detected!("avx512vnni")
        || std::arch::is_x86_feature_detected!("avxvnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_int8() -> bool {
    false
}

/// Runs batches of each size, so that the first query finds libtorch's memory and kernels ready
/// and the queue knows what it may promise.
fn warm_up(bert: &Bert, limits: &Limits, max_tokens: usize) -> Result<Speed, LoadError> {
    let _guard = tch::no_grad_guard();
    let mut speed = Speed::guess(GUESSED_TOKENS_PER_SECOND);
    for (texts, length) in [(1, 8), (8, 12), (limits.batch_tokens / max_tokens, max_tokens)] {
        let batch = vec![Arc::<[u32]>::from(vec![0; length.min(max_tokens)]); texts.max(1)];
        // The first run pays for what is made once.
        for _ in 0..2 {
            let started = Instant::now();
            let rows = bert.embed(&batch).map_err(|error| LoadError::WarmUp(error.to_string()))?;
            if rows.iter().any(|row| !row.iter().all(|number| number.is_finite())) {
                return Err(LoadError::WarmUp("it gave no numbers".to_owned()));
            }
            speed.set(batch.len() * length.min(max_tokens), started.elapsed());
        }
    }
    Ok(speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_tokenized_in_parts_of_about_the_same_size() {
        let texts = |lengths: &[usize]| -> Vec<Arc<str>> {
            lengths.iter().map(|&length| "x".repeat(length).into()).collect()
        };
        let parts = |lengths: &[usize]| -> Vec<Vec<usize>> {
            let parts = in_parts(texts(lengths), 10);
            parts.iter().map(|part| part.iter().map(|text| text.len()).collect()).collect()
        };
        assert_eq!(parts(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(parts(&[1, 0, 2]), [[1, 0, 2]]);
        assert_eq!(parts(&[4, 4, 4, 4]), [vec![4, 4, 4], vec![4]]);
        assert_eq!(parts(&[50, 3, 7, 1]), [vec![50], vec![3, 7], vec![1]]);
    }

    #[test]
    fn a_lack_of_memory_passes_and_other_errors_of_cuda_do_not() {
        let of = |reason: &str| fault(reason.to_owned());
        for reason in [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ] {
            assert_eq!(of(reason), Fault::OutOfMemory(reason.to_owned()));
        }
        for reason in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
        ] {
            assert_eq!(of(reason), Fault::Lost(reason.to_owned()));
        }
        let reason = "index out of range in self";
        assert_eq!(of(reason), Fault::Failed(reason.to_owned()));
    }
}
