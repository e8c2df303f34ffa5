//! How good rankings are on judged queries, and whether one server with everything in itself and
//! one over the production stores give the same.

pub mod judged;

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sextant_tests::metric::ndcg;
use sextant_tests::production::Stores;
use sextant_tests::{Api, Server};

use self::judged::Collection;
use crate::import::import;
use crate::report::{Bars, Table, title};
use crate::server::settings;
use crate::{Failure, Options};

const MODES: [&str; 3] = ["dense", "lexical", "hybrid"];
const K: usize = 10;
/// Hits that are asked for: those beyond the ranking tell how far a document is from it.
const LIMIT: usize = 2 * K;
/// Scores this close count as equal: they come from sums in another order; those by meaning also
/// from vectors at half precision, whose numbers are right to 1 in 2048.
const TOLERANCE: f64 = 1e-5;
const DENSE_TOLERANCE: f64 = 3e-5;
const CONCURRENCY: usize = 2;

#[derive(Args)]
pub struct RelevanceOptions {
    /// Folder of the Cranfield collection: `cran.all.1400`, `cran.qry`, `cranqrel`.
    #[arg(long)]
    cranfield: Option<PathBuf>,
}

/// Hits with their scores, best first, and some beyond the ranking that counts.
type Ranking = Vec<(String, f64)>;

impl RelevanceOptions {
    fn collections(&self) -> Result<Vec<Collection>, Failure> {
        let mut all = vec![judged::samples()?];
        if let Some(folder) = &self.cranfield {
            all.push(judged::cranfield(folder)?);
        }
        Ok(all)
    }
}

pub async fn run(options: &Options, relevance: &RelevanceOptions) -> Result<(), Failure> {
    let collections = relevance.collections()?;
    let embedded = {
        let server = Server::start(settings(options)).await;
        let answers = ask_all(&server.api, &collections, &MODES).await?;
        server.terminate().await;
        answers
    };
    let production = {
        let stores = Stores::start().await;
        // Model and milvus-lite take their time on a small machine, and nothing is timed here.
        let settings = stores
            .options(settings(options))
            .set("worker.lease_ms", "60000")
            .set("milvus.timeout_ms", "20000")
            .set("server.request_timeout_ms", "30000");
        let server = Server::start(settings).await;
        let answers = ask_all(&server.api, &collections, &MODES).await?;
        server.terminate().await;
        answers
    };
    for ((collection, embedded), production) in collections.iter().zip(&embedded).zip(&production) {
        report(collection, embedded, production);
    }
    Ok(())
}

/// What rankings by meaning lose when the model computes with fewer bits than the first precision has.
pub async fn of_precisions(
    options: &Options,
    relevance: &RelevanceOptions,
    precisions: &[String],
) -> Result<(), Failure> {
    title("What fewer bits cost: nDCG@10 of rankings by meaning");
    let collections = relevance.collections()?;
    let mut columns = vec!["precision"];
    columns.extend(collections.iter().flat_map(|collection| [collection.name, "loss"]));
    let mut table = Table::new(&columns);
    let mut bars = Bars::new();
    let mut full = Vec::new();
    for precision in precisions {
        let settings = settings(options).set("embedder.precision", precision);
        let server = Server::start(settings).await;
        let answers = ask_all(&server.api, &collections, &["dense"]).await?;
        let mut cells = vec![precision.clone()];
        for (number, (collection, answers)) in collections.iter().zip(&answers).enumerate() {
            let (name, found) = (collection.name, mean_ndcg(collection, &answers[0]));
            if full.len() == number {
                full.push(found);
            }
            let loss = full[number] - found;
            cells.extend([format!("{found:.4}"), format!("{loss:.4}")]);
            bars.at_most(&format!("{precision}: loss on {name}"), 0.01, loss);
        }
        table.row(&cells.iter().map(|cell| cell as &dyn std::fmt::Display).collect::<Vec<_>>());
        server.terminate().await;
    }
    table.print();
    bars.print();
    Ok(())
}

/// The answers by collection and mode.
async fn ask_all(
    api: &Api,
    collections: &[Collection],
    modes: &[&str],
) -> Result<Vec<Vec<Vec<Ranking>>>, Failure> {
    let mut all = Vec::new();
    for collection in collections {
        let Collection { name, text_fields, documents, .. } = collection;
        import(api, name, text_fields, documents).await?;
        let mut answers = Vec::new();
        for mode in modes {
            answers.push(ask(api, collection, mode).await?);
        }
        all.push(answers);
    }
    Ok(all)
}

async fn ask(api: &Api, collection: &Collection, mode: &str) -> Result<Vec<Ranking>, Failure> {
    let path = format!("/v1/collections/{}/search", collection.name);
    let asked = collection.queries.iter().map(|query| {
        let request = json!({"query": query.text, "mode": mode, "limit": LIMIT});
        let path = &path;
        async move {
            let answer = api.send(api.request(Method::POST, path).json(&request)).await?;
            if answer.status != StatusCode::OK {
                return Err(Failure::from(format!("a search failed: {}", answer.text)));
            }
            let hits = answer.body["hits"].as_array().map_or(&[][..], Vec::as_slice);
            let hit = |hit: &Value| Some((hit["id"].as_str()?.to_owned(), hit["score"].as_f64()?));
            Ok(hits.iter().filter_map(hit).collect())
        }
    });
    let answers: Vec<_> = futures::stream::iter(asked).buffered(CONCURRENCY).collect().await;
    answers.into_iter().collect()
}

