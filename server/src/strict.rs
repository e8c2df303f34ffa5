//! Reading data so that a fault is told with the path of the field and the nearest right name.

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::domain::{FieldError, unknown_name};

/// Why a text could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// It is not JSON.
    Syntax(String),
    /// It is JSON, but not what was expected.
    Data(FieldError),
}

pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ReadError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        use serde_json::error::Category;
        match error.inner().classify() {
            Category::Data => ReadError::Data(describe(&error)),
            Category::Io | Category::Syntax | Category::Eof => {
                ReadError::Syntax(error.inner().to_string())
            }
        }
    })?;
    deserializer.end().map_err(|error| ReadError::Syntax(error.to_string()))?;
    Ok(value)
}

pub fn from_value<T: DeserializeOwned>(value: Json) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| describe(&error))
}

fn describe(error: &serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let message = error.inner().to_string();
    // The position in the text helps nobody once the field is named.
    let message = message.split(" at line ").next().unwrap_or(&message);
    // serde says: unknown field `x`, expected one of `a`, `b`.
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (true, Some((name, known))) =
        (message.starts_with("unknown field"), quoted.split_first())
    {
        // The path ends at the unknown field or at the object that holds it, as serde came upon it.
        let path = if path == *name || path.ends_with(&format!(".{name}")) {
            path
        } else if path.is_empty() {
            (*name).to_owned()
        } else {
            format!("{path}.{name}")
        };
        return FieldError::new(path, unknown_name("field", name, known.iter().copied()));
    }
    FieldError::new(path, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        limit: u32,
        inner: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        field: String,
    }

    fn fault(text: &str) -> FieldError {
        match from_slice::<Outer>(text.as_bytes()) {
            Err(ReadError::Data(fault)) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fault_has_the_path_of_its_field() {
        assert_eq!(fault(r#"{"limit": "ten"}"#).path, "limit");
        assert_eq!(fault(r#"{"limit": 1, "inner": {"field": 3}}"#).path, "inner.field");
        let unknown = fault(r#"{"limit": 1, "inner": {"feild": "x"}}"#);
        assert_eq!(unknown.path, "inner.feild");
        assert!(unknown.message.contains("\"field\""), "{}", unknown.message);
        assert_eq!(fault(r#"{"limt": 1}"#).path, "limt");
    }

    #[test]
    fn what_is_not_json_is_a_syntax_error() {
        for text in ["{", "{} x", "nope", r#"{"limit": 1,}"#] {
            assert!(
                matches!(from_slice::<Json>(text.as_bytes()), Err(ReadError::Syntax(_))),
                "{text}"
            );
        }
    }
}
