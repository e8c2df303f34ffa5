//! The dashboard that is looked at first.

use crate::{Dashboard, Kind, Panel, Row, Unit};

pub const OVERVIEW: Dashboard = Dashboard {
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
                    queries: &[("min(sextant:available{$chosen})", "")],
                },
                Panel {
                    title: "Uptime, 30 days",
                    about: "",
                    unit: Unit::Share,
                    kind: Kind::Stat,
                    queries: &[("min(sextant:uptime:ratio_30d{$chosen})", "")],
                },
                Panel {
                    title: "Mean time to failure",
                    about: "Thirty days where there was no failure in them.",
                    unit: Unit::Seconds,
                    kind: Kind::Stat,
                    queries: &[("min(sextant:mttf_seconds{$chosen}) or vector(2592000)", "")],
                },
                Panel {
                    title: "Mean time to recovery",
                    about: "Zero where there was no failure.",
                    unit: Unit::Seconds,
                    kind: Kind::Stat,
                    queries: &[("max(sextant:mttr_seconds{$chosen}) or vector(0)", "")],
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
                        "sextant:search_errors:ratio_rate5m{$chosen}",
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
                    queries: &[("sextant:cache_hits:ratio_rate5m{$chosen}", "{{tier}}")],
                },
                Panel {
                    title: "Embeddings saved",
                    about: "Searches whose query was not embedded, since a cache or another search had it.",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[(
                        "sextant:embeddings_saved:ratio_rate5m{$chosen}",
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "vCPU-hours for a million searches",
                    about: "Of servers and embedders, whatever else they do.",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        "sextant:vcpu_seconds_per_search{$chosen} * 1e6 / 3600",
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "Memory of a server",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[(
                        r#"process_resident_memory_bytes{$chosen,component=~"api|embedder"}"#,
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Memory of the caches",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: &[("sum by (tier) (sextant_cache_bytes{$chosen})", "{{tier}}")],
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
