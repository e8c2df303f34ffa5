//! Three servers, a fourth that embeds for them, and the stores; each part behind a link, and each
//! may be stopped, frozen or slowed down.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use reqwest::Method;
use serde_json::json;
use sextant_stack::free_port;
use sextant_tests::production::{DATABASE, Stores};
use sextant_tests::{Options, Server, eventually};

use super::link::Link;
use super::load::{COLLECTIONS, DOCUMENTS, WRITTEN, repeated};
use crate::{Failure, texts};

const SERVERS: usize = 3;
/// Metrics that tell what a server knows of a part.
const GAUGES: [&str; 3] =
    ["sextant_redis_up", "sextant_postgres_usable", "sextant_remote_embedder_up"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Redis,
    Replica,
    Primary,
    Milvus,
    Embedder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Killed; started again on the same address.
    Stopped,
    /// SIGSTOP, then SIGCONT: connections stay, nothing answers.
    Frozen,
    /// What is sent to it and what it sends arrives later.
    Slow,
    /// Killed for good, and another takes its place.
    Replaced,
}

impl Part {
    pub const ALL: [Self; 5] =
        [Self::Redis, Self::Replica, Self::Primary, Self::Milvus, Self::Embedder];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::Replica => "replica",
            Self::Primary => "primary",
            Self::Milvus => "Milvus",
            Self::Embedder => "embedder",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Frozen => "frozen",
            Self::Slow => "slow",
            Self::Replaced => "lost, replica promoted",
        })
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub status: u16,
    /// Parts that `/readyz` names as not well.
    pub unwell: Vec<String>,
    /// What the metrics say; of several gauges the sum.
    pub gauges: BTreeMap<String, String>,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, unwell, .. } = self;
        match unwell.as_slice() {
            [] => write!(f, "{status}"),
            parts => write!(f, "{status} {}", parts.join(", ")),
        }
    }
}

pub struct System {
    // In the order in which they end: the servers first.
    pub servers: Vec<Server>,
    embedder: Option<Server>,
    embedder_options: Options,
    /// In the order of [`Part::ALL`].
    links: Vec<Link>,
    stores: Stores,
}

impl System {
    /// With `embedder` as the options of the server that embeds.
    pub async fn start(embedder: Options) -> Result<Self, Failure> {
        let stores = Stores::start().await;
        let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let embedder_options =
            embedder.set("server.listen", &here(free_port()?).to_string()).set("log.level", "warn");
        let embedder = Server::start(embedder_options.clone()).await;
        let milvus = stores.milvus.endpoint();
        let link = |part| {
            let target = match part {
                Part::Redis => Ok(here(stores.redis.port)),
                Part::Replica => Ok(here(stores.replica.port())),
                Part::Primary => Ok(here(stores.primary.port())),
                Part::Milvus => milvus.trim_start_matches("http://").parse(),
                Part::Embedder => embedder.address().parse(),
            };
            async move { Ok::<_, Failure>(Link::to(target?).await?) }
        };
        let links = futures::future::try_join_all(Part::ALL.map(link)).await?;
        let mut system =
            Self { servers: Vec::new(), embedder: Some(embedder), embedder_options, links, stores };
        let starting = (0..SERVERS).map(|_| Server::start(system.options()));
        system.servers = futures::future::join_all(starting).await;
        system.fill().await?;
        Ok(system)
    }

    /// Of the servers: every part is reached by its link.
    fn options(&self) -> Options {
        let at = |part: Part| self.link(part).address();
        let postgres = |hosts: &str| format!("postgres://sextant@{hosts}/{DATABASE}");
        // The replica may become the primary.
        let primaries = format!("{},{}", at(Part::Primary), at(Part::Replica));
        let replicas = json!([postgres(&at(Part::Replica).to_string())]);
        let milvus = json!([format!("http://{}", at(Part::Milvus))]);
        let embedders = json!([format!("http://{}", at(Part::Embedder))]);
        self.stores
            .options(Options::hash())
            .set("postgres.primary", &postgres(&primaries))
            .set("postgres.replicas", &replicas.to_string())
            .set("postgres.probe_period_ms", "1000") // the default
            .set("worker.lease_ms", "60000") // the default
            .set("milvus.endpoints", &milvus.to_string())
            .set("redis.url", &format!("redis://{}", at(Part::Redis)))
            .set("embedder.kind", "remote")
            .set("remote.endpoints", &embedders.to_string())
            .set("log.level", "warn")
    }

    fn link(&self, part: Part) -> &Link {
        &self.links[part as usize]
    }

