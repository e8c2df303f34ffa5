//! Which texts the model embeds next: the waiting texts as data, without threads and clock.
//!
//! - A call is admitted as a whole or refused at once: when there is no room, or when it, or a text
//!   admitted before it, would by the measured speed miss its deadline. What is admitted is so
//!   embedded in time also under a load many times the capacity.
//! - Texts that become the same tokens are embedded once while they wait or are being computed.
//! - A batch holds texts of one class, those with the earliest deadline first. Interactive texts go
//!   first; when bulk waits it gets one batch in [`BULK_TURN`]. Batches of a class are not filled
//!   up with the other one: a query would wait for the documents beside it.
//! - [`Batching::Fifo`] is there to be compared with: no classes and no order but that of arrival.
//! - Nobody waits for a batch to fill: a worker that is free takes its share of what is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::speed::Speed;
use crate::adapters::embedder::batching::Batching;
use crate::ports::{Class, Urgency};

/// One batch in so many goes to bulk while both classes wait.
const BULK_TURN: usize = 5;
/// How many texts that do not fit a batch are passed over before it is closed.
const LOOKAHEAD: usize = 64;
/// How often a refusal may look through the whole queue for texts that nobody wants any more.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How much longer than by the measured speed a text may take: refusing and answering others take
/// time of the same CPUs, and what is admitted should not come too late.
const CAUTION: f64 = 1.25;
const MIN_RETRY: Duration = Duration::from_millis(10);
const MAX_RETRY: Duration = Duration::from_mins(1);

/// Somebody who wants a row.
pub trait Waiter {
    fn is_gone(&self) -> bool;
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// Texts that may wait; bulk ones may be three quarters of them. A call that alone is larger
    /// is admitted when no other of its class waits.
    pub texts: usize,
    /// Tokens that may wait, with the same share.
    pub tokens: usize,
    /// Tokens in a batch; one text always fits.
    pub batch_tokens: usize,
    /// What waits is shared among the workers that are free, but not in smaller shares than of so many
    /// tokens.
    pub share_tokens: usize,
    /// That run.
    pub workers: usize,
    pub batching: Batching,
}

impl Limits {
    /// The line of a text that came at `since`, and what it is ordered by.
    fn place(&self, urgency: Urgency, since: Instant) -> (Class, Instant) {
        match self.batching {
            Batching::Deadline => (urgency.class, urgency.deadline),
            Batching::Fifo => (Class::Interactive, since),
        }
    }
}

/// Why a call was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Overloaded { retry_after: Duration },
    Expired,
}

/// Why a row was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The deadline passed or would pass before the row is there.
    Expired,
    /// The one who waited went away.
    Abandoned,
}

/// What one worker computes at once. Ordered by length.
#[derive(Debug)]
pub struct Batch {
    pub texts: Vec<Arc<[u32]>>,
    pub tokens: usize,
    /// Workers that have nothing to do when it begins.
    pub idle: usize,
    entries: Vec<u64>,
}

pub struct Queue<W> {
    limits: Limits,
    entries: HashMap<u64, Entry<W>>,
    by_ids: HashMap<Arc<[u32]>, u64>,
    interactive: Line,
    bulk: Line,
    next: u64,
    /// Interactive batches since bulk had its turn, while it waits.
    passed_over: usize,
    running_tokens: usize,
    running: usize,
    reserved: Reserved,
    speed: Speed,
    last_sweep: Option<Instant>,
    lost: Vec<(W, Lost)>,
}

/// Room for texts whose tokens are being made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reserved {
    pub texts: usize,
    /// Expected tokens.
    pub tokens: usize,
}

struct Entry<W> {
    ids: Arc<[u32]>,
    waiters: Vec<(W, Urgency)>,
    since: Instant,
    /// Where it stands in line; `None` while it is being computed.
    place: Option<(Class, Instant)>,
}

