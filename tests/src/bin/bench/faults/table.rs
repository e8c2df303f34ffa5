//! What the faults did, as tables and bars.

use std::collections::BTreeSet;
use std::time::Duration;

use super::system::{Fault, Part};
use crate::outcome::{Done, Outcome, failures, longest_ms, p99_ms};
use crate::report::{Bars, Table, ms};

/// `server.request_timeout_ms`, and what the way and a busy machine may add by the client's clock.
const DEADLINE_MS: f64 = 10_000.0;
const ALLOWANCE_MS: f64 = 250.0;

/// A fault and all that was sent from its beginning until all was well.
pub struct Row {
    pub part: Part,
    pub fault: Fault,
    pub searches: [Searches; 2],
    pub writes: Vec<Done>,
    /// By `/readyz`, while it lasted.
    pub said: BTreeSet<String>,
    /// From its end until searches go right, writes are accepted and every server says of the parts
    /// what it said before.
    pub well_after: Option<Duration>,
}

/// Of one collection.
pub struct Searches {
    pub freshness: &'static str,
    pub repeated: Vec<Done>,
    pub new: Vec<Done>,
    /// Of both kinds, before it and until its end.
    pub before: Vec<Done>,
    pub during: Vec<Done>,
    /// From its end to the first of many searches in a row that went right.
    pub right_after: Option<Duration>,
}

impl Searches {
    fn all(&self) -> impl Iterator<Item = &Done> {
        self.repeated.iter().chain(&self.new)
    }
}

pub fn print(rows: &[Row]) {
    let mut searches = Table::new(&[
        "fault",
        "freshness",
        "searches",
        "failed, repeated",
        "failed, new",
        "degraded",
        "longest ms",
        "p99 ms before",
        "p99 ms during",
        "right again after s",
    ]);
    let mut others = Table::new(&[
        "fault",
        "`/readyz` meanwhile",
        "writes",
        "failed",
        "longest ms",
        "all as before after s",
    ]);
    for row in rows {
        let fault = format!("{} {}", row.part, row.fault);
        for of in &row.searches {
            searches.row(&[
                &fault,
                &of.freshness,
                &of.all().count(),
                &failures(of.repeated.iter()),
                &failures(of.new.iter()),
                &degraded(of.all()),
                &ms(longest_ms(of.all())),
                &ms(p99_ms(of.before.iter())),
                &ms(p99_ms(of.during.iter())),
                &seconds(of.right_after),
            ]);
        }
        others.row(&[
            &fault,
            &row.said.iter().cloned().collect::<Vec<_>>().join("; "),
            &row.writes.len(),
            &failures(row.writes.iter()),
            &ms(longest_ms(row.writes.iter())),
            &seconds(row.well_after),
        ]);
    }
    searches.print();
    others.print();
    bars(rows);
}

fn bars(rows: &[Row]) {
    let searches = || rows.iter().flat_map(|row| &row.searches).flat_map(Searches::all);
    let requests = || searches().chain(rows.iter().flat_map(|row| &row.writes));
    let count =
        |which: fn(&Outcome) -> bool| requests().filter(|done| which(&done.outcome)).count() as f64;
    let mut bars = Bars::new();
    let longest = longest_ms(requests());
    bars.at_most("longest request, ms", DEADLINE_MS + ALLOWANCE_MS, longest);
    let is_500 = |outcome: &Outcome| matches!(outcome, Outcome::Failed { status: 500, .. });
    bars.at_most("answers 500", 0.0, count(is_500));
    bars.at_most("no answer", 0.0, count(|outcome| matches!(outcome, Outcome::Lost(_))));
    bars.at_most("answers 200 without all hits", 0.0, count(|outcome| *outcome == Outcome::Short));
    for part in Part::ALL {
        let of_part = || rows.iter().filter(|row| row.part == part);
        if of_part().next().is_some() {
            part_bars(part, of_part().flat_map(|row| &row.searches), &mut bars);
        }
    }
    let fresh = rows.iter().flat_map(|row| &row.searches).filter(|of| of.freshness == "fresh");
    bars.at_most("degraded answers where only fresh ones will do", 0.0, {
        fresh.map(|of| degraded(of.all())).sum::<usize>() as f64
    });
    let unready = rows.iter().filter(|row| row.said.iter().any(|said| !said.starts_with("200")));
    bars.at_most("faults that made a server unready", 0.0, unready.count() as f64);
    let unwell = rows.iter().filter(|row| row.well_after.is_none());
    bars.at_most("faults after which not all was as before", 0.0, unwell.count() as f64);
    bars.print();
}

fn part_bars<'a>(part: Part, all: impl Iterator<Item = &'a Searches>, bars: &mut Bars) {
    let failed = |done: &[Done]| done.iter().filter(|done| done.outcome.is_failure()).count();
    let (mut searches, mut repeated, mut others) = (0, 0, 0);
    for of in all {
        searches += failed(&of.repeated) + failed(&of.new);
        // A fresh collection's answers are void with every write that is known.
        repeated += if of.freshness == "fresh" { 0 } else { failed(&of.repeated) };
        let not_refused = |done: &&Done| done.outcome.is_failure() && !done.outcome.is_refusal();
        others += of.all().filter(not_refused).count();
    }
    match part {
        Part::Redis | Part::Primary | Part::Replica => {
            bars.at_most(&format!("{part}: failed searches"), 0.0, searches as f64);
        }
        Part::Milvus | Part::Embedder => {
            let what = format!("{part}: failed searches of what was asked before, bounded");
            bars.at_most(&what, 0.0, repeated as f64);
            let what = format!("{part}: failures that are no refusal (503 with Retry-After)");
            bars.at_most(&what, 0.0, others as f64);
        }
    }
}

fn degraded<'a>(done: impl Iterator<Item = &'a Done>) -> usize {
    done.filter(|done| done.outcome == Outcome::Degraded).count()
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
}
