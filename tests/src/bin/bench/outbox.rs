//! Documents written through three servers while these, Redis and Milvus are killed: afterwards
//! Postgres and Milvus must hold the same.

mod compare;
mod kills;

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sextant_tests::production::Stores;
use sextant_tests::{Api, Options as Settings};

use self::kills::Kills;
use crate::import::lines;
use crate::report::{Bars, Table, title};
use crate::{Failure, Options, server, texts};

const COLLECTION: &str = "outbox";
const SERVERS: usize = 3;
/// Documents of one import.
const PART: u64 = 500;
/// Every so manieth part is written one document a request.
const SINGLY: u64 = 20;
/// Of the documents of a part, one in so many is written again later, and one in so many deleted.
const AGAIN: u64 = 10;
const GONE: u64 = 100;
/// Before a refused or broken request is made again.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time in which a request must be acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_mins(2);
/// Longest wait for the workers after the last write.
const CAUGHT_UP_WITHIN: Duration = Duration::from_mins(10);
/// Longest wait until the servers have found and mended what Milvus lost.
const AGREED_WITHIN: Duration = Duration::from_mins(5);

#[derive(Args)]
pub struct OutboxOptions {
    #[arg(long, default_value_t = 100_000)]
    documents: u64,
    /// Embed with the model instead of pseudo-vectors of words.
    #[arg(long)]
    model: bool,
    /// Seconds between two kills, at least and at most.
    #[arg(long, num_args = 2, default_values_t = [5.0, 10.0])]
    every: Vec<f64>,
    /// Decides what is killed and when.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Nothing is killed.
    #[arg(long)]
    calm: bool,
}

/// The servers as clients know them; their addresses change when they start again.
pub struct Addresses(RefCell<Vec<Api>>);

pub async fn run(options: &Options, outbox: &OutboxOptions) -> Result<(), Failure> {
    let mut stores = Stores::start().await;
    let settings = if outbox.model { server::settings(options) } else { Settings::hash() };
    let settings = stores
        .options(settings.set("log.level", "warn"))
        // Long enough for a batch, short enough to see a dead worker's rows taken over.
        .set("worker.lease_ms", if outbox.model { "60000" } else { "15000" });
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(Some(sextant_tests::Server::start(settings.clone()).await));
    }
    let apis = servers.iter().flatten().map(|server| server.api.clone()).collect();
    let addresses = Addresses(RefCell::new(apis));
    let fields = json!({ "text_fields": ["name", "description"] });
    addresses.get(0).put(&format!("/v1/collections/{COLLECTION}"), &fields).await.ok();

    title(&format!("{} documents written while servers are killed", outbox.documents));
    let done = Cell::new(false);
    let repeated = Cell::new(0);
    let started = Instant::now();
    let mut kills = Kills::new(outbox.seed, &outbox.every, settings);
    let writing = async {
        let next = Cell::new(0);
        let writers = (0..SERVERS).map(|place| {
            let writer = Writer { place, addresses: &addresses, repeated: &repeated };
            writer.write(&next, outbox.documents)
        });
        let written = futures::future::try_join_all(writers).await;
        done.set(true);
        written.map(|counts| counts.iter().sum::<u64>())
    };
    let killing = async {
        if outbox.calm {
            return Ok(());
        }
        kills.go_on(&mut stores, &mut servers, &addresses, &done).await
    };
    let (requests, killed) = tokio::join!(writing, killing);
    killed?;
    let requests = requests?;
    let wrote = started.elapsed();

    let index = compare::index(&stores).await?;
    let caught_up = Instant::now();
    compare::caught_up(&index, CAUGHT_UP_WITHIN).await?;
    let (wait, all) = (caught_up.elapsed(), started.elapsed());
    let mut found = compare::compare(&index).await?;
    let at_first = found.differences();
    if at_first > 0 {
        found = compare::agreed(&index, AGREED_WITHIN).await?;
    }
    let agreed = caught_up.elapsed();

    let mut table = Table::new(&[
        "documents",
        "requests",
        "repeated",
        "written in s",
        "documents/s",
        "caught up after s",
        "documents/s indexed",
        "differences then",
        "gone after s",
        "killed: servers",
        "Redis",
        "Milvus",
    ]);
    table.row(&[
        &outbox.documents,
        &requests,
        &repeated.get(),
        &format!("{:.1}", wrote.as_secs_f64()),
        &format!("{:.0}", outbox.documents as f64 / wrote.as_secs_f64()),
        &format!("{:.1}", wait.as_secs_f64()),
        &format!("{:.0}", outbox.documents as f64 / all.as_secs_f64()),
        &at_first,
        &format!("{:.1}", agreed.as_secs_f64()),
        &kills.servers,
        &kills.redis,
        &kills.milvus,
    ]);
    table.print();
    let mut bars = Bars::new();
    found.print(&mut bars, expected(outbox.documents));
    bars.print();
    for server in servers.into_iter().flatten() {
        server.terminate().await;
    }
    Ok(())
}

