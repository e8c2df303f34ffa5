//! What Prometheus's operator is to scrape.
//!
//! # Source
//! <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor>
//! and `PodMonitor` of the same page

use serde_json::{Value, json};

use super::meta::Component;
use super::{Desired, Kind, milvus};
use crate::crd::MilvusMode;
use crate::validate::Deployment;

pub fn add(desired: &mut Desired, deployment: &Deployment) {
    let monitoring = &deployment.spec.monitoring;
    if !monitoring.enabled() {
        return;
    }
    let mut add = |kind: Kind, component: Component, endpoints: &str, port: &str| {
        let mut metadata = deployment.child(component);
        metadata.labels.get_or_insert_default().extend(monitoring.labels.clone());
        let endpoint = json!({
            "port": port,
            "path": "/metrics",
            "interval": monitoring.interval(),
            "relabelings": relabelings(),
        });
        let selector = json!({"matchLabels": deployment.selector_labels(component)});
        let spec = json!({"selector": selector, endpoints: [endpoint]});
        desired.add(kind, json!({"metadata": metadata, "spec": spec}));
    };
    let embedder = deployment.spec.embedder.is_dedicated().then_some(Component::Embedder);
    for component in [Component::Api].into_iter().chain(embedder) {
        add(Kind::ServiceMonitor, component, "endpoints", "http");
    }
    // No Service of these has the port: it is for those who watch alone.
    for (component, port) in by_pods(deployment) {
        add(Kind::PodMonitor, component, "podMetricsEndpoints", port);
    }
}

fn by_pods(deployment: &Deployment) -> Vec<(Component, &'static str)> {
    let mut all = Vec::new();
    if deployment.spec.postgres.external.is_none() {
        all.push((Component::Postgres, "patroni"));
    }
    match deployment.spec.milvus.mode {
        MilvusMode::External => {}
        MilvusMode::Standalone => all.push((Component::Milvus, "metrics")),
        MilvusMode::Cluster => {
            all.extend(milvus::roles(deployment).iter().map(|role| (role.component, "metrics")));
        }
    }
    all
}

/// What rules and dashboards tell targets apart by.
fn relabelings() -> Value {
    let copied = |label: &str, to: &str| {
        let label = format!("__meta_kubernetes_pod_label_app_kubernetes_io_{label}");
        json!({"sourceLabels": [label], "targetLabel": to})
    };
    json!([copied("instance", "search_deployment"), copied("component", "component")])
}
