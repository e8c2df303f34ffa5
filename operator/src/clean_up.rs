//! What owner references do not do when a SearchDeployment is deleted: Patroni's Endpoints have none,
//! and volumes and passwords stay unless the policy says otherwise.

use k8s_openapi::api::core::v1::{Endpoints, PersistentVolumeClaim, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::components::meta::{COMPONENT, INSTANCE, MANAGED_BY, MANAGER, NAME};
use crate::crd::{DeletionPolicy, SearchDeployment};
use crate::error::{Error, unless_gone};

const FINALIZER: &str = "sextant.dev/clean-up";

/// Makes sure that [`clean_up`] comes before the end of the SearchDeployment.
///
/// # Errors
/// Whatever the API server says.
pub async fn require(client: &Client, object: &SearchDeployment) -> Result<(), Error> {
    if is_required(object) { Ok(()) } else { set_finalizer(client, object, true).await }
}

/// Deletes what is to be deleted, and lets the SearchDeployment go.
///
/// # Errors
/// Whatever the API server says.
pub async fn clean_up(client: &Client, object: &SearchDeployment) -> Result<(), Error> {
    if !is_required(object) {
        return Ok(());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let deleted = async {
        let patroni = format!("{INSTANCE}={name},{COMPONENT}=postgres,!{MANAGED_BY}");
        delete_all::<Endpoints>(client, &namespace, &patroni).await?;
        if object.spec.deletion_policy == DeletionPolicy::Delete {
            let claims = format!("{INSTANCE}={name},{NAME}=sextant");
            delete_all::<PersistentVolumeClaim>(client, &namespace, &claims).await?;
            // Made under Retain, they have no owner that would take them along.
            let secrets = format!("{INSTANCE}={name},{MANAGED_BY}={MANAGER}");
            delete_all::<Secret>(client, &namespace, &secrets).await?;
        }
        Ok::<_, kube::Error>(())
    };
    deleted.await.map_err(|source| Error::CleanUp { source: Box::new(source) })?;
    set_finalizer(client, object, false).await
}

fn is_required(object: &SearchDeployment) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

async fn delete_all<K>(client: &Client, namespace: &str, labels: &str) -> Result<(), kube::Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    for object in api.list(&ListParams::default().labels(labels)).await? {
        unless_gone(api.delete(&object.name_any(), &DeleteParams::background()).await)?;
    }
    Ok(())
}

async fn set_finalizer(
    client: &Client,
    object: &SearchDeployment,
    present: bool,
) -> Result<(), Error> {
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    if present {
        finalizers.push(FINALIZER.to_owned());
    }
    let body = json!({"metadata": {
        "finalizers": finalizers,
        // Of the list that was read.
        "resourceVersion": object.resource_version(),
    }});
    let api: Api<SearchDeployment> =
        Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let patched =
        api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&body)).await;
    unless_gone(patched)
        .map(drop)
        .map_err(|source| Error::ChangeFinalizer { source: Box::new(source) })
}
