//! Filters as queries of the full-text index.
//!
//! Strings and bools are terms of one JSON field, numbers of another. A number is written as a
//! string that sorts as the number does: whole numbers and fractions, equality and ranges then
//! need no conversion between the number types that a column may have.

use std::ops::Bound;

use tantivy::query::{AllQuery, BooleanQuery, EmptyQuery, ExistsQuery, Occur, Query};
use tantivy::query::{RangeQuery, TermQuery};
use tantivy::schema::{Field, IndexRecordOption, Schema};
use tantivy::{TantivyError, Term};

use crate::domain::filter::Range;
use crate::domain::{Clause, Condition, Filter, Operator, Scalar};

pub const ID: &str = "id";
pub const ATTRIBUTES: &str = "attributes";
pub const NUMBERS: &str = "numbers";

/// Longest string that is a term as it is, in bytes; the index cannot hold a term above 64 KiB.
const MAX_TERM_BYTES: usize = 32_768;

#[derive(Clone, Copy, Debug)]
pub struct FilterFields {
    id: Field,
    attributes: Field,
    numbers: Field,
}

impl FilterFields {
    pub fn of(schema: &Schema) -> Result<Self, TantivyError> {
        Ok(Self {
            id: schema.get_field(ID)?,
            attributes: schema.get_field(ATTRIBUTES)?,
            numbers: schema.get_field(NUMBERS)?,
        })
    }

    /// A query for the documents that the filter matches; its scores mean nothing.
    pub fn query(&self, filter: &Filter) -> Box<dyn Query> {
        let mut parts: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        for clause in &filter.must {
            parts.push((Occur::Must, self.clause(clause)));
        }
        if !filter.should.is_empty() {
            let any = filter.should.iter().map(|clause| self.clause(clause)).collect();
            parts.push((Occur::Must, any_of(any)));
        }
        if parts.is_empty() {
            // What must not match is taken away from something.
            parts.push((Occur::Must, Box::new(AllQuery)));
        }
        for clause in &filter.must_not {
            parts.push((Occur::MustNot, self.clause(clause)));
        }
        Box::new(BooleanQuery::new(parts))
    }

    fn clause(&self, clause: &Clause) -> Box<dyn Query> {
        match clause {
            Clause::Filter(filter) => self.query(filter),
            Clause::Condition(condition) if condition.field == ID => self.id(&condition.operator),
            Clause::Condition(condition) => self.attribute(condition),
        }
    }

    fn id(&self, operator: &Operator) -> Box<dyn Query> {
        match operator {
            Operator::Exists(true) => Box::new(AllQuery),
            Operator::Exists(false) | Operator::Range(_) => Box::new(EmptyQuery),
            Operator::In(values) => {
                let strings = values.iter().filter_map(|value| match value {
                    Scalar::String(id) => Some(term(Term::from_field_text(self.id, id))),
                    _ => None,
                });
                any_of(strings.collect())
            }
        }
    }

    fn attribute(&self, condition: &Condition) -> Box<dyn Query> {
        let path = escape(&condition.field);
        match &condition.operator {
            Operator::In(values) => {
                any_of(values.iter().map(|value| term(self.term(&path, value))).collect())
            }
            Operator::Range(range) => self.range(&path, range),
            Operator::Exists(wanted) => {
                let exists: Vec<Box<dyn Query>> = [ATTRIBUTES, NUMBERS]
                    .into_iter()
                    .map(|field| -> Box<dyn Query> {
                        Box::new(ExistsQuery::new(format!("{field}.{path}"), false))
                    })
                    .collect();
                if *wanted {
                    return any_of(exists);
                }
                Box::new(BooleanQuery::new(vec![
                    (Occur::Must, Box::new(AllQuery)),
                    (Occur::MustNot, any_of(exists)),
                ]))
            }
        }
    }

    fn term(&self, path: &str, value: &Scalar) -> Term {
        match value {
            Scalar::String(string) => {
                let mut term = Term::from_field_json_path(self.attributes, path, false);
                term.append_type_and_str(&indexed_string(string));
                term
            }
            Scalar::Bool(bool) => {
                let mut term = Term::from_field_json_path(self.attributes, path, false);
                term.append_type_and_fast_value(*bool);
                term
            }
            Scalar::Number(number) => self.number(path, *number),
        }
    }

    fn number(&self, path: &str, number: f64) -> Term {
        let mut term = Term::from_field_json_path(self.numbers, path, false);
        term.append_type_and_str(&indexed_number(number));
        term
    }

    fn range(&self, path: &str, range: &Range) -> Box<dyn Query> {
        let bound = |number: f64| self.number(path, number);
        let lower = match (range.gt, range.gte) {
            (Some(above), Some(from)) if from > above => Bound::Included(bound(from)),
            (Some(above), _) => Bound::Excluded(bound(above)),
            (None, Some(from)) => Bound::Included(bound(from)),
            // A range without any bound still wants a number.
            (None, None) => Bound::Included(bound(f64::NEG_INFINITY)),
        };
        let upper = match (range.lt, range.lte) {
            (Some(below), Some(to)) if to < below => Bound::Included(bound(to)),
            (Some(below), _) => Bound::Excluded(bound(below)),
            (None, Some(to)) => Bound::Included(bound(to)),
            (None, None) => Bound::Unbounded,
        };
        Box::new(RangeQuery::new(lower, upper))
    }
}

fn term(term: Term) -> Box<dyn Query> {
    Box::new(TermQuery::new(term, IndexRecordOption::Basic))
}

fn any_of(queries: Vec<Box<dyn Query>>) -> Box<dyn Query> {
    if queries.is_empty() {
        return Box::new(EmptyQuery);
    }
    Box::new(BooleanQuery::new(queries.into_iter().map(|query| (Occur::Should, query)).collect()))
}

/// The path of an attribute: a dot would begin a nested one.
pub fn escape(name: &str) -> String {
    name.replace('\\', "\\\\").replace('.', "\\.")
}

/// The term of a string. One too long for a term is known by its hash, so that it still can be
/// looked for.
pub fn indexed_string(string: &str) -> String {
    if string.len() <= MAX_TERM_BYTES {
        return string.to_owned();
    }
    format!("\u{0}{}", blake3::hash(string.as_bytes()).to_hex())
}

/// The term of a number: 16 hex digits in the order of the numbers. Both zeros are one.
pub fn indexed_number(number: f64) -> String {
    format!("{:016x}", tantivy::f64_to_u64(number + 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_their_order() {
        let numbers = [
            f64::NEG_INFINITY,
            f64::MIN,
            -2.5,
            -1.0,
            -1e-300,
            0.0,
            1e-300,
            1.0,
            2.0_f64.powi(63),
            f64::MAX,
        ];
        let written: Vec<String> = numbers.into_iter().map(indexed_number).collect();
        assert!(written.is_sorted_by(|a, b| a < b), "{written:?}");
        assert_eq!(indexed_number(-0.0), indexed_number(0.0));
    }
}
