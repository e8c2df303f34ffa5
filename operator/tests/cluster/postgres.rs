//! Postgres through a Patroni that only says what a real one would.

use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, body};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use sextant_operator::components::postgres::PATRONI_PORT;

use crate::support::{Operator, TestCluster};

const PODS: [&str; 2] = ["gym-postgres-0", "gym-postgres-1"];

struct Patroni {
    leader: usize,
    timeline: i64,
    /// State of the other.
    replica: &'static str,
    config: Value,
    /// `user:password` of those who change something.
    credentials: String,
    /// What was asked for, in order.
    asked: Vec<String>,
    cluster: Arc<TestCluster>,
}

type Shared = Arc<Mutex<Patroni>>;

fn merge(into: &mut Value, patch: &Value) {
    match patch {
        Value::Object(patch) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.as_object_mut().unwrap().remove(key);
                } else if value.is_object() {
                    if !into[key].is_object() {
                        into[key] = json!({});
                    }
                    merge(&mut into[key], value);
                } else {
                    into[key] = value.clone();
                }
            }
        }
        other => *into = other.clone(),
    }
}

/// What a member says of itself; with 503 who does not lead.
fn leader(patroni: &Shared, number: usize) -> Response {
    let patroni = patroni.lock().unwrap();
    let timeline = patroni.timeline;
    if number == patroni.leader {
        let status = json!({
            "state": "running", "role": "primary", "timeline": timeline,
            "xlog": {"location": 100_005_000},
        });
        return Json(status).into_response();
    }
    let mut status = json!({
        "state": patroni.replica, "role": "replica", "timeline": timeline, "sync_standby": true,
        "xlog": {"received_location": 100_000_000, "replayed_location": 99_000_000},
    });
    if patroni.replica == "streaming" {
        status["state"] = "running".into();
        status["replication_state"] = "streaming".into();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(status)).into_response()
}

async fn config(State(patroni): State<Shared>) -> Json<Value> {
    Json(patroni.lock().unwrap().config.clone())
}

/// The body, of who may change something.
async fn trusted(patroni: &Shared, request: Request) -> Result<Value, Response> {
    let expected = format!("Basic {}", STANDARD.encode(&patroni.lock().unwrap().credentials));
    let given = request.headers().get("authorization").map(|value| value.to_str().unwrap());
    if given != Some(&expected) {
        return Err((StatusCode::UNAUTHORIZED, "no auth").into_response());
    }
    let bytes = body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    Ok(serde_json::from_slice(&bytes).unwrap())
}

async fn patch_config(State(patroni): State<Shared>, request: Request) -> Response {
    match trusted(&patroni, request).await {
        Ok(patch) => {
            let mut patroni = patroni.lock().unwrap();
            merge(&mut patroni.config, &patch);
            patroni.asked.push("config".to_owned());
            Json(patroni.config.clone()).into_response()
        }
        Err(refusal) => refusal,
    }
}

async fn switchover(State(patroni): State<Shared>, request: Request) -> Response {
    let asked = match trusted(&patroni, request).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    let (namespace, client) = {
        let cluster = &patroni.lock().unwrap().cluster;
        (cluster.namespace.clone(), cluster.client.clone())
    };
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let mut revisions = Vec::new();
    for name in PODS {
        let labels = pods.get(name).await.unwrap().metadata.labels.unwrap();
        revisions.push(labels["controller-revision-hash"].clone());
    }
    let mut patroni = patroni.lock().unwrap();
    let candidate = asked["candidate"].as_str().unwrap();
    assert_eq!(asked["leader"], PODS[patroni.leader]);
    patroni.leader = PODS.iter().position(|pod| *pod == candidate).unwrap();
    patroni.timeline += 1;
    let replaced = if revisions[0] == revisions[1] { "both" } else { "one" };
    patroni.asked.push(format!("switchover to {candidate}, {replaced} of this revision"));
    "Successfully switched over".into_response()
}

/// Serves on the addresses that the pods are given.
async fn serve(patroni: &Shared, network: [u8; 3]) {
    let router = Router::new()
        .route("/config", get(config).patch(patch_config))
        .route("/switchover", post(switchover))
        .with_state(Arc::clone(patroni));
    let [a, b, c] = network;
    for (index, pod) in PODS.into_iter().enumerate() {
        let number = index + 1;
        let ip = format!("{a}.{b}.{c}.{number}");
        patroni.lock().unwrap().cluster.give_address(pod, &ip);
        let listener = tokio::net::TcpListener::bind((ip, PATRONI_PORT)).await.unwrap();
        let shared = Arc::clone(patroni);
        let own = post(move |request| reinitialize(shared, number, request));
        let shared = Arc::clone(patroni);
        let status = get(async move || leader(&shared, index));
        let router = router.clone().route("/reinitialize", own).route("/leader", status);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    }
}

