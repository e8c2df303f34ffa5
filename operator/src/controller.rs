//! Watches, reconciles, waits. The only user of `kube::runtime`'s controller.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{Controller, Predicate, PredicateConfig, WatchStreamExt, predicates};
use kube::{Client, Resource, ResourceExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::sync::watch;

use crate::apply::Applier;
use crate::changes::{Change, Why, changes};
use crate::components::meta::{COMPONENT, INSTANCE, MANAGED_BY, MANAGER};
use crate::components::{Observed, desired};
use crate::crd::{DeletionPolicy, Phase, SearchDeployment, SearchDeploymentStatus};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::patroni::{Cluster, Patroni};
use crate::rollout;
use crate::status::{self, Outcome};
use crate::validate::{Deployment, validate};
use crate::watch::{Caches, Scope};

const FINALIZER: &str = "sextant.dev/clean-up";
/// How often a SearchDeployment is looked at though nothing happened.
const RESYNC: Duration = Duration::from_mins(10);
/// The first wait after a failure; each further one is twice as long.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_mins(5);
const CONCURRENCY: u16 = 8;
/// A field that somebody else goes on changing is left to them after so many repairs in a row, each
/// within `FIGHT` of the one before.
const MAX_REPAIRS: u32 = 5;
const FIGHT: Duration = Duration::from_secs(30);

pub struct Context {
    client: Client,
    patroni: Patroni,
    caches: Caches,
    metrics: Metrics,
    recorder: Recorder,
    default_version: String,
    /// Objects that something happened to and that were not reconciled since.
    waiting: Mutex<HashSet<String>>,
    failures: Mutex<HashMap<String, u32>>,
    /// By object: repairs in a row, and when the last was made.
    repairs: Mutex<HashMap<String, (u32, Instant)>>,
    /// By object: the status that was written last, until the cache has it.
    written: Mutex<HashMap<String, SearchDeployment>>,
    /// Content of Secrets that specs refer to, by namespace and name, with their version.
    secrets: Mutex<HashMap<(String, String), (String, SecretData)>>,
}

impl Context {
    fn waits(&self, object: String, waits: bool) {
        let mut waiting = lock(&self.waiting);
        if waits {
            waiting.insert(object);
        } else {
            waiting.remove(&object);
        }
        self.metrics.queue.set(waiting.len().cast_signed() as i64);
    }
}

type SecretData = std::collections::BTreeMap<String, ByteString>;

/// How often Patroni is asked; more often while Postgres is changed.
const PATRONI_PERIOD: Duration = Duration::from_secs(30);
const PATRONI_STEP: Duration = Duration::from_secs(3);

pub struct Options {
    pub scope: Scope,
    pub default_version: String,
    /// Of this operator, for events and the lease.
    pub identity: String,
    pub patroni: Patroni,
}

/// Runs until `stop`. Reconciles while `leads` is true; before, it only fills its caches.
/// `synced` is set when they are full.
pub async fn run(
    client: Client,
    options: Options,
    metrics: Metrics,
    mut leads: watch::Receiver<bool>,
    synced: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) {
    let Options { scope, default_version, identity, patroni } = options;
    let api = scope.api::<SearchDeployment>(&client);
    let (deployments, writer) = reflector::store();
    let (caches, touched) = Caches::start(&client, &scope, deployments.clone());
    // Status is the operator's own: what it writes there must not make it look again.
    let changed =
        predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    let mut watched = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(changed, PredicateConfig::default())
        .boxed();
    let mut touched = touched.boxed();
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(identity) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        patroni,
        caches,
        metrics,
        default_version,
        waiting: Mutex::default(),
        failures: Mutex::default(),
        repairs: Mutex::default(),
        written: Mutex::default(),
        secrets: Mutex::default(),
    });
    let ready = async {
        // Fails only when its writer is gone.
        let _ = deployments.wait_until_ready().await;
        context.caches.ready().await;
        synced.send_replace(true);
        let _ = leads.wait_for(|leads| *leads).await;
    };
    // Who reads the streams fills the caches: also while another operator leads.
    let read = async {
        tokio::join!(async { while watched.next().await.is_some() {} }, async {
            while touched.next().await.is_some() {}
        },)
    };
    tokio::select! {
        () = ready => {}
        _ = read => return,
        _ = stop.wait_for(|stop| *stop) => return,
    }
    let all: Vec<_> =
        deployments.state().iter().map(|object| ObjectRef::from_obj(&**object)).collect();
    context.metrics.is_leader.set(1);
    let wait = |context: &Arc<Context>| {
        let context = Arc::clone(context);
        move |object: &ObjectRef<SearchDeployment>| context.waits(object.to_string(), true)
    };
    let (changed, touch) = (wait(&context), wait(&context));
    let watched = watched.inspect_ok(move |object| changed(&ObjectRef::from_obj(object)));
    let touched = touched.inspect(touch);
    Controller::for_stream(watched, deployments)
        .with_config(kube::runtime::controller::Config::default().concurrency(CONCURRENCY))
        .reconcile_on(touched)
        .reconcile_on(stream::iter(all).chain(stream::pending()))
        .graceful_shutdown_on(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .run(reconcile, error_policy, Arc::clone(&context))
        .for_each(async |done| {
            // A SearchDeployment that is gone is no failure.
            if let Err(error) = done {
                if let kube::runtime::controller::Error::ObjectNotFound(gone) = &error {
                    context.waits(gone.to_string(), false);
                }
                tracing::debug!(%error, "not reconciled");
            }
        })
        .await;
    context.metrics.is_leader.set(0);
}

