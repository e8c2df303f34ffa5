//! The dashboards.

use crate::{Dashboard, Kind, Panel, Row, Unit};

pub fn all() -> &'static [Dashboard] {
    &[OVERVIEW, SEARCH, EMBEDDING, STORES, OPERATOR]
}

const OVERVIEW: Dashboard = Dashboard {
    name: "overview",
    title: "Overview",
    of_deployment: true,
    rows: &[
        Row {
            title: "Service",
            panels: &[
                Panel {
                    title: "Searches are answered",
                    about: "By what the operator sees of the pods, and as long as not most searches fail.",
                    unit: Unit::YesNo,
                    kind: Kind::Stat,
                    queries: &[(r#"min(sextant:available{$chosen})"#, "")],
                },
                Panel {
                    title: "Uptime, 30 days",
                    about: "",
                    unit: Unit::Share,
                    kind: Kind::Stat,
                    queries: &[(r#"min(sextant:uptime:ratio_30d{$chosen})"#, "")],
                },
                Panel {
                    title: "Mean time to failure",
                    about: "Thirty days where there was no failure in them.",
                    unit: Unit::Seconds,
                    kind: Kind::Stat,
                    queries: &[(r#"min(sextant:mttf_seconds{$chosen}) or vector(2592000)"#, "")],
                },
                Panel {
                    title: "Mean time to recovery",
                    about: "Zero where there was no failure.",
                    unit: Unit::Seconds,
                    kind: Kind::Stat,
                    queries: &[(r#"max(sextant:mttr_seconds{$chosen}) or vector(0)"#, "")],
                },
                Panel {
                    title: "Servers",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Stat,
                    queries: &[(r#"count(sextant_build_info{$chosen,component="api"})"#, "")],
                },
                Panel {
                    title: "Alerts",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Stat,
                    queries: &[(r#"count(ALERTS{$chosen,alertstate="firing"}) or vector(0)"#, "")],
                },
            ],
        },
        Row {
            title: "Searches",
            panels: &[
                Panel {
                    title: "Searches",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (status) (rate(http_server_request_duration_seconds_count{$chosen,route="/v1/collections/{collection}/search"}[5m]))"#,
                        "{{status}}",
                    )],
                },
                Panel {
                    title: "Time of a search",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(http_server_request_duration_seconds_bucket{$chosen,route="/v1/collections/{collection}/search"}[5m])))"#,
                            "p50",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(http_server_request_duration_seconds_bucket{$chosen,route="/v1/collections/{collection}/search"}[5m])))"#,
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Share that fails",
                    about: "",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sextant:search_errors:ratio_rate5m{$chosen}"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
            ],
        },
        Row {
            title: "Cache and cost",
            panels: &[
                Panel {
                    title: "Hit rate",
                    about: "",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(r#"sextant:cache_hits:ratio_rate5m{$chosen}"#, "{{tier}}")],
                },
                Panel {
                    title: "Embeddings saved",
                    about: "Searches whose query was not embedded, since a cache or another search had it.",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sextant:embeddings_saved:ratio_rate5m{$chosen}"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "vCPU-hours for a million searches",
                    about: "Of servers and embedders, whatever else they do.",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sextant:vcpu_seconds_per_search{$chosen} * 1e6 / 3600"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "Memory of a server",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[(r#"process_resident_memory_bytes{$chosen}"#, "{{pod}}")],
                },
                Panel {
                    title: "Memory of the caches",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[(r#"sum by (tier) (sextant_cache_bytes{$chosen})"#, "{{tier}}")],
                },
                Panel {
                    title: "Snapshots of vectors",
                    about: "Disk used by snapshots of vectors: there are none yet, and no series of them.",
                    unit: Unit::Bytes,
                    kind: Kind::Text,
                    queries: &[],
                },
            ],
        },
    ],
};

const SEARCH: Dashboard = Dashboard {
    name: "search",
    title: "Search and cache",
    of_deployment: true,
    rows: &[
        Row {
            title: "Stages",
            panels: &[
                Panel {
                    title: "Stages, p50",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"histogram_quantile(0.5, sum by (le, stage) (rate(sextant_search_stage_duration_seconds_bucket{$chosen}[5m])))"#,
                        "{{stage}}",
                    )],
                },
                Panel {
                    title: "Stages, p99",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"histogram_quantile(0.99, sum by (le, stage) (rate(sextant_search_stage_duration_seconds_bucket{$chosen}[5m])))"#,
                        "{{stage}}",
                    )],
                },
                Panel {
                    title: "Requests being answered",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (sextant_http_active_requests{$chosen})"#,
                        "{{pod}}",
                    )],
                },
            ],
        },
        Row {
            title: "Near tier",
            panels: &[
                Panel {
                    title: "Answers",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (result) (rate(sextant_cache_requests_total{$chosen,tier="results"}[5m]))"#,
                        "{{result}}",
                    )],
                },
                Panel {
                    title: "Embeddings of queries",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (result) (rate(sextant_cache_requests_total{$chosen,tier="embeddings"}[5m]))"#,
                        "{{result}}",
                    )],
                },
                Panel {
                    title: "Entries",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(r#"sum by (tier) (sextant_cache_entries{$chosen})"#, "{{tier}}")],
                },
                Panel {
                    title: "Evictions",
                    about: "Since a tier was full.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (tier) (rate(sextant_cache_evictions_total{$chosen}[5m]))"#,
                        "{{tier}}",
                    )],
                },
                Panel {
                    title: "Invalidations",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (scope) (rate(sextant_cache_invalidations_total{$chosen}[5m])) or on () vector(0)"#,
                        "{{scope}}",
                    )],
                },
                Panel {
                    title: "Old answers",
                    about: "Given since a part did not answer.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (reason) (rate(sextant_degraded_responses_total{$chosen}[5m])) or on () vector(0)"#,
                        "{{reason}}",
                    )],
                },
            ],
        },
        Row {
            title: "Far tier",
            panels: &[
                Panel {
                    title: "Redis answers",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Stat,
                    queries: &[(r#"min(sextant_redis_up{$chosen})"#, "")],
                },
                Panel {
                    title: "Requests to Redis",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (kind, result) (rate(sextant_redis_requests_total{$chosen}[5m]))"#,
                        "{{kind}} {{result}}",
                    )],
                },
                Panel {
                    title: "Time of a trip to Redis, p99",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"histogram_quantile(0.99, sum by (le, operation) (rate(sextant_redis_duration_seconds_bucket{$chosen}[5m])))"#,
                        "{{operation}}",
                    )],
                },
            ],
        },
    ],
};

