//! What makes two searches the same, and where a page of one ended.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Query;
use crate::cache::shared::{Digest, Invalidation};
use crate::catalog::SearchedIndex;
use crate::domain::fusion::Scored;
use crate::domain::{EmbeddingVersion, Key};

/// Version of the answers' form: raised when it changes, so that a cache that outlives a server
/// never serves the old one.
const ANSWER_VERSION: u8 = 2;

/// Two searches with equal keys have the same answer. The parts that an invalidation selects by
/// are kept beside the hash of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResultKey {
    pub collection: i64,
    pub query: u64,
    hash: Digest,
}

impl ResultKey {
    pub fn tag(&self) -> Digest {
        self.hash
    }
}

pub fn result_key(
    collection: i64,
    index: &SearchedIndex,
    generation: i64,
    query: &Query,
) -> ResultKey {
    key(collection, index, Some(generation), query)
}

/// The key of the last answer, whatever the documents were.
pub fn stale_key(collection: i64, index: &SearchedIndex, query: &Query) -> ResultKey {
    key(collection, index, None, query)
}

fn key(
    collection: i64,
    index: &SearchedIndex,
    generation: Option<i64>,
    query: &Query,
) -> ResultKey {
    let mut hasher = Fields::new();
    hasher.field(&collection.to_le_bytes());
    hasher.field(&index.id.to_le_bytes());
    hasher.optional(generation.map(i64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
    hasher.field(index.embedding.hash.as_bytes());
    hash_question(&mut hasher, query);
    hasher.field(&(query.limit as u64).to_le_bytes());
    let cursor = query.cursor.as_ref().map(Cursor::encode);
    hasher.optional(cursor.as_deref().map(str::as_bytes));
    hasher.field(&[u8::from(query.snippet), u8::from(query.explain)]);
    for facet in &query.facets {
        hasher.field(facet.as_bytes());
    }
    let query = Invalidation::query_hash(&query.text);
    ResultKey { collection, query, hash: hasher.finish() }
}

/// What decides the ranking: the same for all pages of a search.
fn hash_question(hasher: &mut Fields, query: &Query) {
    hasher.field(query.text.as_bytes());
    hasher.field(query.mode.as_str().as_bytes());
    let filter = query.filter.as_ref().and_then(|filter| serde_json::to_vec(&**filter).ok());
    hasher.optional(filter.as_deref());
    hasher.optional(query.min_score.map(f32::to_le_bytes).as_ref().map(<[u8; 4]>::as_slice));
    hasher.field(query.scope.as_bytes());
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmbeddingKey(pub Digest);

impl EmbeddingKey {
    pub fn new(model: &EmbeddingVersion, text: &str) -> Self {
        let mut hasher = Fields::new();
        hasher.field(model.hash.as_bytes());
        hasher.field(text.as_bytes());
        Self(hasher.finish())
    }
}

/// Hashes a sequence of fields, each with its length, so that no two sequences run together.
struct Fields(Vec<u8>);

impl Fields {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.push(ANSWER_VERSION);
        Self(bytes)
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.push(u8::from(bytes.is_some()));
        self.field(bytes.unwrap_or_default());
    }

    /// Hashed at once, which for short inputs is several times quicker than bit by bit.
    fn finish(self) -> Digest {
        let hash = blake3::hash(&self.0);
        std::array::from_fn(|i| hash.as_bytes()[i])
    }
}

/// Where a page ended: after the last hit's score and key. Writes between two pages may move
/// documents across the boundary; nothing else repeats or is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    /// Hits on the pages before.
    pub depth: usize,
    score: f32,
    key: Key,
    /// Of the search that the cursor belongs to.
    question: [u8; 8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("is not a cursor of this server")]
    Malformed,
    #[error("belongs to another search: query, mode, filter and min_score must be the same")]
    OtherSearch,
}

impl Cursor {
    pub(super) fn after(last: &Scored, depth: usize, query: &Query) -> Self {
        Self { depth, score: last.score, key: last.key, question: question(query) }
    }

    /// Whether a hit comes after the page's end in the order of [`crate::domain::fusion::sort`].
    pub(super) fn is_before(&self, hit: &Scored) -> bool {
        let order = hit.score.total_cmp(&self.score).reverse().then(hit.key.cmp(&self.key));
        order == std::cmp::Ordering::Greater
    }

    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend_from_slice(&u32::try_from(self.depth).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.score.to_le_bytes());
        bytes.extend_from_slice(&self.key.to_le_bytes());
        bytes.extend_from_slice(&self.question);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn decode(text: &str) -> Result<Self, CursorError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
        let bytes: [u8; 24] = bytes.try_into().map_err(|_| CursorError::Malformed)?;
        let depth = u32::from_le_bytes(part(&bytes, 0)) as usize;
        let score = f32::from_le_bytes(part(&bytes, 4));
        if depth >= super::MAX_DEPTH || !score.is_finite() {
            return Err(CursorError::Malformed);
        }
        let key = Key::from_le_bytes(part(&bytes, 8));
        Ok(Self { depth, score, key, question: part(&bytes, 16) })
    }

    /// Whether the cursor was given for this search.
    pub fn check(&self, query: &Query) -> Result<(), CursorError> {
        if self.question == question(query) { Ok(()) } else { Err(CursorError::OtherSearch) }
    }
}

