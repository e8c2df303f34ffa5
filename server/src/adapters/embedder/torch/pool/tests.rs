use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::adapters::embedder::batching::Batching;
use crate::ports::Class;

/// A model that tells what it was given and waits for what to do.
struct Fake {
    seen: mpsc::Sender<Vec<Arc<[u32]>>>,
    orders: Arc<Mutex<mpsc::Receiver<Order>>>,
}

enum Order {
    Embed,
    Fail,
    Panic,
    RunOut,
    Lose,
}

impl Forward for Fake {
    fn embed(&mut self, texts: &[Arc<[u32]>], _: usize) -> Result<Rows, Fault> {
        self.seen.send(texts.to_vec()).ok();
        let order = self.orders.lock().unwrap().recv();
        match order.unwrap_or(Order::Embed) {
            Order::Embed => Ok(texts.iter().map(|ids| Arc::from([ids[0] as f32])).collect()),
            Order::Fail => Err(Fault::Failed("no memory".to_owned())),
            Order::RunOut => Err(Fault::OutOfMemory("out of memory".to_owned())),
            Order::Lose => Err(Fault::Lost("an illegal memory access".to_owned())),
            Order::Panic => panic!("out of bounds"),
        }
    }
}

/// A model on the thread of whom a batch comes from. It does not know the number 0.
struct AtHome(thread::ThreadId);

impl AtHome {
    fn takes(tokens: usize) -> AtOnce {
        let home = Self(thread::current().id());
        AtOnce { tokens, forward: Box::new(home) }
    }
}

impl Forward for AtHome {
    fn embed(&mut self, texts: &[Arc<[u32]>], _: usize) -> Result<Rows, Fault> {
        assert_eq!(self.0, thread::current().id());
        assert_ne!(texts[0][0], 0);
        // Not what the others would give.
        Ok(texts.iter().map(|ids| Arc::from([ids[0] as f32 + 0.5])).collect())
    }
}

struct Bench {
    pool: Pool,
    seen: mpsc::Receiver<Vec<Arc<[u32]>>>,
    orders: Option<mpsc::Sender<Order>>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new(workers: usize) -> Self {
        Self::with(workers, workers, None, None)
    }

    /// With so many workers, of which these may run at first.
    fn with(all: usize, workers: usize, share: Option<Share>, at_once: Option<AtOnce>) -> Self {
        let limits = Limits {
            texts: 100,
            tokens: 10_000,
            batch_tokens: 512,
            share_tokens: 128,
            workers,
            batching: Batching::Deadline,
        };
        let ((seen, reports), (orders, receiver)) = (mpsc::channel(), mpsc::channel());
        let receiver = Arc::new(Mutex::new(receiver));
        let fakes =
            (0..all).map(|_| Fake { seen: seen.clone(), orders: Arc::clone(&receiver) }).collect();
        let metrics = Arc::new(Metrics::new());
        let speed = Speed::guess(1_000_000.0);
        let pool = Pool::start(fakes, limits, speed, Arc::clone(&metrics), share, at_once).unwrap();
        Self { pool, seen: reports, orders: Some(orders), metrics }
    }

    /// Room for so many texts of a token each.
    fn reserve(&self, texts: usize) -> Reservation {
        self.pool.reserve(Reserved { texts, tokens: texts }, urgency()).unwrap()
    }

    fn submit(&self, numbers: &[u32]) -> oneshot::Receiver<Answer> {
        self.submit_to(self.reserve(numbers.len()), numbers).unwrap()
    }

    fn submit_to(
        &self,
        reservation: Reservation,
        numbers: &[u32],
    ) -> Result<oneshot::Receiver<Answer>, EmbedError> {
        let texts = numbers.iter().map(|&number| Arc::from([number])).collect();
        self.pool.submit(reservation, texts, urgency())
    }

    fn order(&self, order: Order) {
        self.orders.as_ref().unwrap().send(order).unwrap();
    }

