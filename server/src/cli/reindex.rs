//! `sextant-server reindex`: takes a collection over to another index, see [`crate::reindex`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::serve::{embedder, stores};
use super::{Failure, print};
use crate::config::Config;
use crate::domain::{CollectionName, EmbeddingVersion};
use crate::embedders::Embedders;
use crate::metrics::Metrics;
use crate::ports::{DocumentStore, Outbox, StoredIndex};
use crate::reindex::{Reindex, ReindexError, Wanted};

#[derive(Args)]
pub struct ReindexOptions {
    /// The configuration of the servers; without it defaults and the environment count.
    #[arg(long, env = "SEXTANT_CONFIG")]
    config: Option<PathBuf>,
    #[arg(long)]
    collection: String,
    /// The model to search by, by its name or the beginning of its hash: that of `embedder` or of
    /// `next_embedder`. Without it the collection keeps its model.
    #[arg(long)]
    model: Option<String>,
    /// The fields whose text is embedded and searched, joined by commas. Without it they stay.
    #[arg(long, value_delimiter = ',')]
    text_fields: Option<Vec<String>>,
    /// Go back to the index that was searched before, with what was written since.
    #[arg(long, conflicts_with_all = ["model", "text_fields"])]
    rollback: bool,
    /// Drop every index that is not searched: one half built, and the one to go back to.
    #[arg(long, conflicts_with_all = ["model", "text_fields", "rollback"])]
    discard: bool,
    /// Show the indexes of the collection and change nothing.
    #[arg(long, conflicts_with_all = ["model", "text_fields", "rollback", "discard"])]
    status: bool,
    /// Change over although there are servers that do not run the model.
    #[arg(long)]
    force: bool,
}

pub async fn reindex(options: ReindexOptions) -> Result<(), Failure> {
    let config = Config::load(options.config.as_deref(), std::env::vars())?;
    let name = CollectionName::parse(&options.collection).map_err(|fault| fault.to_string())?;
    let metrics = Arc::new(Metrics::new());
    let stores = stores::open(&config, &metrics).await?;
    let Some(outbox) = stores.outbox else {
        return Err("only collections in Postgres and Milvus can be taken over to another index; \
                    set `documents.kind` to postgres"
            .into());
    };
    if options.status {
        return status(&*stores.documents, &*outbox, &name).await;
    }
    let reindex = Reindex {
        documents: stores.documents,
        outbox,
        index: stores.index,
        embedders: embedder::load_all(&config, &metrics).await?,
        builder: format!("{}-{:08x}", std::process::id(), rand::random::<u32>()),
        lease: Duration::from_millis(config.worker.lease_ms),
    };
    if options.discard {
        let dropped = reindex.discard(&name).await?;
        return print(&format!("dropped {dropped} indexes\n"));
    }
    let wanted = if options.rollback {
        Wanted::Previous
    } else {
        let collection = reindex.collection(&name).await?;
        let model = match &options.model {
            None => collection.embedding,
            Some(model) => named(&reindex.embedders, model)?,
        };
        let text_fields = options.text_fields.unwrap_or(collection.schema.text_fields);
        Wanted::Index { text_fields, model }
    };
    let bar = bar()?;
    let built = reindex
        .run(&name, &wanted, options.force, |progress| {
            bar.set_length(progress.of.max(progress.generation).unsigned_abs());
            bar.set_position(progress.generation.unsigned_abs());
        })
        .await;
    bar.finish_and_clear();
    let index = built?;
    print(&format!("{name} is searched by {} now: {}\n", index.embedding.model, described(&index)))
}

/// Counts generations, as these are what a build goes through.
fn bar() -> Result<ProgressBar, Failure> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "indexing {bar:30} change {pos} of {len} {elapsed} eta {eta}",
    )?);
    Ok(bar)
}

/// The configured model of this name, or of a hash that begins so.
fn named(embedders: &Embedders, model: &str) -> Result<EmbeddingVersion, Failure> {
    let versions = || embedders.all().map(|embedder| &embedder.model().version);
    let is = |version: &&EmbeddingVersion| {
        version.model == model || (model.len() >= 8 && version.hash.starts_with(model))
    };
    versions().find(is).cloned().ok_or_else(|| {
        let known: Vec<&str> = versions().map(|version| version.model.as_str()).collect();
        format!("no model {model:?} is configured; there is {}", known.join(" and ")).into()
    })
}

async fn status(
    documents: &dyn DocumentStore,
    outbox: &dyn Outbox,
    name: &CollectionName,
) -> Result<(), Failure> {
    let collection = documents
        .collection(name)
        .await?
        .ok_or_else(|| ReindexError::NoCollection(name.to_string()))?;
    let mut text = format!(
        "searched: index {}, {}, text fields {}, generation {}\n",
        collection.index,
        collection.embedding.model,
        collection.schema.text_fields.join(","),
        collection.visible_generation,
    );
    for index in outbox.indexes(collection.id).await? {
        let state = if index.retired.is_some() { "kept" } else { "half built" };
        text += &format!("{state}: {}\n", described(&index));
    }
    print(&text)
}

fn described(index: &StoredIndex) -> String {
    format!(
        "index {}, {}, text fields {}, generation {}",
        index.id,
        index.embedding.model,
        index.text_fields.join(","),
        index.generation,
    )
}
