//! Postgres, one primary and its replicas. Patroni in the pods decides who is the primary, with the
//! Kubernetes API as its store; the operator never promotes.
//!
//! # Source
//! <https://patroni.readthedocs.io/en/latest/kubernetes.html>

mod config;
mod rollout;

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
use crate::crd::Storage;
use crate::validate::Deployment;

pub use config::{dynamic_configuration, refusal};
pub use rollout::{Member, RolloutStep, rollout_step};

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

pub fn add(desired: &mut Desired, deployment: &Deployment, observed: &Observed) {
    if deployment.spec.postgres.external.is_some() {
        return;
    }
    let config = config::config_map(deployment);
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
