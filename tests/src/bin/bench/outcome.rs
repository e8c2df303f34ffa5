//! What became of a search or a write that was sent while something failed.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::Answer;
use crate::load::Latency;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As if nothing had happened.
    Right,
    /// An old answer that says so.
    Degraded,
    /// Answered 200 with fewer hits than there are.
    Short,
    Failed {
        status: u16,
        /// The last part of the problem's type, as in `storage`.
        problem: String,
        /// Whether the answer says when to come again.
        retry_after: bool,
    },
    /// No whole answer came.
    Lost(io::ErrorKind),
}

impl Outcome {
    /// Of a search that has at least `hits` hits.
    pub fn of_search(answer: &Answer<'_>, hits: usize) -> Self {
        if answer.status != 200 {
            return Self::failed(answer);
        }
        let body: Value = serde_json::from_slice(answer.body).unwrap_or_default();
        if body["degraded"] == true {
            Self::Degraded
        } else if body["hits"].as_array().is_some_and(|found| found.len() >= hits) {
            Self::Right
        } else {
            Self::Short
        }
    }

    pub fn of_write(answer: &Answer<'_>) -> Self {
        if (200..300).contains(&answer.status) { Self::Right } else { Self::failed(answer) }
    }

    fn failed(answer: &Answer<'_>) -> Self {
        let body: Value = serde_json::from_slice(answer.body).unwrap_or_default();
        let problem = body["type"].as_str().and_then(|kind| kind.rsplit('/').next());
        Self::Failed {
            status: answer.status,
            problem: problem.unwrap_or_default().to_owned(),
            retry_after: answer.header("retry-after").is_some(),
        }
    }

    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Right | Self::Degraded)
    }

    /// A refusal that says when to come again: what a server may answer that lacks a part.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Failed { status: 503, retry_after: true, .. })
    }

    fn name(&self) -> String {
        match self {
            Self::Right => "right".to_owned(),
            Self::Degraded => "degraded".to_owned(),
            Self::Short => "200 without all hits".to_owned(),
            Self::Failed { status, problem, retry_after: true } => format!("{status} {problem}"),
            Self::Failed { status, problem, retry_after: false } => {
                format!("{status} {problem} without Retry-After")
            }
            Self::Lost(kind) => format!("no answer ({kind})"),
        }
    }
}

/// A request that was answered, or will never be.
#[derive(Clone, Debug)]
pub struct Done {
    pub sent: Instant,
    pub took: Duration,
    pub outcome: Outcome,
}

/// Failures by kind, as in `12 × 503 storage`; `0` without any.
pub fn failures<'a>(done: impl Iterator<Item = &'a Done>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for failed in done.filter(|done| done.outcome.is_failure()) {
        *counts.entry(failed.outcome.name()).or_default() += 1;
    }
    if counts.is_empty() {
        return "0".to_owned();
    }
    let counts = counts.into_iter().map(|(name, count)| format!("{count} × {name}"));
    counts.collect::<Vec<_>>().join(", ")
}

pub fn longest_ms<'a>(done: impl Iterator<Item = &'a Done>) -> f64 {
    done.map(|done| done.took).max().unwrap_or_default().as_secs_f64() * 1e3
}

pub fn p99_ms<'a>(done: impl Iterator<Item = &'a Done>) -> f64 {
    let mut latency = Latency::new();
    done.for_each(|done| latency.record(done.took));
    latency.ms(0.99)
}
