//! Makes the changes: server-side apply in order, then what is no longer wanted. All the writes to
//! children are here.

use kube::api::{
    Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::changes::{APPLIED, Change};
use crate::components::meta::MANAGER;
use crate::components::{Kind, Manifest};
use crate::error::{Error, unless_gone};

/// The field manager of replicas that an autoscaler is to take.
const HANDOVER: &str = "sextant-operator-handover";

pub struct Applier<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl<'a> Applier<'a> {
    pub fn new(client: &'a Client, namespace: &'a str) -> Self {
        Self { client, namespace }
    }

    /// Makes a change. What there is then, unless it is gone.
    ///
    /// # Errors
    /// Whatever the API server says.
    pub async fn make(&self, change: &Change) -> Result<Option<DynamicObject>, Error> {
        match change {
            Change::Create(manifest) => self.apply(manifest).await.map(Some),
            Change::Update { manifest, live, .. } => {
                self.hand_replicas_over(manifest, live).await?;
                self.apply(manifest).await.map(Some)
            }
            Change::Grow { manifest, live, size } => {
                self.grow(manifest, live, size).await.map_err(|source| Error::GrowVolumes {
                    name: manifest.name.clone(),
                    source: Box::new(source),
                })?;
                self.apply(manifest).await.map(Some)
            }
            Change::Delete { kind, live } => self
                .delete(*kind, live, PropagationPolicy::Background)
                .await
                .map(|()| None)
                .map_err(|source| Error::DeleteObject {
                    kind: *kind,
                    name: live.name_any(),
                    source: Box::new(source),
                }),
        }
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.namespace, &kind.resource())
    }

    async fn apply(&self, manifest: &Manifest) -> Result<DynamicObject, Error> {
        let mut body = manifest.body.clone();
        body["metadata"]["annotations"][APPLIED] = manifest.hash().into();
        // The fields are the operator's: who changed one by hand is overruled. Fields that nobody
        // here asked for stay whoever's they are.
        let parameters = PatchParams::apply(MANAGER).force();
        let api = self.api(manifest.kind);
        let patched = api.patch(&manifest.name, &parameters, &Patch::Apply(&body)).await;
        patched.map_err(|source| refused(manifest, source))
    }

    /// A Deployment whose replicas are no longer the operator's to say would go down to one, the
    /// default, before an autoscaler takes the field: another manager holds it meanwhile.
    ///
    /// # Source
    /// <https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership>
    async fn hand_replicas_over(
        &self,
        manifest: &Manifest,
        live: &DynamicObject,
    ) -> Result<(), Error> {
        let replicas = &live.data["spec"]["replicas"];
        let is_given_up = manifest.body["spec"]["replicas"].is_null() && !replicas.is_null();
        if manifest.kind != Kind::Deployment || !is_given_up {
            return Ok(());
        }
        let body = json!({
            "apiVersion": manifest.body["apiVersion"],
            "kind": manifest.body["kind"],
            "metadata": {"name": manifest.name},
            "spec": {"replicas": replicas},
        });
        let parameters = PatchParams::apply(HANDOVER);
        let api = self.api(manifest.kind);
        match api.patch(&manifest.name, &parameters, &Patch::Apply(&body)).await {
            // An autoscaler has taken it already, and may have changed it since.
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
            other => other.map(drop).map_err(|source| refused(manifest, source)),
        }
    }

    async fn delete(
        &self,
        kind: Kind,
        live: &DynamicObject,
        propagation: PropagationPolicy,
    ) -> Result<(), kube::Error> {
        let parameters = DeleteParams {
            propagation_policy: Some(propagation),
            // Not another one that was made meanwhile.
            preconditions: Some(Preconditions { uid: live.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        unless_gone(self.api(kind).delete(&live.name_any(), &parameters).await).map(drop)
    }

    /// Larger claims, then a StatefulSet that asks for claims of this size: it takes the pods of the
    /// one before over.
    async fn grow(
        &self,
        manifest: &Manifest,
        live: &DynamicObject,
        size: &str,
    ) -> Result<(), kube::Error> {
        use k8s_openapi::api::core::v1::PersistentVolumeClaim;
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), self.namespace);
        let volume = live.data["spec"]["volumeClaimTemplates"][0]["metadata"]["name"].as_str();
        let prefix = format!("{}-{}-", volume.unwrap_or("data"), manifest.name);
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let selector = selector_of(&manifest.body);
        for claim in claims.list(&kube::api::ListParams::default().labels(&selector)).await? {
            if claim.name_any().starts_with(&prefix) {
                let patch = Patch::Merge(&patch);
                claims.patch(&claim.name_any(), &PatchParams::default(), &patch).await?;
            }
        }
        self.delete(Kind::StatefulSet, live, PropagationPolicy::Orphan).await?;
        let api = self.api(Kind::StatefulSet);
        // Its pods are let go of before it is gone.
        let uid = live.uid().unwrap_or_default();
        let gone = kube::runtime::conditions::is_deleted(&uid);
        let waited = kube::runtime::wait::await_condition(api, &manifest.name, gone);
        match tokio::time::timeout(std::time::Duration::from_secs(20), waited).await {
            // Else the apply that follows fails, and all of it is done again.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn refused(manifest: &Manifest, source: kube::Error) -> Error {
    Error::ApplyObject {
        kind: manifest.kind,
        name: manifest.name.clone(),
        source: Box::new(source),
    }
}

fn selector_of(manifest: &Value) -> String {
    let labels = manifest["spec"]["selector"]["matchLabels"].as_object();
    let pairs = labels.into_iter().flatten();
    let pair =
        |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    pairs.map(pair).collect::<Vec<_>>().join(",")
}
