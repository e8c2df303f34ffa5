//! Several servers over real Redis, Postgres with a replica, and Milvus.

use std::path::Path;

use sextant_stack::milvus::MilvusLite;
use sextant_stack::postgres::Postgres;
use sextant_stack::redis::Redis;
use tempfile::TempDir;

use super::{Options, Server};

const DATABASE: &str = "sextant";

/// The stores, each of which a test may kill, freeze and start again.
pub struct Stores {
    pub redis: Redis,
    pub primary: Postgres,
    pub replica: Postgres,
    pub milvus: MilvusLite,
    _folder: TempDir,
}

impl Stores {
    pub async fn start() -> Self {
        let folder =
            tempfile::Builder::new().prefix("sextant-stores-").tempdir().expect("a folder");
        let place = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(&path).expect("a folder");
            path
        };
        open_to_all(folder.path());
        let database = async {
            let primary = Postgres::primary(&place("primary")).await.expect("a primary");
            primary.create_database(DATABASE).await.expect("a database");
            let replica = Postgres::replica(&primary, &place("replica")).await.expect("a replica");
            (primary, replica)
        };
        let (redis_folder, milvus_folder) = (place("redis"), place("milvus"));
        let (redis, (primary, replica), milvus) =
            tokio::join!(Redis::start(&redis_folder), database, MilvusLite::start(&milvus_folder));
        let (redis, milvus) = (redis.expect("a Redis"), milvus.expect("a Milvus"));
        Self { redis, primary, replica, milvus, _folder: folder }
    }

    /// Connection string of the servers' database.
    pub fn database_url(&self) -> String {
        self.primary.url(DATABASE)
    }

    /// How a server over these stores is started.
    pub fn options(&self, options: Options) -> Options {
        let primary = self.database_url();
        let replicas = serde_json::json!([self.replica.url(DATABASE)]).to_string();
        let endpoints = serde_json::json!([self.milvus.endpoint()]).to_string();
        options
            .set("documents.kind", "postgres")
            .set("postgres.primary", &primary)
            .set("postgres.replicas", &replicas)
            .set("postgres.probe_period_ms", "200")
            .set("index.kind", "milvus")
            .set("milvus.endpoints", &endpoints)
            .set("redis.url", &self.redis.url())
            .set("worker.lease_ms", "5000")
    }

    /// So many equal servers with pseudo-vectors.
    pub async fn servers(&self, count: usize) -> Vec<Server> {
        let starting = (0..count).map(|_| Server::start(self.options(Options::hash())));
        futures::future::join_all(starting).await
    }
}

/// Postgres runs as another user when the tests run as root.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("permissions");
}
