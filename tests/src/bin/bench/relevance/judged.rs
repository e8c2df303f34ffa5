//! Documents, queries and what people found relevant.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use sextant_tests::repository;

use crate::Failure;
use crate::server::SAMPLES;

pub struct Collection {
    pub name: &'static str,
    pub text_fields: &'static [&'static str],
    pub documents: Vec<Value>,
    pub queries: Vec<Query>,
}

#[derive(Deserialize)]
pub struct Query {
    #[serde(rename = "query")]
    pub text: String,
    /// Grades of the relevant documents, higher is better.
    pub relevant: BTreeMap<String, u32>,
}

/// The sample catalogue with its judged queries.
pub fn samples() -> Result<Collection, Failure> {
    #[derive(Deserialize)]
    struct Judged {
        queries: Vec<Query>,
    }
    let read = |name: &str| fs::read_to_string(repository("deploy/samples").join(name));
    let documents = read("exercises.ndjson")?;
    let documents = documents.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let Judged { queries } = serde_json::from_str(&read("exercises-queries.json")?)?;
    Ok(Collection { name: SAMPLES, text_fields: &["name", "description"], documents, queries })
}

/// The Cranfield collection: `cran.all.1400`, `cran.qry` and `cranqrel` in a folder.
pub fn cranfield(folder: &Path) -> Result<Collection, Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let documents = records(&read("cran.all.1400")?)
        .into_iter()
        // Two have no words at all; a server refuses those.
        .filter(|record| !record.title.is_empty() || !record.text.is_empty())
        .map(|record| json!({"id": record.id, "title": record.title, "text": record.text}))
        .collect();
    let mut judged = judgements(&read("cranqrel")?)?;
    // Queries are judged by their position, not by the number that they carry.
    let queries = (1..)
        .zip(records(&read("cran.qry")?))
        .map(|(place, record)| Query {
            text: record.text,
            relevant: judged.remove(&place).unwrap_or_default(),
        })
        .collect();
    Ok(Collection { name: "cranfield", text_fields: &["title", "text"], documents, queries })
}

#[derive(Default)]
struct Record {
    id: String,
    title: String,
    text: String,
}

/// Records that begin with `.I number`, their fields each with a line as `.T`.
fn records(file: &str) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut field = None;
    for line in file.lines() {
        if let Some(id) = line.strip_prefix(".I ") {
            records.push(Record { id: id.trim().to_owned(), ..Record::default() });
            field = None;
            continue;
        }
        if matches!(line.trim_end(), ".T" | ".A" | ".B" | ".W") {
            field = line.chars().nth(1);
            continue;
        }
        let Some(record) = records.last_mut() else { continue };
        let text = match field {
            Some('T') => &mut record.title,
            Some('W') => &mut record.text,
            _ => continue,
        };
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(line.trim());
    }
    records
}

/// Lines of query, document and grade, where 1 is best, 4 least and -1 not relevant.
fn judgements(file: &str) -> Result<BTreeMap<usize, BTreeMap<String, u32>>, Failure> {
    let mut judged: BTreeMap<usize, BTreeMap<String, u32>> = BTreeMap::new();
    for line in file.lines() {
        let mut words = line.split_whitespace();
        let (Some(query), Some(document), Some(grade)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let grade = match grade.parse::<i32>()? {
            grade @ 1..=4 => 5 - grade.unsigned_abs(),
            _ => continue,
        };
        let of_query = judged.entry(query.parse()?).or_default();
        let best = of_query.entry(document.to_owned()).or_default();
        *best = grade.max(*best);
    }
    Ok(judged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_title_and_text_on_one_line_each() {
        let file = ".I 1\n.T\na wing in a\nslipstream .\n.A\nsomebody\n.W\nfirst\n  second\n.I 2\n.T\n.W\n";
        let records = records(file);
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].title, "a wing in a slipstream .");
        assert_eq!(records[0].text, "first second");
        assert_eq!((records[1].id.as_str(), records[1].text.as_str()), ("2", ""));
    }

    #[test]
    fn the_best_grade_gains_most_and_documents_that_are_not_relevant_are_left_out() {
        let judged = judgements("1 184 2 \n1 29 1\n1 7 -1\n2 5 4\n").unwrap();
        assert_eq!(judged[&1], [("184".to_owned(), 3), ("29".to_owned(), 4)].into());
        assert_eq!(judged[&2], [("5".to_owned(), 1)].into());
    }
}
