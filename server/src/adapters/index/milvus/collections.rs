//! The collections of Milvus that stand for one collection: made, opened and dropped.
//!
//! Each index of a collection is one of them, with a version in its name. An alias says for others,
//! such as tools, which one is searched: an index made anew is another version, and the alias
//! changes over in one step. A collection of its own, small, says up to which generation each index
//! has every change.

use std::time::Duration;

use milvus::v2::error::Error;
use milvus::v2::prelude::{
    AlterAliasRequest, CollectionSchema, ConsistencyLevel, CreateAliasRequest,
    CreateCollectionRequest, CreateIndexRequest, DeleteRequest, DescribeAliasRequest,
    DescribeCollectionRequest, DropAliasRequest, DropCollectionRequest, HasCollectionRequest,
    IndexParam, InsertRequest, QueryRequest, UpsertRequest,
};

use super::client::{HEDGES, Servers, failed, jittered};
use super::names::{alias, generations, name};
use super::rows;
use crate::ports::{IndexError, IndexedCollection};

/// How often, and after which pause, it is looked whether another server has made a collection.
const CHECKS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(100);

/// Makes an index when there is none, loads it and makes sure of its vectors' length; true when it
/// was made. The first one of a collection gets its alias, too. Several servers may do so at the same
/// time.
pub async fn open(
    servers: &Servers,
    prefix: &str,
    index: &IndexedCollection,
) -> Result<bool, IndexError> {
    let meta = generations(prefix);
    // Loading is also what tells whether it was ever finished.
    if let Err(IndexError::Io { .. }) = servers.load(&meta).await {
        create(servers, &meta, &rows::generations_schema(), rows::generations_indexes()).await?;
        servers.load(&meta).await?;
    }
    let name = name(prefix, index);
    let made = match servers.load(&name).await {
        Err(IndexError::Io { .. }) => {
            let missing = !exists(servers, &name).await?;
            let length = u32::try_from(index.dimension).map_err(failed("create"))?;
            create(servers, &name, &rows::schema(length), rows::indexes()).await?;
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
                async move {
                    let request = CreateAliasRequest::builder();
                    client.create_alias(request.collection_name(name).alias(alias).build()?).await
                }
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
        return Err(failed("open")(std::io::Error::other(reason)));
    }
    Ok(made)
}

/// Points the alias of the collection to an index that is open.
pub async fn publish(
    servers: &Servers,
    prefix: &str,
    index: &IndexedCollection,
) -> Result<(), IndexError> {
    servers
        .call("publish", |client| {
            let request = AlterAliasRequest::builder()
                .collection_name(name(prefix, index))
                .alias(alias(prefix, index.collection))
                .build();
            async move { client.alter_alias(request?).await }
        })
        .await
}

/// Deletes an index, with the alias when that points to it; what is not there is no error.
pub async fn drop(
    servers: &Servers,
    prefix: &str,
    index: &IndexedCollection,
) -> Result<(), IndexError> {
    let (name, alias, meta) =
        (name(prefix, index), alias(prefix, index.collection), generations(prefix));
    if exists(servers, &meta).await? {
        // First of all: what is left after a failure is then taken for an empty index.
        servers
            .call("drop a collection of", |client| {
                let request = DeleteRequest::builder()
                    .collection_name(meta.as_str())
                    .filter(format!("{} == {}", rows::COLLECTION, index.id))
                    .build();
                async move { client.delete(request?).await }
            })
            .await?;
    }
    if target(servers, &alias).await?.as_ref() == Some(&name) {
        servers
            .call("drop a collection of", |client| {
                let request = DropAliasRequest::builder().alias(alias.as_str()).build();
                async move { client.drop_alias(request?).await }
            })
            .await?;
    }
    if exists(servers, &name).await? {
        servers
            .call("drop a collection of", |client| {
                let request = DropCollectionRequest::builder().collection_name(name.as_str());
                let request = request.build();
                async move { client.drop_collection(request?).await }
            })
            .await?;
    }
    Ok(())
}

/// Up to which generation the index has every change; 0 when that is not known.
pub async fn generation(
    servers: &Servers,
    prefix: &str,
    collection: i64,
) -> Result<i64, IndexError> {
    let meta = generations(prefix);
    let answer = servers
        .read(HEDGES, "read", &meta, |client| {
            let request = QueryRequest::builder()
                .collection_name(meta.as_str())
                .filter(format!("{} == {collection}", rows::COLLECTION))
                .output_fields([rows::GENERATION])
                .limit(1)
                .consistency_level(ConsistencyLevel::Strong)
                .build();
            async move { client.query(request?).await }
        })
        .await?;
    let results = answer.results();
    if results.is_empty() {
        return Ok(0);
    }
    let mut rows = results.rows().map_err(failed("read"))?;
    rows.next().map_or(Ok(0), |row| row.get_i64(rows::GENERATION)).map_err(failed("read"))
}

pub async fn set_generation(
    servers: &Servers,
    prefix: &str,
    collection: i64,
    generation: i64,
) -> Result<(), IndexError> {
    let meta = generations(prefix);
    let call = servers.call("change", |client| {
        let insert = InsertRequest::builder()
            .collection_name(meta.as_str())
            .columns(rows::generation_row(collection, generation))
            .build();
        async move { client.upsert(UpsertRequest::builder().insert(insert?).build()?).await }
    });
    call.await.map(|_| ())
}

/// Makes of a collection what is not there yet.
async fn create(
    servers: &Servers,
    name: &str,
    schema: &CollectionSchema,
    indexes: Vec<IndexParam>,
) -> Result<(), IndexError> {
    if !exists(servers, name).await? {
        let made = servers
            .call("create", |client| {
                let request = CreateCollectionRequest::builder()
                    .collection_name(name)
                    .schema(schema.clone())
                    .build();
                async move { client.create_collection(request?).await }
            })
            .await;
        // Another server may have begun it meanwhile, and not be done.
        let mut checks = 1;
        while made.is_err() && !exists(servers, name).await? {
            if checks == CHECKS {
                return made;
            }
            checks += 1;
            tokio::time::sleep(jittered(CHECK_PAUSE)).await;
        }
    }
    for index in indexes {
        let made = servers
            .call("create", |client| {
                let request = CreateIndexRequest::builder()
                    .collection_name(name)
                    .index_param(index.clone())
                    .build();
                async move { client.create_index(request?).await }
            })
            .await;
        // It may be there already; without it the collection does not load.
        if let Err(error) = made {
            tracing::debug!(collection = name, %error, "an index was not made");
        }
    }
    Ok(())
}

async fn exists(servers: &Servers, name: &str) -> Result<bool, IndexError> {
    let answer = servers
        .call("open", |client| {
            let request = HasCollectionRequest::builder().collection_name(name).build();
            async move { client.has_collection(request?).await }
        })
        .await?;
    Ok(answer.exists())
}

/// The collection behind an alias.
async fn target(servers: &Servers, alias: &str) -> Result<Option<String>, IndexError> {
    servers
        .call("open", |client| {
            let request = DescribeAliasRequest::builder().alias(alias).build();
            async move {
                match client.describe_alias(request?).await {
                    Ok(answer) => Ok(Some(answer.collection_name().to_owned())),
                    // Servers have several codes for an alias that is not there.
                    Err(Error::Server(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        })
        .await
}

async fn vector_length(servers: &Servers, name: &str) -> Result<Option<usize>, IndexError> {
    let answer = servers
        .call("open", |client| {
            let request = DescribeCollectionRequest::builder().collection_name(name).build();
            async move { client.describe_collection(request?).await }
        })
        .await?;
    let fields = answer.description().get_schema().get_fields();
    let vector = fields.iter().find(|field| field.get_name() == rows::VECTOR);
    Ok(vector.and_then(|field| usize::try_from(field.get_dimension()).ok()))
}
