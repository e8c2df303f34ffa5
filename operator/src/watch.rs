//! What the operator knows of the cluster without asking again: everything that it made, the pods of
//! Postgres, and which Secrets there are.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};

use crate::components::meta::{COMPONENT, INSTANCE, MANAGED_BY, MANAGER, NAME};
use crate::components::{Kind, Observed};
use crate::crd::SearchDeployment;
use crate::report::Report;

type Touched = stream::BoxStream<'static, ObjectRef<SearchDeployment>>;

/// Where the operator looks.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// `None`: everywhere.
    pub namespace: Option<String>,
}

impl Scope {
    pub fn dynamic(&self, client: &Client, resource: &ApiResource) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
            None => Api::all_with(client.clone(), resource),
        }
    }

    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
}

pub struct Caches {
    objects: BTreeMap<Kind, Store<DynamicObject>>,
    postgres_pods: Store<DynamicObject>,
    secrets: Store<PartialObjectMeta<Secret>>,
}

impl Caches {
    /// The caches, and the SearchDeployments that what happens to them is about. They are filled
    /// while the stream is read.
    pub fn start(
        client: &Client,
        scope: &Scope,
        deployments: Store<SearchDeployment>,
    ) -> (Self, impl Stream<Item = ObjectRef<SearchDeployment>> + use<>) {
        let mut objects = BTreeMap::new();
        let mut streams: Vec<Touched> = Vec::new();
        let managed = format!("{MANAGED_BY}={MANAGER}");
        for kind in Kind::ALL {
            let resource = kind.resource();
            let (store, stream) = follow(scope.dynamic(client, &resource), resource, &managed);
            objects.insert(kind, store);
            streams.push(stream);
        }
        let pods = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let labels = format!("{NAME}=sextant,{COMPONENT}=postgres");
        let (postgres_pods, stream) = follow(scope.dynamic(client, &pods), pods, &labels);
        streams.push(stream);
        let (secrets, writer) = reflector::store();
        let stream =
            watcher(scope.api::<PartialObjectMeta<Secret>>(client), watcher::Config::default())
                .modify(|secret| secret.managed_fields_mut().clear())
                .default_backoff()
                .reflect(writer)
                .touched_objects()
                .flat_map(move |touched| {
                    stream::iter(
                        touched.map_or(Vec::new(), |secret| referring(&secret, &deployments)),
                    )
                })
                .boxed();
        streams.push(stream);
        (Self { objects, postgres_pods, secrets }, stream::select_all(streams))
    }

    /// Waits until everything was read once. A kind whose CRD is missing is not waited for.
    pub async fn ready(&self) {
        for (kind, store) in &self.objects {
            if !kind.is_optional() {
                // Fails only when the other end is gone, and with it all that waits.
                let _ = store.wait_until_ready().await;
            }
        }
        let _ = self.postgres_pods.wait_until_ready().await;
        let _ = self.secrets.wait_until_ready().await;
    }

    pub fn observed(&self, namespace: &str, name: &str) -> Observed {
        let belongs = |object: &DynamicObject| {
            object.namespace().as_deref() == Some(namespace)
                && object.labels().get(INSTANCE).is_some_and(|instance| instance == name)
        };
        let mut observed = Observed::default();
        for (kind, store) in &self.objects {
            if kind.is_optional() && !is_ready(store) {
                observed.missing.push(*kind);
                continue;
            }
            for object in store.state_filter(belongs) {
                observed.objects.insert((*kind, object.name_any()), object);
            }
        }
        observed.postgres_pods = self.postgres_pods.state_filter(belongs);
        observed.postgres_pods.sort_by_key(|pod| pod.name_any());
        observed
    }

    /// The Secret's version, when there is one.
    pub fn secret_version(&self, namespace: &str, name: &str) -> Option<String> {
        let secret = self.secrets.get(&ObjectRef::new(name).within(namespace))?;
        secret.resource_version()
    }
}

/// Whether a store has been filled.
fn is_ready(store: &Store<DynamicObject>) -> bool {
    use futures::FutureExt;
    store.wait_until_ready().now_or_never().is_some()
}

fn follow(
    api: Api<DynamicObject>,
    resource: ApiResource,
    labels: &str,
) -> (Store<DynamicObject>, Touched) {
    let writer = reflector::store::Writer::new(resource);
    let store = writer.as_reader();
    let config = watcher::Config::default().labels(labels);
    let stream = watcher(api, config)
        .modify(|object: &mut DynamicObject| object.managed_fields_mut().clear())
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .filter_map(|touched| async move {
            match touched {
                Ok(object) => owner(&object),
                // Its CRD is not installed, which may change.
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
                    if status.is_not_found() =>
                {
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "a watch broke; it is begun again");
                    None
                }
            }
        })
        .boxed();
    (store, stream)
}

/// What can be read of what happened. A SearchDeployment that is older than a rule of the CRD and
/// cannot be read is told of and passed over: it must not stop the others.
pub async fn readable(
    event: Event<DeserializeGuard<SearchDeployment>>,
    report: &Report,
) -> Option<Event<SearchDeployment>> {
    let (object, with): (_, fn(_) -> _) = match event {
        Event::Init => return Some(Event::Init),
        Event::InitDone => return Some(Event::InitDone),
        Event::InitApply(object) => (object, Event::InitApply),
        Event::Apply(object) => (object, Event::Apply),
        Event::Delete(object) => (object, Event::Delete),
    };
    let reference = object.object_ref(&());
    match object.0 {
        Ok(object) => Some(with(object)),
        Err(invalid) => {
            report.unreadable(&reference, invalid.error).await;
            None
        }
    }
}

/// The SearchDeployments whose spec names this Secret.
fn referring(
    secret: &PartialObjectMeta<Secret>,
    deployments: &Store<SearchDeployment>,
) -> Vec<ObjectRef<SearchDeployment>> {
    let name = secret.name_any();
    let refers = |object: &SearchDeployment| {
        object.namespace() == secret.namespace() && object.spec.secrets().contains(&name.as_str())
    };
    deployments.state_filter(refers).iter().map(|object| ObjectRef::from_obj(&**object)).collect()
}

fn owner(object: &DynamicObject) -> Option<ObjectRef<SearchDeployment>> {
    let instance = object.labels().get(INSTANCE)?;
    Some(ObjectRef::new(instance).within(&object.namespace()?))
}