async fn reconcile(object: Arc<SearchDeployment>, context: Arc<Context>) -> Result<Action, Error> {
    let begin = Instant::now();
    context.metrics.under_way.inc();
    let key = key_of(&object);
    context.waits(key.clone(), false);
    let object = with_own_status(object, &context);
    let done = reconcile_once(&object, &context).await;
    context.metrics.under_way.dec();
    context.metrics.reconciles.inc();
    context.metrics.duration.observe(begin.elapsed().as_secs_f64());
    match &done {
        Ok(_) => {
            lock(&context.failures).remove(&key);
        }
        Err(error) => context.metrics.failures.with_label_values(&[error.reason()]).inc(),
    }
    done
}

#[expect(clippy::needless_pass_by_value, reason = "what the controller calls")]
fn error_policy(object: Arc<SearchDeployment>, error: &Error, context: Arc<Context>) -> Action {
    let mut failures = lock(&context.failures);
    let failures = failures.entry(key_of(&object)).or_insert(0);
    let wait = backoff(*failures, rand::random());
    *failures = failures.saturating_add(1);
    tracing::warn!(object = %key_of(&object), error = %error.chain(), ?wait, "a reconciliation failed");
    Action::requeue(wait)
}

/// Exponential, with a cap, half of it by chance: `chance` is from 0 to 1.
fn backoff(failures: u32, chance: f64) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << failures.min(16)).min(LONGEST_BACKOFF);
    full.mul_f64(0.5 + chance / 2.0)
}

/// The object with the status that it has, which the cache may not have yet: what is compared with an
/// older one would be taken for written.
fn with_own_status(mut object: Arc<SearchDeployment>, context: &Context) -> Arc<SearchDeployment> {
    let mut written = lock(&context.written);
    let key = key_of(&object);
    if let Some(last) = written.get(&key) {
        if last.metadata.uid == object.metadata.uid && version_of(last) > version_of(&object) {
            Arc::make_mut(&mut object).status.clone_from(&last.status);
        } else {
            written.remove(&key);
        }
    }
    object
}

/// Newer objects have higher ones.
///
/// # Source
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>
fn version_of(object: &SearchDeployment) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

async fn reconcile_once(object: &SearchDeployment, context: &Context) -> Result<Action, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        clean_up(object, context).await?;
        lock(&context.written).remove(&key_of(object));
        return Ok(Action::await_change());
    }
    let deployment = match validate(object, &context.default_version) {
        Ok(deployment) => deployment,
        Err(faults) => {
            let generation = object.metadata.generation.unwrap_or_default();
            let status = status::invalid(generation, &faults, object.status.as_ref(), &now());
            write_status(object, context, status).await?;
            // Nothing but another spec can help.
            return Ok(Action::await_change());
        }
    };
    if !object.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        set_finalizer(object, context, true).await?;
    }
    let mut observed = observe(&deployment, context).await?;
    // A stream of its own for each reconciliation; asked only for passwords that are not there yet.
    let wanted = desired(&deployment, &observed, &mut StdRng::from_os_rng());
    let changes = changes(&deployment, &wanted, &observed);
    if deployment.spec.paused {
        let outcome = Outcome::Paused { pending: &changes };
        let status =
            status::status(&deployment, &observed, &outcome, object.status.as_ref(), &now());
        write_status(object, context, status).await?;
        return Ok(Action::requeue(RESYNC));
    }
    let made = make(object, &deployment, context, &changes, &mut observed).await;
    let (cluster, made, wait) = match made {
        Ok(conflict) => postgres(&deployment, context, &observed, conflict).await,
        failed => (None, failed, RESYNC),
    };
    let outcome = match &made {
        Ok(None) => Outcome::Applied,
        Ok(Some(conflict)) => {
            Outcome::Failed { reason: "FieldConflict", message: conflict.clone() }
        }
        Err(error) => Outcome::Failed { reason: error.reason(), message: error.chain() },
    };
    let mut status =
        status::status(&deployment, &observed, &outcome, object.status.as_ref(), &now());
    if let (Some(status), Some(cluster)) = (&mut status.postgres, &cluster) {
        status::replication(status, cluster);
    }
    write_status(object, context, status).await?;
    let wait = |conflict: Option<_>| if conflict.is_some() { LONGEST_BACKOFF } else { wait };
    made.map(|conflict| Action::requeue(wait(conflict)))
}

