//! CPUs that would be idle help with a batch: what can be done in parts is shared among them.
//!
//! There is no barrier to wait at: who has done its own parts takes those of others, and a helper that gets
//! no CPU takes none. One that loses its CPU to others with a part in hand is waited for, and then for a while no
//! help is asked for: it would happen again. Helpers spin while the batch is computed, which is milliseconds, and for a moment after
//! it, and sleep otherwise.

use std::cell::Cell;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, panicking, park, yield_now};
use std::time::{Duration, Instant};

/// With more, waiting for each other takes what they save.
const MOST_HELPERS: usize = 3;
/// Rounds of waiting for a batch after which others get the CPU: it may be that of whom is waited for.
const SPINS: u32 = 64;
/// How long the last parts are waited for at most without giving the CPU away: who gives a busy one away
/// gets it back after milliseconds, and a part takes some microseconds.
const LATE: Duration = Duration::from_micros(500);
/// For how long no help is asked for after a helper was late: at first, by what that grows when helpers
/// are late again and again, and at most.
const ALONE: Duration = Duration::from_millis(25);
const ALONE_GROWS: u32 = 8;
const MOST_ALONE: Duration = Duration::from_secs(1);
/// After so many batches without one late, it is not again and again.
const SELDOM: u32 = 20;
/// How long a helper that is awake waits for a batch: to wake one takes about as long.
const GRACE: Duration = Duration::from_micros(100);

thread_local! {
    /// What helps with what this thread computes.
    static HELPERS: Cell<Option<*const Shared>> = const { Cell::new(None) };
}

pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Helpers below this number are awake: somebody's batch is computed.
    wanted: AtomicUsize,
    ending: AtomicBool,
    /// Counts the jobs.
    number: AtomicUsize,
    /// Valid while `is_open`, and until `helping` is zero after that.
    job: AtomicPtr<Job<'static>>,
    is_open: AtomicBool,
    helping: AtomicUsize,
    /// A helper ended in the middle of a part, which nobody has done.
    is_broken: AtomicBool,
    lateness: Mutex<Lateness>,
}

struct Job<'a> {
    /// Of the one who is helped, then of each helper.
    shares: [Parts; 1 + MOST_HELPERS],
    /// So many of them have parts.
    members: usize,
    work: &'a (dyn Fn(usize, Option<usize>) + Sync),
}

/// A run of parts that are not taken yet. Its owner takes from the front, others from the back.
struct Parts(AtomicU64);

impl Parts {
    fn new(range: Range<usize>) -> Self {
        Self(AtomicU64::new(pack(range)))
    }

    fn take(
        &self,
        take: impl Fn(&mut Range<usize>) -> Option<usize>,
    ) -> Option<(usize, Range<usize>)> {
        let mut taken = None;
        let update = |packed| {
            let mut left = unpack(packed);
            taken = take(&mut left).map(|part| (part, left.clone()));
            taken.is_some().then(|| pack(left))
        };
        // What a part needs and what it makes is handed over with the job as a whole.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok()?;
        taken
    }
}

fn pack(range: Range<usize>) -> u64 {
    (range.start as u64) << 32 | range.end as u64
}

fn unpack(packed: u64) -> Range<usize> {
    (packed >> 32) as usize..(packed & u64::from(u32::MAX)) as usize
}

impl Team {
    pub fn new(helpers: usize) -> std::io::Result<Self> {
        let mut team = Self { shared: Arc::default(), threads: Vec::new() };
        for helper in 0..helpers.min(MOST_HELPERS) {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new().name(format!("embed-help-{helper}"));
            team.threads.push(thread.spawn(move || shared.help(helper))?);
        }
        Ok(team)
    }

    /// Wakes so many helpers: there will be a batch in a moment.
    pub fn rouse(&self, helpers: usize) {
        if helpers > 0 && self.shared.lateness().allows_help(Instant::now()) {
            self.unpark(helpers);
        }
    }

    fn unpark(&self, helpers: usize) {
        for thread in self.threads.iter().take(helpers) {
            thread.thread().unpark();
        }
    }

    /// Computes something, with the help of so many at most. They help one thread at a time: without
    /// them is whoever comes while they do.
    pub fn assist<T>(&self, helpers: usize, compute: impl FnOnce() -> T) -> T {
        let helpers = helpers.min(self.threads.len());
        let wanted = &self.shared.wanted;
        if helpers == 0
            || !self.shared.lateness().allows_help(Instant::now())
            || wanted.compare_exchange(0, helpers, Ordering::SeqCst, Ordering::SeqCst).is_err()
        {
            return compute();
        }
        let _over = Over(&self.shared);
        self.unpark(helpers);
        HELPERS.set(Some(Arc::as_ptr(&self.shared)));
        compute()
    }
}

