//! Writes the dashboards as JSON: `dashboards FOLDER`.

use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("usage: dashboards FOLDER"))?;
    std::fs::create_dir_all(&folder)?;
    for dashboard in sextant_dashboards::all() {
        std::fs::write(folder.join(dashboard.file()), dashboard.json())?;
    }
    Ok(())
}
