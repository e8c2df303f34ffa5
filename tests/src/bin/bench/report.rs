//! Markdown of the results.

use std::fmt::Display;
use std::process::Command;

/// Machine, date and command: what figures mean nothing without.
pub fn head() {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let kib: f64 = field("/proc/meminfo", "MemTotal").replace(" kB", "").parse().unwrap_or(0.0);
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let date = date.map_or_else(|_| "unknown".into(), |date| date.stdout);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("`make bench ARGS='{}'`", arguments.join(" "));
    println!(
        "{cores} cores, {}, {:.0} GiB of memory, {}",
        field("/proc/cpuinfo", "model name"),
        kib / 1024.0 / 1024.0,
        String::from_utf8_lossy(&date).trim()
    );
}

pub fn title(title: &str) {
    println!("\n## {title}");
}

pub struct Table(String);

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        let rule: String = columns.iter().map(|_| "---|").collect();
        Self(format!("\n| {} |\n|{rule}\n", columns.join(" | ")))
    }

    pub fn row(&mut self, cells: &[&dyn Display]) {
        let cells: Vec<String> = cells.iter().map(ToString::to_string).collect();
        self.0 += "| ";
        self.0 += &cells.join(" | ");
        self.0 += " |\n";
    }

    pub fn print(self) {
        print!("{}", self.0);
    }
}

/// What was wanted and whether it was reached.
pub struct Bars(Table);

impl Bars {
    pub fn new() -> Self {
        Self(Table::new(&["bar", "measured", ""]))
    }

    pub fn at_least(&mut self, what: &str, wanted: f64, measured: f64) {
        self.add(&format!("{what} ≥ {wanted}"), measured, measured >= wanted);
    }

    pub fn at_most(&mut self, what: &str, wanted: f64, measured: f64) {
        self.add(&format!("{what} ≤ {wanted}"), measured, measured <= wanted);
    }

    fn add(&mut self, bar: &str, measured: f64, reached: bool) {
        let verdict = if reached { "PASS" } else { "MISS" };
        self.0.row(&[&bar, &format!("{measured:.3}"), &verdict]);
    }

    pub fn print(self) {
        self.0.print();
    }
}

/// The middle one, or the mean of the middle two; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Nearest rank; NaN of none.
pub fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// With the digits that mean something.
pub fn ms(milliseconds: f64) -> String {
    match milliseconds {
        10.0.. => format!("{milliseconds:.1}"),
        1.0.. => format!("{milliseconds:.2}"),
        _ => format!("{milliseconds:.3}"),
    }
}

pub fn mib(bytes: f64) -> String {
    format!("{:.1}", bytes / 1024.0 / 1024.0)
}
