//! Which server is asked, and whether a second one is: what is known of the servers, as data.
//!
//! A server that cannot be reached, or that failed [`FAILURES`] times in a row, is not asked until
//! a probe has found it well and with the right model. So no text is risked on finding out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Failures in a row after which a server is not asked.
const FAILURES: u32 = 3;
/// A server that names a longer time is asked again after this one.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Answers whose times count for the 95th percentile, and how many of them it needs.
const RECENT: usize = 256;
const ENOUGH: usize = 20;
/// Second requests a first one, and how many may come at once after a quiet time.
const HEDGE_SHARE: f64 = 0.1;
const HEDGE_BURST: f64 = 5.0;

/// Why no server can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All that could be asked have said when to come again.
    Overloaded { retry_after: Duration },
    /// What is wrong with each.
    Down(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Well,
    /// Not asked until a probe says otherwise; why.
    Down(String),
}

#[derive(Clone, Debug)]
struct Endpoint {
    name: String,
    standing: Standing,
    failures: u32,
    in_flight: usize,
    /// It is overloaded until then.
    paused_until: Option<Instant>,
}

pub struct Endpoints {
    list: Vec<Endpoint>,
    /// Where the search for the least busy one begins, so that equals take turns.
    turn: usize,
    recent: VecDeque<Duration>,
    /// A fixed time after which a second server is asked; else the 95th percentile.
    hedge_after: Option<Duration>,
    hedges_left: f64,
}

impl Endpoints {
    /// All are down until [`Endpoints::probed`] says otherwise.
    pub fn new(names: Vec<String>, hedge_after: Option<Duration>) -> Self {
        let endpoint = |name| Endpoint {
            name,
            standing: Standing::Down("not probed yet".to_owned()),
            failures: 0,
            in_flight: 0,
            paused_until: None,
        };
        Self {
            list: names.into_iter().map(endpoint).collect(),
            turn: 0,
            recent: VecDeque::with_capacity(RECENT),
            hedge_after,
            hedges_left: 1.0,
        }
    }

    /// Whether a server could be asked now.
    pub fn admit(&self, now: Instant) -> Result<(), Refusal> {
        self.least_busy(now, None).map(drop)
    }

    /// The server to ask, other than `except`; the request counts as under way until
    /// [`Endpoints::done`].
    pub fn pick(&mut self, now: Instant, except: Option<usize>) -> Result<usize, Refusal> {
        let chosen = self.least_busy(now, except)?;
        self.turn = (chosen + 1) % self.list.len();
        self.list[chosen].in_flight += 1;
        Ok(chosen)
    }

    fn least_busy(&self, now: Instant, except: Option<usize>) -> Result<usize, Refusal> {
        let count = self.list.len();
        let well = (0..count)
            .map(|i| (i + self.turn) % count)
            .filter(|i| Some(*i) != except && self.list[*i].standing == Standing::Well);
        let pause = |i: &usize| {
            let until = self.list[*i].paused_until;
            until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
        };
        // The first one of the smallest.
        let best = well.min_by_key(|i| (pause(i), self.list[*i].in_flight));
        match best.map(|i| (i, pause(&i))) {
            Some((i, Duration::ZERO)) => Ok(i),
            Some((_, retry_after)) => Err(Refusal::Overloaded { retry_after }),
            None => Err(Refusal::Down(self.faults())),
        }
    }

    /// A request has ended, whether it was answered, failed or was given up.
    pub fn done(&mut self, endpoint: usize) {
        self.list[endpoint].in_flight -= 1;
    }

    pub fn succeeded(&mut self, endpoint: usize, took: Duration) {
        self.list[endpoint].failures = 0;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
        self.hedges_left = (self.hedges_left + HEDGE_SHARE).min(HEDGE_BURST);
    }

    /// True when the server is not asked any more by that.
    pub fn failed(&mut self, endpoint: usize, reason: &str) -> bool {
        self.list[endpoint].failures += 1;
        self.list[endpoint].failures >= FAILURES && self.down(endpoint, reason)
    }

    /// The server is not asked until a probe. True when it was until now.
    pub fn down(&mut self, endpoint: usize, reason: &str) -> bool {
        let was =
            std::mem::replace(&mut self.list[endpoint].standing, Standing::Down(reason.to_owned()));
        was == Standing::Well
    }

    /// The server has said when to come again.
    pub fn overloaded(&mut self, endpoint: usize, retry_after: Duration, now: Instant) {
        self.list[endpoint].failures = 0;
        self.list[endpoint].paused_until = Some(now + retry_after.min(MAX_PAUSE));
    }

    /// What a probe found. Returns whether that is new.
    pub fn probed(&mut self, endpoint: usize, standing: Standing) -> bool {
        let endpoint = &mut self.list[endpoint];
        endpoint.failures = 0;
        let news = endpoint.standing != standing;
        endpoint.standing = standing;
        news
    }

    /// Servers to probe.
    pub fn unwell(&self) -> Vec<usize> {
        (0..self.list.len()).filter(|i| self.list[*i].standing != Standing::Well).collect()
    }

    pub fn name(&self, endpoint: usize) -> &str {
        &self.list[endpoint].name
    }

    /// What is wrong, when no server is well.
    pub fn health(&self) -> Result<(), String> {
        let well = self.list.iter().any(|endpoint| endpoint.standing == Standing::Well);
        if well { Ok(()) } else { Err(self.faults()) }
    }

