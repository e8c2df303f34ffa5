//! Milvus: one process, or one Deployment for each role of a cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    Deployment as Workload, DeploymentSpec, StatefulSet, StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, PodSpec, Service, VolumeMount};
use serde_json::{Value, json};

use super::meta::Component;
use super::pod::{self, Timing, config_volume, env, mount, read_only, scratch, secret_env};
use super::postgres::claim;
use super::server::{Connection, disruption_budget};
use super::{Desired, Kind, Observed, etcd};
use crate::crd::{MessageQueue, MilvusMode, RoleSpec};
use crate::validate::Deployment;

pub const PORT: u16 = 19530;
/// Health and metrics.
pub const METRICS_PORT: u16 = 9091;
/// A process that was told to end has this long; beyond, its work is taken over all the same.
const GRACE_SECONDS: i64 = 60;

/// What a role is called, what it runs, and what it asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Role {
    pub component: Component,
    arguments: &'static [&'static str],
    /// Where the other roles find it.
    pub ports: &'static [u16],
    replicas: i32,
    requests: [(&'static str, &'static str); 2],
}

const PROXY: Role = Role {
    component: Component::MilvusProxy,
    arguments: &["proxy"],
    ports: &[19_529],
    replicas: 1,
    requests: [("cpu", "250m"), ("memory", "512Mi")],
};
const COORDINATOR: Role = Role {
    component: Component::MilvusCoordinator,
    arguments: &["mixture", "-rootcoord", "-querycoord", "-datacoord", "-indexcoord"],
    ports: &[53_100],
    replicas: 1,
    requests: [("cpu", "250m"), ("memory", "512Mi")],
};
/// Each coordinator of the process has a port of its own.
const COORDINATORS: Role = Role { ports: &[53_100, 19_531, 13_333], ..COORDINATOR };
const STREAMING_NODE: Role = Role {
    component: Component::MilvusStreamingNode,
    arguments: &["streamingnode"],
    ports: &[22_222],
    replicas: 1,
    requests: [("cpu", "250m"), ("memory", "1Gi")],
};
const QUERY_NODE: Role = Role {
    component: Component::MilvusQueryNode,
    arguments: &["querynode"],
    ports: &[21_123],
    replicas: 2,
    requests: [("cpu", "500m"), ("memory", "2Gi")],
};
const DATA_NODE: Role = Role {
    component: Component::MilvusDataNode,
    arguments: &["datanode"],
    ports: &[21_124],
    replicas: 1,
    requests: [("cpu", "250m"), ("memory", "1Gi")],
};
const INDEX_NODE: Role = Role {
    component: Component::MilvusIndexNode,
    arguments: &["indexnode"],
    ports: &[21_121],
    replicas: 1,
    requests: [("cpu", "500m"), ("memory", "1Gi")],
};

/// The roles of a cluster, each after those that it needs: the order of an upgrade.
///
/// # Source
/// <https://milvus.io/docs/upgrade_milvus_cluster-helm.md>
pub fn roles(deployment: &Deployment) -> Vec<Role> {
    if deployment.spec.milvus.has_streaming_nodes() {
        vec![COORDINATOR, STREAMING_NODE, QUERY_NODE, DATA_NODE, PROXY]
    } else {
        vec![COORDINATORS, QUERY_NODE, DATA_NODE, INDEX_NODE, PROXY]
    }
}

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    let milvus = &deployment.spec.milvus;
    if milvus.mode == MilvusMode::External {
        return;
    }
    let config = config_map(deployment);
    let storage = deployment.spec.object_storage.as_ref();
    let credentials = storage.and_then(|storage| storage.credentials_secret.as_deref());
    let name = deployment.child_name(Component::Milvus);
    let secrets = observed.secret_hash([name.as_str()].into_iter().chain(credentials));
    let hash = pod::config_hash(&config, &secrets);
    desired.add(Kind::Service, service(deployment));
    if milvus.mode == MilvusMode::Standalone {
        desired.add(Kind::StatefulSet, standalone(deployment, hash));
    } else {
        let images = images(deployment, observed);
        for (role, image) in roles(deployment).into_iter().zip(images) {
            if replicas(deployment, role) > 1 && !deployment.spec.hibernate {
                let budget = disruption_budget(deployment, role.component);
                desired.add(Kind::PodDisruptionBudget, budget);
            }
            desired.add(Kind::Deployment, workload(deployment, role, image, hash.clone()));
        }
    }
    desired.add(Kind::ConfigMap, config);
}

