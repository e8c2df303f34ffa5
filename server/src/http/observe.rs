//! What is done around every request: ids, metrics, the log of slow ones.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use prometheus::IntGauge;

use super::AppState;
use super::trace::{RequestIds, with_request_id};

const SLOW: Duration = Duration::from_secs(1);

pub async fn observe(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = method_label(request.method());
    let ids = RequestIds::of(request.headers(), rand::random());
    let active = Active::enter(&state.metrics.http_active);
    let mut response = with_request_id(ids.request_id.clone(), next.run(request)).await;
    drop(active);

    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let took = started.elapsed();
    state
        .metrics
        .http_duration
        .with_label_values(&[method, route, response.status().as_str()])
        .observe(took.as_secs_f64());
    if took > SLOW {
        tracing::info!(
            method,
            route,
            status = response.status().as_u16(),
            took_ms = took.as_millis() as u64,
            request_id = &*ids.request_id,
            "slow request",
        );
    }
    let headers = response.headers_mut();
    for (name, value) in [("x-request-id", &*ids.request_id), ("traceparent", &*ids.traceparent)] {
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
