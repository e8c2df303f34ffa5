//! The settings of Patroni and of its Postgres.
//!
//! # Source
//! <https://patroni.readthedocs.io/en/latest/patroni_configuration.html>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::{
    CONFIG, DATA, DATABASE, DISK_SPACE, PATRONI_PORT, PORT, PRIMARY, REPLICA, ROLE_LABEL,
    SCOPE_LABEL, TLS, scope,
};
use crate::components::certificates::{CERTIFICATE, KEY};
use crate::components::meta::{Component, NAME};
use crate::crd::{Storage, Synchronous};
use crate::validate::Deployment;

/// File of a data folder that was made to the end. Copies have it too.
const COMPLETE: &str = "sextant-complete";
const MIB: f64 = 1_048_576.0;

/// Settings of Postgres that replication and failover depend on.
const OWN_PARAMETERS: [(&str, &str); 8] = [
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_timeout", "5s"),
    ("password_encryption", "scram-sha-256"),
];

/// The log that is kept for replicas, and where a checkpoint is forced: name, share of the volume and
/// upper bound in MiB. It must not fill a volume by itself.
const LOG_SIZES: [(&str, f64, f64); 3] = [
    ("max_slot_wal_keep_size", 0.4, 4096.0),
    ("max_wal_size", 0.1, 1024.0),
    ("wal_keep_size", 0.05, 512.0),
];

/// Settings that Patroni, the pod or the volume decides.
const REFUSED: [&str; 18] = [
    "archive_command",
    "cluster_name",
    "config_file",
    "data_directory",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_keep_size",
];

/// Why a setting cannot be had in `spec.postgres.parameters`.
pub fn refusal(parameter: &str) -> Option<&'static str> {
    let own = OWN_PARAMETERS.iter().any(|(name, _)| *name == parameter);
    if own || REFUSED.contains(&parameter) {
        return Some("replication depends on it: the operator sets it");
    }
    let well_formed = parameter.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
    (!well_formed || parameter.is_empty()).then_some("is not the name of a setting")
}

/// The settings that all members share. Patroni reads them once, when the first is made; later ones
/// go to its REST interface.
pub fn dynamic_configuration(deployment: &Deployment) -> Value {
    let spec = &deployment.spec.postgres;
    let mut parameters: BTreeMap<&str, String> = log_sizes(&spec.storage).into();
    parameters.extend(OWN_PARAMETERS.map(|(name, value)| (name, value.to_owned())));
    for (name, value) in &spec.parameters {
        parameters.insert(name, value.clone());
    }
    json!({
        // loop_wait + 2 * retry_timeout must not exceed ttl, which is at least 20.
        "ttl": 20,
        "loop_wait": 5,
        "retry_timeout": 5,
        "maximum_lag_on_failover": 1_048_576,
        "primary_start_timeout": 30,
        "synchronous_mode": spec.synchronous != Synchronous::Off,
        "synchronous_mode_strict": spec.synchronous == Synchronous::Required,
        "failsafe_mode": true,
        "member_slots_ttl": "30min",
        "postgresql": {"use_pg_rewind": true, "use_slots": true, "parameters": parameters},
    })
}

