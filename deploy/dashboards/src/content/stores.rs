//! Postgres, Milvus and Redis, as servers see them and as they see themselves.

use crate::{Dashboard, Kind, Panel, Row, Unit};

pub const STORES: Dashboard = Dashboard {
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
                        "sum by (namespace, search_deployment) (patroni_primary{$chosen})",
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "Replicas behind",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[(
                        "clamp_min(max by (namespace, search_deployment) (patroni_xlog_location{$chosen}) - on (namespace, search_deployment) group_right () (patroni_xlog_replayed_location{$chosen} > 0), 0)",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Synchronous replicas",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (namespace, search_deployment) (patroni_sync_standby{$chosen})",
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "As the servers see it",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Series,
                    queries: &[(
                        "min by (node, role) (sextant_postgres_usable{$chosen})",
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
                    queries: &[("max(sextant_update_lag_seconds{$chosen})", "")],
                },
                Panel {
                    title: "Outbox",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[("max by (state) (sextant_outbox_documents{$chosen})", "{{state}}")],
                },
                Panel {
                    title: "Documents that workers took",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (outcome) (rate(sextant_worker_documents_total{$chosen}[5m])) or on () vector(0)",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    title: "Documents",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        "max by (collection) (sextant_documents{$chosen})",
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
                        "sum by (result) (rate(sextant_milvus_requests_total{$chosen}[5m]))",
                        "{{result}}",
                    )],
                },
                Panel {
                    title: "Calls made once more",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (pod) (rate(sextant_milvus_hedges_total{$chosen}[5m]))",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Answers that lacked documents",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (pod) (rate(sextant_milvus_short_answers_total{$chosen}[5m]))",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Left alone",
                    about: "",
                    unit: Unit::YesNo,
                    kind: Kind::Series,
                    queries: &[(
                        "max by (part, server) (sextant_breaker_open{$chosen})",
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
                        ("redis_memory_used_bytes{$chosen}", "{{pod}} used"),
                        ("redis_memory_max_bytes{$chosen}", "{{pod}} at most"),
                    ],
                },
                Panel {
                    title: "Keys given up",
                    about: "Evicted since the memory was full, or expired since they were too old.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[
                        ("sum(rate(redis_evicted_keys_total{$chosen}[5m]))", "evicted"),
                        ("sum(rate(redis_expired_keys_total{$chosen}[5m]))", "expired"),
                    ],
                },
                Panel {
                    title: "Keys found",
                    about: "Of those that were asked for.",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (pod) (rate(redis_keyspace_hits_total{$chosen}[5m])) / (sum by (pod) (rate(redis_keyspace_hits_total{$chosen}[5m])) + sum by (pod) (rate(redis_keyspace_misses_total{$chosen}[5m])) > 0)",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Commands",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (pod) (rate(redis_commands_processed_total{$chosen}[5m]))",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Connections",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[("redis_connected_clients{$chosen}", "{{pod}}")],
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
                        "histogram_quantile(0.99, sum by (le, msg_type) (rate(milvus_proxy_mutation_latency_bucket{$chosen}[5m]))) / 1000",
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
                        "histogram_quantile(0.99, sum by (le, pod) (rate(milvus_querynode_sq_queue_latency_bucket{$chosen}[5m]))) / 1000",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Entities in memory",
                    about: "Each copy of one counts.",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[("sum by (pod) (milvus_querynode_entity_num{$chosen})", "{{pod}}")],
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
