//! The words of the field: collections, documents, filters, queries. No I/O, no clock, no randomness.

pub mod collection;
pub mod document;
pub mod filter;
pub mod fusion;
mod operation;
pub mod query;
pub mod snippet;

pub use collection::{AttributeType, Collection, CollectionName, EmbeddingVersion, Schema};
pub use document::{Document, Value};
pub use filter::{Clause, Condition, Filter, Operator, Scalar};
pub use operation::Operation;
pub use query::{Mode, normalise};

use std::fmt;

/// The number of a document inside its store: stable while the document exists, never used twice.
/// Indexes know documents by it alone.
pub type Key = i64;

/// Why one field of an input is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Where, as in `filter.must[0].field`.
    pub path: String,
    /// What is wrong and, where it can be said, what would be right.
    pub message: String,
}

impl FieldError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            formatter.write_str(&self.message)
        } else {
            write!(formatter, "`{}` {}", self.path, self.message)
        }
    }
}

/// Appends "did you mean" when one of the known names is close to the unknown one.
pub fn unknown_name<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, candidate)) => format!("unknown {what} {name:?}, did you mean {candidate:?}?"),
        None if known.is_empty() => format!("unknown {what} {name:?}"),
        None => format!("unknown {what} {name:?}, known are {}", known.join(", ")),
    }
}
