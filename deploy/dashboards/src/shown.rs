//! A dashboard as its file has it: what Grafana would show, and what it would stumble over.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::Value;

const COLUMNS: u32 = 24;

#[derive(Default)]
pub struct Board {
    /// Of its file.
    pub name: String,
    pub title: String,
    pub panels: Vec<Shown>,
    pub variables: Vec<Variable>,
    /// Variables that are named anywhere in it.
    pub(crate) named: BTreeSet<String>,
}

pub struct Variable {
    pub name: String,
    /// Where its values come from; empty where Grafana knows them.
    pub query: String,
}

#[derive(Default)]
pub struct Shown {
    pub title: String,
    /// As Grafana calls it: row, timeseries, stat, text.
    pub kind: String,
    pub unit: String,
    /// Of a panel of words.
    pub words: String,
    pub place: Place,
    pub targets: Vec<Target>,
    pub(crate) has_source: bool,
}

/// In columns, and in units of height.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

pub struct Target {
    pub expression: String,
    pub legend: String,
}

impl Board {
    /// Those of all files of a folder, by their names.
    pub fn read_all(folder: &Path) -> io::Result<Vec<Self>> {
        let mut boards = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            boards.push(Self::parse(&name, &std::fs::read_to_string(&path)?)?);
        }
        boards.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(boards)
    }

    fn parse(name: &str, json: &str) -> serde_json::Result<Self> {
        let board: Value = serde_json::from_str(json)?;
        let of_query = |variable: &Value| text(variable, "/type") == "query";
        let variables = list(&board, "/templating/list").iter().map(|variable| Variable {
            name: text(variable, "/name"),
            query: if of_query(variable) { text(variable, "/query") } else { String::new() },
        });
        Ok(Self {
            name: name.to_owned(),
            title: text(&board, "/title"),
            panels: list(&board, "/panels").iter().map(Shown::of).collect(),
            variables: variables.collect(),
            named: named(json),
        })
    }

    /// An expression as Grafana asks it while all values of each variable are chosen.
    pub fn filled(&self, expression: &str) -> String {
        self.variables.iter().fold(expression.to_owned(), |filled, Variable { name, .. }| {
            filled.replace(&format!("${{{name}}}"), ".*").replace(&format!("${name}"), ".*")
        })
    }

    /// What is wrong with it, whatever its data may be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (number, panel) in self.panels.iter().enumerate() {
            let mut fault = |what: &str| faults.push(format!("{}: {what}", panel.title));
            panel.faults().into_iter().for_each(&mut fault);
            for other in &self.panels[..number] {
                if panel.place.overlaps(other.place) {
                    fault(&format!("is over {:?}", other.title));
                }
            }
        }
        for name in &self.named {
            if !name.starts_with("__") && !self.variables.iter().any(|it| it.name == *name) {
                faults.push(format!("there is no variable {name}"));
            }
        }
        if self.panels.is_empty() {
            faults.push("it has no panels".to_owned());
        }
        faults.into_iter().map(|fault| format!("{}: {fault}", self.name)).collect()
    }
}

impl Shown {
    fn of(panel: &Value) -> Self {
        let place = |name: &str| {
            let number = panel["gridPos"][name].as_u64().unwrap_or_default();
            u32::try_from(number).unwrap_or(u32::MAX)
        };
        let targets = list(panel, "/targets").iter();
        Self {
            title: text(panel, "/title"),
            kind: text(panel, "/type"),
            unit: text(panel, "/fieldConfig/defaults/unit"),
            words: text(panel, "/options/content"),
            place: Place {
                left: place("x"),
                top: place("y"),
                width: place("w"),
                height: place("h"),
            },
            targets: targets
                .map(|target| Target {
                    expression: text(target, "/expr"),
                    legend: text(target, "/legendFormat"),
                })
                .collect(),
            has_source: !text(panel, "/datasource/uid").is_empty(),
        }
    }

