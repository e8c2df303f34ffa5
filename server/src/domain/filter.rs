//! Filters as data. Nothing a caller types becomes an expression of a query language: a filter is
//! parsed into these types, checked against the schema and handed to the index as it is.

use serde::Serialize;
use serde_json::Value as Json;

use super::{AttributeType, Document, FieldError, Schema, Value};

/// Deepest nesting of filters inside filters.
pub const MAX_DEPTH: usize = 4;
/// Most conditions in a whole filter.
pub const MAX_CONDITIONS: usize = 64;
/// Most values of one `in`.
pub const MAX_VALUES: usize = 256;

/// Documents that match every `must`, at least one `should` (when there are any) and no `must_not`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Filter {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub must: Vec<Clause>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub should: Vec<Clause>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub must_not: Vec<Clause>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Clause {
    Condition(Condition),
    Filter(Filter),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Condition {
    /// An attribute of the collection, or `id`.
    pub field: String,
    #[serde(flatten)]
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// The value, or any value of a list, is one of these. `eq` is `in` with one value.
    In(Vec<Scalar>),
    /// The document has the field, or has it not. An empty list counts as not there.
    Exists(bool),
    /// A number within all the bounds that are there.
    #[serde(untagged)]
    Range(Range),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Range {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gt: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gte: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lt: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lte: Option<f64>,
}

impl Range {
    pub fn contains(&self, number: f64) -> bool {
        self.gt.is_none_or(|bound| number > bound)
            && self.gte.is_none_or(|bound| number >= bound)
            && self.lt.is_none_or(|bound| number < bound)
            && self.lte.is_none_or(|bound| number <= bound)
    }
}

#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    Bool(bool),
    Number(f64),
    String(String),
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        self.must.is_empty() && self.should.is_empty() && self.must_not.is_empty()
    }

    /// Parses a filter and checks it against the schema. `path` is its place in the input.
    /// The result is in canonical order: equal filters written differently are equal.
    pub fn parse(json: &Json, schema: &Schema, path: &str) -> Result<Self, Vec<FieldError>> {
        let mut parser = Parser { schema, conditions: 0, faults: Vec::new() };
        let filter = parser.filter(json, path, 1);
        if parser.conditions > MAX_CONDITIONS {
            let message = format!("has more than {MAX_CONDITIONS} conditions");
            parser.faults.push(FieldError::new(path, message));
        }
        if parser.faults.is_empty() { Ok(filter.canonical()) } else { Err(parser.faults) }
    }

    fn canonical(mut self) -> Self {
        for clauses in [&mut self.must, &mut self.should, &mut self.must_not] {
            for clause in clauses.iter_mut() {
                match clause {
                    Clause::Filter(filter) => *filter = std::mem::take(filter).canonical(),
                    Clause::Condition(Condition { operator: Operator::In(values), .. }) => {
                        values
                            .sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
                        values.dedup();
                    }
                    Clause::Condition(_) => {}
                }
            }
            clauses.sort_by_cached_key(|clause| serde_json::to_string(clause).unwrap_or_default());
            clauses.dedup();
        }
        self
    }

    /// The filter without the `must` conditions on a field; nested ones stay.
    pub fn without_field(&self, field: &str) -> Self {
        let mut filter = self.clone();
        filter.must.retain(
            |clause| !matches!(clause, Clause::Condition(condition) if condition.field == field),
        );
        filter
    }

    /// What the filter means, by definition: every index is tested against this.
    pub fn matches(&self, document: &Document) -> bool {
        let clause = |clause: &Clause| match clause {
            Clause::Condition(condition) => condition.matches(document),
            Clause::Filter(filter) => filter.matches(document),
        };
        self.must.iter().all(clause)
            && (self.should.is_empty() || self.should.iter().any(clause))
            && !self.must_not.iter().any(clause)
    }
}

