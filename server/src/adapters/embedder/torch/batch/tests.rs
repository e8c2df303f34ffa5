use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

/// A caller of the tests: a name and whether it went away.
#[derive(Clone, Debug)]
struct Caller(usize, Rc<Cell<bool>>);

impl Waiter for Caller {
    fn is_gone(&self) -> bool {
        self.1.get()
    }
}

fn caller(name: usize) -> Caller {
    Caller(name, Rc::default())
}

/// A thousand tokens a second and worker.
fn queue(limits: Limits) -> Queue<Caller> {
    Queue::new(limits, Speed::guess(1_000.0))
}

fn limits() -> Limits {
    Limits {
        texts: 1_000,
        tokens: 1 << 20,
        batch_tokens: 512,
        share_tokens: 128,
        workers: 1,
        batching: Batching::Deadline,
    }
}

/// A text of this many tokens that equals only those with the same number.
fn text(number: u32, tokens: usize) -> Arc<[u32]> {
    let mut ids = vec![number; tokens];
    ids[0] = 1;
    ids.into()
}

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

fn urgency(class: Class, deadline: Instant) -> Urgency {
    Urgency { class, deadline }
}

struct Bench {
    queue: Queue<Caller>,
    start: Instant,
    number: u32,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self { queue: queue(limits), start: Instant::now(), number: 100 }
    }

    /// A text of its own that has a minute.
    fn push(&mut self, class: Class, tokens: usize) -> Result<usize, Refusal> {
        self.push_until(class, tokens, 60_000)
    }

    fn push_until(&mut self, class: Class, tokens: usize, ms: u64) -> Result<usize, Refusal> {
        self.number += 1;
        let row = (text(self.number, tokens), caller(self.number as usize));
        self.queue.push(vec![row], urgency(class, at(self.start, ms)), self.start)
    }

    /// The lengths of the next batch, which ends at once.
    fn next(&mut self) -> Vec<usize> {
        let Some(batch) = self.queue.take(self.start) else { return Vec::new() };
        self.queue.finish(&batch, None);
        batch.texts.iter().map(|ids| ids.len()).collect()
    }
}

#[test]
fn equal_texts_are_computed_once_while_they_wait_and_while_they_run() {
    let mut queue = queue(limits());
    let now = Instant::now();
    let soon = urgency(Class::Interactive, at(now, 60_000));
    let rows = (0..500).map(|name| (text(7, 10), caller(name))).collect();
    assert_eq!(queue.push(rows, soon, now), Ok(499));
    let batch = queue.take(now).unwrap();
    assert_eq!((batch.texts.len(), queue.texts()), (1, 0));
    let rows = (500..1_000).map(|name| (text(7, 10), caller(name))).collect();
    assert_eq!(queue.push(rows, soon, now), Ok(500));
    assert!(queue.take(now).is_none());
    let waiters = queue.finish(&batch, None).remove(0);
    assert_eq!(
        waiters.iter().map(|caller| caller.0).collect::<Vec<_>>(),
        (0..1_000).collect::<Vec<_>>()
    );
    assert_eq!(queue.push(vec![(text(7, 10), caller(0))], soon, now), Ok(0));
}

#[test]
fn a_call_is_admitted_as_a_whole_or_not_at_all() {
    let mut queue = queue(Limits { texts: 10, ..limits() });
    let now = Instant::now();
    let soon = urgency(Class::Interactive, at(now, 60_000));
    let rows = |from: u32, count: u32| -> Vec<_> {
        (from..from + count).map(|n| (text(n, 5), caller(n as usize))).collect()
    };
    assert_eq!(queue.push(rows(10, 6), soon, now), Ok(0));
    let refused = queue.push(rows(20, 5), soon, now);
    assert!(matches!(refused, Err(Refusal::Overloaded { .. })));
    assert_eq!(queue.texts(), 6);
    assert_eq!(queue.push(rows(30, 4), soon, now), Ok(0));
    // Those that wait already take no room.
    assert_eq!(queue.push(rows(10, 6), soon, now), Ok(6));
}

