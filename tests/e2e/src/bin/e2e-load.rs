//! Load from inside a cluster: searches and writes at a steady rate, each answer looked at. Told what to
//! do, and asked what came of it, over HTTP.
//!
//! | Route | |
//! | --- | --- |
//! | `POST /prepare?collection=NAME` | documents, one a line: puts them into the collection |
//! | `POST /baseline?collection=NAME` | queries, one a line: what each finds now is what is right |
//! | `POST /start` | [`Rates`]; begins anew when it runs already |
//! | `POST /report` | [`Report`] since the last one |
//! | `POST /so-far` | the same, which goes on |
//! | `POST /stop` | the same, and ends |
//! | `POST /lost` | numbers of acknowledged writes that are not there |
#![allow(clippy::expect_used, reason = "a program of the tests: a failure ends it with the reason")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use sextant_e2e::load::{Kind, Rates, Report};
use tokio::task::JoinHandle;

/// Longest wait of a client for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_IN_FLIGHT: usize = 256;
const LEDGER: &str = "ledger";
const LIMIT: usize = 10;
/// Hits of the ten that must be those of the baseline, beside the first: nodes of an approximate index
/// may differ in the last ones.
const SAME: usize = 8;

struct Load {
    url: String,
    key: String,
    http: reqwest::Client,
    collection: Mutex<String>,
    baseline: Mutex<Vec<(String, Vec<String>)>>,
    report: Mutex<Report>,
    begin: Mutex<Instant>,
    acknowledged: Mutex<BTreeSet<u64>>,
    next_write: AtomicU64,
    in_flight: AtomicUsize,
    running: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Deserialize)]
