//! The pages of docs/runbooks: what each is for is done to real stores, then it is followed,
//! command by command.
#![allow(clippy::unwrap_used, reason = "test code")]

mod cache;
mod milvus;
mod outbox;
mod page;
mod postgres;
mod reindex;
mod situation;

use self::page::Page;

/// One test a page. It has the page's name and gets the page to follow.
macro_rules! runbooks {
    ($($name:ident: $test:path,)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $test(Page::read(stringify!($name))).await;
        })*
    };
}

runbooks!(
    postgres_failover: postgres::failover,
    replica_rebuild: postgres::rebuild,
    redis_loss: cache::loss,
    cache_flush: cache::flush,
    milvus_loss: milvus::loss,
    stuck_outbox: outbox::stuck,
    reindex: reindex::reindex,
);

#[test]
fn every_page_is_followed_by_a_test_and_listed() {
    let list = std::fs::read_to_string(page::folder().join("README.md")).unwrap();
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(page::folder()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        // That of the alerts has no commands of its own; the tests of the chart look after it.
        if file != "README.md" && file != "alerts.md" {
            assert!(list.contains(&format!("({file})")), "{file} is not listed");
            pages.push(file.strip_suffix(".md").unwrap().replace('-', "_"));
        }
    }
    pages.sort();
    let mut tested = TESTED.to_vec();
    tested.sort_unstable();
    assert_eq!(pages, tested);
}
