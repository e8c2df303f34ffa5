//! The stack that all tests share, installed by the README's commands.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::OnceCell;

use super::{Cluster, Load, free_port, repository, until};

/// Of the stack that the tests share, as in the README.
pub const NAMESPACE: &str = "search";
pub const NAME: &str = "sextant";
const README_HEADING: &str = "## On Kubernetes";

/// How the installation went.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// From the first command to an answer that is right.
    pub first_search: Duration,
    /// Until every component has all of its pods.
    pub whole: Duration,
    /// What the commands printed.
    pub output: String,
}

pub struct Stack {
    pub cluster: Cluster,
    pub namespace: &'static str,
}

impl Stack {
    /// The stack, as healthy as an earlier test has left it. With `SEXTANT_E2E_REUSE` one that is there
    /// is taken as it is.
    pub async fn get() -> (Self, Installed) {
        static INSTALLED: OnceCell<Installed> = OnceCell::const_new();
        let stack = Self { cluster: Cluster::of_environment(), namespace: NAMESPACE };
        let installed = INSTALLED.get_or_init(|| stack.install()).await.clone();
        stack.whole(Duration::from_mins(3)).await;
        (stack, installed)
    }

    pub fn load(&self) -> Load<'_> {
        Load { cluster: &self.cluster, namespace: self.namespace }
    }

    async fn install(&self) -> Installed {
        let cluster = &self.cluster;
        let there = cluster.try_sh("kubectl get searchdeployment -n search sextant").await.is_ok();
        if there && std::env::var_os("SEXTANT_E2E_REUSE").is_some() {
            self.load().begin().await;
            return Installed::default();
        }
        self.remove().await;
        let begin = Instant::now();
        let mut script = readme_commands();
        script = script.replace("8080", &free_port().to_string());
        // Its port-forward is a job of the script, which ends with it.
        let output = cluster.sh(&format!("trap 'kill $(jobs -p)' EXIT\n{script}")).await;
        let first_search = begin.elapsed();
        self.whole(Duration::from_mins(5)).await;
        let whole = begin.elapsed();
        self.load().begin().await;
        Installed { first_search, whole, output }
    }

    /// Whatever an earlier run has left.
    async fn remove(&self) {
        let script = "
            kubectl delete searchdeployments --all --all-namespaces --ignore-not-found 2>/dev/null || true
            helm uninstall sextant --namespace sextant --ignore-not-found --wait
            kubectl delete namespace search sextant --ignore-not-found --wait
            kubectl delete crd searchdeployments.sextant.dev --ignore-not-found";
        self.cluster.sh(script).await;
    }

    pub async fn status(&self) -> Value {
        let Self { namespace, .. } = self;
        let object = self.cluster.get(&format!("searchdeployment -n {namespace} {NAME}")).await;
        let mut status = object["status"].clone();
        status["isObserved"] =
            (object["metadata"]["generation"] == status["observedGeneration"]).into();
        status
    }

    /// Waits until nothing is left to do and nothing is missing.
    pub async fn whole(&self, patience: Duration) {
        until("the stack is whole", patience, async || {
            let status = self.status().await;
            let ready = status["phase"] == "Ready" && status["health"] == "green";
            if !ready || status["isObserved"] != true {
                return Err(serde_json::to_string_pretty(&status).unwrap());
            }
            self.synchronous_replica().await.map(drop).ok_or("no replica in step".to_owned())
        })
        .await;
    }

    /// What a condition says: its status, reason and message.
    pub async fn condition(&self, name: &str) -> (String, String, String) {
        let status = self.status().await;
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let condition = conditions.into_iter().find(|condition| condition["type"] == name);
        let text = |field: &str| {
            let value = condition.and_then(|condition| condition[field].as_str());
            value.unwrap_or_default().to_owned()
        };
        (text("status"), text("reason"), text("message"))
    }

    /// Changes the spec by a merge patch.
    pub async fn patch(&self, spec: &Value) {
        let Self { namespace, .. } = self;
        let patch = serde_json::json!({"spec": spec});
        self.cluster
            .sh(&format!(
                "kubectl patch searchdeployment -n {namespace} {NAME} --type merge -p '{patch}'"
            ))
            .await;
    }

    /// The pod that holds Patroni's lock.
    pub async fn primary(&self) -> Option<String> {
        let Self { namespace, .. } = self;
        let lock = format!(
            "kubectl get endpoints -n {namespace} {NAME}-postgres-rw -o jsonpath='{{.metadata.annotations.leader}}' 2>/dev/null"
        );
        self.cluster.try_sh(&lock).await.ok().filter(|name| !name.is_empty())
    }

    /// The replica that has every acknowledged write. For some seconds after a change of the primary
    /// there is none, and nobody could take over.
    pub async fn synchronous_replica(&self) -> Option<String> {
        let Self { namespace, .. } = self;
        let sync = format!(
            "kubectl get endpoints -n {namespace} {NAME}-postgres-rw-sync -o jsonpath='{{.metadata.annotations.sync_standby}}' 2>/dev/null"
        );
        self.cluster.try_sh(&sync).await.ok().filter(|name| !name.is_empty())
    }

    /// Kills the Postgres in a pod, with -9.
    pub async fn kill_postgres(&self, pod: &str) {
        let Self { namespace, .. } = self;
        let kill = "kill -9 $(head -1 /var/lib/postgresql/data/pgdata/postmaster.pid)";
        self.cluster.sh(&format!("kubectl exec -n {namespace} {pod} -- sh -c '{kill}'")).await;
    }

    /// Moves the primary to the other pod.
    pub async fn switchover(&self) {
        let Self { namespace, .. } = self;
        let primary = self.primary().await.unwrap();
        let patronictl = "patronictl -c /etc/patroni/patroni.yaml switchover --force";
        self.cluster.sh(&format!("kubectl exec -n {namespace} {primary} -- {patronictl}")).await;
        self.whole(Duration::from_mins(2)).await;
    }

    /// Where it can be cut off, and its replica on the first.
    /// The pods of a component with their nodes.
    pub async fn nodes(&self, component: &str) -> Vec<(String, String)> {
        let of = |pod: &Value| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]));
        self.objects(component).await.iter().map(of).collect()
    }

    pub async fn primary_on_the_second_node(&self) {
        let Self { namespace, .. } = self;
        let before = self.nodes("postgres").await;
        if before.iter().all(|(_, node)| *node == before[0].1) {
            // After the loss of a node; a new pod keeps away from the other.
            let replica = self.synchronous_replica().await.unwrap();
            self.cluster.sh(&format!("kubectl delete pod -n {namespace} {replica}")).await;
            self.whole(Duration::from_mins(2)).await;
        }
        let primary = self.primary().await.unwrap();
        if self.nodes("postgres").await.contains(&(primary, "node1".to_owned())) {
            self.switchover().await;
        }
    }

    /// Deletes pods of a component, and does not wait.
    pub async fn delete_pods(&self, component: &str, which: &str) {
        let Self { namespace, .. } = self;
        let labels = format!("app.kubernetes.io/component={component}");
        self.cluster
            .sh(&format!("kubectl delete pod -n {namespace} -l {labels} {which} --wait=false"))
            .await;
    }

    /// Waits until a component has pods, none of them one of these.
    pub async fn until_replaced(
        &self,
        component: &str,
        before: &[(String, String)],
        patience: Duration,
    ) {
        until("other pods", patience, async || {
            let pods = self.pods(component).await;
            let replaced = !pods.is_empty() && pods.iter().all(|pod| !before.contains(pod));
            if replaced { Ok(()) } else { Err(format!("{pods:?}")) }
        })
        .await;
    }

    /// Waits until none of the stack's pods is left.
    pub async fn until_no_pods(&self) {
        let Self { namespace, .. } = self;
        let all = format!("pods -n {namespace} -l app.kubernetes.io/instance={NAME}");
        until("no pods", Duration::from_mins(3), async || {
            let left = self.cluster.get(&all).await["items"].as_array().unwrap().len();
            if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
        })
        .await;
    }

    /// Names and UIDs of the pods of a component.
    pub async fn pods(&self, component: &str) -> Vec<(String, String)> {
        let pods = self.objects(component).await;
        let meta = |pod: &Value, field: &str| text(&pod["metadata"][field]);
        pods.iter().map(|pod| (meta(pod, "name"), meta(pod, "uid"))).collect()
    }

    /// Addresses of the pods of a component.
    pub async fn addresses(&self, component: &str) -> Vec<String> {
        self.objects(component).await.iter().map(|pod| text(&pod["status"]["podIP"])).collect()
    }

    /// The image of a component's pods.
    pub async fn image(&self, component: &str) -> Value {
        self.objects(component).await[0]["spec"]["containers"][0]["image"].clone()
    }

    async fn objects(&self, component: &str) -> Vec<Value> {
        let label = format!("app.kubernetes.io/component={component}");
        self.cluster.pods(self.namespace, &label).await
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The commands of the README's section, in order.
fn readme_commands() -> String {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let section =
        readme.split(README_HEADING).nth(1).expect("the section").split("\n## ").next().unwrap();
    let mut commands = String::new();
    for block in section.split("```sh\n").skip(1) {
        commands += block.split("```").next().unwrap();
    }
    assert!(commands.contains("helm install"), "{commands}");
    commands
}
