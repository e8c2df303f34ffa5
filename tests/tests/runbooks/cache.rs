use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};
use sextant_tests::{Api, eventually};

use super::page::Page;
use super::situation::{COLLECTION, DOCUMENTS, Situation};

async fn cache(api: &Api, query: &str) -> Value {
    api.search(COLLECTION, &json!({"query": query})).await["cache"].clone()
}

/// Searches through one server and waits until another has the answer from Redis.
async fn shared(situation: &Situation) {
    let (one, other) = (situation.api(0), situation.api(1));
    let mut number = 0;
    eventually("an answer of one server is a hit in the other", async || {
        number += 1;
        let query = format!("shared{number}");
        cache(&one, &query).await;
        (cache(&other, &query).await["tier"] == "redis").then_some(())
    })
    .await;
}

pub async fn loss(page: Page) {
    let mut situation = Situation::new().await;
    shared(&situation).await;
    situation.stores.redis.process.kill().await.unwrap();
    situation.metric("sextant_redis_up", "0").await;
    let _daemon = Daemon(situation.stores.redis.port);
    page.follow(|| situation.stores.primary.shell(), situation.variables()).await;
    shared(&situation).await;
    situation.finds(DOCUMENTS).await;
}

/// A Redis that a page started; it is no child of the test, and ends with this value.
struct Daemon(u16);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(mut redis) = TcpStream::connect(("127.0.0.1", self.0)) {
            let _ = redis.write_all(b"SHUTDOWN NOSAVE\r\n"); // it has ended by itself
        }
    }
}

pub async fn flush(page: Page) {
    let situation = Situation::new().await;
    let (one, other) = (situation.api(0), situation.api(1));
    for query in ["squat", "word7"] {
        for api in [&one, &other] {
            cache(api, query).await;
            assert_eq!(cache(api, query).await["status"], "hit");
        }
    }
    page.follow(|| situation.stores.primary.shell(), situation.variables()).await;
    // A hit would be of the near tier or of Redis; both must have forgotten.
    eventually("the other server has forgotten", async || {
        (cache(&other, "word7").await["status"] == "miss").then_some(())
    })
    .await;
}
