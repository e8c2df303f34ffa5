//! Two servers with API keys over real stores, and some documents.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sextant_server::auth::{Scope, add_to_file, generate};
use sextant_tests::production::Stores;
use sextant_tests::{Api, Options, Server, eventually};
use tempfile::TempDir;

use super::page::{self, Variables};

pub const COLLECTION: &str = "moves";
pub const DOCUMENTS: usize = 60;

pub struct Situation {
    pub servers: Vec<Server>,
    pub stores: Stores,
    keys: TempDir,
    key: String,
}

impl Situation {
    /// With [`DOCUMENTS`] documents that every search sees.
    pub async fn new() -> Self {
        let mut situation = Self::without_documents().await;
        situation.start_server("1").await;
        situation.start_server("1").await;
        situation.import(0..DOCUMENTS).await;
        situation
    }

    pub async fn without_documents() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let scopes = [Scope::Read, Scope::Write, Scope::Admin];
        let (key, entry) = generate("on call", &scopes);
        add_to_file(&keys.path().join("keys.yaml"), entry).unwrap();
        Self { servers: Vec::new(), stores: Stores::start().await, keys, key }
    }

    pub async fn start_server(&mut self, workers: &str) {
        let server = Server::start(self.options(workers)).await;
        server
            .api
            .with_key(&self.key)
            .put(&format!("/v1/collections/{COLLECTION}"), &json!({}))
            .await
            .ok();
        self.servers.push(server);
    }

    /// How a server is started. Each runs two models.
    pub fn options(&self, workers: &str) -> Options {
        let (one, other) = (self.stores.primary.port(), self.stores.replica.port());
        let primary = format!("postgres://sextant@127.0.0.1:{one},127.0.0.1:{other}/sextant");
        self.stores
            .options(Options::hash())
            .set("next_embedder.kind", "hash")
            .set("postgres.primary", &primary)
            .set("worker.concurrency", workers)
            .set("auth.keys_file", self.keys.path().join("keys.yaml").to_str().unwrap())
    }

    /// Speaks to one of the servers.
    pub fn api(&self, server: usize) -> Api {
        self.servers[server].api.with_key(&self.key)
    }

    /// Writes documents and waits until searches see them.
    pub async fn import(&self, numbers: std::ops::Range<usize>) {
        assert_eq!(self.write(numbers, "?wait=true").await, StatusCode::OK);
    }

    pub async fn write(&self, numbers: std::ops::Range<usize>, parameters: &str) -> StatusCode {
        let api = self.api(0);
        let path = format!("/v1/collections/{COLLECTION}/documents{parameters}");
        let lines: String = numbers.map(|n| document(n).to_string() + "\n").collect();
        let request = api.request(Method::POST, &path).body(lines);
        let request = request.header("content-type", "application/x-ndjson");
        api.send(request).await.unwrap().status
    }

    /// Waits until new searches of every server see so many documents, each by its word, too.
    pub async fn finds(&self, documents: usize) {
        let question = json!({"query": "word", "facets": ["kind"], "limit": 1});
        let counts = json!({"kind": [{"value": "move", "count": documents}]});
        let path = format!("/v1/collections/{COLLECTION}/search");
        for server in 0..self.servers.len() {
            let api = self.api(server);
            eventually("all documents are found", async || {
                let request = api.request(Method::POST, &path).header("cache-control", "no-cache");
                let answer = api.send(request.json(&question)).await.unwrap();
                (answer.body["facets"] == counts && answer.body["degraded"] == false).then_some(())
            })
            .await;
            for number in [0, documents / 2, documents - 1] {
                let question = json!({"query": format!("word{number}"), "mode": "lexical"});
                assert_eq!(api.found(COLLECTION, &question).await, [format!("{number:05}")]);
            }
            eventually("all documents are listed", async || {
                (api.documents(COLLECTION).await.len() == documents).then_some(())
            })
            .await;
        }
    }

    /// Waits until a metric of the first server has a value.
    pub async fn metric(&self, name: &str, value: &str) {
        let api = self.api(0);
        let line = format!("{name} {value}");
        eventually(&line, async || {
            let text = api.get("/metrics").await.text;
            text.lines().any(|found| found == line).then_some(())
        })
        .await;
    }

    /// Waits until the first server does not use a node of Postgres.
    pub async fn leaves_alone(&self, port: u16, role: &str) {
        let name = format!("sextant_postgres_usable{{node=\"127.0.0.1:{port}\",role=\"{role}\"}}");
        self.metric(&name, "0").await;
    }

    pub fn variables(&self) -> Variables {
        let stores = &self.stores;
        vec![
            ("SEXTANT", self.servers[0].url.clone()),
            ("API_KEY", self.key.clone()),
            ("COLLECTION", COLLECTION.to_owned()),
            ("PRIMARY_URL", stores.database(&stores.primary)),
            ("REPLICA_URL", stores.database(&stores.replica)),
            ("PGDATA", stores.replica.data().to_str().unwrap().to_owned()),
            ("POSTGRES_OPTIONS", stores.replica.options()),
            ("REDIS_URL", stores.redis.url()),
            ("REDIS_CONF", stores.redis.config().to_str().unwrap().to_owned()),
        ]
    }

    /// Runs a statement on the primary.
    pub async fn sql(&self, statement: &str) -> String {
        let script = "psql \"$PRIMARY_URL\" -Atc \"$STATEMENT\"";
        let mut variables = self.variables();
        variables.push(("STATEMENT", statement.to_owned()));
        page::run("psql", self.stores.primary.shell(), script, variables).await.trim().to_owned()
    }
}

pub fn document(number: usize) -> Value {
    json!({"id": format!("{number:05}"), "name": format!("word{number}"), "kind": "move"})
}
