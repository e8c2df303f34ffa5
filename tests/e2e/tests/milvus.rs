//! The index is lost for a while.

use std::time::Duration;

use sextant_e2e::load::Kind;

use crate::support::{NAMESPACE, Stack, figure, through};

#[tokio::test]
async fn known_queries_are_answered_while_milvus_is_away_and_it_comes_back_by_itself() {
    let (stack, _) = Stack::get().await;
    let before = stack.pods("milvus").await;
    let report = through(&stack, async || {
        let pod = &before[0].0;
        let kill =
            format!("kubectl delete pod -n {NAMESPACE} {pod} --grace-period=0 --force 2>/dev/null");
        stack.cluster.sh(&kill).await;
        stack.until_replaced("milvus", &before, Duration::from_mins(2)).await;
    })
    .await;
    let (known, fresh) = (report.of(Kind::CachedSearch), report.of(Kind::FreshSearch));
    figure(&format!(
        "Milvus killed: known queries: {} of {} failed; computed anew: {} of {} failed, {} degraded, longest gap {:.1} s; {report}",
        known.failed,
        known.sent,
        fresh.failed,
        fresh.sent,
        fresh.degraded,
        fresh.longest_gap_ms as f64 / 1e3,
    ));
    assert!(known.is_flawless(), "{report}");
}
