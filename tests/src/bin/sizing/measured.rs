//! The figures that the arithmetic starts from, and where each stands.

use std::path::Path;

use crate::Failure;
use crate::assumptions::Precision;
use crate::outputs::{Output, Place, Which};

/// Figures of one run of each benchmark. Those of the model are of the machine of `embed.md`.
pub struct Measured {
    pub cores: f64,
    /// Of queries and of passages, for each of [`Precision::ALL`].
    pub rates: [Rates; 3],
    pub gpu: Gpu,
    /// CPU time of an answer from the cache, asked for over one connection: an idle server wakes for each.
    pub cached_ms: f64,
    pub uncached: Uncached,
    /// Memory of a server without documents.
    pub at_rest_mib: f64,
    /// The most that it reached while texts of all lengths came.
    pub loaded_mib: f64,
    pub scale: Scale,
    /// A search of Milvus as its caller sees it, the last round's median: at first it has no graph yet.
    pub milvus_ms: f64,
    pub bypassed: Zipf,
    pub cached: Zipf,
}

/// Texts per second on all cores.
pub struct Rates {
    pub queries: f64,
    pub passages: f64,
}

/// One GPU with all cores of its machine. Queries are asked over HTTP.
pub struct Gpu {
    pub cores: f64,
    pub queries: f64,
    pub passages: f64,
}

/// A search by meaning among few documents, one after the other, in ms.
pub struct Uncached {
    pub client: f64,
    pub embed: f64,
    pub index: f64,
    pub documents: f64,
}

/// A server with the embedded index and many documents.
pub struct Scale {
    pub documents: f64,
    pub disk_mib: f64,
    pub searched_mib: f64,
    pub index_ms: f64,
}

/// A Zipf stream of searches.
pub struct Zipf {
    pub searches: f64,
    pub per_second: f64,
    pub hit_rate: f64,
    pub embeddings: f64,
    pub cache_mib: f64,
}

/// What the tables name as their inputs.
pub struct Sources {
    pub figures: Vec<Figure>,
    /// Files with the machine that each was measured on.
    pub machines: Vec<(String, String)>,
}

pub struct Figure {
    pub what: &'static str,
    pub value: f64,
    pub place: String,
}

impl Measured {
    pub fn read(folder: &Path) -> Result<(Self, Sources), Failure> {
        let names =
            ["cached", "uncached", "zipf", "embed", "embed-gpu", "start", "scale", "milvus"];
        let mut outputs = Vec::new();
        for name in names {
            outputs.push(Output::read(folder, &format!("{name}.md"))?);
        }
        let mut machines = Vec::new();
        for output in &outputs {
            let note = if output.was_printed() { "" } else { "; not as it was printed" };
            machines.push((output.file().to_owned(), format!("{}{note}", output.machine()?)));
        }
        let [cached, uncached, zipf, embed, embed_gpu, start, scale, milvus] = &outputs[..] else {
            return Err("as many outputs as names".into());
        };

        let mut figures = Figures(Vec::new());
        let rates = rates(&mut figures, embed)?;
        let gpu = gpu(&mut figures, embed_gpu)?;
        let cached_search = [("connections", "1"), ("target", "cached search, *")];
        let cached_micros = figures.take(
            "CPU of an answer from the cache, µs",
            cached,
            Place {
                title: "Cached searches",
                row: &cached_search,
                column: "server CPU µs/request",
            },
        )?;
        let measured = Self {
            cores: embed.cores()?,
            rates,
            gpu,
            cached_ms: cached_micros / 1e3,
            uncached: uncached_search(&mut figures, uncached)?,
            at_rest_mib: figures.take(
                "server without documents, MiB",
                start,
                Place { title: "Start, and memory at rest", row: &[], column: "MiB at rest" },
            )?,
            loaded_mib: figures.one_of(
                "while texts of all lengths come, at most, MiB",
                start,
                "Memory while texts of 2 to 400 words come",
                "MiB",
                Which::Largest,
            )?,
            scale: many_documents(&mut figures, scale)?,
            milvus_ms: figures.one_of(
                "search of Milvus, last round, ms",
                milvus,
                "A search of Milvus, *",
                "index p50 ms",
                Which::Last,
            )?,
            bypassed: stream(&mut figures, zipf, "bypassed")?,
            cached: stream(&mut figures, zipf, "on")?,
        };
        Ok((measured, Sources { figures: figures.0, machines }))
    }

    pub fn rates(&self, precision: Precision) -> &Rates {
        &self.rates[precision as usize]
    }
}

