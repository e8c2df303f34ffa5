//! An operation: writes that were accepted and are indexed later. Its name tells all that is
//! needed to look it up, so nothing of it is stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::CollectionName;

/// `COLLECTION.FIRST-LAST.DOCUMENTS`: the generations of a collection that the writes made. Other
/// writes in between count as part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub collection: String,
    pub first: i64,
    pub last: i64,
    /// Documents written or deleted.
    pub documents: u64,
}

impl Operation {
    pub fn of(collection: &CollectionName, generation: i64, documents: u64) -> Self {
        let collection = collection.to_string();
        Self { collection, first: generation, last: generation, documents }
    }

    /// One operation of two that follow each other.
    pub fn joined(earlier: Option<Self>, later: Option<Self>) -> Option<Self> {
        match (earlier, later) {
            (Some(earlier), Some(later)) => Some(Self {
                last: later.last,
                documents: earlier.documents + later.documents,
                ..earlier
            }),
            (one, other) => one.or(other),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{}.{}", self.collection, self.first, self.last, self.documents)
    }
}

impl FromStr for Operation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FAULT: &str = "is not an operation of this server";
        // Names of collections have no dot.
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().ok_or(FAULT);
        let (collection, generations, documents) = (part()?, part()?, part()?);
        let (first, last) = generations.split_once('-').ok_or(FAULT)?;
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number > 0);
        let (Some(first), Some(last), Some(documents)) =
            (number(first), number(last), number(documents))
        else {
            return Err(FAULT);
        };
        if CollectionName::parse(collection).is_err() || first > last {
            return Err(FAULT);
        }
        let documents = documents.unsigned_abs();
        Ok(Self { collection: collection.to_owned(), first, last, documents })
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Operation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_found_again_by_its_name() {
        let operation =
            Operation { collection: "a-b_c".into(), first: 3, last: 17, documents: 1_024 };
        assert_eq!(operation.to_string(), "a-b_c.3-17.1024");
        assert_eq!(operation.to_string().parse(), Ok(operation));
    }

    #[test]
    fn what_is_no_operation_is_refused() {
        for text in ["", "a", "a.1-2", "a.2-1.5", "a.0-1.5", "a.1-2.-5", "A.1-2.5", "a.1-2.5.6"] {
            assert!(text.parse::<Operation>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn operations_of_one_import_become_one() {
        let one = |first, last, documents| {
            Some(Operation { collection: "a".into(), first, last, documents })
        };
        assert_eq!(Operation::joined(one(3, 3, 256), one(5, 5, 10)), one(3, 5, 266));
        assert_eq!(Operation::joined(None, one(5, 5, 10)), one(5, 5, 10));
    }
}
