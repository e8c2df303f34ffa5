//! Writes into one pod's Postgres from within that pod, past every Service and network: whether it
//! takes writes tells whether it is a primary.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::until;

/// Each round a transaction; a commit that is not confirmed within a second is none. `date` is the
/// machine's clock, which both nodes share.
const LOOP: &str = r#"
while true; do
    timeout 1 psql -h /tmp -U postgres -d sextant -qc 'INSERT INTO e2e_probe VALUES (now())' >/dev/null 2>&1 && date +%s.%N
    sleep 0.1
done"#;
const TABLE: &str = "timeout 5 psql -h /tmp -U postgres -d sextant -qc 'CREATE TABLE IF NOT EXISTS e2e_probe (at timestamptz)' >/dev/null 2>&1 || true";

pub struct Probe {
    child: Child,
    reader: JoinHandle<()>,
    times: Arc<Mutex<Vec<f64>>>,
}

impl Probe {
    /// Begins, in the pod with this UID, which must be on this machine.
    pub async fn start(uid: &str) -> Self {
        let pid = until("a Postgres in the pod", Duration::from_secs(30), async || {
            let first = processes_of(uid, "postgres").into_iter().next();
            first.ok_or_else(|| uid.to_owned())
        })
        .await;
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &pid.to_string(),
                "--mount",
                "--net",
                "--pid",
                "--root",
                "--wd",
                "--",
            ])
            .args(["sh", "-c", &format!("{TABLE}; {LOOP}")])
            .env("PATH", "/usr/lib/postgresql/17/bin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("nsenter");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let times = Arc::new(Mutex::new(Vec::new()));
        let kept = times.clone();
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().extend(line.parse::<f64>());
            }
        });
        Self { child, reader, times }
    }

    /// Ends it: when its writes were confirmed, in seconds since 1970.
    pub async fn stop(mut self) -> Vec<f64> {
        self.child.kill().await.unwrap();
        // Whatever it ran last may hold the pipe open.
        self.reader.abort();
        self.times.lock().unwrap().clone()
    }
}

/// Those of a program, by the first 15 characters of its name, in a pod on this machine.
pub fn processes_of(uid: &str, program: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_one = |pid: &u32| {
        let read =
            |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("cgroup").contains(&format!("pod{uid}")) && read("comm").trim() == program
    };
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}
