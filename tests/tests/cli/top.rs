//! `top`, for programs and in a terminal.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::process::Stdio;
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sextant_tests::{Options, PATIENCE, Server, cli, eventually};
use tokio::time::timeout;

use super::{failed, lines, succeeded};

/// The cells of the line that begins with this heading.
#[track_caller]
fn cells<'t>(text: &'t str, heading: &str) -> Vec<&'t str> {
    let line = text.lines().find_map(|line| line.strip_prefix(heading));
    line.unwrap_or_else(|| panic!("{heading} is not shown\n{text}")).split_whitespace().collect()
}

#[tokio::test]
async fn top_shows_searches_and_how_many_of_them_the_cache_answers() {
    let server = Server::start(Options::hash()).await;
    server.api.put("/v1/collections/moves", &json!({})).await.ok();
    server.api.import("moves", lines(0..3)).await.ok();
    let query = json!({"query": "exercise number 1"});
    server.api.search("moves", &query).await;

    let shown = server.cli(&["top", "--once", "--interval", "0.5"]);
    tokio::pin!(shown);
    let output = loop {
        tokio::select! {
            output = &mut shown => break output,
            _ = server.api.search("moves", &query) => {}
        }
    };
    let text = succeeded(&output);
    assert!(!text.contains('\u{1b}'), "escape sequences although it is no terminal: {text:?}");
    assert!(cells(&text, "server ").contains(&"ready"), "{text}");
    let searches = cells(&text, "searches ");
    assert!(searches[0].replace(',', "").parse::<f64>().unwrap() > 0.0, "{text}");
    assert!(searches.contains(&"ms") || searches.contains(&"µs"), "no times: {text}");
    // All but the first search, which was before, find their answer.
    assert_eq!(cells(&text, "results ")[..2], ["100.0", "%"], "{text}");
    assert_eq!(
        cells(&text, "depends on "),
        ["documents", "ok", "embedder", "ok", "index", "ok"],
        "{text}"
    );
    for part in ["Redis", "Postgres", "Milvus", "outbox", "breakers"] {
        assert!(!text.contains(part), "{part} is not there: {text}");
    }
}

#[tokio::test]
async fn a_key_that_may_not_read_ends_top_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let file = file.to_str().unwrap();
    let key = async |name: &str, scope: &str| {
        let add = ["keys", "add", "--name", name, "--scopes", scope, "--file", file];
        succeeded(&cli(add).output().await.unwrap()).trim().to_owned()
    };
    let (reader, writer) = (key("reader", "read").await, key("writer", "write").await);
    let server = Server::start(Options::hash().set("auth.keys_file", file)).await;
    let top = async |key: &str| {
        let mut command = cli(["top", "--once", "--interval", "0.2"]);
        command.env("SEXTANT_URL", &server.url).env("SEXTANT_API_KEY", key);
        timeout(PATIENCE, command.output()).await.unwrap().unwrap()
    };
    for (key, status) in [("sxt_wrong", "401"), (writer.as_str(), "403")] {
        let told = failed(&top(key).await);
        assert!(told.starts_with(&format!("error: the server answered {status}")), "{told}");
    }
    succeeded(&top(&reader).await);
}

#[tokio::test]
async fn in_a_terminal_top_draws_again_tells_of_a_lost_server_and_leaves_no_trace() {
    let server = Server::start(Options::hash()).await;
    let (screen, output) = terminal();
    let mut top = cli(["top", "--interval", "0.2", "--url", server.url.as_str()])
        .stdout(Stdio::from(output))
        .spawn()
        .unwrap();
    let drawn = drawn(screen);
    let drawn = || String::from_utf8_lossy(&drawn.lock().unwrap()).into_owned();
    eventually("rates are drawn twice", async || {
        (drawn().matches("rates over").count() > 1).then_some(())
    })
    .await;
    server.kill9().await;
    eventually("the loss is told", async || drawn().contains("no answer for ").then_some(())).await;

    let pid = libc::pid_t::try_from(top.id().unwrap()).unwrap();
    // SAFETY: no memory is involved; the process is our child and not reaped yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let status = timeout(PATIENCE, top.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(drawn().starts_with("\u{1b}[?25l"), "the cursor is in the way");
    let shows_cursor = async || drawn().ends_with("\u{1b}[?25h").then_some(());
    eventually("the cursor is back", shows_cursor).await;
}

/// A terminal: what is on its screen, and what a program writes to.
fn terminal() -> (File, File) {
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut screen, mut output) = (-1, -1);
    // SAFETY: the pointers are to values of these types, or null where that is allowed.
    let opened = unsafe {
        libc::openpty(&raw mut screen, &raw mut output, null_mut(), null(), &raw const size)
    };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both have just been opened and have no other owner.
    unsafe { (File::from_raw_fd(screen), File::from_raw_fd(output)) }
}

/// Everything that was written to a terminal so far.
fn drawn(mut screen: File) -> Arc<Mutex<Vec<u8>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let drawn = Arc::clone(&all);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // An error says that nobody has the terminal open any more.
        while let Ok(read) = screen.read(&mut buffer)
            && read > 0
        {
            drawn.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    });
    all
}
