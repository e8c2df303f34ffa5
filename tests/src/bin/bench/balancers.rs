//! Three servers behind each load balancer, of which one after the other is stopped and killed and
//! comes back, while many connections search. No search may fail.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use sextant_stack::free_port;
use sextant_stack::proxy::{Haproxy, Nginx};
use sextant_tests::production::Stores;
use sextant_tests::{Options as Settings, PATIENCE, Server, eventually};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::http::{Connection, get, post};
use crate::outcome::{Done, Outcome, failures, longest_ms, p99_ms};
use crate::report::{Bars, Table, ms, title};
use crate::server::{SAMPLES, search_path};
use crate::{Failure, Options, texts};

const SERVERS: usize = 3;
const DOCUMENTS: u64 = 200;
const REPEATED: u64 = 20;
const HITS: usize = 10;
/// Far enough on that no query is known from the load balancer before.
const NEW_TO_THE_SECOND: u64 = 400_000;
/// As docs/load-balancers.md has it.
const HAPROXY_DRAIN_MS: u64 = 3_000;

#[derive(Args)]
pub struct BalancersOptions {
    /// Connections, each of which waits for its answer before it asks again.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Most searches a second.
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
    /// How often a server is stopped, and how often killed, behind each load balancer.
    #[arg(long, default_value_t = 4)]
    stops: usize,
    /// How long it is gone before it is started again.
    #[arg(long, default_value_t = 2.0)]
    gone_seconds: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Terminated,
    Killed,
}

enum Balancer {
    Nginx(Nginx),
    Haproxy(Haproxy),
}

pub async fn run(_: &Options, balancers: &BalancersOptions) -> Result<(), Failure> {
    let stores = Stores::start().await;
    let folder = tempfile::tempdir()?;
    let mut table = Table::new(&[
        "load balancer",
        "a server is",
        "times",
        "searches",
        "failed",
        "p99 ms",
        "longest ms",
        "gone for s (most)",
    ]);
    let mut bars = Bars::new();
    for (name, first) in [("nginx", 0), ("HAProxy", NEW_TO_THE_SECOND)] {
        let drain_ms = if name == "HAProxy" { HAPROXY_DRAIN_MS } else { 0 };
        let (mut servers, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..SERVERS {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
            addresses.push(address);
            servers.push(server(&stores, address, drain_ms).await);
        }
        if name == "nginx" {
            fill(&servers[0]).await;
        }
        let mut balancer = Balancer::start(name, folder.path(), &addresses).await?;
        let load = Load::start(balancer.address(), first, balancers);
        let mut ended: [Vec<(Instant, Instant)>; 2] = Default::default();
        for round in 0..balancers.stops * 2 {
            let (place, end) = (round % SERVERS, [End::Terminated, End::Killed][round % 2]);
            let gone = Duration::from_secs_f64(balancers.gone_seconds);
            let restart = async || server(&stores, addresses[place], drain_ms).await;
            let (server, times) = replace(servers.remove(place), end, gone, restart).await;
            servers.insert(place, server);
            ended[round % 2].push(times);
        }
        let done = load.stop().await;
        balancer.stop().await?;
        drop(servers);
        for (how, times) in ["stopped (SIGTERM)", "killed (kill -9)"].into_iter().zip(&ended) {
            let within = |at: Instant| times.iter().any(|(from, to)| *from <= at && at < *to);
            let of = || done.iter().filter(|done| within(done.sent));
            let gone = times.iter().map(|(from, to)| *to - *from).max().unwrap_or_default();
            table.row(&[
                &name,
                &how,
                &times.len(),
                &of().count(),
                &failures(of()),
                &ms(p99_ms(of())),
                &ms(longest_ms(of())),
                &format!("{:.1}", gone.as_secs_f64()),
            ]);
        }
        let failed = done.iter().filter(|done| done.outcome != Outcome::Right).count();
        bars.at_most(&format!("{name}: failed searches of {}", done.len()), 0.0, failed as f64);
    }
    title("Load balancers");
    println!(
        "\nthree servers, {} connections, at most {} searches/s, half of them known",
        balancers.connections, balancers.rate
    );
    table.print();
    bars.print();
    Ok(())
}

async fn server(stores: &Stores, address: SocketAddr, drain_ms: u64) -> Server {
    let options = stores
        .options(Settings::hash())
        .set("server.listen", &address.to_string())
        .set("server.drain_delay_ms", &drain_ms.to_string())
        .set("log.level", "warn");
    Server::start(options).await
}

async fn fill(server: &Server) {
    let api = &server.api;
    api.put(&format!("/v1/collections/{SAMPLES}"), &json!({})).await.ok();
    let lines = (0..DOCUMENTS).map(|n| texts::document(n).to_string() + "\n").collect();
    api.import(SAMPLES, lines).await.ok();
    let facets = json!({ "query": texts::query(0), "facets": ["level"] });
    eventually("all documents are found", async || {
        let found = api.search(SAMPLES, &facets).await;
        let counts = found["facets"]["level"].as_array()?.iter();
        let all: u64 = counts.filter_map(|value| value["count"].as_u64()).sum();
        (all == DOCUMENTS).then_some(())
    })
    .await;
}

/// Ends a server and starts it again; with it, from when to when the load balancer did without.
async fn replace(
    server: Server,
    end: End,
    gone: Duration,
    restart: impl AsyncFnOnce() -> Server,
) -> (Server, (Instant, Instant)) {
    let from = Instant::now();
    match end {
        End::Terminated => drop(server.terminate().await),
        End::Killed => server.kill9().await,
    }
    sleep(gone).await;
    let server = restart().await;
    eventually("searches come to the server", async || {
        let metrics = server.api.get("/metrics").await.text;
        let mut counts = metrics.lines().filter(|line| line.starts_with("sextant_cache_requests"));
        counts.any(|line| !line.ends_with(" 0")).then_some(())
    })
    .await;
    (server, (from, Instant::now()))
}

impl Balancer {
    async fn start(name: &str, folder: &Path, servers: &[SocketAddr]) -> Result<Self, Failure> {
        let folder = folder.join(name);
        Ok(match name {
            "nginx" => Self::Nginx(Nginx::start(&folder, servers).await?),
            _ => Self::Haproxy(Haproxy::start(&folder, servers).await?),
        })
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Nginx(nginx) => nginx.address(),
            Self::Haproxy(haproxy) => haproxy.address(),
        }
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        let limit = Duration::from_secs(10);
        match self {
            Self::Nginx(nginx) => nginx.stop(limit).await?,
            Self::Haproxy(haproxy) => haproxy.stop(limit).await?,
        }
        Ok(())
    }
}

