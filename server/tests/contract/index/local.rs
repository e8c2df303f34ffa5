//! The embedded index keeps the contract, and what it promises beyond: damage, crashes, recall.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sextant_server::adapters::index::local::{LocalIndex, Options};

use super::*;

/// A temporary folder that is gone at the end also when an index that was dropped like in a crash
/// still ends a merge in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir_all(self.path()).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

fn without_versions(case: &str) -> Option<&'static str> {
    (case == "versions_are_listed_in_the_order_of_their_keys")
        .then_some("one server alone writes it, and replays what it lacks")
}

struct LocalPlace {
    folder: Folder,
}

impl LocalPlace {
    fn new() -> Self {
        Self { folder: Folder::new() }
    }
}

#[async_trait]
impl Place for LocalPlace {
    async fn index(&self) -> Arc<dyn SearchIndex> {
        Arc::new(LocalIndex::open(self.folder.path(), Options::default()).unwrap())
    }

    fn not_offered(&self, case: &str) -> Option<&'static str> {
        without_versions(case)
    }
}

index_contract!(contract, LocalPlace::new());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_do_not_depend_on_documents_that_are_gone_or_were_different() {
    let (fresh, changed) = (LocalPlace::new(), LocalPlace::new());
    let (fresh, changed) = (open(&fresh).await, open(&changed).await);
    fresh.apply(ID, upserts(1, small_collection())).await.unwrap();
    let mut others = small_collection();
    for other in &mut others {
        other.text = "squat squat with somebody else on your back".to_owned();
    }
    others.push(document(99, "squat", &[]));
    changed.apply(ID, upserts(1, others)).await.unwrap();
    let last = Changes { generation: 2, upserts: small_collection(), deletes: vec![99] };
    changed.apply(ID, last).await.unwrap();
    for text in ["squat", "press knee", "deep rest"] {
        let expected = fresh.matching(ID, text, None, 100).await.unwrap();
        assert!(!expected.is_empty());
        assert_eq!(changed.matching(ID, text, None, 100).await.unwrap(), expected);
    }
}

/// A writer a collection would be too many: fewer than collections, down to one.
struct FewWriters(LocalPlace);

#[async_trait]
impl Place for FewWriters {
    async fn index(&self) -> Arc<dyn SearchIndex> {
        let options = Options { max_writers: 1, snapshot_every: 10, ..Options::default() };
        Arc::new(LocalIndex::open(self.0.folder.path(), options).unwrap())
    }

    fn not_offered(&self, case: &str) -> Option<&'static str> {
        without_versions(case)
    }
}

index_contract!(with_one_writer_and_frequent_snapshots, FewWriters(LocalPlace::new()));