/// Sends the helpers to sleep.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        if HELPERS.take().is_some() {
            self.0.lateness().in_time();
        }
        self.0.wanted.store(0, Ordering::SeqCst);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A panic of it was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Does the parts `0..parts` of a piece of work, by this thread and those that help it. `work` gets a part,
/// and the one that the same thread will probably do next, as far as that can be told.
///
/// # Panics
/// When `work` does, by whichever thread.
pub fn share(parts: usize, work: impl Fn(usize, Option<usize>) + Sync) {
    let Some(shared) = HELPERS.get() else {
        return (0..parts).for_each(|part| work(part, (part + 1 < parts).then_some(part + 1)));
    };
    // SAFETY: it is there as long as the team, which outlives the `assist` that set it.
    let shared = unsafe { &*shared };
    let members = 1 + shared.wanted.load(Ordering::SeqCst);
    let of = |member: usize| {
        let [start, end] =
            [member, member + 1].map(|member| (parts * member.min(members)).div_ceil(members));
        Parts::new(start..end)
    };
    let job = Job { shares: std::array::from_fn(of), members, work: &work };
    shared.job.store((&raw const job).cast_mut().cast(), Ordering::SeqCst);
    shared.is_open.store(true, Ordering::SeqCst);
    shared.number.fetch_add(1, Ordering::SeqCst);
    let closed = Closed(shared);
    job.take_part(0);
    drop(closed);
    assert!(!shared.is_broken.load(Ordering::SeqCst), "a helper ended in the middle of its part");
}

/// A slice that parts of a piece of work write to, each elsewhere.
pub struct Writer<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: who writes to a part of it promises to be the only one.
unsafe impl<T: Send> Sync for Writer<'_, T> {}

impl<'a, T> Writer<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    /// Nobody else uses any of this part meanwhile.
    #[allow(clippy::mut_from_ref, reason = "it is what the promise is for")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: it lies within the slice, and is the caller's alone.
        unsafe { slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Closes a job, before it goes.
struct Closed<'a>(&'a Shared);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.is_open.store(false, Ordering::SeqCst);
        // Who has come before takes part still; who comes now finds it closed.
        if self.0.helping.load(Ordering::SeqCst) == 0 {
            return;
        }
        let begin = Instant::now();
        let mut is_late = false;
        while self.0.helping.load(Ordering::SeqCst) > 0 {
            if is_late {
                yield_now();
            } else {
                spin_loop();
                is_late = begin.elapsed() > LATE;
            }
        }
        if is_late {
            self.0.lateness().late(Instant::now());
            // What remains of this batch is done without help, too.
            HELPERS.set(None);
        }
    }
}

fn wait(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(SPINS) { yield_now() } else { spin_loop() }
}

/// Whether helpers are late, which they are where other processes want the CPUs, too.
#[derive(Default)]
struct Lateness {
    alone: Duration,
    until: Option<Instant>,
    /// Batches since one was late.
    in_time: u32,
}

impl Lateness {
    fn allows_help(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    fn in_time(&mut self) {
        self.in_time = self.in_time.saturating_add(1);
    }

    fn late(&mut self, now: Instant) {
        let again = self.in_time < SELDOM && self.until.is_some();
        self.alone = if again { (self.alone * ALONE_GROWS).min(MOST_ALONE) } else { ALONE };
        self.until = Some(now + self.alone);
        self.in_time = 0;
    }
}

impl Job<'_> {
    fn take_part(&self, member: usize) {
        while let Some((part, mut left)) = self.shares[member].take(Iterator::next) {
            (self.work)(part, left.next());
        }
        for other in 1..self.members {
            let other = &self.shares[(member + other) % self.members];
            while let Some((part, mut left)) = other.take(DoubleEndedIterator::next_back) {
                (self.work)(part, left.next_back());
            }
        }
    }
}

