//! What a request is known by: its request id and its place in a trace (W3C Trace Context).

use std::sync::Arc;

use axum::http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const MAX_REQUEST_ID: usize = 128;

tokio::task_local! {
    static CURRENT: Arc<RequestIds>;
}

/// The id of the request that this task answers; empty outside of one.
pub fn current_request_id() -> String {
    CURRENT.try_with(|ids| ids.request_id.clone()).unwrap_or_default()
}

/// The id of the trace that this task is part of; empty outside of a request.
pub fn current_trace_id() -> String {
    CURRENT.try_with(|ids| ids.trace_id()).unwrap_or_default()
}

/// Runs the answering of a request under its ids.
pub async fn with_ids<F: Future>(ids: Arc<RequestIds>, answer: F) -> F::Output {
    CURRENT.scope(ids, answer).await
}

/// Ids of a request: taken over from the caller where they are well-formed.
pub struct RequestIds {
    pub request_id: String,
    /// The caller's trace, or a new one, and this server's place in it.
    pub span: SpanContext,
}

impl RequestIds {
    /// `recorded`: the request's span, where there is one. `random` makes ids that nobody gave.
    pub fn of(
        headers: &HeaderMap,
        parent: Option<&SpanContext>,
        recorded: Option<SpanContext>,
        random: u128,
    ) -> Self {
        let given = headers
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len()))
            .filter(|id| id.bytes().all(|b| b.is_ascii_graphic()));
        let span = recorded.unwrap_or_else(|| {
            // Never zero, which the specification forbids.
            let trace = parent.map_or(TraceId::from(random | 1), SpanContext::trace_id);
            let span = SpanId::from((random >> 64) as u64 | 1);
            let flags = parent.map_or(TraceFlags::NOT_SAMPLED, SpanContext::trace_flags);
            SpanContext::new(trace, span, flags, false, TraceState::NONE)
        });
        let request_id = given.map_or_else(|| format!("{random:032x}"), str::to_owned);
        Self { request_id, span }
    }

    pub fn trace_id(&self) -> String {
        self.span.trace_id().to_string()
    }
}

/// The caller's span by its `traceparent` (W3C Trace Context, level 1, section 3.2).
pub fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let well_formed = hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && hex(trace, 32)
        && hex(span, 16)
        && hex(flags, 2);
    if !well_formed {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn ids(headers: &[(&'static str, &str)]) -> (String, String) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let ids = RequestIds::of(&headers, parent(&headers).as_ref(), None, 0x1234 << 64);
        (ids.request_id.clone(), spans::traceparent(&ids.span))
    }

    #[test]
    fn ids_of_the_caller_are_kept() {
        let (request_id, traceparent) = ids(&[("x-request-id", "abc-1"), ("traceparent", PARENT)]);
        assert_eq!(request_id, "abc-1");
        assert!(traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert!(traceparent.ends_with("-01"));
        assert_ne!(traceparent, PARENT);
    }

    #[test]
    fn ids_that_could_forge_a_log_line_are_replaced() {
        for bad in ["", "a b", &"x".repeat(129)] {
            assert_eq!(ids(&[("x-request-id", bad)]).0, format!("{:032x}", 0x1234_u128 << 64));
        }
        let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        for bad in [
            "00-0-0-0",
            &PARENT.to_uppercase(),
            &format!("{PARENT}-x"),
            &PARENT.replace('b', "g"),
            &zeros,
        ] {
            assert!(ids(&[("traceparent", bad)]).1.contains("1234"), "{bad}");
        }
    }
}
