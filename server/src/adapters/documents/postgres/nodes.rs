//! The database's nodes: which one accepts writes, which replicas may be read from. Every node is
//! probed by a task of its own, on a connection of its own, so that a frozen node holds up nobody
//! and a busy pool is not taken for a lost node.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanKind;
use rand::Rng;
use rand::seq::IndexedRandom;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::PostgresOptions;
use super::fault::{Fault, fault};
use super::hosts::{Host, hosts};
use super::lag::{History, Position, Replayed};
use super::state::{Role, State, may_find_primary, primary, readers};
use crate::metrics::Metrics;
use crate::spans::Span;

/// A connection that was idle for longer is tried before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// For so long after the loss of a primary another is expected: it is looked for more often, and what
/// needs one waits for it.
const HANDOVER: Duration = Duration::from_secs(5);
const HANDOVER_PROBES: u32 = 10;

/// Why an operation on a node failed.
#[derive(Debug)]
pub enum Error {
    /// No node could do it; one may in a moment.
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
    Statement(sqlx::Error),
}

struct Node {
    host: Host,
    role: Role,
    /// Replaced as a whole when the node is lost: connections to a dead machine would keep their
    /// places in it. Counted, so that a late failure is not held against the new one.
    pool: Mutex<(u64, PgPool)>,
    wake: Notify,
}

/// A node that was chosen for an operation.
pub struct Chosen {
    index: usize,
    count: u64,
    pool: PgPool,
}

pub struct Nodes {
    all: Vec<Node>,
    states: watch::Sender<Vec<(Role, State)>>,
    history: Mutex<History>,
    /// When there was a primary last.
    primary_lost: Mutex<Option<Instant>>,
    max_connections: u32,
    connect_timeout: Duration,
    statement_timeout: Duration,
    max_lag: Duration,
    probe_period: Duration,
    metrics: Arc<Metrics>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing in here is left half done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    /// Reads the connection strings; connects to nothing.
    ///
    /// # Errors
    /// The setting and what is wrong with it.
    pub fn new(options: &PostgresOptions, metrics: Arc<Metrics>) -> Result<Self, String> {
        let password = options.password.as_ref().map(|password| password.0.as_str());
        let mut found = Vec::new();
        for host in hosts(&options.primary, password)
            .map_err(|fault| format!("`postgres.primary` {fault}"))?
        {
            found.push((Role::Primary, host));
        }
        for (i, url) in options.replicas.iter().enumerate() {
            let hosts = hosts(url, password)
                .map_err(|fault| format!("`postgres.replicas[{i}]` {fault}"))?;
            found.extend(hosts.into_iter().map(|host| (Role::Replica, host)));
        }
        let states = found.iter().map(|(role, _)| (*role, State::Unknown)).collect();
        let mut nodes = Self {
            all: Vec::new(),
            states: watch::Sender::new(states),
            history: Mutex::default(),
            primary_lost: Mutex::default(),
            // One is for probing and one, on the primary, for being told of work.
            max_connections: options.max_connections.saturating_sub(2).max(1),
            connect_timeout: options.connect_timeout,
            statement_timeout: options.statement_timeout,
            max_lag: options.max_lag,
            probe_period: options.probe_period,
            metrics,
        };
        let statement_timeout = options.statement_timeout.as_millis().to_string();
        for (role, mut host) in found {
            host.options = host
                .options
                .application_name("sextant")
                .options([("statement_timeout", statement_timeout.as_str())]);
            let pool = Mutex::new((0, nodes.pool(&host.options)));
            nodes.all.push(Node { host, role, pool, wake: Notify::new() });
        }
        Ok(nodes)
    }

