//! What the server's index adds to a search of Milvus.

use std::sync::Arc;
use std::time::{Duration, Instant};

use milvus::v2::prelude::{
    ClientV2, ConnectConfig, ConsistencyLevel, FlushRequest, RetryConfig, SearchRequest,
    SearchVectors, TelemetryConfig,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sextant_server::adapters::index::milvus::{Consistency, MilvusIndex, MilvusOptions};
use sextant_server::domain::{CollectionName, Document};
use sextant_server::metrics::Metrics;
use sextant_server::ports::{Changes, IndexedCollection, IndexedDocument, SearchIndex};
use sextant_stack::milvus::MilvusLite;

use crate::report::{Bars, Table, median, ms, quantile, title};
use crate::{Failure, Options};

const DOCUMENTS: i64 = 10_000;
const DIMENSION: usize = 384;
const PART: i64 = 500;
/// Searches of each kind in a round.
const SEARCHES: usize = 40;
const LIMIT: usize = 10;
const PREFIX: &str = "bench";
const COLLECTION: i64 = 1;
const TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(options: &Options) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let server = MilvusLite::start(folder.path()).await?;
    let index = filled(&server).await?;
    let config = ConnectConfig::new()
        .uri(server.endpoint())
        .rpc_timeout(TIMEOUT)
        .retry(RetryConfig::new().max_attempts(1))
        .telemetry(TelemetryConfig::new().enabled(false));
    let client = ClientV2::new(&config).await?;
    let flush = FlushRequest::builder().collection_names([format!("{PREFIX}_{COLLECTION}")]);
    client.flush(flush.build()?).await?;
    let mut random = StdRng::seed_from_u64(6);
    title(&format!("A search of Milvus, {DOCUMENTS} x {DIMENSION}"));
    let mut table =
        Table::new(&["round", "index p50 ms", "p99 ms", "client alone p50 ms", "p99 ms", "ratio"]);
    let mut ratios = Vec::new();
    // The first round warms up.
    for round in 0..=options.rounds {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for number in 0..SEARCHES {
            let vector = unit(&mut random);
            // Each goes first every other time.
            for ours_now in [number % 2 == 0, number % 2 == 1] {
                let clock = Instant::now();
                if ours_now {
                    index.nearest(COLLECTION, Arc::clone(&vector), None, LIMIT).await?;
                    ours.push(clock.elapsed().as_secs_f64() * 1e3);
                } else {
                    plain(&client, &vector).await?;
                    theirs.push(clock.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        let ratio = median(&ours) / median(&theirs);
        if round == 0 {
            continue;
        }
        table.row(&[
            &round,
            &ms(median(&ours)),
            &ms(quantile(&ours, 0.99)),
            &ms(median(&theirs)),
            &ms(quantile(&theirs, 0.99)),
            &format!("{ratio:.3}"),
        ]);
        ratios.push(ratio);
    }
    table.print();
    let mut bars = Bars::new();
    bars.at_most("search through the index, of the client's own call", 1.10, median(&ratios));
    bars.print();
    Ok(())
}

/// An index with random vectors.
async fn filled(server: &MilvusLite) -> Result<MilvusIndex, Failure> {
    let options = MilvusOptions {
        endpoints: vec![server.endpoint()],
        user: String::new(),
        password: String::new(),
        prefix: PREFIX.to_owned(),
        replica_number: 1,
        timeout: TIMEOUT,
        connect_timeout: TIMEOUT,
        consistency: Consistency::Strong,
    };
    let index = MilvusIndex::connect(options, Arc::new(Metrics::new()))?;
    let collection = IndexedCollection {
        id: COLLECTION,
        collection: COLLECTION,
        name: CollectionName::parse(PREFIX).map_err(|error| error.to_string())?,
        dimension: DIMENSION,
    };
    index.open(&collection).await?;
    let mut random = StdRng::seed_from_u64(5);
    for part in 0..DOCUMENTS / PART {
        let upserts = (part * PART..(part + 1) * PART).map(|key| IndexedDocument {
            key,
            version: part + 1,
            document: Document { id: key.to_string(), fields: [].into() },
            text: "text".to_owned(),
            vector: unit(&mut random),
        });
        let upserts = upserts.collect();
        let changes = Changes { generation: part + 1, upserts, deletes: Vec::new() };
        index.apply(COLLECTION, changes).await?;
    }
    Ok(index)
}

/// As the documentation of the client library has it.
async fn plain(client: &ClientV2, vector: &[f32]) -> Result<(), Failure> {
    let search = SearchRequest::builder()
        .collection_name(format!("{PREFIX}_{COLLECTION}"))
        .vector_field("vector")
        .vectors(SearchVectors::Float(vec![vector.to_vec()]))
        .limit(i64::try_from(LIMIT)?)
        .extra_params([("ef".to_owned(), "128".to_owned())].into())
        .consistency_level(ConsistencyLevel::Strong)
        .build()?;
    let found = client.search(search).await?;
    match found.results().iter().next().map(|result| result.get_scores().len()) {
        Some(LIMIT) => Ok(()),
        other => Err(format!("{other:?} hits instead of {LIMIT}").into()),
    }
}

fn unit(random: &mut StdRng) -> Arc<[f32]> {
    let vector: Vec<f32> = (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect();
    let norm = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    vector.iter().map(|number| number / norm).collect()
}