/// Copies a folder as it is at one moment, as a crash would leave it: once more from the start
/// when a merge in the background removed or added files meanwhile.
fn crash(from: &Path) -> Folder {
    loop {
        let to = Folder::new();
        let before = list(from);
        if copy(from, to.path()).is_ok() && list(from) == before && list(to.path()) == before {
            return to;
        }
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Every file below a folder.
fn list(folder: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files
}

fn changes() -> Vec<Changes> {
    small_collection()
        .chunks(5)
        .zip(1..)
        .map(|(chunk, generation)| {
            let mut changes = upserts(generation, chunk.to_vec());
            if generation > 2 {
                changes.deletes = vec![generation];
            }
            changes
        })
        .collect()
}

fn options(snapshot_every: usize) -> Options {
    Options { snapshot_every, ..Options::default() }
}

/// What is on the disk at any moment must be enough to come back to the same answers.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_at_any_point_the_missing_changes_lead_to_the_same_answers() {
    let place = LocalPlace::new();
    let index = LocalIndex::open(place.folder.path(), options(12)).unwrap();
    index.open(&collection(ID, DIMENSION)).await.unwrap();
    let mut snapshots_seen = BTreeSet::new();
    for (applied, last) in changes().into_iter().zip(1..) {
        index.apply(ID, applied).await.unwrap();
        let expected = answers(&index).await;
        let crashed = crash(place.folder.path());
        let restarted = LocalIndex::open(crashed.path(), options(12)).unwrap();
        let generation = restarted.open(&collection(ID, DIMENSION)).await.unwrap();
        assert!(generation <= last, "claims {generation} after {last}");
        snapshots_seen.insert(generation);
        for again in changes().into_iter().filter(|c| c.generation > generation) {
            if again.generation <= last {
                restarted.apply(ID, again).await.unwrap();
            }
        }
        assert_eq!(answers(&restarted).await, expected, "from {generation} to {last}");
    }
    assert!(snapshots_seen.len() > 2, "{snapshots_seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_built_anew() {
    let place = LocalPlace::new();
    {
        let index = LocalIndex::open(place.folder.path(), options(10)).unwrap();
        index.open(&collection(ID, DIMENSION)).await.unwrap();
        index.apply(ID, upserts(4, small_collection())).await.unwrap();
        let deletes = (3..=8).collect();
        index.apply(ID, Changes { generation: 8, deletes, ..Changes::default() }).await.unwrap();
        index.close().await.unwrap();
    }
    let mut damaged = 0;
    let whole = list(place.folder.path());
    for file in &whole {
        for damage in ["cut", "flip", "remove", "empty"] {
            let copied = crash(place.folder.path());
            let path = copied.path().join(file);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            match damage {
                "cut" => bytes.truncate(middle),
                "flip" if bytes.is_empty() => continue,
                "flip" => bytes[middle] ^= 0x10,
                _ => bytes.clear(),
            }
            match damage {
                "remove" => fs::remove_file(&path).unwrap(),
                _ => fs::write(&path, bytes).unwrap(),
            }
            let index = LocalIndex::open(copied.path(), options(1_000)).unwrap();
            let generation = index.open(&collection(ID, DIMENSION)).await.unwrap();
            assert!(generation == 0 || generation == 8, "{file} {damage}: {generation}");
            if generation == 0 {
                damaged += 1;
                let mut upserts = small_collection();
                upserts.retain(|document| !(3..=8).contains(&document.key));
                let again = Changes { generation: 8, upserts, deletes: (3..=8).collect() };
                index.apply(ID, again).await.unwrap();
            }
            assert_eq!(index.count(ID).await.unwrap(), 34, "{file} {damage}");
            assert_eq!(filtered(&index, None).await.len(), 34, "{file} {damage}");
            assert_eq!(matching(&index, "squat").await.len(), 8, "{file} {damage}");
        }
    }
    assert!(damaged > 20, "{damaged} of {} files", whole.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dimension_starts_anew() {
    let place = LocalPlace::new();
    let index = place.index().await;
    index.open(&collection(ID, DIMENSION)).await.unwrap();
    index.apply(ID, upserts(3, small_collection())).await.unwrap();
    assert_eq!(index.open(&collection(ID, 4)).await.unwrap(), 0);
    let mut document = document(1, "Squat", &[]);
    document.vector = unit(vec![1.0; 4]);
    index.apply(ID, upserts(4, vec![document.clone()])).await.unwrap();
    let hits = index.nearest(ID, document.vector, None, 5).await.unwrap();
    assert_eq!(keys(&hits), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_is_not_claimed_and_opening_repairs() {
    let place = LocalPlace::new();
    let index = LocalIndex::open(place.folder.path(), options(1)).unwrap();
    index.open(&collection(ID, DIMENSION)).await.unwrap();
    for changes in changes().into_iter().take(2) {
        index.apply(ID, changes).await.unwrap();
    }
    // Nothing can be written where the folder of the full text was.
    let text = place.folder.path().join(format!("{ID}/text"));
    let aside = place.folder.path().join("aside");
    fs::rename(&text, &aside).unwrap();
    fs::write(&text, "").unwrap();
    let third = changes().swap_remove(2);
    assert!(index.apply(ID, third.clone()).await.is_err());
    fs::remove_file(&text).unwrap();
    fs::rename(&aside, &text).unwrap();
    assert!(index.apply(ID, third.clone()).await.is_err(), "it does not know what it has");
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 2);
    index.apply(ID, third).await.unwrap();
    assert_eq!(index.open(&collection(ID, DIMENSION)).await.unwrap(), 3);
    assert_eq!(index.count(ID).await.unwrap(), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_belongs_to_one_index_until_it_is_closed() {
    let place = LocalPlace::new();
    let index = place.index().await;
    assert!(LocalIndex::open(place.folder.path(), Options::default()).is_err());
    index.close().await.unwrap();
    LocalIndex::open(place.folder.path(), Options::default()).unwrap();
}

const CLUSTERED: usize = 64;

/// Vectors around random centres, as those of texts are, and queries like them.
fn clustered(random: &mut StdRng, count: usize, dimension: usize) -> Vec<Arc<[f32]>> {
    let centres: Vec<_> = (0..CLUSTERED).map(|_| random_unit(random, dimension)).collect();
    (0..count)
        .map(|_| {
            let centre = pick(random, &centres).clone();
            let noise = random_unit(random, dimension);
            unit(centre.iter().zip(noise.iter()).map(|(a, b)| a + 0.8 * b).collect())
        })
        .collect()
}

fn exact(vectors: &[Arc<[f32]>], query: &[f32], limit: usize) -> BTreeSet<Key> {
    let dot = |vector: &[f32]| vector.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let mut hits: Vec<Scored> =
        (1..).zip(vectors).map(|(key, v)| Scored { key, score: dot(v) }).collect();
    sextant_server::domain::fusion::sort(&mut hits);
    hits.iter().take(limit).map(|hit| hit.key).collect()
}

async fn recall(index: &LocalIndex, vectors: &[Arc<[f32]>], queries: &[Arc<[f32]>]) -> f64 {
    let mut found = 0;
    for query in queries {
        let hits = index.nearest(ID, query.clone(), None, 10).await.unwrap();
        let expected = exact(vectors, query, 10);
        found += hits.iter().filter(|hit| expected.contains(&hit.key)).count();
    }
    found as f64 / (queries.len() * 10) as f64
}

fn with_vectors(generation: i64, vectors: &[Arc<[f32]>]) -> Changes {
    let documents = (1..).zip(vectors).map(|(key, vector)| IndexedDocument {
        vector: vector.clone(),
        ..document(key, "text", &[])
    });
    upserts(generation, documents.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn nearly_all_nearest_neighbours_are_found_also_after_every_vector_changed() {
    const COUNT: usize = 20_000;
    const WIDTH: usize = 96;
    let mut random = StdRng::seed_from_u64(4);
    let mut vectors = clustered(&mut random, COUNT + 400, WIDTH);
    let queries = vectors.split_off(COUNT + 200);
    let place = LocalPlace::new();
    let index = LocalIndex::open(place.folder.path(), Options::default()).unwrap();
    index.open(&collection(ID, WIDTH)).await.unwrap();
    index.apply(ID, with_vectors(1, &vectors)).await.unwrap();
    let first = recall(&index, &vectors, &queries).await;
    assert!(first >= 0.98, "recall@10 is {first}");
    // Other documents under the same keys: links to what was removed remain in the graph.
    vectors.reverse();
    index.apply(ID, with_vectors(2, &vectors)).await.unwrap();
    let changed = recall(&index, &vectors, &queries).await;
    assert!(changed >= 0.98, "recall@10 is {changed} after every vector changed");
}