fn report(collection: &Collection, embedded: &[Vec<Ranking>], production: &[Vec<Ranking>]) {
    let (documents, queries) = (collection.documents.len(), collection.queries.len());
    title(&format!("{}: {documents} documents, {queries} judged queries", collection.name));
    let mut table = Table::new(&[
        "mode",
        "nDCG@10 embedded",
        "nDCG@10 production",
        "same ranking",
        "same but for ties",
        "overlap@10",
        "largest score difference of the others",
    ]);
    let mut bars = Bars::new();
    for (mode, (here, there)) in MODES.iter().zip(embedded.iter().zip(production)) {
        let tolerance = if *mode == "dense" { DENSE_TOLERANCE } else { TOLERANCE };
        let all = Comparison::of(here, there, tolerance);
        table.row(&[
            mode,
            &format!("{:.4}", mean_ndcg(collection, here)),
            &format!("{:.4}", mean_ndcg(collection, there)),
            &all.same,
            &all.tied,
            &format!("{:.4}", all.overlap / queries as f64),
            &(if all.different == 0 { "-".to_owned() } else { format!("{:.1e}", all.difference) }),
        ]);
        if *mode != "lexical" {
            let name = format!("{mode}: share of rankings that are the same, ties aside");
            bars.at_least(&name, 1.0, (all.same + all.tied) as f64 / queries as f64);
        }
    }
    table.print();
    bars.print();
}

fn mean_ndcg(collection: &Collection, rankings: &[Ranking]) -> f64 {
    let values = collection.queries.iter().zip(rankings).filter_map(|(query, ranking)| {
        let ids: Vec<String> = ranking.iter().map(|(id, _)| id.clone()).collect();
        ndcg(&ids, &query.relevant, K)
    });
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// What two forms made of the same queries.
#[derive(Default)]
struct Comparison {
    same: usize,
    /// Not the same, but only documents with equal scores changed places.
    tied: usize,
    different: usize,
    overlap: f64,
    /// Between two documents that changed places; infinite when one is far down the other list.
    difference: f64,
}

impl Comparison {
    fn of(here: &[Ranking], there: &[Ranking], tolerance: f64) -> Self {
        let mut all = Self::default();
        for (here, there) in here.iter().zip(there) {
            let (a, b) = (best(here), best(there));
            let shared = a.iter().filter(|(id, _)| b.iter().any(|(other, _)| other == id)).count();
            all.overlap += shared as f64 / a.len().max(b.len()).max(1) as f64;
            if a.iter().map(|(id, _)| id).eq(b.iter().map(|(id, _)| id)) {
                all.same += 1;
                continue;
            }
            let difference = displacement(here, b).max(displacement(there, a));
            if difference <= tolerance {
                all.tied += 1;
            } else {
                all.different += 1;
                all.difference = all.difference.max(difference);
            }
        }
        all
    }
}

fn best(ranking: &Ranking) -> &[(String, f64)] {
    &ranking[..ranking.len().min(K)]
}

/// By how much, in the scores that `ranking` goes by, the documents that `other` has in its places
/// differ from its own.
fn displacement(ranking: &Ranking, other: &[(String, f64)]) -> f64 {
    let own = best(ranking);
    if own.len() != other.len() {
        return f64::INFINITY;
    }
    let scores: HashMap<&str, f64> =
        ranking.iter().map(|(id, score)| (id.as_str(), *score)).collect();
    let differences = own.iter().zip(other).map(|((_, score), (id, _))| {
        scores.get(id.as_str()).map_or(f64::INFINITY, |other| (score - other).abs())
    });
    differences.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(hits: &[(&str, f64)]) -> Vec<Ranking> {
        vec![hits.iter().map(|(id, score)| ((*id).to_owned(), *score)).collect()]
    }

    #[test]
    fn documents_with_equal_scores_may_change_places_and_others_may_not() {
        let of = |here: &[(&str, f64)], there: &[(&str, f64)]| {
            let all = Comparison::of(&ranking(here), &ranking(there), TOLERANCE);
            (all.same, all.tied, all.different)
        };
        let hits = [("a", 3.0), ("b", 2.0), ("c", 2.0)];
        assert_eq!(of(&hits, &hits), (1, 0, 0));
        assert_eq!(of(&hits, &[("a", 3.5), ("c", 2.1), ("b", 2.1)]), (0, 1, 0));
        assert_eq!(of(&hits, &[("b", 3.0), ("a", 3.0), ("c", 2.0)]), (0, 0, 1));
        assert_eq!(of(&hits, &[("a", 3.0), ("d", 2.0)]), (0, 0, 1));
    }
}
