//! How good the rankings of the sample catalogue are, judged by hand.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use sextant_tests::metric::ndcg;
use sextant_tests::{Options, Server, repository};

const K: usize = 10;

#[derive(Deserialize)]
struct Judged {
    queries: Vec<JudgedQuery>,
}

#[derive(Deserialize)]
struct JudgedQuery {
    query: String,
    /// Grades of the relevant documents: 1 somewhat, 2 well, 3 very well.
    relevant: BTreeMap<String, u32>,
}

#[tokio::test]
async fn the_sample_queries_find_what_people_judged_relevant() {
    let samples = repository("deploy/samples/exercises.ndjson");
    let judged = std::fs::read(repository("deploy/samples/exercises-queries.json")).unwrap();
    let judged: Judged = serde_json::from_slice(&judged).unwrap();
    let server = Server::start(Options::model().seed("exercises", &samples)).await;

    let known = server.api.documents("exercises").await;
    for id in judged.queries.iter().flat_map(|query| query.relevant.keys()) {
        assert!(known.iter().any(|document| document["id"] == **id), "{id} is not in the samples");
    }
    let mut means = BTreeMap::new();
    for mode in ["dense", "lexical", "hybrid"] {
        let mut sum = 0.0;
        for judged in &judged.queries {
            let request = json!({"query": judged.query, "mode": mode, "limit": K});
            let ranking = server.api.found("exercises", &request).await;
            let value = ndcg(&ranking, &judged.relevant, K).expect("a judged query");
            println!("{mode:8} {value:.3} {}", judged.query);
            sum += value;
        }
        let mean = sum / judged.queries.len() as f64;
        println!("{mode:8} {mean:.4} mean nDCG@{K} of {} queries", judged.queries.len());
        means.insert(mode, mean);
    }
    // A little below what was measured; rankings do not depend on chance.
    for (mode, floor) in [("dense", 0.39), ("lexical", 0.21), ("hybrid", 0.34)] {
        assert!(means[mode] > floor, "{mode}: {:.4} is not above {floor}", means[mode]);
    }
    assert!(means["hybrid"] > means["lexical"], "{means:?}");
    assert!(server.terminate().await.success());
}
