//! What turns texts into vectors.

use crate::{Dashboard, Kind, Panel, Row, Unit};

/// What NVIDIA's exporter says of the GPUs of a deployment's pods. Its own labels are renamed where
/// Prometheus does not honour them, as by default, and `pod` is then that of the exporter.
macro_rules! of_gpus {
    ($metric:literal, $factor:literal) => {
        &[
            (
                concat!(
                    $metric,
                    r#"{exported_namespace=~"$namespace",exported_pod=~"${deployment}-(api|embedder)-.*"}"#,
                    $factor
                ),
                "{{exported_pod}} {{gpu}}",
            ),
            (
                concat!(
                    $metric,
                    r#"{namespace=~"$namespace",pod=~"${deployment}-(api|embedder)-.*"}"#,
                    $factor
                ),
                "{{pod}} {{gpu}}",
            ),
        ]
    };
}

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
        // Of dcgm-exporter, which comes with NVIDIA's operator.
        Row {
            title: "GPUs",
            panels: &[
                Panel {
                    title: "Busy",
                    about: "Share of the time in which a kernel ran, of however many of its cores.",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: of_gpus!("DCGM_FI_DEV_GPU_UTIL", " / 100"),
                },
                Panel {
                    title: "Tensor cores at work",
                    about: "Share of their cycles. Far below the time busy: batches are too small.",
                    unit: Unit::Share,
                    kind: Kind::Series,
                    queries: of_gpus!("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", ""),
                },
                Panel {
                    title: "Memory of GPUs",
                    about: "",
                    unit: Unit::Bytes,
                    kind: Kind::Series,
                    queries: of_gpus!("DCGM_FI_DEV_FB_USED", " * 1048576"),
                },
                Panel {
                    title: "Last error of the driver",
                    about: "Its number as an Xid; 0 for none.",
                    unit: Unit::Count,
                    kind: Kind::Series,
                    queries: of_gpus!("DCGM_FI_DEV_XID_ERRORS", ""),
                },
            ],
        },
    ],
};
