//! Watches, reconciles, waits. The only user of `kube::runtime`'s controller.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{Controller, Predicate, PredicateConfig, WatchStreamExt, predicates};
use kube::{Client, ResourceExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::apply::Applier;
use crate::changes::{Change, Why, changes};
use crate::clean_up;
use crate::components::certificates;
use crate::components::meta::MANAGER;
use crate::components::{Desired, Observed, desired};
use crate::crd::{SearchDeployment, Synchronous};
use crate::error::Error;
use crate::handover::due;
use crate::metrics::{Metrics, Told};
use crate::patroni::{Cluster, Patroni};
use crate::report::Report;
use crate::rollout::{Rollout, Step};
use crate::status::{self, Outcome};
use crate::validate::{Deployment, validate};
use crate::watch::{Caches, Scope, readable};

/// How often a SearchDeployment is looked at though nothing happened.
const RESYNC: Duration = Duration::from_mins(10);
/// How often the last pods of a deleted one are looked for.
const CLEAN_UP_PERIOD: Duration = Duration::from_secs(1);
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
    rollout: Rollout,
    caches: Caches,
    metrics: Metrics,
    report: Report,
    default_version: String,
    /// Objects that something happened to and that were not reconciled since.
    waiting: Mutex<HashSet<String>>,
    failures: Mutex<HashMap<String, u32>>,
    /// By object: repairs in a row, and when the last was made.
    repairs: Mutex<HashMap<String, (u32, Instant)>>,
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
/// The same while a change is under way.
const PATRONI_STEP: Duration = Duration::from_secs(3);

pub struct Options {
    pub scope: Scope,
    pub default_version: String,
    /// Of this operator, for events and the lease.
    pub identity: String,
    pub patroni: Patroni,
    /// How long a replica of Postgres may fail to start before it is copied anew.
    pub rebuild_after: Duration,
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
    let Options { scope, default_version, identity, patroni, rebuild_after } = options;
    let api = scope.api::<DeserializeGuard<SearchDeployment>>(&client);
    let (deployments, writer) = reflector::store();
    let (caches, touched) = Caches::start(&client, &scope, deployments.clone());
    // Status is the operator's own: what it writes there must not make it look again.
    let changed =
        predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(identity) };
    let recorder = Recorder::new(client.clone(), reporter);
    let report = Report::new(client.clone(), recorder, metrics.clone());
    let told = report.clone();
    let mut watched = watcher(api, watcher::Config::default())
        .default_backoff()
        .try_filter_map(move |event| {
            let told = told.clone();
            async move { Ok(readable(event, &told).await) }
        })
        .reflect(writer)
        .applied_objects()
        .predicate_filter(changed, PredicateConfig::default())
        .boxed();
    let mut touched = touched.boxed();
    let context = Arc::new(Context {
        report,
        rollout: Rollout::new(client.clone(), patroni, rebuild_after),
        client,
        caches,
        metrics,
        default_version,
        waiting: Mutex::default(),
        failures: Mutex::default(),
        repairs: Mutex::default(),
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
    let arrivals = context.caches.arrivals();
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
        .reconcile_all_on(arrivals)
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
    context.metrics.tell_nothing();
}

async fn reconcile(object: Arc<SearchDeployment>, context: Arc<Context>) -> Result<Action, Error> {
    let begin = Instant::now();
    context.metrics.under_way.inc();
    let key = key_of(&object);
    context.waits(key.clone(), false);
    let object = context.report.with_last_status(object);
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

async fn reconcile_once(object: &SearchDeployment, context: &Context) -> Result<Action, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        if !clean_up::clean_up(&context.client, object).await? {
            return Ok(Action::requeue(CLEAN_UP_PERIOD));
        }
        context.report.forget(object);
        tell(context, object, Told::default());
        return Ok(Action::await_change());
    }
    let deployment = match validate(object, &context.default_version) {
        Ok(deployment) => deployment,
        Err(faults) => {
            let generation = object.metadata.generation.unwrap_or_default();
            let status = status::invalid(generation, &faults, object.status.as_ref(), &now());
            context.report.status(object, status).await?;
            // Nothing but another spec can help.
            return Ok(Action::await_change());
        }
    };
    clean_up::require(&context.client, object).await?;
    let (mut observed, wanted) = match prepare(&deployment, context).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let observed = context.caches.observed(&deployment.namespace, &deployment.name);
            let outcome = Outcome::Failed { reason: error.reason(), message: error.chain() };
            let before = object.status.as_ref();
            let status = status::status(&deployment, &observed, None, &outcome, before, &now());
            context.report.status(object, status).await?;
            return Err(error);
        }
    };
    let changes = changes(&deployment, &wanted, &observed);
    if deployment.spec.paused {
        let outcome = Outcome::Paused { pending: &changes };
        let status =
            status::status(&deployment, &observed, None, &outcome, object.status.as_ref(), &now());
        context.report.status(object, status).await?;
        return Ok(Action::requeue(RESYNC));
    }
    let changes = due(changes, &deployment, &observed);
    let made = make(object, &deployment, context, &changes, &mut observed).await;
    let (cluster, made, wait) = match made {
        Ok(conflict) => postgres(object, &deployment, context, &observed, conflict).await,
        failed => (None, failed, RESYNC),
    };
    let outcome = match &made {
        Ok(None) if wait == PATRONI_STEP => Outcome::PostgresChanging,
        Ok(None) => Outcome::Applied,
        Ok(Some(conflict)) => {
            Outcome::Failed { reason: "FieldConflict", message: conflict.clone() }
        }
        Err(error) => Outcome::Failed { reason: error.reason(), message: error.chain() },
    };
    let before = object.status.as_ref();
    let status = status::status(&deployment, &observed, cluster.as_ref(), &outcome, before, &now());
    let told = Told {
        available: status::available(&status),
        synchronous: (deployment.spec.postgres.external.is_none())
            .then(|| deployment.spec.postgres.synchronous != Synchronous::Off),
        certificate_ends: certificates::ends(&deployment, &observed),
    };
    tell(context, object, told);
    context.report.status(object, status).await?;
    let wait = |conflict: Option<_>| if conflict.is_some() { LONGEST_BACKOFF } else { wait };
    made.map(|conflict| Action::requeue(wait(conflict)))
}