/// Documents that were written and not deleted.
fn expected(documents: u64) -> u64 {
    documents - (0..documents).filter(|number| number % GONE == 0).count() as u64
}

impl Addresses {
    fn get(&self, place: usize) -> Api {
        let all = self.0.borrow();
        all[place % all.len()].clone()
    }

    fn set(&self, place: usize, api: Api) {
        self.0.borrow_mut()[place] = api;
    }
}

/// Writes until there is nothing left to write, each request until it is acknowledged.
struct Writer<'a> {
    place: usize,
    addresses: &'a Addresses,
    repeated: &'a Cell<u64>,
}

impl Writer<'_> {
    /// Returns how many requests were acknowledged.
    async fn write(self, next: &Cell<u64>, documents: u64) -> Result<u64, Failure> {
        let mut requests = 0;
        loop {
            let first = next.get();
            if first >= documents {
                return Ok(requests);
            }
            let numbers = first..(first + PART).min(documents);
            next.set(numbers.end);
            let part: Vec<Value> = numbers.clone().map(texts::document).collect();
            if (first / PART).is_multiple_of(SINGLY) {
                for document in &part {
                    self.until_acknowledged(|api| {
                        api.request(Method::PUT, &path(&document["id"])).json(document)
                    })
                    .await?;
                    requests += 1;
                }
            } else {
                self.import(&part).await?;
                requests += 1;
            }
            // Some of them change, some go.
            let changed: Vec<Value> = numbers
                .clone()
                .filter(|number| number % AGAIN == 1)
                .map(|number| {
                    let mut document = texts::document(number);
                    document["description"] = texts::query(number).into();
                    document
                })
                .collect();
            self.import(&changed).await?;
            requests += 1;
            for number in numbers.filter(|number| number % GONE == 0) {
                let id = texts::document(number)["id"].clone();
                self.until_acknowledged(|api| api.request(Method::DELETE, &path(&id))).await?;
                requests += 1;
            }
        }
    }

    async fn import(&self, documents: &[Value]) -> Result<(), Failure> {
        let body = lines(documents);
        self.until_acknowledged(|api| {
            let request =
                api.request(Method::POST, &format!("/v1/collections/{COLLECTION}/documents"));
            request.header("content-type", "application/x-ndjson").body(body.clone())
        })
        .await
    }

    /// Asks the next server when one refuses or does not answer.
    async fn until_acknowledged(
        &self,
        request: impl Fn(&Api) -> RequestBuilder,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let mut last = String::new();
        for place in self.place.. {
            if started.elapsed() > ACKNOWLEDGED_WITHIN {
                break;
            }
            let api = self.addresses.get(place);
            match api.send(request(&api)).await {
                Ok(answer) if answer.status.is_success() => return Ok(()),
                // Deleted before the answer got lost.
                Ok(answer) if answer.status == StatusCode::NOT_FOUND && place > self.place => {
                    return Ok(());
                }
                Ok(answer) if answer.status.is_client_error() => {
                    return Err(format!("a write was refused for good: {}", answer.text).into());
                }
                Ok(answer) => last = answer.text,
                Err(error) => last = error.to_string(),
            }
            self.repeated.set(self.repeated.get() + 1);
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!("not acknowledged within {ACKNOWLEDGED_WITHIN:?}: {last}").into())
    }
}

fn path(id: &Value) -> String {
    format!("/v1/collections/{COLLECTION}/documents/{}", id.as_str().unwrap_or_default())
}
