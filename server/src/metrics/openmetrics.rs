//! The text format of OpenMetrics, which the library does not write: it can carry exemplars.
//!
//! # Source
//! OpenMetrics 1.0: <https://prometheus.io/docs/specs/om/open_metrics_spec/>

use std::fmt::Write;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::{Exemplar, Exemplars};

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `histogram`: the one that has the exemplars.
pub fn encode(families: &[MetricFamily], histogram: &str, exemplars: &Exemplars) -> String {
    let mut text = String::new();
    for family in families {
        let name = family.name();
        let (kind, base) = match family.get_field_type() {
            // Its samples have the suffix, the family has not.
            MetricType::COUNTER => ("counter", name.strip_suffix("_total").unwrap_or(name)),
            MetricType::GAUGE => ("gauge", name),
            MetricType::HISTOGRAM => ("histogram", name),
            // None of ours.
            MetricType::SUMMARY | MetricType::UNTYPED => continue,
        };
        // Writing to a string does not fail; so below.
        let _ = writeln!(text, "# TYPE {base} {kind}\n# HELP {base} {}", escaped(family.help()));
        for metric in family.get_metric() {
            match family.get_field_type() {
                MetricType::COUNTER => {
                    sample(&mut text, name, metric, None, metric.get_counter().get_value(), None);
                }
                MetricType::GAUGE => {
                    sample(&mut text, name, metric, None, metric.get_gauge().get_value(), None);
                }
                _ => {
                    let with = (name == histogram).then_some(exemplars);
                    buckets(&mut text, name, metric, with);
                }
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

fn buckets(text: &mut String, name: &str, metric: &Metric, exemplars: Option<&Exemplars>) {
    let histogram = metric.get_histogram();
    let labels: Vec<&str> = metric.get_label().iter().map(LabelPair::value).collect();
    let exemplars = exemplars.map(|exemplars| exemplars.of(&labels)).unwrap_or_default();
    let bucket = format!("{name}_bucket");
    let finite = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let finite = finite.map(|bucket| (number(bucket.upper_bound()), bucket.cumulative_count()));
    let last = ("+Inf".to_owned(), histogram.get_sample_count());
    for (place, (bound, count)) in finite.chain([last]).enumerate() {
        let exemplar = exemplars.get(place).copied().flatten();
        sample(text, &bucket, metric, Some(&bound), count as f64, exemplar);
    }
    sample(text, &format!("{name}_sum"), metric, None, histogram.get_sample_sum(), None);
    let count = histogram.get_sample_count() as f64;
    sample(text, &format!("{name}_count"), metric, None, count, None);
}

fn sample(
    text: &mut String,
    name: &str,
    metric: &Metric,
    bound: Option<&str>,
    value: f64,
    exemplar: Option<Exemplar>,
) {
    text.push_str(name);
    let labels = metric.get_label().iter().map(|label| (label.name(), label.value()));
    let mut before = '{';
    for (label, value) in labels.chain(bound.map(|bound| ("le", bound))) {
        let _ = write!(text, "{before}{label}=\"{}\"", escaped(value));
        before = ',';
    }
    text.push_str(if before == ',' { "} " } else { " " });
    text.push_str(&number(value));
    if let Some(Exemplar { trace, value, at }) = exemplar {
        let _ = write!(text, " # {{trace_id=\"{trace}\"}} {} {at:.3}", number(value));
    }
    text.push('\n');
}

/// The same as in the library's format, so that a series keeps its labels whichever is asked for.
fn number(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceId;
    use prometheus::core::Collector;
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

    use super::*;

    #[test]
    fn a_bucket_names_a_trace_and_a_counter_its_family() {
        let counter = IntCounterVec::new(Opts::new("shots_total", "Shots."), &["at"]).unwrap();
        counter.with_label_values(&["a\"b\\c\nd"]).inc();
        let options = HistogramOpts::new("took_seconds", "Time.").buckets(vec![0.5, 1.0]);
        let histogram = HistogramVec::new(options, &["route"]).unwrap();
        histogram.with_label_values(&["/"]).observe(0.75);
        let exemplars = Exemplars::new(&[0.5, 1.0]);
        exemplars.note(&["/"], 0.75, TraceId::from(0xab));
        let families = [counter.collect(), histogram.collect()].concat();
        let text = encode(&families, "took_seconds", &exemplars);
        let at = exemplars.of(&["/"])[1].unwrap().at;
        let expected = format!(
            r#"# TYPE shots counter
# HELP shots Shots.
shots_total{{at="a\"b\\c\nd"}} 1
# TYPE took_seconds histogram
# HELP took_seconds Time.
took_seconds_bucket{{route="/",le="0.5"}} 0
took_seconds_bucket{{route="/",le="1"}} 1 # {{trace_id="{:032x}"}} 0.75 {at:.3}
took_seconds_bucket{{route="/",le="+Inf"}} 1
took_seconds_sum{{route="/"}} 0.75
took_seconds_count{{route="/"}} 1
# EOF
"#,
            0xab
        );
        assert_eq!(text, expected);
    }
}
