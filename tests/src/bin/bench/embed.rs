//! Texts per second of the model in this process, beside other libraries on as many threads.

mod clients;
mod engine;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use crate::relevance::{self, RelevanceOptions};
use crate::report::{Bars, Table, median, quantile, title};
use crate::{Failure, Options, texts};
use engine::{Engine, OURS, OURS_BF16, OURS_FP32, OURS_INT8, REFERENCE};

/// One token each for models with the vocabulary of BERT.
const WORDS: [&str; 16] = [
    "back", "knee", "hand", "foot", "arm", "leg", "hold", "press", "push", "pull", "row", "step",
    "jump", "run", "walk", "rest",
];
const LENGTHS: [usize; 4] = [8, 32, 128, 256];
/// `[CLS]` and `[SEP]`.
const SPECIAL_TOKENS: usize = 2;
const OURS_ON_GPU: (&str, &str) = (OURS_BF16, "sentence-transformers-fp16");
const BATCH: usize = 32;
/// Queries one at a time under contention, for their latency.
const LATENCIES: usize = 300;

#[derive(Args)]
pub struct EmbedOptions {
    /// Python with the packages of tests/embed-peers: `deploy/setup/setup.sh embed-peers` makes it.
    #[arg(long)]
    python: PathBuf,
    /// Folder for the exported models of the others, the figures as JSON and the plot.
    #[arg(long)]
    folder: PathBuf,
    #[command(flatten)]
    relevance: RelevanceOptions,
}

struct Workload {
    name: String,
    batch: usize,
    text: Box<dyn Fn(u64) -> String>,
}

/// The `n`-th text of 40 to 160 words.
fn passage(n: u64) -> String {
    texts::text(n, 40 + (n % 121 * 37 % 121) as usize)
}

fn workloads() -> Vec<Workload> {
    let mut all = vec![
        Workload { name: "one query at a time".into(), batch: 1, text: Box::new(texts::query) },
        Workload {
            name: "32 queries at a time".into(),
            batch: BATCH,
            text: Box::new(texts::query),
        },
        Workload {
            name: "32 passages of 40 to 160 words".into(),
            batch: BATCH,
            text: Box::new(passage),
        },
    ];
    all.extend(LENGTHS.map(|tokens| Workload {
        name: format!("32 texts of {tokens} tokens"),
        batch: BATCH,
        text: Box::new(move |n| of_tokens(n, tokens)),
    }));
    all
}

/// The `n`-th text of so many tokens.
fn of_tokens(n: u64, tokens: usize) -> String {
    let mut number = n;
    let word = |_| {
        number =
            number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(number >> 60) as usize]
    };
    (SPECIAL_TOKENS..tokens).map(word).collect::<Vec<_>>().join(" ")
}

impl Workload {
    /// The texts of some batches, none of which comes again while `first` goes up.
    fn batches(&self, first: u64, count: usize) -> Vec<Vec<Arc<str>>> {
        let text = |n: u64| Arc::from((self.text)(n));
        let of = |batch: usize| {
            let first = (first + batch as u64) * self.batch as u64;
            (first..first + self.batch as u64).map(text).collect()
        };
        (0..count).map(of).collect()
    }
}