const EMBEDDING: Dashboard = Dashboard {
    name: "embedding",
    title: "Embedding",
    of_deployment: true,
    rows: &[
        Row {
            title: "Texts",
            panels: &[
                Panel {
                    title: "Texts",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (outcome) (rate(sextant_embed_texts_total{$chosen}[5m]))"#,
                        "{{outcome}}",
                    )],
                },
                Panel {
                    title: "Tokens",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (kind) (rate(sextant_embed_tokens_total{$chosen}[5m]))"#,
                        "{{kind}}",
                    )],
                },
                Panel {
                    title: "Oldest waiting text",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"max by (pod) (sextant_embed_queue_oldest_age_seconds{$chosen})"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Waiting texts",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(r#"sum by (pod) (sextant_embed_queue_depth{$chosen})"#, "{{pod}}")],
                },
            ],
        },
        Row {
            title: "Batches",
            panels: &[
                Panel {
                    title: "Time of a batch",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(sextant_embed_duration_seconds_bucket{$chosen}[5m])))"#,
                            "p50",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(sextant_embed_duration_seconds_bucket{$chosen}[5m])))"#,
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Texts in a batch",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(sextant_embed_batch_size_bucket{$chosen}[5m])))"#,
                            "p50",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(sextant_embed_batch_size_bucket{$chosen}[5m])))"#,
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Tokens in a batch",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(sextant_embed_batch_tokens_bucket{$chosen}[5m])))"#,
                            "p50",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(sextant_embed_batch_tokens_bucket{$chosen}[5m])))"#,
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Padding",
                    about: "",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(
                        r#"max by (pod) (sextant_embed_padding_ratio{$chosen})"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Batches halved",
                    about: "Since a GPU had no memory for them.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (rate(sextant_embed_batches_halved_total{$chosen}[5m]))"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Devices",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"count by (device, model) (sextant_build_info{$chosen})"#,
                        "{{device}} {{model}}",
                    )],
                },
            ],
        },
    ],
};

