use std::ffi::OsString;

use serde_json::Value;
use sextant_tests::server_binary;
use tokio::process::Command;

use super::page::Page;
use super::situation::{COLLECTION, DOCUMENTS, Situation};

const MODEL: &str = "hashed-words";
const NEXT_MODEL: &str = "hashed-words-1";

pub async fn reindex(page: Page) {
    let situation = Situation::new().await;
    let shown = situation.options("1").cli(&["config", "show"]).output().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("sextant.yaml");
    std::fs::write(&config, shown.stdout).unwrap();
    let mut variables = situation.variables();
    variables.push(("SEXTANT_CONFIG", config.to_str().unwrap().to_owned()));
    variables.push(("MODEL", NEXT_MODEL.to_owned()));
    page.follow(shell, variables).await;
    situation.finds(DOCUMENTS).await;
    let path = format!("/v1/collections/{COLLECTION}");
    let collection: Value = situation.api(1).get(&path).await.ok();
    assert_eq!(collection["embedding"]["model"], MODEL);
}

/// With the server's program in its path.
fn shell() -> Command {
    let program = server_binary();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [program.parent().unwrap().to_owned()].into_iter();
    let path: OsString = std::env::join_paths(folders.chain(std::env::split_paths(&path))).unwrap();
    let mut shell = Command::new("/bin/bash");
    shell.env("PATH", path);
    shell
}