    /// What the model was given, once it has it.
    fn seen(&self) -> Vec<u32> {
        self.seen.recv().unwrap().iter().map(|ids| ids[0]).collect()
    }

    fn count(&self, outcome: &str) -> u64 {
        self.metrics.embed_texts.with_label_values(&[outcome]).get()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Without orders the fakes embed, so that the pool can end.
        self.orders = None;
    }
}

fn urgency() -> Urgency {
    Urgency { class: Class::Interactive, deadline: Instant::now() + Duration::from_mins(5) }
}

fn numbers(answer: Answer) -> Vec<f32> {
    answer.unwrap().iter().map(|row| row[0]).collect()
}

#[tokio::test]
async fn rows_come_in_the_order_of_their_texts() {
    let bench = Bench::new(1);
    bench.order(Order::Embed);
    assert_eq!(numbers(bench.submit(&[3, 1, 3, 2]).await.unwrap()), [3.0, 1.0, 3.0, 2.0]);
    assert_eq!((bench.count("embedded"), bench.count("joined")), (3, 1));
}

#[tokio::test]
async fn a_text_in_flight_is_shared_by_a_thousand_callers() {
    let bench = Bench::new(1);
    let first = bench.submit(&[7]);
    assert_eq!(bench.seen(), [7]);
    let others: Vec<_> = (0..999).map(|_| bench.submit(&[7])).collect();
    bench.order(Order::Embed);
    assert_eq!(numbers(first.await.unwrap()), [7.0]);
    for other in others {
        assert_eq!(numbers(other.await.unwrap()), [7.0]);
    }
    assert_eq!((bench.count("embedded"), bench.count("joined")), (1, 999));
}

#[tokio::test]
async fn texts_of_a_caller_that_left_are_not_embedded() {
    let bench = Bench::new(1);
    let first = bench.submit(&[1]);
    assert_eq!(bench.seen(), [1]);
    drop(bench.submit(&[2, 3]));
    let last = bench.submit(&[4]);
    bench.order(Order::Embed);
    bench.order(Order::Embed);
    first.await.unwrap().unwrap();
    last.await.unwrap().unwrap();
    assert_eq!(bench.seen(), [4]);
    assert_eq!((bench.count("embedded"), bench.count("abandoned")), (2, 2));
}

#[tokio::test]
async fn an_error_of_the_model_fails_its_batch_and_no_other() {
    let bench = Bench::new(1);
    bench.order(Order::Fail);
    let failed = bench.submit(&[1]).await.unwrap();
    assert_eq!(failed, Err(EmbedError::Failed("no memory".to_owned())));
    bench.order(Order::Embed);
    assert_eq!(numbers(bench.submit(&[1]).await.unwrap()), [1.0]);
    assert_eq!((bench.pool.health(), bench.count("failed")), (Ok(()), 1));
}

#[tokio::test]
async fn a_lost_worker_is_told_and_the_other_one_goes_on() {
    let bench = Bench::new(2);
    bench.order(Order::Panic);
    let failed = bench.submit(&[1]).await.unwrap();
    assert_eq!(failed, Err(EmbedError::Failed("out of bounds".to_owned())));
    bench.order(Order::Embed);
    assert_eq!(numbers(bench.submit(&[2]).await.unwrap()), [2.0]);
    let health = bench.pool.health().unwrap_err();
    assert!(health.contains("1 of 2") && health.contains("out of bounds"), "{health}");
}

#[tokio::test]
async fn without_workers_everybody_learns_that_it_has_stopped() {
    let bench = Bench::new(1);
    let first = bench.submit(&[1]);
    assert_eq!(bench.seen(), [1]);
    let waiting = bench.submit(&[2]);
    bench.order(Order::Panic);
    assert!(matches!(first.await.unwrap(), Err(EmbedError::Failed(_))));
    assert_eq!(waiting.await.unwrap(), Err(EmbedError::Stopped));
    let urgency = Urgency { class: Class::Bulk, deadline: Instant::now() + Duration::from_mins(5) };
    let refused = bench.pool.reserve(Reserved { texts: 1, tokens: 1 }, urgency).err();
    assert_eq!(refused, Some(EmbedError::Stopped));
}

