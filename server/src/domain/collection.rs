//! A collection: a name, a schema and the model that embedded it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{FieldError, Mode, unknown_name};

/// Most attributes that one collection may have: each is a column in memory.
pub const MAX_ATTRIBUTES: usize = 64;
const MAX_NAME_LENGTH: usize = 64;

/// Lower-case letters, digits, `-` and `_`, starting with a letter or digit, at most 64 bytes:
/// safe as a path segment, a file name and a metric label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct CollectionName(String);

impl CollectionName {
    pub fn parse(name: &str) -> Result<Self, FieldError> {
        let first =
            name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if first && rest && name.len() <= MAX_NAME_LENGTH {
            return Ok(Self(name.to_owned()));
        }
        Err(FieldError::new(
            "collection",
            "must be 1 to 64 lower-case letters, digits, '-' or '_', starting with a letter or digit",
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CollectionName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The type of an attribute; every document of a collection agrees on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttributeType {
    String,
    Strings,
    Number,
    Bool,
}

impl fmt::Display for AttributeType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::String => "a string",
            Self::Strings => "a list of strings",
            Self::Number => "a number",
            Self::Bool => "a bool",
        })
    }
}

/// What the documents of a collection look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Schema {
    /// Fields whose text is embedded and searched, joined by one space in this order.
    pub text_fields: Vec<String>,
    /// Fields that can be filtered and faceted. A field that is not named here is added with the
    /// type of its first value.
    #[schema(value_type = std::collections::HashMap<String, AttributeType>)]
    pub attributes: BTreeMap<String, AttributeType>,
    /// How a search without `mode` is answered.
    pub default_mode: Mode,
    /// Which answers from before a change may be given.
    #[serde(default)]
    pub freshness: Freshness,
}

/// Which answers from before a change of the documents may be given after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// Those of a moment ago; older ones only when no other can be made, and then marked.
    #[default]
    Bounded,
    /// None: what is kept is passed by unless it is known to be current.
    Fresh,
}

/// A new collection, or the change of one: what is not named stays, or has its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaChange {
    /// Fields whose text is embedded and searched; `name` and `description` when not given. They
    /// cannot change later.
    pub text_fields: Option<Vec<String>>,
    /// Attributes to declare, beside those that are there.
    #[serde(default)]
    #[schema(value_type = std::collections::HashMap<String, AttributeType>)]
    pub attributes: BTreeMap<String, AttributeType>,
    /// How a search without `mode` is answered; `dense` when not given.
    pub default_mode: Option<Mode>,
    /// Which answers from before a change may be given after it; when not given, what the server's
    /// configuration says, else `bounded`.
    pub freshness: Option<Freshness>,
}

impl Default for Schema {
    fn default() -> Self {
        Self {
            text_fields: Self::default_text_fields(),
            attributes: BTreeMap::new(),
            default_mode: Mode::default(),
            freshness: Freshness::default(),
        }
    }
}

impl Schema {
    pub fn default_text_fields() -> Vec<String> {
        vec!["name".to_owned(), "description".to_owned()]
    }

    /// The schema after a change, not yet checked.
    pub fn changed(&self, change: SchemaChange) -> Self {
        let mut attributes = self.attributes.clone();
        attributes.extend(change.attributes);
        Self {
            text_fields: change.text_fields.unwrap_or_else(|| self.text_fields.clone()),
            attributes,
            default_mode: change.default_mode.unwrap_or(self.default_mode),
            freshness: change.freshness.unwrap_or(self.freshness),
        }
    }

    /// Every fault of the schema itself, empty when it is usable.
    pub fn faults(&self) -> Vec<FieldError> {
        let mut faults = Vec::new();
        if self.text_fields.is_empty() || self.text_fields.len() > 16 {
            faults.push(FieldError::new("text_fields", "must name 1 to 16 fields"));
        }
        for (i, field) in self.text_fields.iter().enumerate() {
            let path = format!("text_fields[{i}]");
            if let Some(reason) = field_name_fault(field) {
                faults.push(FieldError::new(path, reason));
            } else if self.attributes.contains_key(field) {
                faults.push(FieldError::new(path, "is also an attribute; it can only be one"));
            } else if self.text_fields[..i].contains(field) {
                faults.push(FieldError::new(path, "is named twice"));
            }
        }
        for name in self.attributes.keys() {
            if let Some(reason) = field_name_fault(name) {
                faults.push(FieldError::new(format!("attributes.{name}"), reason));
            }
        }
        if self.attributes.len() > MAX_ATTRIBUTES {
            faults.push(FieldError::new("attributes", format!("has more than {MAX_ATTRIBUTES}")));
        }
        faults
    }

