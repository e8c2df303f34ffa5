//! Counts of values, made from the matching rows page by page.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::rows;
use crate::ports::{FacetValue, Facets};

/// Counts of the values of some fields.
pub struct Counts<'a> {
    fields: &'a [String],
    counts: Vec<HashMap<String, u64>>,
}

impl<'a> Counts<'a> {
    pub fn new(fields: &'a [String]) -> Self {
        Self { fields, counts: vec![HashMap::new(); fields.len()] }
    }

    /// Adds the attributes of a row.
    pub fn add(&mut self, attributes: &Json) {
        for (field, counts) in self.fields.iter().zip(&mut self.counts) {
            for value in rows::values(attributes, field) {
                match counts.get_mut(value) {
                    Some(count) => *count += 1,
                    None => {
                        counts.insert(value.to_owned(), 1);
                    }
                }
            }
        }
    }

    /// At most `values` a field, the most frequent first, then by value.
    pub fn most_frequent(self, values: usize) -> Facets {
        let facets = self.fields.iter().zip(self.counts).map(|(field, counts)| {
            let mut counts: Vec<FacetValue> =
                counts.into_iter().map(|(value, count)| FacetValue { value, count }).collect();
            counts
                .sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
            counts.truncate(values);
            (field.clone(), counts)
        });
        Facets(facets.collect())
    }
}
