//! What owner references do not do when a SearchDeployment is deleted: Patroni's Endpoints have none,
//! and volumes and passwords stay unless the policy says otherwise.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Endpoints, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::components::meta::{COMPONENT, INSTANCE, MANAGED_BY, MANAGER, NAME};
use crate::crd::{DeletionPolicy, SearchDeployment};
use crate::error::{Error, unless_gone};

const FINALIZER: &str = "sextant.dev/clean-up";
/// For the last pods of Postgres; those of a lost node never end.
const LONGEST_WAIT: Duration = Duration::from_mins(2);

/// Makes sure that [`clean_up`] comes before the end of the SearchDeployment.
///
/// # Errors
/// Whatever the API server says.
pub async fn require(client: &Client, object: &SearchDeployment) -> Result<(), Error> {
    if is_required(object) { Ok(()) } else { set_finalizer(client, object, true).await }
}

/// Deletes what is to be deleted, and lets the SearchDeployment go. False while pods of Postgres are
/// there yet.
///
/// # Errors
/// Whatever the API server says.
pub async fn clean_up(client: &Client, object: &SearchDeployment) -> Result<bool, Error> {
    if !is_required(object) {
        return Ok(true);
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let deleted = async {
        // Members that are left without Patroni's Endpoints would found a new cluster in their last
        // moments, and the next one of this name would wait for it.
        let postgres = format!("{INSTANCE}={name},{COMPONENT}=postgres,{NAME}=sextant");
        delete_all::<StatefulSet>(client, &namespace, &postgres).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let left = pods.list_metadata(&ListParams::default().labels(&postgres).limit(1)).await?;
        if !left.items.is_empty() && waited(object) < LONGEST_WAIT {
            return Ok(false);
        }
        let patroni = format!("{INSTANCE}={name},{COMPONENT}=postgres,!{MANAGED_BY}");
        delete_all::<Endpoints>(client, &namespace, &patroni).await?;
        if object.spec.deletion_policy == DeletionPolicy::Delete {
            let claims = format!("{INSTANCE}={name},{NAME}=sextant");
            delete_all::<PersistentVolumeClaim>(client, &namespace, &claims).await?;
            // Made under Retain, they have no owner that would take them along.
            let secrets = format!("{INSTANCE}={name},{MANAGED_BY}={MANAGER}");
            delete_all::<Secret>(client, &namespace, &secrets).await?;
        }
        Ok::<_, kube::Error>(true)
    };
    let done = deleted.await.map_err(|source| Error::CleanUp { source: Box::new(source) })?;
    if done {
        set_finalizer(client, object, false).await?;
    }
    Ok(done)
}

/// Since the deletion.
fn waited(object: &SearchDeployment) -> Duration {
    let since = object.metadata.deletion_timestamp.as_ref().map_or(Timestamp::now(), |time| time.0);
    Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default()
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
