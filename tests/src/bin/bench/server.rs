//! The server under test, a process of its own, and what the system knows of a process.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use sextant_tests::repository;

use crate::http::{self, Connection};
use crate::{Failure, Options};

/// The collection of the sample documents.
pub const SAMPLES: &str = "exercises";

pub struct Server {
    pub process: sextant_tests::Server,
    pub address: SocketAddr,
}

impl Server {
    /// With the sample documents.
    pub async fn with_samples(options: &Options) -> Result<Self, Failure> {
        Self::start(settings(options)).await
    }

    pub async fn start(settings: sextant_tests::Options) -> Result<Self, Failure> {
        let samples = repository("deploy/samples/exercises.ndjson");
        Self::started(settings.seed(SAMPLES, &samples)).await
    }

    /// On a folder that outlives it.
    pub async fn on(options: &Options, data_dir: &Path) -> Result<Self, Failure> {
        Self::started(settings(options).data_dir(data_dir)).await
    }

    /// As the settings say, without documents.
    pub async fn started(settings: sextant_tests::Options) -> Result<Self, Failure> {
        let process = sextant_tests::Server::start(settings).await;
        let address = process.address().parse()?;
        Ok(Self { process, address })
    }

    pub async fn stop(self) {
        self.process.terminate().await;
    }

    pub fn resident_bytes(&self) -> f64 {
        resident_bytes(self.process.process.pid())
    }

    pub async fn json(&self, request: &[u8]) -> Result<Value, Failure> {
        Connection::open(self.address).await?.exchange(request).await?.json()
    }

    pub async fn metrics(&self) -> Result<Metrics, Failure> {
        let mut connection = Connection::open(self.address).await?;
        let answer = connection.exchange(&http::get("/metrics")).await?;
        Ok(Metrics(String::from_utf8_lossy(answer.body).into_owned()))
    }
}

/// The real model, and no log that costs time.
pub fn settings(options: &Options) -> sextant_tests::Options {
    sextant_tests::Options::model()
        .set("embedder.device", &options.device)
        .set("embedder.precision", &options.precision)
        .set("embedder.workers", &options.workers.to_string())
        .set("log.level", "warn")
}

pub fn search_path(collection: &str) -> String {
    format!("/v1/collections/{collection}/search")
}

/// CPU time of a process so far.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    // User and system, in what Linux tells programs are hundredths of a second.
    (ticks(12) + ticks(13)) / 100.0
}

/// Memory that a process has in use.
pub fn resident_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0
}

/// The metrics at one moment.
pub struct Metrics(String);

impl Metrics {
    /// The sum over all lines of this name that hold the label, written as in `tier="results"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (given, given_labels) = series.split_once('{').unwrap_or((series, ""));
            let same = given == name && labels.iter().all(|label| given_labels.contains(label));
            if same { value.parse::<f64>().ok() } else { None }
        });
        samples.sum()
    }

    /// How much a counter grew since.
    pub fn since(&self, before: &Self, name: &str, labels: &[&str]) -> f64 {
        self.sum(name, labels) - before.sum(name, labels)
    }
}