const STORES: Dashboard = Dashboard {
    name: "stores",
    title: "Stores",
    of_deployment: true,
    rows: &[
        Row {
            title: "Postgres",
            panels: &[
                Panel {
                    title: "Primaries",
                    about: "One, but for the seconds of a failover.",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (namespace, search_deployment) (patroni_primary{$chosen})"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "Replicas behind",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[(
                        r#"max by (namespace, search_deployment) (patroni_xlog_location{$chosen}) - on (namespace, search_deployment) group_right () (patroni_xlog_replayed_location{$chosen} > 0)"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Synchronous replicas",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (namespace, search_deployment) (patroni_sync_standby{$chosen})"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "As the servers see it",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Series,
                    queries: &[(
                        r#"min by (node, role) (sextant_postgres_usable{$chosen})"#,
                        "{{node}} {{role}}",
                    )],
                },
            ],
        },
        Row {
            title: "Writes",
            panels: &[
                Panel {
                    title: "Oldest write that is not searchable",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(r#"max(sextant_update_lag_seconds{$chosen})"#, "")],
                },
                Panel {
                    title: "Outbox",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"max by (state) (sextant_outbox_documents{$chosen})"#,
                        "{{state}}",
                    )],
                },
                Panel {
                    title: "Documents that workers took",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (outcome) (rate(sextant_worker_documents_total{$chosen}[5m])) or on () vector(0)"#,
                        "{{outcome}}",
                    )],
                },
                Panel {
                    title: "Documents",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"max by (collection) (sextant_documents{$chosen})"#,
                        "{{collection}}",
                    )],
                },
            ],
        },
        Row {
            title: "Milvus",
            panels: &[
                Panel {
                    title: "Calls",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (result) (rate(sextant_milvus_requests_total{$chosen}[5m]))"#,
                        "{{result}}",
                    )],
                },
                Panel {
                    title: "Calls made once more",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (rate(sextant_milvus_hedges_total{$chosen}[5m]))"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Answers that lacked documents",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (rate(sextant_milvus_short_answers_total{$chosen}[5m]))"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Left alone",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Series,
                    queries: &[(
                        r#"max by (part, server) (sextant_breaker_open{$chosen})"#,
                        "{{part}} {{server}}",
                    )],
                },
            ],
        },
        // Of redis_exporter, where `cache.exporter` asks for it.
        Row {
            title: "Redis itself",
            panels: &[
                Panel {
                    title: "Memory of Redis",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[
                        (r#"redis_memory_used_bytes{$chosen}"#, "{{pod}} used"),
                        (r#"redis_memory_max_bytes{$chosen}"#, "{{pod}} at most"),
                    ],
                },
                Panel {
                    title: "Keys given up",
                    about: "Evicted since the memory was full, or expired since they were too old.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[
                        (r#"sum(rate(redis_evicted_keys_total{$chosen}[5m]))"#, "evicted"),
                        (r#"sum(rate(redis_expired_keys_total{$chosen}[5m]))"#, "expired"),
                    ],
                },
                Panel {
                    title: "Keys found",
                    about: "Of those that were asked for.",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (rate(redis_keyspace_hits_total{$chosen}[5m])) / (sum by (pod) (rate(redis_keyspace_hits_total{$chosen}[5m])) + sum by (pod) (rate(redis_keyspace_misses_total{$chosen}[5m])) > 0)"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Commands",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (rate(redis_commands_processed_total{$chosen}[5m]))"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Connections",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(r#"redis_connected_clients{$chosen}"#, "{{pod}}")],
                },
            ],
        },
        // Names as in 2.5 and 2.6, pkg/metrics: times are in milliseconds, and a request counts in
        // `total` beside its outcome.
        Row {
            title: "Milvus itself",
            panels: &[
                Panel {
                    title: "Time of a search in Milvus",
                    about: "As its proxies see it.",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(milvus_proxy_sq_latency_bucket{$chosen,query_type=~"search|hybrid_search"}[5m]))) / 1000"#,
                            "p50",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(milvus_proxy_sq_latency_bucket{$chosen,query_type=~"search|hybrid_search"}[5m]))) / 1000"#,
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Time of a write in Milvus, p99",
                    about: "As its proxies see it.",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"histogram_quantile(0.99, sum by (le, msg_type) (rate(milvus_proxy_mutation_latency_bucket{$chosen}[5m]))) / 1000"#,
                        "{{msg_type}}",
                    )],
                },
                Panel {
                    title: "Requests to Milvus",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (function_name, status) (rate(milvus_proxy_req_count{$chosen,status!="total"}[5m])) > 0"#,
                        "{{function_name}} {{status}}",
                    )],
                },
                Panel {
                    title: "Wait for a query node, p99",
                    about: "How long searches wait for their turn.",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"histogram_quantile(0.99, sum by (le, pod) (rate(milvus_querynode_sq_queue_latency_bucket{$chosen}[5m]))) / 1000"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Entities in memory",
                    about: "Each copy of one counts.",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (pod) (milvus_querynode_entity_num{$chosen})"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Memory of Milvus",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[(
                        r#"process_resident_memory_bytes{$chosen,component=~"milvus.*"}"#,
                        "{{pod}}",
                    )],
                },
            ],
        },
    ],
};

