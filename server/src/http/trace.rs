//! What a request is known by: its request id and its W3C trace context.

use std::sync::Arc;

use axum::http::HeaderMap;

const MAX_REQUEST_ID: usize = 128;

tokio::task_local! {
    static REQUEST_ID: Arc<str>;
}

/// The id of the request that this task answers; empty outside of one.
pub fn current_request_id() -> String {
    REQUEST_ID.try_with(ToString::to_string).unwrap_or_default()
}

/// Runs the answering of a request under its id.
pub async fn with_request_id<F: Future>(id: Arc<str>, answer: F) -> F::Output {
    REQUEST_ID.scope(id, answer).await
}

/// Ids of a request: taken over from the caller where they are well-formed.
pub struct RequestIds {
    pub request_id: Arc<str>,
    /// For the answer: the caller's trace, this server's span.
    pub traceparent: String,
}

impl RequestIds {
    /// `random` makes ids that the caller did not give.
    pub fn of(headers: &HeaderMap, random: u128) -> Self {
        let given = headers
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len()))
            .filter(|id| id.bytes().all(|b| b.is_ascii_graphic()));
        let parent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        let (trace, flags) = parent
            .and_then(trace_and_flags)
            .map_or_else(|| (format!("{random:032x}"), "00"), |(t, f)| (t.to_owned(), f));
        // Never zero, which the specification forbids.
        let span = (random >> 64) as u64 | 1;
        let traceparent = format!("00-{trace}-{span:016x}-{flags}");
        let request_id = given.map_or_else(|| format!("{random:032x}").into(), Arc::from);
        Self { request_id, traceparent }
    }
}

/// The trace id and flags of a `traceparent` (W3C Trace Context, level 1, section 3.2).
fn trace_and_flags(header: &str) -> Option<(&str, &str)> {
    let mut parts = header.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let nonzero = |text: &str| text.bytes().any(|b| b != b'0');
    let valid = hex(version, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none())
        && hex(trace, 32)
        && nonzero(trace)
        && hex(span, 16)
        && nonzero(span)
        && hex(flags, 2);
    valid.then_some((trace, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn ids(headers: &[(&'static str, &str)]) -> RequestIds {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        RequestIds::of(&headers, 0x1234)
    }

    #[test]
    fn ids_of_the_caller_are_kept() {
        let ids = ids(&[("x-request-id", "abc-1"), ("traceparent", PARENT)]);
        assert_eq!(&*ids.request_id, "abc-1");
        assert!(ids.traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert!(ids.traceparent.ends_with("-01"));
        assert_ne!(ids.traceparent, PARENT);
    }

    #[test]
    fn ids_that_could_forge_a_log_line_are_replaced() {
        for bad in ["", "a b", &"x".repeat(129)] {
            assert_eq!(&*ids(&[("x-request-id", bad)]).request_id, format!("{:032x}", 0x1234));
        }
        for bad in
            ["00-0-0-0", &PARENT.to_uppercase(), &format!("{PARENT}-x"), &PARENT.replace('b', "g")]
        {
            assert!(ids(&[("traceparent", bad)]).traceparent.contains("1234"), "{bad}");
        }
    }
}
