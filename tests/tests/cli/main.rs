//! The command line, against a running server and without one.
#![allow(clippy::unwrap_used, reason = "test code")]

mod top;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sextant_tests::{Options, Server, cli, eventually, repository};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, stderr(output));
    stdout(output)
}

#[track_caller]
fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}\n{}", output.status, stdout(output));
    stderr(output)
}

fn document(number: usize) -> Value {
    json!({"id": format!("d{number:05}"), "name": format!("exercise number {number}")})
}

fn lines(numbers: impl Iterator<Item = usize>) -> String {
    numbers.fold(String::new(), |mut text, number| {
        writeln!(text, "{}", document(number)).unwrap();
        text
    })
}

/// A server, and a folder for files and for the state of the command line.
struct Place {
    server: Server,
    folder: TempDir,
}

impl Place {
    async fn new() -> Self {
        Self { server: Server::start(Options::hash()).await, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn import(&self, file: &Path) -> Command {
        let mut command = cli(["import", "--collection", "moves"]);
        command
            .arg(file)
            .env("SEXTANT_URL", &self.server.url)
            .env("XDG_STATE_HOME", self.folder.path().join("state"));
        command
    }

    async fn has_exactly(&self, numbers: impl Iterator<Item = usize>) {
        let documents = self.server.api.documents("moves").await;
        assert!(
            documents.iter().cloned().eq(numbers.map(document)),
            "{} are there",
            documents.len()
        );
        assert_eq!(self.server.api.count("moves").await, documents.len());
    }

    /// Progress that an unfinished import has left.
    fn left_behind(&self) -> usize {
        self.states().len()
    }

    /// Whether an import has kept how far it is, and not only begun to write that down.
    fn is_kept(&self) -> bool {
        self.states().iter().any(|path| path.extension().is_some_and(|ending| ending == "json"))
    }

    fn states(&self) -> Vec<PathBuf> {
        let folder = self.folder.path().join("state/sextant/imports");
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[tokio::test]
async fn lines_an_array_and_the_standard_input_are_imported_alike() {
    let place = Place::new().await;
    let file = place.file("lines.ndjson", &lines(0..300));
    let told = succeeded(&place.import(&file).output().await.unwrap());
    assert_eq!(told, "300 documents written to moves, 300 embedded, 0 unchanged\n");

    let array: Vec<Value> = (200..400).map(document).collect();
    let file = place.file("array.json", &serde_json::to_string_pretty(&array).unwrap());
    let told = succeeded(&place.import(&file).output().await.unwrap());
    assert_eq!(told, "200 documents written to moves, 100 embedded, 100 unchanged\n");

    let mut command = place.import(Path::new("-"));
    let mut importing = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = importing.stdin.take().unwrap();
    input.write_all(lines(400..410).as_bytes()).await.unwrap();
    drop(input);
    let told = succeeded(&importing.wait_with_output().await.unwrap());
    assert_eq!(told, "10 documents written to moves, 10 embedded, 0 unchanged\n");

    place.has_exactly(0..410).await;
    assert_eq!(place.left_behind(), 0);
}

#[tokio::test]
async fn a_broken_document_is_named_and_the_corrected_file_goes_on() {
    let place = Place::new().await;
    // Far enough from the start for several requests to be written before it.
    let (broken, all) = (2_500, 3_000);
    for (wrong, told_so) in [
        ("{\"id\": 7, \"name\": \"no\"}", "`[2500].id` must be a string"),
        ("{\"id\": \"d02500\", \"name\": ", "document [2500] is not JSON"),
    ] {
        let text = lines(0..broken) + wrong + "\n" + &lines(broken + 1..all);
        let file = place.file("moves.ndjson", &text);
        let told = failed(&place.import(&file).output().await.unwrap());
        assert!(told.contains(told_so), "{told}");
        assert!(told.contains("documents were written before"), "{told}");
        let kept = place.server.api.count("moves").await;
        assert!((1..=broken).contains(&kept), "{kept}");
        place.has_exactly(0..kept).await;
    }
    let file = place.file("moves.ndjson", &lines(0..all));
    succeeded(&place.import(&file).output().await.unwrap());
    place.has_exactly(0..all).await;
    assert_eq!(place.left_behind(), 0);
}

#[tokio::test]
async fn an_import_whose_command_is_killed_goes_on_where_it_was() {
    let place = Place::new().await;
    let all = 20_000;
    let file = place.file("moves.ndjson", &lines(0..all));
    let mut importing = place.import(&file).stderr(Stdio::null()).spawn().unwrap();
    eventually("a part is written", async || place.is_kept().then_some(())).await;
    importing.kill().await.unwrap();
    assert!(place.is_kept(), "it had ended already");

    let resumed = place.import(&file).output().await.unwrap();
    let told = stderr(&resumed);
    assert!(told.contains("resuming after "), "{told}");
    let said = succeeded(&resumed);
    let sent: usize = said.split(' ').next().unwrap().parse().unwrap();
    assert!(sent < all, "everything was sent again: {said}");
    place.has_exactly(0..all).await;
    assert_eq!(place.left_behind(), 0);
}

#[tokio::test]
async fn an_import_whose_server_is_killed_goes_on_on_the_next_one() {
    let data = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = Options::hash().data_dir(data.path()).set("server.listen", &free.to_string());
    let server = Server::start(options.clone()).await;
    let mut place = Place { server, folder: tempfile::tempdir().unwrap() };
    let all = 20_000;
    let file = place.file("moves.ndjson", &lines(0..all));
    let importing = place.import(&file).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    eventually("a part is written", async || place.is_kept().then_some(())).await;
    place.server.process.signal(libc::SIGKILL);
    let told = failed(&importing.unwrap().wait_with_output().await.unwrap());
    assert!(told.contains("the same command goes on from there"), "{told}");

    place.server = Server::start(options).await;
    let resumed = place.import(&file).output().await.unwrap();
    assert!(stderr(&resumed).contains("resuming after "), "{}", stderr(&resumed));
    succeeded(&resumed);
    place.has_exactly(0..all).await;
}

#[tokio::test]
async fn search_prints_hits_for_people_and_for_programs() {
    let server = Server::start(
        Options::model().seed("exercises", &repository("deploy/samples/exercises.ndjson")),
    )
    .await;
    let query = "goblet squat";
    let text = succeeded(&server.cli(&["search", query, "--limit", "3"]).await);
    assert!(text.starts_with("  1. Goblet Squat  0.") && text.contains("[goblet-squat]"), "{text}");
    assert!(text.contains("3 hits in ") && text.contains("cache miss"), "{text}");
    assert!(!text.contains('\u{1b}'), "escape sequences although it is no terminal: {text:?}");

    let filter = r#"{"must":[{"field":"level","eq":"beginner"}]}"#;
    let arguments = ["search", query, "--mode", "hybrid", "--filter", filter, "--json"];
    let found: Value = serde_json::from_str(&succeeded(&server.cli(&arguments).await)).unwrap();
    assert_eq!(found["mode"], "hybrid");
    let hits = found["hits"].as_array().unwrap();
    assert!(!hits.is_empty() && hits.iter().all(|hit| hit["document"]["level"] == "beginner"));

    let told = failed(&server.cli(&["search", query, "--filter", "{"]).await);
    assert!(told.contains("--filter is not JSON"), "{told}");
    let told = failed(&server.cli(&["search", query, "--collection", "nothing"]).await);
    assert!(told.contains("there is no collection \"nothing\""), "{told}");

    let vectors = succeeded(&server.cli(&["embed", "a squat", "a lunge"]).await);
    let vectors: Vec<Vec<f32>> =
        vectors.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(vectors.iter().map(Vec::len).collect::<Vec<_>>(), [384, 384]);
    for vector in vectors {
        let norm: f32 = vector.iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    }
}

#[tokio::test]
async fn without_a_server_every_client_command_says_so() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let file = repository("deploy/samples/exercises.ndjson");
    let file = file.to_str().unwrap();
    let import = ["import", file, "--collection", "moves"];
    for arguments in [&["search", "squat"][..], &["embed", "squat"], &["top", "--once"], &import] {
        let output = cli(arguments).args(["--url", &url]).output().await.unwrap();
        let told = failed(&output);
        assert!(told.contains(&format!("no server answers at {url}")), "{told}");
    }
}

#[tokio::test]
async fn a_key_is_made_once_and_never_seen_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let name = file.to_str().unwrap();
    let add = ["keys", "add", "--name", "web", "--scopes", "read,write", "--file", name];
    let made = cli(add).output().await.unwrap();
    let key = succeeded(&made).trim().to_owned();
    assert!(key.starts_with("sxt_") && stderr(&made).contains("shown once"), "{}", stderr(&made));
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&key));
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let told = failed(&cli(add).output().await.unwrap());
    assert!(told.contains("a key named \"web\" already"), "{told}");