/// How servers reach Milvus.
pub fn connection(deployment: &Deployment) -> Connection {
    let milvus = &deployment.spec.milvus;
    if let Some(external) = &milvus.external {
        let config = json!({
            "endpoints": external.endpoints,
            "replica_number": milvus.replica_number(),
        });
        let connection = Connection::new("milvus", config);
        return connection.with_login(external.user.as_deref(), external.password_secret.as_ref());
    }
    let name = deployment.child_name(Component::Milvus);
    let url = format!("http://{}:{PORT}", deployment.host(&name));
    let client = if milvus.has_streaming_nodes() { "v2" } else { "v1" };
    let config = json!({
        "endpoints": [url],
        "client": client,
        "user": "root",
        "replica_number": milvus.replica_number(),
    });
    Connection::new("milvus", config).with_secret("password_file", name, "password")
}

fn spec_of(deployment: &Deployment, role: Role) -> &RoleSpec {
    let roles = &deployment.spec.milvus.roles;
    match role.component {
        Component::MilvusProxy => &roles.proxy,
        Component::MilvusCoordinator => &roles.coordinator,
        Component::MilvusStreamingNode => &roles.streaming_node,
        Component::MilvusQueryNode => &roles.query_node,
        Component::MilvusIndexNode => &roles.index_node,
        _ => &roles.data_node,
    }
}

fn replicas(deployment: &Deployment, role: Role) -> i32 {
    spec_of(deployment, role).replicas.unwrap_or(role.replicas)
}

fn wanted_image(deployment: &Deployment) -> String {
    format!("{}:{}", deployment.spec.images.milvus(), deployment.spec.milvus.version())
}

/// The image of each role. One gets the new image when all before it run it.
fn images(deployment: &Deployment, observed: &Observed) -> Vec<String> {
    let wanted = wanted_image(deployment);
    let mut may_move = true;
    let mut images = Vec::new();
    for role in roles(deployment) {
        let name = deployment.child_name(role.component);
        let object = observed.objects.get(&(Kind::Deployment, name));
        let Some(workload) =
            object.map(|object| Rollout::of(&object.data, object.metadata.generation))
        else {
            images.push(wanted.clone());
            continue;
        };
        let image = if may_move { wanted.clone() } else { workload.image.clone() };
        may_move &= workload.image == wanted && workload.complete;
        images.push(image);
    }
    images
}

/// How far a Deployment is with the image that it has.
struct Rollout {
    image: String,
    complete: bool,
}

