//! What two scrapes tell of the time between them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::exposition::{Labels, Samples};

/// Two scrapes of one server.
pub struct Between<'a> {
    /// `None` when it was of a process that has ended: this one counts from zero.
    earlier: Option<&'a Samples>,
    pub later: &'a Samples,
    /// How far they are apart.
    pub elapsed: Duration,
}

impl<'a> Between<'a> {
    pub fn new(earlier: &'a Samples, later: &'a Samples, elapsed: Duration) -> Self {
        // Compared as they were told, hence bit by bit.
        let start = |of: &Samples| of.sum("process_start_time_seconds", &[]).map(f64::to_bits);
        let same = start(earlier) == start(later);
        Self { earlier: same.then_some(earlier), later, elapsed }
    }

    pub fn restarted(&self) -> bool {
        self.earlier.is_none()
    }

    /// By how much each series of a counter that has these labels has grown.
    fn increases(
        &self,
        name: &str,
        labels: &[(&str, &str)],
    ) -> impl Iterator<Item = (&'a Labels, f64)> {
        self.later.matching(name, labels).map(move |(labels, value)| {
            let before = self.earlier.and_then(|earlier| earlier.get(name, labels)).unwrap_or(0.0);
            // A counter that went down has begun anew at zero.
            (labels, if value < before { value } else { value - before })
        })
    }

    /// Sum over the series that match; `None` when none does.
    pub fn increase(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.increases(name, labels).map(|(_, increase)| increase).reduce(|sum, more| sum + more)
    }

    /// [`Self::increase`] per second.
    pub fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        Some(self.increase(name, labels)? / self.elapsed.as_secs_f64())
    }

    /// Increases per second of a counter, by the values of a label.
    pub fn rates_by(&self, name: &str, label: &str) -> BTreeMap<&'a str, f64> {
        let mut rates: BTreeMap<&'a str, f64> = BTreeMap::new();
        for (labels, increase) in self.increases(name, &[]) {
            let value = labels.get(label).map_or("", String::as_str);
            *rates.entry(value).or_default() += increase / self.elapsed.as_secs_f64();
        }
        rates
    }

    /// Mean of what a histogram observed; `None` when that was nothing.
    pub fn mean(&self, histogram: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let count = self.increase(&format!("{histogram}_count"), labels)?;
        let sum = self.increase(&format!("{histogram}_sum"), labels)?;
        (count > 0.0).then(|| sum / count)
    }

    /// Quantile, 0 to 1, of what a histogram observed; `None` when that was nothing.
    pub fn quantile(&self, q: f64, histogram: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut increases: Vec<(f64, f64)> = self
            .increases(&format!("{histogram}_bucket"), labels)
            .filter_map(|(labels, increase)| Some((labels.get("le")?.parse().ok()?, increase)))
            .collect();
        increases.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (bound, increase) in increases {
            match buckets.last_mut() {
                Some((last, count)) if last.total_cmp(&bound).is_eq() => *count += increase,
                _ => buckets.push((bound, increase)),
            }
        }
        quantile(q, &buckets)
    }
}

/// The value below which a share `q` of the observations is, from upper bounds and the counts up
/// to them, in the order of the bounds. Observations are taken to lie evenly between two bounds,
/// and from 0 to the first one; above the last finite one it says that one.
///
/// # Source
/// `histogram_quantile` in the documentation of Prometheus.
fn quantile(q: f64, buckets: &[(f64, f64)]) -> Option<f64> {
    let (_, total) = *buckets.last()?;
    let rank = q * total;
    let observed = total > 0.0; // and is a number
    if !observed {
        return None;
    }
    let (mut start, mut below) = (0.0_f64, 0.0_f64);
    for (bound, count) in buckets {
        if *count >= rank {
            let part = (rank - below) / (count - below);
            return Some(if bound.is_finite() { start + (bound - start) * part } else { start });
        }
        // Counts of a bound and the next one may be of different moments.
        (start, below) = (*bound, count.max(below));
    }
    None
}

/// CPU time that a server has used, as it was told at past moments, the oldest one first.
#[derive(Debug, Default)]
pub struct CpuTimes(VecDeque<(Instant, f64)>);

/// Cores that were used, and over what time.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    pub used: f64,
    pub over: Duration,
}

impl CpuTimes {
    /// CPU time is told in whole seconds: over a shorter time cores would jump between few values.
    const WINDOW: Duration = Duration::from_secs(20);

