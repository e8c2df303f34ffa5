//! Filters as expressions of Milvus.
//!
//! The server gets text, so every name and value is written as a literal by [`literal`] and
//! [`number`], and nothing else of a filter reaches the expression. Strings, numbers and bools are
//! apart in the attributes, see [`super::rows`]: a comparison never meets a value of another type.
//! Each is guarded by `exists`, so that it is true or false but never unknown, also under `not`.

use std::fmt::Write;

use crate::domain::filter::Range;
use crate::domain::{Clause, Condition, Filter, Operator, Scalar};

use super::rows::{ATTRIBUTES, BOOLS, ID, NUMBERS, STRINGS, WORDS, indexed_string};

/// Which documents are meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    All,
    Nothing,
    Some(String),
}

use Expression::{All, Nothing};

impl Expression {
    /// The documents that a filter matches.
    pub fn of(filter: Option<&Filter>) -> Self {
        filter.map_or(All, of_filter)
    }

    /// Those of them that hold one of the words.
    pub fn with_words(self, words: &[String]) -> Self {
        if words.is_empty() {
            return Nothing;
        }
        let words = format!("text_match({WORDS}, {})", literal(&words.join(" ")));
        all_of(vec![self, Expression::Some(words)])
    }

    /// What a server is asked; `None` when no document can match.
    pub fn text(&self) -> Option<&str> {
        match self {
            All => Some(""),
            Nothing => None,
            Expression::Some(text) => Some(text),
        }
    }
}

/// A string as a literal. Other control characters stand for themselves.
pub fn literal(string: &str) -> String {
    let mut written = String::with_capacity(string.len() + 2);
    written.push('"');
    for character in string.chars() {
        match character {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            other => written.push(other),
        }
    }
    written.push('"');
    written
}

/// A number as a literal that is always one of floating point. One that is not finite, which no
/// filter has, is the nearest that is.
fn number(number: f64) -> String {
    format!("{:?}", number.clamp(f64::MIN, f64::MAX))
}

fn of_filter(filter: &Filter) -> Expression {
    let mut parts: Vec<Expression> = filter.must.iter().map(of_clause).collect();
    if !filter.should.is_empty() {
        parts.push(any_of(filter.should.iter().map(of_clause).collect()));
    }
    parts.push(not(any_of(filter.must_not.iter().map(of_clause).collect())));
    all_of(parts)
}

fn of_clause(clause: &Clause) -> Expression {
    match clause {
        Clause::Filter(filter) => of_filter(filter),
        Clause::Condition(condition) if condition.field == ID => of_id(&condition.operator),
        Clause::Condition(condition) => of_attribute(condition),
    }
}

fn of_id(operator: &Operator) -> Expression {
    match operator {
        Operator::Exists(true) => All,
        Operator::Exists(false) | Operator::Range(_) => Nothing,
        Operator::In(values) => match strings(values) {
            list if list.is_empty() => Nothing,
            list => Expression::Some(format!("{ID} in [{}]", list.join(", "))),
        },
    }
}

fn of_attribute(condition: &Condition) -> Expression {
    let path = |kind: &str| format!("{ATTRIBUTES}[\"{kind}\"][{}]", literal(&condition.field));
    match &condition.operator {
        Operator::Exists(wanted) => {
            let exists = [STRINGS, NUMBERS, BOOLS]
                .map(|kind| Expression::Some(format!("exists {}", path(kind))));
            let exists = any_of(exists.into());
            if *wanted { exists } else { not(exists) }
        }
        Operator::Range(range) => guarded(&path(NUMBERS), of_range(&path(NUMBERS), range)),
        Operator::In(values) => {
            let (numbers, bools) = (path(NUMBERS), path(BOOLS));
            let list = match strings(values) {
                list if list.is_empty() => Nothing,
                list => {
                    let list = list.join(", ");
                    Expression::Some(format!("json_contains_any({}, [{list}])", path(STRINGS)))
                }
            };
            let equals_number = values.iter().filter_map(|value| match value {
                Scalar::Number(value) => {
                    Some(Expression::Some(format!("{numbers} == {}", number(*value))))
                }
                _ => None,
            });
            let equals_bool = values.iter().filter_map(|value| match value {
                Scalar::Bool(value) => Some(Expression::Some(format!("{bools} == {value}"))),
                _ => None,
            });
            any_of(vec![
                guarded(&path(STRINGS), list),
                guarded(&numbers, any_of(equals_number.collect())),
                guarded(&bools, any_of(equals_bool.collect())),
            ])
        }
    }
}

fn of_range(path: &str, range: &Range) -> Expression {
    let bounds = [(">", range.gt), (">=", range.gte), ("<", range.lt), ("<=", range.lte)];
    let bounds = bounds.into_iter().filter_map(|(operator, bound)| {
        Some(Expression::Some(format!("{path} {operator} {}", number(bound?))))
    });
    all_of(bounds.collect())
}

fn guarded(path: &str, expression: Expression) -> Expression {
    all_of(vec![Expression::Some(format!("exists {path}")), expression])
}

/// The values of a list that are strings, as literals.
fn strings(values: &[Scalar]) -> Vec<String> {
    let strings = values.iter().filter_map(|value| match value {
        Scalar::String(string) => Some(literal(&indexed_string(string))),
        _ => None,
    });
    strings.collect()
}

fn not(expression: Expression) -> Expression {
    match expression {
        All => Nothing,
        Nothing => All,
        Expression::Some(text) => Expression::Some(format!("not ({text})")),
    }
}

