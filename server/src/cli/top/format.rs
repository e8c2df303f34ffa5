//! Values for people, short enough for the columns of a table. What is not known is `-`.

use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};

const UNKNOWN: &str = "-";

fn known(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

/// Without a unit, in as many digits as a rate is worth.
pub fn number(value: Option<f64>) -> String {
    match known(value) {
        None => UNKNOWN.to_owned(),
        Some(value) if value >= 999.5 => count(Some(value)),
        Some(value) if value >= 9.995 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

pub fn count(value: Option<f64>) -> String {
    known(value)
        .map_or_else(|| UNKNOWN.to_owned(), |value| HumanCount(value.round() as u64).to_string())
}

/// From seconds.
pub fn time(value: Option<f64>) -> String {
    match known(value) {
        None => UNKNOWN.to_owned(),
        Some(seconds) if seconds < 0.000_999_5 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 0.009_995 => format!("{:.2} ms", seconds * 1e3),
        Some(seconds) if seconds < 0.999_5 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) if seconds < 60.0 => format!("{seconds:.2} s"),
        Some(seconds) => age(seconds),
    }
}

/// From seconds, in words of whole ones: `2h 13m 5s`.
pub fn age(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

pub fn bytes(value: Option<f64>) -> String {
    known(value).map_or_else(|| UNKNOWN.to_owned(), |value| HumanBytes(value as u64).to_string())
}

/// From a share, 0 to 1.
pub fn percent(value: Option<f64>) -> String {
    known(value).map_or_else(|| UNKNOWN.to_owned(), |value| format!("{:.1} %", value * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_in_the_unit_that_fits_them() {
        let numbers = [0.0, 0.043, 9.994, 9.996, 123.44, 999.6, 12_345.0].map(Some).map(number);
        assert_eq!(numbers, ["0.00", "0.04", "9.99", "10.0", "123.4", "1,000", "12,345"]);
        let times = [0.0, 0.000_25, 0.001_2, 0.012_34, 0.25, 1.5, 75.0].map(Some).map(time);
        assert_eq!(times, ["0 µs", "250 µs", "1.20 ms", "12.3 ms", "250.0 ms", "1.50 s", "1m 15s"]);
        assert_eq!(bytes(Some(3_355_443.2)), "3.20 MiB");
        assert_eq!(percent(Some(0.8756)), "87.6 %");
        assert_eq!(count(Some(1234.0)), "1,234");
        assert_eq!(age(7985.9), "2h 13m 5s");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        for value in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            let texts = [number, count, time, bytes, percent].map(|write| write(value));
            assert_eq!(texts, ["-"; 5]);
        }
    }
}
