//! A namespace and an operator for each test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams,
};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sextant_operator::components::Kind;
use sextant_operator::crd::{Phase, SearchDeployment};
use sextant_stack::kubernetes::ControlPlane;
use sextant_stack::process::{Process, free_port};
use tempfile::TempDir;
use tokio::process::Command;

use crate::access::{LABEL, Left, access, client, prepare};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct TestCluster {
    pub client: Client,
    pub namespace: String,
    folder: TempDir,
    pub operator_config: PathBuf,
    /// Of pods, by their names.
    addresses: Mutex<BTreeMap<String, String>>,
    #[expect(dead_code, reason = "for its end")]
    left: Option<Left>,
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

impl TestCluster {
    pub async fn start() -> Self {
        let access = access().await;
        let client = client(access.admin.clone()).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = Namespace {
            metadata: ObjectMeta {
                generate_name: Some("test-".to_owned()),
                labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let made = namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        let left = Some(Left(made.name_any()));
        let operator_config = access.operator.clone();
        Self { operator_config, left, ..Self::of(client, made.name_any()) }
    }

    /// A cluster with an operator and the stack of an empty spec, `gym`.
    pub async fn with_small_stack() -> (Self, Operator) {
        let cluster = Self::start().await;
        let operator = cluster.operator().await;
        cluster.apply("gym", json!({})).await.unwrap();
        cluster.ready("gym").await;
        (cluster, operator)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn deployments(&self) -> Api<SearchDeployment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &kind.resource())
    }

    /// A namespace of another control plane, to which all that the operator needs is added.
    pub async fn on(plane: &ControlPlane, client: Client, namespace: &str) -> Self {
        prepare(&client).await;
        let metadata = ObjectMeta { name: Some(namespace.to_owned()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
        let operator_config = plane.operator_config();
        Self { operator_config, ..Self::of(client, namespace.to_owned()) }
    }

    /// A namespace of another control plane.
    pub fn of(client: Client, namespace: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (operator_config, addresses) = (PathBuf::new(), Mutex::default());
        Self { client, namespace, folder, operator_config, addresses, left: None }
    }

    /// An operator for this namespace.
    pub async fn operator(&self) -> Operator {
        self.operator_with(&[]).await
    }

    pub async fn operator_with(&self, more: &[&str]) -> Operator {
        let namespace = self.namespace.as_str();
        let own = ["--watch-namespace", namespace, "--lease-namespace", namespace];
        Operator::start(self.folder.path(), &self.operator_config, &[&own, more].concat()).await
    }

    /// Every reason of an event about SearchDeployments.
    pub async fn events(&self) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_these = ListParams::default().fields("involvedObject.kind=SearchDeployment");
        let events = events.list(&of_these).await.unwrap();
        events.into_iter().filter_map(|event| event.reason).collect()
    }

    /// Applies a SearchDeployment, as kubectl would.
    pub async fn apply(&self, name: &str, spec: Value) -> Result<SearchDeployment, kube::Error> {
        let body = manifest(name, &spec);
        let parameters = PatchParams::apply("user").force();
        self.deployments().patch(name, &parameters, &Patch::Apply(&body)).await
    }

    /// The address that a pod has from the next [`Self::ready`] on.
    pub fn give_address(&self, pod: &str, ip: &str) {
        self.addresses.lock().unwrap().insert(pod.to_owned(), ip.to_owned());
    }

    /// Creates a SearchDeployment from what may be none.
    pub async fn create(&self, name: &str, spec: Value) -> Result<SearchDeployment, kube::Error> {
        let body = manifest(name, &spec);
        let path = format!(
            "/apis/sextant.dev/v1alpha1/namespaces/{}/searchdeployments?fieldValidation=Strict",
            self.namespace
        );
        let request = http::Request::post(path).header("content-type", "application/json");
        self.client.request(request.body(body.to_string().into_bytes()).unwrap()).await
    }

    /// Waits for this.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&SearchDeployment) -> bool,
    ) -> SearchDeployment {
        let mut last = None;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            if let Some(object) = self.deployments().get_opt(name).await.unwrap() {
                if holds(&object) {
                    return object;
                }
                last = object.status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {what}: {}", serde_json::to_string_pretty(&last).unwrap());
    }

    /// Says of these pods that they are ready, as kubelets would.
    pub async fn run_pods(&self, labels: &str) {
        let pods = self.pods();
        let status = json!({"status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        for pod in pods.list(&ListParams::default().labels(labels)).await.unwrap() {
            if pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
            {
                continue;
            }
            let (name, parameters) = (pod.name_any(), PatchParams::default());
            let mut status = status.clone();
            if let Some(ip) = self.addresses.lock().unwrap().get(&name) {
                status["status"]["podIP"] = ip.as_str().into();
                status["status"]["podIPs"] = json!([{"ip": ip}]);
            }
            // It may be gone already.
            let _ = pods.patch_status(&name, &parameters, &Patch::Merge(&status)).await;
        }
    }

    /// Runs all pods until `name` is as wanted.
    pub async fn ready(&self, name: &str) -> SearchDeployment {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.run_pods("").await;
            let object = self.deployments().get(name).await.unwrap();
            let status = object.status.clone().unwrap_or_default();
            if status.phase == Some(Phase::Ready)
                && status.observed_generation == object.metadata.generation
            {
                return object;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not ready: {}",
                serde_json::to_string_pretty(&status).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every object of the operator's kinds in this namespace, by `Kind/name`.
    async fn objects(&self) -> BTreeMap<String, DynamicObject> {
        let mut objects = BTreeMap::new();
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_optional()) {
            for object in self.api(kind).list(&ListParams::default()).await.unwrap() {
                // Not those that Kubernetes puts into every namespace.
                if object.labels().contains_key("app.kubernetes.io/instance") {
                    objects.insert(format!("{}/{}", kind.as_str(), object.name_any()), object);
                }
            }
        }
        objects
    }

    /// Their resourceVersions.
    pub async fn versions(&self) -> BTreeMap<String, String> {
        let version = |object: DynamicObject| object.resource_version().unwrap_or_default();
        self.objects().await.into_iter().map(|(name, object)| (name, version(object))).collect()
    }

    /// The hash of what each was made from, of those that the operator made.
    pub async fn applied(&self) -> BTreeMap<String, String> {
        let hash = |object: DynamicObject| object.annotations().get("sextant.dev/applied").cloned();
        let objects = self.objects().await.into_iter();
        objects.filter_map(|(name, object)| Some((name, hash(object)?))).collect()
    }

    pub async fn names(&self) -> Vec<String> {
        self.versions().await.into_keys().collect()
    }

    /// A class of so many volumes of 10Gi, whose claims may grow.
    pub async fn storage_that_grows(&self, volumes: usize) -> String {
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {"name": self.namespace},
            "provisioner": "kubernetes.io/no-provisioner",
            "allowVolumeExpansion": true,
        }))
        .unwrap();
        let parameters = PostParams::default();
        Api::all(self.client.clone()).create(&parameters, &class).await.unwrap();
        for number in 0..volumes {
            let volume: PersistentVolume = serde_json::from_value(json!({
                "metadata": {"name": format!("{}-{number}", self.namespace)},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": {"storage": "10Gi"},
                    "hostPath": {"path": "/nowhere"},
                    "storageClassName": self.namespace,
                },
            }))
            .unwrap();
            Api::all(self.client.clone()).create(&parameters, &volume).await.unwrap();
        }
        self.namespace.clone()
    }

    /// An entry of a Secret.
    pub async fn secret(&self, name: &str, entry: &str) -> String {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let data = secrets.get(name).await.unwrap().data.unwrap();
        String::from_utf8(data[entry].0.clone()).unwrap()
    }

    /// Makes sure of a RuntimeClass, without which pods that name it cannot be made.
    pub async fn runtime_class(&self, name: &str) {
        let class: RuntimeClass =
            serde_json::from_value(json!({"metadata": {"name": name}, "handler": name})).unwrap();
        let apply = PatchParams::apply("test").force();
        let classes: Api<RuntimeClass> = Api::all(self.client.clone());
        classes.patch(name, &apply, &Patch::Apply(class)).await.unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.deployments().delete(name, &DeleteParams::default()).await.unwrap();
    }
}

pub struct Operator {
    pub process: Process,
    port: u16,
    log: PathBuf,
}

impl Operator {
    /// Starts one and waits until its caches are full. `folder` gets its log.
    pub async fn start(folder: &Path, config: &Path, arguments: &[&str]) -> Self {
        let port = free_port().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sextant-operator"));
        command
            .arg("run")
            .args(arguments)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--identity", &format!("operator-{port}")])
            .env("KUBECONFIG", config);
        let log = folder.join(format!("operator-{port}.log"));
        let mut process = Process::start("sextant-operator", command, &log).unwrap();
        process.ready(|| async { get(port, "/readyz").await.is_some() }).await.unwrap();
        Self { process, port, log }
    }

    /// Host and port of its metrics.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Has it look at a SearchDeployment, and waits until it has.
    pub async fn reconciles_once_more(&self, cluster: &TestCluster, name: &str) {
        let reconciles = || self.metric("sextant_operator_reconciles_total");
        let before = reconciles().await;
        let patch = json!({"metadata": {"annotations": {"test": before.to_string()}}});
        let (patch, parameters) = (Patch::Merge(&patch), PatchParams::default());
        cluster.deployments().patch(name, &parameters, &patch).await.unwrap();
        sextant_stack::until("a reconciliation", || async { reconciles().await > before })
            .await
            .unwrap();
    }

    /// The sum of a metric over all of its labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = get(self.port, "/metrics").await.unwrap();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// As somebody writes it.
pub fn manifest(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "sextant.dev/v1alpha1",
        "kind": "SearchDeployment",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// Whether a SearchDeployment is in this phase.
pub fn in_phase(phase: Phase) -> impl Fn(&SearchDeployment) -> bool {
    move |object| object.status.as_ref().is_some_and(|status| status.phase == Some(phase))
}

/// The body, when the answer is 200.
async fn get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}
