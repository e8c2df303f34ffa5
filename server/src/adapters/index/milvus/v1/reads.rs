//! The calls that read, made with the first client.

use milvus::proto::common::KeyValuePair;
use milvus::v1::client::Client as ClientV1;
use milvus::v1::collection::SearchResult;
use milvus::v1::error::Error;
use milvus::v1::index::MetricType;
use milvus::v1::query::{QueryOptions, SearchOptions};
use milvus::v1::value::{Value, ValueVec};
use serde_json::Value as Json;

use super::client::level;
use super::{MilvusV1Index, NO_FULL_TEXT};
use crate::adapters::index::milvus::client::{HEDGES, NO_HEDGES, failed};
use crate::adapters::index::milvus::search::{EXPANSION_SEARCH, Each, Page, Reads, Wanted};
use crate::adapters::index::milvus::{MilvusOptions, OpenCollection, rows};
use crate::domain::fusion::{self, Scored};
use crate::metrics::Metrics;
use crate::ports::IndexError;

/// What the client calls an answer without hits.
const NO_HITS: [&str; 2] = ["no IDs in search result", "no ID field in search result"];

impl Reads for MilvusV1Index {
    type Client = ClientV1;

    fn options(&self) -> &MilvusOptions {
        &self.options
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn search_once(
        &self,
        collection: &OpenCollection,
        wanted: &Wanted,
        expression: &str,
        limit: usize,
    ) -> Result<Vec<Scored>, IndexError> {
        let Wanted::Near(vector) = wanted else {
            return Err(IndexError::Unsupported(NO_FULL_TEXT));
        };
        let mut hits = self
            .servers
            .read(HEDGES, "search", &collection.name, |client| {
                let options = SearchOptions::new()
                    .limit(limit)
                    .filter(expression.to_owned())
                    .add_param("anns_field", rows::VECTOR)
                    .add_param("metric_type", MetricType::COSINE.to_string())
                    .add_param("ef", limit.max(EXPANSION_SEARCH).to_string())
                    .consistency_level(level(self.options.consistency));
                let (name, vector) = (collection.name.as_str(), vector.as_slice());
                async move {
                    match client.search(name, vec![Value::from(vector)], Some(options)).await {
                        Ok(answers) => Ok(answers.iter().flat_map(scored).collect()),
                        Err(Error::Unexpected(reason)) if NO_HITS.contains(&reason.as_str()) => {
                            Ok(Vec::new())
                        }
                        Err(error) => Err(error),
                    }
                }
            })
            .await?;
        fusion::sort(&mut hits);
        Ok(hits)
    }

    async fn count_rows(
        &self,
        collection: &OpenCollection,
        expression: &str,
    ) -> Result<u64, IndexError> {
        let options = QueryOptions::new().consistency_level(level(self.options.consistency));
        let options = &options;
        let count = self
            .servers
            .read(HEDGES, "search", &collection.name, |client| async move {
                client.count_with_expr(collection.name.as_str(), expression, options).await
            })
            .await?;
        u64::try_from(count).map_err(failed("search"))
    }

    async fn page(
        &self,
        collection: &OpenCollection,
        expression: &str,
        limit: usize,
        each: &mut Each<'_>,
    ) -> Result<Page, IndexError> {
        // Newer servers sort by key only for these.
        let parameters = [("iterator", "False"), ("reduce_stop_for_best", "True")];
        let parameters = parameters
            .map(|(key, value)| KeyValuePair { key: key.to_owned(), value: value.to_owned() });
        let limit = i64::try_from(limit).map_err(failed("search"))?;
        let options = QueryOptions::new()
            .output_fields(vec![rows::KEY.to_owned(), each.field().to_owned()])
            .query_params(parameters.into())
            .limit(limit)
            .consistency_level(level(self.options.consistency));
        let options = &options;
        let mut answer = self
            .servers
            .read(NO_HEDGES, "search", &collection.name, |client| async move {
                client.query(collection.name.as_str(), expression, options).await
            })
            .await?;
        let mut take = |name: &str| {
            let column = answer.iter_mut().find(|column| column.name == name);
            column.map(|column| std::mem::replace(&mut column.value, ValueVec::None))
        };
        let columns = (take(rows::KEY), take(each.field()));
        let (Some(ValueVec::Long(keys)), Some(values)) = columns else {
            return Err(failed("search")(Error::Conversion));
        };
        match (each, values) {
            (Each::Vector(each), ValueVec::Float(numbers)) => {
                let vectors = numbers.chunks_exact(collection.dimension);
                keys.iter().zip(vectors).for_each(|(&key, vector)| each(key, vector));
            }
            (Each::Attributes(each), ValueVec::Json(values)) => {
                for value in values {
                    let json: Json = serde_json::from_slice(&value).map_err(failed("search"))?;
                    each(&json);
                }
            }
            (Each::Version(each), ValueVec::Long(versions)) => {
                keys.iter().zip(versions).for_each(|(&key, version)| each(key, version));
            }
            _ if keys.is_empty() => {}
            _ => return Err(failed("search")(Error::Conversion)),
        }
        Ok(Page { rows: keys.len(), last: keys.into_iter().max() })
    }
}

fn scored<'a>(answer: &'a SearchResult<'_>) -> impl Iterator<Item = Scored> + 'a {
    answer.id.iter().zip(&answer.score).filter_map(|(id, score)| match id {
        Value::Long(key) => Some(Scored { key: *key, score: score.clamp(-1.0, 1.0) }),
        _ => None,
    })
}
