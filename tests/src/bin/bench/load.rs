//! Closed loops, where each connection waits for its answer before it sends again, and open loops,
//! where requests come at their own rate whatever the server does.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;

use crate::http::{Answer, Connection};

/// The `n`-th request of a run.
pub type Request<'a> = &'a dyn Fn(u64) -> Cow<'a, [u8]>;
/// Sees every answer with its latency.
pub type Observe<'a> = &'a mut dyn FnMut(&Answer<'_>, Duration);

#[derive(Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    Requests(u64),
}

pub struct Run {
    pub requests: u64,
    /// Answers with status 200.
    pub good: u64,
    pub elapsed: Duration,
    /// Of the good ones.
    pub latency: Latency,
}

impl Run {
    pub fn good_per_second(&self) -> f64 {
        self.good as f64 / self.elapsed.as_secs_f64()
    }
}

pub async fn closed_loop(
    address: SocketAddr,
    connections: usize,
    until: Until,
    request: Request<'_>,
    observe: Observe<'_>,
) -> io::Result<Run> {
    let connections = Connection::open_many(address, connections).await?;
    let started = Instant::now();
    let sent = Cell::new(0);
    let counts = RefCell::new((Run::new(), observe));
    let loops = connections.into_iter().map(|mut connection| {
        let (sent, counts) = (&sent, &counts);
        async move {
            loop {
                let number = sent.get();
                let over = match until {
                    Until::Elapsed(time) => started.elapsed() >= time,
                    Until::Requests(requests) => number >= requests,
                };
                if over {
                    return Ok(());
                }
                sent.set(number + 1);
                let bytes = request(number);
                let clock = Instant::now();
                let answer = connection.exchange(&bytes).await?;
                let (run, observe) = &mut *counts.borrow_mut();
                run.record(&answer, clock.elapsed(), observe);
            }
        }
    });
    futures::future::try_join_all(loops).await.map_err(|error: io::Error| error)?;
    let (mut run, _) = counts.into_inner();
    run.elapsed = started.elapsed();
    Ok(run)
}

#[derive(Clone, Copy)]
pub struct Offered {
    pub per_second: f64,
    pub time: Duration,
    /// Requests in flight beyond these are not sent but counted as skipped.
    pub connections: usize,
}

pub struct OpenRun {
    pub run: Run,
    pub offered: u64,
    pub skipped: u64,
    /// Good answers while requests were still offered.
    pub good_in_time: u64,
    /// Requests that found their kept connection closed and went over a new one.
    pub reconnected: u64,
}

/// Latency counts from when a request was due, also when it was sent later.
pub async fn open_loop(
    address: SocketAddr,
    offered: Offered,
    request: Request<'_>,
    observe: Observe<'_>,
) -> io::Result<OpenRun> {
    let mut idle = Vec::new();
    let total = (offered.per_second * offered.time.as_secs_f64()) as u64;
    let mut outcome =
        OpenRun { run: Run::new(), offered: total, skipped: 0, good_in_time: 0, reconnected: 0 };
    let started = Instant::now();
    let due = |number: u64| started + Duration::from_secs_f64(number as f64 / offered.per_second);
    let mut next = 0;
    let mut busy = FuturesUnordered::new();
    while next < total || !busy.is_empty() {
        while next < total && due(next) <= Instant::now() {
            if busy.len() < offered.connections {
                let (kept, bytes, clock) = (idle.pop(), request(next), due(next));
                busy.push(async move {
                    let (connection, again) = exchange(address, kept, &bytes).await?;
                    Ok::<_, io::Error>((connection, again, clock))
                });
            } else {
                outcome.skipped += 1;
            }
            next += 1;
        }
        let pause = tokio::time::sleep_until(due(next).into());
        tokio::select! {
            Some(exchanged) = busy.next() => {
                let (connection, again, clock) = exchanged?;
                outcome.reconnected += u64::from(again);
                let good = outcome.run.record(&connection.answer(), clock.elapsed(), observe);
                outcome.good_in_time += u64::from(good && started.elapsed() <= offered.time);
                idle.push(connection);
            }
            () = pause, if next < total => {}
        }
    }
    outcome.run.elapsed = started.elapsed();
    Ok(outcome)
}

/// Over the kept connection, or a new one when there is none or the server has closed it, as it does
/// with one that was idle for long. Tells whether it had.
async fn exchange(
    address: SocketAddr,
    kept: Option<Connection>,
    request: &[u8],
) -> io::Result<(Connection, bool)> {
    let closed = match kept {
        Some(mut connection) => match connection.exchange(request).await {
            Ok(_) => return Ok((connection, false)),
            Err(_) => true,
        },
        None => false,
    };
    let mut connection = Connection::open(address).await?;
    connection.exchange(request).await?;
    Ok((connection, closed))
}

impl Run {
    fn new() -> Self {
        Self { requests: 0, good: 0, elapsed: Duration::ZERO, latency: Latency::new() }
    }

    fn record(&mut self, answer: &Answer<'_>, took: Duration, observe: Observe<'_>) -> bool {
        let good = answer.status == 200;
        self.requests += 1;
        if good {
            self.good += 1;
            self.latency.record(took);
        }
        observe(answer, took);
        good
    }
}

/// Durations by frequency, to three digits.
pub struct Latency(Histogram<u64>);

impl Latency {
    pub fn new() -> Self {
        // Three digits are always allowed.
        #[allow(clippy::expect_used)]
        Self(Histogram::new(3).expect("a valid histogram"))
    }

    pub fn record(&mut self, took: Duration) {
        // It grows as needed; nothing here takes centuries.
        let _ = self.0.record(took.as_nanos() as u64);
    }

    pub fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e6
    }
}
