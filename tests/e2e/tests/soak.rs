//! Half an hour of load with a fault every minute.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use serde_json::Value;
use sextant_e2e::load::{Kind, Rates};

use crate::support::{NAMESPACE, Stack, figure, processes_of};

const RATES: Rates = Rates { searches_per_second: 10.0, writes_per_second: 5.0 };
const MINUTE: Duration = Duration::from_mins(1);
/// Of the first minutes, in which caches and pools fill, memory says nothing.
const WARM_UP: usize = 5;
const OPERATOR: &str = "-l app.kubernetes.io/name=sextant-operator";

#[derive(Clone, Copy, Debug)]
enum Fault {
    RedisDeleted,
    ServerKilled,
    PrimaryDeleted,
    PrimaryKilled,
    ReplicaDeleted,
    Switchover,
    MilvusKilled,
    NodeCutOff,
    NodeFrozen,
}

impl Fault {
    const EVERYWHERE: [Self; 7] = [
        Self::RedisDeleted,
        Self::ServerKilled,
        Self::PrimaryDeleted,
        Self::PrimaryKilled,
        Self::ReplicaDeleted,
        Self::Switchover,
        Self::MilvusKilled,
    ];
    const OF_NODES: [Self; 2] = [Self::NodeCutOff, Self::NodeFrozen];

    async fn strike(self, stack: &Stack) {
        let delete = async |pod: String, how: &str| {
            let command = format!("kubectl delete pod -n {NAMESPACE} {pod} {how} 2>/dev/null");
            stack.cluster.sh(&command).await;
        };
        const KILL: &str = "--grace-period=0 --force";
        match self {
            Self::RedisDeleted => stack.delete_pods("redis", "").await,
            // The oldest lives on: its memory is looked at.
            Self::ServerKilled => {
                delete(by_age(stack, NAMESPACE, API).await.pop().unwrap().0, KILL).await
            }
            Self::PrimaryDeleted => delete(stack.primary().await.unwrap(), "--wait=false").await,
            Self::PrimaryKilled => stack.kill_postgres(&stack.primary().await.unwrap()).await,
            Self::ReplicaDeleted => {
                delete(stack.synchronous_replica().await.unwrap(), "--wait=false").await;
            }
            Self::Switchover => stack.switchover().await,
            Self::MilvusKilled => stack.delete_pods("milvus", KILL).await,
            Self::NodeCutOff => for_a_while(stack, "cut", "mend").await,
            Self::NodeFrozen => for_a_while(stack, "freeze", "thaw").await,
        }
    }
}

const API: &str = "-l app.kubernetes.io/component=api";

async fn for_a_while(stack: &Stack, begin: &str, end: &str) {
    stack.cluster.second_node(begin).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    stack.cluster.second_node(end).await;
}

/// Names and UIDs of pods, the oldest first.
async fn by_age(stack: &Stack, namespace: &str, which: &str) -> Vec<(String, String)> {
    let list = format!("pods -n {namespace} {which} --sort-by=.metadata.creationTimestamp");
    let pods = stack.cluster.get(&list).await["items"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of = |pod: &Value| (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]));
    pods.iter().map(of).collect()
}

/// Resident memory of the program in a pod, in MiB.
fn memory(uid: &str, program: &str) -> u64 {
    let kibibytes = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    processes_of(uid, program).into_iter().filter_map(kibibytes).sum::<u64>() / 1024
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[tokio::test]
#[ignore = "takes half an hour: make e2e ARGS='--ignored'"]
async fn half_an_hour_of_faults_loses_nothing_and_leaves_memory_flat() {
    let (stack, _) = Stack::get().await;
    let minutes = std::env::var("SEXTANT_E2E_SOAK_MINUTES").map_or(30, |it| it.parse().unwrap());
    let mut faults = Fault::EVERYWHERE.to_vec();
    if stack.cluster.is_own {
        faults.extend(Fault::OF_NODES);
    }
    let server = by_age(&stack, NAMESPACE, API).await.remove(0).1;
    let operator = by_age(&stack, "sextant", OPERATOR).await.remove(0).1;
    let load = stack.load();
    load.start(RATES).await;
    let begin = Instant::now();
    let (mut servers, mut operators) = (Vec::new(), Vec::new());
    let (mut known, mut fresh, mut written) = ((0, 0), (0, 0), (0, 0));
    let mut longest = 0;
    for minute in 1..=minutes {
        let fault = *faults.choose(&mut rand::rng()).unwrap();
        fault.strike(&stack).await;
        stack.whole(3 * MINUTE).await;
        tokio::time::sleep((begin + minute * MINUTE).saturating_duration_since(Instant::now()))
            .await;
        let report = load.report().await;
        servers.push(memory(&server, "sextant-server"));
        operators.push(memory(&operator, "sextant-operato"));
        println!(
            "minute {minute}: {fault:?}: {report}; server {} MiB, operator {} MiB",
            servers.last().unwrap(),
            operators.last().unwrap()
        );
        for (sum, kind) in [
            (&mut known, Kind::CachedSearch),
            (&mut fresh, Kind::FreshSearch),
            (&mut written, Kind::Write),
        ] {
            let count = report.of(kind);
            *sum = (sum.0 + count.sent, sum.1 + count.failed);
        }
        longest = longest.max(report.of(Kind::Write).longest_gap_ms);
        let searches = report.searches();
        assert_eq!((searches.empty, searches.wrong), (0, 0), "{report}");
    }
    load.stop().await;
    let (acknowledged, missing) = load.lost().await;
    assert!(missing.is_empty(), "of {acknowledged} acknowledged writes: {missing:?}");
    figure(&format!(
        "{minutes} minutes with a fault each: {acknowledged} writes acknowledged, none lost; failed: {} of {} \
         known queries, {} of {} computed anew, {} of {} writes; at most {:.1} s without writes",
        known.1,
        known.0,
        fresh.1,
        fresh.0,
        written.1,
        written.0,
        longest as f64 / 1e3
    ));
    if !stack.cluster.is_own {
        return;
    }
    for (name, all) in [("server", servers), ("operator", operators)] {
        let (early, late) = all[WARM_UP.min(all.len() / 2)..]
            .split_at((all.len() - WARM_UP.min(all.len() / 2)) / 2);
        let (early, late) = (median(early), median(late));
        figure(&format!("memory of the {name}: {early} MiB, then {late} MiB"));
        assert!(late <= early + early / 10 + 2, "{name}: {all:?}");
    }
}
