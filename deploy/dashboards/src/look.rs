//! What a Prometheus has for the panels of dashboards.
//!
//! # Source
//! <https://prometheus.io/docs/prometheus/latest/querying/api/>

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::expression::{Recorded, Source, metrics, source_in};
use crate::shown::{Board, Shown, Target, Variable};

/// Seconds between two points of a curve.
const STEP: &str = "1";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// A Prometheus, by whatever makes a GET of a path and returns the body.
pub struct Client<G>(pub G);

/// A series over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub legend: String,
    /// Seconds since 1970 and a value that is a number, at least one.
    pub points: Vec<(f64, f64)>,
}

/// What there is for a panel.
#[derive(Debug, Default)]
pub struct Seen {
    pub curves: Vec<Curve>,
    /// What it would have to have scraped, and has not.
    pub needs: BTreeSet<Source>,
    pub faults: Vec<String>,
}

/// What there is for several dashboards.
pub struct Look {
    /// Of time, in seconds since 1970.
    pub span: Range<f64>,
    /// For each dashboard, and of it for each panel.
    pub seen: Vec<Vec<Seen>>,
    pub faults: Vec<String>,
}

/// What this Prometheus has, whatever a dashboard asks for.
struct Known<'a> {
    names: BTreeSet<String>,
    recorded: Recorded,
    here: &'a [Source],
    span: &'a Range<f64>,
}

impl<G: AsyncFn(String) -> String> Client<G> {
    /// Whether an expression has a series now, as `a > 0` has where `a` is above 0.
    pub async fn holds(&self, expression: &str) -> bool {
        let answer = self.ask("query", &[("query", expression)]).await;
        answer.is_ok_and(|data| data["result"].as_array().is_some_and(|list| !list.is_empty()))
    }

    /// Looks at every panel over the time since `start`, in seconds since 1970, until there is no fault
    /// or it took too long: what happened last shows after the next scrapes. The faults are those of
    /// the dashboards, of their data, as far as that is of a source that is `here`, and of the rules.
    ///
    /// # Errors
    /// What Prometheus says when it does not tell what it has.
    pub async fn look(
        &self,
        boards: &[Board],
        here: &[Source],
        start: f64,
        patience: Duration,
    ) -> Result<Look, String> {
        let deadline = Instant::now() + patience;
        loop {
            let look = self.look_once(boards, here, start..now()).await?;
            if look.faults.is_empty() || Instant::now() > deadline {
                return Ok(look);
            }
            sleep(PAUSE).await;
        }
    }

    async fn look_once(
        &self,
        boards: &[Board],
        here: &[Source],
        span: Range<f64>,
    ) -> Result<Look, String> {
        let names = strings(&self.ask("label/__name__/values", &[]).await?);
        let (recorded, mut faults) = rules(&self.ask("rules", &[]).await?);
        let names = names.into_iter().collect();
        let known = Known { names, recorded, here, span: &span };
        let mut seen = Vec::new();
        for board in boards {
            faults.extend(board.faults());
            for variable in &board.variables {
                faults.extend(self.variable(board, variable, &known).await);
            }
            let mut of_board = Vec::new();
            for panel in &board.panels {
                let of_panel = self.panel(board, panel, &known).await;
                let told = |fault: &String| format!("{}: {}: {fault}", board.name, panel.title);
                faults.extend(of_panel.faults.iter().map(told));
                of_board.push(of_panel);
            }
            seen.push(of_board);
        }
        Ok(Look { span, seen, faults })
    }

    async fn panel(&self, board: &Board, panel: &Shown, known: &Known<'_>) -> Seen {
        let mut seen = Seen::default();
        for target in &panel.targets {
            let expression = board.filled(&target.expression);
            seen.check(&expression, known);
            match self.curves(&expression, target, known.span).await {
                Ok(curves) if curves.is_empty() && seen.needs.is_empty() => {
                    seen.faults.push(format!("no data: {expression}"));
                }
                Ok(curves) => seen.curves.extend(curves),
                Err(error) => seen.faults.push(format!("{error}: {expression}")),
            }
        }
        seen
    }

    async fn curves(
        &self,
        expression: &str,
        target: &Target,
        span: &Range<f64>,
    ) -> Result<Vec<Curve>, String> {
        let (start, end) = (format!("{:.3}", span.start), format!("{:.3}", span.end));
        let (start, end) = (start.as_str(), end.as_str());
        let parameters = [("query", expression), ("start", start), ("end", end), ("step", STEP)];
        let data = self.ask("query_range", &parameters).await?;
        let curves = data["result"].as_array().into_iter().flatten();
        let curves = curves.map(|series| curve(series, &target.legend));
        Ok(curves.filter(|curve| !curve.points.is_empty()).collect())
    }

    /// What is wrong with a variable.
    async fn variable(
        &self,
        board: &Board,
        variable: &Variable,
        known: &Known<'_>,
    ) -> Option<String> {
        if variable.query.is_empty() {
            return None;
        }
        let fault = |what: &str| Some(format!("{}: ${}: {what}", board.name, variable.name));
        let Some((series, label)) = label_values(&variable.query) else {
            return fault("not as label_values(series, label)");
        };
        let series = board.filled(series);
        let mut seen = Seen::default();
        seen.check(&series, known);
        if let Some(first) = seen.faults.first() {
            return fault(first);
        }
        match self.ask(&format!("label/{label}/values"), &[("match[]", series.as_str())]).await {
            Ok(values) if strings(&values).is_empty() && seen.needs.is_empty() => fault("no value"),
            Ok(_) => None,
            Err(error) => fault(&error),
        }
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut path = format!("/api/v1/{what}");
        for (place, (name, value)) in parameters.iter().enumerate() {
            path.push(if place == 0 { '?' } else { '&' });
            path += &encoded(name);
            path.push('=');
            path += &encoded(value);
        }
        let text = (self.0)(path).await;
        let mut answer: Value =
            serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(text) }
    }
}

