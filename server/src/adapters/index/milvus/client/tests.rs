use std::sync::Mutex;

use super::*;
use crate::adapters::index::milvus::Consistency;

const TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
enum Fault {
    #[error("not for the moment")]
    NotNow,
    #[error("nobody is there")]
    Unreachable,
}

/// A client that is connected to nothing; what it is asked is in the work.
#[derive(Clone)]
struct Fake(String);

impl Client for Fake {
    type Error = Fault;

    async fn connect(endpoint: &str, _: &MilvusOptions) -> Result<Self, Fault> {
        Ok(Self(endpoint.to_owned()))
    }

    async fn load(self, _: String, _: &MilvusOptions) -> Result<(), Fault> {
        Ok(())
    }

    async fn health(self) -> Result<(), Fault> {
        Ok(())
    }

    fn is_unavailable(_: &Fault) -> bool {
        true
    }

    fn is_answer(fault: &Fault) -> bool {
        *fault == Fault::NotNow
    }

    fn is_not_loaded(_: &Fault) -> bool {
        false
    }

    fn is_too_large(_: &Fault) -> bool {
        false
    }
}

fn servers(endpoints: &[&str]) -> Servers<Fake> {
    let options = MilvusOptions {
        endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
        user: String::new(),
        password: String::new(),
        prefix: String::new(),
        replica_number: 1,
        timeout: TIMEOUT,
        connect_timeout: TIMEOUT,
        consistency: Consistency::Bounded,
    };
    Servers::new(&options, Arc::new(Metrics::new()))
}

/// Reads where the first `silent` calls get no answer: what came of it, and who was asked.
async fn read(servers: &Servers<Fake>, silent: usize) -> (Result<usize, IndexError>, Vec<String>) {
    let asked = Mutex::new(Vec::new());
    let answer = servers
        .read(HEDGES, "search", "exercises", |client: Fake| {
            let mut asked = asked.lock().unwrap();
            asked.push(client.0);
            let number = asked.len();
            async move {
                if number <= silent {
                    std::future::pending::<()>().await;
                }
                Ok(number)
            }
        })
        .await;
    (answer, asked.into_inner().unwrap())
}

#[tokio::test]
async fn a_read_without_an_answer_is_made_once_more_beside_the_first() {
    let servers = servers(&["a"]);
    for silent in 0..=HEDGES {
        let (answer, asked) = read(&servers, silent).await;
        assert_eq!(answer.unwrap(), silent + 1);
        assert_eq!(asked.len(), silent + 1);
    }
    assert_eq!(servers.metrics.milvus_hedges.get(), 3);
    let (answer, asked) = read(&servers, usize::MAX).await;
    assert!(matches!(answer, Err(IndexError::Unavailable { .. })));
    assert_eq!(asked.len(), 1 + HEDGES);
}

#[tokio::test]
async fn a_read_of_many_rows_is_not_made_once_more_beside_itself() {
    let servers = servers(&["a"]);
    let asked = AtomicUsize::new(0);
    let work = |_: Fake| {
        asked.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<Result<(), Fault>>()
    };
    let answer = servers.read(NO_HEDGES, "search", "exercises", work).await;
    assert!(matches!(answer, Err(IndexError::Unavailable { .. })));
    assert_eq!(asked.into_inner(), 1);
}

#[tokio::test]
async fn another_server_is_asked_beside_one_that_does_not_answer_and_is_preferred_then() {
    let servers = servers(&["a", "b"]);
    assert_eq!(read(&servers, 1).await.1, ["a", "b"]);
    assert_eq!(read(&servers, 0).await.1, ["b"]);
}

#[tokio::test]
async fn a_server_that_says_that_it_cannot_for_the_moment_is_asked_again_and_never_left_alone() {
    let servers = servers(&["a"]);
    let asked = AtomicUsize::new(0);
    let call = async |until: usize, fault| {
        asked.store(0, Ordering::Relaxed);
        let work = |_: Fake| {
            let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
            async move { if number < until { Err(fault) } else { Ok(number) } }
        };
        servers.read(HEDGES, "search", "exercises", work).await
    };
    assert_eq!(call(4, Fault::NotNow).await.unwrap(), 4);
    for _ in 0..2 * FAILURES {
        let answer = call(usize::MAX, Fault::NotNow).await;
        assert!(matches!(answer, Err(IndexError::Unavailable { .. })));
    }
    assert_eq!(call(1, Fault::NotNow).await.unwrap(), 1);
    // One that cannot be reached is, after a while.
    for _ in 0..FAILURES {
        call(usize::MAX, Fault::Unreachable).await.unwrap_err();
    }
    assert!(call(1, Fault::NotNow).await.is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_server_that_is_only_slow_gets_a_bounded_number_of_reads_more() {
    const READS: usize = 200;
    let servers = servers(&["a"]);
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slow = async |_: Fake| {
        most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        sleep(TIMEOUT.mul_f64(0.5)).await;
        running.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    };
    let reads = (0..READS).map(|_| servers.read(HEDGES, "search", "exercises", slow));
    for answer in futures::future::join_all(reads).await {
        answer.unwrap();
    }
    assert_eq!(most.into_inner(), READS + ALL_HEDGES);
}

#[test]
fn a_server_without_full_text_is_told_by_its_version() {
    for version in ["v2.3.5-lite", "2.4.15", "v2.2.0-rc.1", "1.0"] {
        assert!(too_old(version).is_some_and(|reason| reason.contains("`milvus.client`")));
    }
    for version in ["v2.5.0-beta", "2.6.1", "3.2.2", "v3.0.2-lite", "", "unknown", "v2"] {
        assert_eq!(too_old(version), None, "{version}");
    }
}
