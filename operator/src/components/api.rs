//! The servers that answer searches, and how clients reach them.

use k8s_openapi::api::core::v1::{PodSpec, Service};
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule,
    IngressServiceBackend, IngressSpec, IngressTLS, ServiceBackendPort,
};
use serde_json::{Value, json};

use super::meta::Component;
use super::pod::some_map;
use super::server::{Connection, Servers};
use super::{Desired, Kind, Observed, embedder, keys, milvus, monitoring, postgres, redis};
use crate::crd::{Exposure, Quantity};
use crate::validate::Deployment;

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    let servers = servers(deployment, observed);
    desired.add(Kind::ConfigMap, servers.config_map(deployment));
    desired.add(Kind::Service, service(deployment, observed));
    desired.add_all(Kind::PodDisruptionBudget, servers.disruption_budget(deployment));
    desired.add_all(Kind::HorizontalPodAutoscaler, servers.autoscaler(deployment));
    desired.add(Kind::Deployment, servers.workload(deployment));
    let exposure = &deployment.spec.api.expose;
    if let (Some(class), Some(host)) = (&exposure.ingress_class, &exposure.host) {
        desired.add(Kind::Ingress, ingress(deployment, exposure, class, host));
    }
    if let (Some(gateway), Some(host)) = (&exposure.gateway, &exposure.host) {
        desired.add(Kind::HttpRoute, route(deployment, exposure, gateway, host));
    }
}

fn servers<'a>(deployment: &'a Deployment, observed: &Observed) -> Servers<'a> {
    let spec = &deployment.spec;
    let dedicated = spec.embedder.is_dedicated();
    let mut connections = vec![postgres::connection(deployment), milvus::connection(deployment)];
    connections.extend(redis::connection(deployment));
    connections.extend(dedicated.then(|| embedder::connection(deployment)));
    let mut config = json!({
        "documents": {"kind": "postgres"},
        "index": {"kind": "milvus"},
        "cache": {
            "results_ttl_seconds": spec.cache.ttl_seconds.unwrap_or(1_800),
            "freshness": spec.cache.freshness,
        },
        "embedder": if dedicated {
            json!({"kind": "remote", "model_name": spec.embedder.model()})
        } else {
            embedder::model_config(deployment)
        },
    });
    if let Some(bytes) = spec.cache.near_memory.as_ref().and_then(Quantity::value) {
        config["cache"]["results_max_bytes"] = (bytes as u64).into();
    }
    let secrets = connections.iter().flat_map(Connection::secrets);
    let headers = spec.trace_headers().map(|secret| secret.name.as_str());
    let secret_hash = observed.secret_hash(secrets.chain(headers));
    Servers {
        component: Component::Api,
        config,
        keys_secret: keys::of_api(deployment),
        replicas: spec.api.replicas(),
        autoscaling: spec.api.autoscaling.as_ref(),
        resources: &spec.api.resources,
        requests: if dedicated {
            &[("cpu", "250m"), ("memory", "512Mi")]
        } else {
            &[("cpu", "500m"), ("memory", "1Gi")]
        },
        scheduling: &spec.api.scheduling,
        connections,
        on_gpu: false,
        model_claim: spec.embedder.model_claim.as_deref().filter(|_| !dedicated),
        secret_hash,
        pod: PodSpec::default(),
    }
}

fn service(deployment: &Deployment, observed: &Observed) -> Service {
    let mut service = deployment.service(Component::Api, &[("http", 80)]);
    service.metadata.annotations = monitoring::server_annotations(deployment, observed);
    let type_ = deployment.spec.api.service_type.as_str().to_owned();
    service.spec.get_or_insert_default().type_ = Some(type_);
    service
}

fn ingress(deployment: &Deployment, exposure: &Exposure, class: &str, host: &str) -> Ingress {
    let mut metadata = deployment.child(Component::Api);
    metadata.annotations = some_map(exposure.annotations.clone());
    let backend = IngressBackend {
        service: Some(IngressServiceBackend {
            name: deployment.child_name(Component::Api),
            port: Some(ServiceBackendPort { name: Some("http".to_owned()), number: None }),
        }),
        resource: None,
    };
    let path =
        HTTPIngressPath { path: Some("/".to_owned()), path_type: "Prefix".to_owned(), backend };
    let tls = exposure.tls_secret.as_ref().map(|secret| {
        vec![IngressTLS { hosts: Some(vec![host.to_owned()]), secret_name: Some(secret.clone()) }]
    });
    Ingress {
        metadata,
        spec: Some(IngressSpec {
            ingress_class_name: Some(class.to_owned()),
            rules: Some(vec![IngressRule {
                host: Some(host.to_owned()),
                http: Some(HTTPIngressRuleValue { paths: vec![path] }),
            }]),
            tls,
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    }
}

/// # Source
/// <https://gateway-api.sigs.k8s.io/reference/spec/#httproute>
fn route(deployment: &Deployment, exposure: &Exposure, gateway: &str, host: &str) -> Value {
    let mut metadata = deployment.child(Component::Api);
    metadata.annotations = some_map(exposure.annotations.clone());
    json!({
        "metadata": metadata,
        "spec": {
            "parentRefs": [{"name": gateway}],
            "hostnames": [host],
            "rules": [{
                "backendRefs": [{"name": deployment.child_name(Component::Api), "port": 80}],
            }],
        },
    })
}
