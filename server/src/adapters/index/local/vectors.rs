//! Vectors of one collection: a graph in memory (HNSW) and its snapshot on disk.
//!
//! usearch calls itself thread-safe, but a search reads the graph's links without locks and a
//! lookup may see a key before its vector is there. So additions exclude searches; they come in
//! small slices under a fair lock, and a search waits for one slice at most.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;
use usearch::{Index, IndexOptions, MetricKind, ScalarKind, f16};

use crate::adapters::index::local::{Options, failed};
use crate::domain::Key;
use crate::domain::fusion::{self, Scored};
use crate::ports::IndexError;

/// Vectors that one thread adds while searches wait: 5 to 15 ms of work.
const SLICE_PER_THREAD: usize = 16;
/// A snapshot of another format is made anew.
const FORMAT: u32 = 1;
const DESCRIPTION: &str = "vectors.json";
/// Two files take turns, so that a description never names a file that is being written.
const FILES: [&str; 2] = ["vectors-0.usearch", "vectors-1.usearch"];

pub struct Vectors {
    /// As many readers as the graph has search contexts: one search more would be refused.
    index: RwLock<Index>,
    dimension: usize,
    threads: usize,
    expansion_search: usize,
    folder: PathBuf,
}

/// What a snapshot is. Written after the file that it names and renamed into place, so that a
/// generation is never paired with another file.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    format: u32,
    generation: i64,
    dimension: usize,
    file: String,
    bytes: u64,
    blake3: String,
}

/// How a search goes about its work.
enum Plan {
    /// Compares with each of these: exact.
    Each(Vec<Key>),
    /// Walks the graph and takes only these, sorted.
    Among(Vec<Key>),
}

