//! Reading requests strictly: what is wrong is told with its place.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::AppState;
use super::error::Problem;
use crate::strict::{self, ReadError};

/// Parts of the path; those that are not UTF-8 are a problem like any other.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(path)| Self(path))
            .map_err(|error| Problem::new("malformed", error.body_text()))
    }
}

/// A JSON body.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        let media_type = media_type(request.headers());
        if media_type != "application/json" {
            return Err(unsupported(&media_type, "application/json"));
        }
        let bytes = read_body(request.into_body(), state.config.max_body_bytes).await?;
        Ok(Self(parse_json(&bytes)?))
    }
}

pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    strict::from_slice(bytes).map_err(|error| match error {
        ReadError::Syntax(message) => {
            Problem::new("malformed", format!("the body is not JSON: {message}"))
        }
        ReadError::Data(fault) => Problem::invalid(vec![fault]),
    })
}

pub async fn read_body(body: Body, limit: usize) -> Result<Bytes, Problem> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Problem::new("too-large", format!("the body is longer than {limit} bytes")))
        }
        Err(error) => Err(Problem::new("malformed", format!("the body cannot be read: {error}"))),
    }
}

/// The media type in lower case, without parameters; empty when there is none.
pub fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .unwrap_or_default()
}

pub fn unsupported(media_type: &str, wanted: &str) -> Problem {
    let detail = match media_type {
        "" => format!("the request has no Content-Type; send {wanted}"),
        other => format!("the body is {other:?}; send {wanted}"),
    };
    Problem::new("unsupported-media-type", detail)
}

/// Parameters of the query string, read like a JSON body: unknown and doubled names are faults.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let mut object = serde_json::Map::new();
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| Problem::new("malformed", error.body_text()))?;
        for (name, value) in pairs.0 {
            if object.insert(name.clone(), as_json(&name, value)?).is_some() {
                return Err(Problem::field(&name, "is given twice"));
            }
        }
        strict::from_value(Json::Object(object))
            .map(Self)
            .map_err(|fault| Problem::invalid(vec![fault]))
    }
}

/// Gives a parameter the type that its name has in the JSON form of the request.
fn as_json(name: &str, value: String) -> Result<Json, Problem> {
    let wrong = |wanted: &str| Problem::field(name, format!("must be {wanted}"));
    Ok(match name {
        "limit" => Json::from(value.parse::<u64>().map_err(|_| wrong("a whole number"))?),
        "min_score" => Json::from(value.parse::<f64>().map_err(|_| wrong("a number"))?),
        "explain" | "snippet" | "wait" => {
            Json::from(value.parse::<bool>().map_err(|_| wrong("true or false"))?)
        }
        "facets" => value.split(',').filter(|field| !field.is_empty()).collect(),
        "filter" => serde_json::from_str(&value)
            .map_err(|error| wrong(&format!("a filter as JSON: {error}")))?,
        _ => Json::String(value),
    })
}
