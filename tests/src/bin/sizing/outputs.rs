//! What `bench` printed: titles, tables in Markdown, sentences; and the figures in them.

use std::fmt;
use std::path::Path;

use crate::Failure;

/// One file, as it was printed.
pub struct Output {
    file: String,
    text: String,
    tables: Vec<Table>,
}

struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Where a figure stands: in the first table under a title that has the row and the column. In the title
/// and in the cells of the row one `*` stands for anything.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub title: &'a str,
    /// Cells that tell the row, each with its column.
    pub row: &'a [(&'a str, &'a str)],
    pub column: &'a str,
}

#[derive(Clone, Copy)]
pub enum Which {
    Largest,
    Last,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Largest => "the largest",
            Self::Last => "the last",
        })
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "“{}”", self.title)?;
        for (column, cell) in self.row {
            write!(f, ", {column} {cell}")?;
        }
        write!(f, ": {}", self.column)
    }
}

impl Output {
    pub fn read(folder: &Path, file: &str) -> Result<Self, Failure> {
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self::parse(file, text))
    }

    pub fn parse(file: &str, text: String) -> Self {
        let mut tables: Vec<Table> = Vec::new();
        let (mut title, mut inside) = (String::new(), false);
        for line in text.lines() {
            if let Some(next) = line.strip_prefix("## ") {
                next.trim().clone_into(&mut title);
            }
            let Some(cells) = cells(line) else {
                inside = false;
                continue;
            };
            match tables.last_mut().filter(|_| inside) {
                None => tables.push(Table { title: title.clone(), columns: cells, rows: vec![] }),
                Some(_) if line.starts_with("|---") => {}
                Some(table) => table.rows.push(cells),
            }
            inside = true;
        }
        Self { file: file.to_owned(), text, tables }
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether nobody says in a comment before it that it was put together otherwise.
    pub fn was_printed(&self) -> bool {
        !self.text.starts_with("<!--")
    }

    /// The second line of the head: cores, processor, memory, date.
    pub fn machine(&self) -> Result<&str, Failure> {
        let line = self.text.lines().find(|line| line.contains(" cores, "));
        line.ok_or_else(|| format!("{}: no line with cores, processor and date", self.file).into())
    }

    pub fn cores(&self) -> Result<f64, Failure> {
        let cores = self.machine()?.split(' ').next().unwrap_or_default();
        self.number(cores, &"cores")
    }

    /// A cell as it was printed.
    pub fn cell(&self, place: Place) -> Result<&str, Failure> {
        let mut titled = self.tables.iter().filter(|table| matches(place.title, &table.title));
        let cell = titled.find_map(|table| {
            let column = table.column(place.column)?;
            let row = table.rows.iter().find(|row| table.is(row, place.row))?;
            row.get(column)
        });
        cell.map(String::as_str).ok_or_else(|| format!("{}: no {place}", self.file).into())
    }

    pub fn figure(&self, place: Place) -> Result<f64, Failure> {
        self.number(self.cell(place)?, &place)
    }

    /// One of a column's figures: the largest, or the last one.
    pub fn one_of(&self, title: &str, column: &str, which: Which) -> Result<f64, Failure> {
        let place = Place { title, row: &[], column };
        self.cell(place)?;
        let mut one = f64::NEG_INFINITY;
        for table in self.tables.iter().filter(|table| matches(title, &table.title)) {
            if let Some(index) = table.column(column) {
                for cell in table.rows.iter().filter_map(|row| row.get(index)) {
                    let next = self.number(cell, &place)?;
                    one = match which {
                        Which::Largest => one.max(next),
                        Which::Last => next,
                    };
                }
            }
        }
        Ok(one)
    }

    /// The number between two parts of a sentence.
    pub fn said(&self, before: &str, after: &str) -> Result<f64, Failure> {
        let sentence = format!("“{before}…{after}”");
        let found = self.text.split_once(before).and_then(|(_, rest)| rest.split_once(after));
        let (number, _) = found.ok_or_else(|| format!("{}: no {sentence}", self.file))?;
        self.number(number, &sentence)
    }

    fn number(&self, text: &str, place: &dyn fmt::Display) -> Result<f64, Failure> {
        let digits = text.trim().trim_end_matches(" %").replace(',', "");
        let number = digits.parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("{}: {place}: {text:?} is no number", self.file).into())
    }
}

impl Table {
    fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    fn is(&self, row: &[String], wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(column, cell)| {
            let has = self.column(column).and_then(|index| row.get(index));
            has.is_some_and(|has| matches(cell, has))
        })
    }
}

/// Of a line of a table.
fn cells(line: &str) -> Option<Vec<String>> {
    let inside = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inside.split('|').map(|cell| cell.trim().to_owned()).collect())
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "`make bench ARGS='cached'`
2 cores, A processor, 24 GiB of memory, 2026-01-01

## Cached searches

| connections | target | rate |
|---|---|---|
| 1 | empty handler, 11 bytes | 1,234.5 |
| 16 | cached search, 2613 bytes | 86.5 % |

| connections | rate |
|---|---|
| 64 | 7 |

Afterwards the server holds 427.1 MiB.

## Others

| rate |
|---|
|  |
";

    fn output() -> Output {
        Output::parse("cached.md", TEXT.to_owned())
    }

    fn figure(row: &[(&str, &str)]) -> Result<f64, String> {
        let place = Place { title: "Cached *", row, column: "rate" };
        output().figure(place).map_err(|error| error.to_string())
    }

    #[test]
    fn a_figure_is_found_by_title_row_and_column() {
        assert_eq!(figure(&[("connections", "1")]), Ok(1234.5));
        assert_eq!(figure(&[("target", "cached search, *"), ("connections", "16")]), Ok(86.5));
        assert_eq!(figure(&[("connections", "64")]), Ok(7.0));
    }

    #[test]
    fn a_figure_that_is_missing_is_named_with_file_row_and_column() {
        let error = figure(&[("connections", "2")]).unwrap_err();
        assert_eq!(error, "cached.md: no “Cached *”, connections 2: rate");
    }

    #[test]
    fn a_cell_without_a_number_is_shown() {
        let place = Place { title: "Others", row: &[], column: "rate" };
        let error = output().figure(place).unwrap_err().to_string();
        assert_eq!(error, "cached.md: “Others”: rate: \"\" is no number");
    }

    #[test]
    fn the_largest_and_the_last_figure_are_those_of_all_rows_under_a_title() {
        let largest = output().one_of("Cached searches", "rate", Which::Largest).unwrap();
        assert!((largest - 1234.5).abs() < 1e-9);
        let last = output().one_of("Cached searches", "rate", Which::Last).unwrap();
        assert!((last - 7.0).abs() < 1e-9);
        assert!(output().one_of("Cached searches", "other", Which::Largest).is_err());
    }

    #[test]
    fn a_comment_before_it_says_that_it_was_not_printed() {
        assert!(output().was_printed());
        assert!(!Output::parse("cached.md", format!("<!-- By hand. -->\n{TEXT}")).was_printed());
    }

    #[test]
    fn cores_and_figures_in_sentences_are_read() {
        assert!((output().cores().unwrap() - 2.0).abs() < 1e-9);
        let said = output().said("the server holds ", " MiB.").unwrap();
        assert!((said - 427.1).abs() < 1e-9);
        assert!(output().said("the client holds ", " MiB.").is_err());
    }
}