impl Condition {
    fn matches(&self, document: &Document) -> bool {
        let id = Value::String(document.id.clone());
        let value = if self.field == "id" { Some(&id) } else { document.fields.get(&self.field) };
        match &self.operator {
            Operator::Exists(wanted) => {
                let exists = match value {
                    None => false,
                    Some(Value::Strings(items)) => !items.is_empty(),
                    Some(_) => true,
                };
                exists == *wanted
            }
            Operator::Range(range) => match value {
                Some(Value::Number(number)) => number.as_f64().is_some_and(|n| range.contains(n)),
                _ => false,
            },
            Operator::In(wanted) => wanted.iter().any(|wanted| match (value, wanted) {
                (Some(Value::String(value)), Scalar::String(wanted)) => value == wanted,
                (Some(Value::Strings(values)), Scalar::String(wanted)) => values.contains(wanted),
                (Some(Value::Bool(value)), Scalar::Bool(wanted)) => value == wanted,
                (Some(Value::Number(value)), Scalar::Number(wanted)) => {
                    value.as_f64() == Some(*wanted)
                }
                _ => false,
            }),
        }
    }
}

struct Parser<'a> {
    schema: &'a Schema,
    conditions: usize,
    faults: Vec<FieldError>,
}

impl Parser<'_> {
    fn fault(&mut self, path: &str, message: impl Into<String>) {
        self.faults.push(FieldError::new(path, message));
    }

    fn filter(&mut self, json: &Json, path: &str, depth: usize) -> Filter {
        let mut filter = Filter::default();
        if depth > MAX_DEPTH {
            self.fault(path, format!("is nested deeper than {MAX_DEPTH}"));
            return filter;
        }
        let Json::Object(object) = json else {
            self.fault(path, "must be an object with must, should or must_not");
            return filter;
        };
        for (name, json) in object {
            let here = format!("{path}.{name}");
            let clauses = match name.as_str() {
                "must" => &mut filter.must,
                "should" => &mut filter.should,
                "must_not" => &mut filter.must_not,
                _ => {
                    let known = ["must", "should", "must_not"].into_iter();
                    self.fault(&here, super::unknown_name("field", name, known));
                    continue;
                }
            };
            let Json::Array(items) = json else {
                self.fault(&here, "must be a list of conditions");
                continue;
            };
            // Counted before they are parsed: a huge list costs its length and no more.
            self.conditions += items.len();
            if self.conditions > MAX_CONDITIONS {
                return Filter::default();
            }
            for (i, item) in items.iter().enumerate() {
                clauses.extend(self.clause(item, &format!("{here}[{i}]"), depth));
            }
        }
        filter
    }

    fn clause(&mut self, json: &Json, path: &str, depth: usize) -> Option<Clause> {
        let Json::Object(object) = json else {
            self.fault(path, "must be a condition with `field`, or a filter");
            return None;
        };
        if object.contains_key("field") {
            return self.condition(object, path).map(Clause::Condition);
        }
        if object.keys().any(|key| matches!(key.as_str(), "must" | "should" | "must_not")) {
            return Some(Clause::Filter(self.filter(json, path, depth + 1)));
        }
        self.fault(path, "needs `field` and one of eq, in, gt, gte, lt, lte, exists");
        None
    }

    fn condition(
        &mut self,
        object: &serde_json::Map<String, Json>,
        path: &str,
    ) -> Option<Condition> {
        let Some(Json::String(field)) = object.get("field") else {
            self.fault(&format!("{path}.field"), "must be a string");
            return None;
        };
        let kind = match field.as_str() {
            "id" => AttributeType::String,
            _ => match self.schema.attribute(field) {
                Ok(kind) => kind,
                Err(message) => {
                    self.fault(&format!("{path}.field"), message);
                    return None;
                }
            },
        };
        let mut operators = Vec::new();
        let mut range = Range::default();
        let faults_before = self.faults.len();
        for (name, json) in object.iter().filter(|(name, _)| *name != "field") {
            let here = format!("{path}.{name}");
            match name.as_str() {
                "eq" => {
                    let value = self.scalar(json, kind, &here)?;
                    operators.push(Operator::In(vec![value]));
                }
                "in" => {
                    let values = self.values(json, kind, &here);
                    operators.push(Operator::In(values));
                }
                "exists" => match json {
                    Json::Bool(wanted) => operators.push(Operator::Exists(*wanted)),
                    _ => self.fault(&here, "must be true or false"),
                },
                "gt" => range.gt = self.bound(json, kind, &here),
                "gte" => range.gte = self.bound(json, kind, &here),
                "lt" => range.lt = self.bound(json, kind, &here),
                "lte" => range.lte = self.bound(json, kind, &here),
                _ => {
                    let known = ["eq", "in", "gt", "gte", "lt", "lte", "exists"].into_iter();
                    self.fault(&here, super::unknown_name("operator", name, known));
                }
            }
        }
        if range != Range::default() {
            operators.push(Operator::Range(range));
        }
        if self.faults.len() > faults_before {
            return None;
        }
        if operators.len() != 1 {
            self.fault(path, "needs exactly one of eq, in, exists, or a range of gt, gte, lt, lte");
            return None;
        }
        let operator = operators.remove(0);
        Some(Condition { field: field.clone(), operator })
    }

    fn values(&mut self, json: &Json, kind: AttributeType, path: &str) -> Vec<Scalar> {
        match json {
            Json::Array(items) if items.len() <= MAX_VALUES => items
                .iter()
                .enumerate()
                .filter_map(|(i, item)| self.scalar(item, kind, &format!("{path}[{i}]")))
                .collect(),
            Json::Array(_) => {
                self.fault(path, format!("has more than {MAX_VALUES} values"));
                Vec::new()
            }
            _ => {
                self.fault(path, "must be a list");
                Vec::new()
            }
        }
    }

    fn scalar(&mut self, json: &Json, kind: AttributeType, path: &str) -> Option<Scalar> {
        let scalar = match (kind, json) {
            (AttributeType::String | AttributeType::Strings, Json::String(string)) => {
                Some(Scalar::String(string.clone()))
            }
            (AttributeType::Number, Json::Number(number)) => number.as_f64().map(Scalar::Number),
            (AttributeType::Bool, Json::Bool(bool)) => Some(Scalar::Bool(*bool)),
            _ => None,
        };
        if scalar.is_none() {
            let wanted = match kind {
                AttributeType::Strings => AttributeType::String,
                kind => kind,
            };
            self.fault(path, format!("must be {wanted}"));
        }
        scalar
    }

    fn bound(&mut self, json: &Json, kind: AttributeType, path: &str) -> Option<f64> {
        if kind != AttributeType::Number {
            self.fault(path, format!("needs a number attribute; this one is {kind}"));
            return None;
        }
        let bound = json.as_f64();
        if bound.is_none() {
            self.fault(path, "must be a number");
        }
        bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema {
            attributes: [
                ("muscle_groups".to_owned(), AttributeType::Strings),
                ("level".to_owned(), AttributeType::String),
                ("minutes".to_owned(), AttributeType::Number),
                ("unilateral".to_owned(), AttributeType::Bool),
            ]
            .into(),
            ..Schema::default()
        }
    }

    fn paths(json: &Json) -> Vec<String> {
        let faults = Filter::parse(json, &schema(), "filter").unwrap_err();
        faults.into_iter().map(|fault| fault.path).collect()
    }

    fn matches(filter: &Json) -> bool {
        let document = json!({"id": "a", "name": "Press-up", "muscle_groups": ["chest", "core"],
            "level": "easy", "minutes": 5, "unilateral": false});
        let document = Document::parse(document, "").unwrap();
        Filter::parse(filter, &schema(), "filter").unwrap().matches(&document)
    }

    #[test]
    fn must_should_and_must_not_mean_what_they_say() {
        let chest = json!({"field": "muscle_groups", "in": ["chest", "back"]});
        let hard = json!({"field": "level", "eq": "hard"});
        let short = json!({"field": "minutes", "gte": 5, "lt": 6});
        assert!(matches(&json!({"must": [chest, short]})));
        assert!(!matches(&json!({"must": [chest, hard]})));
        assert!(matches(&json!({"should": [hard, chest]})));
        assert!(!matches(&json!({"should": [hard]})));
        assert!(matches(&json!({"must": [chest], "must_not": [hard]})));
        assert!(!matches(&json!({"must_not": [chest]})));
        assert!(matches(&json!({"must": [{"should": [hard, short]}]})));
        assert!(matches(&json!({"must": [{"field": "unilateral", "eq": false}]})));
        assert!(matches(&json!({"must": [{"field": "id", "eq": "a"}]})));
        assert!(matches(&json!({"must_not": [{"field": "level", "exists": false}]})));
        assert!(matches(&json!({})));
    }

    #[test]
    fn every_fault_is_named_with_its_path() {
        assert_eq!(
            paths(&json!({"must": [{"field": "levle", "eq": "x"}]})),
            ["filter.must[0].field"]
        );
        assert_eq!(paths(&json!({"most": []})), ["filter.most"]);
        assert_eq!(paths(&json!({"must": [{"field": "level", "eq": 3}]})), ["filter.must[0].eq"]);
        assert_eq!(paths(&json!({"must": [{"field": "level", "gt": 3}]})), ["filter.must[0].gt"]);
        assert_eq!(
            paths(&json!({"must": [{"field": "level", "in": ["a", 1]}]})),
            ["filter.must[0].in[1]"]
        );
        assert_eq!(
            paths(&json!({"must": [{"field": "level", "eq": "a", "exists": true}]})),
            ["filter.must[0]"]
        );
        assert_eq!(paths(&json!([])), ["filter"]);
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let condition = json!({"field": "level", "exists": true});
        assert_eq!(paths(&json!({"must": vec![condition.clone(); 65]})), ["filter"]);
        let mut deep = json!({"must": [condition]});
        for _ in 0..MAX_DEPTH {
            deep = json!({"must": [deep]});
        }
        assert_eq!(paths(&deep).len(), 1);
        let many: Vec<String> = (0..=MAX_VALUES).map(|i| i.to_string()).collect();
        assert_eq!(
            paths(&json!({"must": [{"field": "level", "in": many}]})),
            ["filter.must[0].in"]
        );
    }

    fn condition() -> impl Strategy<Value = Json> {
        prop_oneof![
            proptest::collection::vec("[a-c]", 0..3)
                .prop_map(|values| json!({"field": "muscle_groups", "in": values})),
            "[a-c]".prop_map(|value| json!({"field": "level", "eq": value})),
            (0..5, 0..5).prop_map(|(a, b)| json!({"field": "minutes", "gte": a, "lt": b})),
            any::<bool>().prop_map(|value| json!({"field": "unilateral", "eq": value})),
            any::<bool>().prop_map(|value| json!({"field": "level", "exists": value})),
        ]
    }

    proptest! {
        #[test]
        fn the_order_of_clauses_does_not_matter(
            must in proptest::collection::vec(condition(), 0..4),
            should in proptest::collection::vec(condition(), 0..4),
        ) {
            let written = json!({"must": must, "should": should});
            let reversed = json!({
                "should": should.iter().rev().collect::<Vec<_>>(),
                "must": must.iter().rev().collect::<Vec<_>>(),
            });
            let parse = |json: &Json| Filter::parse(json, &schema(), "filter").unwrap();
            prop_assert_eq!(parse(&written), parse(&reversed));
            let again = serde_json::to_value(parse(&written)).unwrap();
            prop_assert_eq!(parse(&again), parse(&written));
        }
    }
}
