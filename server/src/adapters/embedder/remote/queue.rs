//! Which texts are sent next: the waiting texts as data, without network and clock.
//!
//! - A text that is waiting or on its way is asked once, whoever wants it.
//! - A batch holds texts of one class, those with the earliest deadline first, and is never waited
//!   for: a free place takes what is there. Each class has places that the other one cannot take.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;

use crate::ports::{Class, Urgency};

/// How often a refusal may look through the whole queue for texts that nobody wants any more.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Somebody who wants a row.
pub trait Waiter {
    fn is_gone(&self) -> bool;

    /// Where the wait is recorded.
    fn span(&self) -> Option<&SpanContext> {
        None
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Texts that may wait; bulk ones may be three quarters of them. A call that alone is larger
    /// is admitted when no other of its class waits.
    pub texts: usize,
    pub batch_texts: usize,
    /// Bytes of a batch's texts as JSON. One text always fits.
    pub batch_bytes: usize,
    /// Batches under way at a time. Bulk has at most three quarters of them, queries all but one;
    /// with a single place queries go first.
    pub in_flight: usize,
}

/// There is no room; so many texts are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full(pub usize);

/// What one request asks for. It must be given back to [`Queue::finish`].
#[derive(Debug)]
pub struct Batch {
    pub texts: Vec<Arc<str>>,
    pub class: Class,
    /// When the last of those who wait needs it.
    pub deadline: Instant,
    /// Of those who wait, where it is recorded.
    pub spans: Vec<SpanContext>,
}

/// Those who wait for a text.
pub type Waiters<W> = Vec<(W, Urgency)>;

pub struct Queue<W> {
    limits: Limits,
    entries: HashMap<Arc<str>, Entry<W>>,
    interactive: Line,
    bulk: Line,
    next: u64,
    last_sweep: Option<Instant>,
}

struct Entry<W> {
    waiters: Waiters<W>,
    since: Instant,
    bytes: usize,
    /// Where it stands in line; `None` while it is on its way.
    place: Option<(Class, Place)>,
}

/// By deadline, then by arrival.
type Place = (Instant, u64, Arc<str>);

#[derive(Default)]
struct Line {
    order: BTreeSet<Place>,
    in_flight: usize,
}

impl<W: Waiter> Queue<W> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            interactive: Line::default(),
            bulk: Line::default(),
            next: 0,
            last_sweep: None,
        }
    }

    /// Admits all texts of a call or none. Returns how many of them were asked for already.
    pub fn push(
        &mut self,
        texts: Vec<(Arc<str>, W)>,
        urgency: Urgency,
        now: Instant,
    ) -> Result<usize, Full> {
        let fresh: HashSet<&Arc<str>> = texts
            .iter()
            .map(|(text, _)| text)
            .filter(|text| !self.entries.contains_key(*text))
            .collect();
        self.admit(fresh.len(), urgency.class, now)?;
        let joined = texts.len() - fresh.len();
        for (text, waiter) in texts {
            self.add(&text, vec![(waiter, urgency)], now);
        }
        Ok(joined)
    }

    /// Whether so many new texts would be admitted now.
    pub fn admit(&mut self, texts: usize, class: Class, now: Instant) -> Result<(), Full> {
        let may_sweep = self.last_sweep.is_none_or(|last| last + SWEEP_EVERY <= now);
        let room = self.room(texts, class);
        if room.is_ok() || !may_sweep {
            return room;
        }
        self.last_sweep = Some(now);
        let lines = self.interactive.order.iter().chain(&self.bulk.order);
        let waiting: Vec<Arc<str>> = lines.map(|(.., text)| Arc::clone(text)).collect();
        for text in waiting {
            self.prune(&text, now);
        }
        self.room(texts, class)
    }

    fn room(&self, texts: usize, class: Class) -> Result<(), Full> {
        let (waiting, most) = match class {
            Class::Interactive => (self.waiting(), self.limits.texts),
            Class::Bulk => (self.bulk.order.len(), self.limits.texts * 3 / 4),
        };
        let line = if class == Class::Bulk { &self.bulk } else { &self.interactive };
        let excess = (waiting + texts).saturating_sub(most);
        if texts == 0 || excess == 0 || line.order.is_empty() { Ok(()) } else { Err(Full(excess)) }
    }

    /// Puts those back into line who can still wait when a request was given up.
    pub fn put_back(&mut self, text: &Arc<str>, waiters: Waiters<W>, now: Instant) {
        let waiters: Waiters<W> =
            waiters.into_iter().filter(|(_, urgency)| urgency.deadline > now).collect();
        if !waiters.is_empty() {
            self.add(text, waiters, now);
        }
    }

    fn add(&mut self, text: &Arc<str>, waiters: Waiters<W>, now: Instant) {
        if let Some(entry) = self.entries.get_mut(text) {
            entry.waiters.extend(waiters);
            if entry.place.is_some() {
                self.place(text);
            }
            return;
        }
        let bytes = json_bytes(text);
        self.entries.insert(Arc::clone(text), Entry { waiters, since: now, bytes, place: None });
        self.place(text);
    }

    /// Puts a text where the most urgent of those who wait for it wants it.
    fn place(&mut self, text: &Arc<str>) {
        let Some(entry) = self.entries.get_mut(text) else { return };
        let bulk = |urgency: &Urgency| urgency.class == Class::Bulk;
        let all_bulk = entry.waiters.iter().all(|(_, urgency)| bulk(urgency));
        let class = if all_bulk { Class::Bulk } else { Class::Interactive };
        let deadlines = entry.waiters.iter().map(|(_, urgency)| urgency.deadline);
        let Some(deadline) = deadlines.min() else { return };
        let sequence = entry.place.as_ref().map_or(self.next, |(_, place)| place.1);
        self.next += 1;
        let place = (deadline, sequence, Arc::clone(text));
        let old = entry.place.replace((class, place.clone()));
        if let Some((class, old)) = old {
            self.line(class).order.remove(&old);
        }
        self.line(class).order.insert(place);
    }

    fn line(&mut self, class: Class) -> &mut Line {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }

    /// The next batch, when something waits and a place is free.
    pub fn take(&mut self, now: Instant) -> Option<Batch> {
        loop {
            let places = self.limits.in_flight;
            if self.in_flight() >= places {
                return None;
            }
            let free =
                |line: &Line, most: usize| !line.order.is_empty() && line.in_flight < most.max(1);
            let class = if free(&self.interactive, places - 1) {
                Class::Interactive
            } else if free(&self.bulk, places * 3 / 4) {
                Class::Bulk
            } else {
                return None;
            };
            // Without a batch the line is empty now: all of it had expired or gone.
            if let Some(batch) = self.fill(class, now) {
                self.line(class).in_flight += 1;
                return Some(batch);
            }
        }
    }

    fn fill(&mut self, class: Class, now: Instant) -> Option<Batch> {
        let limits = self.limits;
        let mut batch = Batch { texts: Vec::new(), class, deadline: now, spans: Vec::new() };
        let mut bytes = 0;
        while batch.texts.len() < limits.batch_texts {
            let Some((.., text)) = self.line(class).order.first().cloned() else { break };
            if !self.prune(&text, now) {
                continue;
            }
            let Some(entry) = self.entries.get_mut(&text) else { break };
            if bytes + entry.bytes > limits.batch_bytes && !batch.texts.is_empty() {
                break;
            }
            bytes += entry.bytes;
            let deadlines = entry.waiters.iter().map(|(_, urgency)| urgency.deadline);
            batch.deadline = deadlines.fold(batch.deadline, Instant::max);
            batch.spans.extend(entry.waiters.iter().filter_map(|(it, _)| it.span().cloned()));
            if let Some((class, place)) = entry.place.take() {
                self.line(class).order.remove(&place);
            }
            batch.texts.push(text);
        }
        (!batch.texts.is_empty()).then_some(batch)
    }

    /// Forgets those who went away or whose deadline has passed. False when nobody is left, and
    /// the text has lost its place by that.
    fn prune(&mut self, text: &Arc<str>, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(text) else { return false };
        entry.waiters.retain(|(waiter, urgency)| urgency.deadline > now && !waiter.is_gone());
        if !entry.waiters.is_empty() {
            return true;
        }
        if let Some((class, place)) = self.entries.remove(text).and_then(|entry| entry.place) {
            self.line(class).order.remove(&place);
        }
        false
    }

    /// Frees the place of a batch. Returns, per text of it, those who wait.
    pub fn finish(&mut self, batch: &Batch) -> Vec<Waiters<W>> {
        self.line(batch.class).in_flight -= 1;
        let entries = batch.texts.iter().map(|text| self.entries.remove(text));
        entries.map(|entry| entry.map(|entry| entry.waiters).unwrap_or_default()).collect()
    }

    /// Texts that wait.
    pub fn waiting(&self) -> usize {
        self.interactive.order.len() + self.bulk.order.len()
    }

    pub fn in_flight(&self) -> usize {
        self.interactive.in_flight + self.bulk.in_flight
    }

    /// How long the oldest waiting text has waited.
    pub fn oldest_age(&self, now: Instant) -> Duration {
        let waiting = self.entries.values().filter(|entry| entry.place.is_some());
        waiting.map(|entry| now.duration_since(entry.since)).max().unwrap_or_default()
    }
}

/// Bytes that a text takes as JSON, quotes and comma included.
fn json_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    3 + text.bytes().map(escaped).sum::<usize>()
}

#[cfg(test)]
mod tests;