fn all_of(parts: Vec<Expression>) -> Expression {
    joined(parts, " and ", &All, &Nothing)
}

fn any_of(parts: Vec<Expression>) -> Expression {
    joined(parts, " or ", &Nothing, &All)
}

/// Joins parts of which `neutral` changes nothing and `deciding` decides alone.
fn joined(
    parts: Vec<Expression>,
    operator: &str,
    neutral: &Expression,
    deciding: &Expression,
) -> Expression {
    if parts.contains(deciding) {
        return deciding.clone();
    }
    let mut texts: Vec<String> = parts
        .into_iter()
        .filter_map(|part| match part {
            Expression::Some(text) => Some(text),
            All | Nothing => None,
        })
        .collect();
    match texts.len() {
        0 => neutral.clone(),
        1 => Expression::Some(texts.remove(0)),
        _ => {
            let mut joined = String::new();
            for (i, text) in texts.iter().enumerate() {
                let operator = if i == 0 { "" } else { operator };
                // Writing to a string cannot fail.
                let _ = write!(joined, "{operator}({text})");
            }
            Expression::Some(joined)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn condition(field: &str, operator: Operator) -> Clause {
        Clause::Condition(Condition { field: field.to_owned(), operator })
    }

    fn must(clauses: Vec<Clause>) -> Filter {
        Filter { must: clauses, ..Filter::default() }
    }

    /// What a server reads out of a literal.
    fn read(literal: &str) -> String {
        let inner = literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap();
        let (mut read, mut characters) = (String::new(), inner.chars());
        while let Some(character) = characters.next() {
            assert!(!matches!(character, '"' | '\n' | '\r'), "the literal ends early: {literal}");
            read.push(match character {
                '\\' => match characters.next().unwrap() {
                    'n' => '\n',
                    'r' => '\r',
                    other @ ('"' | '\\') => other,
                    other => panic!("no server knows \\{other}"),
                },
                other => other,
            });
        }
        read
    }

    /// The expression without what is inside of literals.
    fn skeleton(expression: &str) -> String {
        let (mut skeleton, mut inside, mut escaped) = (String::new(), false, false);
        for character in expression.chars() {
            match (inside, escaped, character) {
                (true, true, _) => escaped = false,
                (true, false, '\\') => escaped = true,
                (_, _, '"') => {
                    inside = !inside;
                    skeleton.push('"');
                }
                (true, ..) => {}
                (false, ..) => skeleton.push(character),
            }
        }
        assert!(!inside, "a literal does not end: {expression}");
        skeleton
    }

    #[test]
    fn a_filter_reads_as_it_is_meant() {
        let text = Operator::In(vec![Scalar::String("chest".to_owned())]);
        let range = Range { gte: Some(5.0), lt: Some(10.5), ..Range::default() };
        let filter = Filter {
            must: vec![condition("groups", text)],
            must_not: vec![condition("minutes", Operator::Range(range))],
            ..Filter::default()
        };
        assert_eq!(
            Expression::of(Some(&filter)).text().unwrap(),
            "((exists attributes[\"strings\"][\"groups\"])\
             and(json_contains_any(attributes[\"strings\"][\"groups\"], [\"chest\"])))\
             and(not ((exists attributes[\"numbers\"][\"minutes\"])\
             and((attributes[\"numbers\"][\"minutes\"] >= 5.0)\
             and(attributes[\"numbers\"][\"minutes\"] < 10.5))))"
                .replace(")and(", ") and (")
        );
    }

    #[test]
    fn what_is_always_or_never_true_is_not_asked() {
        assert_eq!(Expression::of(None), All);
        assert_eq!(Expression::of(Some(&Filter::default())), All);
        let exists = |wanted| condition("id", Operator::Exists(wanted));
        assert_eq!(Expression::of(Some(&must(vec![exists(true)]))), All);
        assert_eq!(Expression::of(Some(&must(vec![exists(false)]))), Nothing);
        let none = condition("level", Operator::In(vec![]));
        assert_eq!(Expression::of(Some(&must(vec![none.clone()]))), Nothing);
        let filter = Filter { must_not: vec![none], ..Filter::default() };
        assert_eq!(Expression::of(Some(&filter)), All);
        assert_eq!(All.with_words(&[]), Nothing);
    }

    #[test]
    fn numbers_are_written_as_numbers_of_floating_point() {
        for (value, written) in
            [(1.0, "1.0"), (-2.5, "-2.5"), (1e300, "1e300"), (1e-9, "1e-9"), (-0.0, "-0.0")]
        {
            assert_eq!(number(value), written);
        }
        assert_eq!(number(f64::INFINITY), number(f64::MAX));
    }

    proptest! {
        #[test]
        fn a_literal_is_read_as_the_string_it_was(string in any::<String>()) {
            prop_assert_eq!(read(&literal(&string)), string);
        }

        #[test]
        fn no_name_or_value_changes_the_shape_of_an_expression(
            field in any::<String>(), value in "(?s).*|[\"\\\\\n\r\u{0}]*",
        ) {
            prop_assume!(field != ID);
            let filter = |field: &str, value: &str| {
                let operator = Operator::In(vec![Scalar::String(value.to_owned())]);
                let expression = Expression::of(Some(&must(vec![condition(field, operator)])));
                skeleton(expression.text().unwrap())
            };
            prop_assert_eq!(filter(&field, &value), filter("level", "easy"));
        }
    }
}