#[test]
fn bulk_cannot_fill_the_queue() {
    let mut bench = Bench::new(Limits { texts: 8, ..limits() });
    for _ in 0..6 {
        bench.push(Class::Bulk, 5).unwrap();
    }
    assert!(bench.push(Class::Bulk, 5).is_err());
    for _ in 0..2 {
        bench.push(Class::Interactive, 5).unwrap();
    }
    assert!(bench.push(Class::Interactive, 5).is_err());
}

#[test]
fn tokens_bound_the_queue_too() {
    let mut bench = Bench::new(Limits { tokens: 1_000, ..limits() });
    for _ in 0..4 {
        bench.push(Class::Interactive, 250).unwrap();
    }
    assert!(bench.push(Class::Interactive, 250).is_err());
}

#[test]
fn a_call_larger_than_the_queue_is_admitted_when_no_other_waits() {
    let mut queue = queue(Limits { texts: 4, ..limits() });
    let now = Instant::now();
    let soon = urgency(Class::Bulk, at(now, 60_000));
    let rows = |from: u32| (from..from + 9).map(|n| (text(n, 5), caller(n as usize))).collect();
    assert_eq!(queue.push(rows(10), soon, now), Ok(0));
    assert!(queue.push(rows(20), soon, now).is_err());
}

#[test]
fn reserved_room_counts_until_it_is_given_back() {
    let mut queue = queue(Limits { tokens: 1_000, ..limits() });
    let now = Instant::now();
    let soon = urgency(Class::Interactive, at(now, 60_000));
    let room = Reserved { texts: 2, tokens: 600 };
    assert_eq!(queue.reserve(room, soon, now), Ok(()));
    assert!(queue.reserve(room, soon, now).is_err());
    assert!(queue.push(vec![(text(1, 600), caller(1))], soon, now).is_err());
    queue.release(room);
    assert_eq!(queue.insert(vec![(text(1, 600), caller(1))], soon, now), 0);
    assert!(queue.reserve(room, soon, now).is_err());
}

#[test]
fn reserved_room_counts_against_the_deadline() {
    let mut queue = queue(limits());
    let now = Instant::now();
    let soon = urgency(Class::Interactive, at(now, 2_000));
    let room = Reserved { texts: 1, tokens: 500 };
    assert_eq!(queue.reserve(room, soon, now), Ok(()));
    assert_eq!(queue.reserve(room, soon, now), Ok(()));
    // At a thousand tokens a second a third one would be late.
    assert!(matches!(queue.reserve(room, soon, now), Err(Refusal::Overloaded { .. })));
}

#[test]
fn a_refusal_tells_when_there_is_room_again() {
    let mut bench = Bench::new(Limits { tokens: 1_000, ..limits() });
    for _ in 0..4 {
        bench.push(Class::Interactive, 250).unwrap();
    }
    // 250 tokens must go first, at a thousand a second.
    let refused = bench.push(Class::Interactive, 250);
    assert_eq!(refused, Err(Refusal::Overloaded { retry_after: Duration::from_millis(250) }));
}

#[test]
fn what_could_not_be_ready_in_time_is_refused_at_once() {
    let mut bench = Bench::new(limits());
    for _ in 0..4 {
        bench.push_until(Class::Interactive, 250, 1_900).unwrap();
    }
    // Behind the others it takes 1.25 s, the last batch up to 0.512 s longer, and a quarter for
    // caution: 2.2 s.
    assert!(matches!(
        bench.push_until(Class::Interactive, 250, 2_100),
        Err(Refusal::Overloaded { .. })
    ));
    assert!(bench.push_until(Class::Interactive, 250, 2_300).is_ok());
}

#[test]
fn an_urgent_text_is_refused_when_one_admitted_before_would_be_late_by_it() {
    let mut bench = Bench::new(limits());
    bench.push_until(Class::Interactive, 250, 650).unwrap();
    bench.push_until(Class::Interactive, 250, 1_300).unwrap();
    assert!(bench.push_until(Class::Interactive, 250, 640).is_err());
    assert!(bench.push_until(Class::Interactive, 250, 60_000).is_ok());
}

#[test]
fn an_idle_model_tries_whatever_its_speed_was() {
    let mut queue = Queue::new(limits(), Speed::guess(0.001));
    let now = Instant::now();
    let soon = urgency(Class::Interactive, at(now, 100));
    assert_eq!(queue.push(vec![(text(1, 10), caller(1))], soon, now), Ok(0));
    let batch = queue.take(now).unwrap();
    queue.finish(&batch, Some(Duration::from_millis(1)));
    assert!(queue.take_lost().is_empty());
}

