//! The failure matrix: every part that servers share is stopped, frozen and slow for some seconds,
//! while searches and writes come at a steady rate. What fails, how long requests take, what the
//! servers say, and how soon all is as before.

mod link;
mod load;
mod system;
mod table;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::time::{sleep, timeout};

use crate::outcome::Done;
use crate::report::title;
use crate::server::settings;
use crate::{Failure, Options};
use load::{COLLECTIONS, Kind, Load, Rates};
use system::{Fault, Health, Part, System};
use table::{Row, Searches};

/// So many searches in a row that went right are a sign that all is well again.
const IN_A_ROW: usize = 20;
/// Longest wait for all to be as before.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const ASK_EVERY: Duration = Duration::from_millis(250);

#[derive(Args)]
pub struct FaultsOptions {
    /// Searches a second, of all servers together.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Writes a second.
    #[arg(long, default_value_t = 5.0)]
    writes: f64,
    /// How long each fault lasts.
    #[arg(long, default_value_t = 6.0)]
    fault_seconds: f64,
    /// How much later everything arrives, each way, from a part that is slow.
    #[arg(long, default_value_t = 300)]
    delay_ms: u64,
    /// Only these parts; all when none is named.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// The real model in the embedding server, in place of pseudo-vectors.
    #[arg(long)]
    with_model: bool,
}

pub async fn run(options: &Options, faults: &FaultsOptions) -> Result<(), Failure> {
    let embedder =
        if faults.with_model { settings(options) } else { sextant_tests::Options::hash() };
    let mut system = System::start(embedder).await?;
    let rates = Rates { searches_per_second: faults.rate, writes_per_second: faults.writes };
    let load = Load::start(&system.addresses()?, rates);
    let calm = system.health().await;
    let mut rows = Vec::new();
    for (part, fault) in matrix(&faults.parts) {
        eprintln!("{part} {fault} …");
        // One fault at a time: a replica needs a while to follow a primary that was away.
        if healthy(&system, &calm, fault).await.is_none() {
            return Err("not all is as it was at the start".into());
        }
        rows.push(measure(&mut system, &load, part, fault, options, faults).await?);
    }
    drop(load);
    title("Failures");
    println!(
        "\n{} searches/s and {} writes/s over three servers, {}; each fault lasts {} s, slow is \
         {} ms later each way",
        faults.rate,
        faults.writes,
        if faults.with_model { "the real model" } else { "pseudo-vectors" },
        faults.fault_seconds,
        faults.delay_ms
    );
    table::print(&rows);
    Ok(())
}

/// What fails, and how; the last one changes the system for good.
fn matrix(parts: &[Part]) -> Vec<(Part, Fault)> {
    let faults = [Fault::Stopped, Fault::Frozen, Fault::Slow];
    let each = Part::ALL.into_iter().flat_map(|part| faults.map(|fault| (part, fault)));
    let mut matrix: Vec<_> = each.chain([(Part::Primary, Fault::Replaced)]).collect();
    matrix.retain(|(part, _)| parts.is_empty() || parts.contains(part));
    matrix
}

async fn measure(
    system: &mut System,
    load: &Load,
    part: Part,
    fault: Fault,
    options: &Options,
    faults: &FaultsOptions,
) -> Result<Row, Failure> {
    let calm = Instant::now();
    sleep(Duration::from_secs_f64(options.seconds)).await;
    let before = system.health().await;
    let failed = Instant::now();
    system.fail(part, fault, faults.delay_ms).await?;
    let said = said_until(system, failed + Duration::from_secs_f64(faults.fault_seconds)).await;
    system.mend(part, fault).await?;
    let back = Instant::now();
    let right = awaited(|| {
        let all = COLLECTIONS.map(|name| load.right_since(back, IN_A_ROW, searches(name)));
        // The later one, when there are both.
        all.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max()
    });
    let written = awaited(|| load.right_since(back, 1, |kind| kind == Kind::Write));
    let as_before = healthy(system, &before, fault);
    let (right, written, as_before) = tokio::join!(right, written, as_before);
    let recovered = Instant::now();
    awaited(|| load.is_settled(recovered).then_some(())).await;
    let all_well = [right, written, as_before].into_iter().collect::<Option<Vec<_>>>();
    Ok(Row {
        part,
        fault,
        searches: COLLECTIONS.map(|name| Searches {
            freshness: name,
            repeated: load.between(failed, recovered, of(name, true)),
            new: load.between(failed, recovered, of(name, false)),
            before: answered(load.between(calm, failed, searches(name)), failed),
            during: load.between(failed, back, searches(name)),
            right_after: since(back, load.right_since(back, IN_A_ROW, searches(name))),
        }),
        writes: load.between(failed, recovered, |kind| kind == Kind::Write),
        said,
        well_after: since(back, all_well.and_then(|times| times.into_iter().max())),
    })
}

fn searches(name: &'static str) -> impl Fn(Kind) -> bool {
    move |kind| matches!(kind, Kind::Search { collection, .. } if collection == name)
}

fn of(collection: &'static str, repeated: bool) -> impl Fn(Kind) -> bool {
    move |kind| kind == Kind::Search { collection, repeated }
}

/// Those that did not wait when it failed.
fn answered(mut requests: Vec<Done>, failed: Instant) -> Vec<Done> {
    requests.retain(|done| done.sent + done.took <= failed);
    requests
}

fn since(start: Instant, then: Option<Instant>) -> Option<Duration> {
    then.map(|then| then.saturating_duration_since(start))
}

/// What `/readyz` of all servers says until then.
async fn said_until(system: &System, end: Instant) -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    let asking = async {
        loop {
            for health in system.health().await {
                said.insert(health.to_string());
            }
            sleep(ASK_EVERY).await;
        }
    };
    let _: Result<(), _> = tokio::time::timeout_at(end.into(), asking).await;
    said
}

/// When every server says the same of the parts as before the fault.
async fn healthy(system: &System, before: &[Health], fault: Fault) -> Option<Instant> {
    let same = |now: &Health, then: &Health| match fault {
        // Another node has the part, so the gauges of the nodes are others.
        Fault::Replaced => (now.status, &now.unwell) == (then.status, &then.unwell),
        _ => now == then,
    };
    let asking = async {
        loop {
            let asked = Instant::now();
            let now = system.health().await;
            if now.iter().zip(before).all(|(now, then)| same(now, then)) {
                return asked;
            }
            sleep(ASK_EVERY).await;
        }
    };
    let well = timeout(PATIENCE, asking).await.ok();
    if well.is_none() {
        eprintln!("before: {before:#?}\nnow: {:#?}", system.health().await);
    }
    well
}

/// Looks until there is something, at most [`PATIENCE`].
async fn awaited<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let looking = async {
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, looking).await.ok()
}
