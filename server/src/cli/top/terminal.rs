//! The terminal while it shows a view that is drawn again and again in the same place.

use std::io::{self, Stdout, Write};

/// Columns and rows of a terminal that does not tell: those of the VT100.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// No cursor and no lines that go on in the next row; what was there is gone.
const ENTER: &str = "\u{1b}[?25l\u{1b}[?7l\u{1b}[2J";
const LEAVE: &str = "\r\n\u{1b}[?7h\u{1b}[?25h";

/// Gives the terminal back when it is dropped, also because of an error.
pub struct Screen(Stdout);

impl Screen {
    pub fn enter() -> io::Result<Self> {
        let screen = Self(io::stdout());
        screen.write(ENTER)?;
        Ok(screen)
    }

    pub fn draw(&self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = size();
        self.write(&frame(lines, columns, rows))
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut stdout = self.0.lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.write(LEAVE); // a terminal that is gone needs nothing back
    }
}

fn size() -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: this request writes a `winsize`, and `size` is one.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    if done != 0 || size.ws_col == 0 || size.ws_row == 0 {
        return USUAL_SIZE;
    }
    (size.ws_col.into(), size.ws_row.into())
}

/// What draws the lines over those of before. Where they are too many for the rows, empty ones are
/// left out, then the last ones.
fn frame(lines: &[String], columns: usize, rows: usize) -> String {
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    if lines.len() > rows {
        lines.retain(|line| !line.is_empty());
    }
    let missing = format!("… {} more lines", (lines.len() + 1).saturating_sub(rows));
    if lines.len() > rows {
        lines.truncate(rows.saturating_sub(1));
        lines.push(&missing);
    }
    let mut frame = "\u{1b}[H".to_owned();
    for (i, line) in lines.iter().enumerate() {
        // Each row is cleared before: behind a line as long as the row, its last character would be.
        frame.push_str(if i == 0 { "\u{1b}[K" } else { "\r\n\u{1b}[K" });
        frame.extend(line.chars().take(columns));
    }
    if lines.len() < rows {
        frame.push_str("\r\n\u{1b}[J");
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn lines_are_drawn_over_those_of_before_and_the_rest_is_cleared() {
        let drawn = frame(&lines(&["one", "", "zwölf"]), 4, 24);
        let expected = "\u{1b}[H\u{1b}[Kone\r\n\u{1b}[K\r\n\u{1b}[Kzwöl\r\n\u{1b}[J";
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_low_terminal_shows_what_it_can_and_does_not_scroll() {
        let five = lines(&["1", "", "3", "4", "5"]);
        let shown = |rows: usize| {
            let drawn = frame(&five, 80, rows).replace("\u{1b}[H", "").replace("\u{1b}[K", "");
            drawn.split("\r\n").map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shown(6), ["1", "", "3", "4", "5", "\u{1b}[J"]);
        assert_eq!(shown(5), ["1", "", "3", "4", "5"]);
        assert_eq!(shown(4), ["1", "3", "4", "5"]);
        assert_eq!(shown(3), ["1", "3", "… 2 more lines"]);
        assert_eq!(shown(1), ["… 4 more lines"]);
    }
}
