//! Every metric of the server, registered once. Base units, `_total` for counters, labels from
//! fixed sets or names that the server admitted; never the text of a query.

mod exemplars;
pub mod openmetrics;

use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use exemplars::Exemplars;

const HTTP_DURATION: &str = "http_server_request_duration_seconds";

/// From a cache hit to a slow import, in seconds.
const DURATION_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
const SIZE_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const TOKEN_BUCKETS: &[f64] =
    &[8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:ty = $make:expr;)*) => {
        /// Handles to the metrics; cheap to clone parts of.
        pub struct Metrics {
            registry: Registry,
            /// Of `http_duration`.
            pub exemplars: Exemplars,
            $($(#[doc = $doc])+ pub $field: $kind,)*
        }

        impl Metrics {
            /// # Panics
            /// Never: every name below is valid and used once, and a test makes them all.
            #[allow(clippy::expect_used)]
            pub fn new() -> Self {
                let registry = Registry::new();
                $(
                    let help = concat!($($doc),+).trim();
                    let $field: $kind = ($make)(help).expect("a valid metric");
                    registry.register(Box::new($field.clone())).expect("a unique metric");
                )*
                #[cfg(target_os = "linux")]
                registry
                    .register(Box::new(
                        prometheus::process_collector::ProcessCollector::for_self(),
                    ))
                    .expect("unique process metrics");
                Self { registry, exemplars: Exemplars::new(DURATION_BUCKETS), $($field,)* }
            }
        }
    };
}

metrics! {
    /// Time from the head of a request to the head of its answer.
    http_duration: HistogramVec = |help| HistogramVec::new(
        HistogramOpts::new(HTTP_DURATION, help)
            .buckets(DURATION_BUCKETS.to_vec()),
        &["method", "route", "status"]);
    /// Requests being answered now.
    http_active: IntGauge = |help| IntGauge::new("sextant_http_active_requests", help);
    /// Time that each stage of a search took.
    search_stage: HistogramVec = |help| HistogramVec::new(
        HistogramOpts::new("sextant_search_stage_duration_seconds", help)
            .buckets(DURATION_BUCKETS.to_vec()),
        &["stage"]);
    /// Cache look-ups by tier (results, embeddings) and result (hit, miss, coalesced, bypass,
    /// stale).
    cache_requests: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_cache_requests_total", help), &["tier", "result"]);
    /// Requests to Redis by kind (results, embeddings, stale, write, events, or the operation that
    /// failed) and result (hit, miss, unreadable, invalidated, skipped, written, dropped, heard,
    /// lost, error).
    redis_requests: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_redis_requests_total", help), &["kind", "result"]);
    /// Time of a trip to Redis by operation (`look_up`, stale, write,
    /// invalidate, raise, `read_again`).
    redis_duration: HistogramVec = |help| HistogramVec::new(
        HistogramOpts::new("sextant_redis_duration_seconds", help)
            .buckets(DURATION_BUCKETS.to_vec()),
        &["operation"]);
    /// 1 while Redis answers and tells of invalidations.
    redis_up: IntGauge = |help| IntGauge::new("sextant_redis_up", help);
    /// Answers that were old because a part of the system did not answer, by part (index, embedder).
    degraded_responses: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_degraded_responses_total", help), &["reason"]);
    /// Bytes held by a cache tier.
    cache_bytes: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_cache_bytes", help), &["tier"]);
    /// Entries held by a cache tier.
    cache_entries: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_cache_entries", help), &["tier"]);
    /// Entries that a cache tier gave up since it was full.
    cache_evictions: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_cache_evictions_total", help), &["tier"]);
    /// Cache invalidations by scope (all, collection, query, write).
    cache_invalidations: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_cache_invalidations_total", help), &["scope"]);
    /// Texts in a batch given to the model.
    embed_batch_size: Histogram = |help| Histogram::with_opts(
        HistogramOpts::new("sextant_embed_batch_size", help).buckets(SIZE_BUCKETS.to_vec()));
    /// Tokens in a batch given to the model, padding included.
    embed_batch_tokens: Histogram = |help| Histogram::with_opts(
        HistogramOpts::new("sextant_embed_batch_tokens", help).buckets(TOKEN_BUCKETS.to_vec()));
    /// Time that the model took for a batch.
    embed_duration: Histogram = |help| Histogram::with_opts(
        HistogramOpts::new("sextant_embed_duration_seconds", help)
            .buckets(DURATION_BUCKETS.to_vec()));
    /// Share of padding among the tokens of the last batch, 0 to 1.
    embed_padding_ratio: Gauge = |help| Gauge::new("sextant_embed_padding_ratio", help);
    /// Tokens given to the model by kind (text, padding).
    embed_tokens: CounterVec = |help| CounterVec::new(
        Opts::new("sextant_embed_tokens_total", help), &["kind"]);
    /// Texts by outcome (embedded, joined, expired, abandoned, refused, failed).
    embed_texts: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_embed_texts_total", help), &["outcome"]);
    /// Batches that were embedded in halves, since the device had no memory for them.
    embed_batches_halved: IntCounter = |help| IntCounter::new(
        "sextant_embed_batches_halved_total", help);
    /// Texts that wait for the model.
    embed_queue_depth: IntGauge = |help| IntGauge::new("sextant_embed_queue_depth", help);
    /// How long the oldest waiting text has waited.
    embed_queue_oldest_age: Gauge = |help| Gauge::new(
        "sextant_embed_queue_oldest_age_seconds", help);
    /// Requests to embedding servers by outcome (ok, failed, late, overloaded, rejected), and those
    /// sent once more (retried, hedged) and the second ones that came first (`hedge_won`).
    remote_requests: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_remote_embedder_requests_total", help), &["outcome"]);
    /// Whether an embedding server is used: 1, or 0 when it is down or has another model.
    remote_endpoint_up: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_remote_embedder_up", help), &["endpoint"]);
    /// Documents by collection.
    documents: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_documents", help), &["collection"]);
    /// Documents that workers took, by outcome (indexed, failed, set-aside).
    worker_documents: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_worker_documents_total", help), &["outcome"]);
    /// Documents in the outbox by state (waiting, set-aside).
    outbox_documents: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_outbox_documents", help), &["state"]);
    /// Age of the oldest write that is not indexed yet.
    update_lag: Gauge = |help| Gauge::new("sextant_update_lag_seconds", help);
    /// Query counts that were dropped because too many distinct queries waited to be stored.
    popularity_dropped: Counter = |help| Counter::new(
        "sextant_popularity_dropped_total", help);
    /// 1 while a server is left alone since it failed several times in a row, by part (index, cache)
    /// and place in the list of its servers.
    breaker_open: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_breaker_open", help), &["part", "server"]);
    /// Calls to Milvus by result (ok, failed, unavailable, refused while it is left alone).
    milvus_requests: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_milvus_requests_total", help), &["result"]);
    /// Reads of Milvus made once more while the first one had no answer.
    milvus_hedges: IntCounter = |help| IntCounter::new("sextant_milvus_hedges_total", help);
    /// Answers of Milvus that lacked documents it was known to have.
    milvus_short_answers: Counter = |help| Counter::new(
        "sextant_milvus_short_answers_total", help);
    /// Documents that the index did not have as they are stored, and that workers index again.
    index_differences: IntCounter = |help| IntCounter::new(
        "sextant_index_differences_total", help);
    /// Work in the background that failed and is tried again, by task.
    background_failures: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_background_failures_total", help), &["task"]);
    /// Whether a Postgres node accepts writes (role primary) or may be read from (role replica).
    postgres_usable: IntGaugeVec = |help| IntGaugeVec::new(
        Opts::new("sextant_postgres_usable", help), &["node", "role"]);
    /// How often a Postgres node was given up because a statement found it gone.
    postgres_lost: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_postgres_lost_total", help), &["node"]);
    /// Spans of traces by result (sent, failed), when there is a collector of traces.
    spans: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("sextant_spans_total", help), &["result"]);
    /// Always 1; the labels tell version, model and device.
    build_info: GaugeVec = |help| GaugeVec::new(
        Opts::new("sextant_build_info", help), &["version", "model", "model_hash", "device"]);
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The text format of OpenMetrics, with exemplars.
    pub fn encode_open(&self) -> String {
        openmetrics::encode(&self.registry.gather(), HTTP_DURATION, &self.exemplars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_ours_has_the_prefix_and_counters_end_in_total() {
        let metrics = Metrics::new();
        metrics.cache_requests.with_label_values(&["results", "hit"]).inc();
        let text = metrics.encode().unwrap();
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            assert!(
                ["sextant_", "process_", "http_server_"].iter().any(|p| name.starts_with(p)),
                "{name}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        }
    }
}
