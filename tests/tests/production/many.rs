//! Equal servers.

use reqwest::StatusCode;
use serde_json::json;
use sextant_tests::{Api, Server};

use super::{COLLECTION, collection, document, import, lines, until};
use sextant_tests::production::Stores;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_writes_the_others_find_list_update_and_delete() {
    let stores = Stores::start().await;
    let servers = stores.servers(3).await;
    collection(&servers, &json!({})).await;
    import(&servers[1].api, lines(0..20, 1)).await;
    let query = json!({"query": "word7", "limit": 3});
    for server in &servers {
        until("the document is found", async || {
            server.api.found(COLLECTION, &query).await.first().map(String::as_str) == Some("00007")
        })
        .await;
        assert_eq!(server.api.documents(COLLECTION).await.len(), 20);
        let lexical = json!({"query": "word7", "mode": "lexical"});
        assert_eq!(server.api.found(COLLECTION, &lexical).await, ["00007"]);
    }
    // An update through one is seen by a cached query of another.
    import(&servers[2].api, lines(7..8, 2)).await;
    let filtered = json!({"query": "word7",
        "filter": {"must": [{"field": "revision", "eq": "r2"}]}});
    for server in &servers {
        until("the update is found", async || {
            server.api.found(COLLECTION, &filtered).await == ["00007"]
        })
        .await;
    }
    let path = format!("/v1/collections/{COLLECTION}/documents/00007?wait=true");
    assert_eq!(servers[0].api.delete(&path).await.status, StatusCode::NO_CONTENT);
    for server in &servers {
        until("the document is gone", async || {
            !server.api.found(COLLECTION, &query).await.contains(&"00007".to_owned())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_accepted_at_once_and_its_operation_tells_when_it_is_done() {
    let stores = Stores::start().await;
    let servers = stores.servers(1).await;
    let api = &servers[0].api;
    collection(&servers, &json!({})).await;
    let accepted = api.import(COLLECTION, lines(0..300, 1)).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    let operation = accepted.body["operation"].as_str().unwrap().to_owned();
    let path = format!("/v1/operations/{operation}");
    until("the operation succeeds", async || api.get(&path).await.ok()["status"] == "succeeded")
        .await;
    let info = api.get(&path).await.ok();
    assert_eq!((&info["documents"], &info["pending"]), (&json!(300), &json!(0)));
    let missing = api.get("/v1/operations/no.such-operation").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_killed_lose_nothing_and_all_stores_agree_afterwards() {
    const DOCUMENTS: usize = 3_000;
    let stores = Stores::start().await;
    let mut servers = stores.servers(3).await;
    collection(&servers, &json!({})).await;
    for revision in 1..=2 {
        for part in 0..6 {
            let numbers = part * DOCUMENTS / 6..(part + 1) * DOCUMENTS / 6;
            let api = &servers[part % 3].api;
            let answer = api.import(COLLECTION, lines(numbers, revision)).await;
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
            if part % 2 == 1 {
                // One that is perhaps in the middle of a batch; its rows are taken by others.
                let killed = servers.remove(part % 3);
                killed.kill9().await;
                servers.insert(part % 3, stores.servers(1).await.remove(0));
            }
        }
    }
    agree(&servers[0], DOCUMENTS, 2).await;
}

/// Documents, and what the index knows of their ids and attributes, are the same.
async fn agree(server: &Server, documents: usize, revision: usize) {
    let api = &server.api;
    let question = json!({"query": "word", "facets": ["revision"], "limit": 1});
    let facets = async |api: &Api| api.search(COLLECTION, &question).await["facets"].clone();
    let wanted = json!({"revision": [{"value": format!("r{revision}"), "count": documents}]});
    until("the index has every document in its last version", async || facets(api).await == wanted)
        .await;
    let listed = api.documents(COLLECTION).await;
    let expected: Vec<_> = (0..documents).map(|n| document(n, revision)).collect();
    assert!(listed == expected, "{} documents are listed", listed.len());
    for number in (0..documents).step_by(97) {
        let question = json!({"query": format!("word{number}"), "mode": "lexical", "limit": 2});
        assert_eq!(api.found(COLLECTION, &question).await, [format!("{number:05}")]);
    }
}