    fn faults(&self) -> Vec<&'static str> {
        let mut faults = Vec::new();
        if self.place.width == 0
            || self.place.height == 0
            || self.place.left.saturating_add(self.place.width) > COLUMNS
        {
            faults.push("is not within the dashboard");
        }
        match self.kind.as_str() {
            "text" if self.words.is_empty() => faults.push("says nothing"),
            "row" | "text" => {}
            "timeseries" | "stat" => {
                if self.unit.is_empty() {
                    faults.push("has no unit");
                }
                if !self.has_source {
                    faults.push("has no data source");
                }
                if self.targets.is_empty() {
                    faults.push("asks for nothing");
                }
                if self.targets.iter().any(|target| target.expression.is_empty()) {
                    faults.push("has an empty expression");
                }
            }
            _ => faults.push("is of a kind that nobody draws"),
        }
        faults
    }
}

impl Place {
    fn overlaps(self, other: Self) -> bool {
        let apart = |start: u32, length: u32, other: u32, of_other: u32| {
            start >= other.saturating_add(of_other) || other >= start.saturating_add(length)
        };
        !apart(self.left, self.width, other.left, other.width)
            && !apart(self.top, self.height, other.top, other.height)
    }
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// As in `$name` and `${name}`.
fn named(text: &str) -> BTreeSet<String> {
    let name = |after: &str| {
        let after = after.strip_prefix('{').unwrap_or(after);
        let is_past = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let end = after.find(is_past).unwrap_or(after.len());
        after[..end].to_owned()
    };
    text.split('$').skip(1).map(name).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn panel() -> Value {
        json!({
            "title": "Searches", "type": "timeseries", "datasource": {"uid": "${source}"},
            "fieldConfig": {"defaults": {"unit": "cps"}},
            "gridPos": {"x": 0, "y": 1, "w": 8, "h": 8},
            "targets": [{"expr": r#"sum(a{b=~"$b"})"#}],
        })
    }

    fn faults(panels: &[Value]) -> Vec<String> {
        let variables = [json!({"name": "source"}), json!({"name": "b"})];
        let board = json!({"panels": panels, "templating": {"list": variables}});
        Board::parse("board", &board.to_string()).unwrap().faults()
    }

    #[test]
    fn what_grafana_would_stumble_over_is_found() {
        assert_eq!(faults(&[panel()]), Vec::<String>::new());
        for (pointer, value, expected) in [
            ("/fieldConfig/defaults/unit", json!(""), "Searches: has no unit"),
            ("/datasource", json!(null), "Searches: has no data source"),
            ("/targets", json!([]), "Searches: asks for nothing"),
            ("/targets/0/expr", json!(""), "Searches: has an empty expression"),
            ("/targets/0/expr", json!("sum(a{b=~'$c'})"), "there is no variable c"),
            ("/gridPos/x", json!(20), "Searches: is not within the dashboard"),
            ("/type", json!("heatmap"), "Searches: is of a kind that nobody draws"),
        ] {
            let mut wrong = panel();
            *wrong.pointer_mut(pointer).unwrap() = value;
            assert_eq!(faults(&[wrong]), [format!("board: {expected}")]);
        }
        assert_eq!(faults(&[]), ["board: it has no panels"]);
    }

    #[test]
    fn panels_may_touch_but_not_overlap() {
        let mut other = panel();
        other["gridPos"]["x"] = json!(8);
        assert_eq!(faults(&[panel(), other.clone()]), Vec::<String>::new());
        other["gridPos"]["x"] = json!(7);
        assert_eq!(faults(&[panel(), other]), [r#"board: Searches: is over "Searches""#]);
    }

    #[test]
    fn variables_are_filled_with_all_that_there_is() {
        let list = json!([{"name": "b", "type": "query", "query": "label_values(a, b)"}]);
        let board = json!({"templating": {"list": list}}).to_string();
        let board = Board::parse("board", &board).unwrap();
        assert_eq!(board.filled(r#"a{b=~"$b",c=~"${b}"}"#), r#"a{b=~".*",c=~".*"}"#);
        assert_eq!(board.variables[0].query, "label_values(a, b)");
    }
}