    let server = Server::start(Options::hash().set("auth.keys_file", name)).await;
    server.api.with_key(&key).put("/v1/collections/moves", &json!({})).await.ok();
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, format!("{key}\n")).unwrap();
    let search = ["search", "squat", "--collection", "moves"];
    let told = failed(&server.cli(&search).await);
    assert!(told.contains("401"), "{told}");
    let by_file = [&search[..], &["--api-key-file", key_file.to_str().unwrap()]].concat();
    succeeded(&server.cli(&by_file).await);
    let mut by_variable = cli(search);
    by_variable.env("SEXTANT_URL", &server.url).env("SEXTANT_API_KEY", &key);
    succeeded(&by_variable.output().await.unwrap());

    // A command at work, as everybody on the machine may look at it.
    let waiting = cli(["import", "-", "--collection", "moves"])
        .env("SEXTANT_URL", &server.url)
        .env("SEXTANT_API_KEY", &key)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let path = format!("/proc/{}/cmdline", waiting.id().unwrap());
    let arguments = eventually("the process list has it", async || {
        std::fs::read(&path).ok().filter(|arguments| !arguments.is_empty())
    })
    .await;
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    assert!(arguments.contains("import") && !arguments.contains(&key), "{arguments}");
    let help = succeeded(&cli(["search", "--help"]).output().await.unwrap());
    assert!(!help.contains("--api-key "), "an option that takes the key itself: {help}");
    assert!(!server.process.log().contains(&key));
}