impl Vectors {
    /// Loads the snapshot in the folder, or starts empty when there is none that can be used.
    /// Returns the generation as well, 0 for empty.
    pub fn open(
        folder: &Path,
        dimension: usize,
        options: &Options,
    ) -> Result<(Self, i64), IndexError> {
        let threads = options.threads.get();
        let readers = threads * 2;
        let empty = || {
            Index::new(&IndexOptions {
                dimensions: dimension,
                metric: MetricKind::Cos,
                quantization: ScalarKind::F16,
                connectivity: options.connectivity,
                expansion_add: options.expansion_add,
                expansion_search: options.expansion_search,
                multi: false,
            })
            .map_err(failed("create"))
        };
        let (index, generation) = match load(folder, dimension, empty()?) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => (empty()?, 0),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "vectors will be built anew: their snapshot cannot be used");
                (empty()?, 0)
            }
        };
        let capacity = index.capacity().max(1);
        index
            .reserve_capacity_and_threads(capacity, readers.max(threads))
            .map_err(failed("load"))?;
        let vectors = Self {
            index: RwLock::with_max_readers(index, u32::try_from(readers).unwrap_or(u32::MAX >> 3)),
            dimension,
            threads,
            expansion_search: options.expansion_search,
            folder: folder.to_owned(),
        };
        Ok((vectors, generation))
    }

    pub fn dimension(&self) -> usize {
        self.dimension
    }

    pub fn len(&self) -> usize {
        self.index.blocking_read().size()
    }

    /// Refuses a vector that the index cannot hold or compare.
    pub fn check(&self, vector: &[f32]) -> Result<(), IndexError> {
        if vector.len() != self.dimension {
            let reason = format!("{} numbers where {} belong", vector.len(), self.dimension);
            return Err(failed("use a vector in")(io::Error::other(reason)));
        }
        if vector.iter().all(|number| number.is_finite()) {
            return Ok(());
        }
        Err(failed("use a vector in")(io::Error::other("a number that is not finite")))
    }

    pub fn remove(&self, keys: &[Key]) -> Result<(), IndexError> {
        let index = self.index.blocking_write();
        for key in keys {
            index.remove(native(*key)).map_err(failed("change"))?;
        }
        Ok(())
    }

    /// Adds vectors, replacing those of the same keys. Keys must differ from each other.
    pub fn upsert(&self, vectors: &[(Key, &[f32])]) -> Result<(), IndexError> {
        for slice in vectors.chunks(self.threads * SLICE_PER_THREAD) {
            let changed = self.changed(slice)?;
            if !changed.is_empty() {
                self.add(&changed)?;
            }
        }
        Ok(())
    }

    /// Those that are new or differ from what is stored. A document whose attributes changed
    /// keeps its vector, and so do most when changes are replayed: both should not touch the graph.
    fn changed<'a>(
        &self,
        vectors: &[(Key, &'a [f32])],
    ) -> Result<Vec<(Key, &'a [f32])>, IndexError> {
        let index = self.index.blocking_read();
        let mut stored = Stored::new(self.dimension);
        let mut changed = Vec::with_capacity(vectors.len());
        for (key, vector) in vectors {
            match stored.read(&index, *key)? {
                Some(stored) if same_when_rounded(vector, stored) => {}
                _ => changed.push((*key, *vector)),
            }
        }
        Ok(changed)
    }

    fn add(&self, vectors: &[(Key, &[f32])]) -> Result<(), IndexError> {
        let index = self.index.blocking_write();
        for (key, _) in vectors {
            index.remove(native(*key)).map_err(failed("change"))?;
        }
        let needed = index.size() + vectors.len();
        if needed > index.capacity() {
            index
                .reserve_capacity_and_threads(needed.next_power_of_two(), self.threads * 2)
                .map_err(failed("grow"))?;
        }
        let index = &*index;
        let add = |(key, vector): &(Key, &[f32])| index.add(native(*key), vector);
        thread::scope(|scope| {
            let each = vectors.len().div_ceil(self.threads).max(1);
            let (own, others) = vectors.split_at(each.min(vectors.len()));
            let workers: Vec<_> = others
                .chunks(each)
                .map(|chunk| scope.spawn(move || chunk.iter().try_for_each(add)))
                .collect();
            let own = own.iter().try_for_each(add).map_err(failed("change"));
            for worker in workers {
                worker.join().map_err(|_| IndexError::Lost)?.map_err(failed("change"))?;
            }
            own
        })
    }

    /// The nearest of all. `all` gives every key, asked for only when there are few.
    pub fn nearest(
        &self,
        vector: &[f32],
        limit: usize,
        all: impl FnOnce() -> Result<Vec<Key>, IndexError>,
    ) -> Result<Vec<Scored>, IndexError> {
        let query = Query::new(vector);
        let index = self.index.blocking_read();
        let present = index.size();
        if present <= self.worth_comparing(present) {
            return self.each(&index, &query, &all()?, limit);
        }
        let found = index.search(vector, wanted(limit, present)).map_err(failed("search"))?;
        if found.keys.len() >= limit.min(present) {
            return self.scored(&index, &query, found.keys.into_iter().map(foreign), limit);
        }
        // The walk did not reach enough: some vectors have lost their links to removed ones.
        self.each(&index, &query, &all()?, limit)
    }

    /// The nearest of those with these keys: `limit` of them, or as many as there are.
    pub fn nearest_of(
        &self,
        vector: &[f32],
        keys: Vec<Key>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let query = Query::new(vector);
        let index = self.index.blocking_read();
        let keys = match self.plan(keys, index.size()) {
            Plan::Each(keys) => keys,
            Plan::Among(keys) => {
                let wanted = wanted(limit, keys.len());
                let found = index
                    .filtered_search(vector, wanted, |key| {
                        keys.binary_search(&foreign(key)).is_ok()
                    })
                    .map_err(failed("search"))?;
                if found.keys.len() >= limit.min(keys.len()) {
                    return self.scored(&index, &query, found.keys.into_iter().map(foreign), limit);
                }
                keys
            }
        };
        self.each(&index, &query, &keys, limit)
    }

    fn plan(&self, mut keys: Vec<Key>, present: usize) -> Plan {
        if keys.len() <= self.worth_comparing(present) {
            return Plan::Each(keys);
        }
        keys.sort_unstable();
        Plan::Among(keys)
    }

    /// Up to how many of `present` vectors are compared one by one. A walk among `m` of `n` meets
    /// a match every `n / m` vectors and goes on until it has `expansion_search` of them, each at
    /// about `COST` times the price of one comparison (measured at 384 dimensions): both cost the
    /// same where `m` is the root of `expansion_search * COST * n`.
    fn worth_comparing(&self, present: usize) -> usize {
        const COST: usize = 12;
        const ALWAYS: usize = 4_000;
        (self.expansion_search * COST * present).isqrt().max(ALWAYS)
    }

    fn each(
        &self,
        index: &Index,
        query: &Query,
        keys: &[Key],
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        self.scored(index, query, keys.iter().copied(), limit)
    }

    /// Scores keys with the vectors themselves, so that a document has one score however it was
    /// found and equal vectors have equal scores.
    fn scored(
        &self,
        index: &Index,
        query: &Query,
        keys: impl Iterator<Item = Key>,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let mut stored = Stored::new(self.dimension);
        let mut hits = Vec::with_capacity(keys.size_hint().0);
        for key in keys {
            if let Some(vector) = stored.read(index, key)? {
                hits.push(Scored { key, score: query.cosine(vector) });
            }
        }
        if limit > 0 && hits.len() > limit {
            hits.select_nth_unstable_by(limit - 1, |a, b| {
                b.score.total_cmp(&a.score).then(a.key.cmp(&b.key))
            });
        }
        hits.truncate(limit);
        fusion::sort(&mut hits);
        Ok(hits)
    }

    /// Writes a snapshot, durable on return. Searches go on; changes must not.
    pub fn save(&self, generation: i64) -> Result<(), IndexError> {
        let previous = describe(&self.folder).ok().flatten().map(|description| description.file);
        let [first, second] = FILES;
        let file = if previous.as_deref() == Some(first) { second } else { first };
        let path = self.folder.join(file);
        let name = path
            .to_str()
            .ok_or_else(|| failed("save")(io::Error::other("its folder is not UTF-8")))?;
        let length = {
            let index = self.index.blocking_read();
            index.save(name).map_err(failed("save"))?;
            index.serialized_length()
        };
        let write = || -> io::Result<()> {
            let saved = File::open(&path)?;
            saved.sync_all()?;
            let (bytes, blake3) = fingerprint(&saved)?;
            if bytes != length as u64 {
                // usearch does not see what fails when the file is closed.
                return Err(io::Error::other(format!("{bytes} of {length} bytes were written")));
            }
            let description = Description {
                format: FORMAT,
                generation,
                dimension: self.dimension,
                file: file.to_owned(),
                bytes,
                blake3,
            };
            let temporary = self.folder.join("vectors.json.new");
            let mut written = File::create(&temporary)?;
            written.write_all(&serde_json::to_vec(&description)?)?;
            written.sync_all()?;
            fs::rename(&temporary, self.folder.join(DESCRIPTION))?;
            File::open(&self.folder)?.sync_all()?;
            match previous {
                Some(previous) => fs::remove_file(self.folder.join(previous)),
                None => Ok(()),
            }
        };
        write().map_err(failed("save"))
    }
}

