//! Three servers over one Redis: what one of them has cached for the others.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use sextant_tests::production::Stores;

use crate::http::{Answer, Connection, post};
use crate::import::import;
use crate::load::{Latency, Until, closed_loop};
use crate::relevance::judged;
use crate::report::{Bars, Table, ms, quantile, title};
use crate::server::{Metrics, SAMPLES, Server, search_path, settings};
use crate::zipf::{Draw, QUERIES};
use crate::{Failure, Options, texts};

const SERVERS: usize = 3;
/// Connections to each of the servers.
const CONNECTIONS: usize = 5;
/// Queries that all servers are asked at once, each once.
const MISSES: u64 = 100;
/// Queries of the parts lie so far apart that none is asked in two.
const FAR: u64 = 1_000_000;

#[derive(Args)]
pub struct TiersOptions {
    /// Queries that one server is asked first and then the others.
    #[arg(long, default_value_t = 200)]
    queries: u64,
    /// Searches of the Zipf stream.
    #[arg(long, default_value_t = 20_000)]
    searches: u64,
}

pub async fn run(options: &Options, tiers: &TiersOptions) -> Result<(), Failure> {
    let stores = Stores::start().await;
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        // As long as it is by default: the model takes its time on a small machine.
        let settings = stores.options(settings(options)).set("worker.lease_ms", "60000");
        servers.push(Server::started(settings).await?);
    }
    let samples = judged::samples()?;
    let api = &servers[0].process.api;
    import(api, SAMPLES, samples.text_fields, &samples.documents).await?;
    let mut bars = Bars::new();
    elsewhere(&servers, tiers.queries, &mut bars).await?;
    together(&servers).await?;
    stream(&servers, tiers.searches, &mut bars).await?;
    bars.print();
    for server in servers {
        server.stop().await;
    }
    Ok(())
}

fn search(query: &str) -> Vec<u8> {
    post(&search_path(SAMPLES), &json!({ "query": query, "mode": "dense" }))
}

/// Where an answer came from: `miss`, `coalesced`, or the tier that had it.
fn source(answer: &Answer<'_>) -> Result<String, Failure> {
    let json = answer.json()?;
    let cache = &json["cache"];
    let source = cache["tier"].as_str().or(cache["status"].as_str());
    Ok(source.ok_or("an answer does not tell where it is from")?.to_owned())
}

/// Each query is asked on one server, then on each of the others.
async fn elsewhere(servers: &[Server], queries: u64, bars: &mut Bars) -> Result<(), Failure> {
    title("Cached by one server, asked on the others");
    let mut table = Table::new(&[
        "server",
        "searches",
        "miss",
        "memory",
        "redis",
        "p50 ms",
        "p99 ms",
        "server p50 ms",
        "server p99 ms",
    ]);
    let (mut found, mut asked) = (0, 0);
    let (mut client, mut server_time) = (Vec::new(), Vec::new());
    for (place, server) in servers.iter().enumerate() {
        let mut connection = Connection::open(server.address).await?;
        let (mut from, mut all, mut inside) = ([0_u64; 3], Vec::new(), Vec::new());
        for number in 0..queries {
            let request = search(&texts::query(2 * FAR + number));
            let clock = Instant::now();
            let answer = connection.exchange(&request).await?;
            let took = clock.elapsed().as_secs_f64() * 1e3;
            let own = answer.processing_time_ms().ok_or("no processing time")?;
            let source = source(&answer)?;
            from[["miss", "memory", "redis"]
                .iter()
                .position(|name| *name == source)
                .unwrap_or(0)] += 1;
            all.push(took);
            inside.push(own);
            if place > 0 && source == "redis" {
                client.push(took);
                server_time.push(own);
            }
        }
        if place > 0 {
            found += from[1] + from[2];
            asked += queries;
        }
        table.row(&[
            &(place + 1),
            &queries,
            &from[0],
            &from[1],
            &from[2],
            &ms(quantile(&all, 0.5)),
            &ms(quantile(&all, 0.99)),
            &ms(quantile(&inside, 0.5)),
            &ms(quantile(&inside, 0.99)),
        ]);
    }
    table.print();
    println!(
        "\nAnswers from Redis: p50 {} ms, p99 {} ms; by the server's clock {} and {} ms.",
        ms(quantile(&client, 0.5)),
        ms(quantile(&client, 0.99)),
        ms(quantile(&server_time, 0.5)),
        ms(quantile(&server_time, 0.99)),
    );
    bars.at_least("share of hits on the other servers", 1.0, found as f64 / asked as f64);
    bars.at_most("p99 of answers from Redis, ms", 5.0, quantile(&client, 0.99));
    Ok(())
}

