//! Pods of sextant-server, whether they answer searches or only embed.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment as Workload, DeploymentSpec};
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
    MetricTarget, ResourceMetricSource,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, PersistentVolumeClaimVolumeSource, PodSpec, Volume, VolumeMount,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::certificates::AUTHORITY;
use super::meta::Component;
use super::pod::{self, Timing, config_volume, mount, read_only, scratch, secret_volume};
use crate::crd::{Autoscaling, Resources, Scheduling, SecretKey};
use crate::validate::Deployment;

pub const PORT: u16 = 8080;
const CONFIG: &str = "/etc/sextant/sextant.yaml";
const KEYS: &str = "/etc/sextant/keys";
/// Where the secrets of connections are, a folder for each.
const SECRETS: &str = "/etc/sextant/secrets";
const SECRET_FILE: &str = "secret";
/// Of the tag of the image with the CUDA libraries, as deploy/images builds it.
const CUDA_SUFFIX: &str = "-cuda";
/// How long a server that was told to end answers on, while load balancers learn of it.
const DRAIN_DELAY_SECONDS: u64 = 10;
const DRAIN_TIMEOUT_SECONDS: u64 = 20;

/// How servers reach a store: a section of their configuration, and where its password is.
pub struct Connection {
    pub section: &'static str,
    pub config: Value,
    pub secret: Option<Secret>,
    /// Secret with the authority that signed the store's certificate. It is read for each connection:
    /// another one needs no other pods.
    pub authority: Option<String>,
    pub env: Vec<EnvVar>,
    /// Secrets that the variables are from.
    pub read: Vec<String>,
}

pub struct Secret {
    pub name: String,
    pub entry: String,
    /// Field of the section that names its file.
    pub field: &'static str,
}

impl Connection {
    pub fn new(section: &'static str, config: Value) -> Self {
        Self { section, config, secret: None, authority: None, env: Vec::new(), read: Vec::new() }
    }

    pub fn with_secret(
        self,
        field: &'static str,
        name: impl Into<String>,
        entry: impl Into<String>,
    ) -> Self {
        Self { secret: Some(Secret { name: name.into(), entry: entry.into(), field }), ..self }
    }

    pub fn with_authority(self, secret: String) -> Self {
        Self { authority: Some(secret), ..self }
    }

    /// As a user and with a password of somebody's Secret, where they are given.
    pub fn with_login(mut self, user: Option<&str>, password: Option<&SecretKey>) -> Self {
        if let Some(user) = user {
            self.config["user"] = user.into();
        }
        match password {
            Some(secret) => self.with_secret("password_file", &secret.name, &secret.key),
            None => self,
        }
    }

    /// Names of all Secrets that are read only at the start.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let file = self.secret.iter().map(|secret| secret.name.as_str());
        file.chain(self.read.iter().map(String::as_str))
    }
}

/// A Deployment of servers.
pub struct Servers<'a> {
    pub component: Component,
    /// Beyond what all servers have.
    pub config: Value,
    pub keys_secret: String,
    pub replicas: i32,
    pub autoscaling: Option<&'a Autoscaling>,
    pub resources: &'a Resources,
    /// Requests where none are given.
    pub requests: &'a [(&'a str, &'a str)],
    pub scheduling: &'a Scheduling,
    pub connections: Vec<Connection>,
    /// Whether it needs the image with the CUDA libraries.
    pub on_gpu: bool,
    /// Claim of the model, where it is not in the image.
    pub model_claim: Option<&'a str>,
    /// Of the Secrets of the connections.
    pub secret_hash: String,
    pub pod: PodSpec,
}

