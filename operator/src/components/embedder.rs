//! Servers that only embed, for API servers without a model.

use k8s_openapi::api::core::v1::{PodSpec, Toleration};
use serde_json::{Value, json};

use super::meta::Component;
use super::server::{Connection, PORT, Servers};
use super::{Desired, Kind, Observed, keys, monitoring};
use crate::crd::{Gpu, Resources};
use crate::validate::Deployment;

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    if !deployment.spec.embedder.is_dedicated() {
        return;
    }
    let resources = resources(deployment);
    let servers = servers(deployment, observed, &resources);
    desired.add(Kind::ConfigMap, servers.config_map(deployment));
    // One address; API servers keep several connections to it, which are spread over the pods.
    let mut service = deployment.service(Component::Embedder, &[("http", PORT)]);
    service.metadata.annotations = monitoring::server_annotations(deployment, observed);
    desired.add(Kind::Service, service);
    desired.add_all(Kind::PodDisruptionBudget, servers.disruption_budget(deployment));
    desired.add_all(Kind::HorizontalPodAutoscaler, servers.autoscaler(deployment));
    desired.add(Kind::Deployment, servers.workload(deployment));
}

/// The section `embedder` of a server with the model.
pub fn model_config(deployment: &Deployment) -> Value {
    let spec = &deployment.spec.embedder;
    let mut config = json!({
        "kind": "torch",
        "model_dir": spec.model_path(),
        "model_name": spec.model(),
        "precision": spec.precision,
    });
    for (field, prompt) in
        [("query_prompt", &spec.query_prompt), ("passage_prompt", &spec.passage_prompt)]
    {
        if let Some(prompt) = prompt {
            config[field] = prompt.as_str().into();
        }
    }
    if spec.gpu.is_some() {
        // Without its GPU it must not come up: it would be slow in silence.
        config["device"] = "cuda".into();
    }
    if let Some(tokens) = spec.max_batch_tokens {
        config["max_batch_tokens"] = tokens.into();
    }
    if let Some(texts) = spec.queue_texts {
        config["queue_texts"] = texts.into();
    }
    config
}

/// How API servers reach the embedders.
pub fn connection(deployment: &Deployment) -> Connection {
    let host = deployment.host(&deployment.child_name(Component::Embedder));
    Connection::new("remote", json!({"endpoints": [format!("http://{host}:{PORT}")]})).with_secret(
        "api_key_file",
        keys::secret_of_embedders(deployment),
        keys::KEY,
    )
}

fn resources(deployment: &Deployment) -> Resources {
    let spec = &deployment.spec.embedder;
    let mut resources = spec.resources.clone();
    if let Some(gpu) = &spec.gpu {
        let count = || crate::crd::Quantity(gpu.count().to_string());
        resources.limits.entry(gpu.resource().to_owned()).or_insert_with(count);
    }
    resources
}

fn servers<'a>(
    deployment: &'a Deployment,
    observed: &Observed,
    resources: &'a Resources,
) -> Servers<'a> {
    let spec = &deployment.spec.embedder;
    let keys_secret = keys::secret_of_embedders(deployment);
    let headers = deployment.spec.trace_headers().map(|secret| secret.name.as_str());
    Servers {
        component: Component::Embedder,
        config: json!({"embedder": model_config(deployment)}),
        secret_hash: observed.secret_hash([keys_secret.as_str()].into_iter().chain(headers)),
        keys_secret,
        replicas: spec.replicas(),
        autoscaling: spec.autoscaling.as_ref(),
        resources,
        requests: &[("cpu", "1"), ("memory", "1Gi")],
        scheduling: &spec.scheduling,
        connections: Vec::new(),
        on_gpu: spec.gpu.is_some(),
        model_claim: spec.model_claim.as_deref(),
        pod: PodSpec {
            runtime_class_name: spec.gpu.as_ref().and_then(|gpu| gpu.runtime_class.clone()),
            tolerations: spec.gpu.as_ref().map(tolerations),
            ..PodSpec::default()
        },
    }
}

fn tolerations(gpu: &Gpu) -> Vec<Toleration> {
    gpu.tolerations.clone().unwrap_or_else(|| {
        vec![Toleration {
            key: Some(gpu.resource().to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        }]
    })
}