impl Seen {
    /// Whether each metric of an expression is known, and here.
    fn check(&mut self, expression: &str, known: &Known<'_>) {
        for metric in metrics(expression) {
            let is_there = known.names.contains(&metric) || known.recorded.contains_key(&metric);
            match source_in(expression, &metric, &known.recorded) {
                None => self.faults.push(format!("nobody is known to export {metric}")),
                Some(Source::Prometheus) => {}
                Some(source) if !known.here.contains(&source) => {
                    self.needs.insert(source);
                }
                Some(_) if is_there => {}
                Some(source) => {
                    self.faults.push(format!("{source:?} does not export {metric}"));
                }
            }
        }
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What is recorded, and which rules fail.
fn rules(data: &Value) -> (Recorded, Vec<String>) {
    let (mut recorded, mut faults) = (BTreeMap::new(), Vec::new());
    let groups = data["groups"].as_array().into_iter().flatten();
    for rule in groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        let text = |field: &str| rule[field].as_str().unwrap_or_default().to_owned();
        if text("type") == "recording" {
            recorded.insert(text("name"), text("query"));
        }
        if text("health") == "err" {
            faults.push(format!("rule {}: {}", text("name"), text("lastError")));
        }
    }
    (recorded, faults)
}

fn curve(series: &Value, legend: &str) -> Curve {
    let points = series["values"].as_array().into_iter().flatten();
    let points = points.filter_map(|point| {
        let value: f64 = point[1].as_str()?.parse().ok()?;
        Some((point[0].as_f64()?, value)).filter(|_| value.is_finite())
    });
    Curve { points: points.collect(), legend: filled(legend, &series["metric"]) }
}

/// A legend as in `{{pod}} {{state}}` with the values of these labels.
fn filled(legend: &str, labels: &Value) -> String {
    let mut parts = legend.split("{{");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (label, rest) = part.split_once("}}").unwrap_or((part, ""));
        filled += labels[label.trim()].as_str().unwrap_or_default();
        filled += rest;
    }
    filled
}

/// The parts of `label_values(series, label)`.
fn label_values(query: &str) -> Option<(&str, &str)> {
    let inside = query.strip_prefix("label_values(")?.strip_suffix(')')?;
    let (series, label) = inside.rsplit_once(',')?;
    Some((series.trim(), label.trim()))
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// For the query of a URL.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // a String takes everything
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_curve_has_the_points_that_are_numbers_and_a_legend_of_its_labels() {
        let series = json!({
            "metric": {"tier": "results", "pod": "api-0"},
            "values": [[1, "0"], [2.5, "NaN"], [3, "1.5"], [4, "+Inf"]],
        });
        let expected =
            Curve { legend: "api-0: results ".to_owned(), points: vec![(1.0, 0.0), (3.0, 1.5)] };
        assert_eq!(curve(&series, "{{pod}}: {{tier}} {{state}}"), expected);
    }

    #[test]
    fn metrics_are_looked_for_where_their_source_is_here() {
        let known = Known {
            names: ["sextant_documents".to_owned()].into(),
            recorded: [("a:available".to_owned(), "sextant_operator_available".to_owned())].into(),
            here: &[Source::Server],
            span: &(0.0..1.0),
        };
        for (expression, faults, needs) in [
            ("sextant_documents + count(ALERTS)", vec![], vec![]),
            ("sextant_documnts", vec!["Server does not export sextant_documnts"], vec![]),
            ("documents", vec!["nobody is known to export documents"], vec![]),
            ("a:available", vec![], vec![Source::Operator]),
            ("patroni_primary", vec![], vec![Source::Patroni]),
        ] {
            let mut seen = Seen::default();
            seen.check(expression, &known);
            assert_eq!(seen.faults, faults, "{expression}");
            assert_eq!(seen.needs.into_iter().collect::<Vec<_>>(), needs, "{expression}");
        }
    }

    #[test]
    fn rules_are_read_with_what_they_fail_with() {
        let rule = |name: &str, health: &str| {
            let error = if health == "err" { "many-to-many" } else { "" };
            json!({"type": "recording", "name": name, "query": "b", "health": health, "lastError": error})
        };
        let groups = json!({"groups": [
            {"rules": [rule("a", "ok")]},
            {"rules": [rule("c", "err"), {"type": "alerting", "name": "d", "health": "ok"}]},
        ]});
        let (recorded, faults) = rules(&groups);
        assert_eq!(recorded.into_keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(faults, ["rule c: many-to-many"]);
    }

    #[test]
    fn queries_are_taken_apart_and_encoded() {
        let query = r#"label_values(a{b=~"c,d"}, pod)"#;
        assert_eq!(label_values(query), Some((r#"a{b=~"c,d"}"#, "pod")));
        assert_eq!(label_values("label_names()"), None);
        assert_eq!(encoded("a{b} é"), "a%7Bb%7D%20%C3%A9");
    }
}
