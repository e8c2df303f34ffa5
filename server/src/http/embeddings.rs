//! `POST /v1/embeddings`, in the shape of OpenAI's.

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::access::Deadline;
use super::error::Problem;
use super::extract::JsonBody;
use crate::domain::FieldError;
use crate::ports::Class;

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsRequest {
    pub input: Input,
    /// The name of the server's model; another one is refused.
    pub model: Option<String>,
    #[serde(default)]
    pub encoding_format: EncodingFormat,
    /// The model's own dimension; another one is refused.
    pub dimensions: Option<usize>,
    /// Taken and not used.
    pub user: Option<String>,
    /// Beyond OpenAI: what is embedded first when there is much to do. By default that depends on
    /// how many texts there are.
    pub urgency: Option<EmbeddingUrgency>,
    /// Beyond OpenAI: embed empty texts, too, instead of refusing them.
    #[serde(default)]
    pub allow_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingUrgency {
    /// Somebody waits.
    Interactive,
    /// Throughput matters.
    Bulk,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub enum Input {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    #[default]
    Float,
    /// Little-endian 32-bit floats as base64.
    Base64,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct EmbeddingsResponse {
    /// Always `list`.
    pub object: String,
    pub data: Vec<EmbeddingObject>,
    pub model: String,
    /// Beyond OpenAI: hash of the model's files, as in `/v1/info`.
    pub model_hash: String,
    pub usage: Usage,
    /// Indexes of inputs that were longer than the model reads and were cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<usize>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct EmbeddingObject {
    /// Always `embedding`.
    pub object: String,
    pub index: usize,
    pub embedding: Vector,
    /// Beyond OpenAI: tokens that the model read, special ones included.
    pub tokens: usize,
    /// Beyond OpenAI: the text was longer than the model reads and was cut.
    pub truncated: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

/// Embed texts.
#[utoipa::path(post, path = "/v1/embeddings", tag = "embeddings", request_body = EmbeddingsRequest,
    responses((status = 200, body = EmbeddingsResponse), (status = "4XX", description = "OpenAI's error object"),
        (status = "5XX", description = "OpenAI's error object")))]
pub async fn embeddings(
    State(state): State<AppState>,
    Extension(deadline): Extension<Deadline>,
    JsonBody(request): JsonBody<EmbeddingsRequest>,
) -> Result<Json<EmbeddingsResponse>, Problem> {
    let services = state.services()?;
    let model = services.embedders.first().model();
    let texts = match request.input {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    let name = &model.version.model;
    let dimension = model.version.dimension;
    let max_inputs = state.config.max_embedding_inputs;
    let mut faults = Vec::new();
    if texts.is_empty() {
        faults.push(FieldError::new("input", "must not be empty"));
    }
    let empty = |text: &str| !request.allow_empty && text.trim().is_empty();
    for (i, _) in texts.iter().enumerate().filter(|(_, text)| empty(text)) {
        faults.push(FieldError::new(format!("input[{i}]"), "must not be empty"));
    }
    if request.model.as_ref().is_some_and(|asked| asked.rsplit('/').next() != Some(name)) {
        faults
            .push(FieldError::new("model", format!("must be {name:?}, the model of this server")));
    }
    if request.dimensions.is_some_and(|asked| asked != dimension) {
        faults.push(FieldError::new("dimensions", format!("must be {dimension}")));
    }
    if texts.len() > max_inputs {
        let message = format!("{} inputs are more than {max_inputs}", texts.len());
        return Err(Problem::new("too-large", message));
    }
    if !faults.is_empty() {
        return Err(Problem::invalid(faults));
    }
    let class = request.urgency.map(|urgency| match urgency {
        EmbeddingUrgency::Interactive => Class::Interactive,
        EmbeddingUrgency::Bulk => Class::Bulk,
    });
    let embedded = services.search.embed_all(&texts, class, deadline.0).await?;
    let tokens = embedded.iter().map(|embedding| embedding.tokens).sum();
    let truncated = (0..embedded.len()).filter(|i| embedded[*i].truncated).collect();
    let data = embedded
        .iter()
        .enumerate()
        .map(|(index, embedding)| EmbeddingObject {
            object: "embedding".to_owned(),
            index,
            tokens: embedding.tokens,
            truncated: embedding.truncated,
            embedding: match request.encoding_format {
                EncodingFormat::Float => Vector::Float(embedding.vector.to_vec()),
                EncodingFormat::Base64 => {
                    let bytes: Vec<u8> =
                        embedding.vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                    Vector::Base64(STANDARD.encode(bytes))
                }
            },
        })
        .collect();
    Ok(Json(EmbeddingsResponse {
        object: "list".to_owned(),
        data,
        model: name.clone(),
        model_hash: model.version.hash.clone(),
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        truncated,
    }))
}

#[derive(Serialize)]
struct OpenAiError {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: Option<String>,
}

/// Rewrites problems of this route into the error object that OpenAI's clients read.
pub async fn openai_errors(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let Some(problem) = response.extensions().get::<Problem>().cloned() else { return response };
    let r#type = match problem.status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        _ => "server_error",
    };
    let error = OpenAiError {
        param: problem.errors.first().map(|fault| fault.path.clone()),
        code: problem.kind.rsplit('/').next().map(str::to_owned),
        message: problem.detail,
        r#type,
    };
    let mut headers: HeaderMap = response.headers().clone();
    headers.remove(axum::http::header::CONTENT_TYPE);
    headers.remove(axum::http::header::CONTENT_LENGTH);
    let body = Json(serde_json::json!({ "error": error }));
    let mut rewritten = (response.status(), body).into_response();
    rewritten.headers_mut().extend(headers);
    rewritten
}
