//! `sextant-server import`: reads a file, sends it in parts, goes on where an earlier run ended.

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use futures::{StreamExt, TryStreamExt, pin_mut, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Failure;
use super::client::{Client, ClientOptions, Refused};
use crate::ingest::CHUNK;
use crate::split::{Format, Splitter};

/// Documents per request: several of the server's chunks, so that it embeds one while it writes
/// another.
const BATCH: usize = 4 * CHUNK;
/// Requests under way at a time.
const IN_FLIGHT: usize = 2;
const READ_BYTES: usize = 256 << 10;
const MAX_DOCUMENT_BYTES: usize = 16 << 20;

#[derive(Args)]
pub struct ImportOptions {
    /// A JSON array of documents, or one JSON document a line; `-` reads the standard input.
    file: PathBuf,
    #[arg(long)]
    collection: String,
    /// Start at the first document, also when an earlier import of the file was interrupted.
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    client: ClientOptions,
}

/// How far an import came, kept beside the user's other state until it is done.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    bytes: u64,
    modified_ms: u128,
    documents: usize,
}

#[derive(Default)]
struct Totals {
    documents: usize,
    embedded: u64,
    truncated: u64,
}

pub async fn import(options: ImportOptions) -> Result<(), Failure> {
    let client = Client::new(&options.client)?;
    let stdin = options.file == Path::new("-");
    let (reader, size): (Box<dyn Read + Send>, _) = if stdin {
        (Box::new(std::io::stdin()), None)
    } else {
        let file = std::fs::File::open(&options.file)
            .map_err(|error| format!("cannot read {}: {error}", options.file.display()))?;
        let size = file.metadata()?.len();
        (Box::new(file), Some(size))
    };
    client.ensure_collection(&options.collection).await?;

    let state = if stdin { None } else { state_file(&client, &options) };
    let present = if stdin { Progress::default() } else { progress_of(&options.file)? };
    let done = match &state {
        Some(path) if !options.restart => finished(path, &present),
        _ => 0,
    };
    if done > 0 {
        eprintln!("resuming after {done} documents");
    }
    let bar = progress_bar(size);
    let batches = batches(reader, done, bar.clone());
    let sent = stream::iter(batches)
        .map(|batch| async {
            let Batch { lines, first, documents, read } = batch?;
            let answer = client.upsert(&options.collection, lines).await;
            let answer = answer.map_err(|error| counted_from_the_start(error, first))?;
            Ok::<_, Failure>((answer, documents, read))
        })
        .buffered(IN_FLIGHT);
    pin_mut!(sent);
    let mut totals = Totals::default();
    let outcome = loop {
        match sent.try_next().await {
            Ok(Some((answer, documents, read))) => {
                totals.documents += documents;
                totals.embedded += answer["embedded"].as_u64().unwrap_or(0);
                totals.truncated += answer["truncated"].as_u64().unwrap_or(0);
                bar.set_position(read);
                bar.set_message(format!("{} documents", done + totals.documents));
                if let Some(path) = &state {
                    save(path, &Progress { documents: done + totals.documents, ..present })?;
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    bar.finish_and_clear();
    if let Err(error) = outcome {
        let written = done + totals.documents;
        let again = if stdin { "" } else { "; the same command goes on from there" };
        return Err(format!("{error}\n{written} documents were written before{again}").into());
    }
    if let Some(path) = &state {
        // Left behind it would only cost a look: a finished file is imported anew.
        let _ = std::fs::remove_file(path);
    }
    println!(
        "{} documents written to {}, {} embedded, {} unchanged",
        totals.documents,
        options.collection,
        totals.embedded,
        (totals.documents as u64).saturating_sub(totals.embedded),
    );
    if totals.truncated > 0 {
        println!(
            "{} are longer than the model reads; their end is not searched by meaning",
            totals.truncated
        );
    }
    Ok(())
}

struct Batch {
    lines: Vec<u8>,
    /// Place of the first document in the file.
    first: usize,
    documents: usize,
    /// Bytes of the file up to here.
    read: u64,
}

/// Reads the input in batches, leaving out the first `skip` documents.
fn batches(
    mut reader: Box<dyn Read + Send>,
    skip: usize,
    bar: ProgressBar,
) -> impl Iterator<Item = Result<Batch, Failure>> + Send {
    let mut splitter = None;
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let (mut seen, mut sent, mut read, mut ended) = (0_usize, skip, 0_u64, false);
    let mut buffer = vec![0_u8; READ_BYTES];
    std::iter::from_fn(move || {
        while pending.len() < BATCH && !ended {
            let count = match reader.read(&mut buffer) {
                Ok(count) => count,
                Err(error) => {
                    ended = true;
                    return Some(Err(error.into()));
                }
            };
            read += count as u64;
            let bytes = &buffer[..count];
            let splitter = splitter.get_or_insert_with(|| {
                let array = bytes.trim_ascii_start().starts_with(b"[");
                let format = if array { Format::Json } else { Format::Lines };
                Splitter::new(format, MAX_DOCUMENT_BYTES)
            });
            ended = count == 0;
            let pieces = if ended { splitter.finish() } else { splitter.feed(bytes) };
            match pieces {
                Ok(pieces) => {
                    for piece in pieces {
                        seen += 1;
                        if seen > skip {
                            pending.push(piece);
                        }
                    }
                }
                Err(error) => {
                    ended = true;
                    return Some(Err(error.into()));
                }
            }
            if pending.is_empty() {
                bar.set_position(read);
            }
        }
        if pending.is_empty() {
            return None;
        }
        let taken: Vec<Vec<u8>> = pending.drain(..pending.len().min(BATCH)).collect();
        let documents = taken.len();
        let mut lines = Vec::with_capacity(taken.iter().map(|piece| piece.len() + 1).sum());
        for mut piece in taken {
            // A document of an array may be written over several lines; line breaks in strings
            // are escaped, so the others mean nothing.
            piece.iter_mut().filter(|b| matches!(b, b'\n' | b'\r')).for_each(|b| *b = b' ');
            lines.append(&mut piece);
            lines.push(b'\n');
        }
        sent += documents;
        Some(Ok(Batch { lines, first: sent - documents, documents, read }))
    })
}

/// The server names documents by their place in the request, as in `[7].name`; people look for the
/// place in the file.
fn counted_from_the_start(error: Failure, first: usize) -> Failure {
    match error.downcast::<Refused>() {
        Ok(refused) => Box::new(Refused { detail: shifted(&refused.detail, first), ..*refused }),
        Err(error) => error,
    }
}

/// Adds to the numbers in brackets that begin a path; those after a name are of the document.
fn shifted(detail: &str, first: usize) -> String {
    let mut parts = detail.split('[');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let begins = text.ends_with(['`', ' ']);
        text.push('[');
        match part.split_once(']') {
            Some((place, rest)) if begins && let Ok(place) = place.parse::<usize>() => {
                let _ = write!(text, "{}]{rest}", first + place); // a String takes it all
            }
            _ => text.push_str(part),
        }
    }
    text
}

fn progress_bar(size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {percent:>3}% {msg} {bytes_per_sec} {elapsed_precise}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed_precise}"),
    };
    // A template that does not parse leaves the plain bar.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn progress_of(file: &Path) -> Result<Progress, Failure> {
    let metadata = std::fs::metadata(file)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?;
    Ok(Progress { bytes: metadata.len(), modified_ms: modified.as_millis(), documents: 0 })
}

/// Documents of this very file that an earlier run has written.
fn finished(state: &Path, present: &Progress) -> usize {
    let Ok(text) = std::fs::read(state) else { return 0 };
    match serde_json::from_slice::<Progress>(&text) {
        Ok(past) if (past.bytes, past.modified_ms) == (present.bytes, present.modified_ms) => {
            past.documents
        }
        _ => 0,
    }
}

/// Where the progress of this file into this collection is kept; nowhere without a home.
fn state_file(client: &Client, options: &ImportOptions) -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local").join("state")))?;
    let file = options.file.canonicalize().ok()?;
    let what = (client.url(), &options.collection, file.to_string_lossy());
    let name = blake3::hash(Value::from(format!("{what:?}")).to_string().as_bytes()).to_hex();
    Some(folder.join("sextant").join("imports").join(format!("{}.json", &name[..32])))
}

