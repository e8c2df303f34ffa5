//! The primary of Postgres is lost in every way, and moved on purpose. What no client may see: an
//! acknowledged write that is gone, two primaries.

use std::time::Duration;

use serde_json::json;
use sextant_e2e::load::{Kind, Report};

use crate::support::{AROUND, NAMESPACE, Probe, Stack, figure, through, until};

/// Waits until another pod than this is the primary.
async fn until_another_is_primary(stack: &Stack, old: &str) {
    until("another primary", Duration::from_mins(2), async || {
        let primary = stack.primary().await.ok_or("none")?;
        if primary == old { Err(primary) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn writes_go_on_soon_after_the_primarys_pod_is_deleted() {
    let (stack, _) = Stack::get().await;
    let primary = stack.primary().await.unwrap();
    let report = through(&stack, async || {
        stack
            .cluster
            .sh(&format!("kubectl delete pod -n {NAMESPACE} {primary} --wait=false"))
            .await;
        until_another_is_primary(&stack, &primary).await;
    })
    .await;
    figure(&format!(
        "primary's pod deleted: {:.1} s without writes; {report}",
        report.without_writes()
    ));
}

#[tokio::test]
async fn writes_go_on_soon_after_the_primarys_process_is_killed() {
    let (stack, _) = Stack::get().await;
    let primary = stack.primary().await.unwrap();
    let report = through(&stack, async || {
        stack.kill_postgres(&primary).await;
    })
    .await;
    figure(&format!(
        "Postgres killed with -9: {:.1} s without writes; {report}",
        report.without_writes()
    ));
    // The best operator's own tests allow 20 s.
    assert!(report.of(Kind::Write).longest_gap_ms < 20_000, "{report}");
}

#[tokio::test]
async fn writes_go_on_soon_after_the_primarys_pod_is_killed() {
    let (stack, _) = Stack::get().await;
    let primary = stack.primary().await.unwrap();
    let report = through(&stack, async || {
        stack
            .cluster
            .sh(&format!(
                "kubectl delete pod -n {NAMESPACE} {primary} --grace-period=0 --force 2>/dev/null"
            ))
            .await;
    })
    .await;
    figure(&format!(
        "primary's pod killed: {:.1} s without writes; {report}",
        report.without_writes()
    ));
}

/// The primary's node is lost by one command and comes back by another. The old primary is asked to
/// write all the time, in its own pod: it must have ceased when the new one begins.
async fn lose_the_node(stack: &Stack, lose: &str, back: &str) -> Report {
    stack.primary_on_the_second_node().await;
    let old = stack.primary().await.unwrap();
    let pods = stack.pods("postgres").await;
    let mut probes = Vec::new();
    for (name, uid) in &pods {
        probes.push((name.clone(), Probe::start(uid).await));
    }
    let report = through(stack, async || {
        stack.cluster.second_node(lose).await;
        until_another_is_primary(stack, &old).await;
        tokio::time::sleep(AROUND).await;
        stack.cluster.second_node(back).await;
    })
    .await;
    let mut last_of_old = None;
    let mut first_of_new = None;
    for (name, probe) in probes {
        let successes = probe.stop().await;
        if name == old {
            last_of_old = successes.last().copied();
        } else {
            first_of_new = successes.first().copied();
        }
    }
    let (last, first) = (last_of_old.expect("it wrote"), first_of_new.expect("it writes"));
    assert!(
        last < first,
        "two primaries: the old one wrote {:.1} s after the new one began",
        last - first
    );
    figure(&format!(
        "{lose}: the old primary ceased {:.1} s before the new one began",
        first - last
    ));
    report
}

#[tokio::test]
async fn the_primary_moves_when_its_node_is_cut_off_and_ceases_before_the_new_one_begins() {
    let (stack, _) = Stack::get().await;
    if !stack.cluster.is_own {
        println!("not run: only nodes of `make cluster-up` can be cut off");
        return;
    }
    let report = lose_the_node(&stack, "cut", "mend").await;
    figure(&format!(
        "primary's node cut off: {:.1} s without writes; {report}",
        report.without_writes()
    ));
    assert!(report.of(Kind::Write).longest_gap_ms < 30_000, "{report}");
}

#[tokio::test]
async fn the_primary_moves_when_its_node_is_frozen_and_the_old_one_does_not_come_back_as_such() {
    let (stack, _) = Stack::get().await;
    if !stack.cluster.is_own {
        println!("not run: only nodes of `make cluster-up` can be frozen");
        return;
    }
    let report = lose_the_node(&stack, "freeze", "thaw").await;
    figure(&format!(
        "primary's node frozen: {:.1} s without writes; {report}",
        report.without_writes()
    ));
    assert!(report.of(Kind::Write).longest_gap_ms < 30_000, "{report}");
}

#[tokio::test]
async fn a_planned_switchover_and_new_settings_fail_no_read_and_hold_writes_up_briefly() {
    let (stack, _) = Stack::get().await;
    // One that needs a restart, replicas first, and so a switchover.
    let report = through(&stack, async || {
        stack.patch(&json!({"postgres": {"parameters": {"max_connections": "120"}}})).await;
    })
    .await;
    figure(&format!(
        "max_connections changed: {:.1} s without writes; {report}",
        report.without_writes()
    ));
    assert_eq!(report.searches().failed, 0, "{report}");
    assert!(report.of(Kind::Write).longest_gap_ms < 5_000, "{report}");
    let primary = stack.primary().await.unwrap();
    let report = through(&stack, async || {
        stack.switchover().await;
        until_another_is_primary(&stack, &primary).await;
    })
    .await;
    figure(&format!("switchover: {:.1} s without writes; {report}", report.without_writes()));
    assert_eq!(report.searches().failed, 0, "{report}");
    assert!(report.of(Kind::Write).longest_gap_ms < 5_000, "{report}");
}
