//! Hears what other servers tell, notices when it cannot, and reads again what it may have missed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fred::prelude::{ClientLike, EventInterface, FredResult, PubsubInterface};
use fred::types::Message;
use rand::Rng;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, info, warn};

use super::{PATIENCE, RedisCache, event, get_all};
use crate::cache::shared::CacheEvent;

/// How often to look after what waits, and whether Redis is back.
const TICK: Duration = Duration::from_millis(250);
/// How often to read generations and the last invalidation again.
const NET_PERIOD: Duration = Duration::from_secs(1);
/// An event may come a little after the value that it tells of.
const EVENT_DELAY: Duration = Duration::from_millis(100);
/// While events cannot arrive they are taken to be lost this often: as long as a server without
/// events may give what another forgot. Also the longest life of an entry made meanwhile.
pub const BLIND_PERIOD: Duration = Duration::from_secs(30);

/// Starts the tasks. They end some moments after the cache is dropped.
pub fn start(cache: &Arc<RedisCache>) {
    let events = &cache.clients.events;
    let messages = events.message_rx();
    let (reconnects, errors) = (events.reconnect_rx(), events.error_rx());
    tokio::spawn(listen(Arc::downgrade(cache), messages));
    tokio::spawn(subscribe(Arc::downgrade(cache), reconnects, errors));
    tokio::spawn(look_after(Arc::downgrade(cache)));
    // Each connects, and again when it must, until it is told to quit.
    let clients = &cache.clients;
    drop((clients.look_ups.connect(), clients.writes.connect(), events.connect()));
}

