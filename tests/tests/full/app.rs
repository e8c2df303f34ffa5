//! Servers behind nginx, in the place of the one that the tests of the router call directly.

use std::path::PathBuf;
use std::sync::OnceLock;

use axum::body::Body;
use axum::http::{Method, Request};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sextant_stack::proxy::Nginx;
use sextant_tests::production::Stores;
use sextant_tests::{Options, PATIENCE, Server};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

#[path = "../../../server/tests/http/client.rs"]
mod client;
pub use client::*;

const SERVERS: usize = 3;

/// Servers without any collection.
pub struct TestApp {
    // In the order in which they end.
    nginx: Nginx,
    servers: Vec<Server>,
    stores: Stores,
    http: reqwest::Client,
    guarded: bool,
    _folder: TempDir,
    /// One at a time: each has a dozen processes.
    _turn: MutexGuard<'static, ()>,
}

/// How the servers differ from the default.
#[derive(Default)]
pub struct Setup {
    keys: Option<PathBuf>,
}

impl Setup {
    pub fn with_keys(keys: PathBuf) -> Self {
        Self { keys: Some(keys) }
    }
}

impl TestApp {
    pub async fn with(setup: Setup) -> Self {
        static TURN: OnceLock<Mutex<()>> = OnceLock::new();
        let turn = TURN.get_or_init(Mutex::default).lock().await;
        let (stores, folder) = (Stores::start().await, tempfile::tempdir().unwrap());
        let options = || match &setup.keys {
            Some(keys) => {
                stores.options(Options::hash()).set("auth.keys_file", keys.to_str().unwrap())
            }
            None => stores.options(Options::hash()),
        };
        let starting = (0..SERVERS).map(|_| Server::start(options()));
        let servers = futures::future::join_all(starting).await;
        let addresses: Vec<_> =
            servers.iter().map(|server| server.address().parse().unwrap()).collect();
        let nginx = Nginx::start(folder.path(), &addresses).await.unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(PATIENCE)
            .build()
            .unwrap();
        let guarded = setup.keys.is_some();
        Self { nginx, servers, stores, http, guarded, _folder: folder, _turn: turn }
    }

    /// Sends a request. After a change, waits until all servers know of it: each is asked in turn.
    pub async fn send(&self, mut request: Request<Body>) -> Answer {
        let changes = request.method() != Method::GET;
        if changes && request.uri().path().contains("/documents") {
            *request.uri_mut() = waiting(request.uri());
        }
        let (parts, body) = request.into_parts();
        let url = format!("http://{}{}", self.nginx.address(), parts.uri);
        let body = reqwest::Body::wrap_stream(body.into_data_stream());
        let sent = self.http.request(parts.method, url).headers(parts.headers).body(body);
        let response = sent.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap().to_vec();
        // Also after a refusal: an import may have been written in part.
        if changes && !self.guarded {
            self.agree().await;
        }
        Answer { status, headers, bytes }
    }

    /// Waits until every server tells of the collections what Postgres does.
    async fn agree(&self) {
        let database = self.stores.database(&self.stores.primary);
        let mut postgres = PgConnection::connect(&database).await.unwrap();
        let stored: Vec<(String, i64, String)> =
            sqlx::query_as("SELECT name, documents, schema::text FROM collections ORDER BY name")
                .fetch_all(&mut postgres)
                .await
                .unwrap();
        let stored: Vec<Value> = stored
            .into_iter()
            .map(|(name, documents, schema)| {
                let schema: Value = serde_json::from_str(&schema).unwrap();
                json!({"name": name, "documents": documents, "schema": schema})
            })
            .collect();
        for server in &self.servers {
            sextant_stack::until("a server to know", async || {
                let known = server.api.get("/v1/collections").await.ok();
                let known = known["collections"].as_array().unwrap().iter();
                let known: Vec<Value> = known
                    .map(|of| {
                        json!({"name": of["name"], "documents": of["documents"],
                            "schema": of["schema"]})
                    })
                    .collect();
                known == stored
            })
            .await
            .unwrap();
        }
    }
}
