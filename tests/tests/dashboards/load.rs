//! Clients who search, write, embed and err.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sextant_tests::Api;
use tokio::task::JoinHandle;

use super::COLLECTION;

const CLIENTS: u64 = 3;
/// Between two requests of a client: the model and Milvus share two CPUs with Prometheus.
const PAUSE: Duration = Duration::from_millis(10);

/// Goes on in the background.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Searches for the names of these documents, the first ones more often.
    pub fn start(api: &Api, documents: &[Value]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS).map(|client| {
            let (api, stop, documents) = (api.clone(), Arc::clone(&stop), documents.to_vec());
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(client);
                while !stop.load(Ordering::Relaxed) {
                    // Whatever the answer is, the metrics tell of it.
                    let _ = api.send(request(&api, &documents, &mut random)).await;
                    tokio::time::sleep(PAUSE).await;
                }
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

fn request(api: &Api, documents: &[Value], random: &mut StdRng) -> RequestBuilder {
    // Uniform in the logarithm of the rank: Zipf's law with an exponent of one.
    let rank = (documents.len() as f64).powf(random.random::<f64>()) as usize - 1;
    let name = &documents[rank]["name"];
    let extra = format!("/v1/collections/{COLLECTION}/documents/extra");
    let search = |query: Value| {
        api.request(Method::POST, &format!("/v1/collections/{COLLECTION}/search")).json(&query)
    };
    match random.random_range(0..50) {
        0 => {
            let name = format!("extra {}", random.random_range(0..1000));
            api.request(Method::PUT, &extra).json(&json!({"id": "extra", "name": name}))
        }
        1 => api.request(Method::DELETE, &extra),
        2 => api.request(Method::POST, "/v1/embeddings").json(&json!({"input": [name, "squat"]})),
        3 => search(json!({"query": "zzzz", "mode": "lexical"})),
        4 => search(json!({"query": name, "limit": 0})),
        5 => api
            .request(Method::POST, "/v1/collections/nowhere/search")
            .json(&json!({"query": name})),
        6 => {
            let invalidate = json!({"query": name});
            api.request(Method::POST, "/v1/admin/cache/invalidate").json(&invalidate)
        }
        number => {
            let mode = ["dense", "lexical", "hybrid"][number % 3];
            search(json!({"query": name, "mode": mode}))
        }
    }
}
