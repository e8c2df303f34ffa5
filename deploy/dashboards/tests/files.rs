//! The dashboards' files in the chart.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

use sextant_dashboards::shown::Board;

const FOLDER: &str = "../../charts/sextant/files/dashboards";

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER)
}

#[test]
fn grafana_stumbles_over_none_of_them() {
    let boards = Board::read_all(&folder()).unwrap();
    let faults: Vec<String> = boards.iter().flat_map(Board::faults).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn they_are_made_of_what_is_on_the_dashboards() {
    let mut names: Vec<String> =
        Board::read_all(&folder()).unwrap().into_iter().map(|board| board.name).collect();
    for dashboard in sextant_dashboards::all() {
        let file = std::fs::read_to_string(folder().join(dashboard.file())).unwrap();
        assert_eq!(file, dashboard.json(), "{}: make dashboards", dashboard.file());
        names.retain(|name| name != dashboard.name);
    }
    assert!(names.is_empty(), "nobody makes {names:?}: remove them");
}
