//! A load that does not change whatever the servers do: searches and writes at fixed rates, each
//! sent when it is due, in turn to every server and of every kind.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http::{Connection, post, send};
use crate::outcome::{Done, Outcome};
use crate::server::search_path;
use crate::texts;

/// Both are searched at the same time; each is named after its freshness.
pub const COLLECTIONS: [&str; 2] = ["bounded", "fresh"];
/// Most writes go to another one, or the cache would have next to nothing.
pub const WRITTEN: &str = "written";
const SEARCHED_SHARE: u64 = 5;
pub const DOCUMENTS: u64 = 200;
/// Queries that are asked again and again.
const REPEATED: u64 = 10;
/// As many as a search answers when not told otherwise.
const HITS: usize = 10;
/// Longest wait for an answer; far above any deadline of the servers.
const PATIENCE: Duration = Duration::from_mins(1);
/// As load balancers do: below the 75 s after which servers close a connection.
const IDLE_AT_MOST: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Search { collection: &'static str, repeated: bool },
    Write,
}

/// A request; without an outcome while its answer is awaited.
#[derive(Clone)]
struct Sent {
    kind: Kind,
    at: Instant,
    done: Option<Done>,
}

#[derive(Clone, Copy)]
pub struct Rates {
    pub searches_per_second: f64,
    pub writes_per_second: f64,
}

/// Goes on until it is dropped.
pub struct Load {
    log: Arc<Log>,
    sending: [AbortHandle; 2],
}

impl Load {
    pub fn start(servers: &[SocketAddr], rates: Rates) -> Self {
        let log = Arc::new(Log::default());
        let pools: Arc<[Pool]> = servers.iter().copied().map(Pool::new).collect();
        let sender = |per_second: f64, request: fn(u64) -> (Kind, Vec<u8>)| {
            let (log, pools) = (Arc::clone(&log), Arc::clone(&pools));
            tokio::spawn(at_rate(per_second, move |number| {
                let (log, pools) = (Arc::clone(&log), Arc::clone(&pools));
                async move {
                    let (kind, bytes) = request(number);
                    let place = log.sent(kind);
                    let pool = &pools[(number % pools.len() as u64) as usize];
                    let outcome = pool.exchange(kind, &bytes).await;
                    log.done(place, outcome);
                }
            }))
            .abort_handle()
        };
        let sending =
            [sender(rates.searches_per_second, search), sender(rates.writes_per_second, write)];
        Self { log, sending }
    }

    /// Requests of a kind that were sent in a stretch of time and are done.
    pub fn between(&self, from: Instant, to: Instant, of: impl Fn(Kind) -> bool) -> Vec<Done> {
        let log = self.log.lock();
        let sent = log.iter().filter(|sent| from <= sent.at && sent.at < to && of(sent.kind));
        sent.filter_map(|sent| sent.done.clone()).collect()
    }

    /// Whether every request that was sent before has its outcome.
    pub fn is_settled(&self, before: Instant) -> bool {
        self.log.lock().iter().all(|sent| sent.done.is_some() || sent.at >= before)
    }

    /// When the first of `count` requests in a row was sent that all went right.
    pub fn right_since(
        &self,
        from: Instant,
        count: usize,
        of: impl Fn(Kind) -> bool,
    ) -> Option<Instant> {
        let log = self.log.lock();
        let mut row = Vec::with_capacity(count);
        for sent in log.iter().filter(|sent| sent.at >= from && of(sent.kind)) {
            match &sent.done {
                Some(Done { outcome: Outcome::Right, .. }) => row.push(sent.at),
                _ => row.clear(),
            }
            if row.len() == count {
                return row.first().copied();
            }
        }
        None
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.sending.iter().for_each(AbortHandle::abort);
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<Sent>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Sent>> {
        // A list that only grows is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, kind: Kind) -> usize {
        let mut log = self.lock();
        log.push(Sent { kind, at: Instant::now(), done: None });
        log.len() - 1
    }

    fn done(&self, place: usize, outcome: Outcome) {
        let sent = &mut self.lock()[place];
        sent.done = Some(Done { sent: sent.at, took: sent.at.elapsed(), outcome });
    }
}

/// Starts what `work` makes so often. What was late is made up for. All ends with the caller.
async fn at_rate<F: Future<Output = ()> + Send + 'static>(
    per_second: f64,
    mut work: impl FnMut(u64) -> F,
) {
    if per_second <= 0.0 {
        return;
    }
    let mut due = interval(Duration::from_secs_f64(1.0 / per_second));
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    for number in 0.. {
        due.tick().await;
        under_way.spawn(work(number));
        while under_way.try_join_next().is_some() {}
    }
}

/// Connections to a server that wait for their next request.
struct Pool {
    address: SocketAddr,
    idle: Mutex<Vec<(Instant, Connection)>>,
}

impl Pool {
    fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(|(since, _)| since.elapsed() < IDLE_AT_MOST);
        idle.pop().map(|(_, connection)| connection)
    }

    async fn exchange(&self, kind: Kind, bytes: &[u8]) -> Outcome {
        let kept = self.kept();
        let exchange = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => Connection::open(self.address).await?,
            };
            let answer = connection.exchange(bytes).await?;
            let outcome = match kind {
                Kind::Search { .. } => Outcome::of_search(&answer, HITS),
                Kind::Write => Outcome::of_write(&answer),
            };
            self.idle().push((Instant::now(), connection));
            Ok::<_, std::io::Error>(outcome)
        };
        match timeout(PATIENCE, exchange).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Lost(error.kind()),
            Err(_) => Outcome::Lost(std::io::ErrorKind::TimedOut),
        }
    }
}

/// Half of them known, half new, and so for each collection on each of three servers.
fn search(number: u64) -> (Kind, Vec<u8>) {
    let collection = COLLECTIONS[(number / 3 % 2) as usize];
    let repeated = (number / 6).is_multiple_of(2);
    let query = if repeated { number / 12 % REPEATED } else { REPEATED + number };
    let body = json!({ "query": texts::query(query) });
    (Kind::Search { collection, repeated }, post(&search_path(collection), &body))
}

/// Another text for a document.
fn write(number: u64) -> (Kind, Vec<u8>) {
    let collection = match number % (2 * SEARCHED_SHARE) {
        0 => COLLECTIONS[0],
        SEARCHED_SHARE => COLLECTIONS[1],
        _ => WRITTEN,
    };
    let mut document = texts::document(DOCUMENTS + number);
    let id = format!("exercise-{:07}", number % DOCUMENTS);
    document["id"] = json!(id);
    let path = format!("/v1/collections/{collection}/documents/{id}?wait=false");
    (Kind::Write, send("PUT", &path, "", &document))
}

/// Every query that is asked more than once.
pub fn repeated() -> impl Iterator<Item = String> {
    (0..REPEATED).map(texts::query)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn every_server_gets_as_many_searches_of_every_kind() {
        let mut counts: HashMap<(u64, String), u64> = HashMap::new();
        for number in 0..1_200 {
            *counts.entry((number % 3, format!("{:?}", search(number).0))).or_default() += 1;
        }
        assert_eq!(counts.len(), 12);
        assert!(counts.values().all(|count| *count == 100), "{counts:?}");
    }
}
