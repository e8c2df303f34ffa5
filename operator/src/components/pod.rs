//! What all pods have in common: restricted security, volumes that may be written to, spread.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, HTTPGetAction, KeyToPath,
    LocalObjectReference, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile, SecretKeySelector,
    SecretVolumeSource, SecurityContext, TCPSocketAction, TopologySpreadConstraint, Volume,
    VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use sha2::{Digest, Sha256};

use super::meta::Component;
use crate::crd::{Scheduling, Spread};
use crate::validate::Deployment;

/// Pods with another configuration have another value.
pub const CONFIG_HASH: &str = "sextant.dev/config-hash";

const NODE: &str = "kubernetes.io/hostname";

/// The user of all processes, as in the images.
pub const USER: i64 = 10_001;

impl Deployment {
    /// The template of a component's pods around its containers and volumes.
    pub fn pod_template(
        &self,
        component: Component,
        scheduling: &Scheduling,
        config_hash: String,
        spec: PodSpec,
    ) -> PodTemplateSpec {
        let images = &self.spec.images;
        let secret = |name: &String| LocalObjectReference { name: name.clone() };
        let pull_secrets: Vec<_> = images.pull_secrets.iter().map(secret).collect();
        let selector = self.selector_labels(component);
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(selector),
                annotations: Some(BTreeMap::from([(CONFIG_HASH.to_owned(), config_hash)])),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                automount_service_account_token: Some(spec.service_account_name.is_some()),
                // With them, a Service `milvus` would set MILVUS_PORT and so Milvus's own settings.
                enable_service_links: Some(false),
                security_context: spec.security_context.or_else(|| Some(security())),
                image_pull_secrets: some(pull_secrets),
                node_selector: some_map(scheduling.node_selector.clone()),
                tolerations: some(
                    spec.tolerations
                        .iter()
                        .flatten()
                        .chain(&scheduling.tolerations)
                        .cloned()
                        .collect(),
                ),
                priority_class_name: scheduling.priority_class.clone(),
                affinity: self.apart(component, scheduling.spread),
                topology_spread_constraints: self.spread(component, scheduling.spread),
                ..spec
            }),
        }
    }

    /// Pods of a component keep away from each other: from the same node, then from the same zone.
    /// Affinities, as a preferred spread over zones would undo that over nodes where nodes have no zone.
    ///
    /// # Source
    /// Kubernetes, `pkg/scheduler/framework/plugins/podtopologyspread/scoring.go`: nodes without one of
    /// the keys are not scored at all.
    fn apart(&self, component: Component, spread: Spread) -> Option<Affinity> {
        let from = |key: &str, weight: i32| WeightedPodAffinityTerm {
            weight,
            pod_affinity_term: PodAffinityTerm {
                label_selector: Some(self.selector(component)),
                topology_key: key.to_owned(),
                ..PodAffinityTerm::default()
            },
        };
        let terms = vec![from(NODE, 100), from("topology.kubernetes.io/zone", 50)];
        (spread != Spread::None).then(|| Affinity {
            pod_anti_affinity: Some(PodAntiAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(terms),
                ..PodAntiAffinity::default()
            }),
            ..Affinity::default()
        })
    }

    fn spread(
        &self,
        component: Component,
        spread: Spread,
    ) -> Option<Vec<TopologySpreadConstraint>> {
        (spread == Spread::Required).then(|| {
            vec![TopologySpreadConstraint {
                max_skew: 1,
                topology_key: NODE.to_owned(),
                when_unsatisfiable: "DoNotSchedule".to_owned(),
                label_selector: Some(self.selector(component)),
                // A node that is lost or drained does not keep pods from the others.
                node_taints_policy: Some("Honor".to_owned()),
                ..TopologySpreadConstraint::default()
            }]
        })
    }

    /// A container that may do nothing but its work. What it is given of these is kept.
    pub fn container(&self, name: &str, image: String, container: Container) -> Container {
        Container {
            name: name.to_owned(),
            image: Some(image),
            image_pull_policy: Some(self.spec.images.pull_policy.as_str().to_owned()),
            // Its last words, for whoever looks at why it ended.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    ..Capabilities::default()
                }),
                ..SecurityContext::default()
            }),
            ..container
        }
    }
}

/// As Kubernetes's Pod Security Standard "restricted" asks.
fn security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Of everything that a pod reads when it starts: its files, and the hash of its Secrets.
pub fn config_hash(config: &ConfigMap, secrets: &str) -> String {
    let files = config.data.iter().flat_map(BTreeMap::values).map(String::as_bytes);
    hash(files.chain([secrets.as_bytes()]))
}

pub fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()[..8])
}

pub fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

pub fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

pub fn secret_env(name: &str, secret: &str, key: &str) -> EnvVar {
    let source = EnvVarSource {
        secret_key_ref: Some(SecretKeySelector {
            name: secret.to_owned(),
            key: key.to_owned(),
            optional: None,
        }),
        ..EnvVarSource::default()
    };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

pub fn field_env(name: &str, path: &str) -> EnvVar {
    let source = EnvVarSource {
        field_ref: Some(ObjectFieldSelector {
            api_version: Some("v1".to_owned()),
            field_path: path.to_owned(),
        }),
        ..EnvVarSource::default()
    };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

pub fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub fn read_only(mount: VolumeMount) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount }
}

/// A folder that is the pod's own and ends with it.
pub fn scratch(name: &str, limit: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(limit.to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub fn config_volume(name: &str, config_map: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            default_mode: Some(0o444),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Entries of a Secret as files of these names, or all of them.
pub fn secret_volume(name: &str, secret: &str, files: &[(&str, &str)]) -> Volume {
    let item = |(key, path): &(&str, &str)| KeyToPath {
        key: (*key).to_owned(),
        path: (*path).to_owned(),
        mode: None,
    };
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: some(files.iter().map(item).collect()),
            default_mode: Some(0o440),
            optional: None,
        }),
        ..Volume::default()
    }
}

/// When a probe counts, in seconds and failures.
#[derive(Clone, Copy)]
pub struct Timing {
    pub period: i32,
    pub timeout: i32,
    pub failures: i32,
}

impl Timing {
    fn probe(self) -> Probe {
        Probe {
            period_seconds: Some(self.period),
            timeout_seconds: Some(self.timeout),
            failure_threshold: Some(self.failures),
            ..Probe::default()
        }
    }

    pub fn http(self, path: &str, port: &str) -> Probe {
        Probe {
            http_get: Some(HTTPGetAction {
                path: Some(path.to_owned()),
                port: IntOrString::String(port.to_owned()),
                scheme: Some("HTTP".to_owned()),
                ..HTTPGetAction::default()
            }),
            ..self.probe()
        }
    }

    pub fn tcp(self, port: &str) -> Probe {
        Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::String(port.to_owned()),
                ..TCPSocketAction::default()
            }),
            ..self.probe()
        }
    }

    pub fn exec(self, command: &[&str]) -> Probe {
        Probe {
            exec: Some(ExecAction {
                command: Some(command.iter().map(|&word| word.to_owned()).collect()),
            }),
            ..self.probe()
        }
    }
}

/// One pod more, then one fewer: there are never fewer than are asked for.
pub fn rolling_update() -> DeploymentStrategy {
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(1)),
            max_unavailable: Some(IntOrString::Int(0)),
        }),
    }
}

pub fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

pub fn some_map<K: Ord, V>(map: BTreeMap<K, V>) -> Option<BTreeMap<K, V>> {
    (!map.is_empty()).then_some(map)
}