#[test]
fn the_expired_and_the_abandoned_are_not_computed() {
    let mut queue = queue(limits());
    let now = Instant::now();
    let gone = caller(1);
    let soon = urgency(Class::Interactive, at(now, 50));
    queue.push(vec![(text(1, 10), gone.clone())], soon, now).unwrap();
    queue.push(vec![(text(2, 10), caller(2))], soon, now).unwrap();
    let later = urgency(Class::Interactive, at(now, 500));
    queue.push(vec![(text(3, 10), caller(3))], later, now).unwrap();
    gone.1.set(true);
    let batch = queue.take(at(now, 20)).unwrap();
    assert_eq!(batch.texts, [text(2, 10), text(3, 10)]);
    queue.finish(&batch, None);
    let lost = queue.take_lost();
    assert_eq!((lost.len(), lost[0].0.0, lost[0].1), (1, 1, Lost::Abandoned));
    queue.push(vec![(text(4, 10), caller(4))], soon, now).unwrap();
    assert!(queue.take(at(now, 50)).is_none());
    let lost = queue.take_lost();
    assert_eq!((lost.len(), lost[0].0.0, lost[0].1), (1, 4, Lost::Expired));
    let late = queue.push(vec![(text(5, 10), caller(5))], soon, at(now, 50));
    assert_eq!(late, Err(Refusal::Expired));
}

#[test]
fn a_text_lives_as_long_as_somebody_wants_it() {
    let mut queue = queue(limits());
    let now = Instant::now();
    for (name, class, ms) in [(1, Class::Interactive, 50), (2, Class::Bulk, 5_000)] {
        let rows = vec![(text(7, 10), caller(name))];
        queue.push(rows, urgency(class, at(now, ms)), now).unwrap();
    }
    // The first one is late; the second is bulk again and still embedded.
    let batch = queue.take(at(now, 60)).unwrap();
    assert_eq!(queue.take_lost().len(), 1);
    assert_eq!(queue.finish(&batch, None)[0][0].0, 2);
}

#[test]
fn a_document_that_somebody_searches_for_becomes_urgent() {
    let mut bench = Bench::new(limits());
    for _ in 0..10 {
        bench.push(Class::Bulk, 256).unwrap();
    }
    let same = text(bench.number, 256);
    let now = bench.start;
    let soon = urgency(Class::Interactive, at(now, 60_000));
    assert_eq!(bench.queue.push(vec![(Arc::clone(&same), caller(0))], soon, now), Ok(1));
    assert_eq!(bench.queue.take(now).unwrap().texts, [same]);
}

#[test]
fn the_earliest_deadline_goes_first() {
    let mut bench = Bench::new(limits());
    for (tokens, ms) in [(300, 40_000), (301, 20_000), (302, 30_000)] {
        bench.push_until(Class::Bulk, tokens, ms).unwrap();
    }
    assert_eq!([bench.next(), bench.next(), bench.next()], [[301], [302], [300]]);
}

#[test]
fn a_text_larger_than_a_batch_is_a_batch() {
    let mut bench = Bench::new(Limits { batch_tokens: 64, ..limits() });
    bench.push(Class::Bulk, 256).unwrap();
    bench.push(Class::Bulk, 10).unwrap();
    assert_eq!([bench.next(), bench.next()], [[256], [10]]);
}

#[test]
fn a_batch_is_filled_with_what_fits_in_order_of_length() {
    let mut bench = Bench::new(limits());
    for tokens in [200, 100, 250, 30, 150] {
        bench.push(Class::Bulk, tokens).unwrap();
    }
    assert_eq!(bench.next(), [30, 100, 150, 200]);
    assert_eq!(bench.next(), [250]);
}

#[test]
fn workers_share_what_waits() {
    let mut bench = Bench::new(Limits { workers: 2, ..limits() });
    for _ in 0..30 {
        bench.push(Class::Interactive, 10).unwrap();
    }
    let first = bench.queue.take(bench.start).unwrap();
    assert_eq!(first.texts.len(), 15);
    // All that is left is for the other one.
    assert_eq!(bench.next().len(), 15);
    bench.queue.finish(&first, None);
    for _ in 0..14 {
        bench.push(Class::Interactive, 10).unwrap();
    }
    // Shares do not become so small that they waste the processor; the last text of one may be longer.
    let first = bench.queue.take(bench.start).unwrap();
    assert_eq!(first.tokens, 130);
    assert_eq!(bench.next(), [10]);
}

