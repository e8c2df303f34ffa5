//! Many clients at the same time, with the server's order of texts and in that of their arrival.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use serde_json::json;
use sextant_server::adapters::embedder::batching::Batching;
use sextant_server::adapters::embedder::torch::{TorchEmbedder, TorchOptions};
use sextant_server::ports::{Class, EmbedError, Embedder, Urgency};

use super::BATCH;
use crate::http::{Answer, post};
use crate::load::{Until, closed_loop};
use crate::report::{Bars, Table, median, ms, quantile, title};
use crate::server::{self, Server};
use crate::{Failure, Options, texts};

const CLIENTS: u64 = 64;
/// For a query, as in a search.
const DEADLINE: Duration = Duration::from_secs(1);
/// For a batch of passages, as in an import.
const PATIENCE: Duration = Duration::from_mins(2);
/// Batches of passages that are under way at a time, as the chunks of an import.
const IMPORTS: u64 = 3;

#[derive(Default)]
struct Round {
    latencies: Vec<f64>,
    queries: usize,
    late: usize,
    passages: usize,
    seconds: f64,
}

pub async fn compare(options: &Options, of: &TorchOptions) -> Result<(), Failure> {
    title("64 clients with a query each, at the same time");
    let policies = [("deadline", Batching::Deadline), ("fifo", Batching::Fifo)];
    let load =
        |batching| TorchEmbedder::load(&TorchOptions { batching, ..of.clone() }, Arc::default());
    let mut table = Table::new(&[
        "batching",
        "beside it",
        "queries/s",
        "p50 ms",
        "p99 ms",
        "too late or refused",
        "passages/s",
    ]);
    let mut embedders = Vec::new();
    for (name, batching) in policies {
        embedders.push((name, load(batching)?));
    }
    let mut next = 1 << 32;
    for imports in [0, IMPORTS] {
        let mut rounds: Vec<Vec<Round>> = embedders.iter().map(|_| Vec::new()).collect();
        for _ in 0..options.rounds {
            for ((_, embedder), rounds) in embedders.iter().zip(&mut rounds) {
                let length = Duration::from_secs_f64(options.seconds);
                rounds.push(round(embedder, imports, length, next).await?);
                next += 1 << 20;
            }
        }
        for ((name, _), rounds) in embedders.iter().zip(&rounds) {
            let middle =
                |of: &dyn Fn(&Round) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
            let lost = middle(&|it| it.late as f64 / (it.queries + it.late).max(1) as f64);
            table.row(&[
                name,
                &if imports == 0 { "nothing" } else { "an import of passages" },
                &format!("{:.0}", middle(&|it| it.queries as f64 / it.seconds)),
                &ms(middle(&|it| quantile(&it.latencies, 0.5))),
                &ms(middle(&|it| quantile(&it.latencies, 0.99))),
                &format!("{:.1} %", 100.0 * lost),
                &format!("{:.0}", middle(&|it| it.passages as f64 / it.seconds)),
            ]);
        }
    }
    table.print();
    Ok(())
}

/// The same queries by `/v1/embeddings` of a server with the same model, and in this process.
pub async fn over_http(options: &Options, of: &TorchOptions) -> Result<(), Failure> {
    title("64 clients over HTTP, and in the process");
    let workers = of.workers.to_string();
    let settings = server::settings(options).set("embedder.workers", &workers);
    let server = Server::started(settings).await?;
    let embedder = TorchEmbedder::load(of, Arc::default())?;
    let length = Duration::from_secs_f64(options.seconds);
    let mut next = 1 << 40;
    let (mut inside, mut outside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let round = round(&embedder, 0, length, next).await?;
        let begin = OnceCell::new();
        let request = |n: u64| {
            begin.get_or_init(Instant::now);
            let input = texts::query(next + (1 << 19) + n);
            Cow::Owned(post("/v1/embeddings", &json!({"input": input})))
        };
        let mut in_time = 0;
        let mut count = |answer: &Answer<'_>, _| {
            let is_in_time = begin.get().is_some_and(|begin| begin.elapsed() < length);
            in_time += usize::from(answer.status == 200 && is_in_time);
        };
        let until = Until::Elapsed(length);
        closed_loop(server.address, CLIENTS as usize, until, &request, &mut count).await?;
        inside.push(round.queries as f64 / round.seconds);
        outside.push(in_time as f64 / length.as_secs_f64());
        ratios.push(outside[outside.len() - 1] / inside[inside.len() - 1]);
        next += 1 << 20;
    }
    let mut table = Table::new(&["in the process, queries/s", "over HTTP, queries/s"]);
    let rate = |all: &[f64]| format!("{:.0}", median(all));
    table.row(&[&rate(&inside), &rate(&outside)]);
    table.print();
    let mut bars = Bars::new();
    bars.at_least("over HTTP / in the process", 0.9, median(&ratios));
    bars.print();
    server.stop().await;
    Ok(())
}

async fn round(
    embedder: &TorchEmbedder,
    imports: u64,
    length: Duration,
    first: u64,
) -> Result<Round, Failure> {
    let (begin, over) = (Instant::now(), AtomicBool::new(false));
    let over = &over;
    let client = |client: u64| async move {
        let mut mine = Round::default();
        let mut number = first + client;
        while begin.elapsed() < length {
            let asked = Instant::now();
            let urgency = Urgency { class: Class::Interactive, deadline: asked + DEADLINE };
            match embedder.embed(vec![texts::query(number).into()], urgency).await {
                // The last answers come after the time that is counted.
                Ok(_) if begin.elapsed() >= length => {}
                Ok(_) => {
                    mine.queries += 1;
                    mine.latencies.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                Err(EmbedError::Overloaded { retry_after }) => {
                    mine.late += 1;
                    tokio::time::sleep(retry_after).await;
                }
                Err(EmbedError::DeadlineExceeded) => mine.late += 1,
                Err(error) => return Err(Failure::from(error)),
            }
            number += CLIENTS;
        }
        Ok(mine)
    };
    let import = |import: u64| async move {
        let mut passages = 0;
        let mut number = first + (import << 16);
        while !over.load(Ordering::Relaxed) {
            let batch = (number..number + BATCH as u64).map(|n| super::passage(n).into()).collect();
            let urgency = Urgency { class: Class::Bulk, deadline: Instant::now() + PATIENCE };
            embedder.embed_patiently(batch, urgency).await?;
            if begin.elapsed() < length {
                passages += BATCH;
            }
            number += BATCH as u64;
        }
        Ok::<usize, Failure>(passages)
    };
    let clients = async {
        let clients = join_all((0..CLIENTS).map(client)).await;
        over.store(true, Ordering::Relaxed);
        clients
    };
    let (clients, imports) = join(clients, join_all((0..imports).map(import))).await;
    let mut all = Round { seconds: length.as_secs_f64(), ..Round::default() };
    for one in clients {
        let one = one?;
        all.queries += one.queries;
        all.late += one.late;
        all.latencies.extend(one.latencies);
    }
    for passages in imports {
        all.passages += passages?;
    }
    Ok(all)
}
