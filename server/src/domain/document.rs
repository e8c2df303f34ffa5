//! A document: an identifier, texts that are embedded, attributes that are filtered.

mod stored;

use std::collections::BTreeMap;

use serde::Serialize;

use super::collection::{MAX_ATTRIBUTES, field_name_fault};
use super::{AttributeType, FieldError, Schema};

/// Longest identifier, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    Strings(Vec<String>),
}

impl Value {
    pub fn attribute_type(&self) -> AttributeType {
        match self {
            Self::Bool(_) => AttributeType::Bool,
            Self::Number(_) => AttributeType::Number,
            Self::String(_) => AttributeType::String,
            Self::Strings(_) => AttributeType::Strings,
        }
    }

    fn parse(value: serde_json::Value) -> Result<Option<Self>, &'static str> {
        Ok(Some(match value {
            serde_json::Value::Null => return Ok(None),
            serde_json::Value::Bool(bool) => Self::Bool(bool),
            serde_json::Value::Number(number) if number.as_f64().is_some_and(f64::is_finite) => {
                Self::Number(number)
            }
            serde_json::Value::String(string) => Self::String(string),
            serde_json::Value::Array(items) => Self::Strings(
                items
                    .into_iter()
                    .map(|item| match item {
                        serde_json::Value::String(string) => Ok(string),
                        _ => Err("must be a list of strings"),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            _ => return Err("must be a string, a list of strings, a number or a bool"),
        }))
    }
}

/// A document, flat as in JSON: `{"id": …, "name": …, "description": …, "muscle_groups": […]}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    pub id: String,
    /// Texts and attributes by name; a field that is `null` is a field that is not there.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

impl Document {
    /// Takes a JSON object apart. `path` is the object's place in the input, for the messages.
    pub fn parse(value: serde_json::Value, path: &str) -> Result<Self, Vec<FieldError>> {
        let at = |field: &str| place(path, field);
        let serde_json::Value::Object(object) = value else {
            return Err(vec![FieldError::new(path, "must be a JSON object")]);
        };
        let mut faults = Vec::new();
        let mut id = None;
        let mut fields = BTreeMap::new();
        for (name, value) in object {
            if name == "id" {
                match value {
                    serde_json::Value::String(string) => match id_fault(&string) {
                        Some(reason) => faults.push(FieldError::new(at("id"), reason)),
                        None => id = Some(string),
                    },
                    _ => faults.push(FieldError::new(at("id"), "must be a string")),
                }
                continue;
            }
            if let Some(reason) = field_name_fault(&name) {
                faults.push(FieldError::new(at(&name), reason));
                continue;
            }
            match Value::parse(value) {
                Ok(Some(value)) => {
                    fields.insert(name, value);
                }
                Ok(None) => {}
                Err(reason) => faults.push(FieldError::new(at(&name), reason)),
            }
        }
        match id {
            Some(id) if faults.is_empty() => Ok(Self { id, fields }),
            None if faults.is_empty() => Err(vec![FieldError::new(at("id"), "is missing")]),
            _ => Err(faults),
        }
    }

    /// The text that is embedded and searched.
    pub fn text(&self, schema: &Schema) -> String {
        let mut text = String::new();
        for field in &schema.text_fields {
            if let Some(Value::String(part)) = self.fields.get(field) {
                let part = part.trim();
                if !text.is_empty() && !part.is_empty() {
                    text.push(' ');
                }
                text.push_str(part);
            }
        }
        text
    }

    /// The document without its texts: what an index keeps to filter and to count.
    pub fn without_texts(mut self, schema: &Schema) -> Self {
        self.fields.retain(|name, _| !schema.text_fields.contains(name));
        self
    }

    /// Checks the document against the schema, adding attributes seen for the first time to it.
    /// On faults the schema is unchanged.
    pub fn admit(&self, schema: &mut Schema, path: &str) -> Result<(), Vec<FieldError>> {
        let at = |field: &str| place(path, field);
        let mut faults = Vec::new();
        let mut added = Vec::new();
        for (name, value) in &self.fields {
            let kind = value.attribute_type();
            if schema.text_fields.contains(name) {
                if kind != AttributeType::String {
                    faults.push(FieldError::new(at(name), "must be a string"));
                }
                continue;
            }
            match schema.attributes.get(name) {
                Some(known) if *known != kind => faults.push(FieldError::new(
                    at(name),
                    format!("is {kind}; in this collection it is {known}"),
                )),
                Some(_) => {}
                None => added.push((name.clone(), kind)),
            }
        }
        if schema.attributes.len() + added.len() > MAX_ATTRIBUTES {
            let message = format!("would be one of more than {MAX_ATTRIBUTES} attributes");
            faults.extend(added.iter().map(|(name, _)| FieldError::new(at(name), message.clone())));
        }
        if self.text(schema).is_empty() {
            let fields = schema.text_fields.join(", ");
            let message = format!("has no text to search: give it at least one of {fields}");
            faults.push(FieldError::new(path, message));
        }
        if faults.is_empty() {
            schema.attributes.extend(added);
            return Ok(());
        }
        Err(faults)
    }
}

/// Where a field stands in the input, for the messages.
fn place(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Why a string cannot identify a document, if so.
pub fn id_fault(id: &str) -> Option<&'static str> {
    let valid = !id.is_empty() && id.len() <= MAX_ID_BYTES && !id.chars().any(char::is_control);
    (!valid).then_some("must be 1 to 256 bytes without control characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(value: serde_json::Value) -> Document {
        Document::parse(value, "").unwrap()
    }

    #[test]
    fn the_embedded_text_is_name_and_description_joined_by_one_space() {
        let squat =
            document(json!({"id": "1", "name": "Squat ", "description": "Bend the knees."}));
        assert_eq!(squat.text(&Schema::default()), "Squat Bend the knees.");
        let bare = document(json!({"id": "1", "description": "Bend the knees."}));
        assert_eq!(bare.text(&Schema::default()), "Bend the knees.");
    }

    #[test]
    fn a_document_returns_as_it_came_but_for_nulls() {
        let value =
            json!({"id": "1", "name": "Squat", "minutes": 8, "weight": 2.5, "a": ["b"], "c": true});
        let mut with_null = value.clone();
        with_null["gone"] = serde_json::Value::Null;
        assert_eq!(serde_json::to_value(document(with_null)).unwrap(), value);
    }

    #[test]
    fn faults_name_the_place_in_the_batch() {
        let faults = Document::parse(json!({"id": 7, "x": {"y": 1}, "z": [1]}), "[3]").unwrap_err();
        let paths: Vec<_> = faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["[3].id", "[3].x", "[3].z"]);
        let missing = Document::parse(json!({"name": "a"}), "[0]").unwrap_err();
        assert_eq!(missing[0].to_string(), "`[0].id` is missing");
    }

    #[test]
    fn the_first_value_gives_an_attribute_its_type() {
        let mut schema = Schema::default();
        document(json!({"id": "1", "name": "a", "level": "easy"})).admit(&mut schema, "").unwrap();
        assert_eq!(schema.attributes["level"], AttributeType::String);
        let before = schema.clone();
        let faults = document(json!({"id": "2", "name": "a", "level": 3, "new": true}))
            .admit(&mut schema, "[1]")
            .unwrap_err();
        assert_eq!(faults[0].path, "[1].level");
        assert_eq!(schema, before);
    }

    #[test]
    fn a_document_without_text_is_refused() {
        let faults = document(json!({"id": "1", "name": "  "}))
            .admit(&mut Schema::default(), "[0]")
            .unwrap_err();
        assert!(faults[0].message.contains("name, description"));
    }
}
