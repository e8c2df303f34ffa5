//! A document in which tables have places, each a line `<!-- sizing: begin NAME -->` and one
//! `<!-- sizing: end -->`. What stands around them is left alone.

const BEGIN: &str = "<!-- sizing: begin ";
const CLOSE: &str = " -->";
const END: &str = "<!-- sizing: end -->";

/// The document with these tables in the places of their names. Each table must have one, and each
/// place a table.
pub fn fill(document: &str, tables: &[(&str, String)]) -> Result<String, String> {
    let mut filled = String::with_capacity(document.len());
    let mut without_place: Vec<&str> = tables.iter().map(|(name, _)| *name).collect();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        put(&mut filled, line);
        let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(CLOSE)) else {
            continue;
        };
        let table = tables.iter().find(|(known, _)| *known == name);
        let (_, table) = table.ok_or_else(|| format!("there is no table {name:?}"))?;
        without_place.retain(|other| *other != name);
        // Blank lines around it: Markdown would take the comments for rows.
        put(&mut filled, "");
        filled += table;
        put(&mut filled, "");
        if !lines.any(|line| line == END) {
            return Err(format!("no {END} after the place of {name:?}"));
        }
        put(&mut filled, END);
    }
    match without_place.first() {
        Some(name) => Err(format!("no place for the table {name:?}: {BEGIN}{name}{CLOSE}")),
        None => Ok(filled),
    }
}

fn put(text: &mut String, line: &str) {
    *text += line;
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "Before.

<!-- sizing: begin one -->

| old |

<!-- sizing: end -->

After.
";

    fn with(name: &'static str) -> Result<String, String> {
        fill(DOCUMENT, &[(name, "| new |\n".to_owned())])
    }

    #[test]
    fn a_table_is_put_into_its_place_and_the_rest_stays() {
        assert_eq!(with("one"), Ok(DOCUMENT.replace("old", "new")));
    }

    #[test]
    fn filling_twice_changes_nothing() {
        let once = with("one").unwrap();
        assert_eq!(fill(&once, &[("one", "| new |\n".to_owned())]), Ok(once));
    }

    #[test]
    fn a_table_without_a_place_and_a_place_without_a_table_are_named() {
        let both = [("one", String::new()), ("two", String::new())];
        assert!(fill(DOCUMENT, &both).unwrap_err().contains("no place for the table \"two\""));
        assert_eq!(with("two"), Err("there is no table \"one\"".to_owned()));
    }

    #[test]
    fn a_place_without_an_end_is_named() {
        let cut = DOCUMENT.replace("<!-- sizing: end -->", "");
        let error = fill(&cut, &[("one", String::new())]).unwrap_err();
        assert_eq!(error, "no <!-- sizing: end --> after the place of \"one\"");
    }
}
