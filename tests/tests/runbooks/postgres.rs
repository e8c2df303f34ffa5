use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use sextant_tests::eventually;

use super::page::Page;
use super::situation::{DOCUMENTS, Situation};

pub async fn failover(page: Page) {
    let mut situation = Situation::new().await;
    let written = situation.sql("SELECT pg_current_wal_lsn()").await;
    let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
    eventually("the replica has everything", async || {
        (situation.stores.replica.ask(&has_it).await.unwrap() == "t").then_some(())
    })
    .await;
    situation.stores.primary.process().kill().await.unwrap();
    situation.leaves_alone(situation.stores.primary.port(), "primary").await;
    assert_eq!(situation.write(0..1, "").await, StatusCode::SERVICE_UNAVAILABLE);
    page.follow(|| situation.stores.replica.shell(), situation.variables()).await;
    situation.import(DOCUMENTS..DOCUMENTS + 5).await;
    situation.finds(DOCUMENTS + 5).await;
}

pub async fn rebuild(page: Page) {
    let mut situation = Situation::new().await;
    situation.stores.replica.process().kill().await.unwrap();
    std::fs::remove_file(situation.stores.replica.data().join("global/pg_control")).unwrap();
    situation.leaves_alone(situation.stores.replica.port(), "replica").await;
    situation.import(DOCUMENTS..DOCUMENTS + 5).await;
    let _daemon = Daemon(situation.stores.replica.data());
    page.follow(|| situation.stores.replica.shell(), situation.variables()).await;
    assert_eq!(situation.stores.replica.ask("SELECT pg_is_in_recovery()").await.unwrap(), "t");
    situation.finds(DOCUMENTS + 5).await;
}

/// A Postgres that a page started; it is no child of the test, and ends with this value.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = || {
            let file = std::fs::read_to_string(self.0.join("postmaster.pid")).ok()?;
            file.lines().next()?.parse::<i32>().ok()
        };
        let Some(pid) = pid() else { return };
        // SAFETY: a plain system call. It ends at once, and its sessions with it.
        unsafe { libc::kill(pid, libc::SIGQUIT) };
        let deadline = Instant::now() + sextant_tests::PATIENCE;
        while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}