fn save(path: &Path, progress: &Progress) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(progress)?)?;
    Ok(std::fs::rename(&temporary, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str, skip: usize) -> (Vec<usize>, String) {
        let batches: Vec<Batch> = batches(Box::new(text.as_bytes()), skip, ProgressBar::hidden())
            .collect::<Result<_, _>>()
            .unwrap();
        let lines = batches.iter().flat_map(|batch| batch.lines.clone()).collect();
        (batches.iter().map(|batch| batch.documents).collect(), String::from_utf8(lines).unwrap())
    }

    #[test]
    fn arrays_and_lines_become_lines_and_what_was_written_is_left_out() {
        let array = "[{\"id\":\n \"a\"},{\"id\":\"b\"}]";
        assert_eq!(read(array, 0), (vec![2], "{\"id\":  \"a\"}\n{\"id\":\"b\"}\n".to_owned()));
        assert_eq!(
            read("{\"id\":\"a\"}\n{\"id\":\"b\"}\n", 1),
            (vec![1], "{\"id\":\"b\"}\n".to_owned())
        );
        assert_eq!(read("", 0), (vec![], String::new()));
    }

    #[test]
    fn places_are_counted_from_the_start_of_the_file() {
        assert_eq!(shifted("`[7].id` must be a string", 2048), "`[2055].id` must be a string");
        assert_eq!(shifted("document [7] is not JSON: [x", 10), "document [17] is not JSON: [x");
        assert_eq!(shifted("2 faults\n  [0].a[1]: no", 5), "2 faults\n  [5].a[1]: no");
    }

    #[test]
    fn a_file_that_changed_is_imported_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let past = Progress { bytes: 10, modified_ms: 5, documents: 7 };
        save(&path, &past).unwrap();
        assert_eq!(finished(&path, &Progress { documents: 0, ..past }), 7);
        assert_eq!(finished(&path, &Progress { bytes: 11, modified_ms: 5, documents: 0 }), 0);
        std::fs::write(&path, "half").unwrap();
        assert_eq!(finished(&path, &Progress { bytes: 10, modified_ms: 5, documents: 0 }), 0);
    }
}
