//! The operator and what it tells of each SearchDeployment.

use crate::{Dashboard, Kind, Panel, Row, Unit};

pub const OPERATOR: Dashboard = Dashboard {
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
                    queries: &[("max by (pod) (sextant_operator_is_leader)", "{{pod}}")],
                },
                Panel {
                    title: "Reconciliations",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[
                        ("sum(rate(sextant_operator_reconciles_total[5m]))", "all"),
                        (
                            "sum by (reason) (rate(sextant_operator_reconcile_failures_total[5m])) or on () vector(0)",
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
                            "histogram_quantile(0.5, sum by (le) (rate(sextant_operator_reconcile_duration_seconds_bucket[5m])))",
                            "p50",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le) (rate(sextant_operator_reconcile_duration_seconds_bucket[5m])))",
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
                        ("sum(sextant_operator_queue_depth)", "waiting"),
                        ("sum(sextant_operator_reconciles_under_way)", "under way"),
                    ],
                },
                Panel {
                    title: "Calls to Kubernetes",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (verb, code) (rate(sextant_operator_api_calls_total[5m]))",
                        "{{verb}} {{code}}",
                    )],
                },
                Panel {
                    title: "Changes",
                    about: "",
                    unit: Unit::PerSecond,
                    kind: Kind::Series,
                    queries: &[(
                        "sum by (verb) (rate(sextant_operator_changes_total[5m]))",
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
                        "sextant_operator_available",
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
                Panel {
                    title: "Time to ready, p99",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le) (rate(sextant_operator_time_to_ready_seconds_bucket[1d])))",
                        "p99",
                    )],
                },
                Panel {
                    title: "Certificates end in",
                    about: "",
                    unit: Unit::Seconds,
                    kind: Kind::Series,
                    queries: &[(
                        "sextant_operator_certificate_expiry_timestamp_seconds - time()",
                        "{{namespace}}/{{search_deployment}}",
                    )],
                },
            ],
        },
    ],
};
