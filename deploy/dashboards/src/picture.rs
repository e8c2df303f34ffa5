//! Dashboards as pages, roughly as Grafana draws them: a person looks at what a test has seen.

use std::fmt::Write;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::look::{Curve, Look, Seen};
use crate::shown::{Board, Shown};

/// Of a page, in pixels.
pub const WIDTH: u32 = 24 * COLUMN;
/// In pixels: a column, a unit of height, what is above the panels.
const COLUMN: u32 = 60;
const LINE: u32 = 36;
const HEAD: u32 = 40;
/// Of a plot, in pixels: what its panel has beside and below it, and the room for its axes.
const BESIDE: u32 = 20;
const BELOW: u32 = 96;
const LEFT: f64 = 62.0;
const BOTTOM: f64 = 18.0;
const TOP: f64 = 8.0;

const COLOURS: [&str; 10] = [
    "#3274d9", "#56a64b", "#e0b400", "#e02f44", "#a352cc", "#ff780a", "#37872d", "#1f60c4",
    "#c15c17", "#8f3bb8",
];

const STYLE: &str = "
body { margin: 0; background: #f4f5f5; font: 12px sans-serif; color: #24292e }
h1 { margin: 0; padding: 0 8px; font-size: 18px; line-height: 40px }
h1 small { font-weight: normal; font-size: 12px }
main { display: grid; grid-template-columns: repeat(24, 60px); grid-auto-rows: 36px }
h2 { margin: 0; padding: 0 8px; font-size: 15px; line-height: 36px }
section { margin: 3px; padding: 6px; background: #fff; border: 1px solid #ddd; overflow: hidden }
h3 { margin: 0 0 4px; font-size: 12px; white-space: nowrap }
svg { display: block }
ul { margin: 4px 0 0; padding: 0; list-style: none; max-height: 48px; overflow: hidden }
li { display: inline-block; margin-right: 10px; line-height: 16px }
i { display: inline-block; width: 12px; height: 3px; margin-right: 4px; vertical-align: middle }
.stat { font-size: 30px; text-align: center; line-height: 80px }
.note { color: #777 }
";

/// A dashboard as a file.
pub struct Page {
    pub path: PathBuf,
    /// In pixels.
    pub height: u32,
}

/// Writes a page for each dashboard of which there is something to see.
pub fn write(folder: &Path, boards: &[Board], look: &Look) -> io::Result<Vec<Page>> {
    std::fs::create_dir_all(folder)?;
    let mut pages = Vec::new();
    for (board, seen) in boards.iter().zip(&look.seen) {
        if seen.iter().any(|panel| !panel.curves.is_empty()) {
            let path = folder.join(format!("{}.html", board.name));
            std::fs::write(&path, page(board, seen, &look.span))?;
            pages.push(Page { path, height: height(board) });
        }
    }
    Ok(pages)
}

fn height(board: &Board) -> u32 {
    let below = |panel: &Shown| panel.place.top.saturating_add(panel.place.height);
    HEAD + LINE * board.panels.iter().map(below).max().unwrap_or_default()
}

/// A page with each panel and what there is for it over a span of time, in seconds since 1970.
fn page(board: &Board, seen: &[Seen], span: &Range<f64>) -> String {
    let seconds = span.end - span.start;
    let title = escaped(&board.title);
    let mut page = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <h1>{title} <small>{seconds:.0} s of a test</small></h1>\n<main>\n"
    );
    for (panel, seen) in board.panels.iter().zip(seen) {
        let place = panel.place;
        let area = format!(
            "grid-area: {} / {} / span {} / span {}",
            place.top + 1,
            place.left + 1,
            place.height,
            place.width
        );
        let title = escaped(&panel.title);
        let shown = match panel.kind.as_str() {
            "row" => format!("<h2 style=\"{area}\">{title}</h2>\n"),
            "text" => section(&area, &title, &escaped(&panel.words)),
            _ if seen.curves.is_empty() => section(&area, &title, &lack(seen)),
            "stat" => section(&area, &title, &stat(panel, seen)),
            _ => section(&area, &title, &plot(panel, &seen.curves, span)),
        };
        page += &shown;
    }
    page + "</main>\n"
}

fn section(area: &str, title: &str, content: &str) -> String {
    format!("<section style=\"{area}\"><h3>{title}</h3>{content}</section>\n")
}

fn lack(seen: &Seen) -> String {
    let needs: Vec<String> = seen.needs.iter().map(|source| format!("{source:?}")).collect();
    if needs.is_empty() {
        return "<p class=\"note\">No data</p>".to_owned();
    }
    format!("<p class=\"note\">Needs what {} exports</p>", needs.join(" and "))
}

fn stat(panel: &Shown, seen: &Seen) -> String {
    let values = seen.curves.iter().filter_map(last);
    let values: Vec<String> = values.map(|value| readable(value, &panel.unit)).collect();
    format!("<div class=\"stat\">{}</div>", values.join(" · "))
}

fn last(curve: &Curve) -> Option<f64> {
    curve.points.last().map(|(_, value)| *value)
}

fn plot(panel: &Shown, curves: &[Curve], span: &Range<f64>) -> String {
    let width = f64::from((panel.place.width * COLUMN).saturating_sub(BESIDE));
    let height = f64::from((panel.place.height * LINE).saturating_sub(BELOW));
    let values = || curves.iter().flat_map(|curve| curve.points.iter().map(|(_, value)| *value));
    let is_share = ["percentunit", "bool_yes_no"].contains(&panel.unit.as_str());
    let low = values().fold(0.0, f64::min);
    let high = values().fold(if is_share { 1.0 } else { 0.0 }, f64::max);
    let high = if high > low { high } else { low + 1.0 };
    let seconds = (span.end - span.start).max(1.0);
    let across = |time: f64| LEFT + (width - LEFT) * (time - span.start) / seconds;
    let down = |value: f64| {
        let share = (value - low) / (high - low);
        TOP + (height - TOP - BOTTOM) * (1.0 - share)
    };

    let mut svg = format!("<svg width=\"{width}\" height=\"{height}\" font-size=\"10\">");
    // What goes into a String is never refused.
    let parts = if panel.unit == "bool_yes_no" { 1 } else { 4 };
    for part in 0..=parts {
        let share = f64::from(part) / f64::from(parts);
        let value = low + (high - low) * share;
        let (line, label) = (down(value), readable(value, &panel.unit));
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {line:.1}H{width}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            line + 3.0,
        );
        let time = span.start + seconds * share;
        let anchor = if part == parts { "end" } else { "start" };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{:.0} s</text>",
            across(time),
            height - 4.0,
            time - span.start,
        );
    }
    let mut legend = String::new();
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let mut points: Vec<String> = Vec::new();
        for (time, value) in &curve.points {
            points.push(format!("{:.1},{:.1}", across(*time), down(*value)));
        }
        // With round ends, two points in one place are a dot.
        if points.len() == 1 {
            points.push(points[0].clone());
        }
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-linecap=\"round\"/>",
            points.join(" ")
        );
        let now = last(curve).map(|value| readable(value, &panel.unit)).unwrap_or_default();
        let name = escaped(&curve.legend);
        let _ =
            write!(legend, "<li><i style=\"background: {colour}\"></i>{name} <b>{now}</b></li>");
    }
    format!("{svg}</svg><ul>{legend}</ul>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A value with its unit, which is one of Grafana's.
fn readable(value: f64, unit: &str) -> String {
    match unit {
        "s" => seconds(value),
        "bytes" => scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"]),
        "percentunit" => format!("{}%", digits(value * 100.0)),
        "bool_yes_no" if value > 0.5 => "Yes".to_owned(),
        "bool_yes_no" => "No".to_owned(),
        "cps" => scaled(value, 1000.0, &[" c/s", "k c/s", "M c/s"]),
        _ => scaled(value, 1000.0, &["", "k", "M", "G"]),
    }
}

fn seconds(value: f64) -> String {
    const UNITS: [(f64, &str); 5] =
        [(86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")];
    // From two of a unit on; 100 seconds are not yet minutes.
    let fits = |(size, _): &&(f64, &str)| {
        let least = if *size > 1.0 { 2.0 * *size } else { *size };
        value.abs() >= least
    };
    let (size, name) = UNITS.iter().find(fits).copied().unwrap_or((1e-6, "µs"));
    if value.abs() < 1e-9 { "0 s".to_owned() } else { format!("{} {name}", digits(value / size)) }
}

fn scaled(value: f64, base: f64, names: &[&str]) -> String {
    let (mut value, mut names) = (value, names.iter());
    let mut name = names.next().copied().unwrap_or_default();
    while value.abs() >= base {
        let Some(next) = names.next() else { break };
        value /= base;
        name = next;
    }
    format!("{}{name}", digits(value))
}

/// Three digits, without zeros at the end.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::Source;
    use crate::shown::Place;

    fn panel(kind: &str, left: u32) -> Shown {
        let place = Place { left, top: 0, width: 8, height: 8 };
        Shown {
            title: "a < b".to_owned(),
            kind: kind.to_owned(),
            unit: "s".to_owned(),
            place,
            ..Shown::default()
        }
    }

    #[test]
    fn a_page_has_a_curve_a_value_and_what_is_lacking() {
        let curve = |points| Curve { legend: "p50".to_owned(), points };
        let seen = [
            Seen { curves: vec![curve(vec![(10.0, 0.0), (15.0, 2.0)])], ..Seen::default() },
            Seen { curves: vec![curve(vec![(10.0, 0.25)])], ..Seen::default() },
            Seen { needs: [Source::Patroni].into(), ..Seen::default() },
        ];
        let panels = vec![panel("timeseries", 0), panel("stat", 8), panel("timeseries", 16)];
        let board = Board { title: "Stores".to_owned(), panels, ..Board::default() };
        let page = page(&board, &seen, &(10.0..20.0));
        // From the lower left corner of the plot to the middle of its upper edge.
        assert!(page.contains(r#"<polyline points="62.0,174.0 261.0,8.0""#), "{page}");
        assert!(page.contains("p50 <b>2 s</b>"), "{page}");
        assert!(page.contains(r#"<div class="stat">250 ms</div>"#), "{page}");
        assert!(page.contains("Needs what Patroni exports"), "{page}");
        assert!(page.contains("<h3>a &lt; b</h3>"), "{page}");
        assert_eq!(height(&board), 40 + 8 * 36);
    }

    #[test]
    fn values_are_written_with_their_units() {
        for (value, unit, expected) in [
            (0.0, "s", "0 s"),
            (0.000_25, "s", "250 µs"),
            (0.0123, "s", "12.3 ms"),
            (100.0, "s", "100 s"),
            (-7_200.0, "s", "-2 h"),
            (2_592_000.0, "s", "30 d"),
            (1536.0, "bytes", "1.5 KiB"),
            (0.999, "percentunit", "99.9%"),
            (1.0, "bool_yes_no", "Yes"),
            (1234.0, "cps", "1.23k c/s"),
            (0.004, "short", "0.004"),
            (5e12, "short", "5000G"),
        ] {
            assert_eq!(readable(value, unit), expected);
        }
    }
}
