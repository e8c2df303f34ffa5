use super::*;
use std::cell::Cell;
use std::rc::Rc;

#[derive(Clone, Default)]
struct Caller(Rc<Cell<bool>>);

impl Waiter for Caller {
    fn is_gone(&self) -> bool {
        self.0.get()
    }
}

const LIMITS: Limits = Limits { texts: 8, batch_texts: 3, batch_bytes: 1_000, in_flight: 4 };

struct Fixture {
    queue: Queue<Caller>,
    now: Instant,
}

impl Fixture {
    fn new(limits: Limits) -> Self {
        Self { queue: Queue::new(limits), now: Instant::now() }
    }

    fn push(&mut self, class: Class, seconds: u64, texts: &[&str]) -> Result<usize, Full> {
        let texts = texts.iter().map(|text| (Arc::from(*text), Caller::default())).collect();
        let deadline = self.now + Duration::from_secs(seconds);
        self.queue.push(texts, Urgency { class, deadline }, self.now)
    }

    fn take(&mut self) -> Option<Batch> {
        self.queue.take(self.now)
    }

    fn texts(&mut self) -> Vec<String> {
        let batch = self.take();
        batch.map(|batch| batch.texts.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }
}

use Class::{Bulk, Interactive};

#[test]
fn a_free_place_takes_what_is_there_the_earliest_deadline_first() {
    let mut fixture = Fixture::new(LIMITS);
    fixture.push(Interactive, 9, &["late"]).unwrap();
    fixture.push(Interactive, 1, &["soon", "too"]).unwrap();
    fixture.push(Interactive, 10, &["last"]).unwrap();
    assert_eq!(fixture.texts(), ["soon", "too", "late"]);
    assert_eq!(fixture.texts(), ["last"]);
    assert!(fixture.take().is_none());
}

#[test]
fn a_text_in_flight_is_not_asked_for_again() {
    let mut fixture = Fixture::new(LIMITS);
    assert_eq!(fixture.push(Interactive, 1, &["a", "b", "a"]), Ok(1));
    let batch = fixture.take().unwrap();
    assert_eq!(fixture.push(Bulk, 9, &["a"]), Ok(1));
    assert!(fixture.take().is_none());
    let waiters = fixture.queue.finish(&batch);
    assert_eq!(waiters.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(fixture.queue.in_flight(), 0);
}

#[test]
fn queries_go_before_documents_and_neither_takes_all_places() {
    let mut fixture = Fixture::new(Limits { texts: 100, batch_texts: 1, ..LIMITS });
    fixture.push(Bulk, 1, &["d0", "d1", "d2", "d3", "d4"]).unwrap();
    fixture.push(Interactive, 9, &["q0", "q1", "q2", "q3"]).unwrap();
    for expected in ["q0", "q1", "q2", "d0"] {
        assert_eq!(fixture.texts(), [expected]);
    }
    let mut fixture = Fixture::new(Limits { texts: 100, batch_texts: 1, ..LIMITS });
    fixture.push(Bulk, 1, &["d0", "d1", "d2", "d3", "d4"]).unwrap();
    for expected in ["d0", "d1", "d2"] {
        assert_eq!(fixture.texts(), [expected]);
    }
    assert!(fixture.take().is_none(), "one place is kept for queries");
    fixture.push(Interactive, 9, &["q"]).unwrap();
    assert_eq!(fixture.texts(), ["q"]);
}

#[test]
fn a_document_that_a_query_wants_too_goes_with_the_queries() {
    let mut fixture = Fixture::new(Limits { batch_texts: 1, ..LIMITS });
    fixture.push(Bulk, 1, &["d", "both"]).unwrap();
    fixture.push(Interactive, 9, &["both"]).unwrap();
    let batch = fixture.take().unwrap();
    assert_eq!((&*batch.texts[0], batch.class), ("both", Interactive));
}

#[test]
fn who_left_or_came_too_late_is_not_asked_for() {
    let mut fixture = Fixture::new(LIMITS);
    let gone = Caller::default();
    let deadline = fixture.now + Duration::from_secs(9);
    let urgency = Urgency { class: Interactive, deadline };
    fixture.queue.push(vec![("gone".into(), gone.clone())], urgency, fixture.now).unwrap();
    gone.0.set(true);
    fixture.push(Interactive, 1, &["late"]).unwrap();
    fixture.push(Interactive, 9, &["here"]).unwrap();
    fixture.now += Duration::from_secs(2);
    assert_eq!(fixture.texts(), ["here"]);
    assert_eq!(fixture.queue.waiting(), 0);
}

#[test]
fn the_queue_is_bounded_and_leaves_room_for_queries() {
    let mut fixture = Fixture::new(LIMITS);
    fixture.push(Bulk, 9, &["0", "1", "2", "3", "4", "5", "6"]).unwrap();
    assert_eq!(fixture.push(Bulk, 9, &["7"]), Err(Full(2)));
    fixture.push(Interactive, 1, &["7"]).unwrap();
    assert_eq!(fixture.push(Interactive, 1, &["8", "9"]), Err(Full(2)));
    assert_eq!(fixture.push(Interactive, 1, &["0"]), Ok(1), "it is there already");
    // What has expired gives its room back.
    fixture.now += Duration::from_secs(2);
    assert_eq!(fixture.push(Interactive, 3, &["8"]), Ok(0));
}

#[test]
fn a_batch_is_bounded_in_bytes_but_takes_one_text_of_any_size() {
    let mut fixture = Fixture::new(Limits { batch_bytes: 20, ..LIMITS });
    let long = "x".repeat(100);
    fixture.push(Interactive, 1, &[&long]).unwrap();
    fixture.push(Interactive, 2, &["0123456789", "abcdefghij"]).unwrap();
    assert_eq!(fixture.texts(), [long]);
    assert_eq!(fixture.texts(), ["0123456789"]);
    for text in ["plain", "\"quoted\" \\ \n\r\t\u{8}\u{c}", "\u{1}\u{1f}", "żółć 😀"] {
        assert_eq!(json_bytes(text), serde_json::to_string(text).unwrap().len() + 1);
    }
}

#[test]
fn who_has_time_left_when_a_request_is_given_up_waits_again() {
    let mut fixture = Fixture::new(LIMITS);
    fixture.push(Interactive, 1, &["a"]).unwrap();
    let batch = fixture.take().unwrap();
    fixture.push(Interactive, 9, &["a"]).unwrap();
    fixture.now += Duration::from_secs(2);
    let mut waiters = fixture.queue.finish(&batch);
    fixture.queue.put_back(&"a".into(), waiters.remove(0), fixture.now);
    let again = fixture.take().unwrap();
    assert_eq!(again.deadline, fixture.now + Duration::from_secs(7));
    assert_eq!(fixture.queue.finish(&again)[0].len(), 1);
}