/// Each query misses on all servers at the same time.
async fn together(servers: &[Server]) -> Result<(), Failure> {
    let before = metrics(servers).await?;
    let mut connections = Vec::new();
    for server in servers {
        connections.push(Connection::open(server.address).await?);
    }
    for number in 0..MISSES {
        let request = search(&texts::query(FAR + number));
        let exchanges = connections.iter_mut().map(|connection| connection.exchange(&request));
        let answers = futures::future::try_join_all(exchanges).await?;
        if answers.iter().any(|answer| answer.status != 200) {
            return Err("searches failed".into());
        }
    }
    let after = metrics(servers).await?;
    title("One equal miss on all servers at once");
    println!(
        "\n{MISSES} queries, each on {SERVERS} servers at once: {} embeddings and {} searches of the index.",
        since(&before, &after, "sextant_embed_texts_total", &["outcome=\"embedded\""]),
        since(&before, &after, "sextant_search_stage_duration_seconds_count", &["stage=\"index\""]),
    );
    Ok(())
}

/// A Zipf stream over all servers.
async fn stream(servers: &[Server], searches: u64, bars: &mut Bars) -> Result<(), Failure> {
    let before = metrics(servers).await?;
    let draw = Draw::new();
    let request = |_| Cow::Owned(search(&draw.next()));
    let clock = Instant::now();
    let loops = servers.iter().map(|server| {
        let (request, until) = (&request, Until::Requests(searches / SERVERS as u64));
        async move {
            let (mut latency, mut from) = (Latency::new(), [0_u64; 4]);
            let mut observe = |answer: &Answer<'_>, took: Duration| {
                latency.record(took);
                from[place(answer)] += 1;
            };
            let run =
                closed_loop(server.address, CONNECTIONS, until, request, &mut observe).await?;
            if run.good < run.requests {
                return Err(Failure::from("searches failed"));
            }
            Ok((run.good, latency, from))
        }
    });
    let runs = futures::future::try_join_all(loops).await?;
    let elapsed = clock.elapsed().as_secs_f64();
    let after = metrics(servers).await?;
    title(&format!("Zipf stream over {SERVERS} servers, {QUERIES} distinct queries"));
    let mut table = Table::new(&[
        "server",
        "searches",
        "p50 ms",
        "p99 ms",
        "memory",
        "redis",
        "coalesced",
        "miss",
    ]);
    let all: u64 = runs.iter().map(|(good, _, _)| good).sum();
    for (number, (good, latency, from)) in (1..).zip(&runs) {
        let share = |place: usize| format!("{:.1} %", 100.0 * from[place] as f64 / *good as f64);
        table.row(&[
            &number,
            good,
            &ms(latency.ms(0.5)),
            &ms(latency.ms(0.99)),
            &share(0),
            &share(1),
            &share(2),
            &share(3),
        ]);
    }
    table.print();
    let embedded = since(&before, &after, "sextant_embed_texts_total", &["outcome=\"embedded\""]);
    let saved = 1.0 - embedded / all as f64;
    println!(
        "\n{:.0} searches/s; {embedded} embeddings for {all} searches: {:.1} % are saved.",
        all as f64 / elapsed,
        100.0 * saved
    );
    bars.at_least("share of embeddings saved", 0.7, saved);
    Ok(())
}

/// Of an answer's source, told from its end without reading all of it.
fn place(answer: &Answer<'_>) -> usize {
    let tail = String::from_utf8_lossy(&answer.body[answer.body.len().saturating_sub(240)..]);
    ["\"tier\":\"memory\"", "\"tier\":\"redis\"", "\"status\":\"coalesced\""]
        .iter()
        .position(|part| tail.contains(part))
        .unwrap_or(3)
}

async fn metrics(servers: &[Server]) -> Result<Vec<Metrics>, Failure> {
    let mut all = Vec::new();
    for server in servers {
        all.push(server.metrics().await?);
    }
    Ok(all)
}

/// How much a counter grew in all servers together.
fn since(before: &[Metrics], after: &[Metrics], name: &str, labels: &[&str]) -> f64 {
    before.iter().zip(after).map(|(before, after)| after.since(before, name, labels)).sum()
}