pub async fn run(options: &Options, embed: &EmbedOptions) -> Result<(), Failure> {
    std::fs::create_dir_all(&embed.folder)?;
    let threads = match options.workers {
        0 => std::thread::available_parallelism()?.get(),
        workers => workers,
    };
    let mut engines = engine::all(options, threads, &embed.python, &embed.folder)?;
    let mut figures = json!({"threads": threads});
    speed(options, &mut engines, &mut figures).await?;
    likeness(&mut engines).await?;
    contention(options, &mut engines).await?;
    let names = engines.iter().filter_map(|engine| engine.name.strip_prefix(OURS));
    let precisions: Vec<String> = names.map(str::to_owned).collect();
    drop(engines);
    relevance::of_precisions(options, &embed.relevance, &precisions).await?;
    let ours = engine::options(options, serde_json::from_value(json!(options.precision))?)?;
    clients::compare(options, &ours).await?;
    clients::over_http(options, &ours).await?;
    let file = embed.folder.join("embed.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures)?)?;
    println!("\nFigures: {}", file.display());
    Ok(())
}

/// Texts per second in rounds in which all take turns.
async fn speed(
    options: &Options,
    engines: &mut [Engine],
    figures: &mut Value,
) -> Result<(), Failure> {
    title("Texts per second");
    let names: Vec<String> = engines.iter().map(|engine| engine.name.clone()).collect();
    let columns: Vec<&str> =
        ["texts"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = Table::new(&columns);
    let mut ratios = Table::new(&columns);
    let mut bars = Bars::new();
    for workload in workloads() {
        let mut next = 0;
        let mut counts = Vec::new();
        for engine in &mut *engines {
            // What is made once is made here.
            engine.run(&workload.batches(next, 2)).await?;
            let seconds = engine.run(&workload.batches(next + 2, 3)).await? / 3.0;
            counts.push(((options.seconds / seconds) as usize).clamp(1, 2_000));
            next += 5;
        }
        let mut rates = vec![Vec::new(); engines.len()];
        for round in 0..options.rounds {
            for turn in 0..engines.len() {
                let index = (turn + round) % engines.len();
                let batches = workload.batches(next, counts[index]);
                let seconds = engines[index].run(&batches).await?;
                rates[index].push((counts[index] * workload.batch) as f64 / seconds);
            }
            next += counts.iter().max().copied().unwrap_or_default() as u64;
        }
        let cells = |cell: &dyn Fn(&Vec<f64>) -> String| -> Vec<String> {
            [workload.name.clone()].into_iter().chain(rates.iter().map(cell)).collect()
        };
        table.row(&row(&cells(&|all| format!("{:.0}", median(all)))));
        let of_first = |all: &Vec<f64>| {
            median(&rates[0].iter().zip(all).map(|(ours, other)| other / ours).collect::<Vec<_>>())
        };
        ratios.row(&row(&cells(&|all| format!("{:.2}", of_first(all)))));
        figures["texts_per_second"][&workload.name] = names
            .iter()
            .zip(&rates)
            .map(|(name, all)| (name.clone(), json!(median(all))))
            .collect();
        for (ours, peer) in [
            (OURS_FP32, "onnx-fp32"),
            (OURS_BF16, "onnx-int8"),
            (OURS_INT8, "onnx-int8"),
            OURS_ON_GPU,
        ] {
            let of = |name: &str| names.iter().position(|one| one == name);
            if let (Some(ours_at), Some(peer_at)) = (of(ours), of(peer)) {
                let each = rates[ours_at].iter().zip(&rates[peer_at]);
                let ratio = median(&each.map(|(ours, peer)| ours / peer).collect::<Vec<_>>());
                let single = workload.batch == 1 && peer == "onnx-fp32";
                let wanted = if single { 1.3 } else { 1.0 };
                bars.at_least(&format!("{}: {ours} / {peer}", workload.name), wanted, ratio);
            }
        }
    }
    table.print();
    println!("\nThe same as a share of the first column, median of each round's:");
    ratios.print();
    bars.print();
    Ok(())
}

fn row(cells: &[String]) -> Vec<&dyn std::fmt::Display> {
    cells.iter().map(|cell| cell as &dyn std::fmt::Display).collect()
}

/// How near everybody's vectors are to those of sentence-transformers.
async fn likeness(engines: &mut [Engine]) -> Result<(), Failure> {
    title("Cosine to sentence-transformers");
    let texts: Vec<Arc<str>> = (0..BATCH as u64)
        .map(|n| if n % 2 == 0 { texts::query(n) } else { texts::text(n, 10 + 5 * n as usize) })
        .map(Arc::from)
        .collect();
    let mut vectors = Vec::new();
    for engine in &mut *engines {
        vectors.push((engine.name.clone(), engine.vectors(&texts).await?));
    }
    let reference =
        vectors.iter().find(|(name, _)| name == REFERENCE).map(|(_, rows)| rows.clone());
    let reference = reference.ok_or("no reference")?;
    let mut table = Table::new(&["", "smallest of 32 texts"]);
    for (name, rows) in &vectors {
        let cosine = |(a, b): (&Vec<f64>, &Vec<f64>)| -> f64 {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let smallest = rows.iter().zip(&reference).map(cosine).fold(f64::INFINITY, f64::min);
        table.row(&[name, &format!("{smallest:.7}")]);
    }
    table.print();
    Ok(())
}

/// Processes that take what CPU they can get, until they are dropped.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Result<Self, Failure> {
        let one =
            |_| Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        Ok(Self((0..count).map(one).collect::<Result<_, _>>()?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended already is no matter.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The same work with and without other processes on all cores.
async fn contention(options: &Options, engines: &mut [Engine]) -> Result<(), Failure> {
    title("With as many busy processes as threads");
    let workload = &workloads()[1];
    let cores = std::thread::available_parallelism()?.get();
    let mut table = Table::new(&[
        "",
        "idle texts/s",
        "busy texts/s",
        "ratio",
        "idle p99 ms",
        "busy p99 ms",
        "ratio",
    ]);
    let mut bars = Bars::new();
    let mut next = 1 << 20;
    for engine in engines {
        let (mut rates, mut tails) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for _ in 0..options.rounds {
            for state in 0..2 {
                let _busy = Busy::start(state * cores)?;
                let seconds = engine.run(&workload.batches(next, 1)).await?;
                let count = ((options.seconds / seconds) as usize).clamp(1, 2_000);
                let seconds = engine.run(&workload.batches(next + 1, count)).await?;
                rates[state].push((count * BATCH) as f64 / seconds);
                next += 1 + count as u64;
                let mut latencies = Vec::new();
                for n in 0..LATENCIES as u64 {
                    let query = vec![Arc::from(texts::query(next * 64 + n))];
                    let begin = Instant::now();
                    engine.run(&[query]).await?;
                    latencies.push(begin.elapsed().as_secs_f64() * 1e3);
                }
                tails[state].push(quantile(&latencies, 0.99));
            }
        }
        let [idle, busy] = rates.map(|all| median(&all));
        let [calm, late] = tails.map(|all| median(&all));
        table.row(&[
            &engine.name,
            &format!("{idle:.0}"),
            &format!("{busy:.0}"),
            &format!("{:.2}", busy / idle),
            &format!("{calm:.1}"),
            &format!("{late:.1}"),
            &format!("{:.1}", late / calm),
        ]);
        if engine.name == OURS_FP32 {
            bars.at_least("texts per second, busy / idle", 0.4, busy / idle);
            bars.at_most("p99, busy / idle", 4.0, late / calm);
        }
    }
    table.print();
    bars.print();
    Ok(())
}
