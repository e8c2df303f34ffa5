//! Compares what the documents' store and the index hold, a page at a time, and leaves to the
//! workers what differs: a store can lose a part of what it acknowledged, and a backup is older than
//! what the other holds.
//!
//! # Source
//! Anti-entropy, as in Demers et al. 1987, "Epidemic Algorithms for Replicated Database
//! Maintenance". A walk in the order of the keys takes the place of checksums, as neither store
//! keeps any.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::catalog::{Catalog, CatalogError, OpenCollection};
use crate::domain::Key;
use crate::metrics::Metrics;
use crate::ports::{Expected, Outbox, Version};

#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Documents compared at a time.
    pub page: usize,
    /// A difference counts when one is still there after this: a node of the index that is replaced
    /// may miss its documents until then.
    pub believed_after: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { page: 10_000, believed_after: Duration::from_secs(30) }
    }
}

/// Goes through the collections of a catalogue whose index workers keep up to date.
pub struct Verifier {
    catalog: Arc<Catalog>,
    outbox: Arc<dyn Outbox>,
    metrics: Arc<Metrics>,
    options: VerifyOptions,
    /// By index.
    walks: HashMap<i64, Walk>,
}

/// How far a collection was compared.
#[derive(Default)]
struct Walk {
    after: Option<Key>,
    /// Since when there are differences.
    differs_since: Option<Instant>,
}

/// A document whose version is not the same on both sides; `None` where it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Difference {
    key: Key,
    stored: Option<i64>,
    indexed: Option<i64>,
}

/// What was compared at a time.
#[derive(Debug, PartialEq)]
struct Page {
    differences: BTreeSet<Difference>,
    /// The last key that was compared; `None` when there are no more.
    next: Option<Key>,
    /// Of the whole collection, those that the index must have.
    documents: u64,
}

impl Verifier {
    pub fn new(
        catalog: Arc<Catalog>,
        outbox: Arc<dyn Outbox>,
        metrics: Arc<Metrics>,
        options: VerifyOptions,
    ) -> Self {
        Self { catalog, outbox, metrics, options, walks: HashMap::new() }
    }

    /// Compares the next page of every collection, and as many as it takes while documents are
    /// missing. Returns how many were left to the workers.
    ///
    /// # Errors
    /// When a store does not answer; the walk goes on where it was.
    pub async fn step(&mut self) -> Result<u64, CatalogError> {
        let all = self.catalog.all();
        let present: BTreeSet<i64> = all.iter().map(|open| open.searched().id).collect();
        self.walks.retain(|index, _| present.contains(index));
        let mut left = 0;
        for open in all {
            left += self.walk(&open).await?;
        }
        Ok(left)
    }

    async fn walk(&mut self, open: &OpenCollection) -> Result<u64, CatalogError> {
        let index = open.searched().id;
        let mut left = 0;
        loop {
            let after = self.walks.get(&index).and_then(|walk| walk.after);
            let Some(page) = self.look(open.id, index, after).await? else { return Ok(left) };
            let walk = self.walks.entry(index).or_default();
            if !page.differences.is_empty() {
                let since = *walk.differs_since.get_or_insert_with(Instant::now);
                if since.elapsed() < self.options.believed_after {
                    return Ok(left);
                }
                // What is being written is not the same in two looks.
                let Some(again) = self.look(open.id, index, after).await? else { return Ok(left) };
                let both = page.differences.intersection(&again.differences);
                left += self.leave_to_workers(open, both.map(|both| both.key).collect()).await?;
            }
            let walk = self.walks.entry(index).or_default();
            walk.after = page.next;
            if page.next.is_none() {
                walk.differs_since = None;
                return Ok(left);
            }
            let in_doubt = walk.differs_since.is_some();
            if !in_doubt && self.catalog.index.count(index).await? >= page.documents {
                return Ok(left);
            }
        }
    }

    /// `None` when another index has become the one that is searched.
    async fn look(
        &self,
        collection: i64,
        index: i64,
        after: Option<Key>,
    ) -> Result<Option<Page>, CatalogError> {
        let limit = self.options.page;
        // First what must be there: by the time of the second question it is.
        let expected = self.outbox.expected(collection, after, limit).await?;
        if expected.index != index {
            return Ok(None);
        }
        let indexed = self.catalog.index.versions(index, after, limit).await?;
        Ok(Some(Page::of(&expected, &indexed, limit)))
    }

