//! Servers behind the load balancers that are shipped, which are stopped and killed under load.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use sextant_stack::proxy::{Haproxy, Nginx};
use sextant_tests::production::Stores;
use sextant_tests::{Api, Options, Server};

use super::load::Load;
use super::{collection, import, lines, until};

const CLIENTS: usize = 12;

fn addresses(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.address().parse().unwrap()).collect()
}

/// Stops one server and kills another while clients search; each comes back on its address.
async fn no_search_fails(balancer: SocketAddr, stores: &Stores, mut servers: Vec<Server>) {
    collection(&servers, &json!({})).await;
    import(&servers[0].api, lines(0..50, 1)).await;
    let api = Api::new(&format!("http://{balancer}"));
    until("the load balancer answers", async || api.get("/readyz").await.status == StatusCode::OK)
        .await;
    let load = Load::start(std::iter::repeat_n(&api, CLIENTS));
    load.answers(200).await;
    for place in 0..2 {
        let address = servers[place].address().to_owned();
        let server = servers.remove(place);
        if place == 0 {
            server.terminate().await;
        } else {
            server.kill9().await;
        }
        load.answers(200).await;
        let options = stores.options(Options::hash()).set("server.listen", &address);
        servers.insert(place, Server::start(options).await);
        load.answers(200).await;
    }
    let seen = load.stop().await;
    assert_eq!(seen.failed, []);
    assert_eq!(seen.degraded, 0);
    assert!(seen.longest < Duration::from_secs(10), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_search_fails_behind_nginx_while_servers_are_stopped_and_killed() {
    let (stores, folder) = (Stores::start().await, tempfile::tempdir().unwrap());
    let servers = stores.servers(3).await;
    let mut nginx = Nginx::start(folder.path(), &addresses(&servers)).await.unwrap();
    no_search_fails(nginx.address(), &stores, servers).await;
    nginx.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_search_fails_behind_haproxy_while_servers_are_stopped_and_killed() {
    let (stores, folder) = (Stores::start().await, tempfile::tempdir().unwrap());
    let servers = stores.servers(3).await;
    let mut haproxy = Haproxy::start(folder.path(), &addresses(&servers)).await.unwrap();
    no_search_fails(haproxy.address(), &stores, servers).await;
    haproxy.stop(Duration::from_secs(10)).await.unwrap();
}
