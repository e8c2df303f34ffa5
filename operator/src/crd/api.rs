//! The servers: those that answer searches and those that embed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Resources, Scheduling};
use super::is_default;

/// The servers that answer searches.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiSpec {
    /// Servers, unless `autoscaling` is set. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Lets Kubernetes choose the number of servers; `replicas` is then not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Default: requests of 500m CPU and 1Gi of memory with the embedder inline, else 250m and 512Mi.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheduling: Scheduling,
    /// Type of the Service. Default: ClusterIP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub service_type: ServiceType,
    /// How clients outside the cluster come in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expose: Exposure,
    /// Secret with `keys.yaml`, as `sextant-server keys add` writes it. Default: one with a single
    /// key for everything is made; the key itself is in the Secret `<name>-api-keys`, entry `admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub keys_secret: Option<String>,
}

impl ApiSpec {
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(2)
    }
}

/// How many pods there may be, and when there are more.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.maxReplicas >= (has(self.minReplicas) ? self.minReplicas : 2)")
        .message("maxReplicas must be at least minReplicas (default 2)")
)]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: Option<i32>,
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// CPU in use, in percent of what is requested, above which pods are added. Default: 70.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_percent: Option<i32>,
    /// Memory in use, in percent of what is requested. Default: memory adds no pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_memory_percent: Option<i32>,
}

impl Autoscaling {
    pub fn min_replicas(&self) -> i32 {
        self.min_replicas.unwrap_or(2)
    }

    pub fn target_cpu_percent(&self) -> i32 {
        self.target_cpu_percent.unwrap_or(70)
    }
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

impl ServiceType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// How clients outside the cluster come in: by an Ingress or by a route of a Gateway.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!(has(self.ingressClass) && has(self.gateway))")
        .message("set ingressClass or gateway, not both"),
    validation = Rule::new("has(self.host) || !(has(self.ingressClass) || has(self.gateway))")
        .message("an Ingress and a route need a host"),
    validation = Rule::new("!has(self.tlsSecret) || has(self.ingressClass)")
        .message("tlsSecret belongs to an Ingress; a Gateway has its own")
)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Name that clients use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub host: Option<String>,
    /// Makes an Ingress of this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub ingress_class: Option<String>,
    /// Secret with the Ingress's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret: Option<String>,
    /// Annotations for the Ingress or the route.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Makes an HTTPRoute at this Gateway in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub gateway: Option<String>,
}

/// What turns texts into vectors.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.gpu) || (has(self.placement) && self.placement == 'dedicated')")
        .message("a GPU needs placement: dedicated, or every API server would take one"),
    validation = Rule::new("!has(self.autoscaling) || (has(self.placement) && self.placement == 'dedicated')")
        .message("autoscaling needs placement: dedicated; inline, the API servers' own counts")
)]
#[serde(rename_all = "camelCase")]
pub struct EmbedderSpec {
    /// Default: inline.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: Placement,
    /// What the model is called in answers. Default: all-MiniLM-L6-v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub model: Option<String>,
    /// Folder of the model. Default: /models/default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = "^/"))]
    pub model_path: Option<String>,
    /// PersistentVolumeClaim with the files of a model, which is mounted at `modelPath` for reading
    /// only. Default: the model is in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub model_claim: Option<String>,
    /// What the model was trained to read in front of a query, as "query: ". Default: what its files
    /// say, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub query_prompt: Option<String>,
    /// The same in front of a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub passage_prompt: Option<String>,
    /// Dedicated embedders, unless `autoscaling` is set. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Lets Kubernetes choose the number of dedicated embedders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Puts dedicated embedders on GPU nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Numbers that the model computes with: fp32; bf16, which needs a GPU, or CPUs with AVX512-BF16;
    /// int8, which needs CPUs with AVX512-VNNI or AVX-VNNI. Without them the servers do not start. It
    /// cannot change. Default: fp32.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Largest batch given to the model, in tokens with padding. Default: what suits the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_batch_tokens: Option<i32>,
    /// Texts that may wait for the model; more are refused. Default: 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub queue_texts: Option<i32>,
    /// Of dedicated embedders. Default: requests of 1 CPU and 1Gi of memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Of dedicated embedders.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheduling: Scheduling,
}

impl EmbedderSpec {
    pub fn is_dedicated(&self) -> bool {
        self.placement == Placement::Dedicated
    }

    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }

    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or("all-MiniLM-L6-v2")
    }

    pub fn model_path(&self) -> &str {
        self.model_path.as_deref().unwrap_or("/models/default")
    }
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Placement {
    /// In the API servers.
    #[default]
    Inline,
    /// In a Deployment of its own that the API servers call.
    Dedicated,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Fp32,
    Bf16,
    Int8,
}

/// GPUs of each embedder.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// What GPUs are called on the nodes. Default: nvidia.com/gpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource: Option<String>,
    /// Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub count: Option<i32>,
    /// RuntimeClass that gives containers the GPU. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class: Option<String>,
    /// Taints of GPU nodes. Default: that of the resource, `NoSchedule` with any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub tolerations: Option<Vec<Toleration>>,
}

impl Gpu {
    pub fn resource(&self) -> &str {
        self.resource.as_deref().unwrap_or("nvidia.com/gpu")
    }

    pub fn count(&self) -> i32 {
        self.count.unwrap_or(1)
    }
}
