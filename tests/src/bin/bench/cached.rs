//! Searches answered from the cache, against an empty axum handler that gets the same requests.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::baseline::{self, Baseline};
use crate::http::{Answer, Connection, post};
use crate::load::{Latency, Until, closed_loop};
use crate::report::{Bars, Table, median, ms, title};
use crate::server::{SAMPLES, Server, cpu_seconds, search_path};
use crate::{Failure, Options, texts};

const QUERIES: u64 = 100;

#[derive(Args)]
pub struct CachedOptions {
    /// Connections, each of which waits for its answer before it asks again.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<usize>,
}

/// What one measurement gave.
struct Sample {
    per_second: f64,
    p50: f64,
    p99: f64,
    server_p99: f64,
    cpu_micros: f64,
}

pub async fn run(options: &Options, cached: &CachedOptions) -> Result<(), Failure> {
    let server = Server::with_samples(options).await?;
    let body = |n| json!({ "query": texts::query(n) });
    let searches: Vec<_> = (0..QUERIES).map(|n| post(&search_path(SAMPLES), &body(n))).collect();
    let mut connection = Connection::open(server.address).await?;
    let mut bytes = 0;
    for search in &searches {
        bytes += connection.exchange(search).await?.json()?.to_string().len();
    }
    let mean = bytes / searches.len();
    let (tiny, equal) = (Baseline::start(2)?, Baseline::start(mean)?);
    let empty: Vec<_> = (0..QUERIES).map(|n| post(baseline::PATH, &body(n))).collect();
    let targets = [
        ("empty handler, 11 bytes".to_owned(), tiny.pid(), tiny.address, &empty),
        (format!("empty handler, {mean} bytes"), equal.pid(), equal.address, &empty),
        (
            format!("cached search, {mean} bytes"),
            server.process.process.pid(),
            server.address,
            &searches,
        ),
    ];

    title("Cached searches");
    let mut table = Table::new(&[
        "connections",
        "target",
        "requests/s",
        "ratio to 11 bytes",
        "ratio to equal bytes",
        "p50 ms",
        "p99 ms",
        "server p99 ms",
        "server CPU µs/request",
    ]);
    let mut bars = Bars::new();
    for &connections in &cached.connections {
        let mut samples = targets.each_ref().map(|_| Vec::new());
        for round in 0..=options.rounds {
            for ((_, pid, address, requests), samples) in targets.iter().zip(&mut samples) {
                let sample =
                    measure(*pid, *address, requests, connections, options.seconds).await?;
                // The first round warms up.
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        let ratio = |of: usize, to: usize| {
            let pairs = samples[of].iter().zip(&samples[to]);
            median(&pairs.map(|(of, to)| of.per_second / to.per_second).collect::<Vec<_>>())
        };
        for (i, (name, ..)) in targets.iter().enumerate() {
            let middle = |value: fn(&Sample) -> f64| {
                median(&samples[i].iter().map(value).collect::<Vec<_>>())
            };
            let server = if i == 2 { ms(middle(|s| s.server_p99)) } else { String::new() };
            table.row(&[
                &connections,
                name,
                &format!("{:.0}", middle(|s| s.per_second)),
                &format!("{:.2}", ratio(i, 0)),
                &format!("{:.2}", ratio(i, 1)),
                &ms(middle(|s| s.p50)),
                &ms(middle(|s| s.p99)),
                &server,
                &format!("{:.1}", middle(|s| s.cpu_micros)),
            ]);
        }
        let of_search =
            |value: fn(&Sample) -> f64| median(&samples[2].iter().map(value).collect::<Vec<_>>());
        let at = format!("at {connections} connections");
        bars.at_most(&format!("server time p99 {at}, ms"), 1.0, of_search(|s| s.server_p99));
        if connections == 1 {
            bars.at_most(&format!("client latency p99 {at}, ms"), 1.0, of_search(|s| s.p99));
        }
        bars.at_least(&format!("ratio to 11 bytes {at}"), 0.6, ratio(2, 0));
        bars.at_least(&format!("ratio to equal bytes {at}"), 0.6, ratio(2, 1));
    }
    table.print();
    bars.print();
    Ok(())
}

async fn measure(
    pid: u32,
    address: SocketAddr,
    requests: &[Vec<u8>],
    connections: usize,
    seconds: f64,
) -> Result<Sample, Failure> {
    let request = |n: u64| Cow::Borrowed(requests[(n % requests.len() as u64) as usize].as_slice());
    let mut server_time = Latency::new();
    let mut see = |answer: &Answer<'_>, _| {
        if let Some(time) = answer.processing_time_ms() {
            server_time.record(Duration::from_secs_f64(time / 1e3));
        }
    };
    let before = cpu_seconds(pid);
    let until = Until::Elapsed(Duration::from_secs_f64(seconds));
    let run = closed_loop(address, connections, until, &request, &mut see).await?;
    if run.good != run.requests {
        return Err(
            format!("{} of {} requests failed", run.requests - run.good, run.requests).into()
        );
    }
    Ok(Sample {
        per_second: run.good_per_second(),
        p50: run.latency.ms(0.5),
        p99: run.latency.ms(0.99),
        server_p99: server_time.ms(0.99),
        cpu_micros: (cpu_seconds(pid) - before) * 1e6 / run.good as f64,
    })
}