async fn reinitialize(patroni: Shared, number: usize, request: Request) -> Response {
    if let Err(refusal) = trusted(&patroni, request).await {
        return refusal;
    }
    let mut patroni = patroni.lock().unwrap();
    patroni.replica = "creating replica";
    patroni.asked.push(format!("a new copy of {number}"));
    "reinitialize started".into_response()
}

/// A small stack whose Postgres is this Patroni's, on addresses of the test alone: Patroni's port is
/// the same for all.
async fn start(network: [u8; 3], arguments: &[&str]) -> (Arc<TestCluster>, Operator, Shared) {
    let cluster = Arc::new(TestCluster::start().await);
    let patroni: Shared = Arc::new(Mutex::new(Patroni {
        leader: 0,
        timeline: 1,
        replica: "streaming",
        config: json!({"ttl": 30, "postgresql": {"parameters": {"old": "1"}}}),
        credentials: String::new(),
        asked: Vec::new(),
        cluster: Arc::clone(&cluster),
    }));
    serve(&patroni, network).await;
    let operator = cluster.operator_with(arguments).await;
    cluster.apply("gym", json!({})).await.unwrap();
    sextant_stack::until("the password", async || {
        cluster.names().await.contains(&"Secret/gym-postgres".to_owned())
    })
    .await
    .unwrap();
    let password = cluster.secret("gym-postgres", "patroni").await;
    patroni.lock().unwrap().credentials = format!("patroni:{password}");
    cluster.ready("gym").await;
    (cluster, operator, patroni)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_does_not_start_is_copied_anew() {
    let (cluster, operator, patroni) =
        start([127, 17, 43], &["--rebuild-replicas-after", "1s"]).await;
    patroni.lock().unwrap().replica = "start failed";
    let asked = || patroni.lock().unwrap().asked.clone();
    sextant_stack::until("a new copy", async || {
        // Patroni tells nobody: the operator looks whenever anything happens, or after 30 s.
        operator.reconciles_once_more(&cluster, "gym").await;
        asked().contains(&"a new copy of 2".to_owned())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}: {}", operator.log()));
    sextant_stack::until("the event", async || {
        cluster.events().await.contains(&"ReplicaRebuilt".to_owned())
    })
    .await
    .unwrap();
    assert!(!asked().contains(&"a new copy of 1".to_owned()), "never of the primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_changed_by_patroni_and_replaced_replica_first() {
    let (cluster, operator, patroni) = start([127, 17, 42], &[]).await;
    let setting = |name: &str| {
        let config = patroni.lock().unwrap().config.clone();
        config["postgresql"]["parameters"][name].clone()
    };
    sextant_stack::until("the shared settings", async || setting("wal_level") == "replica")
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", operator.log()));
    assert_eq!(setting("old"), Value::Null);
    let object = cluster.until("gym", "looked at", |object| {
        let postgres = object.status.as_ref().and_then(|status| status.postgres.as_ref());
        postgres.is_some_and(|postgres| postgres.timeline == Some(1))
    });
    let postgres = object.await.status.unwrap().postgres.unwrap();
    assert_eq!(postgres.primary.as_deref(), Some(PODS[0]));
    assert_eq!(postgres.max_lag_bytes, Some(1 << 20));

    let pods = cluster.pods();
    let uids = async || {
        let mut uids = Vec::new();
        for name in PODS {
            let pod = pods.get_opt(name).await.unwrap();
            uids.push(pod.and_then(|pod| pod.metadata.uid));
        }
        uids
    };
    let before = uids().await;
    let settings = json!({"postgres": {"parameters": {"work_mem": "32MB"}}});
    cluster.apply("gym", settings).await.unwrap();
    sextant_stack::until("the setting", async || setting("work_mem") == "32MB").await.unwrap();
    assert_eq!(uids().await, before, "a setting replaces no pod");

    patroni.lock().unwrap().asked.clear();
    let larger = json!({"postgres": {"resources": {"requests": {"cpu": "300m"}}}});
    cluster.apply("gym", larger).await.unwrap();
    let object = cluster.ready("gym").await;
    let after = uids().await;
    assert!(before[0] != after[0] && before[1] != after[1], "{}", operator.log());
    let primary = object.status.unwrap().postgres.unwrap().primary;
    assert_eq!(primary.as_deref(), Some(PODS[1]), "{}", operator.log());
    let asked = patroni.lock().unwrap().asked.clone();
    let asked: Vec<_> = asked.iter().filter(|what| *what != "config").collect();
    assert_eq!(asked, ["switchover to gym-postgres-1, one of this revision"]);
}