    async fn fill(&self) -> Result<(), Failure> {
        let api = &self.servers[0].api;
        let lines: String = (0..DOCUMENTS).map(|n| texts::document(n).to_string() + "\n").collect();
        for collection in COLLECTIONS.iter().chain([&WRITTEN]) {
            let freshness = if *collection == "fresh" { "fresh" } else { "bounded" };
            let settings = json!({ "freshness": freshness });
            api.put(&format!("/v1/collections/{collection}"), &settings).await.ok();
            let path = format!("/v1/collections/{collection}/documents?wait=true");
            let import = api.request(Method::POST, &path).body(lines.clone());
            api.send(import.header("content-type", "application/x-ndjson")).await?.ok();
        }
        // Every server has every query that is repeated, and knows all documents.
        for server in &self.servers {
            for collection in COLLECTIONS {
                for query in repeated() {
                    let question = json!({ "query": query });
                    eventually("all hits", async || {
                        let found = server.api.found(collection, &question).await;
                        (found.len() == 10).then_some(())
                    })
                    .await;
                }
            }
        }
        Ok(())
    }

    pub fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let addresses = self.servers.iter().map(|server| server.address().parse());
        Ok(addresses.collect::<Result<_, _>>()?)
    }

    pub async fn fail(&mut self, part: Part, fault: Fault, delay_ms: u64) -> Result<(), Failure> {
        let stores = &mut self.stores;
        match (fault, part) {
            (Fault::Slow, _) => self.link(part).delay(delay_ms),
            (Fault::Frozen, Part::Primary) => stores.primary.freeze()?,
            (Fault::Frozen, Part::Replica) => stores.replica.freeze()?,
            (Fault::Frozen, Part::Redis) => stores.redis.process.freeze().await?,
            (Fault::Frozen, Part::Milvus) => stores.milvus.process().freeze().await?,
            (Fault::Frozen, Part::Embedder) => self.signal_embedder(libc::SIGSTOP),
            (Fault::Stopped | Fault::Replaced, Part::Primary) => {
                stores.primary.process().kill().await?;
            }
            (_, Part::Replica) => stores.replica.process().kill().await?,
            (_, Part::Redis) => stores.redis.process.kill().await?,
            (_, Part::Milvus) => stores.milvus.process().kill().await?,
            (_, Part::Embedder) => {
                if let Some(embedder) = self.embedder.take() {
                    embedder.kill9().await;
                }
            }
        }
        Ok(())
    }

    /// Brings back what failed, and returns when it answers again.
    pub async fn mend(&mut self, part: Part, fault: Fault) -> Result<(), Failure> {
        let stores = &mut self.stores;
        match (fault, part) {
            (Fault::Slow, _) => self.link(part).delay(0),
            (Fault::Frozen, Part::Primary) => stores.primary.thaw()?,
            (Fault::Frozen, Part::Replica) => stores.replica.thaw()?,
            (Fault::Frozen, Part::Redis) => stores.redis.process.signal(libc::SIGCONT)?,
            (Fault::Frozen, Part::Milvus) => stores.milvus.process().signal(libc::SIGCONT)?,
            (Fault::Frozen, Part::Embedder) => self.signal_embedder(libc::SIGCONT),
            (Fault::Replaced, _) => stores.replica.promote().await?,
            (_, Part::Primary) => stores.primary.restart().await?,
            (_, Part::Replica) => stores.replica.restart().await?,
            (_, Part::Redis) => stores.redis.restart().await?,
            (_, Part::Milvus) => stores.milvus.restart().await?,
            (_, Part::Embedder) => {
                self.embedder = Some(Server::start(self.embedder_options.clone()).await);
            }
        }
        Ok(())
    }

    fn signal_embedder(&self, signal: libc::c_int) {
        if let Some(embedder) = &self.embedder {
            embedder.process.signal(signal);
        }
    }

    pub async fn health(&self) -> Vec<Health> {
        futures::future::join_all(self.servers.iter().map(health)).await
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // What is frozen would not notice that its server is gone; what has ended need not.
        for postgres in [&self.stores.primary, &self.stores.replica] {
            let _ = postgres.thaw();
        }
    }
}

async fn health(server: &Server) -> Health {
    let readiness = server.api.get("/readyz").await;
    let parts = readiness.body["dependencies"].as_object();
    let unwell = parts.into_iter().flatten().filter(|(_, state)| *state != "ok");
    let metrics = server.api.get("/metrics").await.text;
    let gauges = metrics.lines().filter(|line| GAUGES.iter().any(|name| line.starts_with(name)));
    Health {
        status: readiness.status.as_u16(),
        unwell: unwell.map(|(name, _)| name.clone()).collect(),
        gauges: gauges
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}
