//! An API server that fails, is slow, forgets and goes away; two operators at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{Method, StatusCode};
use kube::Client;
use kube::api::DeleteParams;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use sextant_operator::components::Kind;
use sextant_stack::kubernetes::{ControlPlane, OPERATOR};
use tokio::sync::watch;

use crate::access::client;
use crate::support::{Operator, TestCluster};

/// What the proxy does to requests.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// A third of the writes are answered so.
    Writes(StatusCode),
    /// A third of all requests are answered so.
    All(StatusCode),
    /// Watches end after moments, and those who come back are told that what they saw is too old.
    ExpiredWatches,
    /// Every answer takes this long.
    Slow(Duration),
}

/// Stands between an operator and the API server.
struct Proxy {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    fault: watch::Sender<Fault>,
    /// How often it did something.
    injected: Mutex<u32>,
    random: Mutex<StdRng>,
}

impl Shared {
    fn chosen(&self) -> bool {
        self.random.lock().unwrap().random_ratio(1, 3)
    }

    /// The answer in place of the API server's.
    fn refusal(&self, request: &Request) -> Option<Response> {
        let is_lease = request.uri().path().contains("/leases");
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let status = match *self.fault.borrow() {
            // Without its lease an operator ends, as it should: that is another test.
            _ if is_lease => return None,
            Fault::Writes(status) if *request.method() != Method::GET && self.chosen() => status,
            Fault::All(status) if self.chosen() => status,
            Fault::ExpiredWatches if is_watch && self.chosen() => StatusCode::GONE,
            _ => return None,
        };
        *self.injected.lock().unwrap() += 1;
        let reason = match status {
            StatusCode::GONE => "Expired",
            StatusCode::CONFLICT => "Conflict",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            _ => "InternalError",
        };
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
            "message": "made by the test", "reason": reason, "code": status.as_u16(),
        });
        let headers = [("content-type", "application/json"), ("retry-after", "1")];
        Some((status, headers, body.to_string()).into_response())
    }
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let fault = *shared.fault.borrow();
    if let Fault::Slow(delay) = fault {
        *shared.injected.lock().unwrap() += 1;
        tokio::time::sleep(delay).await;
    }
    if let Some(refusal) = shared.refusal(&request) {
        return refusal;
    }
    let (mut head, body) = request.into_parts();
    head.headers.remove("host");
    head.headers.remove("authorization");
    let body = axum::body::to_bytes(body, 16 << 20).await.unwrap();
    let request = http::Request::from_parts(head, kube::client::Body::from(body.to_vec()));
    match shared.client.send(request).await {
        Ok(answer) => answer.map(|body| {
            let mut fault = shared.fault.subscribe();
            let expired = async move {
                fault.wait_for(|fault| *fault == Fault::ExpiredWatches).await.is_ok()
            };
            // A watch that was there before is cut; a later one ends after a moment.
            let cut = async move {
                expired.await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            };
            Body::from_stream(Body::new(body).into_data_stream().take_until(Box::pin(cut)))
        }),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

impl Proxy {
    async fn start(client: Client) -> Self {
        let shared = Arc::new(Shared {
            client,
            fault: watch::Sender::new(Fault::None),
            injected: Mutex::new(0),
            random: Mutex::new(StdRng::seed_from_u64(7)),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(forward).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared }
    }

    fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    fn injected(&self) -> u32 {
        *self.shared.injected.lock().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_fails_is_asked_again_until_all_is_as_wanted() {
    let cluster = TestCluster::start().await;
    let proxy = Proxy::start(client(cluster.operator_config.clone()).await).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kubeconfig.yaml");
    std::fs::write(&config, OPERATOR.kubeconfig(&proxy.url, None)).unwrap();
    let arguments =
        ["--watch-namespace", &cluster.namespace, "--lease-namespace", &cluster.namespace];
    let operator = Operator::start(folder.path(), &config, &arguments).await;
    let faults = [
        Fault::Writes(StatusCode::CONFLICT),
        Fault::All(StatusCode::INTERNAL_SERVER_ERROR),
        Fault::All(StatusCode::TOO_MANY_REQUESTS),
        Fault::ExpiredWatches,
        Fault::Slow(Duration::from_millis(300)),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let before =
            (proxy.injected(), operator.metric("sextant_operator_reconcile_failures_total").await);
        proxy.set(fault);
        cluster.apply("gym", json!({"api": {"replicas": number + 1}})).await.unwrap();
        // Something else to repair under the same fault.
        let deleted =
            cluster.api(Kind::Service).delete("gym-milvus", &DeleteParams::default()).await;
        assert!(deleted.is_ok() || number == 0);
        // Who is told 429 waits and asks again, below what reconciles.
        let is_told = fault != Fault::All(StatusCode::TOO_MANY_REQUESTS)
            && matches!(fault, Fault::Writes(_) | Fault::All(_));
        let failures = || operator.metric("sextant_operator_reconcile_failures_total");
        sextant_stack::until("faults, and their being counted", || async {
            proxy.injected() >= before.0 + 3 && (!is_told || failures().await > before.1)
        })
        .await
        .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        proxy.set(Fault::None);
        sextant_stack::until("the Service again", || async {
            cluster.names().await.contains(&"Service/gym-milvus".to_owned())
        })
        .await
        .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        cluster.ready("gym").await;
    }
}

#[tokio::test]
async fn an_api_server_that_comes_back_finds_an_operator_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut plane = ControlPlane::start(folder.path()).await.unwrap();
    let admin = client(plane.admin_config()).await;
    let cluster = TestCluster::on(&plane, admin, "gyms").await;
    let mut operator = cluster.operator().await;
    cluster.apply("gym", json!({})).await.unwrap();
    cluster.ready("gym").await;
    let before = cluster.names().await;
    plane.restart_apiserver().await.unwrap();
    cluster.api(Kind::ConfigMap).delete("gym-api", &DeleteParams::default()).await.unwrap();
    cluster.apply("gym", json!({"api": {"replicas": 3}})).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        // One whose lease ran out meanwhile has ended, and is started again as a kubelet would.
        if operator.process.has_ended() {
            operator = cluster.operator().await;
        }
        let deployment = cluster.api(Kind::Deployment).get("gym-api").await.unwrap();
        if deployment.data["spec"]["replicas"] == 3 && cluster.names().await == before {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", operator.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.ready("gym").await;
}

#[tokio::test]
async fn a_leader_that_was_frozen_writes_nothing_when_it_wakes_after_its_time() {
    let (cluster, mut first) = TestCluster::with_small_stack().await;
    let second = cluster.operator().await;
    first.process.freeze().await.unwrap();
    let leads = || async { second.metric("sextant_operator_is_leader").await == 1 };
    sextant_stack::until("the take-over", leads).await.unwrap();
    cluster.apply("gym", json!({"api": {"replicas": 4}})).await.unwrap();
    cluster.ready("gym").await;
    let before = cluster.versions().await;
    first.process.signal(libc::SIGCONT).unwrap();
    sextant_stack::until("its end", || {
        let ended = first.process.has_ended();
        async move { ended }
    })
    .await
    .unwrap();
    let written = first.log().lines().filter(|line| line.contains("replicas")).count();
    assert_eq!(written, 0, "{}", first.log());
    assert_eq!(cluster.versions().await, before);
}
