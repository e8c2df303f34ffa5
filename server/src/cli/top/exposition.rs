//! The text format of Prometheus, version 0.0.4, read.
//!
//! # Source
//! "Exposition formats" of the documentation of Prometheus, section "Text format details".

use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// Values by name and labels. Of a series that is told twice the last value counts.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<String, BTreeMap<Labels, f64>>);

/// Why a text is not in the format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics {reason}")]
pub struct ParseError {
    /// The first one is 1.
    pub line: usize,
    pub reason: &'static str,
}

impl Samples {
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut samples = Self::default();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, labels, value) =
                sample(line).map_err(|reason| ParseError { line: i + 1, reason })?;
            samples.0.entry(name).or_default().insert(labels, value);
        }
        Ok(samples)
    }

    pub fn get(&self, name: &str, labels: &Labels) -> Option<f64> {
        self.0.get(name)?.get(labels).copied()
    }

    /// Series of this name that have these labels, and maybe more.
    pub fn matching<'s>(
        &'s self,
        name: &str,
        labels: &[(&str, &str)],
    ) -> impl Iterator<Item = (&'s Labels, f64)> {
        let has = move |own: &Labels| {
            labels.iter().all(|(name, value)| own.get(*name).map(String::as_str) == Some(*value))
        };
        let series = self.0.get(name).into_iter().flatten();
        series.filter(move |(own, _)| has(own)).map(|(own, value)| (own, *value))
    }

    /// Sum of the series that match; `None` when none does.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.matching(name, labels).map(|(_, value)| value).reduce(|sum, value| sum + value)
    }
}

fn sample(line: &str) -> Result<(String, Labels, f64), &'static str> {
    let (name, rest) = name(line).ok_or("does not begin with a name")?;
    if !(rest.is_empty() || rest.starts_with([' ', '\t', '{'])) {
        return Err("has a character in its name that names do not have");
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Labels::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let value = words.next().ok_or("has no value")?;
    // `f64` reads +Inf, -Inf and NaN, too.
    let value = value.parse::<f64>().map_err(|_| "has a value that is no number")?;
    match (words.next().map(str::parse::<i64>), words.next()) {
        (None | Some(Ok(_)), None) => Ok((name.to_owned(), labels, value)),
        _ => Err("has more than a time after its value"),
    }
}

/// The name that a text begins with, and what follows it.
fn name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    let begins = name.starts_with(|c: char| !c.is_ascii_digit());
    begins.then_some((name, rest))
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = name(rest).ok_or("has a label without a name")?;
        let value = after.trim_start().strip_prefix('=').map(str::trim_start);
        let value = value.ok_or("has a label without a value")?;
        let value = value.strip_prefix('"').ok_or("has a label that is not quoted")?;
        let (value, after) = quoted(value)?;
        labels.insert(name.to_owned(), value);
        rest = after.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
        } else if !rest.starts_with('}') {
            return Err("has labels that do not end");
        }
    }
}

/// A value up to its closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[i + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                _ => return Err("has an escape that does not exist"),
            },
            c => value.push(c),
        }
    }
    Err("has a quote that is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 1e-9)
    }

    #[test]
    fn names_labels_values_and_times_are_read_and_comments_are_not() {
        let text = "# HELP a What \"it\" is {}.\n# TYPE a counter\n\
                    a{x=\"1\",y=\"2\"} 3\na { y = \"4\" , x=\"1\", } 5.5e1 1700000000000\r\n\
                    \n  b:c_d\t7 -1\n#\n";
        let samples = Samples::parse(text).unwrap();
        assert!(close(samples.sum("a", &[("x", "1"), ("y", "2")]), 3.0));
        assert!(close(samples.sum("a", &[("y", "4")]), 55.0));
        assert!(close(samples.sum("a", &[("x", "1")]), 58.0));
        assert!(close(samples.sum("b:c_d", &[]), 7.0));
        assert_eq!(samples.sum("a", &[("x", "2")]), None);
        assert_eq!(samples.sum("b", &[]), None);
        assert_eq!(samples.matching("a", &[]).count(), 2);
    }

    #[test]
    fn escapes_in_labels_are_undone() {
        let samples = Samples::parse(r#"a{x="\"C:\\n\"\n}, {é",y=""} 1"#).unwrap();
        let (labels, _) = samples.matching("a", &[]).next().unwrap();
        assert_eq!(labels["x"], "\"C:\\n\"\n}, {é");
        assert_eq!(labels["y"], "");
    }

    #[test]
    fn infinities_and_what_is_no_number_are_values() {
        let text = "a{le=\"+Inf\"} +Inf\nb -Inf\nc NaN\nd inf\n";
        let samples = Samples::parse(text).unwrap();
        assert_eq!(samples.sum("a", &[("le", "+Inf")]), Some(f64::INFINITY));
        assert_eq!(samples.sum("b", &[]), Some(f64::NEG_INFINITY));
        assert!(samples.sum("c", &[]).unwrap().is_nan());
        assert_eq!(samples.sum("d", &[]), Some(f64::INFINITY));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (line, reason) in [
            ("<html>", "does not begin with a name"),
            ("1a 2", "does not begin with a name"),
            ("a.b 2", "has a character in its name that names do not have"),
            ("a", "has no value"),
            ("a{x=\"1\"}", "has no value"),
            ("a one", "has a value that is no number"),
            ("a 1 2 3", "has more than a time after its value"),
            ("a 1 soon", "has more than a time after its value"),
            ("a{,} 1", "has a label without a name"),
            ("a{", "has a label without a name"),
            ("a{x} 1", "has a label without a value"),
            ("a{x=1} 1", "has a label that is not quoted"),
            ("a{x=\"1} 1", "has a quote that is not closed"),
            ("a{x=\"\\t\"} 1", "has an escape that does not exist"),
            ("a{x=\"1\" y=\"2\"} 1", "has labels that do not end"),
        ] {
            let error = Samples::parse(&format!("# ok\nok 1\n{line}\nok 1\n")).unwrap_err();
            assert_eq!(error, ParseError { line: 3, reason }, "{line}");
            assert_eq!(error.to_string(), format!("line 3 of the metrics {reason}"));
        }
    }

    #[test]
    fn what_the_server_writes_is_read() {
        let metrics = crate::metrics::Metrics::new();
        metrics.postgres_usable.with_label_values(&["a\"b\\c\nd", "primary"]).set(1);
        metrics.http_duration.with_label_values(&["GET", "/livez", "200"]).observe(0.2);
        let samples = Samples::parse(&metrics.encode().unwrap()).unwrap();
        let node = [("node", "a\"b\\c\nd"), ("role", "primary")];
        assert!(close(samples.sum("sextant_postgres_usable", &node), 1.0));
        let buckets = "http_server_request_duration_seconds_bucket";
        assert!(close(samples.sum(buckets, &[("le", "+Inf")]), 1.0));
        assert!(close(samples.sum(buckets, &[("le", "0.1")]), 0.0));
    }
}
