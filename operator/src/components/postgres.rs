//! Postgres, one primary and its replicas. Patroni in the pods decides who is the primary, with the
//! Kubernetes API as its store; the operator never promotes.
//!
//! # Source
//! <https://patroni.readthedocs.io/en/latest/kubernetes.html>

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, Service,
    ServiceAccount, ServiceSpec, VolumeResourceRequirements,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::certificates::{self, AUTHORITY, CERTIFICATE, KEY};
use super::meta::Component;
use super::pod::{
    self, Timing, config_volume, env, field_env, mount, read_only, scratch, secret_env,
    secret_volume,
};
use super::server::{Connection, authority_file, disruption_budget};
use super::{Desired, Kind, Observed, service};
use crate::crd::{Storage, Synchronous};
use crate::validate::Deployment;

pub const PORT: u16 = 5432;
pub const PATRONI_PORT: u16 = 8008;
/// Who may change something by Patroni's REST interface, and the entry of the Secret with the password.
pub const PATRONI_USER: &str = "patroni";
pub const PATRONI_PASSWORD: &str = "patroni";
/// What Patroni says a pod is.
pub const ROLE_LABEL: &str = "sextant.dev/postgres-role";
pub const PRIMARY: &str = "primary";
const REPLICA: &str = "replica";
/// Annotation of a pod whose volume has little room: how much.
pub const DISK_SPACE: &str = "sextant.dev/disk-space";
/// By which Patroni finds the members.
const SCOPE_LABEL: &str = "sextant.dev/postgres-scope";
const CONFIG: &str = "/etc/patroni";
const DATA: &str = "/var/lib/postgresql/data";
const TLS: &str = "/etc/postgres/tls";
const DATABASE: &str = "sextant";
/// File of a data folder that was made to the end. Copies have it too.
const COMPLETE: &str = "sextant-complete";

/// Settings of Postgres that replication and failover depend on.
const OWN_PARAMETERS: [(&str, &str); 10] = [
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("wal_keep_size", "512MB"),
    ("max_slot_wal_keep_size", "4GB"),
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_timeout", "5s"),
    ("password_encryption", "scram-sha-256"),
];

/// Settings that Patroni or the pod decides.
const REFUSED: [&str; 16] = [
    "archive_command",
    "cluster_name",
    "config_file",
    "data_directory",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "unix_socket_directories",
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

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    if deployment.spec.postgres.external.is_some() {
        return;
    }
    let config = config_map(deployment);
    desired.add(Kind::ServiceAccount, service_account(deployment));
    desired.add(Kind::Role, role(deployment));
    desired.add(Kind::RoleBinding, role_binding(deployment));
    for service in services(deployment) {
        desired.add(Kind::Service, service);
    }
    if deployment.spec.postgres.instances() > 1 && !deployment.spec.hibernate {
        for budget in budgets(deployment) {
            desired.add(Kind::PodDisruptionBudget, budget);
        }
    }
    desired.add(Kind::StatefulSet, stateful_set(deployment, observed, &config));
    desired.add(Kind::ConfigMap, config);
}

/// A primary is not evicted: the operator moves it away first, and then it is none. Of the replicas,
/// one at a time.
fn budgets(deployment: &Deployment) -> Vec<PodDisruptionBudget> {
    let of = |role: &str, metadata: ObjectMeta, least: i32| {
        let mut budget = disruption_budget(deployment, Component::Postgres);
        budget.metadata = metadata;
        let spec = budget.spec.get_or_insert_default();
        // A share of the StatefulSet's replicas would count those of the other role, too.
        (spec.max_unavailable, spec.min_available) = (None, Some(IntOrString::Int(least)));
        spec.selector = Some(LabelSelector {
            match_labels: Some(with_role(deployment, role)),
            ..LabelSelector::default()
        });
        budget
    };
    let replicas = deployment.spec.postgres.instances() - 1;
    let primary = deployment.child_with(Component::Postgres, PRIMARY);
    let mut budgets = vec![of(PRIMARY, primary, 1)];
    if replicas > 1 {
        budgets.push(of(
            REPLICA,
            deployment.child_with(Component::Postgres, REPLICA),
            replicas - 1,
        ));
    }
    budgets
}

