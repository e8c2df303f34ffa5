//! What several parts of the spec have in common.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::is_default;

/// An amount as Kubernetes writes it: `500m`, `2`, `4Gi`. A number stands for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl Quantity {
    /// Bytes or units; `None` when it is not a quantity.
    ///
    /// # Source
    /// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
    pub fn value(&self) -> Option<f64> {
        let digits = self.0.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &self.0[digits.len()..] {
            "" => 1.0,
            "m" => 1e-3,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "P" => 1e15,
            "E" => 1e18,
            "Ki" => 1024.0,
            "Mi" => 1_048_576.0,
            "Gi" => 1_073_741_824.0,
            "Ti" => 1_099_511_627_776.0,
            "Pi" => 1_125_899_906_842_624.0,
            "Ei" => 1_152_921_504_606_846_976.0,
            _ => return None,
        };
        let number: f64 = digits.parse().ok()?;
        Some(number * factor)
    }

    pub fn to_k8s(&self) -> resource::Quantity {
        resource::Quantity(self.0.clone())
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(serde_json::Number),
            Text(String),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Number(number) => Self(number.to_string()),
            Form::Text(text) => Self(text),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 64,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        })
    }
}

/// CPU, memory and whatever else a container asks for.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is set aside for each pod, as in `cpu: 500m`, `memory: 1Gi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Quantity>,
    /// The most that a pod may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Quantity>,
}

impl Resources {
    /// These, or for a kind of resource that is named in neither list, the default request.
    pub fn or(&self, requests: &[(&str, &str)]) -> ResourceRequirements {
        let mut all = self.clone();
        for (name, amount) in requests {
            if !all.limits.contains_key(*name) {
                all.requests.entry((*name).to_owned()).or_insert_with(|| (*amount).into());
            }
        }
        let list = |of: &BTreeMap<String, Quantity>| {
            let list: BTreeMap<_, _> =
                of.iter().map(|(name, amount)| (name.clone(), amount.to_k8s())).collect();
            (!list.is_empty()).then_some(list)
        };
        ResourceRequirements {
            requests: list(&all.requests),
            limits: list(&all.limits),
            ..ResourceRequirements::default()
        }
    }
}

/// A volume for each pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of each volume, as in 20Gi. It may grow. Default: 10Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class: Option<String>,
}

impl Storage {
    pub fn size(&self) -> Quantity {
        self.size.clone().unwrap_or_else(|| "10Gi".into())
    }
}

/// Which nodes the pods may run on.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// How the pods are spread over nodes and zones. Default: Preferred.
    #[serde(default, skip_serializing_if = "is_default")]
    pub spread: Spread,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class: Option<String>,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spread {
    /// Over nodes and zones where that is possible.
    #[default]
    Preferred,
    /// Never two pods more on one node than on another; a pod waits for a node otherwise.
    Required,
    None,
}

/// Where the images come from. Each is a whole reference; without one, the released image.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// Secrets with the credentials of registries, in the same namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub pull_secrets: Vec<String>,
    /// Default: IfNotPresent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pull_policy: ImagePullPolicy,
    /// sextant-server without its tag, which is `version`, and with `-cuda` behind it for embedders with
    /// a GPU.
    /// Default: sextant-server, as deploy/images builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub server: Option<String>,
    /// Redis with its tag. Default: docker.io/library/redis:7.4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub redis: Option<String>,
    /// redis_exporter with its tag, from v1.83.0 on. Default:
    /// docker.io/oliver006/redis_exporter:v1.91.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub redis_exporter: Option<String>,
    /// Postgres with Patroni, with its tag. Default: sextant-postgres:17, as
    /// deploy/images builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub postgres: Option<String>,
    /// Milvus without its tag, which is `milvus.version`. Default: docker.io/milvusdb/milvus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub milvus: Option<String>,
    /// etcd with its tag. Default: quay.io/coreos/etcd:v3.5.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub etcd: Option<String>,
}

impl Images {
    pub fn server(&self) -> &str {
        self.server.as_deref().unwrap_or("sextant-server")
    }

    pub fn redis(&self) -> &str {
        self.redis.as_deref().unwrap_or("docker.io/library/redis:7.4")
    }

    pub fn redis_exporter(&self) -> &str {
        self.redis_exporter.as_deref().unwrap_or("docker.io/oliver006/redis_exporter:v1.91.1")
    }

    pub fn postgres(&self) -> &str {
        self.postgres.as_deref().unwrap_or("sextant-postgres:17")
    }

    pub fn milvus(&self) -> &str {
        self.milvus.as_deref().unwrap_or("docker.io/milvusdb/milvus")
    }

    pub fn etcd(&self) -> &str {
        self.etcd.as_deref().unwrap_or("quay.io/coreos/etcd:v3.5.25")
    }
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

impl ImagePullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// An entry of a Secret in the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its entry.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}
