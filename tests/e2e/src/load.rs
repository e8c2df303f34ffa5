//! What the load reports.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Different reasons that are told apart.
const MAX_REASONS: usize = 12;

/// Requests per second, sent whether earlier ones are answered or not.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rates {
    pub searches_per_second: f64,
    pub writes_per_second: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// May be answered from caches.
    CachedSearch,
    /// Asks for an answer that is computed anew, embedding included.
    FreshSearch,
    Write,
}

/// What came of the requests since the last report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub seconds: f64,
    pub kinds: BTreeMap<Kind, Count>,
    /// Not sent, since too many had no answer yet.
    pub skipped: u64,
}

/// Of one kind of request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    pub sent: u64,
    /// No answer, or one that is not 2xx.
    pub failed: u64,
    /// Answered by another server after the first broke the connection.
    pub retried: u64,
    /// Answers that say of themselves that they are not the whole truth.
    pub degraded: u64,
    /// Answers without hits where there are some.
    pub empty: u64,
    /// Answers with other hits than before.
    pub wrong: u64,
    pub slowest_ms: u64,
    /// The longest time without a success.
    pub longest_gap_ms: u64,
    pub reasons: BTreeMap<String, u64>,
    #[serde(skip)]
    last_success: Option<Instant>,
}

impl Count {
    pub fn failed(&mut self, reason: String) {
        self.failed += 1;
        if self.reasons.len() < MAX_REASONS || self.reasons.contains_key(&reason) {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }

    /// A success that was sent at `begin`, in a report that began at `window`.
    pub fn answered(&mut self, begin: Instant, window: Instant) {
        let now = Instant::now();
        self.slowest_ms = self.slowest_ms.max(millis(now - begin));
        let last = self.last_success.unwrap_or(window);
        self.longest_gap_ms = self.longest_gap_ms.max(millis(now - last));
        self.last_success = Some(now);
    }

    /// Counts the time from the last success to now, or from the beginning.
    pub fn close(&mut self, begin: Instant) {
        let last = self.last_success.unwrap_or(begin);
        self.longest_gap_ms = self.longest_gap_ms.max(millis(last.elapsed()));
    }

    /// Those with no answer or a false one.
    pub fn bad(&self) -> u64 {
        self.failed + self.empty + self.wrong
    }

    /// Neither failed nor false.
    pub fn is_flawless(&self) -> bool {
        self.bad() == 0
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Report {
    pub fn of(&self, kind: Kind) -> Count {
        self.kinds.get(&kind).cloned().unwrap_or_default()
    }

    /// Of both kinds of search; the worse of times.
    pub fn searches(&self) -> Count {
        let (mut sum, fresh) = (self.of(Kind::CachedSearch), self.of(Kind::FreshSearch));
        sum.sent += fresh.sent;
        sum.failed += fresh.failed;
        sum.retried += fresh.retried;
        sum.degraded += fresh.degraded;
        sum.empty += fresh.empty;
        sum.wrong += fresh.wrong;
        sum.slowest_ms = sum.slowest_ms.max(fresh.slowest_ms);
        sum.longest_gap_ms = sum.longest_gap_ms.max(fresh.longest_gap_ms);
        for (reason, count) in fresh.reasons {
            *sum.reasons.entry(reason).or_default() += count;
        }
        sum
    }

    /// Seconds without an acknowledged write.
    pub fn without_writes(&self) -> f64 {
        self.of(Kind::Write).longest_gap_ms as f64 / 1e3
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} s of load", self.seconds)?;
        for (name, count) in [("searches", self.searches()), ("writes", self.of(Kind::Write))] {
            write!(f, "; {name}: {} sent, {} failed", count.sent, count.failed)?;
            for (word, number) in [
                ("retried", count.retried),
                ("degraded", count.degraded),
                ("falsely empty", count.empty),
                ("wrong", count.wrong),
            ] {
                if number > 0 {
                    write!(f, ", {number} {word}")?;
                }
            }
            write!(f, ", longest gap {:.1} s", count.longest_gap_ms as f64 / 1e3)?;
            for (reason, number) in &count.reasons {
                write!(f, " [{number} × {reason}]")?;
            }
        }
        if self.skipped > 0 {
            write!(f, "; {} not sent", self.skipped)?;
        }
        Ok(())
    }
}