/// Looks at the managed Postgres and takes the next step of its changes. What Patroni says, how the
/// reconciliation ends, and when to look again.
async fn postgres(
    deployment: &Deployment,
    context: &Context,
    observed: &Observed,
    conflict: Option<String>,
) -> (Option<Cluster>, Result<Option<String>, Error>, Duration) {
    if deployment.spec.postgres.external.is_some() || deployment.spec.hibernate {
        return (None, Ok(conflict), RESYNC);
    }
    let patroni = &context.patroni;
    let looked = match rollout::look(patroni, observed).await {
        Ok(Some(looked)) => looked,
        Ok(None) => return (None, Ok(conflict), RESYNC),
        // Its pods begin, or are lost: readiness tells that. It is asked again.
        Err(error) => {
            context.metrics.failures.with_label_values(&["PatroniNoAnswer"]).inc();
            tracing::debug!(%error, "Patroni is asked again");
            return (None, Ok(conflict), PATRONI_PERIOD);
        }
    };
    let step = rollout::step(&context.client, patroni, deployment, observed, &looked).await;
    let cluster = Some(looked.0);
    match step {
        Ok(true) => (cluster, Ok(conflict), PATRONI_PERIOD),
        Ok(false) => (cluster, Ok(conflict), PATRONI_STEP),
        Err(error) => (cluster, Err(error), PATRONI_STEP),
    }
}

async fn observe(deployment: &Deployment, context: &Context) -> Result<Observed, Error> {
    let mut observed = context.caches.observed(&deployment.namespace, &deployment.name);
    for name in deployment.spec.secrets() {
        if let Some(data) = referenced(deployment, context, name).await? {
            observed.referenced.insert(name.to_owned(), data);
        }
    }
    Ok(observed)
}

/// The content of a Secret, read again when it changed.
async fn referenced(
    deployment: &Deployment,
    context: &Context,
    name: &str,
) -> Result<Option<SecretData>, Error> {
    let Some(version) = context.caches.secret_version(&deployment.namespace, name) else {
        return Ok(None);
    };
    let key = (deployment.namespace.clone(), name.to_owned());
    if let Some((known, data)) = lock(&context.secrets).get(&key)
        && *known == version
    {
        return Ok(Some(data.clone()));
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &deployment.namespace);
    let secret = secrets
        .get_opt(name)
        .await
        .map_err(|source| Error::ReadSecret { name: name.to_owned(), source: Box::new(source) })?;
    let Some(secret) = secret else { return Ok(None) };
    let version = secret.resource_version().unwrap_or_default();
    let data = secret.data.unwrap_or_default();
    lock(&context.secrets).insert(key, (version, data.clone()));
    Ok(Some(data))
}

/// Makes the changes, and notes what there is then. Returns what was left to somebody who goes on changing the same object.
async fn make(
    object: &SearchDeployment,
    deployment: &Deployment,
    context: &Context,
    changes: &[Change],
    observed: &mut Observed,
) -> Result<Option<String>, Error> {
    let applier = Applier::new(&context.client, &deployment.namespace);
    let (mut conflict, mut refused, mut done) = (None, None, Vec::new());
    for change in changes {
        if let Change::Update { why: Why::Drift, .. } = change
            && !may_repair(context, &format!("{}/{change}", deployment.namespace))
        {
            conflict = Some(format!(
                "{} {} is changed again and again by somebody else: it is left as it is",
                change.kind().as_str(),
                change.name()
            ));
            continue;
        }
        let made = match applier.make(change).await {
            // A storage class may refuse that for ever: the others are changed all the same.
            Err(error @ Error::GrowVolumes { .. }) => {
                refused.get_or_insert(error);
                continue;
            }
            made => made?,
        };
        if let Some(there) = made {
            observed.objects.insert((change.kind(), change.name()), Arc::new(there));
        }
        tracing::info!(object = %key_of(object), %change, "changed");
        context.metrics.changes.with_label_values(&[change.verb()]).inc();
        done.push(change);
    }
    if let Some(first) = done.first() {
        let more = done.len() - 1;
        let note = if more == 0 { first.to_string() } else { format!("{first} and {more} more") };
        event(object, context, EventType::Normal, "Changed", note).await;
    }
    refused.map_or(Ok(conflict), Err)
}

