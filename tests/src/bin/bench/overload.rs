//! Padding under mixed lengths, and what remains of the goodput when five times as much is asked
//! for as can be done.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use serde_json::json;

use crate::http::{Answer, post};
use crate::load::{Latency, Offered, OpenRun, Request, Run, Until, closed_loop, open_loop};
use crate::report::{Bars, Table, median, ms, title};
use crate::server::{SAMPLES, Server, search_path, settings};
use crate::{Failure, Options, texts};

const TIMEOUT_MS: u64 = 2_000;
const OVERLOAD: f64 = 5.0;
/// Closed loops of these sizes look for the peak.
const CALLERS: [usize; 3] = [8, 32, 128];
const MIXED_CALLERS: usize = 32;
const OPEN_CONNECTIONS: usize = 3_000;

pub async fn run(options: &Options) -> Result<(), Failure> {
    let timeout = TIMEOUT_MS.to_string();
    let server =
        Server::start(settings(options).set("server.request_timeout_ms", &timeout)).await?;
    title("Overload");
    let mut bars = Bars::new();
    padding(&server, options, &mut bars).await?;
    goodput(&server, options, &mut bars).await?;
    bars.print();
    Ok(())
}

async fn padding(server: &Server, options: &Options, bars: &mut Bars) -> Result<(), Failure> {
    let request = |n: u64| {
        // 2 to 200 words, in an order that mixes short and long.
        let words = 2 + (n * 83 % 199) as usize;
        Cow::Owned(post("/v1/embeddings", &json!({ "input": texts::text(n, words) })))
    };
    let before = server.metrics().await?;
    let until = Until::Elapsed(time(options.seconds * 2.0));
    let run = closed_loop(server.address, MIXED_CALLERS, until, &request, &mut |_, _| ()).await?;
    let after = server.metrics().await?;
    let tokens = |kind: &str| {
        after.since(&before, "sextant_embed_tokens_total", &[&format!("kind=\"{kind}\"")])
    };
    let (text, padding) = (tokens("text"), tokens("padding"));
    let share = 100.0 * padding / (text + padding);
    let mut table =
        Table::new(&["texts of 2 to 200 words", "texts/s", "tokens/s", "p99 ms", "padding"]);
    table.row(&[
        &run.good,
        &format!("{:.0}", run.good_per_second()),
        &format!("{:.0}", text / run.elapsed.as_secs_f64()),
        &ms(run.latency.ms(0.99)),
        &format!("{share:.1} %"),
    ]);
    table.print();
    bars.at_most("padding in % of the tokens", 5.0, share);
    Ok(())
}

/// What an overloaded server did.
struct Overloaded {
    open: OpenRun,
    refused: u64,
    without_retry_after: u64,
    expired: u64,
    failed: u64,
    late: u64,
    refusal: Latency,
}

async fn goodput(server: &Server, options: &Options, bars: &mut Bars) -> Result<(), Failure> {
    let next = Cell::new(0);
    let fresh = |_| {
        next.set(next.get() + 1);
        Cow::Owned(post(&search_path(SAMPLES), &json!({ "query": texts::query(next.get()) })))
    };
    let mut table = Table::new(&[
        "load",
        "offered/s",
        "good/s",
        "share of peak",
        "p50 ms",
        "p99 ms",
        "refused",
        "refusal p99 ms",
        "504",
        "later than the deadline",
        "not sent",
        "reconnected",
    ]);
    let mut shares = Vec::new();
    let (mut without, mut late, mut expired) = (0, 0, 0);
    for _ in 0..options.rounds {
        let mut peak: Option<(usize, Run)> = None;
        for callers in CALLERS {
            let until = Until::Elapsed(time(options.seconds));
            let run = closed_loop(server.address, callers, until, &fresh, &mut |_, _| ()).await?;
            if peak.as_ref().is_none_or(|(_, peak)| peak.good_per_second() < run.good_per_second())
            {
                peak = Some((callers, run));
            }
        }
        let Some((callers, peak)) = peak else { continue };
        let best = peak.good_per_second();
        let offered = Offered {
            per_second: OVERLOAD * best,
            time: time(options.seconds * 3.0),
            connections: OPEN_CONNECTIONS,
        };
        let over = overloaded(server, offered, &fresh).await?;
        let good = over.open.good_in_time as f64 / offered.time.as_secs_f64();
        let dash = "";
        table.row(&[
            &format!("{callers} callers"),
            &dash,
            &format!("{best:.0}"),
            &"1",
            &ms(peak.latency.ms(0.5)),
            &ms(peak.latency.ms(0.99)),
            &(peak.requests - peak.good),
            &dash,
            &dash,
            &dash,
            &dash,
            &dash,
        ]);
        table.row(&[
            &format!("open, {OVERLOAD}×"),
            &format!("{:.0}", offered.per_second),
            &format!("{good:.0}"),
            &format!("{:.2}", good / best),
            &ms(over.open.run.latency.ms(0.5)),
            &ms(over.open.run.latency.ms(0.99)),
            &format!("{} of {}", over.refused, over.open.offered),
            &ms(over.refusal.ms(0.99)),
            &over.expired,
            &over.late,
            &over.open.skipped,
            &over.open.reconnected,
        ]);
        if over.failed > 0 {
            return Err(format!("{} requests failed otherwise", over.failed).into());
        }
        shares.push(good / best);
        expired += over.expired;
        without += over.without_retry_after;
        late += over.late;
    }
    table.print();
    bars.at_least("goodput under overload, share of the peak", 0.9, median(&shares));
    bars.at_most("refusals without Retry-After", 0.0, without as f64);
    bars.at_most("answers 200 later than the deadline", 0.0, late as f64);
    bars.at_most("admitted but not done by the deadline (504)", 0.0, expired as f64);
    Ok(())
}

async fn overloaded(
    server: &Server,
    offered: Offered,
    request: Request<'_>,
) -> Result<Overloaded, Failure> {
    let (mut refused, mut without_retry_after, mut expired, mut failed) = (0, 0, 0, 0);
    let mut late = 0;
    let mut refusal = Latency::new();
    let mut see = |answer: &Answer<'_>, took: Duration| match answer.status {
        // By the server's clock: its deadline counts from when it has the request.
        200 => {
            let time = answer.processing_time_ms();
            late += u64::from(time.is_none_or(|time| time > TIMEOUT_MS as f64));
        }
        503 => {
            refused += 1;
            without_retry_after += u64::from(answer.header("retry-after").is_none());
            refusal.record(took);
        }
        504 => expired += 1,
        _ => failed += 1,
    };
    let open = open_loop(server.address, offered, request, &mut see).await?;
    Ok(Overloaded { open, refused, without_retry_after, expired, failed, late, refusal })
}

fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
