//! The etcd that holds the metadata of a Milvus cluster.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, Service};

use super::meta::Component;
use super::pod::{self, Timing, env, field_env, mount};
use super::postgres::claim;
use super::server::disruption_budget;
use super::{Desired, Kind};
use crate::crd::MilvusMode;
use crate::validate::Deployment;

pub const PORT: u16 = 2379;
pub const PEER_PORT: u16 = 2380;

pub fn add(desired: &mut Desired, deployment: &Deployment) {
    if deployment.spec.milvus.mode != MilvusMode::Cluster {
        return;
    }
    desired.add(Kind::Service, service(deployment));
    if deployment.spec.milvus.etcd.replicas() > 1 && !deployment.spec.hibernate {
        desired.add(Kind::PodDisruptionBudget, disruption_budget(deployment, Component::Etcd));
    }
    desired.add(Kind::StatefulSet, stateful_set(deployment));
}

/// The members' addresses for clients, as host:port.
pub fn endpoints(deployment: &Deployment) -> Vec<String> {
    members(deployment).map(|(_, host)| format!("{host}:{PORT}")).collect()
}

/// Names and hosts.
fn members(deployment: &Deployment) -> impl Iterator<Item = (String, String)> {
    let service = deployment.child_name(Component::Etcd);
    let host = deployment.host(&service);
    (0..deployment.spec.milvus.etcd.replicas())
        .map(move |number| (format!("{service}-{number}"), format!("{service}-{number}.{host}")))
}

fn service(deployment: &Deployment) -> Service {
    let mut service = deployment.service(Component::Etcd, &[("client", PORT), ("peer", PEER_PORT)]);
    let spec = service.spec.get_or_insert_default();
    spec.cluster_ip = Some("None".to_owned());
    // Members find each other before they are ready.
    spec.publish_not_ready_addresses = Some(true);
    service
}

fn stateful_set(deployment: &Deployment) -> StatefulSet {
    let milvus = &deployment.spec.milvus;
    let name = deployment.child_name(Component::Etcd);
    let host = deployment.host(&name);
    let cluster: Vec<String> = members(deployment)
        .map(|(name, host)| format!("{name}=http://{host}:{PEER_PORT}"))
        .collect();
    let container = Container {
        command: Some(vec!["etcd".to_owned()]),
        ports: Some(vec![pod::port("client", PORT), pod::port("peer", PEER_PORT)]),
        env: Some(vec![
            field_env("ETCD_NAME", "metadata.name"),
            env("ETCD_DATA_DIR", "/etcd/data"),
            env("ETCD_LISTEN_CLIENT_URLS", format!("http://0.0.0.0:{PORT}")),
            env("ETCD_LISTEN_PEER_URLS", format!("http://0.0.0.0:{PEER_PORT}")),
            env("ETCD_ADVERTISE_CLIENT_URLS", format!("http://$(ETCD_NAME).{host}:{PORT}")),
            env(
                "ETCD_INITIAL_ADVERTISE_PEER_URLS",
                format!("http://$(ETCD_NAME).{host}:{PEER_PORT}"),
            ),
            env("ETCD_INITIAL_CLUSTER", cluster.join(",")),
            env("ETCD_INITIAL_CLUSTER_TOKEN", name.clone()),
            env("ETCD_AUTO_COMPACTION_MODE", "revision"),
            env("ETCD_AUTO_COMPACTION_RETENTION", "1000"),
            env("ETCD_QUOTA_BACKEND_BYTES", "4294967296"),
            env("ETCD_SNAPSHOT_COUNT", "50000"),
            env("ETCD_HEARTBEAT_INTERVAL", "500"),
            env("ETCD_ELECTION_TIMEOUT", "2500"),
        ]),
        resources: Some(milvus.etcd.resources.or(&[("cpu", "100m"), ("memory", "256Mi")])),
        volume_mounts: Some(vec![mount("data", "/etcd")]),
        readiness_probe: Some(
            Timing { period: 5, timeout: 3, failures: 3 }.http("/health", "client"),
        ),
        // Not /health: a member without a leader would be killed, and never find one.
        liveness_probe: Some(Timing { period: 10, timeout: 5, failures: 6 }.tcp("client")),
        ..Container::default()
    };
    let image = deployment.spec.images.etcd().to_owned();
    let spec = PodSpec {
        containers: vec![deployment.container("etcd", image, container)],
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    };
    // It has no file of configuration: all that it reads is in its template.
    let hash = pod::hash([]);
    StatefulSet {
        metadata: deployment.child(Component::Etcd),
        spec: Some(StatefulSetSpec {
            replicas: Some(if deployment.spec.hibernate { 0 } else { milvus.etcd.replicas() }),
            selector: deployment.selector(Component::Etcd),
            service_name: Some(name),
            pod_management_policy: Some("Parallel".to_owned()),
            template: deployment.pod_template(Component::Etcd, &milvus.scheduling, hash, spec),
            volume_claim_templates: Some(vec![claim(&milvus.etcd.storage)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}