async fn listen(cache: Weak<RedisCache>, mut messages: broadcast::Receiver<Message>) {
    loop {
        let message = messages.recv().await;
        let Some(cache) = cache.upgrade() else { return };
        match message {
            Ok(message) => cache.hear(&message),
            Err(RecvError::Lagged(_)) => cache.lost("too many messages waited"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Subscribes after each connection; whatever was told between is lost.
async fn subscribe(
    cache: Weak<RedisCache>,
    mut reconnects: broadcast::Receiver<fred::types::config::Server>,
    mut errors: broadcast::Receiver<(fred::error::Error, Option<fred::types::config::Server>)>,
) {
    let mut told = false;
    loop {
        let connected = tokio::select! {
            server = reconnects.recv() => match server {
                Err(RecvError::Closed) => return,
                Ok(_) | Err(RecvError::Lagged(_)) => true,
            },
            error = errors.recv() => match error {
                Err(RecvError::Closed) => return,
                Ok((error, _)) => {
                    // Once: it is tried again twice a second.
                    if !std::mem::replace(&mut told, true) {
                        warn!(error = error.details(), "Redis is not reachable; going on without");
                    }
                    false
                }
                Err(RecvError::Lagged(_)) => false,
            },
        };
        let Some(cache) = cache.upgrade() else { return };
        cache.subscribed.store(false, Ordering::Release);
        if connected && cache.subscribe().await {
            told = false;
        }
    }
}

/// Everything that is done again and again.
async fn look_after(cache: Weak<RedisCache>) {
    let mut last_net = None::<Instant>;
    let mut blind_since = Instant::now();
    loop {
        let jitter = rand::rng().random_range(0.8..1.2);
        tokio::time::sleep(TICK.mul_f64(jitter)).await;
        let Some(cache) = cache.upgrade() else { return };
        let now = Instant::now();
        if cache.breaker.is_closed() {
            let due = last_net.is_none_or(|last| now.duration_since(last) >= NET_PERIOD);
            if due {
                last_net = Some(now);
                cache.check_events().await;
            }
            if due || !cache.notes().undelivered.is_empty() {
                cache.catch_up().await;
            }
        } else if cache.breaker.admit(now).is_ok() {
            cache.catch_up().await; // the probe
        }
        let up = cache.breaker.is_closed() && cache.subscribed.load(Ordering::Acquire);
        cache.metrics.redis_up.set(i64::from(up));
        if up {
            blind_since = now;
        } else if now.duration_since(blind_since) >= BLIND_PERIOD {
            blind_since = now;
            cache.lost("events have not arrived for a while");
        }
    }
}

impl RedisCache {
    fn emit(&self, event: CacheEvent) {
        // Without a receiver there is nothing to keep up to date.
        let _ = self.events.send(event);
    }

    fn lost(&self, reason: &str) {
        debug!(reason, "cache events may be lost");
        self.count("events", "lost");
        self.emit(CacheEvent::Lost);
    }

    fn hear(&self, message: &Message) {
        let Some((event, token)) = message.value.as_str().and_then(|text| event::parse(&text))
        else {
            self.count("events", "unreadable");
            return;
        };
        self.count("events", "heard");
        let mut notes = self.notes();
        if let Some(token) = token {
            notes.saw(token);
        }
        if let CacheEvent::Generation { collection, generation } = event {
            let newest = notes.generations.entry(collection).or_insert(generation);
            *newest = generation.max(*newest);
        }
        drop(notes);
        self.emit(event);
    }

    async fn subscribe(&self) -> bool {
        let subscribed = self.clients.events.subscribe(self.keys.channel()).await;
        if let Err(error) = &subscribed {
            // The net finds it out and asks for a new connection.
            warn!(error = error.details(), "cannot subscribe to cache events");
            return false;
        }
        self.subscribed.store(true, Ordering::Release);
        info!("connected to Redis");
        self.lost("a new connection");
        true
    }

    /// Whether the connection that events come by still answers; when it does not come back by
    /// itself it is made anew.
    async fn check_events(&self) {
        let events = &self.clients.events;
        if !events.is_connected() {
            self.subscribed.store(false, Ordering::Release);
            return;
        }
        let answered = tokio::time::timeout(PATIENCE, events.ping::<()>(None)).await;
        if !matches!(answered, Ok(Ok(()))) {
            self.subscribed.store(false, Ordering::Release);
        } else if !self.subscribed.load(Ordering::Acquire) {
            self.subscribe().await;
        }
    }

    /// Tells what waits to be told, then reads what may have been missed.
    async fn catch_up(&self) {
        if self.deliver().await.is_err() {
            return;
        }
        let unraised: Vec<_> = self.notes().unraised.drain().collect();
        for (collection, generation) in unraised {
            self.raise_generation(collection, generation).await;
        }
        let _ = self.read_again().await; // counted where it failed
    }

    async fn read_again(&self) -> FredResult<()> {
        let collections: Vec<i64> = self.notes().generations.keys().copied().collect();
        let mut keys = vec![self.keys.last()];
        keys.extend(collections.iter().map(|id| self.keys.generation(*id)));
        let writes = &self.clients.writes;
        let values = self.observed("read_again", PATIENCE, get_all(writes, keys)).await?;
        for (collection, value) in collections.into_iter().zip(values.iter().skip(1)) {
            let Some(generation) = value.as_ref().and_then(fred::types::Value::as_i64) else {
                continue;
            };
            let mut notes = self.notes();
            // A collection that is no longer followed is nobody's business.
            let Some(newest) = notes.generations.get_mut(&collection) else { continue };
            if generation > *newest {
                *newest = generation;
                drop(notes);
                self.emit(CacheEvent::Generation { collection, generation });
            }
        }
        if let Some(token) = values.first().and_then(|value| value.as_ref()?.as_string())
            && !self.has_seen(&token)
        {
            tokio::time::sleep(EVENT_DELAY).await;
            if !self.has_seen(&token) {
                self.notes().saw(token);
                self.lost("an invalidation was not heard of");
            }
        }
        Ok(())
    }

    fn has_seen(&self, token: &str) -> bool {
        self.notes().seen.iter().any(|seen| seen == token)
    }
}

impl Drop for RedisCache {
    /// Lets the connections go; without it they would be made again for ever.
    fn drop(&mut self) {
        let clients =
            [&self.clients.look_ups, &self.clients.writes, &self.clients.events].map(Clone::clone);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for client in clients {
                    let _ = tokio::time::timeout(PATIENCE, client.quit()).await;
                }
            });
        }
    }
}
