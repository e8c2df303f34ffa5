//! Traces by which a request of each bucket of a histogram can be looked at.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::TraceId;

/// A value that was observed, and the trace that it was observed in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    pub trace: TraceId,
    pub value: f64,
    /// Seconds since 1970.
    pub at: f64,
}

/// The last exemplar of each bucket, by the values of the histogram's labels. As many as it has
/// buckets at most.
pub struct Exemplars {
    bounds: &'static [f64],
    last: Mutex<HashMap<Vec<String>, Vec<Option<Exemplar>>>>,
}

impl Exemplars {
    /// `bounds`: upper ones of the histogram's buckets, ascending, without the infinite one.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, last: Mutex::default() }
    }

    fn last(&self) -> MutexGuard<'_, HashMap<Vec<String>, Vec<Option<Exemplar>>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `labels`: values, in the order of the labels' names.
    pub fn note(&self, labels: &[&str], value: f64, trace: TraceId) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        let mut last = self.last();
        let buckets = last.entry(labels).or_insert_with(|| vec![None; self.bounds.len() + 1]);
        buckets[bucket] = Some(Exemplar { trace, value, at });
    }

    /// Of each bucket, that without an upper bound last; empty where there was none.
    pub fn of(&self, labels: &[&str]) -> Vec<Option<Exemplar>> {
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        self.last().get(&labels).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_trace_of_each_bucket_is_kept() {
        let exemplars = Exemplars::new(&[0.1, 1.0]);
        for (value, trace) in [(0.05, 1), (0.1, 2), (0.5, 3), (7.0, 4)] {
            exemplars.note(&["GET", "/"], value, TraceId::from(trace));
        }
        let traces: Vec<_> =
            exemplars.of(&["GET", "/"]).iter().map(|it| it.map(|it| it.trace)).collect();
        assert_eq!(traces, [2, 3, 4].map(|trace| Some(TraceId::from(trace))));
        assert!(exemplars.of(&["PUT", "/"]).is_empty());
    }
}
