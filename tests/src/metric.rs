//! Quality of a ranking.

use std::collections::BTreeMap;

/// nDCG@k with gain `2^grade - 1` and discount `log2(place + 1)`, the ideal ranking made of all
/// judged documents; `None` when no document is relevant.
///
/// # Source
/// Burges et al. 2005, "Learning to rank using gradient descent", for the gain; Järvelin and
/// Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", for the measure.
pub fn ndcg(ranking: &[String], grades: &BTreeMap<String, u32>, k: usize) -> Option<f64> {
    let dcg = |grades: &mut dyn Iterator<Item = u32>| -> f64 {
        let discounted = |(i, grade)| (f64::from(grade).exp2() - 1.0) / (i as f64 + 2.0).log2();
        grades.take(k).enumerate().map(discounted).sum()
    };
    let mut ideal: Vec<u32> = grades.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best = dcg(&mut ideal.into_iter());
    let reached = dcg(&mut ranking.iter().map(|id| grades.get(id).copied().unwrap_or(0)));
    (best > 0.0).then(|| reached / best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
        pairs.iter().map(|(id, grade)| ((*id).to_owned(), *grade)).collect()
    }

    fn ranking(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_ideal_order_is_worth_one_and_nothing_relevant_is_worth_zero() {
        let grades = grades(&[("a", 3), ("b", 2), ("c", 1)]);
        let of = |ids: &[&str]| ndcg(&ranking(ids), &grades, 10).unwrap();
        assert!((of(&["a", "b", "c"]) - 1.0).abs() < 1e-12);
        assert!(of(&["x", "y"]).abs() < 1e-12);
        assert!(of(&["b", "a", "c"]) < of(&["a", "c", "b"]));
    }

    #[test]
    fn gains_and_discounts_are_those_of_the_definition() {
        let grades = grades(&[("a", 3), ("b", 1)]);
        // Gains 7 and 1; the second place counts 1 / log2(3), the third 1 / log2(4).
        let expected = (1.0 + 7.0 / 2.0) / (7.0 + 1.0 / 3_f64.log2());
        let reached = ndcg(&ranking(&["b", "x", "a"]), &grades, 10).unwrap();
        assert!((reached - expected).abs() < 1e-12);
    }

    #[test]
    fn places_after_k_count_neither_in_the_ranking_nor_in_the_ideal() {
        let grades = grades(&[("a", 1), ("b", 1), ("c", 1)]);
        assert!((ndcg(&ranking(&["a", "b"]), &grades, 2).unwrap() - 1.0).abs() < 1e-12);
        assert!(ndcg(&ranking(&["x", "y", "a"]), &grades, 2).unwrap().abs() < 1e-12);
    }

    #[test]
    fn without_relevant_documents_there_is_no_value() {
        assert_eq!(ndcg(&ranking(&["a"]), &grades(&[("a", 0)]), 10), None);
    }
}
