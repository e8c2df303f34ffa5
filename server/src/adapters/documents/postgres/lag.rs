//! Whether a replica may be read from.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A position in the write-ahead log, in bytes.
pub type Position = i64;

/// What a replica says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Received from the primary since the replica started, if anything.
    pub received: Option<Position>,
    pub position: Position,
    /// Since the last transaction that was replayed was committed.
    pub since: Option<Duration>,
}

impl Replayed {
    /// The replica's own word, which is all there is while the primary is not reachable: one that
    /// has replayed all it received is as new as can be had.
    fn is_current(&self, max_lag: Duration) -> bool {
        self.received.is_none_or(|received| received <= self.position)
            || self.since.is_some_and(|since| since <= max_lag)
    }
}

/// Where the primary's log stood, and when: a replica that has not replayed what the primary had
/// `max_lag` ago is behind, whatever it believes itself. It may have been cut off without noticing.
#[derive(Default)]
pub struct History(VecDeque<(Instant, Position)>);

/// More than are probed in any `max_lag` that makes sense.
const KEPT: usize = 1_000;

impl History {
    pub fn add(&mut self, at: Instant, position: Position) {
        // Another primary starts where its own log ends, before what the old one never sent.
        while self.0.back().is_some_and(|(_, last)| *last > position) {
            self.0.pop_back();
        }
        self.0.push_back((at, position));
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    /// Whether a replica is at most `max_lag` behind.
    pub fn admits(
        &mut self,
        replica: Replayed,
        primary_reachable: bool,
        now: Instant,
        max_lag: Duration,
    ) -> bool {
        let old = |sample: Option<&(Instant, Position)>| {
            sample.is_some_and(|(at, _)| now.saturating_duration_since(*at) > max_lag)
        };
        // Of the positions that are old enough only the last counts: the log only grows.
        while old(self.0.get(1)) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some((_, then)) if primary_reachable && old(self.0.front()) => {
                replica.position >= *then
            }
            _ => replica.is_current(max_lag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(position: Position) -> Replayed {
        Replayed { received: Some(position), position, since: Some(SECOND * 60) }
    }

    #[test]
    fn a_replica_of_an_idle_primary_is_not_behind() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..10 {
            history.add(start + SECOND * second, 100);
        }
        assert!(history.admits(at(100), true, start + SECOND * 10, SECOND));
    }

    #[test]
    fn a_replica_without_what_the_primary_had_long_ago_is_behind_whatever_it_says() {
        let start = Instant::now();
        let mut history = History::default();
        history.add(start, 100);
        history.add(start + SECOND, 200);
        let cut_off = at(100);
        assert!(history.admits(cut_off, true, start + SECOND * 2, SECOND));
        assert!(!history.admits(cut_off, true, start + SECOND * 3, SECOND));
        assert!(history.admits(at(200), true, start + SECOND * 3, SECOND));
    }

    #[test]
    fn without_the_primary_a_replica_that_replayed_all_it_has_is_read() {
        let mut history = History::default();
        let now = Instant::now();
        assert!(history.admits(at(100), false, now, SECOND));
        let replaying = Replayed { received: Some(200), ..at(100) };
        assert!(!history.admits(replaying, false, now, SECOND));
        assert!(history.admits(Replayed { since: Some(SECOND), ..replaying }, false, now, SECOND));
        assert!(history.admits(Replayed { received: None, ..replaying }, false, now, SECOND));
    }

    #[test]
    fn the_log_of_a_new_primary_may_be_shorter() {
        let start = Instant::now();
        let mut history = History::default();
        history.add(start, 300);
        history.add(start + SECOND, 200);
        assert!(history.admits(at(200), true, start + SECOND * 5, SECOND));
    }
}
