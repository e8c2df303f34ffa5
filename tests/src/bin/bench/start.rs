//! A server's start and its memory: at rest, and while texts of all lengths come.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::http::{Connection, post};
use crate::report::{Bars, Table, median, mib, ms, title};
use crate::server::{Server, settings};
use crate::{Failure, Options, texts};

/// The first is compared with the last of them.
const QUERIES: u64 = 10;
/// How often the memory is looked at under load.
const LOOKS: u64 = 10;
const WORDS: [usize; 6] = [2, 10, 30, 80, 150, 400];

#[derive(Args)]
pub struct StartOptions {
    /// How long texts of mixed lengths come.
    #[arg(long, default_value_t = 60)]
    load_seconds: u64,
}

pub async fn run(options: &Options, start: &StartOptions) -> Result<(), Failure> {
    title("Start, and memory at rest");
    let (mut ready, mut at_rest) = (Vec::new(), Vec::new());
    let mut latencies: Vec<Vec<f64>> = (0..QUERIES).map(|_| Vec::new()).collect();
    for round in 0..options.rounds as u64 {
        let begin = Instant::now();
        let server = Server::started(settings(options)).await?;
        ready.push(begin.elapsed().as_secs_f64());
        at_rest.push(server.resident_bytes());
        let mut connection = Connection::open(server.address).await?;
        for (number, latencies) in latencies.iter_mut().enumerate() {
            let text = texts::text(round * QUERIES + number as u64, 8);
            let asked = Instant::now();
            embed(&mut connection, &[text]).await?;
            latencies.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        server.stop().await;
    }
    let mut table =
        Table::new(&["ready after s", "first query ms", "tenth query ms", "MiB at rest"]);
    let (first, tenth) = (median(&latencies[0]), median(&latencies[QUERIES as usize - 1]));
    let (ready, at_rest) = (median(&ready), median(&at_rest));
    table.row(&[&format!("{ready:.2}"), &ms(first), &ms(tenth), &mib(at_rest)]);
    table.print();
    let mut bars = Bars::new();
    bars.at_most("ready after s", 2.0, ready);
    bars.at_most("first query / tenth", 1.5, first / tenth);
    bars.at_most("MB at rest", 400.0, at_rest / 1e6);
    bars.print();

    title("Memory while texts of 2 to 400 words come");
    let server = Server::started(settings(options)).await?;
    let mut connection = Connection::open(server.address).await?;
    let mut table = Table::new(&["after s", "texts", "MiB"]);
    let (mut number, begin) = (0, Instant::now());
    for look in 1..=LOOKS {
        let until = Duration::from_secs(start.load_seconds) * look as u32 / LOOKS as u32;
        while begin.elapsed() < until {
            // From one to eight texts, of all lengths and between them.
            let input: Vec<String> = (0..=number % 8)
                .map(|n| {
                    texts::text(
                        number + n,
                        WORDS[((number + n) % 6) as usize] + (number % 7) as usize,
                    )
                })
                .collect();
            number += input.len() as u64;
            embed(&mut connection, &input).await?;
        }
        table.row(&[&until.as_secs(), &number, &mib(server.resident_bytes())]);
    }
    table.print();
    server.stop().await;
    Ok(())
}

async fn embed(connection: &mut Connection, input: &[String]) -> Result<(), Failure> {
    match connection.exchange(&post("/v1/embeddings", &json!({ "input": input }))).await?.status {
        200 => Ok(()),
        status => Err(format!("status {status}").into()),
    }
}
