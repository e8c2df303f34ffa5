use std::process::Command;

use super::page::Page;
use super::situation::{DOCUMENTS, Situation};

pub async fn loss(page: Page) {
    let mut situation = Situation::new().await;

    // Back without anything: the servers see to it by themselves.
    situation.stores.milvus.process().kill().await.unwrap();
    std::fs::remove_dir_all(situation.stores.milvus.data()).unwrap();
    situation.stores.milvus.restart().await.unwrap();
    situation.finds(DOCUMENTS).await;

    // Back with old data, which nothing but the page's step tells.
    let patience = sextant_tests::PATIENCE;
    situation.stores.milvus.process().stop(libc::SIGINT, patience).await.unwrap();
    copy(&situation, "old");
    situation.stores.milvus.restart().await.unwrap();
    situation.import(DOCUMENTS..2 * DOCUMENTS).await;
    situation.stores.milvus.process().kill().await.unwrap();
    std::fs::remove_dir_all(situation.stores.milvus.data()).unwrap();
    std::fs::rename(
        situation.stores.milvus.data().with_extension("old"),
        situation.stores.milvus.data(),
    )
    .unwrap();
    situation.stores.milvus.restart().await.unwrap();
    page.follow(|| situation.stores.primary.shell(), situation.variables()).await;
    situation.finds(2 * DOCUMENTS).await;
}

fn copy(situation: &Situation, name: &str) {
    let data = situation.stores.milvus.data();
    let copied = Command::new("cp").arg("-r").arg(&data).arg(data.with_extension(name)).status();
    assert!(copied.unwrap().success());
}