    /// Faults of changing this schema into `next` while documents exist: what is indexed stays.
    pub fn change_faults(&self, next: &Self) -> Vec<FieldError> {
        let mut faults = Vec::new();
        if self.text_fields != next.text_fields {
            faults.push(FieldError::new(
                "text_fields",
                "cannot change once the collection exists; import into a new collection instead",
            ));
        }
        for (name, kind) in &next.attributes {
            if let Some(present) = self.attributes.get(name).filter(|present| *present != kind) {
                faults.push(FieldError::new(
                    format!("attributes.{name}"),
                    format!("is {present} in this collection and cannot become {kind}"),
                ));
            }
        }
        faults
    }

    /// The attribute's type, or a message that names the nearest known one.
    pub fn attribute(&self, name: &str) -> Result<AttributeType, String> {
        self.attributes.get(name).copied().ok_or_else(|| {
            unknown_name("attribute", name, self.attributes.keys().map(String::as_str))
        })
    }
}

/// Why a field cannot have this name, if so.
pub fn field_name_fault(name: &str) -> Option<&'static str> {
    if name == "id" {
        return Some("\"id\" is the document's identifier and cannot be declared");
    }
    let valid = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && name.len() <= MAX_NAME_LENGTH;
    (!valid).then_some(
        "a field name is 1 to 64 letters, digits, '_' or '-', starting with a letter or '_'",
    )
}

/// Which model made a collection's vectors. Vectors of two models are never compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EmbeddingVersion {
    /// Name of the model, as in `all-MiniLM-L6-v2`.
    pub model: String,
    /// Date of the newest of the model's files, as `YYYY-MM-DD`.
    pub date: String,
    /// Hash of weights, tokenizer and configuration: 64 hex digits, after `bf16-` or `int8-` when the
    /// model computes with that.
    pub hash: String,
    /// Length of a vector.
    pub dimension: usize,
}

impl EmbeddingVersion {
    /// Same vectors for the same text: the name and the date may differ, the content may not.
    pub fn is_compatible(&self, other: &Self) -> bool {
        self.hash == other.hash && self.dimension == other.dimension
    }
}

/// A collection as its store knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    /// Never used again, also when a collection of the same name is made later.
    pub id: i64,
    pub name: CollectionName,
    pub schema: Schema,
    /// The model of the index that is searched.
    pub embedding: EmbeddingVersion,
    /// The index that is searched: the first has the number of its collection.
    pub index: i64,
    /// Number of the last change to the collection's documents.
    pub generation: i64,
    /// Raised with every change that searches see; where writes are indexed before they are
    /// acknowledged it is `generation`.
    pub visible_generation: i64,
    pub documents: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_or_labels_are_refused() {
        for name in ["", "../etc", "Über", "a b", "A", "-a", &"a".repeat(65)] {
            assert!(CollectionName::parse(name).is_err(), "{name:?}");
        }
        for name in ["exercises", "0", "a-b_c9"] {
            assert_eq!(CollectionName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn an_attribute_keeps_its_type_and_text_fields_stay() {
        let schema = Schema {
            attributes: [("level".to_owned(), AttributeType::String)].into(),
            ..Schema::default()
        };
        let mut next = schema.clone();
        next.attributes.insert("minutes".into(), AttributeType::Number);
        assert_eq!(schema.change_faults(&next), []);
        next.attributes.insert("level".into(), AttributeType::Bool);
        next.text_fields = vec!["title".into()];
        let paths: Vec<_> = schema.change_faults(&next).into_iter().map(|f| f.path).collect();
        assert_eq!(paths, ["text_fields", "attributes.level"]);
    }

    #[test]
    fn an_unknown_attribute_is_answered_with_the_nearest_known_one() {
        let schema = Schema {
            attributes: [("muscle_groups".to_owned(), AttributeType::Strings)].into(),
            ..Schema::default()
        };
        assert!(schema.attribute("muscle_group").unwrap_err().contains("\"muscle_groups\""));
    }
}
