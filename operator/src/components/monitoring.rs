//! How Prometheus learns what to scrape: from ServiceMonitors and PodMonitors where its operator is
//! installed, else from the annotations of Services that scrape jobs without that operator look for.
//!
//! Annotations of pods would do as well, and would replace every pod, Postgres's and Milvus's too, on
//! the day when Prometheus's operator comes or goes. Those of Services replace none, and so need not
//! be there beside the monitors, where everything would be scraped twice.
//!
//! # Source
//! <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor>
//! and `PodMonitor` of the same page; the job `kubernetes-service-endpoints` of
//! <https://github.com/prometheus-community/helm-charts/blob/main/charts/prometheus/values.yaml>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::meta::{Component, labels};
use super::{Desired, Kind, Observed, milvus, postgres, redis, server};
use crate::crd::MilvusMode;
use crate::validate::Deployment;

const PATH: &str = "/metrics";

/// A component that has metrics.
struct Target {
    component: Component,
    /// Name and number.
    port: (&'static str, u16),
    /// By which Prometheus's operator is asked to scrape it.
    monitor: Kind,
}

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    if !deployment.spec.monitoring.enabled() {
        return;
    }
    for target in targets(deployment) {
        if !observed.missing.contains(&target.monitor) {
            desired.add(target.monitor, monitor(deployment, &target));
        } else if target.monitor == Kind::PodMonitor {
            desired.add(Kind::Service, annotated_service(deployment, &target));
        }
    }
}

/// Annotations of the Services of servers and embedders, where these must tell what to scrape.
pub fn server_annotations(
    deployment: &Deployment,
    observed: &Observed,
) -> Option<BTreeMap<String, String>> {
    let missing = observed.missing.contains(&Kind::ServiceMonitor);
    (deployment.spec.monitoring.enabled() && missing).then(|| annotations(server::PORT))
}

fn targets(deployment: &Deployment) -> Vec<Target> {
    let spec = &deployment.spec;
    let of_servers = |component| Target {
        component,
        port: ("http", server::PORT),
        monitor: Kind::ServiceMonitor,
    };
    // No Service of these has the port: it is for those who watch alone.
    let of_pods = |component, port| Target { component, port, monitor: Kind::PodMonitor };
    let mut all = vec![of_servers(Component::Api)];
    if spec.embedder.is_dedicated() {
        all.push(of_servers(Component::Embedder));
    }
    if spec.cache.has_exporter() {
        all.push(of_pods(Component::Redis, ("metrics", redis::METRICS_PORT)));
    }
    if spec.postgres.external.is_none() {
        all.push(of_pods(Component::Postgres, ("patroni", postgres::PATRONI_PORT)));
    }
    let of_milvus = |component| of_pods(component, ("metrics", milvus::METRICS_PORT));
    match spec.milvus.mode {
        MilvusMode::External => {}
        MilvusMode::Standalone => all.push(of_milvus(Component::Milvus)),
        MilvusMode::Cluster => {
            all.extend(milvus::roles(deployment).iter().map(|role| of_milvus(role.component)));
        }
    }
    all
}

fn monitor(deployment: &Deployment, target: &Target) -> Value {
    let monitoring = &deployment.spec.monitoring;
    let mut metadata = deployment.child(target.component);
    metadata.labels.get_or_insert_default().extend(monitoring.labels.clone());
    let endpoints = match target.monitor {
        Kind::ServiceMonitor => "endpoints",
        _ => "podMetricsEndpoints",
    };
    let endpoint = json!({
        "port": target.port.0,
        "path": PATH,
        "interval": monitoring.interval(),
        "relabelings": relabelings(),
    });
    let selector = json!({"matchLabels": deployment.selector_labels(target.component)});
    json!({"metadata": metadata, "spec": {"selector": selector, endpoints: [endpoint]}})
}

/// What rules and dashboards tell targets apart by.
fn relabelings() -> Value {
    let copied = |label: &str, to: &str| {
        let label = format!("__meta_kubernetes_pod_label_app_kubernetes_io_{label}");
        json!({"sourceLabels": [label], "targetLabel": to})
    };
    json!([copied("instance", "search_deployment"), copied("component", "component")])
}

/// A Service for the sake of its annotations: it has no address, as nobody calls it.
fn annotated_service(deployment: &Deployment, target: &Target) -> Service {
    let Target { component, port, .. } = *target;
    let mut service = deployment.service(component, &[port]);
    // With the whole name of a role of Milvus it would have more than the 63 characters of a Service.
    let role = component.as_str().trim_start_matches("milvus-");
    let name = format!("{}-{role}-metrics", deployment.name);
    service.metadata = deployment.child_of_name(component, name);
    service.metadata.annotations = Some(annotations(port.1));
    service.spec.get_or_insert_default().cluster_ip = Some("None".to_owned());
    service
}

fn annotations(port: u16) -> BTreeMap<String, String> {
    let port = port.to_string();
    labels([
        ("prometheus.io/scrape", "true"),
        ("prometheus.io/scheme", "http"),
        ("prometheus.io/path", PATH),
        ("prometheus.io/port", port.as_str()),
    ])
}
