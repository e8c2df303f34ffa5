//! The load's pod, spoken to through the API server, which works on any cluster.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sextant_e2e::load::{Rates, Report};

use super::{Cluster, NAME, repository, until};
use std::time::{Duration, Instant};

const POD: &str = "load";
/// Searched all the time.
const COLLECTION: &str = "exercises";
/// Much more than a replica that is read from may be behind, which is a second.
const BEHIND: Duration = Duration::from_secs(15);
/// Of the sample queries, asked in turns.
const QUERIES: usize = 20;

/// Beside a stack, in its namespace.
pub struct Load<'a> {
    pub cluster: &'a Cluster,
    pub namespace: &'a str,
}

impl Load<'_> {
    /// Starts the pod, unless it runs, and has it learn what right answers are.
    pub async fn begin(&self) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": POD, "namespace": self.namespace},
            "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1,
                // Beside the fault, never in it.
                "nodeName": self.first_node().await,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "load", "image": "localhost/load:1", "imagePullPolicy": "IfNotPresent",
                    "env": [
                        {"name": "LOAD_URL", "value": format!("http://{NAME}-api")},
                        {"name": "LOAD_API_KEY", "valueFrom": {"secretKeyRef": {"name": format!("{NAME}-api-keys"), "key": "admin"}}},
                    ],
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        });
        let Self { cluster, namespace } = self;
        cluster
            .sh(&format!(
                "kubectl delete pod {POD} -n {namespace} --ignore-not-found --wait
                kubectl apply -f - <<'END'\n{pod}\nEND
                kubectl wait -n {namespace} --for=condition=Ready --timeout=60s pod/{POD}"
            ))
            .await;
        self.prepare().await;
    }

    /// Fills the collections, and has the pod learn what right answers are.
    pub async fn prepare(&self) {
        let documents =
            std::fs::read_to_string(repository("deploy/samples/exercises.ndjson")).unwrap();
        for (collection, documents) in [("ledger", ""), (COLLECTION, &documents)] {
            // The first collections of a new Milvus take longer than a request may.
            until("a collection", Duration::from_mins(2), async || {
                self.try_ask(&format!("prepare?collection={collection}"), documents).await
            })
            .await;
        }
        self.learn().await;
    }

    /// What the queries find now is what is right from now on.
    pub async fn learn(&self) -> Value {
        let samples = repository("deploy/samples/exercises-queries.json");
        let samples: Value = serde_json::from_slice(&std::fs::read(samples).unwrap()).unwrap();
        let queries: Vec<_> = samples["queries"]
            .as_array()
            .unwrap()
            .iter()
            .take(QUERIES)
            .map(|one| one["query"].as_str().unwrap())
            .collect();
        let queries = queries.join("\n");
        // An index that is being filled finds fewer at first.
        until("right answers", Duration::from_mins(1), async || {
            let text = self.try_ask(&format!("baseline?collection={COLLECTION}"), &queries).await?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        })
        .await
    }

    async fn first_node(&self) -> Value {
        self.cluster.get("nodes").await["items"][0]["metadata"]["name"].clone()
    }

    pub async fn start(&self, rates: Rates) {
        self.ask("start", &serde_json::to_string(&rates).unwrap()).await;
    }

    /// Since the last report.
    pub async fn report(&self) -> Report {
        serde_json::from_str(&self.ask("report", "").await).unwrap()
    }

    /// Since the last report, which goes on.
    pub async fn so_far(&self) -> Report {
        serde_json::from_str(&self.ask("so-far", "").await).unwrap()
    }

    pub async fn stop(&self) -> Report {
        serde_json::from_str(&self.ask("stop", "").await).unwrap()
    }

    /// How many writes were acknowledged, and the numbers of those that are not there. Documents are
    /// read from replicas, too, which may be behind for a while.
    pub async fn lost(&self) -> (u64, Vec<Value>) {
        let deadline = Instant::now() + BEHIND;
        loop {
            let answer: Value = serde_json::from_str(&self.ask("lost", "").await).unwrap();
            let missing = answer["missing"].as_array().unwrap();
            if missing.is_empty() || Instant::now() > deadline {
                return (answer["acknowledged"].as_u64().unwrap(), missing.clone());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn ask(&self, path: &str, body: &str) -> String {
        self.try_ask(path, body).await.unwrap_or_else(|error| panic!("the load: {path}: {error}"))
    }

    async fn try_ask(&self, path: &str, body: &str) -> Result<String, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(body.as_bytes()).unwrap();
        let file: &Path = file.path();
        let base = format!("/api/v1/namespaces/{}/pods/{POD}:8080/proxy", self.namespace);
        let ask = format!("kubectl create --raw '{base}/{path}' -f {}", file.display());
        self.cluster.try_sh(&ask).await
    }
}
