//! What is logged, and what is not.

use reqwest::StatusCode;
use serde_json::{Value, json};
use sextant_tests::{Options, Server, cli, eventually, repository};

const LEVEL: &str = "/v1/admin/log-level";

/// Lines of a server's log that have a message.
fn lines(server: &Server, message: &str) -> Vec<Value> {
    let log = server.process.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["fields"]["message"] == message).collect()
}

fn gym() -> Options {
    Options::hash()
        .set("log.format", "json")
        .seed("exercises", &repository("deploy/samples/exercises.ndjson"))
}

#[tokio::test]
async fn the_level_is_changed_while_the_server_runs_and_texts_are_logged_from_debug_on() {
    let server = Server::start(gym()).await;
    let search = async |query: &str| server.api.search("exercises", &json!({"query": query})).await;
    assert_eq!(server.api.get(LEVEL).await.ok()["level"], "info");
    search("at info").await;
    server.api.put(LEVEL, &json!({"level": "sextant_server=debug"})).await.ok();
    search("at debug").await;
    assert_eq!(server.api.put(LEVEL, &json!({"level": "info"})).await.ok()["level"], "info");
    search("at info again").await;
    let searches = lines(&server, "search");
    let queries: Vec<_> = searches.iter().map(|line| &line["fields"]["query"]).collect();
    assert_eq!(queries, ["at debug"]);
    assert!(!server.process.log().contains("at info"));

    let wrong = server.api.put(LEVEL, &json!({"level": "a=b=c"})).await;
    assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(wrong.body["errors"][0]["path"], "level");
    assert_eq!(server.api.get(LEVEL).await.ok()["level"], "info");
}

#[tokio::test]
async fn calls_of_an_administrator_are_logged_with_their_key_at_any_level() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let mut keys = Vec::new();
    for (name, scopes) in [("reader", "read"), ("root", "read,admin")] {
        let add = ["keys", "add", "--name", name, "--scopes", scopes, "--file"];
        let made = cli(add).arg(&file).output().await.unwrap();
        keys.push(String::from_utf8(made.stdout).unwrap().trim().to_owned());
    }
    let options = gym().set("auth.keys_file", file.to_str().unwrap()).set("log.level", "error");
    let server = Server::start(options).await;
    let invalidate = async |key: &str| {
        let api = server.api.with_key(key);
        api.post("/v1/admin/cache/invalidate", &json!({"all": true})).await
    };
    assert_eq!(invalidate(&keys[0]).await.status, StatusCode::FORBIDDEN);
    let done = invalidate(&keys[1]).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text);
    let request_id = done.headers["x-request-id"].to_str().unwrap();

    let calls = lines(&server, "admin call");
    let fields = |place: usize| &calls[place]["fields"];
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert_eq!((&fields(0)["status"], &fields(0)["key"]), (&json!(403), &Value::Null));
    assert_eq!((&fields(1)["status"], &fields(1)["key"]), (&json!(200), &json!("root")));
    assert_eq!(fields(1)["path"], "/v1/admin/cache/invalidate");
    assert_eq!(fields(1)["peer"], "127.0.0.1");
    assert_eq!(fields(1)["request_id"], request_id);
    assert!(keys.iter().all(|key| !server.process.log().contains(key)));
    assert!(lines(&server, "cache invalidated").is_empty(), "the level is error");
}

#[tokio::test]
async fn a_slow_search_is_logged_with_its_stages_and_without_its_text() {
    let options = Options::model()
        .set("log.format", "json")
        .set("server.slow_request_ms", "1")
        .seed("exercises", &repository("deploy/samples/exercises.ndjson"));
    let server = Server::start(options).await;
    let mut asked = 0;
    let slow = eventually("a search takes more than a millisecond", async || {
        asked += 1;
        let query = format!("a long walk up a hill, number {asked}");
        server.api.search("exercises", &json!({"query": query})).await;
        lines(&server, "slow request").pop().filter(|line| !line["fields"]["cache"].is_null())
    })
    .await;
    let fields = &slow["fields"];
    assert_eq!(fields["cache"], "miss");
    for stage in ["embed_ms", "index_ms", "documents_ms"] {
        assert!(fields[stage].is_f64(), "{stage}: {fields}");
    }
    assert_eq!(fields["route"], "/v1/collections/{collection}/search");
    assert_eq!(fields["trace_id"].as_str().unwrap().len(), 32);
    assert!(!server.process.log().contains("a long walk"));
}