    /// Adds the CPU time in seconds at a moment; the cores used since the oldest one kept.
    pub fn add(&mut self, at: Instant, seconds: f64) -> Option<Cores> {
        if self.0.back().is_some_and(|(_, before)| seconds < *before) {
            self.0.clear(); // another process
        }
        self.0.push_back((at, seconds));
        // The first one that is old enough is kept, those before it are not needed.
        while self.0.get(1).is_some_and(|(second, _)| at - *second >= Self::WINDOW) {
            self.0.pop_front();
        }
        let (oldest, before) = *self.0.front()?;
        let over = at - oldest;
        (!over.is_zero()).then(|| Cores { used: (seconds - before) / over.as_secs_f64(), over })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(text: &str) -> Samples {
        Samples::parse(text).unwrap()
    }

    #[track_caller]
    fn is(value: Option<f64>, expected: f64) {
        let value = value.expect("a value");
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    }

    const TWO_SECONDS: Duration = Duration::from_secs(2);

    #[test]
    fn rates_are_summed_over_series_and_new_series_count_from_zero() {
        let earlier = samples("a{x=\"1\",y=\"1\"} 10\na{x=\"1\",y=\"2\"} 5\n");
        let later =
            samples("a{x=\"1\",y=\"1\"} 14\na{x=\"1\",y=\"2\"} 5\na{x=\"2\",y=\"1\"} 6\nb 1\n");
        let between = Between::new(&earlier, &later, TWO_SECONDS);
        assert!(!between.restarted());
        is(between.rate("a", &[]), 5.0);
        is(between.rate("a", &[("x", "1")]), 2.0);
        is(between.rate("b", &[]), 0.5);
        assert_eq!(between.rate("a", &[("x", "3")]), None);
        assert_eq!(between.rate("c", &[]), None);
        let by = between.rates_by("a", "x");
        is(by.get("1").copied(), 2.0);
        is(by.get("2").copied(), 3.0);
        assert!(between.rates_by("c", "x").is_empty());
    }

    #[test]
    fn a_counter_that_went_down_counts_from_zero() {
        let (earlier, later) = (samples("a 1000\n"), samples("a 6\n"));
        is(Between::new(&earlier, &later, TWO_SECONDS).rate("a", &[]), 3.0);
    }

    #[test]
    fn all_counters_of_another_process_count_from_zero() {
        let earlier = samples("process_start_time_seconds 100\na_sum 3\na_count 1\n");
        let later = samples("process_start_time_seconds 200\na_sum 8\na_count 2\n");
        let between = Between::new(&earlier, &later, TWO_SECONDS);
        assert!(between.restarted());
        is(between.mean("a", &[]), 4.0);
        is(between.rate("a_count", &[]), 1.0);
    }

    #[test]
    fn quantiles_lie_within_the_bucket_as_prometheus_has_them() {
        let buckets = [(0.1, 50.0), (0.5, 90.0), (1.0, 90.0), (f64::INFINITY, 100.0)];
        is(quantile(0.5, &buckets), 0.1);
        is(quantile(0.25, &buckets), 0.05);
        is(quantile(0.7, &buckets), 0.1 + 0.4 * 20.0 / 40.0);
        is(quantile(0.9, &buckets), 0.5);
        is(quantile(0.99, &buckets), 1.0);
        assert_eq!(quantile(0.5, &[]), None);
        assert_eq!(quantile(0.5, &[(0.1, 0.0), (f64::INFINITY, 0.0)]), None);
        assert_eq!(quantile(0.5, &[(f64::INFINITY, f64::NAN)]), None);
        is(quantile(0.5, &[(f64::INFINITY, 3.0)]), 0.0);
        // The second bound was read before the first one.
        is(quantile(0.8, &[(1.0, 7.0), (2.0, 6.0), (4.0, 10.0)]), 2.0 + 2.0 / 3.0);
    }

    #[test]
    fn quantiles_and_means_are_of_the_time_between_over_all_series() {
        let earlier = samples(
            "h_bucket{s=\"1\",le=\"1\"} 100\nh_bucket{s=\"1\",le=\"+Inf\"} 100\n\
             h_sum{s=\"1\"} 50\nh_count{s=\"1\"} 100\n",
        );
        let later = samples(
            "h_bucket{s=\"1\",le=\"1\"} 100\nh_bucket{s=\"1\",le=\"+Inf\"} 100\n\
             h_sum{s=\"1\"} 50\nh_count{s=\"1\"} 100\n\
             h_bucket{s=\"2\",le=\"1\"} 0\nh_bucket{s=\"2\",le=\"3\"} 4\n\
             h_bucket{s=\"2\",le=\"+Inf\"} 4\nh_sum{s=\"2\"} 8\nh_count{s=\"2\"} 4\n",
        );
        let between = Between::new(&earlier, &later, TWO_SECONDS);
        is(between.quantile(0.5, "h", &[]), 2.0);
        is(between.mean("h", &[]), 2.0);
        assert_eq!(between.quantile(0.5, "h", &[("s", "1")]), None);
        assert_eq!(between.mean("h", &[("s", "1")]), None);
        assert_eq!(between.mean("other", &[]), None);
    }

    #[test]
    fn cores_are_counted_over_a_while_and_anew_in_another_process() {
        let start = Instant::now();
        let mut times = CpuTimes::default();
        let mut add = |at: u64, seconds: f64| times.add(start + Duration::from_secs(at), seconds);
        assert!(add(0, 100.0).is_none());
        let cores = add(2, 101.0).unwrap();
        is(Some(cores.used), 0.5);
        for at in 3..=40 {
            add(at, 101.0);
        }
        let cores = add(41, 111.0).unwrap();
        is(Some(cores.used), 0.5);
        assert_eq!(cores.over, Duration::from_secs(20));
        assert!(add(43, 1.0).is_none());
        is(add(44, 2.0).map(|cores| cores.used), 1.0);
    }
}
