//! The collections of such servers that stand for one collection, as in
//! [`crate::adapters::index::milvus::collections`]. These servers take the making of what is there
//! already, and the dropping of what is not, for done.

use std::io;

use milvus::v1::client::{Client as ClientV1, ConsistencyLevel};
use milvus::v1::error::Error;
use milvus::v1::mutate::{DeleteOptions, UpsertOptions};
use milvus::v1::query::QueryOptions;
use milvus::v1::schema::CollectionSchema;
use milvus::v1::value::ValueVec;

use super::rows::{self as own, Indexed};
use crate::adapters::index::milvus::client::{Client, Servers, failed};
use crate::adapters::index::milvus::rows;
use crate::ports::IndexError;

const VERSION: u32 = 1;

type ServersV1 = Servers<ClientV1>;

/// The name that searches and changes use.
pub fn alias(prefix: &str, collection: i64) -> String {
    format!("{prefix}_{collection}")
}

fn physical(prefix: &str, collection: i64) -> String {
    format!("{}_v{VERSION}", alias(prefix, collection))
}

fn generations(prefix: &str) -> String {
    format!("{prefix}_meta")
}

/// Makes a collection when there is none, loads it and makes sure of its vectors' length.
/// Several servers may do so at the same time.
pub async fn open(
    servers: &ServersV1,
    prefix: &str,
    collection: i64,
    dimension: usize,
) -> Result<(), IndexError> {
    let meta = generations(prefix);
    // Loading is also what tells whether it was ever finished.
    if let Err(IndexError::Io { .. }) = servers.load(&meta).await {
        let schema = own::generations_schema(&meta).map_err(failed("create"))?;
        create(servers, &schema, own::generations_index()).await?;
        servers.load(&meta).await?;
    }
    let alias = alias(prefix, collection);
    if target(servers, &alias).await?.is_none() {
        let physical = physical(prefix, collection);
        let length = i64::try_from(dimension).map_err(failed("create"))?;
        let schema = own::schema(&physical, length).map_err(failed("create"))?;
        create(servers, &schema, own::index()).await?;
        let made = servers
            .call("create", |client| {
                let (name, alias) = (physical.clone(), alias.clone());
                async move { client.create_alias(name, alias).await }
            })
            .await;
        // Another server may have made it meanwhile.
        if target(servers, &alias).await?.is_none() {
            made?;
        }
    }
    servers.load(&alias).await?;
    let present = vector_length(servers, &alias).await?;
    if present != Some(dimension) {
        let reason = format!("its vectors have {present:?} numbers, those wanted {dimension}");
        return Err(failed("open")(io::Error::other(reason)));
    }
    Ok(())
}

/// Deletes a collection with all its versions; what is not there is no error.
pub async fn drop(servers: &ServersV1, prefix: &str, collection: i64) -> Result<(), IndexError> {
    const ACTION: &str = "drop a collection of";
    let (alias, meta) = (alias(prefix, collection), generations(prefix));
    let exists = servers.call(ACTION, |client| {
        let meta = meta.clone();
        async move { client.has_collection(meta).await }
    });
    if exists.await? {
        // First of all: what is left after a failure is then taken for an empty index.
        let forget = DeleteOptions::with_filter(format!("{} in [{collection}]", rows::COLLECTION));
        let (meta, forget) = (meta.as_str(), &forget);
        servers.call(ACTION, |client| async move { client.delete(meta, forget).await }).await?;
    }
    let mut versions = vec![physical(prefix, collection)];
    if let Some(target) = target(servers, &alias).await? {
        let alias = alias.as_str();
        servers.call(ACTION, |client| async move { client.drop_alias(alias).await }).await?;
        if !versions.contains(&target) {
            versions.push(target);
        }
    }
    for name in &versions {
        let name = name.as_str();
        servers.call(ACTION, |client| async move { client.drop_collection(name).await }).await?;
    }
    Ok(())
}

/// Up to which generation the index has every change; 0 when that is not known.
pub async fn generation(
    servers: &ServersV1,
    prefix: &str,
    collection: i64,
) -> Result<i64, IndexError> {
    let meta = generations(prefix);
    let filter = format!("{} in [{collection}]", rows::COLLECTION);
    let options = QueryOptions::new()
        .output_fields(vec![rows::GENERATION.to_owned()])
        .limit(1)
        .consistency_level(ConsistencyLevel::Strong as i32);
    let (meta, filter, options) = (meta.as_str(), filter.as_str(), &options);
    let columns = servers
        .read("read", meta, |client| async move { client.query(meta, filter, options).await })
        .await?;
    let column = columns.into_iter().find(|column| column.name == rows::GENERATION);
    match column.map(|column| column.value) {
        Some(ValueVec::Long(values)) => Ok(values.first().copied().unwrap_or(0)),
        None | Some(ValueVec::None) => Ok(0),
        Some(_) => Err(failed("read")(Error::Conversion)),
    }
}

pub async fn set_generation(
    servers: &ServersV1,
    prefix: &str,
    collection: i64,
    generation: i64,
) -> Result<(), IndexError> {
    let meta = generations(prefix);
    let call = servers.call("change", |client| {
        let (meta, row) = (meta.clone(), own::generation_row(collection, generation));
        async move { client.upsert(meta, row, UpsertOptions::new()).await }
    });
    call.await.map(|_| ())
}

/// Makes of a collection what is not there yet.
async fn create(
    servers: &ServersV1,
    schema: &CollectionSchema,
    (field, index): Indexed,
) -> Result<(), IndexError> {
    servers
        .call("create", |client| {
            let schema = schema.clone();
            async move { client.create_collection(schema, None).await }
        })
        .await?;
    servers
        .call("create", |client| {
            let (name, index) = (schema.name().to_owned(), index.clone());
            async move { client.create_index(name, field, index).await }
        })
        .await
}

/// The collection behind an alias.
async fn target(servers: &ServersV1, alias: &str) -> Result<Option<String>, IndexError> {
    servers
        .call("open", |client| async move {
            match client.describe_alias(alias).await {
                Ok((_, collection, _)) => Ok(Some(collection)),
                // Servers have several codes for an alias that is not there.
                Err(error @ Error::Server(..)) if !ClientV1::is_unavailable(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
}

async fn vector_length(servers: &ServersV1, name: &str) -> Result<Option<usize>, IndexError> {
    let answer = servers
        .call("open", |client| async move { client.describe_collection(name).await })
        .await?;
    let vector = answer.schema.fields.iter().find(|field| field.name == rows::VECTOR);
    let length = vector.and_then(|it| it.type_params.iter().find(|it| it.key == "dim"));
    Ok(length.and_then(|length| length.value.parse().ok()))
}
