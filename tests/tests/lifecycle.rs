//! Starting, stopping and the bounds of the server's process.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::SinkExt;
use futures::channel::mpsc;
use reqwest::{Method, StatusCode};
use serde_json::json;
use sextant_tests::{Api, Options, Process, Server, cli, eventually, repository};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DOCUMENTS: &str = "/v1/collections/moves/documents";
/// How long something must not happen.
const SHORT: Duration = Duration::from_millis(300);

/// A server with pseudo-vectors and an empty collection `moves`.
async fn started(options: Options) -> Server {
    let server = Server::start(options).await;
    server.api.put("/v1/collections/moves", &json!({})).await.ok();
    server
}

/// Starts a server that must not start; what it says.
async fn refused(options: &Options) -> String {
    let (status, log) = Process::spawn(options).exit().await;
    assert_eq!(status.code(), Some(1), "{log}");
    log
}

/// A request of a connection that stays open, and the first line of its answer.
async fn ask(connection: &mut TcpStream) -> String {
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 1024];
    let read = connection.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).lines().next().unwrap_or_default().to_owned()
}

async fn add_key(file: &Path, name: &str) -> String {
    let arguments = ["keys", "add", "--name", name, "--scopes", "read", "--file"];
    let made = cli(arguments).arg(file).output().await.unwrap();
    assert!(made.status.success());
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::hash().data_dir(folder.path());
    let first = started(options.clone()).await;
    let told = refused(&options).await;
    assert!(told.contains("is used by another server; set `server.data_dir`"), "{told}");
    assert!(told.contains(folder.path().to_str().unwrap()), "{told}");
    // The first one is not disturbed, and its end frees the folder.
    first.api.put(&format!("{DOCUMENTS}/a"), &json!({"name": "squat"})).await.ok();
    first.kill9().await;
    let next = Server::start(options).await;
    assert_eq!(next.api.count("moves").await, 1);
}

#[tokio::test]
async fn a_port_that_is_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let told = refused(&Options::hash().set("server.listen", &address)).await;
    assert!(told.contains(&format!("cannot listen on {address}")), "{told}");
}

#[tokio::test]
async fn an_address_that_others_reach_is_refused_without_keys() {
    let told = refused(&Options::hash().set("server.listen", "0.0.0.0:0")).await;
    assert!(told.contains("`server.listen`") && told.contains("keys add"), "{told}");
}

#[tokio::test]
async fn while_it_starts_the_server_is_alive_and_not_ready() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // The import of the samples makes the start last long enough to be looked at.
    let options = Options::model()
        .set("server.listen", &free)
        .seed("exercises", &repository("deploy/samples/exercises.ndjson"));
    let process = Process::spawn(&options);
    let api = Api::new(&format!("http://{free}"));
    let early = eventually("an answer", async || {
        let asked = api.send(api.request(Method::GET, "/readyz")).await;
        asked.ok()
    })
    .await;
    assert_eq!(early.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(early.body["phase"], "starting");
    assert_eq!(api.get("/livez").await.status, StatusCode::OK);
    let search = api.get("/v1/collections/exercises/search?query=squat").await;
    assert_eq!((search.status.as_u16(), search.problem()), (503, "not-ready"));
    assert!(search.headers.contains_key("retry-after"));

    let server = process.ready().await;
    assert_eq!(server.api.get("/readyz").await.ok()["phase"], "ready");
    assert_eq!(server.api.search("exercises", &json!({"query": "squat"})).await["degraded"], false);
}

