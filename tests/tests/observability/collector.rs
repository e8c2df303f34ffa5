//! A collector of traces: takes what the server sends (OTLP over HTTP) and keeps it.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

type Spans = Arc<Mutex<Vec<Span>>>;

pub struct Collector {
    pub url: String,
    spans: Spans,
}

impl Collector {
    /// Ends with the test's runtime.
    pub async fn start() -> Self {
        let spans = Spans::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, spans }
    }

    /// Spans of a trace, by when they began.
    pub fn of(&self, trace: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        let mut of: Vec<_> =
            spans.iter().filter(|it| hex(&it.trace_id) == trace).cloned().collect();
        of.sort_by_key(|span| span.start_time_unix_nano);
        of
    }

    pub fn all(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

async fn take(State(spans): State<Spans>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let of = request.resource_spans.into_iter().flat_map(|it| it.scope_spans);
    spans.lock().unwrap().extend(of.flat_map(|it| it.spans));
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The only span of a name.
#[track_caller]
pub fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut of = spans.iter().filter(|span| span.name == name);
    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
    let first = of.next().unwrap_or_else(|| panic!("no {name} among {names:?}"));
    assert!(of.next().is_none(), "more than one {name} among {names:?}");
    first
}

/// An attribute that is a text; empty when there is none.
pub fn attribute<'a>(span: &'a Span, key: &str) -> &'a str {
    let value = span.attributes.iter().find(|it| it.key == key).and_then(|it| it.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        _ => "",
    }
}
