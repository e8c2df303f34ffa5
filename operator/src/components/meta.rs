//! Names, labels, selectors and owners of children: written once.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};

use crate::crd::SearchDeployment;
use crate::validate::Deployment;

pub const MANAGER: &str = "sextant-operator";
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const INSTANCE: &str = "app.kubernetes.io/instance";
pub const COMPONENT: &str = "app.kubernetes.io/component";
pub const NAME: &str = "app.kubernetes.io/name";

/// A part of the platform with pods of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Api,
    Embedder,
    Redis,
    Postgres,
    Milvus,
    MilvusProxy,
    MilvusCoordinator,
    MilvusStreamingNode,
    MilvusQueryNode,
    MilvusDataNode,
    MilvusIndexNode,
    Etcd,
}

impl Component {
    /// Whether an object is labelled as one of its own.
    pub fn is_of(self, object: &impl ResourceExt) -> bool {
        object.labels().get(COMPONENT).is_some_and(|component| component == self.as_str())
    }

    /// What follows the SearchDeployment's name, and the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Embedder => "embedder",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Milvus => "milvus",
            Self::MilvusProxy => "milvus-proxy",
            Self::MilvusCoordinator => "milvus-coordinator",
            Self::MilvusStreamingNode => "milvus-streamingnode",
            Self::MilvusQueryNode => "milvus-querynode",
            Self::MilvusDataNode => "milvus-datanode",
            Self::MilvusIndexNode => "milvus-indexnode",
            Self::Etcd => "milvus-etcd",
        }
    }
}

impl Deployment {
    pub fn child_name(&self, component: Component) -> String {
        format!("{}-{}", self.name, component.as_str())
    }

    /// The labels that pods are found by; they never change.
    pub fn selector_labels(&self, component: Component) -> BTreeMap<String, String> {
        labels([(NAME, "sextant"), (INSTANCE, self.name.as_str()), (COMPONENT, component.as_str())])
    }

    pub fn selector(&self, component: Component) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.selector_labels(component)),
            ..LabelSelector::default()
        }
    }

    /// The object of this component that has its name.
    pub fn child(&self, component: Component) -> ObjectMeta {
        self.child_of_name(component, self.child_name(component))
    }

    /// Another object of this component, as `suffix` says.
    pub fn child_with(&self, component: Component, suffix: &str) -> ObjectMeta {
        self.child_of_name(component, format!("{}-{suffix}", self.child_name(component)))
    }

    pub fn child_of_name(&self, component: Component, name: String) -> ObjectMeta {
        ObjectMeta { owner_references: Some(vec![self.owner()]), ..self.unowned(component, name) }
    }

    /// An object that outlives the SearchDeployment.
    pub fn unowned(&self, component: Component, name: String) -> ObjectMeta {
        let mut labels = self.selector_labels(component);
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        }
    }

    fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: SearchDeployment::api_version(&()).into_owned(),
            kind: SearchDeployment::kind(&()).into_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// The name of a Service inside the cluster, in whatever domain that is.
    pub fn host(&self, service: &str) -> String {
        format!("{service}.{}.svc", self.namespace)
    }
}

pub fn labels<const N: usize>(of: [(&str, &str); N]) -> BTreeMap<String, String> {
    of.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
