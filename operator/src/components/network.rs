//! Which pods may talk to which: exactly the connections that the components make.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::{Component, MANAGER, NAME, labels};
use super::{Desired, Kind, etcd, milvus, postgres, redis, server};
use crate::crd::MilvusMode;
use crate::validate::Deployment;

/// Who may reach a component's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Component(Component),
    /// Clients of the API, in the namespaces that the spec allows.
    Clients,
    /// Whoever scrapes metrics, in any namespace.
    Scrapers,
    Operator,
}

/// A connection that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    pub from: Peer,
    pub to: Component,
    pub port: u16,
}

/// All connections between pods of a SearchDeployment, and those from outside.
pub fn edges(deployment: &Deployment) -> Vec<Edge> {
    use Component::{Api, Embedder, Etcd, Milvus, MilvusProxy, Postgres, Redis};
    let spec = &deployment.spec;
    let mut edges = Vec::new();
    let mut edge = |from: Peer, to: Component, port: u16| edges.push(Edge { from, to, port });
    edge(Peer::Clients, Api, server::PORT);
    edge(Peer::Scrapers, Api, server::PORT);
    if spec.embedder.is_dedicated() {
        edge(Peer::Component(Api), Embedder, server::PORT);
        edge(Peer::Scrapers, Embedder, server::PORT);
    }
    if spec.cache.is_managed() {
        edge(Peer::Component(Api), Redis, redis::PORT);
        if spec.cache.has_exporter() {
            edge(Peer::Scrapers, Redis, redis::METRICS_PORT);
        }
    }
    if spec.postgres.external.is_none() {
        edge(Peer::Component(Api), Postgres, postgres::PORT);
        edge(Peer::Component(Postgres), Postgres, postgres::PORT);
        edge(Peer::Component(Postgres), Postgres, postgres::PATRONI_PORT);
        edge(Peer::Operator, Postgres, postgres::PATRONI_PORT);
        if spec.monitoring.enabled() {
            edge(Peer::Scrapers, Postgres, postgres::PATRONI_PORT);
        }
    }
    match spec.milvus.mode {
        MilvusMode::External => {}
        MilvusMode::Standalone => {
            edge(Peer::Component(Api), Milvus, milvus::PORT);
            edge(Peer::Scrapers, Milvus, milvus::METRICS_PORT);
        }
        MilvusMode::Cluster => {
            edge(Peer::Component(Api), MilvusProxy, milvus::PORT);
            let roles: Vec<_> = milvus::roles(deployment);
            for to in &roles {
                edge(Peer::Scrapers, to.component, milvus::METRICS_PORT);
                edge(Peer::Component(to.component), Etcd, etcd::PORT);
                for from in &roles {
                    for port in to.ports {
                        edge(Peer::Component(from.component), to.component, *port);
                    }
                }
            }
            edge(Peer::Component(Etcd), Etcd, etcd::PEER_PORT);
        }
    }
    edges
}

pub fn add(desired: &mut Desired, deployment: &Deployment) {
    if !deployment.spec.network_policy.enabled() {
        return;
    }
    let edges = edges(deployment);
    let mut components: Vec<_> = edges.iter().map(|edge| edge.to).collect();
    components.sort();
    components.dedup();
    for component in components {
        let edges = edges.iter().filter(|edge| edge.to == component);
        desired.add(Kind::NetworkPolicy, policy(deployment, component, edges));
    }
}

fn policy<'a>(
    deployment: &Deployment,
    component: Component,
    edges: impl Iterator<Item = &'a Edge>,
) -> NetworkPolicy {
    let rules = edges.map(|edge| NetworkPolicyIngressRule {
        from: Some(vec![peer(deployment, &edge.from)]),
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(edge.port.into())),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    });
    NetworkPolicy {
        metadata: deployment.child(component),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(deployment.selector(component)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(rules.collect()),
            egress: None,
        }),
    }
}

fn peer(deployment: &Deployment, peer: &Peer) -> NetworkPolicyPeer {
    let everywhere = LabelSelector::default();
    match peer {
        Peer::Component(component) => NetworkPolicyPeer {
            pod_selector: Some(deployment.selector(*component)),
            ..NetworkPolicyPeer::default()
        },
        Peer::Clients => {
            let allowed = &deployment.spec.network_policy.allowed_namespaces;
            NetworkPolicyPeer {
                namespace_selector: Some(LabelSelector {
                    match_labels: super::pod::some_map(allowed.clone()),
                    ..everywhere
                }),
                ..NetworkPolicyPeer::default()
            }
        }
        Peer::Scrapers => NetworkPolicyPeer {
            namespace_selector: Some(everywhere),
            pod_selector: Some(LabelSelector {
                match_labels: Some(labels([(NAME, "prometheus")])),
                ..LabelSelector::default()
            }),
            ..NetworkPolicyPeer::default()
        },
        Peer::Operator => NetworkPolicyPeer {
            namespace_selector: Some(everywhere),
            pod_selector: Some(LabelSelector {
                match_labels: Some(labels([(NAME, MANAGER)])),
                ..LabelSelector::default()
            }),
            ..NetworkPolicyPeer::default()
        },
    }
}
