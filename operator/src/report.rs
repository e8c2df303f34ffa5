//! Tells people: the status of SearchDeployments, and events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use crate::crd::{Phase, SearchDeployment, SearchDeploymentStatus};
use crate::error::{Error, unless_gone};
use crate::metrics::Metrics;

#[derive(Clone)]
pub struct Report {
    client: Client,
    recorder: Recorder,
    metrics: Metrics,
    /// By uid: the object as it was written last, until the cache has it.
    written: Arc<Mutex<HashMap<String, SearchDeployment>>>,
}

impl Report {
    pub fn new(client: Client, recorder: Recorder, metrics: Metrics) -> Self {
        Self { client, recorder, metrics, written: Arc::default() }
    }

    /// The object with the status that it has, which the cache may not have yet: what is compared
    /// with an older one would be taken for written.
    pub fn with_last_status(&self, mut object: Arc<SearchDeployment>) -> Arc<SearchDeployment> {
        let mut written = self.written();
        let uid = object.uid().unwrap_or_default();
        if let Some(last) = written.get(&uid) {
            if version_of(last) > version_of(&object) {
                Arc::make_mut(&mut object).status.clone_from(&last.status);
            } else {
                written.remove(&uid);
            }
        }
        object
    }

    /// Of an object that is gone.
    pub fn forget(&self, object: &SearchDeployment) {
        self.written().remove(&object.uid().unwrap_or_default());
    }

    /// Writes the status if it is another, and an event if the phase is.
    ///
    /// # Errors
    /// Whatever the API server says.
    pub async fn status(
        &self,
        object: &SearchDeployment,
        status: SearchDeploymentStatus,
    ) -> Result<(), Error> {
        let before = object.status.as_ref();
        if before == Some(&status) {
            return Ok(());
        }
        let phase_before = before.and_then(|before| before.phase);
        if let Some(phase) = status.phase.filter(|phase| Some(*phase) != phase_before) {
            self.phase(object, &status, phase).await;
        }
        // A whole new status: `null` takes away what is no longer said.
        let mut body = json!({"status": status});
        if let (Some(old), Some(new)) = (
            serde_json::to_value(before).unwrap_or_default().as_object(),
            body["status"].as_object_mut(),
        ) {
            for field in old.keys() {
                new.entry(field.clone()).or_insert(serde_json::Value::Null);
            }
        }
        let api: Api<SearchDeployment> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let patch = Patch::Merge(&body);
        let patched = api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await;
        let written = unless_gone(patched)
            .map_err(|source| Error::WriteStatus { source: Box::new(source) })?;
        if let Some(written) = written {
            self.written().insert(written.uid().unwrap_or_default(), written);
        }
        Ok(())
    }

    /// Tells of a new phase.
    async fn phase(
        &self,
        object: &SearchDeployment,
        status: &SearchDeploymentStatus,
        phase: Phase,
    ) {
        let (type_, says) = match phase {
            Phase::Failed | Phase::Invalid => (EventType::Warning, "Degraded"),
            Phase::Progressing => (EventType::Normal, "Progressing"),
            Phase::Paused => (EventType::Normal, "Paused"),
            _ => (EventType::Normal, "Ready"),
        };
        let condition = status.conditions.iter().find(|condition| condition.type_ == says);
        let note = condition.map(|condition| condition.message.clone()).unwrap_or_default();
        self.event(object, type_, &format!("{phase:?}"), note).await;
        let before = object.status.iter().flat_map(|status| &status.conditions);
        let mut begun = before.filter(|old| old.type_ == "Progressing" && old.status == "True");
        if let (Phase::Ready, Some(begun)) = (phase, begun.next()) {
            let took = Timestamp::now().duration_since(begun.last_transition_time.0);
            self.metrics.time_to_ready.observe(took.as_secs_f64());
        }
    }

    pub async fn event(
        &self,
        object: &SearchDeployment,
        type_: EventType,
        reason: &str,
        note: String,
    ) {
        self.publish(&object.object_ref(&()), type_, reason, note).await;
    }

    /// Of a SearchDeployment that cannot be read.
    pub async fn unreadable(&self, object: &ObjectReference, why: String) {
        let reason = "UnreadableObject";
        self.metrics.failures.with_label_values(&[reason]).inc();
        tracing::warn!(object = ?object.name, why, "a SearchDeployment cannot be read");
        self.publish(object, EventType::Warning, reason, why).await;
    }

    /// An event is a courtesy: one that cannot be written stops nothing.
    async fn publish(
        &self,
        object: &ObjectReference,
        type_: EventType,
        reason: &str,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, object).await {
            tracing::debug!(%error, "an event was not written");
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, HashMap<String, SearchDeployment>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Newer objects have higher ones.
///
/// # Source
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>
fn version_of(object: &SearchDeployment) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}