impl Servers<'_> {
    pub fn config_map(&self, deployment: &Deployment) -> ConfigMap {
        let mut config = json!({
            "server": {
                "listen": format!("0.0.0.0:{PORT}"),
                "data_dir": "/var/lib/sextant",
                "drain_delay_ms": DRAIN_DELAY_SECONDS * 1_000,
                "drain_timeout_ms": DRAIN_TIMEOUT_SECONDS * 1_000,
            },
            "auth": {"keys_file": format!("{KEYS}/keys.yaml"), "public_metrics": true},
            "log": {"format": "json"},
        });
        if let Some(traces) = &deployment.spec.traces {
            config["traces"] = json!({"endpoint": traces.endpoint, "ratio": traces.ratio()});
        }
        merge(&mut config, &self.config);
        for Connection { section, config: own, secret, .. } in &self.connections {
            config[*section] = own.clone();
            if let Some(secret) = secret {
                config[*section][secret.field] = secret_file(section).into();
            }
        }
        // JSON is YAML, and its order of keys is always the same.
        let text = serde_json::to_string_pretty(&config).unwrap_or_default();
        ConfigMap {
            metadata: deployment.child(self.component),
            data: Some(BTreeMap::from([("sextant.yaml".to_owned(), text)])),
            ..ConfigMap::default()
        }
    }

    pub fn workload(&self, deployment: &Deployment) -> Workload {
        let config = self.config_map(deployment);
        let hash = pod::config_hash(&config, &self.secret_hash);
        let spec = self.pod_spec(deployment, &config.name_any());
        let hibernated = deployment.spec.hibernate;
        Workload {
            metadata: deployment.child(self.component),
            spec: Some(DeploymentSpec {
                // Whoever scales must own this field alone.
                replicas: match self.autoscaling {
                    _ if hibernated => Some(0),
                    Some(_) => None,
                    None => Some(self.replicas),
                },
                selector: deployment.selector(self.component),
                revision_history_limit: Some(3),
                min_ready_seconds: Some(5),
                strategy: Some(pod::rolling_update()),
                template: deployment.pod_template(self.component, self.scheduling, hash, spec),
                ..DeploymentSpec::default()
            }),
            ..Workload::default()
        }
    }

    fn pod_spec(&self, deployment: &Deployment, config_map: &str) -> PodSpec {
        let variant = if self.on_gpu { CUDA_SUFFIX } else { "" };
        let image = format!("{}:{}{variant}", deployment.spec.images.server(), deployment.version);
        let mut mounts = vec![
            VolumeMount {
                sub_path: Some("sextant.yaml".to_owned()),
                ..read_only(mount("config", CONFIG))
            },
            read_only(mount("keys", KEYS)),
            mount("data", "/var/lib/sextant"),
            mount("tmp", "/tmp"),
        ];
        let mut volumes: Vec<Volume> = vec![
            config_volume("config", config_map),
            secret_volume("keys", &self.keys_secret, &[("keys.yaml", "keys.yaml")]),
            scratch("data", "1Gi"),
            scratch("tmp", "1Gi"),
        ];
        if let Some(claim) = self.model_claim {
            volumes.push(claimed("model", claim));
            mounts.push(read_only(mount("model", deployment.spec.embedder.model_path())));
        }
        let mut add = |volume: &str, secret: &str, entry: &str, file: &str| {
            volumes.push(secret_volume(volume, secret, &[(entry, file)]));
            mounts.push(read_only(mount(volume, &format!("{SECRETS}/{volume}"))));
        };
        for Connection { section, secret, authority, .. } in &self.connections {
            if let Some(secret) = secret {
                add(section, &secret.name, &secret.entry, SECRET_FILE);
            }
            if let Some(authority) = authority {
                add(&format!("{section}-ca"), authority, AUTHORITY, AUTHORITY);
            }
        }
        let connections = self.connections.iter().flat_map(|connection| connection.env.clone());
        let env = connections.chain(self.trace_variables(deployment)).collect();
        let container = Container {
            args: Some(vec!["serve".to_owned(), "--config".to_owned(), CONFIG.to_owned()]),
            ports: Some(vec![pod::port("http", PORT)]),
            env: pod::some(env),
            resources: Some(self.resources.or(self.requests)),
            volume_mounts: Some(mounts),
            // A model is loaded and Postgres waited for.
            startup_probe: Some(
                Timing { period: 5, timeout: 3, failures: 60 }.http("/livez", "http"),
            ),
            liveness_probe: Some(
                Timing { period: 10, timeout: 5, failures: 3 }.http("/livez", "http"),
            ),
            readiness_probe: Some(
                Timing { period: 5, timeout: 3, failures: 2 }.http("/readyz", "http"),
            ),
            ..self.pod.containers.first().cloned().unwrap_or_default()
        };
        PodSpec {
            containers: vec![deployment.container("server", image, container)],
            volumes: Some(volumes),
            termination_grace_period_seconds: Some(
                (DRAIN_DELAY_SECONDS + DRAIN_TIMEOUT_SECONDS + 15).cast_signed(),
            ),
            ..self.pod.clone()
        }
    }

    /// What tells the servers' spans from those of other deployments, the pod being in them already; and
    /// the headers for their collector.
    fn trace_variables(&self, deployment: &Deployment) -> Vec<EnvVar> {
        if deployment.spec.traces.is_none() {
            return Vec::new();
        }
        let of = [
            ("k8s.namespace.name", deployment.namespace.as_str()),
            ("sextant.search_deployment", deployment.name.as_str()),
            ("sextant.component", self.component.as_str()),
        ];
        let of = of.map(|(name, value)| format!("{name}={value}")).join(",");
        let mut variables = vec![pod::env("OTEL_RESOURCE_ATTRIBUTES", of)];
        let headers = deployment.spec.trace_headers();
        variables.extend(headers.map(|SecretKey { name, key }| {
            pod::secret_env("OTEL_EXPORTER_OTLP_HEADERS", name, key)
        }));
        variables
    }

    pub fn autoscaler(&self, deployment: &Deployment) -> Option<HorizontalPodAutoscaler> {
        let of = self.autoscaling.filter(|_| !deployment.spec.hibernate)?;
        let metric = |name: &str, percent: i32| MetricSpec {
            type_: "Resource".to_owned(),
            resource: Some(ResourceMetricSource {
                name: name.to_owned(),
                target: MetricTarget {
                    type_: "Utilization".to_owned(),
                    average_utilization: Some(percent),
                    ..MetricTarget::default()
                },
            }),
            ..MetricSpec::default()
        };
        let mut metrics = vec![metric("cpu", of.target_cpu_percent())];
        metrics.extend(of.target_memory_percent.map(|percent| metric("memory", percent)));
        Some(HorizontalPodAutoscaler {
            metadata: deployment.child(self.component),
            spec: Some(HorizontalPodAutoscalerSpec {
                min_replicas: Some(of.min_replicas()),
                max_replicas: of.max_replicas,
                metrics: Some(metrics),
                scale_target_ref: CrossVersionObjectReference {
                    api_version: Some("apps/v1".to_owned()),
                    kind: "Deployment".to_owned(),
                    name: deployment.child_name(self.component),
                },
                ..HorizontalPodAutoscalerSpec::default()
            }),
            ..HorizontalPodAutoscaler::default()
        })
    }

    /// `None` for a single pod: a budget would keep its node from being drained.
    pub fn disruption_budget(&self, deployment: &Deployment) -> Option<PodDisruptionBudget> {
        let least = self.autoscaling.map_or(self.replicas, Autoscaling::min_replicas);
        (least > 1 && !deployment.spec.hibernate)
            .then(|| disruption_budget(deployment, self.component))
    }
}

fn claimed(name: &str, claim: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: Some(true),
        }),
        ..Volume::default()
    }
}

fn secret_file(section: &str) -> String {
    format!("{SECRETS}/{section}/{SECRET_FILE}")
}

/// Where servers find the authority of a connection.
pub fn authority_file(section: &str) -> String {
    format!("{SECRETS}/{section}-ca/{AUTHORITY}")
}

/// One pod at a time may be taken away by whoever drains nodes.
pub fn disruption_budget(deployment: &Deployment, component: Component) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: deployment.child(component),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(deployment.selector(component)),
            // A pod that is not ready serves nobody.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
