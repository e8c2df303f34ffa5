//! Writes, off the searches' path: a bounded queue and one task that empties it.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use fred::prelude::{Expiration, FredResult, KeysInterface, LuaInterface, Value};
use tokio::sync::mpsc;

use super::{PATIENCE, RELEASE, RedisCache};
use crate::metrics::Metrics;

/// Writes that may wait; more are dropped and counted: what is not kept is computed again.
const MAX_WAITING: usize = 1_024;
/// Writes that are sent together.
const MAX_TOGETHER: usize = 32;

pub enum Write {
    Set { key: String, value: Bytes, expire_ms: i64 },
    Release { key: String, token: String },
}

#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Write>,
    metrics: Arc<Metrics>,
}

impl Writer {
    pub fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Write>) {
        let (queue, receiver) = mpsc::channel(MAX_WAITING);
        (Self { queue, metrics }, receiver)
    }

    pub fn send(&self, write: Write) {
        if self.queue.try_send(write).is_err() {
            self.metrics.redis_requests.with_label_values(&["write", "dropped"]).inc();
        }
    }
}

/// Writes until the cache is gone. What cannot be written is dropped.
pub async fn run(cache: Weak<RedisCache>, mut queue: mpsc::Receiver<Write>) {
    let mut writes = Vec::with_capacity(MAX_TOGETHER);
    while queue.recv_many(&mut writes, MAX_TOGETHER).await > 0 {
        let Some(cache) = cache.upgrade() else { return };
        let count = writes.len() as u64;
        let result = if cache.breaker.is_closed() {
            let written = cache.observed("write", PATIENCE, write(&cache, &mut writes)).await;
            if written.is_ok() { "written" } else { "dropped" }
        } else {
            "dropped"
        };
        cache.metrics.redis_requests.with_label_values(&["write", result]).inc_by(count);
        writes.clear();
    }
}

/// Values before locks: who gets a lock finds the value that was computed under it.
async fn write(cache: &RedisCache, writes: &mut Vec<Write>) -> FredResult<()> {
    let client = &cache.clients.writes;
    let values = client.pipeline();
    let (mut any_value, mut releases) = (false, Vec::new());
    for write in writes.drain(..) {
        match write {
            Write::Set { key, value, expire_ms } => {
                any_value = true;
                let expire = Some(Expiration::PX(expire_ms));
                values.set::<(), _, _>(key, value, expire, None, false).await?;
            }
            Write::Release { key, token } => {
                releases.push(client.eval::<(), _, _, _>(RELEASE, key, token));
            }
        }
    }
    if any_value {
        values.all::<Value>().await?;
    }
    // The client sends what is asked for together in one go.
    futures::future::try_join_all(releases).await?;
    Ok(())
}
