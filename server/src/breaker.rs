//! Stops asking what does not answer, and finds out when it does again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row after which nothing is asked for a while.
const THRESHOLD: u32 = 3;

/// Closed: everything is asked. Open: nothing is, until the pause ends. Then one probe is let
/// through, which closes or opens it again. The clock and the jitter are the caller's.
#[derive(Debug)]
pub struct Breaker {
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
}

impl Breaker {
    /// `pause`: the longest time without a probe.
    pub fn new(pause: Duration) -> Self {
        Self { pause, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    pub fn is_closed(&self) -> bool {
        matches!(*self.state(), State::Closed { .. })
    }

    /// Whether to ask now. In the open state true once a pause: for the probe.
    pub fn allow(&self, now: Instant) -> bool {
        let mut state = self.state();
        match *state {
            State::Closed { .. } => true,
            State::Open { until } if now < until => false,
            // A probe that never comes back is followed by another.
            State::Open { .. } => {
                *state = State::Open { until: now + self.pause };
                true
            }
        }
    }

    pub fn succeed(&self) {
        *self.state() = State::Closed { failures: 0 };
    }

    /// `jitter` in 0 to 1 shortens the pause by up to a half, so that servers do not probe together.
    pub fn fail(&self, now: Instant, jitter: f64) {
        let mut state = self.state();
        let failures = match *state {
            State::Closed { failures } => failures + 1,
            State::Open { .. } => THRESHOLD,
        };
        *state = if failures < THRESHOLD {
            State::Closed { failures }
        } else {
            State::Open { until: now + self.pause.mul_f64(1.0 - jitter / 2.0) }
        };
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    #[test]
    fn after_failures_in_a_row_nothing_is_asked_but_one_probe_a_pause() {
        let (breaker, start) = (Breaker::new(PAUSE), Instant::now());
        breaker.fail(start, 0.0);
        breaker.fail(start, 0.0);
        breaker.succeed();
        for _ in 0..THRESHOLD {
            assert!(breaker.allow(start));
            breaker.fail(start, 0.0);
        }
        assert!(!breaker.is_closed() && !breaker.allow(start));
        let later = start + PAUSE;
        assert_eq!((breaker.allow(later), breaker.allow(later)), (true, false));
        breaker.fail(later, 1.0);
        assert!(!breaker.allow(later + PAUSE / 4) && breaker.allow(later + PAUSE / 2));
        breaker.succeed();
        assert!(breaker.is_closed() && breaker.allow(later));
    }
}