impl Rollout {
    fn of(body: &Value, generation: Option<i64>) -> Self {
        let image = body["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
        let status = &body["status"];
        let number = |field: &str| status[field].as_i64().unwrap_or_default();
        let replicas = body["spec"]["replicas"].as_i64().unwrap_or(1);
        let complete = number("observedGeneration") >= generation.unwrap_or_default()
            && number("updatedReplicas") == replicas
            && number("replicas") == replicas
            && number("availableReplicas") == replicas;
        Self { image: image.unwrap_or_default().to_owned(), complete }
    }
}

/// One address in both modes: that of the process, or of the proxies.
fn service(deployment: &Deployment) -> Service {
    let mut service = deployment.service(Component::Milvus, &[("milvus", PORT)]);
    if deployment.spec.milvus.mode == MilvusMode::Cluster {
        let proxies = deployment.selector_labels(Component::MilvusProxy);
        service.spec.get_or_insert_default().selector = Some(proxies);
    }
    service
}

/// What is changed of the image's own configuration.
///
/// # Source
/// Milvus, `configs/milvus.yaml` and `pkg/util/paramtable/base_table.go`: `user.yaml` is read last.
fn config_map(deployment: &Deployment) -> ConfigMap {
    let spec = &deployment.spec;
    let milvus = &spec.milvus;
    let cluster = milvus.mode == MilvusMode::Cluster;
    let mut config = json!({
        "common": {
            "security": {"authorizationEnabled": true},
            // A lost node's work is taken over after this, in seconds.
            "session": {"ttl": 10},
            "gracefulStopTimeout": 10,
        },
        "queryCoord": {"updateNextTargetInterval": 1},
        "log": {"level": "info", "format": "json", "file": {"rootPath": ""}},
        "proxy": {"port": PORT, "internalPort": PROXY.ports[0]},
    });
    if cluster {
        config["etcd"] =
            json!({"endpoints": etcd::endpoints(deployment), "rootPath": deployment.name});
        config["metastore"] = json!({"type": "etcd"});
        config["rootCoord"] = json!({"port": COORDINATOR.ports[0], "enableActiveStandby": true});
        config["dataCoord"] = json!({"enableActiveStandby": true});
        config["indexCoord"] = json!({"enableActiveStandby": true});
        config["mixCoord"] = json!({"enableActiveStandby": true});
        config["queryCoord"]["enableActiveStandby"] = true.into();
    }
    if let Some(storage) = &spec.object_storage {
        let (host, port) = storage.address();
        config["common"]["storageType"] = "remote".into();
        config["minio"] = json!({
            "address": host,
            "port": port,
            "useSSL": storage.uses_tls(),
            "bucketName": storage.bucket,
            "rootPath": format!("{}/{}", deployment.namespace, deployment.name),
            "useIAM": storage.use_instance_role,
            "cloudProvider": "aws",
            "region": storage.region(),
        });
    }
    match (milvus.message_queue, milvus.has_streaming_nodes()) {
        (MessageQueue::Kafka, _) => {
            config["mq"] = json!({"type": "kafka"});
            config["kafka"] = json!({"brokerList": milvus.kafka_brokers});
        }
        (MessageQueue::Woodpecker, true) => {
            let remote = spec.object_storage.is_some();
            let kind = if remote { "minio" } else { "local" };
            config["mq"] = json!({"type": "woodpecker"});
            config["woodpecker"] = json!({
                "meta": {"type": "etcd", "prefix": format!("{}/woodpecker", deployment.name)},
                "storage": {"type": kind, "rootPath": "/var/lib/milvus/woodpecker"},
            });
        }
        // A standalone Milvus before 2.6 has its own queue.
        (MessageQueue::Woodpecker, false) => config["mq"] = json!({"type": "rocksmq"}),
    }
    let mut data = BTreeMap::from([(
        "user.yaml".to_owned(),
        serde_json::to_string_pretty(&config).unwrap_or_default(),
    )]);
    if !cluster {
        let embedded = json!({
            "listen-client-urls": "http://127.0.0.1:2379",
            "advertise-client-urls": "http://127.0.0.1:2379",
            "listen-peer-urls": "http://127.0.0.1:2380",
            "initial-advertise-peer-urls": "http://127.0.0.1:2380",
            "initial-cluster": "default=http://127.0.0.1:2380",
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": "1000",
            "quota-backend-bytes": 4_294_967_296_i64,
        });
        let text = serde_json::to_string_pretty(&embedded).unwrap_or_default();
        data.insert("embedded-etcd.yaml".to_owned(), text);
    }
    ConfigMap {
        metadata: deployment.child(Component::Milvus),
        data: Some(data),
        ..ConfigMap::default()
    }
}

fn variables(deployment: &Deployment) -> Vec<EnvVar> {
    let secret = deployment.child_name(Component::Milvus);
    let mut variables =
        vec![secret_env("COMMON_SECURITY_DEFAULTROOTPASSWORD", &secret, "password")];
    let storage = deployment.spec.object_storage.as_ref();
    if let Some(secret) = storage.and_then(|storage| storage.credentials_secret.as_ref()) {
        variables.push(secret_env("MINIO_ACCESS_KEY_ID", secret, "accesskey"));
        variables.push(secret_env("MINIO_SECRET_ACCESS_KEY", secret, "secretkey"));
    }
    if !storage.is_some_and(|storage| storage.use_instance_role) {
        // Else every process asks the cloud's metadata service for credentials.
        variables.push(env("AWS_EC2_METADATA_DISABLED", "true"));
    }
    variables
}

fn container(variables: Vec<EnvVar>, arguments: &[&str], serves: bool) -> Container {
    let mut ports = vec![pod::port("metrics", METRICS_PORT)];
    if serves {
        ports.insert(0, pod::port("milvus", PORT));
    }
    let words = ["milvus", "run"].iter().chain(arguments).map(|&word| word.to_owned());
    Container {
        args: Some(words.collect()),
        env: Some(variables),
        ports: Some(ports),
        startup_probe: Some(Timing { period: 5, timeout: 3, failures: 60 }.tcp("metrics")),
        liveness_probe: Some(Timing { period: 15, timeout: 10, failures: 3 }.tcp("metrics")),
        readiness_probe: Some(
            Timing { period: 5, timeout: 3, failures: 2 }.http("/healthz", "metrics"),
        ),
        ..Container::default()
    }
}

fn file(name: &str) -> VolumeMount {
    let path = format!("/milvus/configs/{name}");
    VolumeMount { sub_path: Some(name.to_owned()), ..read_only(mount("config", &path)) }
}

fn standalone(deployment: &Deployment, hash: String) -> StatefulSet {
    let milvus = &deployment.spec.milvus;
    let name = deployment.child_name(Component::Milvus);
    let mut variables = variables(deployment);
    variables.push(env("DEPLOY_MODE", "STANDALONE"));
    variables.push(env("ETCD_USE_EMBED", "true"));
    variables.push(env("ETCD_DATA_DIR", "/var/lib/milvus/etcd"));
    variables.push(env("ETCD_CONFIG_PATH", "/milvus/configs/embedded-etcd.yaml"));
    if deployment.spec.object_storage.is_none() {
        variables.push(env("COMMON_STORAGETYPE", "local"));
    }
    let container = Container {
        resources: Some(milvus.resources.or(&[("cpu", "500m"), ("memory", "2Gi")])),
        volume_mounts: Some(vec![
            file("user.yaml"),
            file("embedded-etcd.yaml"),
            mount("data", "/var/lib/milvus"),
            mount("tmp", "/tmp"),
            mount("run", "/run/milvus"),
        ]),
        ..container(variables, &["standalone"], true)
    };
    let spec = PodSpec {
        containers: vec![deployment.container("milvus", wanted_image(deployment), container)],
        volumes: Some(vec![
            config_volume("config", &name),
            scratch("tmp", "1Gi"),
            scratch("run", "64Mi"),
        ]),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..PodSpec::default()
    };
    StatefulSet {
        metadata: deployment.child(Component::Milvus),
        spec: Some(StatefulSetSpec {
            replicas: Some(i32::from(!deployment.spec.hibernate)),
            selector: deployment.selector(Component::Milvus),
            service_name: Some(name),
            template: deployment.pod_template(Component::Milvus, &milvus.scheduling, hash, spec),
            volume_claim_templates: Some(vec![claim(&milvus.storage)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn workload(deployment: &Deployment, role: Role, image: String, hash: String) -> Workload {
    let milvus = &deployment.spec.milvus;
    let mut variables = variables(deployment);
    variables.push(env("DEPLOY_MODE", "DISTRIBUTED"));
    if role == PROXY {
        // It goes to another copy only when it has given up a query node: after half a second then,
        // instead of ten attempts with longer and longer pauses.
        variables.push(env("GRPC_CLIENT_MAXMAXATTEMPTS", "3"));
    }
    let container = Container {
        resources: Some(spec_of(deployment, role).resources.or(&role.requests)),
        volume_mounts: Some(vec![
            file("user.yaml"),
            // Segments and the log's buffers; all of it can be fetched again.
            mount("data", "/var/lib/milvus"),
            mount("tmp", "/tmp"),
            mount("run", "/run/milvus"),
        ]),
        ..container(variables, role.arguments, role == PROXY)
    };
    let spec = PodSpec {
        containers: vec![deployment.container("milvus", image, container)],
        volumes: Some(vec![
            config_volume("config", &deployment.child_name(Component::Milvus)),
            scratch("data", "20Gi"),
            scratch("tmp", "1Gi"),
            scratch("run", "64Mi"),
        ]),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..PodSpec::default()
    };
    let replicas = if deployment.spec.hibernate { 0 } else { replicas(deployment, role) };
    Workload {
        metadata: deployment.child(role.component),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: deployment.selector(role.component),
            revision_history_limit: Some(3),
            // /healthz says 200 before a process has told what it is.
            min_ready_seconds: Some(10),
            progress_deadline_seconds: Some(600),
            strategy: Some(pod::rolling_update()),
            template: deployment.pod_template(role.component, &milvus.scheduling, hash, spec),
            ..DeploymentSpec::default()
        }),
        ..Workload::default()
    }
}
