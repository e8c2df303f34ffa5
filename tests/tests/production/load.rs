//! Searches that go on while something happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sextant_tests::Api;

use super::{COLLECTION, until};

/// Searches that go on in the background: new ones and repeated ones.
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Seen>>,
    done: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub answers: usize,
    pub failed: Vec<(StatusCode, String)>,
    pub degraded: usize,
    pub longest: Duration,
}

impl Load {
    /// One search after the other by each client.
    pub fn start<'a>(clients: impl IntoIterator<Item = &'a Api>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let tasks = clients
            .into_iter()
            .enumerate()
            .map(|(place, api)| {
                let (api, stop, done) = (api.clone(), Arc::clone(&stop), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut seen = Seen::default();
                    let mut number = place;
                    while !stop.load(Ordering::Relaxed) {
                        // Every other one is new.
                        number += 1;
                        let word = if number.is_multiple_of(2) { number } else { 7 };
                        seen.look(&api, &json!({"query": format!("word{word}")})).await;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    seen
                })
            })
            .collect();
        Self { stop, tasks, done }
    }

    /// Waits for so many more answers.
    pub async fn answers(&self, count: usize) {
        let before = self.done.load(Ordering::Relaxed);
        until("searches go on", async || self.done.load(Ordering::Relaxed) >= before + count).await;
    }

    pub async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for task in self.tasks {
            let seen = task.await.unwrap();
            all.answers += seen.answers;
            all.degraded += seen.degraded;
            all.failed.extend(seen.failed);
            all.longest = all.longest.max(seen.longest);
        }
        all
    }
}

impl Seen {
    async fn look(&mut self, api: &Api, question: &Value) {
        let started = Instant::now();
        let answer = api.post(&format!("/v1/collections/{COLLECTION}/search"), question).await;
        self.longest = self.longest.max(started.elapsed());
        self.answers += 1;
        if answer.status != StatusCode::OK {
            self.failed.push((answer.status, answer.text));
        } else if answer.body["degraded"] == true {
            self.degraded += 1;
        }
    }
}
