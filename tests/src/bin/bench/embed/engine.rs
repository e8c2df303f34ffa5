//! What embeds: the server's own embedder in this process, or another library in a Python of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sextant_server::adapters::embedder::precision::Precision;
use sextant_server::adapters::embedder::torch::{LoadError, TorchEmbedder, TorchOptions};
use sextant_server::ports::{Class, Embedder, Urgency};

use crate::{Failure, Options};

/// What the names of ours begin with; the precision follows.
pub const OURS: &str = "sextant ";
pub const OURS_FP32: &str = "sextant fp32";
pub const OURS_BF16: &str = "sextant bf16";
pub const OURS_INT8: &str = "sextant int8";
const ALL_OURS: [(&str, Precision); 3] =
    [(OURS_FP32, Precision::Fp32), (OURS_BF16, Precision::Bf16), (OURS_INT8, Precision::Int8)];
/// What all are compared with.
pub const REFERENCE: &str = "sentence-transformers";
const PEERS_ON_CPU: [&str; 3] = [REFERENCE, "onnx-fp32", "onnx-int8"];
const PEERS_ON_GPU: [&str; 2] = [REFERENCE, "sentence-transformers-fp16"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/embed-peers/peers.py");
/// Longest time for a batch.
const PATIENCE: Duration = Duration::from_mins(5);

pub struct Engine {
    pub name: String,
    kind: Kind,
}

enum Kind {
    Ours(Box<TorchEmbedder>),
    Peer(Peer),
}

struct Peer {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn model_dir() -> Result<PathBuf, Failure> {
    let folder = std::env::var_os("MODEL_DIR").ok_or("MODEL_DIR is not set: make bench-embed")?;
    Ok(folder.into())
}

/// Those of our embedder.
pub fn options(options: &Options, precision: Precision) -> Result<TorchOptions, Failure> {
    Ok(TorchOptions {
        model_dir: model_dir()?,
        device: options.device.parse()?,
        precision,
        workers: options.workers,
        ..TorchOptions::default()
    })
}

/// Ours in each precision that the device has, and the others.
pub fn all(
    of: &Options,
    threads: usize,
    python: &Path,
    scratch: &Path,
) -> Result<Vec<Engine>, Failure> {
    let mut engines = Vec::new();
    let mut used = "cpu".to_owned();
    for (name, precision) in ALL_OURS {
        match TorchEmbedder::load(&options(of, precision)?, Arc::default()) {
            Ok(embedder) => {
                used.clone_from(&embedder.model().device);
                let kind = Kind::Ours(Box::new(embedder));
                engines.push(Engine { name: name.to_owned(), kind });
            }
            Err(error @ (LoadError::NoBf16 | LoadError::NoInt8)) => {
                println!("\n{name} is left out: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    // The others know of one GPU.
    let used = used.split(',').next().unwrap_or_default();
    let peers = if used == "cpu" { &PEERS_ON_CPU[..] } else { &PEERS_ON_GPU };
    for &name in peers {
        let mut child = Command::new(python)
            .arg(SCRIPT)
            .arg(name)
            .args([model_dir()?.as_path(), scratch])
            .args([&threads.to_string(), used])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (asked, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(asked), Some(answers)) = (asked, answers) else {
            return Err("no pipes".into());
        };
        let kind = Kind::Peer(Peer { child, asked, answers: BufReader::new(answers) });
        engines.push(Engine { name: name.to_owned(), kind });
    }
    Ok(engines)
}

impl Engine {
    /// Embeds batches one after the other: how many seconds that took.
    pub async fn run(&mut self, batches: &[Vec<Arc<str>>]) -> Result<f64, Failure> {
        match &mut self.kind {
            Kind::Ours(embedder) => {
                let begin = Instant::now();
                for batch in batches {
                    embedder.embed(batch.clone(), urgency()).await?;
                }
                Ok(begin.elapsed().as_secs_f64())
            }
            Kind::Peer(peer) => {
                let answer = peer.ask(&json!({"batches": batches}))?;
                answer["seconds"].as_f64().ok_or_else(|| "no seconds".into())
            }
        }
    }

    /// One row for each text.
    pub async fn vectors(&mut self, texts: &[Arc<str>]) -> Result<Vec<Vec<f64>>, Failure> {
        match &mut self.kind {
            Kind::Ours(embedder) => {
                let rows = embedder.embed(texts.to_vec(), urgency()).await?;
                let wide = |row: Arc<[f32]>| row.iter().map(|&x| x.into()).collect();
                Ok(rows.into_iter().map(|row| wide(row.vector)).collect())
            }
            Kind::Peer(peer) => {
                let mut answer = peer.ask(&json!({"batches": [texts], "vectors": true}))?;
                Ok(serde_json::from_value(answer["vectors"].take())?)
            }
        }
    }
}

impl Peer {
    /// It runs only meanwhile: threads of these libraries wait for their next work by spinning.
    fn ask(&mut self, what: &Value) -> Result<Value, Failure> {
        self.signal(libc::SIGCONT)?;
        writeln!(self.asked, "{what}")?;
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("another library has ended; what it said is above".into());
        }
        self.signal(libc::SIGSTOP)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn signal(&self, signal: i32) -> Result<(), Failure> {
        // SAFETY: a child of ours that was not waited for, so that the number is still its own.
        match unsafe { libc::kill(self.child.id().cast_signed(), signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }
}

fn urgency() -> Urgency {
    Urgency { class: Class::Interactive, deadline: Instant::now() + PATIENCE }
}
