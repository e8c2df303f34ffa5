//! Importing a file on the first start.

use std::path::{Path, PathBuf};

use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

use crate::catalog::Catalog;
use crate::cli::Failure;
use crate::domain::Document;
use crate::domain::collection::SchemaChange;
use crate::ingest::{Ingest, IngestError};
use crate::split::{Format, Splitter, parse};

pub fn parse_seed(seed: &str) -> Result<(String, PathBuf), Failure> {
    match seed.split_once('=') {
        Some((collection, file)) => Ok((collection.to_owned(), PathBuf::from(file))),
        None => Err(format!("--seed {seed:?} must be COLLECTION=FILE").into()),
    }
}

/// Imports a file once: what people change or delete afterwards stays so.
pub async fn seed(
    catalog: &Catalog,
    ingest: &Ingest,
    collection: &str,
    file: &Path,
) -> Result<(), Failure> {
    let mark = format!("seed:{collection}");
    if catalog.store.mark(&mark).await? {
        return Ok(());
    }
    let documents = read_documents(file)?;
    let total = documents.len() as u64;
    let (open, _) = catalog.put(collection, SchemaChange::default()).await?;
    let bar = ProgressBar::new(total);
    if let Ok(style) =
        ProgressStyle::with_template("importing {msg} {bar:30} {pos}/{len} {elapsed}")
    {
        bar.set_style(style);
    }
    bar.set_message(collection.to_owned());
    bar.tick();
    info!(collection, documents = total, file = %file.display(), "importing on the first start");
    // Small parts, so that the bar moves.
    let mut documents = documents.into_iter().peekable();
    while documents.peek().is_some() {
        let part: Vec<_> = documents.by_ref().take(32).map(Ok::<_, IngestError>).collect();
        let count = part.len() as u64;
        ingest.upsert_stream(&open, stream::iter(part)).await.map_err(|interrupted| {
            format!("cannot import {}: {}", file.display(), interrupted.error)
        })?;
        bar.inc(count);
    }
    bar.finish_and_clear();
    catalog.store.set_mark(&mark).await?;
    Ok(())
}

fn read_documents(file: &Path) -> Result<Vec<Document>, Failure> {
    let text =
        std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let mut splitter = Splitter::new(Format::Lines, text.len());
    let mut pieces = splitter.feed(&text)?;
    pieces.extend(splitter.finish()?);
    let documents = pieces.iter().enumerate().map(|(place, piece)| parse(place, piece));
    Ok(documents
        .collect::<Result<_, _>>()
        .map_err(|error| format!("cannot import {}: {error}", file.display()))?)
}