struct Into {
    collection: String,
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

#[tokio::main]
async fn main() {
    let variable = |name: &str| std::env::var(name).expect(name);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(2))
        .timeout(PATIENCE)
        .build()
        .expect("a client");
    let load = Arc::new(Load {
        url: variable("LOAD_URL"),
        key: variable("LOAD_API_KEY"),
        http,
        collection: Mutex::default(),
        baseline: Mutex::default(),
        report: Mutex::default(),
        begin: Mutex::new(Instant::now()),
        acknowledged: Mutex::default(),
        next_write: AtomicU64::new(0),
        in_flight: AtomicUsize::new(0),
        running: Mutex::default(),
    });
    let routes = Router::new()
        .route("/healthz", get(|| async { "OK" }))
        .route("/prepare", post(prepare))
        .route("/baseline", post(baseline))
        .route("/start", post(start))
        .route("/report", post(report))
        .route("/so-far", post(so_far))
        .route("/stop", post(stop))
        .route("/lost", post(lost))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(load);
    let listener = tokio::net::TcpListener::bind("0.0.0.0:8080").await.expect("the port");
    axum::serve(listener, routes).await.expect("to serve");
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Value, String> {
        let answer = request.send().await.map_err(|error| reason(&error))?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(|error| reason(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        Err(format!("{}: {}", status.as_u16(), body["detail"].as_str().unwrap_or("?")))
    }

    fn search(&self, query: &str, cached: bool) -> RequestBuilder {
        let path = format!("/v1/collections/{}/search", lock(&self.collection));
        let request = self
            .request(Method::POST, &path)
            .json(&json!({"query": query, "limit": LIMIT, "mode": "dense"}));
        if cached { request } else { request.header("cache-control", "no-cache") }
    }

    async fn one_search(&self, number: usize, cached: bool) {
        let (query, right) = {
            let all = lock(&self.baseline);
            let Some(one) = all.get(number % all.len().max(1)) else { return };
            one.clone()
        };
        let begin = Instant::now();
        let mut retried = false;
        let mut answer = self.send(self.search(&query, cached)).await;
        // As a load balancer does: what got no answer from one server goes to another, once.
        if answer.as_ref().is_err_and(|error| error.starts_with("connection")) {
            retried = true;
            answer = self.send(self.search(&query, cached)).await;
        }
        let kind = if cached { Kind::CachedSearch } else { Kind::FreshSearch };
        let window = *lock(&self.begin);
        let mut report = lock(&self.report);
        let entry = report.kinds.entry(kind).or_default();
        entry.sent += 1;
        entry.retried += u64::from(retried);
        match answer {
            Err(error) => entry.failed(error),
            Ok(body) => {
                let found = ids(&body);
                if body["degraded"] == true {
                    entry.degraded += 1;
                } else if found.is_empty() {
                    entry.empty += 1;
                } else if found.first() != right.first()
                    || found.iter().filter(|id| right.contains(id)).count() < SAME.min(right.len())
                {
                    entry.wrong += 1;
                }
                entry.answered(begin, window);
            }
        }
    }

    async fn one_write(&self) {
        let number = self.next_write.fetch_add(1, Ordering::Relaxed);
        let line =
            json!({"id": format!("w{number}"), "text": format!("entry {number} of the ledger")});
        let begin = Instant::now();
        let request = self
            .request(Method::POST, &format!("/v1/collections/{LEDGER}/documents"))
            .header("content-type", "application/x-ndjson")
            .body(format!("{line}\n"));
        let answer = self.send(request).await;
        let window = *lock(&self.begin);
        let mut report = lock(&self.report);
        let entry = report.kinds.entry(Kind::Write).or_default();
        entry.sent += 1;
        if let Err(error) = answer {
            entry.failed(error);
        } else {
            entry.answered(begin, window);
            lock(&self.acknowledged).insert(number);
        }
    }

    /// The report so far, after which a new one begins.
    fn finished(&self) -> Report {
        let mut begin = lock(&self.begin);
        let mut report = std::mem::take(&mut *lock(&self.report));
        report.seconds = begin.elapsed().as_secs_f64();
        for entry in report.kinds.values_mut() {
            entry.close(*begin);
        }
        *begin = Instant::now();
        report
    }
}

/// The cause at the bottom, which is what differs.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!("connection: {cause}")
}

fn ids(body: &Value) -> Vec<String> {
    let hits = body["hits"].as_array().into_iter().flatten();
    hits.filter_map(|hit| hit["id"].as_str().map(str::to_owned)).collect()
}

fn failed(error: String) -> (StatusCode, String) {
    (StatusCode::BAD_GATEWAY, error)
}

async fn prepare(State(load): State<Arc<Load>>, Query(into): Query<Into>, lines: String) -> Answer {
    let path = format!("/v1/collections/{}", into.collection);
    let fields: Value = json!({"text_fields": if into.collection == LEDGER { json!(["text"]) } else { json!(["name", "description"]) }});
    load.send(load.request(Method::PUT, &path).json(&fields)).await.map_err(failed)?;
    if lines.is_empty() {
        return Ok(Json(Value::Null));
    }
    let request = load
        .request(Method::POST, &format!("{path}/documents?wait=true"))
        .header("content-type", "application/x-ndjson")
        .timeout(Duration::from_mins(2))
        .body(lines);
    load.send(request).await.map(Json).map_err(failed)
}

async fn baseline(
    State(load): State<Arc<Load>>,
    Query(into): Query<Into>,
    queries: String,
) -> Answer {
    lock(&load.collection).clone_from(&into.collection);
    let mut all = Vec::new();
    for query in queries.lines() {
        let body = load.send(load.search(query, false)).await.map_err(failed)?;
        if body["degraded"] == true || ids(&body).len() < LIMIT {
            return Err(failed(format!("{query}: {body}")));
        }
        all.push((query.to_owned(), ids(&body)));
    }
    let answer = json!(all);
    *lock(&load.baseline) = all;
    Ok(Json(answer))
}

/// The body is JSON, whatever its header says: `kubectl create --raw` sends none.
async fn start(State(load): State<Arc<Load>>, rates: String) -> Answer {
    let rates: Rates = serde_json::from_str(&rates)
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    halt(&load);
    load.finished();
    let searches =
        tokio::spawn(ticking(load.clone(), rates.searches_per_second, |load, number| async move {
            load.one_search(number / 2, number.is_multiple_of(2)).await;
        }));
    let writes =
        tokio::spawn(ticking(load.clone(), rates.writes_per_second, |load, _| async move {
            load.one_write().await;
        }));
    *lock(&load.running) = vec![searches, writes];
    Ok(Json(Value::Null))
}

/// One after the other, whether the earlier ones are answered or not.
async fn ticking<F, Fut>(load: Arc<Load>, per_second: f64, one: F)
where
    F: Fn(Arc<Load>, usize) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    if per_second <= 0.0 {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    for number in 0.. {
        ticks.tick().await;
        if load.in_flight.load(Ordering::Relaxed) >= MAX_IN_FLIGHT {
            lock(&load.report).skipped += 1;
            continue;
        }
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        let (request, load) = (one(load.clone(), number), load.clone());
        tokio::spawn(async move {
            request.await;
            load.in_flight.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn halt(load: &Load) {
    for task in lock(&load.running).drain(..) {
        task.abort();
    }
}

async fn report(State(load): State<Arc<Load>>) -> Json<Report> {
    Json(load.finished())
}

async fn so_far(State(load): State<Arc<Load>>) -> Json<Report> {
    Json(lock(&load.report).clone())
}

async fn stop(State(load): State<Arc<Load>>) -> Json<Report> {
    halt(&load);
    // What is under way counts.
    let deadline = Instant::now() + PATIENCE * 2;
    while load.in_flight.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Json(load.finished())
}

async fn lost(State(load): State<Arc<Load>>) -> Answer {
    let mut missing = lock(&load.acknowledged).clone();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/collections/{LEDGER}/documents?limit=1000{cursor}");
        let page = load.send(load.request(Method::GET, &path)).await.map_err(failed)?;
        for document in page["documents"].as_array().into_iter().flatten() {
            let number = document["id"].as_str().and_then(|id| id.strip_prefix('w')?.parse().ok());
            if let Some(number) = number {
                missing.remove::<u64>(&number);
            }
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let acknowledged = lock(&load.acknowledged).len();
    Ok(Json(json!({"acknowledged": acknowledged, "missing": missing})))
}
