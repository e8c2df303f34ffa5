//! API keys and passwords that nobody gave: made once, kept for ever.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rand::Rng;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::meta::Component;
use super::pod::hex;
use super::{Desired, Kind, Observed};
use crate::crd::DeletionPolicy;
use crate::validate::Deployment;

/// The entry of a key itself, beside the file of hashes that servers read.
pub const KEY: &str = "key";
pub const ADMIN: &str = "admin";
const KEYS_FILE: &str = "keys.yaml";

pub fn add(
    desired: &mut Desired,
    deployment: &Deployment,
    observed: &Observed,
    random: &mut impl Rng,
) {
    let mut made = Made { deployment, observed, random };
    let spec = &deployment.spec;
    let mut secrets = Vec::new();
    if spec.api.keys_secret.is_none() {
        let keys = &["read", "write", "admin"];
        secrets.push(made.keys(Component::Api, of_api(deployment), ADMIN, keys));
    }
    if spec.embedder.is_dedicated() {
        let name = secret_of_embedders(deployment);
        secrets.push(made.keys(Component::Embedder, name, KEY, &["read"]));
    }
    if spec.cache.is_managed() {
        secrets.push(made.passwords(Component::Redis, &["password"]));
    }
    if spec.postgres.external.is_none() {
        let names = ["password", "superuser", "replication", "patroni"];
        secrets.push(made.passwords(Component::Postgres, &names));
    }
    if spec.milvus.external.is_none() {
        secrets.push(made.passwords(Component::Milvus, &["password"]));
    }
    for secret in secrets {
        desired.add(Kind::Secret, secret);
    }
}

/// The Secret with the keys of clients.
pub fn of_api(deployment: &Deployment) -> String {
    let given = deployment.spec.api.keys_secret.clone();
    given.unwrap_or_else(|| format!("{}-keys", deployment.child_name(Component::Api)))
}

pub fn secret_of_embedders(deployment: &Deployment) -> String {
    format!("{}-key", deployment.child_name(Component::Embedder))
}

struct Made<'a, R> {
    deployment: &'a Deployment,
    observed: &'a Observed,
    random: &'a mut R,
}

impl<R: Rng> Made<'_, R> {
    /// What is there already, or else 256 random bits.
    fn entry(&mut self, secret: &str, entry: &str, prefix: &str) -> String {
        let there = self.observed.secret(secret, entry);
        there.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_else(|| {
            let bytes: [u8; 32] = self.random.random();
            format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
        })
    }

    fn keys(&mut self, component: Component, name: String, entry: &str, scopes: &[&str]) -> Secret {
        let key = self.entry(&name, entry, "sxt_");
        let hash = hex(&Sha256::digest(&key));
        // JSON is YAML.
        let file = json!({"keys": [{"name": entry, "sha256": hash, "scopes": scopes}]});
        self.secret(
            component,
            name,
            [(entry.to_owned(), key), (KEYS_FILE.to_owned(), file.to_string())],
        )
    }

    fn passwords(&mut self, component: Component, entries: &[&str]) -> Secret {
        let name = self.deployment.child_name(component);
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| ((*entry).to_owned(), self.entry(&name, entry, "")))
            .collect();
        self.secret(component, name, entries)
    }

    fn secret(
        &self,
        component: Component,
        name: String,
        entries: impl IntoIterator<Item = (String, String)>,
    ) -> Secret {
        let bytes = |(entry, text): (String, String)| (entry, ByteString(text.into_bytes()));
        let data: BTreeMap<_, _> = entries.into_iter().map(bytes).collect();
        // A volume that stays is of no use without its password.
        let metadata = match self.deployment.spec.deletion_policy {
            DeletionPolicy::Retain => self.deployment.unowned(component, name),
            DeletionPolicy::Delete => self.deployment.child_of_name(component, name),
        };
        Secret { metadata, type_: Some("Opaque".to_owned()), data: Some(data), ..Secret::default() }
    }
}
