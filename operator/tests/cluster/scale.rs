//! A thousand SearchDeployments. Not part of `make test`: it takes minutes.
//! `cargo test --release -p sextant-operator --test cluster -- --ignored --nocapture a_thousand`

use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::ListParams;
use serde_json::json;
use sextant_operator::crd::Phase;

use crate::support::{Operator, TestCluster};

const COUNT: usize = 1_000;

/// Seconds of CPU and MiB of memory, now and at most.
fn used(operator: &Operator) -> (f64, u64, u64) {
    let pid = operator.process.pid().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which may hold spaces: utime and stime are the 12th and 13th field.
    let rest: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = rest[11].parse::<f64>().unwrap() + rest[12].parse::<f64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (ticks / 100.0, kib("VmRSS") / 1_024, kib("VmHWM") / 1_024)
}

/// How many are hibernated.
async fn settled(cluster: &TestCluster) -> usize {
    let all = cluster.deployments().list(&ListParams::default()).await.unwrap();
    let phase = |object: &sextant_operator::crd::SearchDeployment| {
        object.status.as_ref().and_then(|status| status.phase)
    };
    all.iter().filter(|object| phase(object) == Some(Phase::Hibernated)).count()
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn a_thousand_converge_and_a_restart_writes_nothing() {
    let cluster = TestCluster::start().await;
    let mut first = cluster.operator().await;
    let begin = Instant::now();
    // Without pods, of which nobody could run so many.
    futures::stream::iter(0..COUNT)
        .for_each_concurrent(8, |number| {
            let cluster = &cluster;
            async move {
                let name = format!("gym-{number}");
                cluster.apply(&name, json!({"hibernate": true})).await.unwrap();
            }
        })
        .await;
    let applied = begin.elapsed();
    while settled(&cluster).await < COUNT {
        assert!(begin.elapsed() < Duration::from_mins(30), "{} settled", settled(&cluster).await);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let converged = begin.elapsed();
    let (cpu, memory, peak) = used(&first);
    let calls = first.metric("sextant_operator_api_calls_total").await;
    let changes = first.metric("sextant_operator_changes_total").await;
    let before = cluster.versions().await;
    println!(
        "{COUNT} applied after {applied:?}, converged after {converged:?}: {} objects",
        before.len()
    );
    println!("operator: {cpu:.1} s of CPU, {memory} MiB, at most {peak} MiB");
    println!(
        "{calls} calls = {:.1} a SearchDeployment, {changes} changes = {:.1}",
        calls as f64 / COUNT as f64,
        changes as f64 / COUNT as f64
    );
    first.process.stop(libc::SIGTERM, Duration::from_secs(20)).await.unwrap();
    let begin = Instant::now();
    let second = cluster.operator().await;
    let ready = begin.elapsed();
    while second.metric("sextant_operator_reconciles_total").await < COUNT as u64 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = begin.elapsed();
    let (cpu, memory, peak) = used(&second);
    let calls = second.metric("sextant_operator_api_calls_total").await;
    println!("restart: ready after {ready:?}, all reconciled after {all:?} with {calls} calls");
    println!("operator: {cpu:.1} s of CPU, {memory} MiB, at most {peak} MiB");
    assert_eq!(second.metric("sextant_operator_changes_total").await, 0, "{}", second.log());
    assert_eq!(cluster.versions().await, before);
}
