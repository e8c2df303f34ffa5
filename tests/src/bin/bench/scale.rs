//! Many documents: import, memory, restart, latency by kind of search, recall against an exact
//! search.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use sextant_server::adapters::documents::sqlite::SqliteStore;
use sextant_server::domain::{CollectionName, Value as Field};
use sextant_server::ports::DocumentStore;
use sextant_tests::cli;

use crate::http::{Connection, post};
use crate::load::Latency;
use crate::report::{Bars, Table, mib, ms, title};
use crate::server::{Server, search_path};
use crate::{Failure, Options, texts};

const COLLECTION: &str = "scale";
const LIMIT: usize = 10;
/// Scores this close count as equal: they come from sums in another order.
const TOLERANCE: f32 = 1e-5;

#[derive(Args)]
pub struct ScaleOptions {
    /// Documents to import; at least 1,000.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    documents: u64,
    /// Searches of each kind.
    #[arg(long, default_value_t = 300)]
    searches: u64,
}

/// A kind of search; `filtered` leaves 1 % of the documents.
struct Kind {
    name: &'static str,
    mode: &'static str,
    filtered: bool,
    /// By meaning alone, so that there is an exact answer to compare with.
    exact: bool,
    latency: Latency,
    index: Latency,
    found: Vec<Found>,
}

struct Found {
    query: String,
    program: Option<String>,
    ids: Vec<String>,
}

struct Stored {
    id: String,
    program: String,
    vector: std::sync::Arc<[f32]>,
}

pub async fn run(options: &Options, scale: &ScaleOptions) -> Result<(), Failure> {
    let data_dir = tempfile::tempdir()?;
    let server = Server::on(options, data_dir.path()).await?;
    title(&format!("{} documents", scale.documents));
    let mut table = Table::new(&[
        "documents",
        "import s",
        "documents/s",
        "server MiB",
        "disk MiB",
        "restart s",
        "server MiB after it",
    ]);
    let clock = Instant::now();
    import(&server, scale.documents).await?;
    let import = clock.elapsed().as_secs_f64();
    let resident = server.resident_bytes();
    server.stop().await;
    let disk = size(data_dir.path())?;
    let clock = Instant::now();
    let server = Server::on(options, data_dir.path()).await?;
    let restart = clock.elapsed().as_secs_f64();
    table.row(&[
        &scale.documents,
        &format!("{import:.1}"),
        &format!("{:.0}", scale.documents as f64 / import),
        &mib(resident),
        &mib(disk),
        &format!("{restart:.2}"),
        &mib(server.resident_bytes()),
    ]);
    table.print();

    let mut kinds = [
        ("dense", "dense", false, true),
        ("lexical", "lexical", false, false),
        ("hybrid", "hybrid", false, false),
        ("dense, filter of 1 %", "dense", true, true),
        ("hybrid, filter of 1 %", "hybrid", true, false),
    ]
    .map(|(name, mode, filtered, exact)| Kind {
        name,
        mode,
        filtered,
        exact,
        latency: Latency::new(),
        index: Latency::new(),
        found: Vec::new(),
    });
    search(&server, &mut kinds, scale.searches).await?;
    let vectors = embed(&server, &kinds).await?;
    let resident = server.resident_bytes();
    server.stop().await;
    let stored = stored(data_dir.path()).await?;

    let mut table = Table::new(&[
        "search, not cached",
        "searches",
        "p50 ms",
        "p99 ms",
        "index p50 ms",
        "index p99 ms",
        "recall@10",
    ]);
    let mut bars = Bars::new();
    for kind in &kinds {
        let recall = kind.exact.then(|| recall(kind, &vectors, &stored));
        table.row(&[
            &kind.name,
            &kind.found.len(),
            &ms(kind.latency.ms(0.5)),
            &ms(kind.latency.ms(0.99)),
            &ms(kind.index.ms(0.5)),
            &ms(kind.index.ms(0.99)),
            &recall.map_or(String::new(), |recall| format!("{recall:.4}")),
        ]);
        if let Some(recall) = recall {
            bars.at_least(&format!("recall@10, {}", kind.name), 0.98, recall);
        }
    }
    table.print();
    println!("\nAfter the searches the server holds {} MiB.", mib(resident));
    bars.print();
    Ok(())
}

/// Writes the documents to a file and has the command line import it, as people do.
async fn import(server: &Server, documents: u64) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("documents.ndjson");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    for n in 0..documents {
        writeln!(file, "{}", texts::document(n))?;
    }
    file.flush()?;
    let status = cli(["import", "--collection", COLLECTION, "--url", &server.process.url])
        .arg(&path)
        .env("XDG_STATE_HOME", folder.path())
        .stdout(Stdio::null())
        .status()
        .await?;
    if status.success() { Ok(()) } else { Err(format!("the import ended with {status}").into()) }
}