fn may_repair(context: &Context, object: &str) -> bool {
    let now = Instant::now();
    let mut repairs = lock(&context.repairs);
    repairs.retain(|_, (_, last)| now.duration_since(*last) < LONGEST_BACKOFF);
    let (count, last) = repairs.entry(object.to_owned()).or_insert((0, now));
    if now.duration_since(*last) > FIGHT {
        *count = 0;
    }
    if *count >= MAX_REPAIRS {
        return false;
    }
    *count += 1;
    *last = now;
    true
}

/// An event is a courtesy: one that cannot be written stops nothing.
async fn event(
    object: &SearchDeployment,
    context: &Context,
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
    if let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await {
        tracing::debug!(%error, "an event was not written");
    }
}

async fn write_status(
    object: &SearchDeployment,
    context: &Context,
    status: SearchDeploymentStatus,
) -> Result<(), Error> {
    let before = object.status.as_ref();
    if before == Some(&status) {
        return Ok(());
    }
    let phase = |status: Option<&SearchDeploymentStatus>| status.and_then(|status| status.phase);
    if phase(Some(&status)) != phase(before) {
        let type_ = match status.phase {
            Some(Phase::Failed | Phase::Invalid) => EventType::Warning,
            _ => EventType::Normal,
        };
        let reason = status.phase.map(|phase| format!("{phase:?}")).unwrap_or_default();
        let says = match status.phase {
            Some(Phase::Failed | Phase::Invalid) => "Degraded",
            Some(Phase::Progressing) => "Progressing",
            Some(Phase::Paused) => "Paused",
            _ => "Ready",
        };
        let condition = status.conditions.iter().find(|condition| condition.type_ == says);
        let note = condition.map(|condition| condition.message.clone()).unwrap_or_default();
        event(object, context, type_, &reason, note).await;
        let was_ready = before.is_some_and(|before| before.phase == Some(Phase::Ready));
        if status.phase == Some(Phase::Ready) && !was_ready {
            first_ready(object, context);
        }
    }
    let api: Api<SearchDeployment> =
        Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
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
    let patched =
        api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&body)).await;
    match patched {
        Ok(written) => {
            lock(&context.written).insert(key_of(object), written);
            Ok(())
        }
        // It was deleted meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(Error::WriteStatus { source: Box::new(source) }),
    }
}

fn first_ready(object: &SearchDeployment, context: &Context) {
    let Some(created) = object.creation_timestamp() else { return };
    let seconds = Timestamp::now().duration_since(created.0).as_secs_f64();
    context.metrics.time_to_ready.observe(seconds);
}

async fn set_finalizer(
    object: &SearchDeployment,
    context: &Context,
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
        Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&body)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(Error::ChangeFinalizer { source: Box::new(source) }),
    }
}

/// What owner references do not do: Patroni's Endpoints have none, and volumes and passwords stay
/// unless the policy says otherwise.
async fn clean_up(object: &SearchDeployment, context: &Context) -> Result<(), Error> {
    if !object.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(());
    }
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let deleted = async {
        use k8s_openapi::api::core::v1::Endpoints;
        let parameters = DeleteParams::background();
        let of = |labels: String| ListParams::default().labels(&labels);
        let patroni = of(format!("{INSTANCE}={name},{COMPONENT}=postgres,!{MANAGED_BY}"));
        let endpoints: Api<Endpoints> = Api::namespaced(context.client.clone(), &namespace);
        for left in endpoints.list(&patroni).await? {
            gone(endpoints.delete(&left.name_any(), &parameters).await.map(drop))?;
        }
        if object.spec.deletion_policy == DeletionPolicy::Delete {
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(context.client.clone(), &namespace);
            let all = of(format!("{INSTANCE}={name},app.kubernetes.io/name=sextant"));
            for claim in claims.list(&all).await? {
                gone(claims.delete(&claim.name_any(), &parameters).await.map(drop))?;
            }
            // Made under Retain, they have no owner that would take them along.
            let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
            let made = of(format!("{INSTANCE}={name},{MANAGED_BY}={MANAGER}"));
            for secret in secrets.list(&made).await? {
                gone(secrets.delete(&secret.name_any(), &parameters).await.map(drop))?;
            }
        }
        Ok::<_, kube::Error>(())
    };
    deleted.await.map_err(|source| Error::CleanUp { source: Box::new(source) })?;
    set_finalizer(object, context, false).await
}

fn gone(deleted: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

fn key_of(object: &SearchDeployment) -> String {
    ObjectRef::from_obj(object).to_string()
}

fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_with_every_failure_up_to_its_cap() {
        assert_eq!(backoff(0, 1.0), FIRST_BACKOFF);
        assert_eq!(backoff(3, 1.0), FIRST_BACKOFF * 8);
        assert_eq!(backoff(40, 1.0), LONGEST_BACKOFF);
        assert_eq!(backoff(0, 0.0), FIRST_BACKOFF / 2);
    }
}
