//! A stream in which few queries are frequent and most are rare, as people search.

use std::borrow::Cow;
use std::cell::RefCell;

use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::http::{post, send};
use crate::load::{Run, Until, closed_loop};
use crate::report::{Table, mib, ms, title};
use crate::server::{SAMPLES, Server, search_path};
use crate::{Failure, Options, texts};

pub const QUERIES: usize = 10_000;
const CONNECTIONS: usize = 16;
const SEED: u64 = 42;

#[derive(Args)]
pub struct ZipfOptions {
    /// Searches in the stream; a tenth as many without the cache.
    #[arg(long, default_value_t = 50_000)]
    requests: u64,
}

pub async fn run(options: &Options, zipf: &ZipfOptions) -> Result<(), Failure> {
    let server = Server::with_samples(options).await?;
    title("Zipf stream");
    let mut table = Table::new(&[
        "cache",
        "searches",
        "searches/s",
        "p50 ms",
        "p99 ms",
        "hit rate",
        "embeddings",
        "cache MiB",
        "server MiB",
    ]);
    let mut saved = String::new();
    for cache in [false, true] {
        let requests = if cache { zipf.requests } else { zipf.requests / 10 };
        let before = server.metrics().await?;
        let run = stream(&server, requests, cache).await?;
        let after = server.metrics().await?;
        let embeddings =
            after.since(&before, "sextant_embed_texts_total", &["outcome=\"embedded\""]);
        let hits = ["hit", "coalesced"].map(|result| {
            let labels = ["tier=\"results\"", &format!("result=\"{result}\"")];
            after.since(&before, "sextant_cache_requests_total", &labels)
        });
        table.row(&[
            &(if cache { "on" } else { "bypassed" }),
            &run.good,
            &format!("{:.0}", run.good_per_second()),
            &ms(run.latency.ms(0.5)),
            &ms(run.latency.ms(0.99)),
            &format!("{:.1} %", 100.0 * (hits[0] + hits[1]) / run.good as f64),
            &embeddings,
            &mib(after.sum("sextant_cache_bytes", &[])),
            &mib(server.resident_bytes()),
        ]);
        if cache {
            saved = format!("{:.1} %", 100.0 * (1.0 - embeddings / run.good as f64));
        } else {
            // What the bypassed searches left behind would be hits.
            server.json(&post("/v1/admin/cache/invalidate", &json!({ "all": true }))).await?;
        }
    }
    table.print();
    println!(
        "\nThe cache saves {saved} of the embeddings; {QUERIES} distinct queries, exponent 1."
    );
    Ok(())
}

/// Draws queries, the `k`-th most frequent with a probability proportional to `1/k`.
pub struct Draw {
    sums: Vec<f64>,
    random: RefCell<StdRng>,
}

impl Draw {
    pub fn new() -> Self {
        let sums = (1..=QUERIES).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self { sums: sums.collect(), random: RefCell::new(StdRng::seed_from_u64(SEED)) }
    }

    pub fn next(&self) -> String {
        let place = self.random.borrow_mut().random_range(0.0..self.sums[QUERIES - 1]);
        texts::query(self.sums.partition_point(|sum| *sum < place) as u64)
    }
}

async fn stream(server: &Server, requests: u64, cache: bool) -> Result<Run, Failure> {
    let draw = Draw::new();
    let headers = if cache { "" } else { "cache-control: no-cache\r\n" };
    let request = |_| {
        let body = json!({ "query": draw.next() });
        Cow::Owned(send("POST", &search_path(SAMPLES), headers, &body))
    };
    let until = Until::Requests(requests);
    let run = closed_loop(server.address, CONNECTIONS, until, &request, &mut |_, _| ()).await?;
    if run.good == run.requests { Ok(run) } else { Err("searches failed".into()) }
}