#[tokio::test]
async fn config_check_names_what_is_wrong_and_the_nearest_right_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sextant.yaml");
    let check = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        cli(["config", "check", "--config"]).arg(&file).output().await.unwrap()
    };
    let good = check("server:\n  max_connections: 7\n").await;
    assert_eq!(succeeded(&good), "the configuration is valid\n");
    let told = failed(&check("server:\n  max_conections: 7\n").await);
    assert!(told.contains("`server.max_conections`"), "{told}");
    assert!(told.contains("\"max_connections\""), "{told}");
    assert!(told.contains(file.to_str().unwrap()), "{told}");
    let told = failed(&check("server: [\n").await);
    assert!(told.contains("is not valid YAML"), "{told}");
    let mut command = cli(["config", "check"]);
    let told = failed(&command.env("SEXTANT_CACHE__RESULT_TTL", "1").output().await.unwrap());
    assert!(told.contains("results_ttl_seconds"), "{told}");
    let missing = folder.path().join("missing.yaml");
    let output = cli(["config", "check", "--config"]).arg(&missing).output().await.unwrap();
    assert!(failed(&output).contains(missing.to_str().unwrap()));
}

#[tokio::test]
async fn config_show_prints_what_is_in_force_and_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sextant.yaml");
    std::fs::write(&file, "server:\n  max_connections: 7\n").unwrap();
    let mut command = cli(["config", "show", "--config"]);
    let output = command.arg(&file).env("SEXTANT_LOG__LEVEL", "warn").output().await.unwrap();
    let shown = succeeded(&output);
    assert!(shown.contains("max_connections: 7") && shown.contains("level: warn"), "{shown}");
    assert!(shown.contains("request_timeout_ms: 10000"), "{shown}");
    // What is shown is itself a configuration, and the same.
    std::fs::write(&file, &shown).unwrap();
    let again = cli(["config", "show", "--config"]).arg(&file).output().await.unwrap();
    assert_eq!(succeeded(&again), shown);

    let defaults = succeeded(&cli(["config", "show", "--default"]).output().await.unwrap());
    assert_eq!(defaults, std::fs::read_to_string(repository("server/sextant.yaml")).unwrap());
}

#[tokio::test]
async fn the_description_of_the_interface_is_the_one_in_the_repository_and_of_the_server() {
    let text = succeeded(&cli(["openapi"]).output().await.unwrap());
    let printed: Value = serde_json::from_str(&text).unwrap();
    if let Ok(kept) = std::fs::read_to_string(repository("docs/openapi.json")) {
        assert_eq!(text, kept, "docs/openapi.json is not up to date: make openapi");
    }
    let server = Server::start(Options::hash()).await;
    assert_eq!(server.api.get("/openapi.json").await.ok(), printed);
}

#[tokio::test]
async fn completions_know_every_command() {
    let commands = ["serve", "import", "search", "embed", "top", "keys", "config", "openapi"];
    let mut scripts = BTreeSet::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeded(&cli(["completions", shell]).output().await.unwrap());
        for command in commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        scripts.insert(script);
    }
    assert_eq!(scripts.len(), 3);
    let unknown = cli(["completions", "csh"]).output().await.unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{}", stderr(&unknown));
}