const OPERATOR: Dashboard = Dashboard {
    name: "operator",
    title: "Operator",
    of_deployment: false,
    rows: &[
        Row {
            title: "Reconciliation",
            panels: &[
                Panel {
                    title: "Leads",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Series,
                    queries: &[(r#"max by (pod) (sextant_operator_is_leader)"#, "{{pod}}")],
                },
                Panel {
                    title: "Reconciliations",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[
                        (r#"sum(rate(sextant_operator_reconciles_total[5m]))"#, "all"),
                        (
                            r#"sum by (reason) (rate(sextant_operator_reconcile_failures_total[5m])) or on () vector(0)"#,
                            "{{reason}}",
                        ),
                    ],
                },
                Panel {
                    title: "Time of one",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(sextant_operator_reconcile_duration_seconds_bucket[5m])))"#,
                            "p50",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(sextant_operator_reconcile_duration_seconds_bucket[5m])))"#,
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Waiting and under way",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[
                        (r#"sum(sextant_operator_queue_depth)"#, "waiting"),
                        (r#"sum(sextant_operator_reconciles_under_way)"#, "under way"),
                    ],
                },
                Panel {
                    title: "Calls to Kubernetes",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (verb, code) (rate(sextant_operator_api_calls_total[5m]))"#,
                        "{{verb}} {{code}}",
                    )],
                },
                Panel {
                    title: "Changes",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sum by (verb) (rate(sextant_operator_changes_total[5m]))"#,
                        "{{verb}}",
                    )],
                },
            ],
        },
        Row {
            title: "SearchDeployments",
            panels: &[
                Panel {
                    title: "Searches are answered",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sextant_operator_available"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "Time to ready, p99",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"histogram_quantile(0.99, sum by (le) (rate(sextant_operator_time_to_ready_seconds_bucket[1d])))"#,
                        "p99",
                    )],
                },
                Panel {
                    title: "Certificates end in",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        r#"sextant_operator_certificate_expiry_timestamp_seconds - time()"#,
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
            ],
        },
    ],
};
