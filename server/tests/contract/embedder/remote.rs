//! The embedder that asks other servers: real ones, on loopback, with hashed words for a model.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sextant_server::adapters::embedder::remote::{ConnectError, RemoteEmbedder, RemoteOptions};
use sextant_server::config::RemoteConfig;
use sextant_server::http::router;
use sextant_server::listen::{self, Bounds};
use sextant_server::metrics::Metrics;
use sextant_server::ports::{Class, EmbedError, Embedder, Embedding, Urgency};
use sextant_stack::until;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use super::suite;
use crate::app::{Setup, TestApp};

/// A server on a runtime of its own, so that it can end with all its connections at once.
struct Server {
    app: TestApp,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    async fn start() -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), 32).await
    }

    async fn on(address: SocketAddr, dimension: usize) -> Self {
        let app = TestApp::with(Setup { dimension: Some(dimension), ..Setup::default() }).await;
        let mut server = Self { app, address, runtime: None };
        server.run().await;
        server
    }

    async fn run(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let router = router(self.app.state.clone());
        let bounds = Bounds {
            max_connections: 100,
            header_timeout: Duration::from_secs(10),
            drain_timeout: Duration::ZERO,
        };
        let address = self.address;
        let (bound, at) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            bound.send(listener.local_addr().unwrap()).unwrap();
            listen::serve(listener, router, bounds, std::future::pending()).await;
        });
        self.address = at.await.unwrap();
        self.runtime = Some(runtime);
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    fn calls(&self) -> usize {
        *self.app.embedder.calls.borrow()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Client {
    embedder: Arc<RemoteEmbedder>,
    metrics: Arc<Metrics>,
}

fn options(servers: &[&Server]) -> RemoteOptions {
    let endpoints = servers.iter().map(|server| format!("http://{}", server.address)).collect();
    let config = RemoteConfig { endpoints, timeout_ms: 2_000, ..RemoteConfig::default() };
    RemoteOptions { config, api_key: None, queue_texts: 100, patience: Duration::ZERO }
}

impl Client {
    async fn of(servers: &[&Server]) -> Self {
        Self::with(options(servers)).await
    }

    async fn with(options: RemoteOptions) -> Self {
        let metrics = Arc::new(Metrics::new());
        let embedder = RemoteEmbedder::connect(options, Arc::clone(&metrics)).await.unwrap();
        Self { embedder: Arc::new(embedder), metrics }
    }

    async fn embed(&self, text: &str) -> Result<Vec<Embedding>, EmbedError> {
        self.embed_within(text, Duration::from_secs(10)).await
    }

    async fn embed_within(&self, text: &str, time: Duration) -> Result<Vec<Embedding>, EmbedError> {
        let urgency = Urgency { class: Class::Interactive, deadline: Instant::now() + time };
        self.embedder.embed(vec![text.into()], urgency).await
    }

    fn spawn(&self, text: String) -> tokio::task::JoinHandle<Result<Vec<Embedding>, EmbedError>> {
        let client =
            Self { embedder: Arc::clone(&self.embedder), metrics: Arc::clone(&self.metrics) };
        tokio::spawn(async move { client.embed(&text).await })
    }

    fn requests(&self, outcome: &str) -> u64 {
        self.metrics.remote_requests.with_label_values(&[outcome]).get()
    }

    fn unavailable(&self) -> String {
        self.embedder.health().unwrap_err()
    }
}

#[tokio::test]
async fn the_remote_embedder_keeps_the_contract() {
    let server = Server::start().await;
    let client = Client::of(&[&server]).await;
    assert_eq!(client.embedder.model().version, server.app.embedder.model().version);
    suite(&*client.embedder).await;
}

#[tokio::test]
async fn texts_of_concurrent_callers_travel_together_and_equal_ones_once() {
    let server = Server::start().await;
    let mut options = options(&[&server]);
    options.config.max_in_flight = 1;
    let client = Client::with(options).await;
    server.app.embedder.close_gate();
    let first = client.spawn("first".to_owned());
    until("the first request", || async { server.calls() == 1 }).await.unwrap();
    let others: Vec<_> = (0..20).map(|i| client.spawn(format!("text {}", i % 10))).collect();
    let depth = || client.metrics.embed_queue_depth.get();
    let joined = || client.metrics.embed_texts.with_label_values(&["joined"]).get();
    until("the others to wait", || async { depth() == 10 && joined() == 10 }).await.unwrap();
    server.app.embedder.open_gate();
    first.await.unwrap().unwrap();
    let mut rows = Vec::new();
    for other in others {
        rows.push(other.await.unwrap().unwrap().remove(0));
    }
    assert_eq!(rows[3], rows[13]);
    assert_ne!(rows[3], rows[4]);
    assert_eq!(client.requests("ok"), 2);
    assert_eq!(server.app.embedder.embedded(), 11);
}

#[tokio::test]
async fn no_call_fails_when_one_of_two_servers_is_killed() {
    let mut servers = [Server::start().await, Server::start().await];
    let client = Client::of(&[&servers[0], &servers[1]]).await;
    for round in 0..40 {
        if round == 10 {
            servers[0].kill();
        }
        let calls: Vec<_> = (0..5).map(|i| client.spawn(format!("text {round} {i}"))).collect();
        for call in calls {
            assert_eq!(call.await.unwrap().map(|rows| rows.len()), Ok(1));
        }
    }
    assert_eq!(client.embedder.health(), Ok(()));
    assert!(servers[0].calls() > 0, "both were used");
}

#[tokio::test]
async fn a_second_server_answers_when_the_first_is_slow() {
    let servers = [Server::start().await, Server::start().await];
    let mut options = options(&[&servers[0], &servers[1]]);
    options.config.hedge_after_ms = 20;
    let client = Client::with(options).await;
    servers[0].app.embedder.close_gate();
    let started = Instant::now();
    assert!(client.embed("slow").await.is_ok());
    assert!(started.elapsed() < Duration::from_millis(1_500), "before the time-out");
    assert_eq!((servers[0].calls(), servers[1].calls()), (1, 1));
    assert_eq!((client.requests("hedged"), client.requests("hedge_won")), (1, 1));
}

#[tokio::test]
async fn with_all_servers_down_calls_fail_at_once_until_one_is_back() {
    let mut server = Server::start().await;
    let client = Client::of(&[&server]).await;
    assert!(client.embed("before").await.is_ok());
    server.kill();
    let started = Instant::now();
    for _ in 0..3 {
        let error = client.embed("meanwhile").await.unwrap_err();
        assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(client.unavailable().contains(&server.address.to_string()));
    let urgency =
        Urgency { class: Class::Interactive, deadline: Instant::now() + Duration::from_secs(1) };
    let refused = client.embedder.admit("text", urgency);
    assert!(matches!(refused, Err(EmbedError::Unavailable(_))), "{refused:?}");

    server.run().await;
    until("the server to be found", || async { client.embedder.health().is_ok() }).await.unwrap();
    assert!(client.embed("after").await.is_ok());
}

#[tokio::test]
async fn a_server_with_another_model_is_never_used() {
    let mut server = Server::start().await;
    let other = Server::on("127.0.0.1:0".parse().unwrap(), 16).await;
    let client = Client::of(&[&server, &other]).await;
    for i in 0..10 {
        let rows = client.embed(&format!("text {i}")).await.unwrap();
        assert_eq!(rows[0].vector.len(), 32);
    }
    assert_eq!(other.calls(), 0);
    // The one that was good comes back with another model, on the address that is known.
    server.kill();
    let swapped = Server::on(server.address, 16).await;
    let error = client.embed("text").await.unwrap_err();
    assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
    until("the probe", || async { client.unavailable().matches("another model").count() == 2 })
        .await
        .unwrap();
    assert!(swapped.calls() <= 1);
}

#[tokio::test]
async fn an_overloaded_server_is_not_asked_before_the_time_it_named() {
    let servers = [Server::start().await, Server::start().await];
    let overloaded = EmbedError::Overloaded { retry_after: Duration::from_secs(2) };
    let refuse = |server: &Server| {
        *server.app.embedder.fail_with.lock().unwrap() = Some(overloaded.clone());
    };
    let client = Client::of(&[&servers[0], &servers[1]]).await;
    refuse(&servers[0]);
    for i in 0..6 {
        assert!(client.embed(&format!("text {i}")).await.is_ok(), "the other one answers");
    }
    assert_eq!(servers[0].calls(), 1);
    refuse(&servers[1]);
    for i in 6..12 {
        let error = client.embed(&format!("text {i}")).await.unwrap_err();
        let EmbedError::Overloaded { retry_after } = error else { panic!("{error:?}") };
        assert!(retry_after > Duration::from_secs(1), "{retry_after:?}");
    }
    assert_eq!((servers[0].calls(), servers[1].calls()), (1, 7));
    assert_eq!(client.embedder.health(), Ok(()), "overloaded is not down");
}

#[tokio::test]
async fn a_deadline_is_kept_and_others_with_more_time_get_their_answer() {
    let server = Server::start().await;
    let client = Client::of(&[&server]).await;
    server.app.embedder.close_gate();
    let patient = client.spawn("text".to_owned());
    let started = Instant::now();
    let hurried = client.embed_within("text", Duration::from_millis(100)).await;
    assert_eq!(hurried, Err(EmbedError::DeadlineExceeded));
    assert!(started.elapsed() < Duration::from_secs(1));
    server.app.embedder.open_gate();
    assert!(patient.await.unwrap().is_ok());
}

#[tokio::test]
async fn without_any_server_the_start_fails_and_names_them() {
    let mut server = Server::start().await;
    let options = options(&[&server]);
    server.kill();
    let connected = RemoteEmbedder::connect(options, Arc::new(Metrics::new())).await;
    let Err(ConnectError::NoServer(reason)) = connected else { panic!("connected") };
    assert!(reason.contains(&server.address.to_string()), "{reason}");
}