/// What selects the pods of a role.
fn with_role(deployment: &Deployment, role: &str) -> BTreeMap<String, String> {
    let mut labels = deployment.selector_labels(Component::Postgres);
    labels.insert(ROLE_LABEL.to_owned(), role.to_owned());
    labels
}

/// How servers reach the database. Strings of an external one hold passwords, so they come as
/// variables from their Secrets.
pub fn connection(deployment: &Deployment) -> Connection {
    if let Some(external) = &deployment.spec.postgres.external {
        let mut connection = Connection::new("postgres", json!({}));
        let primary = &external.primary;
        connection.env.push(secret_env("SEXTANT_POSTGRES__PRIMARY", &primary.name, &primary.key));
        let mut replicas = Vec::new();
        for (number, replica) in external.replicas.iter().enumerate() {
            let name = format!("POSTGRES_REPLICA_{number}");
            connection.env.push(secret_env(&name, &replica.name, &replica.key));
            replicas.push(format!("$({name})"));
        }
        if !replicas.is_empty() {
            // Kubernetes puts in the variables above.
            let list = serde_json::to_string(&replicas).unwrap_or_default();
            connection.env.push(env("SEXTANT_POSTGRES__REPLICAS", list));
        }
        connection.read.extend(external.replicas.iter().map(|replica| replica.name.clone()));
        connection.read.push(primary.name.clone());
        return connection;
    }
    let name = deployment.child_name(Component::Postgres);
    let url = |role: &str| {
        let host = deployment.host(&format!("{name}-{role}"));
        let authority = authority_file("postgres");
        format!(
            "postgres://{DATABASE}@{host}:{PORT}/{DATABASE}?sslmode=verify-full&sslrootcert={authority}"
        )
    };
    let mut config = json!({"primary": url("rw")});
    if deployment.spec.postgres.instances() > 1 {
        config["replicas"] = json!([url("ro")]);
    }
    Connection::new("postgres", config)
        .with_secret("password_file", name, "password")
        .with_authority(certificates::secret(deployment))
}

fn service_account(deployment: &Deployment) -> ServiceAccount {
    ServiceAccount {
        metadata: deployment.child(Component::Postgres),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What Patroni needs for its lock and for the labels of the pods.
fn role(deployment: &Deployment) -> Role {
    let scope = scope(deployment);
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let rule = |resource: &str, verbs: &[&str], names: Option<Vec<String>>| PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(words(&[resource])),
        verbs: words(verbs),
        resource_names: names,
        ..PolicyRule::default()
    };
    let own = ["", "-config", "-sync", "-failover"].map(|suffix| format!("{scope}{suffix}"));
    Role {
        metadata: deployment.child(Component::Postgres),
        rules: Some(vec![
            // A list, a watch and a create cannot be bound to names.
            rule("endpoints", &["create", "list", "watch"], None),
            rule("endpoints", &["delete", "get", "patch", "update"], Some(own.to_vec())),
            rule("pods", &["get", "list", "patch", "update", "watch"], None),
        ]),
    }
}

fn role_binding(deployment: &Deployment) -> RoleBinding {
    let name = deployment.child_name(Component::Postgres);
    RoleBinding {
        metadata: deployment.child(Component::Postgres),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: Some(deployment.namespace.clone()),
            api_group: None,
        }]),
    }
}

/// Patroni's scope: the Service of the primary has its name, for Patroni writes the addresses of
/// that Service itself.
fn scope(deployment: &Deployment) -> String {
    format!("{}-rw", deployment.child_name(Component::Postgres))
}

/// The Endpoints in which Patroni keeps what the members share.
pub fn patroni_config(deployment: &Deployment) -> String {
    format!("{}-config", scope(deployment))
}