fn tell(context: &Context, object: &SearchDeployment, told: Told) {
    let namespace = object.namespace().unwrap_or_default();
    context.metrics.tell(&namespace, &object.name_any(), told);
}

/// Looks at the managed Postgres and takes the next step of its changes. What Patroni says, how the
/// reconciliation ends, and when to look again.
async fn postgres(
    object: &SearchDeployment,
    deployment: &Deployment,
    context: &Context,
    observed: &Observed,
    conflict: Option<String>,
) -> (Option<Cluster>, Result<Option<String>, Error>, Duration) {
    if deployment.spec.postgres.external.is_some() || deployment.spec.hibernate {
        return (None, Ok(conflict), RESYNC);
    }
    let looked = match context.rollout.look(observed).await {
        Ok(Some(looked)) => looked,
        Ok(None) => return (None, Ok(conflict), RESYNC),
        // Its pods begin, or are lost: readiness tells that. It is asked again.
        Err(error) => {
            context.metrics.failures.with_label_values(&["PatroniNoAnswer"]).inc();
            tracing::debug!(%error, "Patroni is asked again");
            return (None, Ok(conflict), PATRONI_PERIOD);
        }
    };
    let step = context.rollout.step(deployment, observed, &looked).await;
    let cluster = Some(looked);
    match step {
        Ok(Step::Done) => (cluster, Ok(conflict), PATRONI_PERIOD),
        Ok(Step::UnderWay) => (cluster, Ok(conflict), PATRONI_STEP),
        Ok(Step::Rebuild(name)) => {
            let note = format!("{name} could not start: it is copied anew from the primary");
            context.report.event(object, EventType::Warning, "ReplicaRebuilt", note).await;
            (cluster, Ok(conflict), PATRONI_STEP)
        }
        Ok(Step::BeginAgain) => {
            let note = "the pod that began to make the Postgres cluster is gone: another may begin";
            context
                .report
                .event(object, EventType::Warning, "PostgresBegun", note.to_owned())
                .await;
            (cluster, Ok(conflict), PATRONI_STEP)
        }
        Err(error) => (cluster, Err(error), PATRONI_STEP),
    }
}

/// What there is, and what is to be.
async fn prepare(deployment: &Deployment, context: &Context) -> Result<(Observed, Desired), Error> {
    let observed = observe(deployment, context).await?;
    // A stream of its own for each reconciliation; asked only for passwords that are not there yet.
    let random = &mut StdRng::from_os_rng();
    let wanted = desired(deployment, &observed, today(), random)
        .map_err(|source| Error::MakeCertificate { source })?;
    Ok((observed, wanted))
}

async fn observe(deployment: &Deployment, context: &Context) -> Result<Observed, Error> {
    let mut observed = context.caches.observed(&deployment.namespace, &deployment.name);
    for name in deployment.spec.secrets() {
        if let Some(data) = referenced(deployment, context, name).await? {
            observed.referenced.insert(name.to_owned(), data);
        }
    }
    let is_there =
        |name: &str| context.caches.secret_version(&deployment.namespace, name).is_some();
    let named =
        deployment.spec.secrets().into_iter().chain(deployment.spec.api.keys_secret.as_deref());
    observed.missing_secrets = named.filter(|name| !is_there(name)).map(str::to_owned).collect();
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
        context.report.event(object, EventType::Normal, "Changed", note).await;
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

fn key_of(object: &SearchDeployment) -> String {
    ObjectRef::from_obj(object).to_string()
}

pub fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
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
