//! Searches and their caches.

use crate::{Dashboard, Kind, Panel, Row, Unit};

pub const SEARCH: Dashboard = Dashboard {
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
                        "histogram_quantile(0.5, sum by (le, stage) (rate(sextant_search_stage_duration_seconds_bucket{$chosen}[5m])))",
                        "{{stage}}",
                    )],
                },
                Panel {
                    title: "Stages, p99",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le, stage) (rate(sextant_search_stage_duration_seconds_bucket{$chosen}[5m])))",
                        "{{stage}}",
                    )],
                },
                Panel {
                    title: "Requests being answered",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[("sum by (pod) (sextant_http_active_requests{$chosen})", "{{pod}}")],
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
                    queries: &[("sum by (tier) (sextant_cache_entries{$chosen})", "{{tier}}")],
                },
                Panel {
                    title: "Evictions",
                    about: "Since a tier was full.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (tier) (rate(sextant_cache_evictions_total{$chosen}[5m]))",
                        "{{tier}}",
                    )],
                },
                Panel {
                    title: "Invalidations",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (scope) (rate(sextant_cache_invalidations_total{$chosen}[5m])) or on () vector(0)",
                        "{{scope}}",
                    )],
                },
                Panel {
                    title: "Old answers",
                    about: "Given since a part did not answer.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (reason) (rate(sextant_degraded_responses_total{$chosen}[5m])) or on () vector(0)",
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
                    queries: &[("min(sextant_redis_up{$chosen})", "")],
                },
                Panel {
                    title: "Requests to Redis",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (kind, result) (rate(sextant_redis_requests_total{$chosen}[5m]))",
                        "{{kind}} {{result}}",
                    )],
                },
                Panel {
                    title: "Time of a trip to Redis, p99",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le, operation) (rate(sextant_redis_duration_seconds_bucket{$chosen}[5m])))",
                        "{{operation}}",
                    )],
                },
            ],
        },
    ],
};