#[tokio::test]
async fn a_server_that_is_told_to_end_while_it_starts_ends() {
    let options =
        Options::model().seed("exercises", &repository("deploy/samples/exercises.ndjson"));
    let process = Process::spawn(&options);
    eventually("the model is loaded", async || {
        process.log().contains("model loaded").then_some(())
    })
    .await;
    let began = Instant::now();
    assert!(process.terminate().await.success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn sigterm_turns_readiness_off_and_lets_requests_in_flight_finish() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::hash().data_dir(folder.path());
    let server = started(options.clone().set("server.drain_delay_ms", "600000")).await;
    let api = server.api.clone();

    // An import whose end the test holds back is surely in flight.
    let (mut body, lines) = mpsc::channel::<Result<String, std::io::Error>>(1);
    let request = api
        .request(Method::POST, DOCUMENTS)
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(lines));
    let import = tokio::spawn({
        let api = api.clone();
        async move { api.send(request).await.unwrap().ok() }
    });
    body.send(Ok("{\"id\": \"a\", \"name\": \"squat\"}\n".to_owned())).await.unwrap();

    server.process.signal(libc::SIGTERM);
    let draining = eventually("readiness is off", async || {
        let answer = api.get("/readyz").await;
        (answer.status != StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!(draining.body["phase"], "draining");
    assert!(api.get("/v1/collections/moves").await.status.is_success(), "it still answers");
    server.process.signal(libc::SIGTERM); // asked twice, it waits no longer for load balancers
    let address = server.address().to_owned();
    eventually("no new connections", async || TcpStream::connect(&address).await.err()).await;

    body.send(Ok("{\"id\": \"b\", \"name\": \"lunge\"}\n".to_owned())).await.unwrap();
    drop(body);
    assert_eq!(import.await.unwrap()["upserted"], 2);
    let (status, log) = server.process.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("cut off"), "{log}");
    assert_eq!(Server::start(options).await.api.count("moves").await, 2);
}

#[tokio::test]
async fn a_request_that_does_not_finish_does_not_keep_the_server() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let server = started(Options::hash().set("server.drain_timeout_ms", "300")).await;
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        let head = format!(
            "POST {DOCUMENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\
             Content-Type: application/x-ndjson\r\nExpect: 100-continue\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 25];
        connection.read_exact(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 100"), "the server waits for the body");

        let began = Instant::now();
        server.process.signal(signal);
        let (status, log) = server.process.exit().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("cut off"), "{log}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn sigint_ends_an_idle_server_at_once() {
    let server = started(Options::hash()).await;
    let mut idle = TcpStream::connect(server.address()).await.unwrap();
    assert_eq!(ask(&mut idle).await, "HTTP/1.1 200 OK");
    let began = Instant::now();
    server.process.signal(libc::SIGINT);
    assert_eq!(server.process.exit().await.0.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn samples_are_imported_once_and_what_was_deleted_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::hash()
        .data_dir(folder.path())
        .seed("exercises", &repository("deploy/samples/exercises.ndjson"));
    let server = Server::start(options.clone()).await;
    let count = server.api.count("exercises").await;
    assert!(count > 100, "{count}");
    let path = "/v1/collections/exercises/documents/goblet-squat";
    assert_eq!(server.api.delete(path).await.status, StatusCode::NO_CONTENT);
    assert!(server.terminate().await.success());

    let server = Server::start(options).await;
    assert_eq!(server.api.count("exercises").await, count - 1);
    assert_eq!(server.api.get(path).await.status, StatusCode::NOT_FOUND);
    let found = server.api.found("exercises", &json!({"query": "goblet", "mode": "lexical"})).await;
    assert!(!found.contains(&"goblet-squat".to_owned()), "{found:?}");
}

#[tokio::test]
async fn a_new_collection_is_as_fresh_as_it_or_else_the_configuration_says() {
    let server = Server::start(Options::hash().set("cache.freshness", "fresh")).await;
    let made = server.api.put("/v1/collections/silent", &json!({})).await.ok();
    assert_eq!(made["schema"]["freshness"], "fresh");
    let schema = json!({"freshness": "bounded"});
    let made = server.api.put("/v1/collections/outspoken", &schema).await.ok();
    assert_eq!(made["schema"]["freshness"], "bounded");
}

#[tokio::test]
async fn a_collection_of_another_model_can_be_read_but_not_searched() {
    let folder = tempfile::tempdir().unwrap();
    let squat = json!({"id": "squat", "name": "Squat"});
    let server = started(Options::model().data_dir(folder.path())).await;
    server.api.put(&format!("{DOCUMENTS}/squat"), &squat).await.ok();
    assert!(server.terminate().await.success());

    let server = Server::start(Options::hash().data_dir(folder.path())).await;
    let api = &server.api;
    assert_eq!(api.get(&format!("{DOCUMENTS}/squat")).await.ok(), squat);
    assert_eq!(api.get("/v1/collections/moves").await.ok()["searchable"], false);
    let request = json!({"query": "squat"});
    for answer in [
        api.post("/v1/collections/moves/search", &request).await,
        api.get("/v1/collections/moves/search?query=squat").await,
        api.put(&format!("{DOCUMENTS}/squat"), &squat).await,
    ] {
        assert_eq!((answer.status.as_u16(), answer.problem()), (409, "model-mismatch"));
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains("all-MiniLM-L6-v2") && detail.contains("import"), "{detail}");
    }
    assert!(server.terminate().await.success());

    let server = Server::start(Options::model().data_dir(folder.path())).await;
    assert_eq!(server.api.found("moves", &request).await, ["squat"]);
}

#[tokio::test]
async fn keys_are_read_again_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let first = add_key(&file, "first").await;
    let server = Server::start(Options::hash().set("auth.keys_file", file.to_str().unwrap())).await;
    let status = async |key: &str| {
        let api = server.api.with_key(key);
        api.get("/v1/collections").await.status
    };
    assert_eq!(server.api.get("/v1/collections").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(status("sxt_unknown").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&first).await, StatusCode::OK);
    let write = server.api.with_key(&first).put("/v1/collections/moves", &json!({})).await;
    assert_eq!((write.status.as_u16(), write.problem()), (403, "forbidden"));

    let second = add_key(&file, "second").await;
    eventually("the new key opens", async || {
        (status(&second).await == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(status(&first).await, StatusCode::OK);

    std::fs::write(&file, "keys: []").unwrap();
    eventually("the withdrawn key opens no more", async || {
        (status(&first).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let log = server.process.log();
    assert!(!log.contains(&first) && !log.contains(&second), "a key is in the log: {log}");
}

#[tokio::test]
async fn a_client_that_does_not_send_its_head_is_disconnected() {
    let server = Server::start(Options::hash().set("server.header_timeout_ms", "200")).await;
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost: loc").await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(20), slow.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the connection stays open");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert!(server.api.get("/livez").await.status.is_success());
}

#[tokio::test]
async fn connections_above_the_bound_wait_until_another_ends() {
    let server = Server::start(Options::hash().set("server.max_connections", "2")).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        assert_eq!(ask(&mut connection).await, "HTTP/1.1 200 OK");
        open.push(connection);
    }
    let mut third = TcpStream::connect(server.address()).await.unwrap();
    let asked = ask(&mut third);
    tokio::pin!(asked);
    assert!(timeout(SHORT, &mut asked).await.is_err(), "it should wait for its turn");
    open.pop();
    let answer = timeout(Duration::from_secs(20), asked).await;
    assert_eq!(answer.expect("its turn"), "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::hash().data_dir(folder.path());
    let server = started(options.clone().max_file_kib(1024)).await;
    let document = |number: usize| {
        let description = format!("number{number} {}", "bend the knees slowly ".repeat(400));
        json!({"id": format!("d{number}"), "name": "squat", "description": description})
    };
    let write = async |number: usize| {
        let path = format!("{DOCUMENTS}/d{number}");
        server.api.put(&path, &document(number)).await
    };
    let mut acknowledged = Vec::new();
    let mut failures = 0;
    for number in 0.. {
        let answer = write(number).await;
        if answer.status.is_success() {
            acknowledged.push(number);
        } else {
            assert_eq!((answer.status.as_u16(), answer.problem()), (503, "storage"));
            assert!(answer.headers.contains_key("retry-after"));
            failures += 1;
        }
        assert!(number < 2_000, "the disk never becomes full");
        if failures == 5 {
            break;
        }
    }
    assert!(acknowledged.len() > 5, "{acknowledged:?}");
    // What there is can still be read and searched.
    assert!(server.api.get(&format!("{DOCUMENTS}/d0")).await.status.is_success());
    let request = json!({"query": "number0", "mode": "lexical"});
    assert_eq!(server.api.found("moves", &request).await, ["d0"]);
    server.terminate().await;

    let server = Server::start(options).await;
    for number in acknowledged {
        let path = format!("{DOCUMENTS}/d{number}");
        assert_eq!(server.api.get(&path).await.ok(), document(number));
    }
    server.api.put(&format!("{DOCUMENTS}/more"), &json!({"name": "more"})).await.ok();
    let documents = server.api.documents("moves").await;
    assert_eq!(server.api.count("moves").await, documents.len());
    for document in &documents {
        let word = document["description"].as_str().unwrap_or("more").split(' ').next().unwrap();
        let request = json!({"query": word, "mode": "lexical"});
        assert_eq!(server.api.found("moves", &request).await, [document["id"].as_str().unwrap()]);
    }
}
