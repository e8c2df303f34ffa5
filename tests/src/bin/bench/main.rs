//! Benchmarks of the running server; `docs/benchmarks.md` explains each. Every command starts the
//! real server on loopback, loads it from this process and prints Markdown.

mod balancers;
mod baseline;
mod cached;
mod embed;
mod faults;
mod http;
mod import;
mod load;
mod milvus;
mod outbox;
mod outcome;
mod overload;
mod relevance;
mod report;
mod scale;
mod server;
mod stampede;
mod start;
mod texts;
mod tiers;
mod uncached;
mod zipf;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// What ends a benchmark early.
type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
#[command(name = "bench", about = "Benchmarks of the running server")]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Options {
    /// Rounds; what is compared takes turns in each, and medians over the rounds are shown.
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    /// Length of one measurement.
    #[arg(long, global = true, default_value_t = 3.0)]
    seconds: f64,
    /// Where the model runs: auto, cpu or cuda:N.
    #[arg(long, global = true, default_value = "auto")]
    device: String,
    /// Numbers that the model computes with: fp32, bf16 or int8.
    #[arg(long, global = true, default_value = "fp32")]
    precision: String,
    /// Threads that run the model; 0 for one per CPU.
    #[arg(long, global = true, default_value_t = 0)]
    workers: usize,
}

#[derive(Subcommand)]
enum Command {
    /// Searches answered from the cache, against an empty axum handler.
    Cached(cached::CachedOptions),
    /// Searches that miss: what they cost beside their embedding and their index search.
    Uncached,
    /// 1,000 equal misses at a time: how much is computed.
    Stampede,
    /// A Zipf stream over 10,000 queries: hit rate, latency, memory, embeddings saved.
    Zipf(zipf::ZipfOptions),
    /// Padding under mixed lengths; goodput at five times the capacity.
    Overload,
    /// A server's start and its memory, at rest and while texts of all lengths come.
    Start(start::StartOptions),
    /// Many documents: import, restart, memory, latency and recall.
    Scale(scale::ScaleOptions),
    /// Each part that servers share is stopped, frozen and slow, under a steady load.
    Faults(faults::FaultsOptions),
    /// Servers behind nginx and `HAProxy` are stopped and killed under load: failed searches.
    Balancers(balancers::BalancersOptions),
    /// The model in this process beside other libraries: texts per second, alone and beside busy
    /// processes. `make bench-embed` sets them up.
    Embed(embed::EmbedOptions),
    /// Judged queries: nDCG, and the embedded rankings beside those of the production stores.
    Relevance(relevance::RelevanceOptions),
    /// Three servers over Redis: what one has cached for the others, embeddings saved.
    Tiers(tiers::TiersOptions),
    /// Documents written while servers, Redis and Milvus are killed: what Milvus then holds.
    Outbox(outbox::OutboxOptions),
    /// A search of Milvus through the server's index, beside the client library's own call.
    Milvus,
    /// All of them that need no other store, one after the other.
    All {
        #[command(flatten)]
        cached: cached::CachedOptions,
        #[command(flatten)]
        zipf: zipf::ZipfOptions,
        #[command(flatten)]
        scale: scale::ScaleOptions,
    },
    /// The handler that `cached` is compared with; prints its address and serves.
    #[command(hide = true)]
    Baseline {
        #[arg(long)]
        bytes: usize,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { options, command } = cli;
    if let Command::Baseline { bytes } = command {
        return baseline::serve(bytes);
    }
    // One thread: the server keeps as much of the machine as it can have.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        report::head();
        match command {
            Command::Cached(cached) => cached::run(&options, &cached).await,
            Command::Uncached => uncached::run(&options).await,
            Command::Stampede => stampede::run(&options).await,
            Command::Zipf(zipf) => zipf::run(&options, &zipf).await,
            Command::Overload => overload::run(&options).await,
            Command::Start(start) => start::run(&options, &start).await,
            Command::Scale(scale) => scale::run(&options, &scale).await,
            Command::Balancers(balancers) => balancers::run(&options, &balancers).await,
            Command::Embed(embed) => embed::run(&options, &embed).await,
            Command::Faults(faults) => faults::run(&options, &faults).await,
            Command::Relevance(relevance) => relevance::run(&options, &relevance).await,
            Command::Tiers(tiers) => tiers::run(&options, &tiers).await,
            Command::Outbox(outbox) => Box::pin(outbox::run(&options, &outbox)).await,
            Command::Milvus => milvus::run(&options).await,
            Command::All { cached, zipf, scale } => {
                cached::run(&options, &cached).await?;
                uncached::run(&options).await?;
                stampede::run(&options).await?;
                zipf::run(&options, &zipf).await?;
                overload::run(&options).await?;
                scale::run(&options, &scale).await
            }
            Command::Baseline { .. } => Ok(()), // served above
        }
    })
}
