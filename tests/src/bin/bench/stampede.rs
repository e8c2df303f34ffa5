//! Many equal searches at once that all miss: how much is computed.

use std::time::Instant;

use serde_json::json;

use crate::http::{Connection, post};
use crate::report::{Bars, Table, median, ms, title};
use crate::server::{SAMPLES, Server, search_path};
use crate::{Failure, Options, texts};

const CALLERS: usize = 1_000;
const RESULT: &str = "sextant_cache_requests_total";

pub async fn run(options: &Options) -> Result<(), Failure> {
    let server = Server::with_samples(options).await?;
    let mut connections = Connection::open_many(server.address, CALLERS).await?;
    title("Stampede");
    let mut table = Table::new(&[
        "round",
        "answers",
        "embeddings computed",
        "index searches",
        "coalesced",
        "hits",
        "answered in ms",
    ]);
    let mut bars = Bars::new();
    let (mut embedded, mut searched, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let query = texts::query(round as u64);
        let search = post(&search_path(SAMPLES), &json!({ "query": query }));
        let before = server.metrics().await?;
        let clock = Instant::now();
        let exchanges = connections.iter_mut().map(|connection| connection.exchange(&search));
        let answers = futures::future::try_join_all(exchanges).await?;
        let took = clock.elapsed().as_secs_f64() * 1e3;
        let good = answers.iter().filter(|answer| answer.status == 200).count();
        let after = server.metrics().await?;
        let since = |name, labels| after.since(&before, name, labels);
        let texts = since("sextant_embed_texts_total", &["outcome=\"embedded\""]);
        let searches = since("sextant_search_stage_duration_seconds_count", &["stage=\"index\""]);
        table.row(&[
            &round,
            &good,
            &texts,
            &searches,
            &since(RESULT, &["tier=\"results\"", "result=\"coalesced\""]),
            &since(RESULT, &["tier=\"results\"", "result=\"hit\""]),
            &ms(took),
        ]);
        embedded.push(texts);
        searched.push(searches);
        times.push(took);
        if good != CALLERS {
            return Err(format!("only {good} of {CALLERS} were answered").into());
        }
    }
    table.print();
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    println!("\n{CALLERS} searches are answered in {} ms (median).", ms(median(&times)));
    bars.at_most("embeddings for 1,000 equal misses, most of any round", 1.0, most(&embedded));
    bars.at_most("index searches, most of any round", 1.0, most(&searched));
    bars.print();
    Ok(())
}