fn rates(figures: &mut Figures, embed: &Output) -> Result<[Rates; 3], Failure> {
    let mut rates = |queries, passages, column| {
        let title = "Texts per second";
        let row = [("texts", "32 queries at a time")];
        let queries = figures.take(queries, embed, Place { title, row: &row, column })?;
        let row = [("texts", "32 passages of *")];
        let passages = figures.take(passages, embed, Place { title, row: &row, column })?;
        Ok::<_, Failure>(Rates { queries, passages })
    };
    // In the order of `Precision::ALL`.
    Ok([
        rates("queries/s, fp32", "passages/s, fp32", "sextant fp32")?,
        rates("queries/s, bf16", "passages/s, bf16", "sextant bf16")?,
        rates("queries/s, int8", "passages/s, int8", "sextant int8")?,
    ])
}

fn gpu(figures: &mut Figures, output: &Output) -> Result<Gpu, Failure> {
    let over_http = Place {
        title: "64 clients over HTTP, and in the process",
        row: &[],
        column: "over HTTP, queries/s",
    };
    let passages = Place {
        title: "Texts per second",
        row: &[("texts", "32 passages of *")],
        column: "sextant bf16",
    };
    Ok(Gpu {
        cores: output.cores()?,
        queries: figures.take("queries/s on one GPU", output, over_http)?,
        passages: figures.take("passages/s on one GPU", output, passages)?,
    })
}

fn uncached_search(figures: &mut Figures, output: &Output) -> Result<Uncached, Failure> {
    let mut column = |what, column| {
        let place = Place { title: "Uncached searches", row: &[("mode", "dense")], column };
        figures.take(what, output, place)
    };
    Ok(Uncached {
        client: column("search that misses, ms", "client ms")?,
        embed: column("of it, the embedding, ms", "embed ms")?,
        index: column("of it, the index, ms", "index ms")?,
        documents: column("of it, the documents, ms", "documents ms")?,
    })
}

fn many_documents(figures: &mut Figures, output: &Output) -> Result<Scale, Failure> {
    let mut column =
        |what, column| figures.take(what, output, Place { title: "* documents", row: &[], column });
    let documents = column("documents in the embedded index", "documents")?;
    let disk_mib = column("their disk, MiB", "disk MiB")?;
    let index = Place {
        title: "* documents",
        row: &[("search, not cached", "dense")],
        column: "index p50 ms",
    };
    Ok(Scale {
        documents,
        disk_mib,
        index_ms: figures.take("search of the embedded index, ms", output, index)?,
        searched_mib: figures.said(
            "server after searches of them, MiB",
            output,
            "After the searches the server holds ",
            " MiB",
        )?,
    })
}

fn stream(figures: &mut Figures, output: &Output, cache: &str) -> Result<Zipf, Failure> {
    let row = [("cache", cache)];
    let mut column = |what, column| {
        figures.take(what, output, Place { title: "Zipf stream", row: &row, column })
    };
    Ok(Zipf {
        searches: column("searches of the Zipf stream", "searches")?,
        per_second: column("of them, a second", "searches/s")?,
        hit_rate: column("answered from the cache, %", "hit rate")? / 100.0,
        embeddings: column("embedded", "embeddings")?,
        cache_mib: column("caches then, MiB", "cache MiB")?,
    })
}

/// Takes figures and notes where from.
struct Figures(Vec<Figure>);

impl Figures {
    fn take(&mut self, what: &'static str, from: &Output, at: Place) -> Result<f64, Failure> {
        let value = from.figure(at)?;
        self.0.push(Figure { what, value, place: format!("{}: {at}", from.file()) });
        Ok(value)
    }

    fn one_of(
        &mut self,
        what: &'static str,
        from: &Output,
        title: &str,
        column: &str,
        which: Which,
    ) -> Result<f64, Failure> {
        let value = from.one_of(title, column, which)?;
        let place = format!("{}: “{title}”: {column}, {which}", from.file());
        self.0.push(Figure { what, value, place });
        Ok(value)
    }

    fn said(
        &mut self,
        what: &'static str,
        from: &Output,
        before: &str,
        after: &str,
    ) -> Result<f64, Failure> {
        let value = from.said(before, after)?;
        let place = format!("{}: “{before}…{after}”", from.file());
        self.0.push(Figure { what, value, place });
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outputs_of_the_repository_have_every_figure() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/measured");
        let (measured, sources) = Measured::read(&folder).unwrap();
        assert!(sources.figures.iter().all(|figure| figure.value >= 0.0));
        assert!(measured.cached_ms < measured.uncached.client);
        assert!((0.0..1.0).contains(&measured.cached.hit_rate));
    }
}