    async fn leave_to_workers(
        &self,
        open: &OpenCollection,
        keys: Vec<Key>,
    ) -> Result<u64, CatalogError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let documents = self.outbox.enqueue(open.id, &keys).await?;
        warn!(collection = %open.name, documents,
            "the index differs from the documents, leaving these to the workers");
        self.metrics.index_differences.inc_by(documents);
        Ok(documents)
    }
}

impl Page {
    /// Compares lists that go from the same key on, as far as all of them reach. One of fewer than
    /// `limit` reaches to the end.
    fn of(expected: &Expected, indexed: &[Version], limit: usize) -> Self {
        let key = |version: &Version| version.key;
        let ends = [
            (expected.versions.len(), expected.versions.last().map(key)),
            (expected.waiting.len(), expected.waiting.last().copied()),
            (indexed.len(), indexed.last().map(key)),
        ];
        let next = ends.into_iter().filter(|end| end.0 >= limit).filter_map(|end| end.1).min();
        let within = |key: Key| next.is_none_or(|next| key <= next);
        let mut by_key: BTreeMap<Key, Difference> = BTreeMap::new();
        for &Version { key, version } in &expected.versions {
            by_key.insert(key, Difference { key, stored: Some(version), indexed: None });
        }
        for &Version { key, version } in indexed {
            let new = Difference { key, stored: None, indexed: None };
            by_key.entry(key).or_insert(new).indexed = Some(version);
        }
        for key in &expected.waiting {
            by_key.remove(key);
        }
        let differ = |difference: &Difference| {
            within(difference.key) && difference.stored != difference.indexed
        };
        let differences = by_key.into_values().filter(differ).collect();
        Self { differences, next, documents: expected.documents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(of: &[(Key, i64)]) -> Vec<Version> {
        of.iter().map(|&(key, version)| Version { key, version }).collect()
    }

    fn page(stored: &[(Key, i64)], waiting: &[Key], indexed: &[(Key, i64)], limit: usize) -> Page {
        let expected = Expected {
            index: 1,
            documents: 0,
            versions: versions(stored),
            waiting: waiting.into(),
        };
        Page::of(&expected, &versions(indexed), limit)
    }

    fn keys(page: &Page) -> Vec<Key> {
        page.differences.iter().map(|difference| difference.key).collect()
    }

    #[test]
    fn what_is_missing_surplus_or_of_another_version_differs() {
        let stored = [(1, 10), (2, 20), (3, 30)];
        let differing = page(&stored, &[], &[(1, 10), (3, 29), (4, 40)], 10);
        assert_eq!((keys(&differing), differing.next), (vec![2, 3, 4], None));
        assert!(page(&stored, &[], &stored, 10).differences.is_empty());
    }

    #[test]
    fn what_workers_still_have_to_do_does_not_differ() {
        let stored = [(1, 10), (2, 20), (3, 30)];
        let waiting = [2, 3, 4];
        assert!(page(&stored, &waiting, &[(1, 10), (3, 29), (4, 40)], 10).differences.is_empty());
    }

    #[test]
    fn a_page_ends_with_the_list_that_ends_first() {
        let stored = [(1, 1), (2, 1), (3, 1)];
        let by_documents = page(&stored, &[], &[(3, 1), (4, 1), (5, 1)], 3);
        assert_eq!((keys(&by_documents), by_documents.next), (vec![1, 2], Some(3)));
        let by_index = page(&[(7, 1)], &[], &[(3, 1), (4, 1), (5, 1)], 3);
        assert_eq!((keys(&by_index), by_index.next), (vec![3, 4, 5], Some(5)));
        let by_rows = page(&stored, &[1, 2, 8], &[(3, 2), (9, 1)], 3);
        assert_eq!((keys(&by_rows), by_rows.next), (vec![3], Some(3)));
        let last = page(&[(7, 1)], &[], &[], 3);
        assert_eq!((keys(&last), last.next), (vec![7], None));
    }
}
