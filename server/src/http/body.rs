//! The documents of a streamed body.

use std::time::Duration;

use axum::body::Body;
use futures::{Stream, StreamExt, stream};
use http_body_util::BodyExt;

use crate::domain::Document;
use crate::ingest::IngestError;
use crate::split::{Format, Splitter, parse};

/// Bounds of an import.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub max_bytes: usize,
    pub max_document_bytes: usize,
    /// Longest wait for more input.
    pub idle_timeout: Duration,
}

/// The documents of a body, as they come in.
pub fn documents(
    body: Body,
    format: Format,
    bounds: Bounds,
) -> impl Stream<Item = Result<Document, IngestError>> + Send {
    let splitter = Splitter::new(format, bounds.max_document_bytes);
    let parts = stream::unfold(Some((body, splitter, 0_usize)), move |state| async move {
        let (mut body, mut splitter, mut read) = state?;
        let frame = match tokio::time::timeout(bounds.idle_timeout, body.frame()).await {
            Err(_) => return Some((Err(IngestError::TooSlow), None)),
            Ok(None) => return Some((splitter.finish(), None)),
            Ok(Some(Err(error))) => {
                return Some((Err(IngestError::Broken(error.to_string())), None));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(bytes) = frame.into_data() else {
            return Some((Ok(Vec::new()), Some((body, splitter, read))));
        };
        read += bytes.len();
        if read > bounds.max_bytes {
            let message = format!("import is longer than {} bytes", bounds.max_bytes);
            return Some((Err(IngestError::TooLarge(message)), None));
        }
        match splitter.feed(&bytes) {
            Ok(pieces) => Some((Ok(pieces), Some((body, splitter, read)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    parts
        .flat_map(|pieces| {
            let results: Vec<_> = match pieces {
                Ok(pieces) => pieces.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(results)
        })
        .enumerate()
        .map(|(place, piece)| parse(place, &piece?))
}