impl Shared {
    fn lateness(&self) -> MutexGuard<'_, Lateness> {
        // Nothing panics halfway through a change of it.
        self.lateness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn help(&self, helper: usize) {
        let (mut seen, mut spins) = (0, 0);
        let mut awake_until = None;
        while !self.ending.load(Ordering::SeqCst) {
            if helper >= self.wanted.load(Ordering::SeqCst) {
                let now = Instant::now();
                if now < *awake_until.get_or_insert(now + GRACE) {
                    wait(&mut spins);
                } else {
                    park();
                    awake_until = None;
                }
                continue;
            }
            awake_until = None;
            let number = self.number.load(Ordering::SeqCst);
            if number == seen {
                wait(&mut spins);
                continue;
            }
            seen = number;
            self.helping.fetch_add(1, Ordering::SeqCst);
            let _left = Left(self);
            if self.is_open.load(Ordering::SeqCst) {
                // SAFETY: while it was open `helping` was counted, which `share` waits for.
                unsafe { (*self.job.load(Ordering::SeqCst)).take_part(1 + helper) }
            }
        }
    }
}

struct Left<'a>(&'a Shared);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.0.is_broken.store(true, Ordering::SeqCst);
        }
        self.0.helping.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    /// How often each part was done.
    fn done(parts: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
        share(parts, |part, _| {
            counts[part].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_part_is_done_once_with_and_without_help() {
        let team = Team::new(3).unwrap();
        for round in 0..2_000 {
            let parts = round % 7;
            assert_eq!(team.assist(round % 5, || done(parts)), vec![1; parts]);
            assert_eq!(done(parts), vec![1; parts]);
        }
    }

    #[test]
    fn who_is_done_takes_the_last_parts_of_another() {
        let team = Team::new(1).unwrap();
        let mine = Mutex::new(Vec::new());
        let me = thread::current().id();
        team.assist(1, || {
            share(8, |part, next| {
                if thread::current().id() == me {
                    mine.lock().unwrap().push((part, next));
                } else {
                    // It does no more than one before all others are done.
                    while mine.lock().unwrap().len() < 7 {
                        yield_now();
                    }
                }
            });
        });
        let mine = mine.into_inner().unwrap();
        let own = [(0, Some(1)), (1, Some(2)), (2, Some(3)), (3, None)];
        assert_eq!(mine[..4], own);
        assert!(mine[4..].starts_with(&[(7, Some(6)), (6, Some(5))]), "{mine:?}");
    }

    #[test]
    fn a_part_that_a_helper_does_not_end_fails_the_whole() {
        let team = Team::new(1).unwrap();
        let (me, has_begun) = (thread::current().id(), AtomicBool::new(false));
        let work = |_, _| {
            if thread::current().id() != me {
                has_begun.store(true, Ordering::SeqCst);
                panic!("on purpose");
            }
            while !has_begun.load(Ordering::SeqCst) {
                yield_now();
            }
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| team.assist(1, || share(2, work))));
        assert!(outcome.is_err());
    }

    #[test]
    fn helpers_do_parts() {
        let team = Team::new(1).unwrap();
        let threads = Mutex::new(Vec::new());
        let both = || threads.lock().unwrap().len() == 2;
        team.assist(1, || {
            share(2, |_, _| {
                threads.lock().unwrap().push(thread::current().id());
                // The other part is for the other.
                while !both() {
                    yield_now();
                }
            });
        });
        let threads = threads.into_inner().unwrap();
        assert_ne!(threads[0], threads[1]);
    }

    #[test]
    fn helpers_that_are_late_again_and_again_are_left_alone_for_longer() {
        let begin = Instant::now();
        let mut lateness = Lateness::default();
        let mut now = begin;
        let mut pause = |lateness: &mut Lateness| {
            assert!(lateness.allows_help(now));
            lateness.late(now);
            let mut paused = (0..).map(Duration::from_millis);
            let over = paused.find(|&pause| lateness.allows_help(now + pause)).unwrap();
            now += over;
            over
        };
        assert_eq!(
            [(); 4].map(|()| pause(&mut lateness)),
            [25, 200, 1000, 1000].map(Duration::from_millis)
        );
        for _ in 0..SELDOM {
            lateness.in_time();
        }
        assert_eq!(pause(&mut lateness), ALONE);
    }

    #[test]
    fn who_comes_while_they_help_another_does_all_by_itself() {
        let team = Team::new(1).unwrap();
        team.assist(1, || {
            thread::scope(|scope| {
                let other = scope.spawn(|| team.assist(1, || (HELPERS.get().is_none(), done(5))));
                assert_eq!(other.join().unwrap(), (true, vec![1; 5]));
            });
            assert_eq!(done(5), [1; 5]);
        });
        assert!(HELPERS.get().is_none());
    }
}
