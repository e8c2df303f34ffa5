//! What the operator counts of itself.

use std::task::{Context, Poll};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tower::{Layer, Service};

const OF_EACH: [&str; 2] = ["namespace", "search_deployment"];

#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    pub reconciles: IntCounter,
    /// By reason.
    pub failures: IntCounterVec,
    pub duration: Histogram,
    /// From the first change of an object to all pods being ready.
    pub time_to_ready: Histogram,
    /// By verb and, where there is an answer, its code.
    pub api_calls: IntCounterVec,
    /// By verb: create, update, grow, delete.
    pub changes: IntCounterVec,
    pub is_leader: IntGauge,
    /// Reconciliations that wait for their turn, as far as they were counted.
    pub queue: IntGauge,
    pub under_way: IntGauge,
    /// Of each SearchDeployment, by namespace and name.
    available: IntGaugeVec,
    synchronous: IntGaugeVec,
    certificate_ends: IntGaugeVec,
}

/// What there is to tell of a SearchDeployment; nothing of what it does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Whether searches are answered, once they were.
    pub available: Option<bool>,
    /// Whether its Postgres is to be synchronous.
    pub synchronous: Option<bool>,
    /// When the certificate that the operator made ends, in seconds since 1970.
    pub certificate_ends: Option<i64>,
}

impl Metrics {
    /// # Panics
    /// When a metric is defined twice.
    #[expect(clippy::expect_used, reason = "names are constants")]
    pub fn new() -> Self {
        let name = |name: &str| format!("sextant_operator_{name}");
        let counter = |of: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name(of), help), labels).expect("a counter")
        };
        let histogram = |of: &str, help: &str, buckets: Vec<f64>| {
            Histogram::with_opts(HistogramOpts::new(name(of), help).buckets(buckets))
                .expect("a histogram")
        };
        let gauge = |of: &str, help: &str| IntGauge::new(name(of), help).expect("a gauge");
        let of_each = |of: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name(of), help), &OF_EACH).expect("a gauge")
        };
        let metrics = Self {
            registry: Registry::new(),
            reconciles: IntCounter::new(name("reconciles_total"), "Reconciliations that ended.")
                .expect("a counter"),
            failures: counter(
                "reconcile_failures_total",
                "Reconciliations that failed.",
                &["reason"],
            ),
            duration: histogram(
                "reconcile_duration_seconds",
                "How long a reconciliation took.",
                vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0],
            ),
            time_to_ready: histogram(
                "time_to_ready_seconds",
                "From the first change of an object to all pods being ready.",
                vec![5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0],
            ),
            api_calls: counter(
                "api_calls_total",
                "Requests to the Kubernetes API; code 0: no answer.",
                &["verb", "code"],
            ),
            changes: counter("changes_total", "Changes made to objects.", &["verb"]),
            is_leader: gauge("is_leader", "Whether this operator makes the changes."),
            queue: gauge("queue_depth", "SearchDeployments that wait to be reconciled."),
            under_way: gauge("reconciles_under_way", "Reconciliations under way."),
            available: of_each("available", "Whether searches are answered, once they were."),
            synchronous: of_each(
                "postgres_synchronous",
                "Whether the spec asks for a synchronous replica of Postgres.",
            ),
            certificate_ends: of_each(
                "certificate_expiry_timestamp_seconds",
                "When the certificate of Postgres ends.",
            ),
        };
        let all: [Box<dyn prometheus::core::Collector>; 12] = [
            Box::new(metrics.reconciles.clone()),
            Box::new(metrics.failures.clone()),
            Box::new(metrics.duration.clone()),
            Box::new(metrics.time_to_ready.clone()),
            Box::new(metrics.api_calls.clone()),
            Box::new(metrics.changes.clone()),
            Box::new(metrics.is_leader.clone()),
            Box::new(metrics.queue.clone()),
            Box::new(metrics.under_way.clone()),
            Box::new(metrics.available.clone()),
            Box::new(metrics.synchronous.clone()),
            Box::new(metrics.certificate_ends.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector).expect("each name once");
        }
        metrics
    }

    /// Of a SearchDeployment; what is not told goes.
    pub fn tell(&self, namespace: &str, name: &str, told: Told) {
        let labels = [namespace, name];
        for (gauge, value) in [
            (&self.available, told.available.map(i64::from)),
            (&self.synchronous, told.synchronous.map(i64::from)),
            (&self.certificate_ends, told.certificate_ends),
        ] {
            match value {
                Some(value) => gauge.with_label_values(&labels).set(value),
                // An error says that it was not there.
                None => drop(gauge.remove_label_values(&labels)),
            }
        }
    }

    /// Nothing is told any more: another operator does.
    pub fn tell_nothing(&self) {
        for gauge in [&self.available, &self.synchronous, &self.certificate_ends] {
            gauge.reset();
        }
    }

    /// In Prometheus's text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Fails only when the writer does, and a Vec does not.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts the requests of a client.
#[derive(Clone)]
pub struct CountCalls(pub Metrics);

impl<S> Layer<S> for CountCalls {
    type Service = CountingService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountingService { inner, metrics: self.0.clone() }
    }
}

#[derive(Clone)]
pub struct CountingService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B, R> Service<http::Request<B>> for CountingService<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let verb = verb(&request);
        let calls = self.metrics.api_calls.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            calls.with_label_values(&[verb, &code.to_string()]).inc();
            answer
        })
    }
}

/// As Kubernetes calls it, for what this operator asks.
fn verb<B>(request: &http::Request<B>) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    match *request.method() {
        http::Method::GET if query.contains("watch=") => "watch",
        http::Method::GET => "get",
        http::Method::POST => "create",
        http::Method::PATCH => "patch",
        http::Method::PUT => "update",
        http::Method::DELETE => "delete",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_deployment_does_not_have_is_not_told_and_goes_with_it() {
        let metrics = Metrics::new();
        let told = Told { available: Some(false), synchronous: Some(true), certificate_ends: None };
        metrics.tell("apps", "shop", told);
        let text = metrics.text();
        let of = r#"{namespace="apps",search_deployment="shop"}"#;
        assert!(text.contains(&format!("sextant_operator_available{of} 0")), "{text}");
        assert!(text.contains(&format!("sextant_operator_postgres_synchronous{of} 1")), "{text}");
        assert!(!text.contains("certificate_expiry_timestamp_seconds{"), "{text}");
        metrics.tell("apps", "shop", Told::default());
        assert!(!metrics.text().contains("shop"));
        metrics.tell("apps", "shop", told);
        metrics.tell_nothing();
        assert!(!metrics.text().contains("shop"));
    }
}