/// In whole megabytes, as Postgres calls MiB; at least four segments of the log.
fn log_sizes(storage: &Storage) -> [(&'static str, String); 3] {
    let volume = storage.size().value().unwrap_or_default() / MIB;
    LOG_SIZES.map(|(name, share, most)| {
        (name, format!("{:.0}MB", (volume * share).floor().clamp(64.0, most)))
    })
}

pub fn config_map(deployment: &Deployment) -> ConfigMap {
    let mut labels = deployment.selector_labels(Component::Postgres);
    labels.remove(NAME);
    let config = json!({
        "scope": scope(deployment),
        "kubernetes": {
            "use_endpoints": true,
            "namespace": deployment.namespace,
            "labels": labels,
            "scope_label": SCOPE_LABEL,
            "role_label": ROLE_LABEL,
            "leader_label_value": PRIMARY,
            "follower_label_value": REPLICA,
            "standby_leader_label_value": REPLICA,
            "ports": [{"name": "postgres", "port": PORT}],
        },
        "restapi": {"listen": format!("0.0.0.0:{PATRONI_PORT}")},
        "bootstrap": {
            "dcs": dynamic_configuration(deployment),
            "initdb": [
                {"encoding": "UTF8"},
                {"locale": "C.UTF-8"},
                "data-checksums",
                {"auth-host": "scram-sha-256"},
                {"auth-local": "trust"},
            ],
            "post_bootstrap": format!("sh {CONFIG}/post-bootstrap.sh"),
        },
        "postgresql": {
            "listen": format!("0.0.0.0:{PORT}"),
            "data_dir": format!("{DATA}/pgdata"),
            "pgpass": "/tmp/pgpass",
            // Else a new replica waits minutes for the primary's next checkpoint.
            "basebackup": [{"checkpoint": "fast"}],
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": true,
            "use_unix_socket": true,
            "parameters": {
                "unix_socket_directories": "/tmp",
                "ssl": "on",
                "ssl_cert_file": format!("{TLS}/{CERTIFICATE}"),
                "ssl_key_file": format!("{TLS}/{KEY}"),
            },
            "pg_hba": [
                "local all all trust",
                "hostssl replication replication 0.0.0.0/0 scram-sha-256",
                "hostssl replication replication ::/0 scram-sha-256",
                "hostssl all all 0.0.0.0/0 scram-sha-256",
                "hostssl all all ::/0 scram-sha-256",
            ],
        },
    });
    // Passwords go in as variables of psql, from the environment: not in the process list. Patroni
    // makes the role of replication itself, but only after this.
    let post_bootstrap = format!(
        "set -eu
psql -v ON_ERROR_STOP=1 -h /tmp -U postgres -d postgres <<'SQL'
\\getenv password SEXTANT_PASSWORD
CREATE ROLE {DATABASE} LOGIN PASSWORD :'password';
CREATE DATABASE {DATABASE} OWNER {DATABASE};
\\getenv password PATRONI_REPLICATION_PASSWORD
CREATE ROLE replication LOGIN REPLICATION PASSWORD :'password';
SQL
touch {DATA}/pgdata/{COMPLETE}
sync {DATA}/pgdata
"
    );
    // A pod that was killed while it made or copied the data has left what looks like a database. A
    // copy ends with pg_control; without it nothing can be had from it.
    let start = format!(
        "set -eu
cd {DATA}
if [ -e pgdata ] && [ ! -e pgdata/global/pg_control ]; then
    rm -rf pgdata
elif [ -e pgdata ] && [ ! -e pgdata/{COMPLETE} ]; then
    rm -rf pgdata.incomplete
    mv pgdata pgdata.incomplete
fi
python3 {CONFIG}/disk_space.py {DATA} {DISK_SPACE} &
exec patroni {CONFIG}/patroni.yaml
"
    );
    ConfigMap {
        metadata: deployment.child(Component::Postgres),
        data: Some(BTreeMap::from([
            ("patroni.yaml".to_owned(), serde_json::to_string_pretty(&config).unwrap_or_default()),
            ("post-bootstrap.sh".to_owned(), post_bootstrap),
            ("start.sh".to_owned(), start),
            ("disk_space.py".to_owned(), include_str!("disk_space.py").to_owned()),
        ])),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_replication_depends_on_are_refused() {
        for name in ["wal_level", "primary_conninfo", "port", "", "a b", "x;y"] {
            assert!(refusal(name).is_some(), "{name}");
        }
        for name in ["shared_buffers", "work_mem", "pg_stat_statements.track"] {
            assert_eq!(refusal(name), None, "{name}");
        }
    }

    #[test]
    fn the_log_fills_no_volume_by_itself() {
        let sizes = |size: &str| {
            let storage = Storage { size: Some(size.into()), ..Storage::default() };
            log_sizes(&storage).map(|(_, size)| size)
        };
        assert_eq!(sizes("500Gi"), ["4096MB", "1024MB", "512MB"]);
        assert_eq!(sizes("10Gi"), ["4096MB", "1024MB", "512MB"]);
        assert_eq!(sizes("2Gi"), ["819MB", "204MB", "102MB"]);
        assert_eq!(sizes("1Mi"), ["64MB"; 3]);
    }
}