#[test]
fn workers_are_idle_when_there_is_one_batch_alone() {
    let mut bench = Bench::new(Limits { workers: 3, ..limits() });
    let idle = |bench: &mut Bench| bench.queue.take(bench.start).map(|batch| batch.idle);
    bench.push(Class::Interactive, 10).unwrap();
    assert_eq!(idle(&mut bench), Some(2));
    bench.push(Class::Interactive, 20).unwrap();
    assert_eq!(idle(&mut bench), Some(0), "another is being computed");
    let mut bench = Bench::new(Limits { workers: 3, ..limits() });
    bench.push(Class::Bulk, 200).unwrap();
    bench.push(Class::Bulk, 201).unwrap();
    assert_eq!(idle(&mut bench), Some(0), "another waits");
}

#[test]
fn a_query_waits_for_no_document_that_is_not_yet_being_computed() {
    let mut bench = Bench::new(limits());
    for _ in 0..100 {
        bench.push(Class::Bulk, 128).unwrap();
    }
    assert_eq!(bench.next(), [128; 4]);
    bench.push(Class::Interactive, 10).unwrap();
    assert_eq!(bench.next(), [10]);
}

#[test]
fn documents_get_their_turn_however_many_queries_come() {
    let mut bench = Bench::new(limits());
    bench.push(Class::Bulk, 128).unwrap();
    let mut batches = 0;
    loop {
        for _ in 0..40 {
            bench.push(Class::Interactive, 16).unwrap();
        }
        batches += 1;
        if bench.next() == [128] {
            break;
        }
    }
    assert_eq!(batches, BULK_TURN);
}

/// Serves arrivals at a fixed rate on simulated workers. Per second: rows in time, rows late.
fn simulate(offered_per_second: f64, seconds: f64) -> (f64, usize) {
    const TOKENS: usize = 10;
    const PATIENCE: Duration = Duration::from_millis(250);
    let workers = 2;
    let mut queue = queue(Limits { texts: 100_000, workers, ..limits() });
    let start = Instant::now();
    let (mut offered, mut in_time, mut late) = (0_u32, 0_usize, 0);
    let mut deadlines: HashMap<usize, Instant> = HashMap::new();
    let mut running: Vec<(Instant, Batch)> = Vec::new();
    let steps = (seconds * 1_000.0) as u64;
    for now in (0..steps).map(|ms| at(start, ms)) {
        let elapsed = (now - start).as_secs_f64();
        while f64::from(offered) < elapsed * offered_per_second {
            offered += 1;
            let rows = vec![(text(offered, TOKENS), caller(offered as usize))];
            let deadline = now + PATIENCE;
            if queue.push(rows, urgency(Class::Interactive, deadline), now).is_ok() {
                deadlines.insert(offered as usize, deadline);
            }
        }
        let ended: Vec<_> = running.extract_if(.., |(end, _)| *end <= now).collect();
        for (_, batch) in ended {
            // A thousand tokens a second, as the queue was told.
            let took = Duration::from_millis(batch.tokens as u64);
            for caller in queue.finish(&batch, Some(took)).into_iter().flatten() {
                if now <= deadlines[&caller.0] { in_time += 1 } else { late += 1 }
            }
        }
        while running.len() < workers
            && let Some(batch) = queue.take(now)
        {
            running.push((now + Duration::from_millis(batch.tokens as u64), batch));
        }
        late += queue.take_lost().len();
    }
    (in_time as f64 / seconds, late)
}