/// Searches that go on until it is stopped.
struct Load {
    stopped: Arc<tokio::sync::Notify>,
    running: JoinHandle<Vec<Done>>,
}

impl Load {
    fn start(address: SocketAddr, first: u64, balancers: &BalancersOptions) -> Self {
        let stopped = Arc::new(tokio::sync::Notify::new());
        let (connections, rate) = (balancers.connections, balancers.rate);
        let running = tokio::spawn({
            let stopped = Arc::clone(&stopped);
            async move {
                let number = Arc::new(AtomicU64::new(first));
                let done = Arc::new(Mutex::new(Vec::new()));
                let mut loops = JoinSet::new();
                let pause = Duration::from_secs_f64(connections as f64 / rate);
                for _ in 0..connections {
                    loops.spawn(searches(address, pause, Arc::clone(&number), Arc::clone(&done)));
                    // Not all at the same moment.
                    sleep(pause / connections as u32).await;
                }
                stopped.notified().await;
                drop(loops);
                std::mem::take(&mut *done.lock().unwrap_or_else(PoisonError::into_inner))
            }
        });
        Self { stopped, running }
    }

    async fn stop(self) -> Vec<Done> {
        self.stopped.notify_one();
        self.running.await.unwrap_or_default()
    }
}

/// One connection, which waits for its answer before it asks again.
async fn searches(
    address: SocketAddr,
    pause: Duration,
    number: Arc<AtomicU64>,
    done: Arc<Mutex<Vec<Done>>>,
) {
    let mut due = interval(pause);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = None;
    loop {
        due.tick().await;
        let bytes = search(number.fetch_add(1, Ordering::Relaxed));
        let sent = Instant::now();
        let exchange = timeout(PATIENCE, exchange(address, &mut kept, &bytes));
        let outcome = match exchange.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Lost(error.kind()),
            Err(_) => Outcome::Lost(std::io::ErrorKind::TimedOut),
        };
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        done.push(Done { sent, took: sent.elapsed(), outcome });
    }
}

/// Over the kept connection, which is kept further unless the load balancer closes it.
async fn exchange(
    address: SocketAddr,
    kept: &mut Option<Connection>,
    bytes: &[u8],
) -> std::io::Result<Outcome> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let answer = connection.exchange(bytes).await?;
    let outcome = Outcome::of_search(&answer, HITS);
    let closes = answer.header("connection").is_some_and(|value| value == "close");
    *kept = (!closes).then_some(connection);
    Ok(outcome)
}

/// Half of them known, half new, and of each half by `POST` and half by `GET`.
fn search(number: u64) -> Vec<u8> {
    let query = if number.is_multiple_of(2) { number / 4 % REPEATED } else { REPEATED + number };
    let query = texts::query(query);
    if (number / 2).is_multiple_of(2) {
        post(&search_path(SAMPLES), &json!({ "query": query }))
    } else {
        get(&format!("{}?query={}", search_path(SAMPLES), query.replace(' ', "+")))
    }
}
