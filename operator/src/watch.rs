//! What the operator knows of the cluster without asking again: everything that it made, the pods, and which
//! Secrets there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::watch;

use serde_json::json;

use crate::components::meta::{COMPONENT, INSTANCE, MANAGED_BY, MANAGER, NAME};
use crate::components::{Kind, Observed};
use crate::crd::SearchDeployment;
use crate::report::Report;

type Touched = stream::BoxStream<'static, ObjectRef<SearchDeployment>>;

/// How often a kind is asked for whose CRD is missing.
const CRD_POLL: Duration = Duration::from_secs(10);
/// How long the operator waits to know of each such kind whether it is missing. Of one that it may
/// not read it never knows.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

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

/// How much is known of the objects of a kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    /// Their CRD is not installed.
    Missing,
    /// They have been read once.
    All,
}

/// Objects of a kind.
struct Followed {
    store: Store<DynamicObject>,
    known: watch::Receiver<Known>,
}

impl Followed {
    fn is_filled(&self) -> bool {
        *self.known.borrow() == Known::All
    }

    async fn filled(&self) {
        self.until(|known| known == Known::All).await;
    }

    /// Fails only when the other end is gone, and with it all that waits.
    async fn until(&self, holds: impl Fn(Known) -> bool) {
        let _ = self.known.clone().wait_for(|known| holds(*known)).await;
    }
}

pub struct Caches {
    objects: BTreeMap<Kind, Followed>,
    pods: Followed,
    secrets: Store<PartialObjectMeta<Secret>>,
    /// Those that take no more pods.
    cordoned: Store<PartialObjectMeta<Node>>,
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
            let api = scope.dynamic(client, &resource);
            let (followed, stream) = follow(api, resource, &managed, kind.is_optional());
            objects.insert(kind, followed);
            streams.push(stream);
        }
        let pods = ApiResource::erase::<Pod>(&());
        let labels = format!("{NAME}=sextant,{COMPONENT}");
        let (pods, stream) = follow(scope.dynamic(client, &pods), pods, &labels, false);
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
        let (cordoned, writer) = reflector::store();
        let config = watcher::Config::default().fields("spec.unschedulable=true");
        let on_nodes = pods.store.clone();
        let stream = watcher(Api::<PartialObjectMeta<Node>>::all(client.clone()), config)
            .modify(|node| node.managed_fields_mut().clear())
            .default_backoff()
            .reflect(writer)
            .touched_objects()
            .flat_map(move |touched| {
                stream::iter(touched.map_or(Vec::new(), |node| with_pods_on(&node, &on_nodes)))
            })
            .boxed();
        streams.push(stream);
        (Self { objects, pods, secrets, cordoned }, stream::select_all(streams))
    }

    /// Waits until everything was read once, or is known to be missing: what takes the place of a
    /// missing kind would come and go with each start.
    pub async fn ready(&self) {
        for (_, followed) in self.objects.iter().filter(|(kind, _)| !kind.is_optional()) {
            followed.filled().await;
        }
        self.pods.filled().await;
        let _ = self.secrets.wait_until_ready().await;
        let _ = self.cordoned.wait_until_ready().await;
        let optional = async {
            for followed in self.objects.values() {
                followed.until(|known| known != Known::Nothing).await;
            }
        };
        let _ = tokio::time::timeout(KNOWN_WITHIN, optional).await;
    }

    /// Whenever a kind has come whose CRD was missing.
    pub fn arrivals(&self) -> impl Stream<Item = ()> + use<> {
        let missing = self.objects.values().filter(|followed| !followed.is_filled());
        missing
            .map(|followed| followed.known.clone())
            .map(|mut known| async move { known.wait_for(|known| *known == Known::All).await.is_ok() })
            .collect::<stream::FuturesUnordered<_>>()
            .filter_map(|arrived| std::future::ready(arrived.then_some(())))
    }

    pub fn observed(&self, namespace: &str, name: &str) -> Observed {
        let belongs = |object: &DynamicObject| {
            object.namespace().as_deref() == Some(namespace)
                && object.labels().get(INSTANCE).is_some_and(|instance| instance == name)
        };
        let mut observed = Observed::default();
        for (kind, followed) in &self.objects {
            if kind.is_optional() && !followed.is_filled() {
                observed.missing.push(*kind);
                continue;
            }
            for object in followed.store.state_filter(belongs) {
                observed.objects.insert((*kind, object.name_any()), object);
            }
        }
        observed.pods = self.pods.store.state_filter(belongs);
        observed.pods.sort_by_key(|pod| pod.name_any());
        observed.cordoned = self.cordoned.state().iter().map(|node| node.name_any()).collect();
        observed
    }

    /// The Secret's version, when there is one.
    pub fn secret_version(&self, namespace: &str, name: &str) -> Option<String> {
        let secret = self.secrets.get(&ObjectRef::new(name).within(namespace))?;
        secret.resource_version()
    }
}

/// Ends when the kind's CRD is there. A watch would ask for it every second.
async fn served<T>(api: Api<DynamicObject>, tell: watch::Sender<Known>) -> Option<T> {
    let one = ListParams::default().limit(1);
    loop {
        match api.list(&one).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                tell.send_replace(Known::Missing);
                tokio::time::sleep(CRD_POLL).await;
            }
            // Whatever else is wrong is the watch's to tell.
            _ => return None,
        }
    }
}

fn follow(
    api: Api<DynamicObject>,
    resource: ApiResource,
    labels: &str,
    is_optional: bool,
) -> (Followed, Touched) {
    let are_pods = resource.kind == "Pod";
    let writer = reflector::store::Writer::new(resource);
    let store = writer.as_reader();
    let (tell, known) = watch::channel(Known::Nothing);
    let served = is_optional.then(|| served(api.clone(), tell.clone()));
    let config = watcher::Config::default().labels(labels);
    let stream = watcher(api, config)
        .modify(move |object: &mut DynamicObject| {
            object.managed_fields_mut().clear();
            // Nobody reads the rest, and it is the most of them.
            if are_pods {
                let node = object.data["spec"]["nodeName"].take();
                object.data["spec"] = json!({"nodeName": node});
            }
        })
        .default_backoff()
        .reflect(writer)
        .inspect_ok(move |event| {
            if matches!(event, Event::InitDone) {
                tell.send_replace(Known::All);
            }
        })
        .touched_objects()
        .filter_map(|touched| async move {
            match touched {
                Ok(object) => owner(&object),
                // Its CRD is not installed, which may change.
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
                    if status.code == 404 =>
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
    let stream = match served {
        Some(served) => stream::once(served).filter_map(std::future::ready).chain(stream).boxed(),
        None => stream,
    };
    (Followed { store, known }, stream)
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

/// The SearchDeployments that have pods there.
fn with_pods_on(
    node: &PartialObjectMeta<Node>,
    pods: &Store<DynamicObject>,
) -> Vec<ObjectRef<SearchDeployment>> {
    let name = node.name_any();
    let there = pods.state_filter(|pod| pod.data["spec"]["nodeName"] == name.as_str());
    let owners: BTreeSet<_> =
        there.iter().filter_map(|pod| Some((pod.namespace()?, owner(pod)?.name))).collect();
    owners.into_iter().map(|(namespace, name)| ObjectRef::new(&name).within(&namespace)).collect()
}

fn owner(object: &DynamicObject) -> Option<ObjectRef<SearchDeployment>> {
    let instance = object.labels().get(INSTANCE)?;
    Some(ObjectRef::new(instance).within(&object.namespace()?))
}
