//! Which metrics a `PromQL` expression names, and who exports them.
//!
//! # Source
//! <https://prometheus.io/docs/prometheus/latest/querying/operators/>

use std::collections::BTreeMap;

/// Names of labels follow, in parentheses.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Who exports a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// API servers, with the model in them.
    Server,
    Operator,
    Patroni,
    /// The exporter beside Redis.
    Redis,
    Milvus,
    /// NVIDIA's exporter on nodes with GPUs.
    Dcgm,
    /// Prometheus itself.
    Prometheus,
}

/// How the names begin; what is more exact comes first.
const BEGINNINGS: [(&str, Source); 9] = [
    ("sextant_operator_", Source::Operator),
    ("sextant_", Source::Server),
    ("http_server_", Source::Server),
    ("process_", Source::Server),
    ("patroni_", Source::Patroni),
    ("redis_", Source::Redis),
    ("milvus_", Source::Milvus),
    ("DCGM_", Source::Dcgm),
    ("ALERTS", Source::Prometheus),
];

/// Expressions of recording rules, by what they record.
pub type Recorded = BTreeMap<String, String>;

/// Who exports a metric, where that is known. Of a recorded one: who exports what its rule names
/// first, which is what it cannot do without.
pub fn source(metric: &str, recorded: &Recorded) -> Option<Source> {
    let mut metric = metric.to_owned();
    // Rules that name each other would have no end.
    for _ in 0..=recorded.len() {
        let Some(expression) = recorded.get(&metric) else {
            let known = BEGINNINGS.iter().find(|(beginning, _)| metric.starts_with(beginning));
            return known.map(|(_, source)| *source);
        };
        metric = metrics(expression).into_iter().next()?;
    }
    None
}

/// Who exports a metric that an expression names: of what every process exports, its labels say which.
pub fn source_in(expression: &str, metric: &str, recorded: &Recorded) -> Option<Source> {
    let of_milvus = metric.starts_with("process_") && expression.contains(r#"component=~"milvus"#);
    if of_milvus { Some(Source::Milvus) } else { source(metric, recorded) }
}

/// The metrics that an expression names, each once, in its order.
pub fn metrics(expression: &str) -> Vec<String> {
    let plain = plain(expression);
    let mut found: Vec<String> = Vec::new();
    let mut rest = plain.as_str();
    while let Some(start) = rest.find(is_of_word) {
        let from = &rest[start..];
        let (word, after) =
            from.split_at(from.find(|c: char| !is_of_word(c)).unwrap_or(from.len()));
        let opens = after.trim_start().starts_with('(');
        rest = after;
        if BEFORE_LABELS.contains(&word) {
            if opens {
                rest = after.split_once(')').map_or("", |(_, rest)| rest);
            }
            continue;
        }
        let is_number = word.starts_with(|first: char| first.is_ascii_digit() || first == '.');
        let is_metric = !opens && !is_number && !is_keyword(word);
        if is_metric && !found.iter().any(|known| known == word) {
            found.push(word.to_owned());
        }
    }
    found
}

/// Whether it looks like the name of a metric and is none.
fn is_keyword(word: &str) -> bool {
    let operators = ["and", "or", "unless", "bool", "offset"];
    // Before `by`; elsewhere a parenthesis tells.
    let aggregations = ["sum", "min", "max", "avg", "count", "group", "topk", "quantile"];
    operators.contains(&word) || aggregations.contains(&word)
}

fn is_of_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | ':' | '.')
}

/// Without labels, what they are compared with, and ranges.
fn plain(expression: &str) -> String {
    let (mut plain, mut quote, mut depth) = (String::new(), None, 0_usize);
    let mut characters = expression.chars();
    while let Some(next) = characters.next() {
        match (quote, next) {
            (Some(_), '\\') => {
                characters.next();
            }
            (Some(end), _) if next == end => quote = None,
            (None, '"' | '\'') => quote = Some(next),
            (None, '{' | '[') => {
                depth += 1;
                plain.push(' ');
            }
            (None, '}' | ']') => depth = depth.saturating_sub(1),
            (None, _) if depth == 0 => plain.push(next),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_from_functions_keywords_labels_and_numbers() {
        for (expression, expected) in [
            ("up", "up"),
            ("vector(0)", ""),
            ("time() - a_seconds > bool 1e6 / 0.5", "a_seconds"),
            (r#"sum by (le, stage) (rate(a_bucket{b="{c} or \"d\"",e=~"$f"}[5m]))"#, "a_bucket"),
            ("count by (device) (a) + sum(b) without (pod)", "a b"),
            ("max by (n) (a) - on (n) group_right () (b > 0) or on () vector(0)", "a b"),
            ("a:b:rate5m / a:b:rate5m and on(x) c offset 5m", "a:b:rate5m c"),
        ] {
            assert_eq!(metrics(expression).join(" "), expected, "{expression}");
        }
    }

    #[test]
    fn a_recorded_metric_is_of_whom_its_rule_names_first() {
        let recorded = [
            ("a:available", "max(sextant_operator_available) * (1 - a:errors)"),
            ("a:errors", r#"rate(http_server_request_duration_seconds_count{status="500"}[5m])"#),
            ("a:uptime", "avg_over_time(a:available[30d])"),
            ("a:loop", "a:loop"),
        ];
        let recorded: Recorded =
            recorded.map(|(name, rule)| (name.to_owned(), rule.to_owned())).into();
        for (metric, expected) in [
            ("a:uptime", Some(Source::Operator)),
            ("a:errors", Some(Source::Server)),
            ("sextant_redis_up", Some(Source::Server)),
            ("sextant_operator_available", Some(Source::Operator)),
            ("redis_up", Some(Source::Redis)),
            ("DCGM_FI_DEV_GPU_UTIL", Some(Source::Dcgm)),
            ("a:loop", None),
            ("sextent_documents", None),
        ] {
            assert_eq!(source(metric, &recorded), expected, "{metric}");
        }
    }

    #[test]
    fn what_every_process_exports_is_of_whom_the_labels_say() {
        let recorded = Recorded::default();
        for (component, expected) in
            [("api|embedder", Source::Server), ("milvus.*", Source::Milvus)]
        {
            let expression = format!(r#"process_open_fds{{component=~"{component}"}}"#);
            let source = source_in(&expression, "process_open_fds", &recorded);
            assert_eq!(source, Some(expected), "{component}");
        }
    }
}