fn services(deployment: &Deployment) -> [Service; 3] {
    let named = |suffix: &str, spec: ServiceSpec| Service {
        metadata: deployment.child_with(Component::Postgres, suffix),
        spec: Some(spec),
        ..Service::default()
    };
    let port = service::port("postgres", PORT);
    [
        // Without a selector: its address is the holder of Patroni's lock.
        named("rw", ServiceSpec { ports: Some(vec![port.clone()]), ..ServiceSpec::default() }),
        named(
            "ro",
            ServiceSpec {
                ports: Some(vec![port]),
                selector: Some(with_role(deployment, REPLICA)),
                ..ServiceSpec::default()
            },
        ),
        // Without it Kubernetes would take away the Endpoints in which Patroni keeps its settings.
        named(
            "rw-config",
            ServiceSpec { cluster_ip: Some("None".to_owned()), ..ServiceSpec::default() },
        ),
    ]
}

/// The settings that all members share. Patroni reads them once, when the first is made; later ones
/// go to its REST interface.
pub fn dynamic_configuration(deployment: &Deployment) -> Value {
    let spec = &deployment.spec.postgres;
    let mut parameters: BTreeMap<&str, &str> = OWN_PARAMETERS.into();
    for (name, value) in &spec.parameters {
        parameters.insert(name, value);
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

fn config_map(deployment: &Deployment) -> ConfigMap {
    let mut labels = deployment.selector_labels(Component::Postgres);
    labels.remove(super::meta::NAME);
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

fn stateful_set(deployment: &Deployment, observed: &Observed, config: &ConfigMap) -> StatefulSet {
    let spec = &deployment.spec.postgres;
    let name = deployment.child_name(Component::Postgres);
    // The shared settings go to running members: only what Patroni reads when it starts counts.
    let file = config.data.as_ref().and_then(|data| data.get("patroni.yaml"));
    let mut local: Value =
        file.and_then(|file| serde_json::from_str(file).ok()).unwrap_or_default();
    local["bootstrap"] = Value::Null;
    let local = local.to_string();
    let secrets = observed.secret_hash([name.as_str()]);
    let certificate = certificates::hash(deployment, observed);
    let hash = pod::hash([local.as_bytes(), secrets.as_bytes(), certificate.as_bytes()]);
    let probe = |path: &str, failures: i32| {
        Timing { period: 10, timeout: 5, failures }.http(path, "patroni")
    };
    let container = Container {
        command: Some(vec!["sh".to_owned(), format!("{CONFIG}/start.sh")]),
        ports: Some(vec![pod::port("postgres", PORT), pod::port("patroni", PATRONI_PORT)]),
        env: Some(vec![
            field_env("PATRONI_NAME", "metadata.name"),
            field_env("PATRONI_KUBERNETES_POD_IP", "status.podIP"),
            env(
                "PATRONI_RESTAPI_CONNECT_ADDRESS",
                format!("$(PATRONI_KUBERNETES_POD_IP):{PATRONI_PORT}"),
            ),
            env(
                "PATRONI_POSTGRESQL_CONNECT_ADDRESS",
                format!("$(PATRONI_KUBERNETES_POD_IP):{PORT}"),
            ),
            // Members are reached by their addresses, which no certificate has.
            env("PATRONI_SUPERUSER_SSLMODE", "verify-ca"),
            env("PATRONI_SUPERUSER_SSLROOTCERT", format!("{TLS}/{AUTHORITY}")),
            env("PATRONI_REPLICATION_SSLMODE", "verify-ca"),
            env("PATRONI_REPLICATION_SSLROOTCERT", format!("{TLS}/{AUTHORITY}")),
            env("PATRONI_SUPERUSER_USERNAME", "postgres"),
            secret_env("PATRONI_SUPERUSER_PASSWORD", &name, "superuser"),
            env("PATRONI_REPLICATION_USERNAME", "replication"),
            secret_env("PATRONI_REPLICATION_PASSWORD", &name, "replication"),
            env("PATRONI_RESTAPI_USERNAME", PATRONI_USER),
            secret_env("PATRONI_RESTAPI_PASSWORD", &name, PATRONI_PASSWORD),
            secret_env("SEXTANT_PASSWORD", &name, "password"),
        ]),
        resources: Some(spec.resources.or(&[("cpu", "250m"), ("memory", "512Mi")])),
        volume_mounts: Some(vec![
            read_only(mount("config", CONFIG)),
            read_only(mount("tls", TLS)),
            mount("data", DATA),
            mount("tmp", "/tmp"),
        ]),
        // A replica is ready once it streams; a first one copies the whole database before.
        readiness_probe: Some(probe("/readiness", 3)),
        liveness_probe: Some(probe("/liveness", 3)),
        startup_probe: Some(probe("/liveness", 30)),
        ..Container::default()
    };
    let files = [AUTHORITY, CERTIFICATE, KEY].map(|file| (file, file));
    let image = deployment.spec.images.postgres().to_owned();
    let pod = PodSpec {
        service_account_name: Some(name.clone()),
        containers: vec![deployment.container("postgres", image, container)],
        volumes: Some(vec![
            config_volume("config", &name),
            // Postgres wants its key to be readable for nobody but root and its own group.
            secret_volume("tls", &certificates::secret(deployment), &files),
            scratch("tmp", "256Mi"),
        ]),
        // Time for a last checkpoint.
        termination_grace_period_seconds: Some(90),
        ..PodSpec::default()
    };
    let mut template = deployment.pod_template(Component::Postgres, &spec.scheduling, hash, pod);
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(SCOPE_LABEL.to_owned(), scope(deployment));
    StatefulSet {
        metadata: deployment.child(Component::Postgres),
        spec: Some(StatefulSetSpec {
            replicas: Some(if deployment.spec.hibernate { 0 } else { spec.instances() }),
            selector: deployment.selector(Component::Postgres),
            service_name: Some(patroni_config(deployment)),
            pod_management_policy: Some("Parallel".to_owned()),
            // Kubernetes would begin with the highest number, primary or not: see `rollout_step`.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            template,
            volume_claim_templates: Some(vec![claim(&spec.storage)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// The volume `data` of each pod.
pub fn claim(storage: &Storage) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some("data".to_owned()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), storage.size().to_k8s())])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// A member of the Postgres cluster.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub is_primary: bool,
    pub ready: bool,
    /// Whether its pod is of an older template than the StatefulSet's.
    pub outdated: bool,
    /// Whether it could take over without losing acknowledged writes.
    pub in_sync: bool,
    /// Whether a setting waits for a restart of its Postgres.
    pub pending_restart: bool,
    /// Whether its node takes no more pods, as before it is drained.
    pub leaving: bool,
}

/// What brings members to the present template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutStep {
    Done,
    /// Delete this pod; Kubernetes makes it again.
    Replace(String),
    Switchover {
        from: String,
        to: String,
    },
    /// Restart the Postgres in this pod.
    Restart(String),
    Wait,
}

/// The next step of a rolling update: replicas first, then a planned switchover, the old primary
/// last. Then restarts, where only settings changed, in the same order. One at a time. Before all of
/// that the primary leaves a node that is to be drained.
pub fn rollout_step(members: &[Member], instances: usize) -> RolloutStep {
    if let Some(primary) = members.iter().find(|member| member.is_primary && member.leaving)
        && let Some(step) = switchover(members, primary)
    {
        return step;
    }
    if members.len() < instances {
        // One is being made again. A primary that seems to be alone is not: it must not go now.
        return RolloutStep::Wait;
    }
    let outdated = members.iter().filter(|member| member.outdated);
    let Some(first) = outdated.min_by_key(|member| (member.is_primary, &member.name)) else {
        return restart_step(members);
    };
    if members.iter().any(|member| !member.ready && member.name != first.name) {
        return RolloutStep::Wait;
    }
    if !first.is_primary || instances == 1 {
        return RolloutStep::Replace(first.name.clone());
    }
    switchover(members, first).unwrap_or(RolloutStep::Wait)
}

/// To a member that loses nothing and stays where it is, when there is one.
fn switchover(members: &[Member], primary: &Member) -> Option<RolloutStep> {
    let able =
        |member: &&Member| member.in_sync && member.ready && !member.is_primary && !member.leaving;
    let replica = members.iter().filter(able).min_by_key(|member| &member.name)?;
    Some(RolloutStep::Switchover { from: primary.name.clone(), to: replica.name.clone() })
}

fn restart_step(members: &[Member]) -> RolloutStep {
    let pending = members.iter().filter(|member| member.pending_restart);
    match pending.min_by_key(|member| (member.is_primary, &member.name)) {
        None => RolloutStep::Done,
        Some(_) if members.iter().any(|member| !member.ready) => RolloutStep::Wait,
        Some(first) => RolloutStep::Restart(first.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, is_primary: bool) -> Member {
        Member {
            name: name.to_owned(),
            is_primary,
            ready: true,
            outdated: true,
            in_sync: true,
            pending_restart: false,
            leaving: false,
        }
    }

    #[test]
    fn replicas_are_replaced_before_the_primary_is_switched_over_and_replaced() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-1".to_owned()));
        members[1].outdated = false;
        members[1].ready = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Wait);
        members[1].ready = true;
        let (from, to) = ("pg-0".to_owned(), "pg-1".to_owned());
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Switchover { from, to });
        members[0].is_primary = false;
        members[1].is_primary = true;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-0".to_owned()));
        members[0].outdated = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Done);
    }

    #[test]
    fn settings_that_wait_for_a_restart_get_it_one_member_after_the_other() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        for member in &mut members {
            (member.outdated, member.pending_restart) = (false, true);
        }
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Restart("pg-1".to_owned()));
        (members[1].pending_restart, members[1].ready) = (false, false);
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Wait);
        members[1].ready = true;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Restart("pg-0".to_owned()));
    }

    #[test]
    fn a_primary_leaves_a_node_that_is_to_be_drained_for_a_replica_that_stays() {
        let mut members = [member("pg-0", true), member("pg-1", false), member("pg-2", false)];
        for member in &mut members {
            member.outdated = false;
        }
        members[0].leaving = true;
        members[1].leaving = true;
        let (from, to) = ("pg-0".to_owned(), "pg-2".to_owned());
        let switchover = RolloutStep::Switchover { from, to };
        assert_eq!(rollout_step(&members, 3), switchover);
        assert_eq!(rollout_step(&members, 4), switchover, "also while another is made again");
        members[2].in_sync = false;
        assert_eq!(rollout_step(&members, 3), RolloutStep::Done);
    }

    #[test]
    fn a_primary_stays_while_nobody_could_take_over_without_loss() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        members[1].outdated = false;
        members[1].in_sync = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Wait);
    }

    #[test]
    fn a_primary_stays_while_its_replica_is_made_again() {
        let members = [member("pg-0", true)];
        assert_eq!(rollout_step(&members, 2), RolloutStep::Wait);
    }

    #[test]
    fn a_broken_replica_is_replaced_although_it_is_not_ready() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        members[1].ready = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-1".to_owned()));
    }

    #[test]
    fn a_primary_without_replicas_is_replaced_where_it_is() {
        let members = [member("pg-0", true)];
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-0".to_owned()));
    }

    #[test]
    fn settings_that_replication_depends_on_are_refused() {
        for name in ["wal_level", "primary_conninfo", "port", "", "a b", "x;y"] {
            assert!(refusal(name).is_some(), "{name}");
        }
        for name in ["shared_buffers", "work_mem", "pg_stat_statements.track"] {
            assert_eq!(refusal(name), None, "{name}");
        }
    }
}
