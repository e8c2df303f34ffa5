//! A Redis that is a cache and nothing else: no volume, no replication.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment as Workload, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec};
use serde_json::json;

use super::meta::Component;
use super::pod::{self, Timing, config_volume, env, mount, read_only, scratch, secret_env};
use super::server::Connection;
use super::{Desired, Kind, Observed};
use crate::crd::{Quantity, Resources};
use crate::validate::Deployment;

pub const PORT: u16 = 6379;
/// Of the exporter.
pub const METRICS_PORT: u16 = 9121;
const CONFIG: &str = "/etc/redis/redis.conf";
/// Of the memory limit; the rest is for clients' buffers.
const SHARE_FOR_DATA: f64 = 0.75;

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    if !deployment.spec.cache.is_managed() {
        return;
    }
    let config = config_map(deployment);
    desired.add(Kind::Service, deployment.service(Component::Redis, &[("redis", PORT)]));
    desired.add(Kind::Deployment, workload(deployment, observed, &config));
    desired.add(Kind::ConfigMap, config);
}

/// How servers reach the cache; `None` when there is none.
pub fn connection(deployment: &Deployment) -> Option<Connection> {
    let cache = &deployment.spec.cache;
    if !cache.enabled() {
        return None;
    }
    if let Some(external) = &cache.external {
        let connection = Connection::new("redis", json!({"url": external.url}));
        return Some(
            connection.with_login(external.user.as_deref(), external.password_secret.as_ref()),
        );
    }
    let name = deployment.child_name(Component::Redis);
    let url = format!("redis://{}:{PORT}", deployment.host(&name));
    Some(Connection::new("redis", json!({"url": url})).with_secret(
        "password_file",
        name,
        "password",
    ))
}

fn config_map(deployment: &Deployment) -> ConfigMap {
    let cache = &deployment.spec.cache;
    let bytes = cache.memory().value().unwrap_or_default() * SHARE_FOR_DATA;
    let text = format!(
        "bind * -::*
port {PORT}
dir /data
save \"\"
appendonly no
maxmemory {}
maxmemory-policy {}
maxmemory-samples 5
lazyfree-lazy-eviction yes
tcp-keepalive 300
",
        bytes as u64,
        cache.eviction.as_str(),
    );
    ConfigMap {
        metadata: deployment.child(Component::Redis),
        data: Some(BTreeMap::from([("redis.conf".to_owned(), text)])),
        ..ConfigMap::default()
    }
}

fn workload(deployment: &Deployment, observed: &Observed, config: &ConfigMap) -> Workload {
    let name = deployment.child_name(Component::Redis);
    let hash = pod::config_hash(config, &observed.secret_hash([name.as_str()]));
    let memory = deployment.spec.cache.memory();
    let resources = Resources {
        requests: [("cpu".to_owned(), "100m".into()), ("memory".to_owned(), memory.clone())].into(),
        limits: [("memory".to_owned(), memory)].into(),
    };
    // An answer of LOADING or of a wrong password is not PONG. The password is in REDISCLI_AUTH.
    let ping = ["sh", "-c", "[ \"$(redis-cli -t 3 ping)\" = PONG ]"];
    let container = Container {
        // The last setting wins; a Secret does not belong into the ConfigMap or the arguments.
        command: Some(
            ["sh", "-c", "umask 077 && { cat \"$0\"; printf 'requirepass %s\\n' \"$REDISCLI_AUTH\"; } >/data/redis.conf && exec redis-server /data/redis.conf", CONFIG]
                .map(str::to_owned)
                .to_vec(),
        ),
        ports: Some(vec![pod::port("redis", PORT)]),
        env: Some(vec![secret_env("REDISCLI_AUTH", &name, "password")]),
        resources: Some(resources.or(&[])),
        volume_mounts: Some(vec![read_only(mount("config", "/etc/redis")), mount("data", "/data")]),
        readiness_probe: Some(Timing { period: 5, timeout: 5, failures: 2 }.exec(&ping)),
        liveness_probe: Some(Timing { period: 10, timeout: 5, failures: 6 }.tcp("redis")),
        ..Container::default()
    };
    let image = deployment.spec.images.redis().to_owned();
    let mut containers = vec![deployment.container("redis", image, container)];
    if deployment.spec.cache.has_exporter() {
        containers.push(exporter(deployment, &name));
    }
    let spec = PodSpec {
        containers,
        volumes: Some(vec![config_volume("config", &name), scratch("data", "64Mi")]),
        termination_grace_period_seconds: Some(10),
        ..PodSpec::default()
    };
    let scheduling = &deployment.spec.cache.scheduling;
    Workload {
        metadata: deployment.child(Component::Redis),
        spec: Some(DeploymentSpec {
            replicas: Some(i32::from(!deployment.spec.hibernate)),
            selector: deployment.selector(Component::Redis),
            revision_history_limit: Some(3),
            // Two would be two caches.
            strategy: Some(DeploymentStrategy {
                type_: Some("Recreate".to_owned()),
                rolling_update: None,
            }),
            template: deployment.pod_template(Component::Redis, scheduling, hash, spec),
            ..DeploymentSpec::default()
        }),
        ..Workload::default()
    }
}

/// Redis tells its metrics by commands alone: this asks it, and is scraped. It has no probe, so that the
/// cache is used whatever becomes of it.
///
/// # Source
/// <https://github.com/oliver006/redis_exporter#command-line-flags>
fn exporter(deployment: &Deployment, secret: &str) -> Container {
    let resources = Resources {
        limits: BTreeMap::from([("memory".to_owned(), Quantity::from("64Mi"))]),
        ..Resources::default()
    };
    let container = Container {
        ports: Some(vec![pod::port("metrics", METRICS_PORT)]),
        env: Some(vec![
            env("REDIS_ADDR", format!("redis://localhost:{PORT}")),
            secret_env("REDIS_PASSWORD", secret, "password"),
            // Else whoever reaches the port has it log in, with this password, wherever they say.
            env("REDIS_EXPORTER_DISABLE_SCRAPE_ENDPOINT", "true"),
            // What it uses itself would be taken for what Redis uses.
            env("REDIS_EXPORTER_REDIS_ONLY_METRICS", "true"),
        ]),
        resources: Some(resources.or(&[("cpu", "10m")])),
        ..Container::default()
    };
    deployment.container("exporter", deployment.spec.images.redis_exporter().to_owned(), container)
}
