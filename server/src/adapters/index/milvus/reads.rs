//! The calls that read, made with the library's present client.

use std::collections::HashMap;

use milvus::v2::prelude::{ClientV2, Ids, QueryRequest, SearchRequest, SearchVectors};

use super::client::{HEDGES, NO_HEDGES, failed};
use super::search::{COUNT, EXPANSION_SEARCH, Each, Page, Reads, Wanted};
use super::{MilvusIndex, MilvusOptions, OpenCollection, rows};
use crate::domain::fusion::{self, Scored};
use crate::metrics::Metrics;
use crate::ports::IndexError;

impl Reads for MilvusIndex {
    type Client = ClientV2;

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
        let count = i64::try_from(limit).map_err(failed("search"))?;
        let (field, parameters) = match wanted {
            Wanted::Near(_) => {
                let expansion = limit.max(EXPANSION_SEARCH).to_string();
                (rows::VECTOR, HashMap::from([("ef".to_owned(), expansion)]))
            }
            Wanted::Words(_) => (rows::WEIGHTS, HashMap::new()),
        };
        let vectors = || match wanted {
            Wanted::Near(vector) => SearchVectors::Float(vec![vector.clone()]),
            Wanted::Words(words) => SearchVectors::EmbeddedText(vec![words.clone()]),
        };
        let answer = self
            .servers
            .read(HEDGES, "search", &collection.name, |client| {
                let request = SearchRequest::builder()
                    .collection_name(collection.name.as_str())
                    .vector_field(field)
                    .vectors(vectors())
                    .filter(expression)
                    .limit(count)
                    .extra_params(parameters.clone())
                    .consistency_level(self.options.consistency.into())
                    .build();
                async move { client.search(request?).await }
            })
            .await?;
        let Some(result) = answer.results().iter().next() else { return Ok(Vec::new()) };
        let Ids::Int64(keys) = result.get_ids() else { return Ok(Vec::new()) };
        let hits = keys.iter().zip(result.get_scores()).map(|(&key, &score)| Scored { key, score });
        let mut hits: Vec<Scored> = match wanted {
            Wanted::Near(_) => {
                hits.map(|hit| Scored { score: hit.score.clamp(-1.0, 1.0), ..hit }).collect()
            }
            // BM25 is never below 0; milvus-lite writes it with the sign changed.
            Wanted::Words(_) => hits
                .map(|hit| Scored { score: hit.score.abs(), ..hit })
                .filter(|hit| hit.score > 0.0)
                .collect(),
        };
        fusion::sort(&mut hits);
        Ok(hits)
    }

    async fn count_rows(
        &self,
        collection: &OpenCollection,
        expression: &str,
    ) -> Result<u64, IndexError> {
        let answer = self
            .servers
            .read(HEDGES, "search", &collection.name, |client| {
                let request = QueryRequest::builder()
                    .collection_name(collection.name.as_str())
                    .filter(expression)
                    .output_fields([COUNT])
                    .consistency_level(self.options.consistency.into())
                    .build();
                async move { client.query(request?).await }
            })
            .await?;
        let mut rows = answer.results().rows().map_err(failed("search"))?;
        let count =
            rows.next().map_or(Ok(0), |row| row.get_i64(COUNT)).map_err(failed("search"))?;
        u64::try_from(count).map_err(failed("search"))
    }

    async fn page(
        &self,
        collection: &OpenCollection,
        expression: &str,
        limit: usize,
        each: &mut Each<'_>,
    ) -> Result<Page, IndexError> {
        // Servers sort by key only for these.
        let parameters = [("iterator", "False"), ("reduce_stop_for_best", "True")];
        let parameters: HashMap<String, String> =
            parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (field, limit) = (each.field(), i64::try_from(limit).map_err(failed("search"))?);
        let answer = self
            .servers
            .read(NO_HEDGES, "search", &collection.name, |client| {
                let request = QueryRequest::builder()
                    .collection_name(collection.name.as_str())
                    .filter(expression)
                    .output_fields([rows::KEY, field])
                    .limit(limit)
                    .extra_params(parameters.clone())
                    .consistency_level(self.options.consistency.into())
                    .build();
                async move { client.query(request?).await }
            })
            .await?;
        let mut page = Page { rows: 0, last: None };
        if answer.results().is_empty() {
            return Ok(page);
        }
        for row in answer.results().rows().map_err(failed("search"))? {
            let key = row.get_i64(rows::KEY).map_err(failed("search"))?;
            page = Page { rows: page.rows + 1, last: page.last.max(Some(key)) };
            match each {
                Each::Vector(each) => {
                    each(key, row.get_float_vector(rows::VECTOR).map_err(failed("search"))?);
                }
                Each::Attributes(each) => {
                    each(row.get_json(rows::ATTRIBUTES).map_err(failed("search"))?);
                }
                Each::Version(each) => {
                    each(key, row.get_i64(rows::VERSION).map_err(failed("search"))?);
                }
            }
        }
        Ok(page)
    }
}
