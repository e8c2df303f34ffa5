//! A circuit breaker: after several failures in a row a server is left alone for a while, and
//! whoever wants it knows at once. Then one call tries it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;

#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open: between this and one and a half times this.
    pub pause: Duration,
    /// How long a trial may take before another call may try as well.
    pub trial: Duration,
}

#[derive(Debug)]
pub struct Breaker {
    options: BreakerOptions,
    state: Mutex<State>,
    /// 1 unless it is closed.
    is_open: IntGauge,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { trial_until: Instant },
}

impl Breaker {
    pub fn new(options: BreakerOptions, is_open: IntGauge) -> Self {
        is_open.set(0);
        Self { options, state: Mutex::new(State::Closed { failures: 0 }), is_open }
    }

    /// Whether a call may be made now. Its outcome is to be told with [`Breaker::succeeded`] or
    /// [`Breaker::failed`]; of a call that was dropped nothing need be told.
    ///
    /// # Errors
    /// How long until the next call may be made.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        match *state {
            State::Closed { .. } => Ok(()),
            State::Open { until: next } | State::HalfOpen { trial_until: next } if now < next => {
                Err(next - now)
            }
            State::Open { .. } | State::HalfOpen { .. } => {
                *state = State::HalfOpen { trial_until: now + self.options.trial };
                Ok(())
            }
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(*self.lock(), State::Closed { .. })
    }

    pub fn succeeded(&self) {
        let mut state = self.lock();
        *state = State::Closed { failures: 0 };
        self.is_open.set(0);
    }

    /// `jitter`: a random number from 0 to 1, so that servers do not all try at the same time.
    pub fn failed(&self, now: Instant, jitter: f64) {
        let mut state = self.lock();
        let pause = self.options.pause.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0);
        *state = match *state {
            State::Closed { failures } if failures + 1 < self.options.failures => {
                State::Closed { failures: failures + 1 }
            }
            // A call that began before it opened does not make the pause longer.
            open @ State::Open { .. } => open,
            State::Closed { .. } | State::HalfOpen { .. } => State::Open { until: now + pause },
        };
        self.is_open.set(i64::from(!matches!(*state, State::Closed { .. })));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        let is_open = IntGauge::new("open", "of a test").unwrap();
        Breaker::new(BreakerOptions { failures: 3, pause: SECOND, trial: 5 * SECOND }, is_open)
    }

    fn opened(now: Instant) -> Breaker {
        let breaker = breaker();
        for _ in 0..3 {
            breaker.admit(now).unwrap();
            breaker.failed(now, 0.0);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let (breaker, now) = (breaker(), Instant::now());
        for _ in 0..10 {
            breaker.failed(now, 0.0);
            breaker.failed(now, 0.0);
            breaker.succeeded();
        }
        assert_eq!(breaker.admit(now), Ok(()));
        assert_eq!(opened(now).admit(now), Err(SECOND));
    }

    #[test]
    fn after_the_pause_one_call_tries_and_the_others_wait() {
        let now = Instant::now();
        let breaker = opened(now);
        assert_eq!(breaker.admit(now + SECOND / 2), Err(SECOND / 2));
        assert_eq!(breaker.admit(now + SECOND), Ok(()));
        assert_eq!(breaker.admit(now + SECOND), Err(5 * SECOND));
        breaker.succeeded();
        assert_eq!(breaker.admit(now + SECOND), Ok(()));
        assert_eq!(breaker.admit(now + SECOND), Ok(()));
    }

    #[test]
    fn a_trial_that_fails_opens_it_again_with_jitter() {
        let now = Instant::now();
        let breaker = opened(now);
        breaker.admit(now + SECOND).unwrap();
        breaker.failed(now + SECOND, 1.0);
        assert_eq!(breaker.admit(now + SECOND), Err(SECOND * 3 / 2));
    }

    #[test]
    fn its_gauge_tells_whether_it_is_open() {
        let now = Instant::now();
        let breaker = opened(now);
        assert_eq!(breaker.is_open.get(), 1);
        breaker.admit(now + SECOND).unwrap();
        assert_eq!(breaker.is_open.get(), 1, "a trial is no success");
        breaker.succeeded();
        assert_eq!(breaker.is_open.get(), 0);
        breaker.failed(now, 0.0);
        assert_eq!(breaker.is_open.get(), 0, "one failure does not open it");
    }

    #[test]
    fn a_trial_that_was_dropped_blocks_nothing_for_ever() {
        let now = Instant::now();
        let breaker = opened(now);
        breaker.admit(now + SECOND).unwrap();
        assert_eq!(breaker.admit(now + 6 * SECOND), Ok(()));
    }
}