#[test]
fn goodput_stays_under_five_times_the_load_and_the_admitted_are_in_time() {
    // Two workers do 200 such texts a second.
    let capacity = 200.0;
    let peak = (5..=10).map(|tenth| simulate(capacity * f64::from(tenth) / 10.0, 20.0).0);
    let peak = peak.fold(0.0, f64::max);
    assert!(peak > 0.9 * capacity, "peak {peak}");
    for times in [1.5, 2.0, 5.0, 20.0] {
        let (goodput, late) = simulate(capacity * times, 20.0);
        assert!(goodput >= 0.9 * peak, "{times} times the load: {goodput} of {peak}");
        assert_eq!(late, 0, "{times} times the load");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { texts: Vec<(u32, usize)>, bulk: bool, ms: u64 },
    Leave(usize),
    Take,
    Finish,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let texts = prop::collection::vec((0_u32..20, 1_usize..40), 1..6);
    prop_oneof![
        4 => (texts, any::<bool>(), 1_u64..400)
            .prop_map(|(texts, bulk, ms)| Step::Push { texts, bulk, ms }),
        1 => (0_usize..200).prop_map(Step::Leave),
        3 => Just(Step::Take),
        3 => Just(Step::Finish),
        1 => (0_u64..50).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn every_admitted_row_is_answered_once_and_no_text_runs_twice(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let limits = Limits { texts: 24, tokens: 600, batch_tokens: 64, ..limits() };
        let mut queue = queue(limits.clone());
        let mut now = Instant::now();
        let mut open: HashMap<usize, Caller> = HashMap::new();
        let mut running: Vec<Batch> = Vec::new();
        let mut names = 0;
        for step in steps {
            match step {
                Step::Push { texts, bulk, ms } => {
                    let rows: Vec<_> = texts
                        .into_iter()
                        .map(|(number, tokens)| { names += 1; (text(number, tokens), caller(names)) })
                        .collect();
                    let class = if bulk { Class::Bulk } else { Class::Interactive };
                    let callers: Vec<_> = rows.iter().map(|(_, caller)| caller.clone()).collect();
                    if queue.push(rows, urgency(class, at(now, ms)), now).is_ok() {
                        open.extend(callers.into_iter().map(|caller| (caller.0, caller)));
                    }
                }
                Step::Leave(name) => {
                    if let Some(caller) = open.get(&name) { caller.1.set(true) }
                }
                Step::Take => if let Some(batch) = queue.take(now) {
                    let tokens: usize = batch.texts.iter().map(|ids| ids.len()).sum();
                    prop_assert_eq!(tokens, batch.tokens);
                    prop_assert!(tokens <= limits.batch_tokens);
                    prop_assert!(batch.texts.is_sorted_by_key(|ids| ids.len()));
                    for other in running.iter().flat_map(|batch| &batch.texts) {
                        prop_assert!(!batch.texts.contains(other));
                    }
                    running.push(batch);
                },
                Step::Finish => if !running.is_empty() {
                    let batch = running.remove(0);
                    let took = Duration::from_millis(batch.tokens as u64);
                    for caller in queue.finish(&batch, Some(took)).into_iter().flatten() {
                        prop_assert!(open.remove(&caller.0).is_some());
                    }
                },
                Step::Wait(ms) => now = at(now, ms),
            }
            for (caller, _) in queue.take_lost() {
                prop_assert!(open.remove(&caller.0).is_some());
            }
            let waiting: usize = queue.entries.values().filter(|e| e.place.is_some()).count();
            prop_assert_eq!(waiting, queue.texts());
            prop_assert_eq!(queue.by_ids.len(), queue.entries.len());
        }
        for caller in queue.drain() {
            prop_assert!(open.remove(&caller.0).is_some());
        }
        prop_assert!(open.is_empty());
        prop_assert_eq!(queue.tokens(), 0);
    }
}

#[test]
fn in_the_order_of_arrival_a_query_waits_behind_the_documents_before_it() {
    let mut order = Vec::new();
    for batching in [Batching::Deadline, Batching::Fifo] {
        let mut bench = Bench::new(Limits { batch_tokens: 100, batching, ..limits() });
        bench.push(Class::Bulk, 60).unwrap();
        bench.push(Class::Bulk, 70).unwrap();
        bench.push(Class::Interactive, 20).unwrap();
        let batches = std::iter::from_fn(|| Some(bench.next()).filter(|texts| !texts.is_empty()));
        order.push(batches.collect::<Vec<_>>());
    }
    assert_eq!(order[0], [vec![20], vec![60], vec![70]]);
    assert_eq!(order[1], [vec![60], vec![20, 70]]);
}
