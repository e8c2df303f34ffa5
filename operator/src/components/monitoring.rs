//! What Prometheus's operator is to scrape.
//!
//! # Source
//! <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor>

use serde_json::json;

use super::meta::Component;
use super::{Desired, Kind};
use crate::validate::Deployment;

pub fn add(desired: &mut Desired, deployment: &Deployment) {
    let monitoring = &deployment.spec.monitoring;
    if !monitoring.enabled() {
        return;
    }
    let embedder = deployment.spec.embedder.is_dedicated().then_some(Component::Embedder);
    for component in [Component::Api].into_iter().chain(embedder) {
        let mut metadata = deployment.child(component);
        metadata.labels.get_or_insert_default().extend(monitoring.labels.clone());
        desired.add(
            Kind::ServiceMonitor,
            json!({
                "metadata": metadata,
                "spec": {
                    "selector": {"matchLabels": deployment.selector_labels(component)},
                    "endpoints": [{
                        "port": "http",
                        "path": "/metrics",
                        "interval": monitoring.interval(),
                    }],
                },
            }),
        );
    }
}
