//! Spans: what a request took, stage by stage, told to a collector of traces.
//!
//! Where no collector is configured, or a trace is not to be recorded, nothing is done beyond a look
//! at what is there.
//!
//! # Source
//! OpenTelemetry 1.x: OTLP over HTTP, parent-based sampling, and the attribute names of its semantic
//! conventions; those that begin with `sextant.` are our own.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use pin_project_lite::pin_project;
use prometheus::IntCounter;

use crate::config::TracesConfig;
use crate::metrics::Metrics;

const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the last spans, when the process ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Set once, when the process has a collector.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends spans until it is closed.
pub struct Export(SdkTracerProvider);

/// Begins to record spans and to send them; `None` where no collector is configured.
///
/// # Errors
/// When the collector's address or one of the variables `OTEL_…` is not usable.
pub fn start(
    config: &TracesConfig,
    metrics: &Metrics,
) -> Result<Option<Export>, ExporterBuildError> {
    if config.endpoint.is_empty() {
        return Ok(None);
    }
    // Fails only when a provider is set already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')))
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let counted = |result| metrics.spans.with_label_values(&[result]);
    let exporter = Counted { exporter, sent: counted("sent"), failed: counted("failed") };
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.name", "sextant-server"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance()))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio))))
        .with_resource(resource)
        .build();
    // A second one in the same process would be ignored: there is one `serve`.
    let _ = TRACER.set(provider.tracer("sextant-server"));
    Ok(Some(Export(provider)))
}

/// The pod, or what else the host is called.
fn instance() -> String {
    std::env::var("HOSTNAME").unwrap_or_default()
}

impl Export {
    /// Sends what is left, for a few seconds at most.
    pub async fn close(self) {
        let closed = tokio::task::spawn_blocking(move || {
            // Spans that were lost are counted, and the library logs why.
            let _ = self.0.shutdown_with_timeout(CLOSE_TIMEOUT);
        });
        // It fails when the closing panicked, and there is nothing more to send then.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT * 2, closed).await;
    }
}

/// Counts the spans that were sent, and those that could not be.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    sent: IntCounter,
    failed: IntCounter,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        if result.is_ok() { &self.sent } else { &self.failed }.inc_by(spans);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Something that is under way, or nothing. It ends when it is dropped.
pub struct Span(Option<Context>);

impl Span {
    pub fn none() -> Self {
        Self(None)
    }

    /// Of something that nobody in this process waits for: a request, whose caller may have named its
    /// own span, or work in the background. Whether it is recorded is decided here.
    pub fn root(name: String, kind: SpanKind, parent: Option<&SpanContext>) -> Self {
        let Some(tracer) = TRACER.get() else { return Self(None) };
        let parent = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(parent.clone())
        });
        Self::start(tracer, tracer.span_builder(name).with_kind(kind), &parent)
    }

    /// Of a part of what this task does; none where that is not recorded.
    pub fn child(name: &'static str, kind: SpanKind) -> Self {
        match (TRACER.get(), current()) {
            (Some(tracer), Some(_)) => {
                let builder = tracer.span_builder(name).with_kind(kind);
                Self::start(tracer, builder, &Context::current())
            }
            _ => Self(None),
        }
    }

    /// Of what is done for several at once since a time: a part of the first one's trace, with links
    /// to all.
    pub fn batch(name: &'static str, of: Vec<SpanContext>, since: SystemTime) -> Self {
        let (Some(tracer), Some(first)) = (TRACER.get(), of.first()) else { return Self(None) };
        let parent = Context::new().with_remote_span_context(first.clone());
        let links = of.into_iter().map(|of| Link::new(of, Vec::new(), 0)).collect();
        let builder = tracer.span_builder(name).with_start_time(since).with_links(links);
        Self::start(tracer, builder, &parent)
    }

    fn start(tracer: &SdkTracer, builder: SpanBuilder, parent: &Context) -> Self {
        Self(Some(parent.with_span(builder.start_with_context(tracer, parent))))
    }

    /// Runs a part of it: what that starts are its children.
    pub fn run<F: Future>(&self, part: F) -> Run<F> {
        Run { context: self.0.clone(), part }
    }

    /// Runs all of it, and ends. What failed is told in a word for its outcome: what an error says may
    /// hold a text.
    pub fn call<F, K>(self, call: F, failure: K) -> Call<F, K>
    where
        F: Future,
        K: FnOnce(&F::Output) -> Option<&'static str>,
    {
        Call { run: self.run(call), failure: Some(failure) }
    }

    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    pub fn count(&self, key: &'static str, number: usize) {
        self.set(key, i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// It failed, in one of a few ways.
    pub fn failed(&self, kind: &'static str) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(kind));
            context.span().set_attribute(KeyValue::new("error.type", kind));
        }
    }

    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().is_recording())
    }

    /// Its place in its trace, recorded or not.
    pub fn context(&self) -> Option<SpanContext> {
        self.0.as_ref().map(|context| context.span().span_context().clone())
    }
}

pin_project! {
    /// A part of something that may be recorded. One type for both cases: as a choice between two, all of
    /// the part's code would be compiled twice.
    pub struct Run<F> {
        context: Option<Context>,
        #[pin]
        part: F,
    }
}

impl<F: Future> Future for Run<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _guard = this.context.clone().map(Context::attach);
        this.part.poll(task)
    }
}

pin_project! {
    /// All of something that may be recorded. As an `async fn` it would be twice as large.
    pub struct Call<F, K> {
        #[pin]
        run: Run<F>,
        failure: Option<K>,
    }
}

impl<F, K> Future for Call<F, K>
where
    F: Future,
    K: FnOnce(&F::Output) -> Option<&'static str>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let outcome = std::task::ready!(this.run.as_mut().poll(task));
        let span = Span(this.run.project().context.take());
        if let Some(kind) = this.failure.take().and_then(|failure| failure(&outcome)) {
            span.failed(kind);
        }
        Poll::Ready(outcome)
    }
}

/// Whether this process has a collector.
pub fn are_recorded() -> bool {
    TRACER.get().is_some()
}

/// The span that this task is in, where it is recorded.
pub fn current() -> Option<SpanContext> {
    TRACER.get()?;
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        context.is_sampled().then(|| context.clone())
    })
}

/// Adds to the span that this task is in.
pub fn note(key: &'static str, value: impl Into<Value>) {
    if current().is_some() {
        Context::map_current(|context| context.span().set_attribute(KeyValue::new(key, value)));
    }
}

/// A span's place as the header `traceparent` (W3C Trace Context, section 3.2).
pub fn traceparent(span: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_nothing_is_recorded() {
        let root = Span::root("GET /".to_owned(), SpanKind::Server, None);
        assert!(root.context().is_none());
        assert!(Span::child("embed", SpanKind::Internal).context().is_none());
        assert!(current().is_none());
        let of = vec![SpanContext::NONE];
        assert!(Span::batch("batch", of, SystemTime::now()).context().is_none());
        let done = futures::executor::block_on(root.run(async { 7 }));
        assert_eq!(done, 7);
    }
}
