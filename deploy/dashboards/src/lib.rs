//! What is on the dashboards, as data: for Grafana as JSON, and for the test that runs each expression.
//!
//! # Source
//! <https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/>

mod content;
pub mod expression;
mod grafana;
pub mod look;
pub mod picture;
pub mod shown;

pub use content::all;

pub struct Dashboard {
    /// Of its file, and of its address in Grafana.
    pub name: &'static str,
    pub title: &'static str,
    /// Whether one SearchDeployment is chosen, or all are shown.
    pub of_deployment: bool,
    pub rows: &'static [Row],
}

pub struct Row {
    pub title: &'static str,
    pub panels: &'static [Panel],
}

pub struct Panel {
    pub title: &'static str,
    /// What is not plain from the title.
    pub about: &'static str,
    pub unit: Unit,
    pub kind: Kind,
    /// Expressions, each with the legend of its series.
    pub queries: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Over time.
    Series,
    /// The last value.
    Stat,
    /// No query, words alone.
    Text,
}

/// As Grafana calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    /// From 0 to 1.
    Share,
    /// Without a unit of its own.
    Count,
    PerSecond,
    /// 0 or 1.
    YesNo,
}

/// In expressions, for the labels by which one SearchDeployment is chosen.
pub const CHOSEN: &str = "$chosen";

impl Dashboard {
    pub fn file(&self) -> String {
        format!("{}.json", self.name)
    }

    pub fn json(&self) -> String {
        grafana::json(self)
    }
}

impl Panel {
    /// Its expressions with other labels in place of those that are chosen in Grafana.
    pub fn expressions(&self, chosen: &str) -> impl Iterator<Item = String> {
        self.queries.iter().map(move |(expression, _)| expression.replace(CHOSEN, chosen))
    }
}
