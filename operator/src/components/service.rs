//! How pods are reached inside the cluster.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::Component;
use crate::validate::Deployment;

impl Deployment {
    /// The Service of a component's pods: each port leads to theirs of the same name.
    pub fn service(&self, component: Component, ports: &[(&str, u16)]) -> Service {
        Service {
            metadata: self.child(component),
            spec: Some(ServiceSpec {
                selector: Some(self.selector_labels(component)),
                ports: Some(ports.iter().map(|(name, number)| port(name, *number)).collect()),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    }
}

/// A port that leads to the pods' port of the same name.
pub fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