/// The waiting texts of a class with their tokens, by [`Limits::place`], then by arrival.
#[derive(Default)]
struct Line {
    order: BTreeMap<(Instant, u64), usize>,
    tokens: usize,
}

impl Line {
    fn insert(&mut self, key: (Instant, u64), tokens: usize) {
        self.order.insert(key, tokens);
        self.tokens += tokens;
    }

    fn remove(&mut self, key: (Instant, u64)) {
        self.tokens -= self.order.remove(&key).unwrap_or(0);
    }
}

impl<W: Waiter> Queue<W> {
    pub fn new(limits: Limits, speed: Speed) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            by_ids: HashMap::new(),
            interactive: Line::default(),
            bulk: Line::default(),
            next: 0,
            passed_over: 0,
            running_tokens: 0,
            running: 0,
            reserved: Reserved::default(),
            speed,
            last_sweep: None,
            lost: Vec::new(),
        }
    }

    pub fn set_workers(&mut self, workers: usize) {
        self.limits.workers = workers;
    }

    /// Admits all texts of a call or none. Returns how many of them join one in flight.
    pub fn push(
        &mut self,
        texts: Vec<(Arc<[u32]>, W)>,
        urgency: Urgency,
        now: Instant,
    ) -> Result<usize, Refusal> {
        let ids = texts.iter().map(|(ids, _)| ids);
        let fresh: HashSet<_> = ids.filter(|&ids| !self.by_ids.contains_key(ids)).collect();
        let tokens = fresh.iter().map(|ids| ids.len()).sum();
        self.admit(fresh.len(), tokens, urgency, now)?;
        Ok(self.insert(texts, urgency, now))
    }

    /// Takes texts that were admitted. Returns how many of them join one in flight.
    pub fn insert(&mut self, texts: Vec<(Arc<[u32]>, W)>, urgency: Urgency, now: Instant) -> usize {
        let joined = |joins: &bool| *joins;
        let texts = texts.into_iter();
        texts.map(|(ids, waiter)| self.add(ids, waiter, urgency, now)).filter(joined).count()
    }

    /// Admits texts before their tokens are made, so that none are made for those that would be
    /// refused then.
    pub fn reserve(
        &mut self,
        wanted: Reserved,
        urgency: Urgency,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.admit(wanted.texts, wanted.tokens, urgency, now)?;
        self.reserved.texts += wanted.texts;
        self.reserved.tokens += wanted.tokens;
        Ok(())
    }

    /// Gives room back: the tokens are there, or nobody wants them any more.
    pub fn release(&mut self, reserved: Reserved) {
        self.reserved.texts -= reserved.texts;
        self.reserved.tokens -= reserved.tokens;
    }

    /// Whether texts with so many tokens would be admitted now.
    fn admit(
        &mut self,
        texts: usize,
        tokens: usize,
        urgency: Urgency,
        now: Instant,
    ) -> Result<(), Refusal> {
        if urgency.deadline <= now {
            return Err(Refusal::Expired);
        }
        if texts == 0 {
            return Ok(());
        }
        let refused = self.room(texts, tokens, urgency, now);
        let may_sweep = self.last_sweep.is_none_or(|last| last + SWEEP_EVERY <= now);
        if refused.is_ok() || !may_sweep {
            return refused;
        }
        self.last_sweep = Some(now);
        let waiting: Vec<u64> = self.waiting_ids().collect();
        for id in waiting {
            self.prune(id, now, now);
        }
        self.room(texts, tokens, urgency, now)
    }

    fn room(
        &self,
        texts: usize,
        tokens: usize,
        urgency: Urgency,
        now: Instant,
    ) -> Result<(), Refusal> {
        let overloaded = |seconds: f64| {
            let retry_after = Duration::try_from_secs_f64(seconds)
                .unwrap_or(MAX_RETRY)
                .clamp(MIN_RETRY, MAX_RETRY);
            Err(Refusal::Overloaded { retry_after })
        };
        let per_second = self.speed.tokens_per_second() * self.limits.workers as f64;
        let (class, _) = self.limits.place(urgency, now);
        let (line, texts_waiting, tokens_waiting, quarters) = match class {
            Class::Interactive => (&self.interactive, self.texts(), self.tokens(), 4),
            Class::Bulk => (&self.bulk, self.bulk.order.len(), self.bulk.tokens, 3),
        };
        let texts_waiting = texts_waiting + self.reserved.texts;
        let tokens_waiting = tokens_waiting + self.reserved.tokens;
        let alone = line.order.is_empty() && self.reserved.texts == 0;
        let excess_texts = (texts_waiting + texts).saturating_sub(self.limits.texts * quarters / 4);
        let excess_tokens =
            (tokens_waiting + tokens).saturating_sub(self.limits.tokens * quarters / 4);
        if (excess_texts > 0 || excess_tokens > 0) && !alone {
            let mean = tokens_waiting as f64 / texts_waiting.max(1) as f64;
            let to_go = (excess_texts as f64 * mean).max(excess_tokens as f64);
            return overloaded(to_go / per_second);
        }
        // An idle model takes whatever comes: a speed measured while the machine was busy must not
        // keep it from being measured again.
        if self.running_tokens == 0 && alone {
            return Ok(());
        }
        let late = self.lateness(tokens, urgency, now, per_second);
        if late > 0.0 { overloaded(late) } else { Ok(()) }
    }

    /// By how many seconds the new texts, or the first one behind them that was in time without
    /// them, would miss its deadline; 0 when all are in time.
    fn lateness(&self, tokens: usize, urgency: Urgency, now: Instant, per_second: f64) -> f64 {
        let both = !self.interactive.order.is_empty() && !self.bulk.order.is_empty();
        let (class, place) = self.limits.place(urgency, now);
        let (line, ahead, share) = match class {
            Class::Interactive if both => {
                (&self.interactive, 0, (BULK_TURN - 1) as f64 / BULK_TURN as f64)
            }
            Class::Interactive => (&self.interactive, 0, 1.0),
            Class::Bulk => (&self.bulk, self.interactive.tokens, 1.0),
        };
        let finish = |tokens: usize| {
            // The workers' batches end one after the other: the last of them may be a whole one.
            let last = self.speed.seconds(tokens.min(self.limits.batch_tokens));
            (tokens as f64 / (per_second * share) + last) * CAUTION
        };
        let left = |deadline: Instant| deadline.saturating_duration_since(now).as_secs_f64();
        let mine = (place, self.next);
        // Counted from the end: calls mostly come in the order of their deadlines.
        let behind = line.order.range(mine..).map(|(_, tokens)| tokens).sum::<usize>();
        let mut before = self.running_tokens + self.reserved.tokens + ahead + line.tokens - behind;
        let late = finish(before + tokens) - left(urgency.deadline);
        if late > 0.0 {
            return late;
        }
        for (&(deadline, _), others) in line.order.range(mine..) {
            before += others;
            let late = finish(before + tokens) - left(deadline);
            if late > 0.0 && finish(before) <= left(deadline) {
                return late;
            }
        }
        0.0
    }

    /// True when the same text is in flight.
    fn add(&mut self, ids: Arc<[u32]>, waiter: W, urgency: Urgency, now: Instant) -> bool {
        if let Some(&id) = self.by_ids.get(&ids) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.waiters.push((waiter, urgency));
            }
            self.place(id);
            return true;
        }
        let id = self.next;
        self.next += 1;
        self.by_ids.insert(Arc::clone(&ids), id);
        let place = self.limits.place(urgency, now);
        self.line(place.0).insert((place.1, id), ids.len());
        let waiters = vec![(waiter, urgency)];
        self.entries.insert(id, Entry { ids, waiters, since: now, place: Some(place) });
        false
    }

    /// The next batch, taken out of the queue; `None` when nothing waits. It must be given back
    /// to [`Queue::finish`].
    pub fn take(&mut self, now: Instant) -> Option<Batch> {
        loop {
            let (queries, documents) =
                (!self.interactive.order.is_empty(), !self.bulk.order.is_empty());
            let class = match (queries, documents) {
                (false, false) => return None,
                (false, true) => Class::Bulk,
                (true, true) if self.passed_over + 1 >= BULK_TURN => Class::Bulk,
                (true, _) => Class::Interactive,
            };
            // Without a batch the line is empty now: all of it had expired or gone.
            let Some(mut batch) = self.fill(class, now) else { continue };
            let passed_over = class == Class::Interactive && documents;
            self.passed_over = if passed_over { self.passed_over + 1 } else { 0 };
            batch.idle = self.idle();
            self.running_tokens += batch.tokens;
            self.running += 1;
            return Some(batch);
        }
    }

    /// All that waits, where that is so many tokens at most, and nobody else is about to come.
    pub fn take_all(&mut self, tokens: usize, now: Instant) -> Option<Batch> {
        if self.running_tokens > 0 || self.reserved.texts > 0 || self.tokens() > tokens {
            return None;
        }
        self.take(now)
    }

    /// Workers beside one that have nothing to do, if none has.
    pub fn idle(&self) -> usize {
        let is_alone = self.running_tokens == 0 && self.texts() == 0;
        if is_alone { self.limits.workers.saturating_sub(1) } else { 0 }
    }

    fn fill(&mut self, class: Class, now: Instant) -> Option<Batch> {
        let most = self.limits.batch_tokens;
        let free = self.limits.workers.saturating_sub(self.running).max(1);
        let share = self.line(class).tokens.div_ceil(free);
        let budget = share.clamp(self.limits.share_tokens.min(most), most);
        let mut chosen: Vec<(usize, u64)> = Vec::new();
        let mut tokens = 0;
        let mut latest_end = None;
        let mut passed = 0;
        let mut cursor = None;
        while passed <= LOOKAHEAD && tokens < budget {
            let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.line(class).order.range((from, Bound::Unbounded)).next();
            let Some((&key, &length)) = next else { break };
            cursor = Some(key);
            let end = now + Duration::from_secs_f64(self.speed.seconds(tokens + length));
            // A text that is late even alone is not worth the time of others; but an idle model
            // tries, see `room`.
            let hopeless = if chosen.is_empty() && self.running_tokens > 0 { end } else { now };
            if !self.prune(key.1, now, hopeless) {
                continue;
            }
            let fits = tokens + length <= most && latest_end.is_none_or(|latest| end <= latest);
            if !chosen.is_empty() && !fits {
                if self.limits.batching == Batching::Fifo {
                    break;
                }
                passed += 1;
                continue;
            }
            if self.limits.batching == Batching::Deadline {
                latest_end.get_or_insert(key.0);
            }
            tokens += length;
            chosen.push((length, key.1));
        }
        chosen.sort_unstable();
        let mut batch = Batch { texts: Vec::new(), tokens, idle: 0, entries: Vec::new() };
        for (_, id) in chosen {
            self.leave_line(id);
            if let Some(entry) = self.entries.get(&id) {
                batch.texts.push(Arc::clone(&entry.ids));
                batch.entries.push(id);
            }
        }
        (!batch.entries.is_empty()).then_some(batch)
    }

    /// Gives up the waiters of a waiting text that went away, whose deadline has passed, or who
    /// need it before `hopeless`. False when the text lost its place by that.
    fn prune(&mut self, id: u64, now: Instant, hopeless: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let lost = entry.waiters.extract_if(.., |(waiter, urgency)| {
            urgency.deadline <= now || urgency.deadline < hopeless || waiter.is_gone()
        });
        let before = self.lost.len();
        self.lost.extend(lost.map(|(waiter, urgency)| {
            let expired = urgency.deadline <= now || !waiter.is_gone();
            (waiter, if expired { Lost::Expired } else { Lost::Abandoned })
        }));
        if self.lost.len() == before {
            return true;
        }
        if entry.waiters.is_empty() {
            self.leave_line(id);
            self.forget(id);
            return false;
        }
        !self.place(id)
    }

    /// Stands a waiting text where its most urgent waiters want it. True when that is elsewhere.
    fn place(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let Some(old) = entry.place else { return false };
        let interactive = entry.waiters.iter().any(|(_, u)| u.class == Class::Interactive);
        let class = if interactive { Class::Interactive } else { Class::Bulk };
        let Some(deadline) = entry.waiters.iter().map(|(_, u)| u.deadline).min() else {
            return false;
        };
        let tokens = entry.ids.len();
        let new = self.limits.place(Urgency { class, deadline }, entry.since);
        entry.place = Some(new);
        if old == new {
            return false;
        }
        self.line(old.0).remove((old.1, id));
        self.line(new.0).insert((new.1, id), tokens);
        true
    }

    fn leave_line(&mut self, id: u64) {
        let place = self.entries.get_mut(&id).and_then(|entry| entry.place.take());
        if let Some((class, deadline)) = place {
            self.line(class).remove((deadline, id));
        }
    }

    fn forget(&mut self, id: u64) -> Vec<(W, Urgency)> {
        let Some(entry) = self.entries.remove(&id) else { return Vec::new() };
        self.by_ids.remove(&entry.ids);
        entry.waiters
    }

    /// Ends a batch and returns, per text of it, who waits for its row. `took` is the time of the
    /// model, `None` when it failed.
    pub fn finish(&mut self, batch: &Batch, took: Option<Duration>) -> Vec<Vec<W>> {
        self.running_tokens = self.running_tokens.saturating_sub(batch.tokens);
        self.running = self.running.saturating_sub(1);
        if let Some(took) = took {
            self.speed.record(batch.tokens, took);
        }
        let waiters = |id: &u64| self.forget(*id).into_iter().map(|(waiter, _)| waiter).collect();
        batch.entries.iter().map(waiters).collect()
    }

    /// Everybody whose text is not being computed.
    pub fn drain_waiting(&mut self) -> Vec<W> {
        let waiting: Vec<u64> = self.waiting_ids().collect();
        let mut waiters = Vec::new();
        for id in waiting {
            self.leave_line(id);
            waiters.extend(self.forget(id).into_iter().map(|(waiter, _)| waiter));
        }
        waiters
    }

    /// Everybody, when there is no worker any more.
    pub fn drain(&mut self) -> Vec<W> {
        self.interactive = Line::default();
        self.bulk = Line::default();
        self.running_tokens = 0;
        self.running = 0;
        self.by_ids.clear();
        let entries = self.entries.drain();
        entries.flat_map(|(_, entry)| entry.waiters).map(|(waiter, _)| waiter).collect()
    }

    /// Rows given up since the last call.
    pub fn take_lost(&mut self) -> Vec<(W, Lost)> {
        std::mem::take(&mut self.lost)
    }

    /// Waiting texts.
    pub fn texts(&self) -> usize {
        self.interactive.order.len() + self.bulk.order.len()
    }

    /// Waiting tokens.
    pub fn tokens(&self) -> usize {
        self.interactive.tokens + self.bulk.tokens
    }

    pub fn oldest_age(&self, now: Instant) -> Duration {
        let since = self.waiting_ids().filter_map(|id| Some(self.entries.get(&id)?.since)).min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn waiting_ids(&self) -> impl Iterator<Item = u64> {
        self.interactive.order.keys().chain(self.bulk.order.keys()).map(|&(_, id)| id)
    }

    fn line(&mut self, class: Class) -> &mut Line {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }
}

#[cfg(test)]
mod tests;