/// Deletes the snapshot in a folder, if any.
pub fn forget(folder: &Path) -> io::Result<()> {
    for file in [DESCRIPTION, FILES[0], FILES[1]] {
        match fs::remove_file(folder.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn describe(folder: &Path) -> io::Result<Option<Description>> {
    match fs::read(folder.join(DESCRIPTION)) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the snapshot into an empty index. The file is checked first: usearch trusts what it reads.
fn load(folder: &Path, dimension: usize, empty: Index) -> io::Result<Option<(Index, i64)>> {
    let Some(description) = describe(folder)? else { return Ok(None) };
    if description.format != FORMAT || description.dimension != dimension {
        return Err(io::Error::other(format!(
            "it has format {} and dimension {}, not {FORMAT} and {dimension}",
            description.format, description.dimension
        )));
    }
    let path = match FILES.into_iter().find(|file| *file == description.file) {
        Some(file) => folder.join(file),
        None => return Err(io::Error::other("it names a file that is none of its own")),
    };
    if fingerprint(&File::open(&path)?)? != (description.bytes, description.blake3) {
        return Err(io::Error::other("its checksum differs"));
    }
    let name = path.to_str().ok_or_else(|| io::Error::other("its folder is not UTF-8"))?;
    empty.load(name).map_err(io::Error::other)?;
    Ok(Some((empty, description.generation)))
}

/// Length and hash of what is in a file.
fn fingerprint(file: &File) -> io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok((hasher.count(), hasher.finalize().to_hex().to_string()))
}

/// How many to ask the graph for: some more than `limit`, so that of equal vectors at the end
/// those with the smaller keys stay.
fn wanted(limit: usize, present: usize) -> usize {
    (limit.saturating_mul(2)).clamp(limit.saturating_add(16).min(present), present)
}

fn native(key: Key) -> u64 {
    key.cast_unsigned()
}

fn foreign(key: u64) -> Key {
    key.cast_signed()
}

/// Whether storing `vector` would give `stored` again, to within the last bit of half precision
/// (Goldberg 1991: rounding is off by at most half a unit in the last place, 2^-11 of the value
/// and 2^-25 below the smallest normal number).
fn same_when_rounded(vector: &[f32], stored: &[f32]) -> bool {
    vector.iter().zip(stored).all(|(a, b)| (a - b).abs() <= a.abs() / 2048.0 + 3e-8)
}

/// Reads vectors of the graph, one at a time.
struct Stored {
    halves: Vec<f16>,
    vector: Vec<f32>,
}

impl Stored {
    fn new(dimension: usize) -> Self {
        Self { halves: f16::from_i16s(&vec![0; dimension]).to_vec(), vector: vec![0.0; dimension] }
    }

    fn read(&mut self, index: &Index, key: Key) -> Result<Option<&[f32]>, IndexError> {
        if index.get(native(key), &mut self.halves).map_err(failed("read"))? == 0 {
            return Ok(None);
        }
        for (single, half) in self.vector.iter_mut().zip(f16::to_i16s(&self.halves)) {
            *single = widened(half.cast_unsigned());
        }
        Ok(Some(&self.vector))
    }
}

/// A finite number of half precision as one of single precision. Moves exponent and fraction into
/// place and lets a multiplication correct the exponent's bias, numbers below the smallest normal
/// one included: no branch, so that the compiler can do several at once. usearch converts one
/// after the other, which made up most of an exact search.
fn widened(half: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let half = u32::from(half);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * BIAS;
    f32::from_bits(magnitude.to_bits() | (half & 0x8000) << 16)
}

/// A query, made ready to be compared with many vectors.
struct Query {
    unit: Vec<f32>,
}

impl Query {
    fn new(vector: &[f32]) -> Self {
        let norm = dot(vector, vector).sqrt();
        let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
        Self { unit: vector.iter().map(|number| number * scale).collect() }
    }

    /// In [-1, 1]; 0 where one of the two has no direction.
    fn cosine(&self, vector: &[f32]) -> f32 {
        let norm = dot(vector, vector).sqrt();
        if norm > 0.0 { (dot(&self.unit, vector) / norm).clamp(-1.0, 1.0) } else { 0.0 }
    }
}

/// Sums in 16 lanes: one sum would have to be added in order, which no vector unit can.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for half in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
            if exponent == 31 {
                continue; // infinite, or not a number
            }
            let magnitude = match exponent {
                0 => fraction / 1024.0 * 2.0_f32.powi(-14),
                _ => (1.0 + fraction / 1024.0) * 2.0_f32.powi(exponent - 15),
            };
            let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
            assert_eq!(widened(half).to_bits(), (sign * magnitude).to_bits(), "{half:#06x}");
        }
    }

    #[test]
    fn rounding_is_no_change_and_the_smallest_step_beyond_it_is() {
        assert!(same_when_rounded(&[0.1, -0.3, 0.0], &[0.099_975_586, -0.300_048_83, 0.0]));
        assert!(!same_when_rounded(&[0.1], &[0.100_2]));
        assert!(!same_when_rounded(&[0.0], &[6e-8]));
    }

    #[test]
    fn a_vector_without_direction_is_similar_to_nothing() {
        assert!(Query::new(&[0.0; 20]).cosine(&[1.0; 20]).abs() < f32::EPSILON);
        assert!(Query::new(&[1.0; 20]).cosine(&[0.0; 20]).abs() < f32::EPSILON);
        assert!((Query::new(&[2.0; 20]).cosine(&[0.5; 20]) - 1.0).abs() < 1e-6);
    }
}
