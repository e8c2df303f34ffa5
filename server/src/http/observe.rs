//! What is done around every request: ids, its span, metrics, the log of slow ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::trace::{SpanContext, SpanKind};
use prometheus::IntGauge;

use super::AppState;
use super::trace::{self, RequestIds, with_ids};
use crate::cache::CacheStatus;
use crate::search::Timings;
use crate::spans::{self, Span};

/// How a search was answered, as the handler leaves it with the response.
#[derive(Clone, Copy)]
pub struct Searched {
    pub status: CacheStatus,
    pub timings: Timings,
}

pub async fn observe(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = method_label(request.method());
    let parent = trace::parent(request.headers());
    let span = span(method, route.as_ref(), parent.as_ref());
    let ids = RequestIds::of(request.headers(), parent.as_ref(), span.context(), rand::random());
    let ids = Arc::new(ids);
    let active = Active::enter(&state.metrics.http_active);
    let mut response = with_ids(Arc::clone(&ids), span.run(next.run(request))).await;
    drop(active);

    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let took = started.elapsed();
    let status = response.status();
    let labels = [method, route, status.as_str()];
    state.metrics.http_duration.with_label_values(&labels).observe(took.as_secs_f64());
    if span.is_recorded() {
        state.metrics.exemplars.note(&labels, took.as_secs_f64(), ids.span.trace_id());
        span.set("sextant.request_id", ids.request_id.clone());
        span.set("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.failed("server");
        }
    }
    let slow = Duration::from_millis(state.config.slow_request_ms);
    if took > slow && !slow.is_zero() {
        log_slow(method, route, &response, took, &ids);
    }
    let traceparent = spans::traceparent(&ids.span);
    let headers = response.headers_mut();
    for (name, value) in [("x-request-id", &ids.request_id), ("traceparent", &traceparent)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn span(method: &'static str, route: Option<&MatchedPath>, parent: Option<&SpanContext>) -> Span {
    if !spans::are_recorded() {
        return Span::none();
    }
    let route = route.map_or("none", MatchedPath::as_str);
    let span = Span::root(format!("{method} {route}"), SpanKind::Server, parent);
    span.set("http.request.method", method);
    span.set("http.route", route.to_owned());
    span
}

/// What took long, and of a search in which stage. Never its text.
fn log_slow(method: &str, route: &str, response: &Response, took: Duration, ids: &RequestIds) {
    let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
    let searched = response.extensions().get::<Searched>();
    let stage = |of: fn(&Timings) -> Option<Duration>| {
        searched.and_then(|searched| of(&searched.timings)).map(ms)
    };
    tracing::info!(
        method,
        route,
        status = response.status().as_u16(),
        took_ms = ms(took),
        cache = searched.map(|searched| searched.status.as_str()),
        embed_ms = stage(|timings| timings.embed),
        index_ms = stage(|timings| timings.index),
        documents_ms = stage(|timings| timings.documents),
        request_id = ids.request_id,
        trace_id = ids.trace_id(),
        "slow request",
    );
}

/// A fixed set, as clients may send any word as a method.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// Counts a request as active, also when its client leaves and the future is dropped.
struct Active(IntGauge);

impl Active {
    fn enter(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}
