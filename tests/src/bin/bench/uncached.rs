//! Searches that miss, one after the other: what they cost beside their embedding and their index
//! search.

use std::time::Instant;

use serde_json::json;

use crate::http::{Connection, post};
use crate::report::{Bars, Table, median, ms, quantile, title};
use crate::server::{SAMPLES, Server, search_path};
use crate::{Failure, Options, texts};

const MODES: [&str; 2] = ["dense", "hybrid"];
const PER_ROUND: u64 = 100;

#[derive(Default)]
struct Columns {
    client: Vec<f64>,
    total: Vec<f64>,
    embed: Vec<f64>,
    index: Vec<f64>,
    documents: Vec<f64>,
    server_ratio: Vec<f64>,
    client_ratio: Vec<f64>,
}

pub async fn run(options: &Options) -> Result<(), Failure> {
    let server = Server::with_samples(options).await?;
    let mut connection = Connection::open(server.address).await?;
    let mut queries = (0..).map(texts::query);
    let mut columns: [Columns; 2] = Default::default();
    let mut model = (0.0, 0.0);
    // The first round warms up.
    for round in 0..=options.rounds {
        let before = server.metrics().await?;
        for query in queries.by_ref().take(MODES.len() * PER_ROUND as usize).enumerate() {
            let (i, query) = (query.0 % MODES.len(), query.1);
            let search = post(&search_path(SAMPLES), &json!({ "query": query, "mode": MODES[i] }));
            let clock = Instant::now();
            let answer = connection.exchange(&search).await?;
            let client = clock.elapsed().as_secs_f64() * 1e3;
            if round == 0 {
                continue;
            }
            let stage = |stage| answer.stage_ms(stage).ok_or("no Server-Timing");
            let (embed, index, documents) = (stage("embed")?, stage("index")?, stage("documents")?);
            let total = answer.processing_time_ms().ok_or("no processing_time_ms")?;
            let column = &mut columns[i];
            column.client.push(client);
            column.total.push(total);
            column.embed.push(embed);
            column.index.push(index);
            column.documents.push(documents);
            column.server_ratio.push(total / (embed + index));
            column.client_ratio.push(client / (embed + index));
        }
        if round > 0 {
            let after = server.metrics().await?;
            model.0 += after.since(&before, "sextant_embed_duration_seconds_sum", &[]);
            model.1 += after.since(&before, "sextant_embed_duration_seconds_count", &[]);
        }
    }

    title("Uncached searches");
    let mut table = Table::new(&[
        "mode",
        "searches",
        "client ms",
        "server ms",
        "embed ms",
        "index ms",
        "documents ms",
        "server / (embed + index): median",
        "p99",
        "client / (embed + index): median",
        "p99",
    ]);
    let mut bars = Bars::new();
    for (mode, columns) in MODES.iter().zip(&columns) {
        let (server, client) = (&columns.server_ratio, &columns.client_ratio);
        table.row(&[
            mode,
            &server.len(),
            &ms(median(&columns.client)),
            &ms(median(&columns.total)),
            &ms(median(&columns.embed)),
            &ms(median(&columns.index)),
            &ms(median(&columns.documents)),
            &format!("{:.3}", median(server)),
            &format!("{:.3}", quantile(server, 0.99)),
            &format!("{:.3}", median(client)),
            &format!("{:.3}", quantile(client, 0.99)),
        ]);
        bars.at_most(&format!("{mode}: server / (embed + index)"), 1.1, median(server));
        bars.at_most(&format!("{mode}: client / (embed + index)"), 1.1, median(client));
    }
    table.print();
    println!("\nOf `embed`, the model itself takes {} ms on average.", ms(model.0 / model.1 * 1e3));
    bars.print();
    Ok(())
}