#[tokio::test]
async fn closing_ends_the_running_batch_and_stops_the_rest() {
    let bench = Bench::new(1);
    let running = bench.submit(&[1]);
    assert_eq!(bench.seen(), [1]);
    let waiting = bench.submit(&[2]);
    assert!(!bench.pool.close(Duration::ZERO));
    assert_eq!(waiting.await.unwrap(), Err(EmbedError::Stopped));
    bench.order(Order::Embed);
    assert_eq!(numbers(running.await.unwrap()), [1.0]);
    assert!(bench.pool.close(Duration::from_mins(1)));
    assert!(bench.pool.health().is_err());
}

#[tokio::test]
async fn as_many_workers_run_as_the_process_may_use_cpus() {
    let cpus = Arc::new(AtomicUsize::new(2));
    let asked = Arc::clone(&cpus);
    let ask = Box::new(move || asked.load(Ordering::SeqCst));
    let bench = Bench::with(3, 1, Some(Share { every: Duration::ZERO, ask }), None);
    // Asked while this is computed: now there are two.
    let first = bench.submit(&[1]);
    assert_eq!(bench.seen(), [1]);
    let second = bench.submit(&[2]);
    assert_eq!(bench.seen(), [2]);
    bench.order(Order::Embed);
    bench.order(Order::Embed);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    cpus.store(1, Ordering::SeqCst);
    // Until it was the one that asks.
    while bench.pool.shared.lock().active > 1 {
        let answer = bench.submit(&[3]);
        assert_eq!(bench.seen(), [3]);
        bench.order(Order::Embed);
        answer.await.unwrap().unwrap();
    }
    let alone = bench.submit(&[4]);
    assert_eq!(bench.seen(), [4]);
    let waiting = bench.submit(&[5]);
    assert_eq!(bench.pool.shared.lock().queue.texts(), 1);
    bench.order(Order::Embed);
    alone.await.unwrap().unwrap();
    assert_eq!(bench.seen(), [5]);
    bench.order(Order::Embed);
    waiting.await.unwrap().unwrap();
    assert_eq!(bench.pool.health(), Ok(()));
}

#[tokio::test]
async fn the_gauges_show_what_waits() {
    let bench = Bench::new(1);
    let running = bench.submit(&[1]);
    assert_eq!(bench.seen(), [1]);
    let waiting = bench.submit(&[2, 3]);
    bench.pool.refresh_gauges();
    assert_eq!(bench.metrics.embed_queue_depth.get(), 2);
    assert!(bench.metrics.embed_queue_oldest_age.get() > 0.0);
    bench.order(Order::Embed);
    bench.order(Order::Embed);
    running.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    bench.pool.refresh_gauges();
    assert_eq!(bench.metrics.embed_queue_depth.get(), 0);
    assert!(bench.metrics.embed_queue_oldest_age.get() <= 0.0);
    assert_eq!(bench.metrics.embed_batch_size.get_sample_count(), 2);
}

