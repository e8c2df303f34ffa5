//! Reading documents that were written by this server. Every search reads its hits, and the
//! derived implementations of a flattened map and of an untagged enum go over each value twice.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use super::{Document, Value};

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a document")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut id = None;
                let mut fields = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "id" {
                        id = Some(map.next_value()?);
                    } else {
                        fields.insert(name, map.next_value()?);
                    }
                }
                let id = id.ok_or_else(|| A::Error::missing_field("id"))?;
                Ok(Document { id, fields })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings, a number or a bool")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Number(value.into()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
                let number = Number::from_f64(value);
                number.map(Value::Number).ok_or_else(|| E::custom("must be a finite number"))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::String(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::String(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut strings = Vec::new();
                while let Some(string) = items.next_element()? {
                    strings.push(string);
                }
                Ok(Value::Strings(strings))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let json = r#"{"id":"1","a":"text \"x\"","b":["x","y"],"c":-3,"d":2.5,"e":true,"f":[],"g":18446744073709551615}"#;
        let document: Document = serde_json::from_str(json).unwrap();
        assert_eq!(document.fields.len(), 7);
        assert_eq!(serde_json::to_string(&document).unwrap(), json);
    }

    #[test]
    fn what_no_document_has_is_an_error() {
        for json in [r#"{"a":"x"}"#, r#"{"id":"1","a":{}}"#, r#"{"id":"1","a":[1]}"#, "[]"] {
            assert!(serde_json::from_str::<Document>(json).is_err(), "{json}");
        }
    }
}
