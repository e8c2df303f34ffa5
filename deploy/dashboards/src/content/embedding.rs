//! What turns texts into vectors.

use crate::{Dashboard, Kind, Panel, Row, Unit};

pub const EMBEDDING: Dashboard = Dashboard {
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
                        "sum by (outcome) (rate(sextant_embed_texts_total{$chosen}[5m]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    title: "Tokens",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (kind) (rate(sextant_embed_tokens_total{$chosen}[5m]))",
                        "{{kind}}",
                    )],
                },
                Panel {
                    title: "Oldest waiting text",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        "max by (pod) (sextant_embed_queue_oldest_age_seconds{$chosen})",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Waiting texts",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[("sum by (pod) (sextant_embed_queue_depth{$chosen})", "{{pod}}")],
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
                            "histogram_quantile(0.5, sum by (le) (rate(sextant_embed_duration_seconds_bucket{$chosen}[5m])))",
                            "p50",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le) (rate(sextant_embed_duration_seconds_bucket{$chosen}[5m])))",
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
                            "histogram_quantile(0.5, sum by (le) (rate(sextant_embed_batch_size_bucket{$chosen}[5m])))",
                            "p50",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le) (rate(sextant_embed_batch_size_bucket{$chosen}[5m])))",
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
                            "histogram_quantile(0.5, sum by (le) (rate(sextant_embed_batch_tokens_bucket{$chosen}[5m])))",
                            "p50",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le) (rate(sextant_embed_batch_tokens_bucket{$chosen}[5m])))",
                            "p99",
                        ),
                    ],
                },
                Panel {
                    title: "Padding",
                    about: "",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: &[("max by (pod) (sextant_embed_padding_ratio{$chosen})", "{{pod}}")],
                },
                Panel {
                    title: "Batches halved",
                    about: "Since a GPU had no memory for them.",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (pod) (rate(sextant_embed_batches_halved_total{$chosen}[5m]))",
                        "{{pod}}",
                    )],
                },
                Panel {
                    title: "Devices",
                    about: "",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: &[(
                        "count by (device, model) (sextant_build_info{$chosen})",
                        "{{device}} {{model}}",
                    )],
                },
            ],
        },
    ],
};