fn part<const N: usize>(bytes: &[u8; 24], from: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[from + i])
}

fn question(query: &Query) -> [u8; 8] {
    let mut hasher = Fields::new();
    hash_question(&mut hasher, query);
    let hash = hasher.finish();
    std::array::from_fn(|i| hash[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Mode;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::Instant;

    fn query(text: &str) -> Query {
        Query {
            text: text.to_owned(),
            mode: Mode::Dense,
            limit: 10,
            filter: None,
            min_score: None,
            cursor: None,
            facets: Vec::new(),
            snippet: false,
            explain: false,
            scope: "read",
            no_cache: false,
            fresh: false,
            deadline: Instant::now(),
        }
    }

    #[test]
    fn every_part_of_the_question_makes_another_key() {
        let base = query("squat");
        let others = [
            query("squats"),
            Query { mode: Mode::Hybrid, ..base.clone() },
            Query { min_score: Some(0.0), ..base.clone() },
            Query { facets: vec!["level".into()], ..base.clone() },
            Query { facets: vec!["lev".into(), "el".into()], ..base.clone() },
            Query { scope: "admin", ..base.clone() },
            Query { limit: 11, ..base.clone() },
            Query { snippet: true, ..base.clone() },
            Query { explain: true, ..base.clone() },
            Query {
                cursor: Some(Cursor::after(&Scored { key: 1, score: 0.5 }, 10, &base)),
                ..base.clone()
            },
            Query { filter: Some(Arc::default()), ..base.clone() },
        ];
        let one = index("00");
        let key = |query| result_key(1, &one, 1, query);
        let mut keys: HashSet<_> = others.iter().chain([&base]).map(key).collect();
        assert_eq!(keys.len(), others.len() + 1);
        keys.extend([result_key(2, &one, 1, &base), result_key(1, &one, 2, &base)]);
        keys.insert(result_key(1, &index("01"), 1, &base));
        keys.insert(result_key(1, &SearchedIndex { id: 2, ..one.clone() }, 1, &base));
        keys.insert(stale_key(1, &one, &base));
        assert_eq!(keys.len(), others.len() + 6);
    }

    fn index(hash: &str) -> SearchedIndex {
        let (model, date) = ("test".to_owned(), "2026-11-23".to_owned());
        let embedding = EmbeddingVersion { model, date, hash: hash.to_owned(), dimension: 2 };
        SearchedIndex { id: 7, embedding }
    }

    #[test]
    fn keys_are_the_same_in_every_server() {
        let index = index("00");
        // Written down: a change here makes what other servers keep useless, and must be meant.
        let hex = |digest: Digest| format!("{:032x}", u128::from_be_bytes(digest));
        let key = result_key(7, &index, 9, &query("squat"));
        let keys = [hex(key.tag()), hex(EmbeddingKey::new(&index.embedding, "squat").0)];
        let expected = ["532f73cf876944dd2cb359f922b763e2", "9d9004958e56a0ae169007e3b77430b2"];
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_cursor_of_another_search_is_refused() {
        let cursor = Cursor::after(&Scored { key: 3, score: 0.5 }, 10, &query("squat"));
        assert_eq!(cursor.check(&query("squat")), Ok(()));
        assert_eq!(cursor.check(&query("lunge")), Err(CursorError::OtherSearch));
    }

    proptest! {
        #[test]
        fn fields_that_are_cut_differently_hash_differently(
            a in ".{0,8}", b in ".{0,8}", cut in 0_usize..16,
        ) {
            let joined = format!("{a}{b}");
            let cut = (0..=cut.min(joined.len()))
                .rev()
                .find(|i| joined.is_char_boundary(*i))
                .unwrap_or(0);
            prop_assume!(cut != a.len());
            let pair = |x: &str, y: &str| {
                let mut fields = Fields::new();
                fields.field(x.as_bytes());
                fields.field(y.as_bytes());
                fields.finish()
            };
            prop_assert_ne!(pair(&a, &b), pair(&joined[..cut], &joined[cut..]));
        }

        #[test]
        fn a_cursor_survives_its_encoding(
            depth in 0_usize..1000, score in -1.0_f32..1.0, key in 1_i64..,
        ) {
            let cursor = Cursor::after(&Scored { key, score }, depth, &query("squat"));
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn what_is_no_cursor_is_refused(text in ".{0,40}") {
            prop_assume!(text.len() != 32);
            prop_assert_eq!(Cursor::decode(&text), Err(CursorError::Malformed));
        }
    }
}
