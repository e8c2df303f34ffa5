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
use crate::adapters::index::milvus::client::{Client, HEDGES, Servers, failed};
use crate::adapters::index::milvus::names::{alias, generations, name};
use crate::adapters::index::milvus::rows;
use crate::ports::{IndexError, IndexedCollection};

type ServersV1 = Servers<ClientV1>;

/// Makes an index when there is none, loads it and makes sure of its vectors' length; true when it
/// was made. The first one of a collection gets its alias, too. Several servers may do so at the same
/// time.
pub async fn open(
    servers: &ServersV1,
    prefix: &str,
    index: &IndexedCollection,
) -> Result<bool, IndexError> {
    let meta = generations(prefix);
    // Loading is also what tells whether it was ever finished.
    if let Err(IndexError::Io { .. }) = servers.load(&meta).await {
        let schema = own::generations_schema(&meta).map_err(failed("create"))?;
        create(servers, &schema, own::generations_index()).await?;
        servers.load(&meta).await?;
    }
    let name = name(prefix, index);
    let made = match servers.load(&name).await {
        Err(IndexError::Io { .. }) => {
            let missing = !exists(servers, &name).await?;
            let length = i64::try_from(index.dimension).map_err(failed("create"))?;
            let schema = own::schema(&name, length).map_err(failed("create"))?;
            create(servers, &schema, own::index()).await?;
            servers.load(&name).await?;
            missing
        }
        loaded => {
            loaded?;
            false
        }
    };
    let alias = alias(prefix, index.collection);
    if target(servers, &alias).await?.is_none() {
        let aliased = servers
            .call("create", |client| {
                let (name, alias) = (name.clone(), alias.clone());
                async move { client.create_alias(name, alias).await }
            })
            .await;
        // Another server may have made it meanwhile.
        if target(servers, &alias).await?.is_none() {
            aliased?;
        }
    }
    let present = vector_length(servers, &name).await?;
    if present != Some(index.dimension) {
        let wanted = index.dimension;
        let reason = format!("its vectors have {present:?} numbers, those wanted {wanted}");
        return Err(failed("open")(io::Error::other(reason)));
    }
    Ok(made)
}

/// Points the alias of the collection to an index that is open.
pub async fn publish(
    servers: &ServersV1,
    prefix: &str,
    index: &IndexedCollection,
) -> Result<(), IndexError> {
    servers
        .call("publish", |client| {
            let (name, alias) = (name(prefix, index), alias(prefix, index.collection));
            async move { client.alter_alias(name, alias).await }
        })
        .await
}

async fn exists(servers: &ServersV1, name: &str) -> Result<bool, IndexError> {
    servers
        .call("open", |client| {
            let name = name.to_owned();
            async move { client.has_collection(name).await }
        })
        .await
}

/// Deletes an index, with the alias when that points to it; what is not there is no error.
pub async fn drop(
    servers: &ServersV1,
    prefix: &str,
    index: &IndexedCollection,
) -> Result<(), IndexError> {
    const ACTION: &str = "drop a collection of";
    let (name, alias, meta) =
        (name(prefix, index), alias(prefix, index.collection), generations(prefix));
    if exists(servers, &meta).await? {
        // First of all: what is left after a failure is then taken for an empty index.
        let filter = format!("{} in [{}]", rows::COLLECTION, index.id);
        let forget = DeleteOptions::with_filter(filter);
        let (meta, forget) = (meta.as_str(), &forget);
        servers.call(ACTION, |client| async move { client.delete(meta, forget).await }).await?;
    }
    if target(servers, &alias).await?.as_ref() == Some(&name) {
        let alias = alias.as_str();
        servers.call(ACTION, |client| async move { client.drop_alias(alias).await }).await?;
    }
    let name = name.as_str();
    servers.call(ACTION, |client| async move { client.drop_collection(name).await }).await
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
    let columns =
        servers
            .read(HEDGES, "read", meta, |client| async move {
                client.query(meta, filter, options).await
            })
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