    fn pool(&self, options: &PgConnectOptions) -> PgPool {
        PgPoolOptions::new()
            .max_connections(self.max_connections)
            .acquire_timeout(self.connect_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    // An error here makes the pool open another connection.
                    Ok(meta.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok())
                })
            })
            .connect_lazy_with(options.clone())
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Each node's `host:port`, role and state.
    pub fn states(&self) -> Vec<(String, Role, State)> {
        let states = self.states.borrow();
        let names = self.all.iter().map(|node| node.host.name.clone());
        names.zip(states.iter()).map(|(name, (role, state))| (name, *role, state.clone())).collect()
    }

    fn chosen(&self, index: usize) -> Chosen {
        let (count, pool) = locked(&self.all[index].pool).clone();
        Chosen { index, count, pool }
    }

    fn hands_over(&self) -> bool {
        locked(&self.primary_lost).is_some_and(|lost| lost.elapsed() < HANDOVER)
    }

    /// Notes it when a change of the states leaves none that accepts writes.
    fn change_states(&self, change: impl FnOnce(&mut Vec<(Role, State)>) -> bool) {
        self.states.send_if_modified(|states| {
            let had = primary(states).is_some();
            let modified = change(states);
            if had && primary(states).is_none() {
                *locked(&self.primary_lost) = Some(Instant::now());
            }
            modified
        });
    }

    /// The node to write to, now, after the probes that are under way, or once a handover that has
    /// just begun is done.
    ///
    /// # Errors
    /// The state of every node that could be it.
    pub async fn primary(&self) -> Result<Chosen, Error> {
        let mut states = self.states.subscribe();
        let settled = states.wait_for(|nodes| {
            primary(nodes).is_some() || !(may_find_primary(nodes) || self.hands_over())
        });
        // A probe takes the connect timeout at most; a little more lets its result arrive.
        let settled = timeout(self.connect_timeout.mul_f64(1.25), settled).await;
        let found = settled.ok().and_then(Result::ok).and_then(|nodes| primary(&nodes));
        found.map(|index| self.chosen(index)).ok_or_else(|| {
            let state = |(name, _, state)| match state {
                State::Down(reason) => format!("{name} is down: {reason}"),
                other => format!("{name} is {}", other.as_str()),
            };
            let nodes = self.states().into_iter().filter(|(_, role, _)| *role == Role::Primary);
            let nodes: Vec<String> = nodes.map(state).collect();
            Error::Unavailable(format!("no host accepts writes ({})", nodes.join("; ")).into())
        })
    }

    /// Any replica that may be read from, but for one that failed.
    fn reader(&self, but: Option<usize>) -> Option<Chosen> {
        let readers = readers(&self.states.borrow());
        let others: Vec<usize> = readers.into_iter().filter(|index| Some(*index) != but).collect();
        others.choose(&mut rand::rng()).map(|index| self.chosen(*index))
    }

    pub fn has_primary(&self) -> bool {
        primary(&self.states.borrow()).is_some()
    }

    /// Runs an operation on a node within `limit`.
    async fn run<T>(
        &self,
        node: Chosen,
        limit: Duration,
        operation: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Error> {
        let span = Span::child("postgres", SpanKind::Client);
        span.set("db.system.name", "postgresql");
        span.set("sextant.postgres.role", self.all[node.index].role.as_str());
        if span.is_recorded() {
            span.set("server.address", self.all[node.index].host.name.clone());
        }
        let failure = |outcome: &Result<_, _>| match outcome {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(fault(error).as_str()),
            Err(_) => Some("timeout"),
        };
        let outcome = span.call(timeout(limit, operation), failure).await;
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => match fault(&error) {
                Fault::Lost => {
                    self.lost(&node);
                    Err(Error::Unavailable(Box::new(error)))
                }
                Fault::Busy => {
                    // A pool may also be empty because the node takes no connections any more.
                    self.all[node.index].wake.notify_one();
                    Err(Error::Unavailable(Box::new(error)))
                }
                Fault::Statement => Err(Error::Statement(error)),
            },
            Err(_) => {
                // Frozen, or only slow: the probe tells. Until then nobody else waits for it.
                self.suspect(&node);
                let name = &self.all[node.index].host.name;
                Err(Error::Unavailable(format!("{name} did not answer in {limit:?}").into()))
            }
        }
    }

    /// Longest time for an operation on the primary that is bound by the statement timeout.
    pub fn patience(&self) -> Duration {
        self.connect_timeout + self.statement_timeout
    }

    /// Longest time for a read that can be made elsewhere, or be done without: a little more than
    /// for a connection, so that a full pool is not taken for a frozen node.
    pub fn read_patience(&self) -> Duration {
        self.connect_timeout.mul_f64(1.25)
    }

    pub async fn on_primary<T, F>(
        &self,
        limit: Duration,
        operation: impl FnOnce(PgPool) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let node = self.primary().await?;
        let operation = operation(node.pool.clone());
        self.run(node, limit, operation).await
    }

    /// Reads from a replica; what fails there is tried once more, on another or on the primary.
    /// The bool tells whether a replica answered.
    pub async fn read<T, F>(&self, operation: impl Fn(PgPool) -> F) -> Result<(T, bool), Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let mut failed = None;
        if let Some(node) = self.reader(None) {
            let (index, reading) = (node.index, operation(node.pool.clone()));
            match self.run(node, self.read_patience(), reading).await {
                Ok(value) => return Ok((value, true)),
                Err(error) => {
                    tracing::debug!(?error, "a read is tried again on another node");
                    self.metrics
                        .background_failures
                        .with_label_values(&["postgres_read_replica"])
                        .inc();
                }
            }
            failed = Some(index);
        }
        if let Some(node) = self.reader(failed).filter(|_| failed.is_some()) {
            let reading = operation(node.pool.clone());
            return Ok((self.run(node, self.read_patience(), reading).await?, true));
        }
        let value = match self.on_primary(self.patience(), &operation).await {
            // It was lost just then.
            Err(Error::Unavailable(_)) if self.hands_over() => {
                self.on_primary(self.patience(), &operation).await?
            }
            value => value?,
        };
        Ok((value, false))
    }

    /// A statement failed as it does when the node is gone.
    fn lost(&self, node: &Chosen) {
        if self.replace_pool(node.index, Some(node.count)) {
            self.suspect(node);
        }
    }

    /// Gives up the connections to a node; false when that was done since they were `count`ed.
    fn replace_pool(&self, index: usize, count: Option<u64>) -> bool {
        let Node { host, role, pool, .. } = &self.all[index];
        let mut pool = locked(pool);
        if count.is_some_and(|count| count != pool.0) {
            return false;
        }
        *pool = (pool.0 + 1, self.pool(&host.options));
        tracing::warn!(node = host.name, role = role.as_str(), "lost a database node");
        self.metrics.postgres_lost.with_label_values(&[host.name.as_str()]).inc();
        true
    }

    /// The node is not used before a probe has found it well, and when it was the primary all are
    /// asked for the new one.
    fn suspect(&self, node: &Chosen) {
        let suspected = self.all[node.index].role;
        self.change_states(|states| {
            for (index, (role, state)) in states.iter_mut().enumerate() {
                if index == node.index || (suspected, *role) == (Role::Primary, Role::Primary) {
                    *state = State::Unknown;
                    self.all[index].wake.notify_one();
                }
            }
            true
        });
    }

    /// Probes one node for ever.
    pub async fn watch(self: Arc<Self>, index: usize) {
        let node = &self.all[index];
        let mut connection = None;
        loop {
            let state =
                match timeout(self.connect_timeout, self.probe(index, &mut connection)).await {
                    Ok(Ok(state)) => state,
                    Ok(Err(error)) => State::Down(error.to_string()),
                    Err(_) => State::Down(format!("no answer in {:?}", self.connect_timeout)),
                };
            if matches!(state, State::Down(_)) {
                connection = None;
                if !matches!(self.states.borrow()[index].1, State::Down(_)) {
                    self.replace_pool(index, None);
                }
            }
            self.set(index, state);
            // Servers that were started together do not probe together.
            let period = if self.hands_over() {
                self.probe_period / HANDOVER_PROBES
            } else {
                self.probe_period
            };
            let pause = period.mul_f64(rand::rng().random_range(0.9..1.1));
            tokio::select! {
                () = sleep(pause) => {}
                () = node.wake.notified() => {}
            }
        }
    }

    fn set(&self, index: usize, state: State) {
        let Node { host, role, .. } = &self.all[index];
        let usable = match role {
            Role::Primary => matches!(state, State::Primary { .. }),
            Role::Replica => {
                matches!(state, State::Primary { .. } | State::Standby { current: true })
            }
        };
        self.metrics
            .postgres_usable
            .with_label_values(&[host.name.as_str(), role.as_str()])
            .set(i64::from(usable));
        self.change_states(|states| {
            let known = &mut states[index].1;
            if *known == state {
                return false;
            }
            if known.as_str() != state.as_str() {
                let reason = if let State::Down(reason) = &state { reason.as_str() } else { "" };
                let (role, state) = (role.as_str(), state.as_str());
                tracing::info!(node = host.name, role, state, reason, "probed a database node");
            }
            *known = state;
            true
        });
    }

    async fn probe(
        &self,
        index: usize,
        connection: &mut Option<PgConnection>,
    ) -> Result<State, sqlx::Error> {
        let node = &self.all[index];
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(node.host.options.connect().await?),
        };
        let row = sqlx::query(
            "SELECT pg_is_in_recovery() AS standby,
                    current_setting('transaction_read_only') = 'on' AS read_only,
                    CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')
                         ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') END::bigint AS received,
                    CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')
                         ELSE 0 END::bigint AS replayed,
                    extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
                        AS since,
                    CASE WHEN pg_is_in_recovery() THEN 0
                         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))
                             ::bit(32)::bigint END AS timeline",
        )
        .fetch_one(connection)
        .await?;
        let now = Instant::now();
        let received: Option<Position> = row.try_get("received")?;
        if !row.try_get::<bool, _>("standby")? {
            if row.try_get("read_only")? {
                return Ok(State::Down("it is read-only".to_owned()));
            }
            let timeline = row.try_get("timeline")?;
            // Not of one that was replaced and does not know yet.
            let chosen = primary(&self.states.borrow()).is_none_or(|chosen| chosen == index);
            if let (Role::Primary, Some(position), true) = (node.role, received, chosen) {
                locked(&self.history).add(now, position);
            }
            return Ok(State::Primary { timeline });
        }
        let since: Option<f64> = row.try_get("since")?;
        let replica = Replayed {
            received,
            position: row.try_get::<Option<Position>, _>("replayed")?.unwrap_or_default(),
            since: since.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
        };
        let reachable = self.has_primary();
        let current = locked(&self.history).admits(replica, reachable, now, self.max_lag);
        Ok(State::Standby { current })
    }

    /// To connect to the primary outside the pools, for long statements.
    pub async fn primary_options(&self) -> Result<PgConnectOptions, Error> {
        let node = self.primary().await?;
        Ok(self.all[node.index].host.options.clone())
    }

    /// Closes the pools; what hangs is left behind.
    pub async fn close(&self) {
        for node in &self.all {
            let pool = locked(&node.pool).1.clone();
            let _ = timeout(self.connect_timeout, pool.close()).await;
        }
    }
}