/// The kinds take turns, each query is new.
async fn search(server: &Server, kinds: &mut [Kind], searches: u64) -> Result<(), Failure> {
    const WARM_UP: u64 = 20;
    let mut connection = Connection::open(server.address).await?;
    let mut queries = (0..).map(texts::query);
    for round in 0..WARM_UP + searches {
        for kind in &mut *kinds {
            let query = queries.next().unwrap_or_default();
            let program = kind.filtered.then(|| texts::program(round % texts::PROGRAMS));
            let filter = program.as_ref().map_or(
                Value::Null,
                |program| json!({ "must": [{ "field": "program", "eq": program }] }),
            );
            let body =
                json!({ "query": query, "mode": kind.mode, "limit": LIMIT, "filter": filter });
            let request = post(&search_path(COLLECTION), &body);
            let clock = Instant::now();
            let answer = connection.exchange(&request).await?;
            let took = clock.elapsed();
            let json = answer.json()?;
            if round < WARM_UP {
                continue;
            }
            kind.latency.record(took);
            let index = answer.stage_ms("index").ok_or("no Server-Timing")?;
            kind.index.record(std::time::Duration::from_secs_f64(index / 1e3));
            let hits = json["hits"].as_array().ok_or("no hits")?;
            let ids = hits.iter().filter_map(|hit| hit["id"].as_str().map(ToOwned::to_owned));
            kind.found.push(Found { query, program, ids: ids.collect() });
        }
    }
    Ok(())
}

/// The vectors of the queries that are compared with an exact search.
async fn embed(server: &Server, kinds: &[Kind]) -> Result<HashMap<String, Vec<f32>>, Failure> {
    let mut connection = Connection::open(server.address).await?;
    let mut vectors = HashMap::new();
    for found in kinds.iter().filter(|kind| kind.exact).flat_map(|kind| &kind.found) {
        let request = post("/v1/embeddings", &json!({ "input": found.query }));
        let answer = connection.exchange(&request).await?.json()?;
        let vector = serde_json::from_value(answer["data"][0]["embedding"].clone())?;
        vectors.insert(found.query.clone(), vector);
    }
    Ok(vectors)
}

/// Reads the documents' vectors from the files of the stopped server.
async fn stored(data_dir: &Path) -> Result<Vec<Stored>, Failure> {
    const PAGE: usize = 5_000;
    let store = SqliteStore::open(&data_dir.join("documents.db")).await?;
    let name = CollectionName::parse(COLLECTION).map_err(|error| error.to_string())?;
    let collection = store.collection(&name).await?.ok_or("the collection is gone")?;
    let mut stored = Vec::new();
    let mut generation = 0;
    while generation < collection.generation {
        let changes = store.changes(collection.id, generation, PAGE).await?;
        generation = changes.generation;
        stored.extend(changes.upserts.into_iter().map(|upsert| Stored {
            program: match upsert.document.fields.get("program") {
                Some(Field::String(program)) => program.clone(),
                _ => String::new(),
            },
            id: upsert.document.id,
            vector: upsert.vector,
        }));
    }
    store.close().await;
    Ok(stored)
}

/// The share of hits that are among the `LIMIT` nearest of all, equal scores being as good.
fn recall(kind: &Kind, vectors: &HashMap<String, Vec<f32>>, stored: &[Stored]) -> f64 {
    let places: HashMap<&str, usize> =
        stored.iter().enumerate().map(|(place, document)| (document.id.as_str(), place)).collect();
    let (mut right, mut wanted) = (0, 0);
    for found in &kind.found {
        let query = &vectors[&found.query];
        let may = |document: &Stored| found.program.as_ref().is_none_or(|p| *p == document.program);
        let score = |document: &Stored| -> f32 {
            let pairs = document.vector.iter().zip(query);
            if may(document) { pairs.map(|(a, b)| a * b).sum() } else { f32::NEG_INFINITY }
        };
        let scores: Vec<f32> = stored.iter().map(score).collect();
        let mut sorted = scores.clone();
        sorted.select_nth_unstable_by(LIMIT - 1, |a, b| b.total_cmp(a));
        let least = sorted[LIMIT - 1] - TOLERANCE;
        assert!(least.is_finite(), "fewer than {LIMIT} documents may be found");
        wanted += LIMIT;
        let hits = found.ids.iter().filter_map(|id| places.get(id.as_str()));
        right += hits.filter(|place| scores[**place] >= least).count();
    }
    right as f64 / wanted as f64
}

fn size(folder: &Path) -> std::io::Result<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() as f64 };
    }
    Ok(bytes)
}
