//! Joining ranked lists.

use std::collections::HashMap;

use super::Key;

/// The constant of reciprocal rank fusion, as in its paper.
pub const RRF_K: f32 = 60.0;

/// A document found by an index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    pub key: Key,
    pub score: f32,
}

/// Best score first; equal scores by key, so that a ranking is the same every time.
pub fn sort(hits: &mut [Scored]) {
    hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.key.cmp(&b.key)));
}

/// Scores that differ by no more than this part of them are equal: they come from sums in another
/// order.
const SAME: f32 = 1e-5;

/// The ranks of a sorted list, counted from 1. Equal scores have equal ranks, so that the order in
/// which an index happens to have them counts for nothing.
pub fn ranks(list: &[Scored]) -> impl Iterator<Item = usize> {
    let mut rank = 0;
    list.iter().enumerate().map(move |(i, hit)| {
        let same = rank > 0 && {
            let first = list[rank - 1].score;
            first - hit.score <= SAME * first.abs()
        };
        if !same {
            rank = i + 1;
        }
        rank
    })
}

/// Reciprocal rank fusion: a document's score is the sum of `1 / (60 + rank)` over the lists that
/// hold it, see [`ranks`].
///
/// # Source
/// Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual
/// Rank Learning Methods", SIGIR '09.
pub fn reciprocal_rank(lists: &[&[Scored]]) -> Vec<Scored> {
    let mut scores: HashMap<Key, f32> = HashMap::new();
    for list in lists {
        for (hit, rank) in list.iter().zip(ranks(list)) {
            *scores.entry(hit.key).or_default() += 1.0 / (RRF_K + rank as f32);
        }
    }
    let mut fused: Vec<Scored> =
        scores.into_iter().map(|(key, score)| Scored { key, score }).collect();
    sort(&mut fused);
    fused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(keys: &[Key]) -> Vec<Scored> {
        keys.iter()
            .zip(1..)
            .map(|(&key, place)| Scored { key, score: 1.0 / place as f32 })
            .collect()
    }

    #[test]
    fn a_document_in_both_lists_beats_the_head_of_one() {
        let fused = reciprocal_rank(&[&list(&[1, 2, 3]), &list(&[4, 2])]);
        assert_eq!(fused.iter().map(|hit| hit.key).collect::<Vec<_>>(), [2, 1, 4, 3]);
        assert!((fused[0].score - 2.0 / 62.0).abs() < 1e-6);
    }

    #[test]
    fn documents_with_equal_scores_have_equal_ranks() {
        let scores = [9.0, 8.0, 8.0, 7.999_99, 7.0, 0.0, 0.0];
        let hits: Vec<Scored> =
            scores.iter().zip(1..).map(|(&score, key)| Scored { key, score }).collect();
        assert!(ranks(&hits).eq([1, 2, 2, 2, 5, 6, 6]));
    }

    #[test]
    fn equal_scores_are_ordered_by_key() {
        let fused = reciprocal_rank(&[&list(&[9]), &list(&[3])]);
        assert_eq!(fused.iter().map(|hit| hit.key).collect::<Vec<_>>(), [3, 9]);
    }
}
