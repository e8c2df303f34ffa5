//! The answer of a search as JSON.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AnswerParts, Query, SearchError};
use crate::catalog::OpenCollection;
use crate::domain::fusion::{self, Scored};
use crate::domain::snippet::snippet;
use crate::domain::{Document, Key, Value};
use crate::ports::{Embedding, Facets};

/// A document that answers the query.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Hit {
    pub id: String,
    /// `dense`: cosine similarity, -1 to 1. `lexical`: BM25, above 0. `hybrid`: reciprocal rank
    /// fusion, at most 2/61. Scores of different modes cannot be compared.
    pub score: f32,
    #[schema(value_type = Object)]
    pub document: Document,
    /// The part of the text that answers best; null unless asked for.
    pub snippet: Option<String>,
    /// How the score came about; only on request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<Explanation>,
}

/// Where each retriever had the document.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub dense: Option<RetrieverScore>,
    pub lexical: Option<RetrieverScore>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct RetrieverScore {
    /// From 1.
    pub rank: usize,
    pub score: f32,
}

/// What the answer was made from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct IndexInfo {
    pub collection: String,
    pub model: String,
    pub generation: i64,
}

/// What the search as a whole did; only on request.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SearchExplanation {
    /// The query as it was searched.
    pub query: String,
    /// Tokens of the query that the model read; null when the model was not asked.
    pub tokens: Option<usize>,
    pub dense_candidates: usize,
    pub lexical_candidates: usize,
}

/// The members that are the same however the answer was come by. `cache`, `degraded`,
/// `processing_time_ms` and `request_id` are added to every copy.
#[derive(Serialize)]
struct Members {
    hits: Vec<Hit>,
    index: IndexInfo,
    mode: &'static str,
    next_cursor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    facets: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    query_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<SearchExplanation>,
}

/// Everything that an answer is made of.
pub struct Ranked<'a> {
    pub collection: &'a OpenCollection,
    pub generation: i64,
    pub model: &'a str,
    pub query: &'a Query,
    pub page: &'a [Scored],
    /// Of the page's hits; one that was deleted meanwhile is `None`.
    pub documents: Vec<Option<Document>>,
    pub dense: &'a [Scored],
    pub lexical: &'a [Scored],
    pub facets: Option<Facets>,
    pub embedding: Option<&'a Embedding>,
    pub next_cursor: Option<String>,
}

pub fn answer(ranked: Ranked<'_>) -> Result<AnswerParts, SearchError> {
    let query = ranked.query;
    let schema = ranked.collection.schema();
    let hits: Vec<Hit> = ranked
        .page
        .iter()
        .zip(ranked.documents)
        .filter_map(|(scored, stored)| Some((scored, stored?)))
        .map(|(scored, document)| Hit {
            id: document.id.clone(),
            score: scored.score,
            snippet: query
                .snippet
                .then(|| snippet(&body(&document, &schema.text_fields), &query.text)),
            explain: query.explain.then(|| Explanation {
                dense: position(ranked.dense, scored.key),
                lexical: position(ranked.lexical, scored.key),
            }),
            document,
        })
        .collect();
    let members = Members {
        hits,
        index: IndexInfo {
            collection: ranked.collection.name.to_string(),
            model: ranked.model.to_owned(),
            generation: ranked.generation,
        },
        mode: query.mode.as_str(),
        next_cursor: ranked.next_cursor,
        facets: ranked.facets.map(facet_object).transpose()?,
        query_truncated: ranked.embedding.is_some_and(|embedding| embedding.truncated),
        explain: query.explain.then(|| SearchExplanation {
            query: query.text.clone(),
            tokens: ranked.embedding.map(|embedding| embedding.tokens),
            dense_candidates: ranked.dense.len(),
            lexical_candidates: ranked.lexical.len(),
        }),
    };
    let mut json = serde_json::to_vec(&members)?;
    // Without the braces: the rest of the object is added to every copy.
    json.pop();
    json.remove(0);
    Ok(AnswerParts { json: json.into(), hits: members.hits.len(), made_at: Instant::now() })
}

fn position(list: &[Scored], key: Key) -> Option<RetrieverScore> {
    list.iter()
        .zip(fusion::ranks(list))
        .find(|(hit, _)| hit.key == key)
        .map(|(hit, rank)| RetrieverScore { rank, score: hit.score })
}

/// The text to take the snippet from: all text fields but the first, which is the title, unless
/// there is nothing else.
fn body(document: &Document, text_fields: &[String]) -> String {
    let texts: Vec<&str> = text_fields
        .iter()
        .filter_map(|field| match document.fields.get(field) {
            Some(Value::String(text)) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    if texts.len() > 1 { texts[1..].join(" ") } else { texts.concat() }
}

fn facet_object(facets: Facets) -> Result<serde_json::Map<String, serde_json::Value>, SearchError> {
    facets.0.into_iter().map(|(field, values)| Ok((field, serde_json::to_value(values)?))).collect()
}