    fn faults(&self) -> String {
        let faults = self.list.iter().filter_map(|endpoint| match &endpoint.standing {
            Standing::Well => None,
            Standing::Down(reason) => Some(format!("{}: {reason}", endpoint.name)),
        });
        faults.collect::<Vec<_>>().join("; ")
    }

    /// How long to wait for an answer before a second server is asked; `None` when there is not
    /// enough to tell.
    pub fn hedge_after(&self) -> Option<Duration> {
        if self.list.len() < 2 {
            return None;
        }
        self.hedge_after.or_else(|| {
            let mut times: Vec<Duration> = self.recent.iter().copied().collect();
            let place = times.len() * 95 / 100;
            (times.len() >= ENOUGH).then(|| *times.select_nth_unstable(place).1)
        })
    }

    /// A second server, when one is free and not too many were asked of late.
    pub fn pick_hedge(&mut self, now: Instant, first: usize) -> Option<usize> {
        if self.hedges_left < 1.0 {
            return None;
        }
        let second = self.pick(now, Some(first)).ok()?;
        self.hedges_left -= 1.0;
        Some(second)
    }

    /// What an answer took of late, on average.
    pub fn mean(&self) -> Duration {
        let count = u32::try_from(self.recent.len()).unwrap_or(u32::MAX).max(1);
        self.recent.iter().sum::<Duration>() / count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn well(count: usize, hedge_after: Option<Duration>) -> (Endpoints, Instant) {
        let names = (0..count).map(|i| format!("server-{i}")).collect();
        let mut endpoints = Endpoints::new(names, hedge_after);
        for i in 0..count {
            assert!(endpoints.probed(i, Standing::Well));
        }
        (endpoints, Instant::now())
    }

    #[test]
    fn the_least_busy_server_is_asked_and_equals_take_turns() {
        let (mut endpoints, now) = well(3, None);
        let picked: Vec<_> = (0..6).map(|_| endpoints.pick(now, None).unwrap()).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
        endpoints.done(1);
        assert_eq!(endpoints.pick(now, None), Ok(1));
        for _ in 0..2 {
            (0..3).for_each(|i| endpoints.done(i));
        }
        let picked: Vec<_> = (0..3)
            .map(|_| {
                let picked = endpoints.pick(now, None).unwrap();
                endpoints.done(picked);
                picked
            })
            .collect();
        assert_eq!(picked, [2, 0, 1], "an idle fleet is used evenly");
    }

    #[test]
    fn a_server_that_fails_is_left_alone_until_a_probe_finds_it_well() {
        let (mut endpoints, now) = well(2, None);
        assert!(!endpoints.failed(0, "broken"));
        endpoints.succeeded(0, SECOND);
        assert!(!endpoints.failed(0, "broken") && !endpoints.failed(0, "broken"));
        assert!(endpoints.failed(0, "broken"), "the third in a row");
        assert_eq!(endpoints.pick(now, None), Ok(1));
        assert_eq!(endpoints.pick(now, None), Ok(1));
        assert_eq!(endpoints.health(), Ok(()));
        assert!(endpoints.down(1, "gone"));
        let reason = "server-0: broken; server-1: gone".to_owned();
        assert_eq!(endpoints.pick(now, None), Err(Refusal::Down(reason.clone())));
        assert_eq!((endpoints.health(), endpoints.unwell()), (Err(reason), vec![0, 1]));
        assert!(endpoints.probed(0, Standing::Well));
        assert_eq!(endpoints.pick(now, None), Ok(0));
    }

    #[test]
    fn an_overloaded_server_is_left_alone_for_the_time_it_named() {
        let (mut endpoints, now) = well(2, None);
        endpoints.overloaded(0, 2 * SECOND, now);
        assert_eq!(endpoints.pick(now, None), Ok(1));
        endpoints.overloaded(1, SECOND, now);
        let refusal = Err(Refusal::Overloaded { retry_after: SECOND });
        assert_eq!(endpoints.pick(now, None), refusal);
        assert_eq!(endpoints.health(), Ok(()));
        assert_eq!(endpoints.pick(now + SECOND, None), Ok(1));
        endpoints.overloaded(0, 100 * SECOND, now);
        endpoints.overloaded(1, 100 * SECOND, now);
        assert!(endpoints.pick(now + MAX_PAUSE, None).is_ok());
    }

    #[test]
    fn at_most_one_request_in_ten_is_sent_twice() {
        let (mut endpoints, now) = well(2, Some(SECOND));
        let mut hedges = 0;
        for _ in 0..1_000 {
            let first = endpoints.pick(now, None).unwrap();
            if let Some(second) = endpoints.pick_hedge(now, first) {
                assert_ne!(first, second);
                hedges += 1;
                endpoints.done(second);
            }
            endpoints.succeeded(first, SECOND);
            endpoints.done(first);
        }
        assert!((95..=101).contains(&hedges), "{hedges}");
    }

    #[test]
    fn the_wait_for_a_second_server_is_what_nineteen_in_twenty_answers_took() {
        let (mut endpoints, _) = well(2, None);
        for i in 1..=100 {
            assert_eq!(endpoints.hedge_after().is_some(), i > 20);
            endpoints.succeeded(0, i * SECOND);
        }
        assert_eq!(endpoints.hedge_after(), Some(96 * SECOND));
        assert_eq!(well(2, Some(SECOND)).0.hedge_after(), Some(SECOND));
        assert_eq!(well(1, Some(SECOND)).0.hedge_after(), None, "there is no second one");
    }
}