#[tokio::test]
async fn a_batch_that_the_device_has_no_memory_for_is_embedded_in_halves() {
    let bench = Bench::new(1);
    let answer = bench.submit(&[1, 2, 3, 4]);
    for (order, texts) in [
        (Order::RunOut, &[1, 2, 3, 4][..]),
        (Order::Embed, &[1, 2]),
        (Order::RunOut, &[3, 4]),
        (Order::Embed, &[3]),
        (Order::Embed, &[4]),
    ] {
        bench.order(order);
        assert_eq!(bench.seen(), texts);
    }
    assert_eq!(numbers(answer.await.unwrap()), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(bench.metrics.embed_batches_halved.get(), 2);
    // One text cannot be halved; the next one may fit.
    let answer = bench.submit(&[5]);
    bench.order(Order::RunOut);
    assert!(matches!(answer.await.unwrap(), Err(EmbedError::Failed(_))));
    bench.order(Order::Embed);
    assert_eq!(numbers(bench.submit(&[6]).await.unwrap()), [6.0]);
    bench.pool.health().unwrap();
}

#[tokio::test]
async fn a_device_that_is_lost_ends_its_worker_and_the_last_one_is_told_of() {
    let bench = Bench::new(2);
    let first = bench.submit(&[1]);
    bench.seen();
    bench.order(Order::Lose);
    assert!(matches!(first.await.unwrap(), Err(EmbedError::Failed(_))));
    let health = bench.pool.health().unwrap_err();
    assert!(health.contains("1 of 2") && health.contains("illegal memory access"), "{health}");
    let lost = bench.pool.lost();
    tokio::pin!(lost);
    assert!(futures::poll!(&mut lost).is_pending());
    let second = bench.submit(&[2]);
    bench.order(Order::Lose);
    second.await.unwrap().unwrap_err();
    assert!(lost.await.contains("illegal memory access"));
}

#[tokio::test]
async fn a_pool_that_is_closed_is_not_lost() {
    let bench = Bench::new(1);
    assert!(bench.pool.close(Duration::from_secs(10)));
    assert!(futures::poll!(std::pin::pin!(bench.pool.lost())).is_pending());
}

#[tokio::test]
async fn a_small_batch_is_computed_by_who_brings_it_if_no_other_is() {
    let bench = Bench::with(1, 1, None, Some(AtHome::takes(2)));
    assert_eq!(numbers(bench.submit(&[1, 2]).await.unwrap()), [1.5, 2.5]);
    let large = bench.submit(&[1, 2, 3]);
    assert_eq!(bench.seen(), [1, 2, 3]);
    let beside = bench.submit(&[4]);
    bench.order(Order::Embed);
    bench.order(Order::Embed);
    assert_eq!(numbers(large.await.unwrap()), [1.0, 2.0, 3.0]);
    assert_eq!(numbers(beside.await.unwrap()), [4.0]);
    // Somebody is about to bring more: what comes together is computed together.
    let other = bench.reserve(1);
    bench.order(Order::Embed);
    assert_eq!(numbers(bench.submit(&[5]).await.unwrap()), [5.0]);
    drop(other);
    assert_eq!(numbers(bench.submit(&[5]).await.unwrap()), [5.5]);
    assert_eq!(bench.count("embedded"), 8);
}

#[tokio::test]
async fn after_a_panic_workers_compute_small_batches_too() {
    let bench = Bench::with(1, 1, None, Some(AtHome::takes(2)));
    assert!(matches!(bench.submit(&[0]).await.unwrap(), Err(EmbedError::Failed(_))));
    bench.order(Order::Embed);
    assert_eq!(numbers(bench.submit(&[0]).await.unwrap()), [0.0]);
    bench.pool.health().unwrap();
}

#[tokio::test]
async fn a_call_that_is_refused_takes_no_batch_of_others_along() {
    let bench = Bench::with(1, 1, None, Some(AtHome::takes(2)));
    // The worker rests, so that what is not computed at once waits.
    bench.pool.shared.lock().active = 0;
    let room = bench.reserve(1);
    let first = bench.submit(&[1]);
    // Much more than there was room for.
    let many: Vec<u32> = (10..120).collect();
    assert!(matches!(bench.submit_to(room, &many), Err(EmbedError::Overloaded { .. })));
    let mut last = bench.submit(&[2]);
    assert_eq!(numbers(last.try_recv().unwrap()), [2.5]);
    assert_eq!(numbers(first.await.unwrap()), [1.5]);
}
