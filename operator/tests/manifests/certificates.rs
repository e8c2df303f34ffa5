//! The certificate of the managed Postgres.

use std::collections::BTreeMap;
use std::process::Command;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{ToSpan, Zoned};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use sextant_operator::components::{Desired, Kind, Observed, desired};
use sextant_operator::validate::{Deployment, validate};

type Data = BTreeMap<String, ByteString>;

fn deployment(spec: &serde_json::Value) -> Deployment {
    let object = json!({
        "apiVersion": "sextant.dev/v1alpha1",
        "kind": "SearchDeployment",
        "metadata": {"name": "gym", "namespace": "shop"},
        "spec": spec,
    });
    validate(&serde_json::from_value(object).unwrap(), "1.0.0").unwrap()
}

fn secret(desired: &Desired, name: &str) -> Data {
    let body = desired.get(Kind::Secret, name).unwrap().body.clone();
    serde_json::from_value::<Secret>(body).unwrap().data.unwrap()
}

/// What is there in so many days, and the hash of what the pods of Postgres then read.
fn later(there: &Observed, days: i32) -> (Observed, String) {
    let today = Zoned::now().date() + days.days();
    let deployment = deployment(&json!({}));
    let made = desired(&deployment, there, today, &mut StdRng::from_os_rng()).unwrap();
    let mut there = Observed::default();
    for manifest in made.manifests().filter(|manifest| manifest.kind == Kind::Secret) {
        there.referenced.insert(manifest.name.clone(), secret(&made, &manifest.name));
    }
    let set = &made.get(Kind::StatefulSet, "gym-postgres").unwrap().body;
    let annotations = &set["spec"]["template"]["metadata"]["annotations"];
    (there, annotations["sextant.dev/config-hash"].as_str().unwrap().to_owned())
}

/// What openssl says of the certificate for a host.
fn is_trusted(authority: &[u8], certificate: &[u8], host: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let [ca, leaf] = ["ca.crt", "tls.crt"].map(|name| folder.path().join(name));
    std::fs::write(&ca, authority).unwrap();
    std::fs::write(&leaf, certificate).unwrap();
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", host]);
    let output = command.arg("-CAfile").arg(ca).arg(leaf).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

#[test]
fn clients_trust_postgres_by_the_names_that_they_use_and_by_no_others() {
    let (there, _) = later(&Observed::default(), 0);
    let (other, _) = later(&Observed::default(), 0);
    let tls = &there.referenced["gym-postgres-tls"];
    let authority = &there.referenced["gym-postgres-ca"]["ca.crt"].0;
    for host in ["gym-postgres-rw.shop.svc", "gym-postgres-ro.shop.svc", "gym-postgres-rw"] {
        assert!(is_trusted(authority, &tls["tls.crt"].0, host), "{host}");
    }
    assert!(!is_trusted(authority, &tls["tls.crt"].0, "gym-postgres-rw.bank.svc"));
    let stranger = &other.referenced["gym-postgres-ca"]["ca.crt"].0;
    assert!(!is_trusted(stranger, &tls["tls.crt"].0, "gym-postgres-rw.shop.svc"));
}

#[test]
fn a_certificate_is_renewed_before_its_end_by_the_same_authority_and_the_pods_with_it() {
    let (first, hash) = later(&Observed::default(), 0);
    let (same, same_hash) = later(&first, 240);
    assert_eq!((&same.referenced, &same_hash), (&first.referenced, &hash));
    let (renewed, other_hash) = later(&first, 250);
    assert_ne!(other_hash, hash);
    assert_eq!(renewed.referenced["gym-postgres-ca"], first.referenced["gym-postgres-ca"]);
    let [before, after] = [&first, &renewed].map(|of| &of.referenced["gym-postgres-tls"]);
    assert_ne!(before["tls.key"], after["tls.key"]);
    assert_eq!(before["ca.crt"], after["ca.crt"]);
}

#[test]
fn a_lost_authority_is_followed_by_a_new_certificate() {
    let (mut there, hash) = later(&Observed::default(), 0);
    there.referenced.remove("gym-postgres-ca");
    let (after, other_hash) = later(&there, 1);
    assert_ne!(other_hash, hash);
    let tls = &after.referenced["gym-postgres-tls"];
    let authority = &after.referenced["gym-postgres-ca"]["ca.crt"].0;
    assert!(is_trusted(authority, &tls["tls.crt"].0, "gym-postgres-rw.shop.svc"));
}

#[test]
fn a_given_certificate_is_used_in_place_of_one_of_the_operators() {
    let deployment = deployment(&json!({"postgres": {"tlsSecret": "mine"}}));
    let today = Zoned::now().date();
    let random = &mut StdRng::from_os_rng();
    let made = desired(&deployment, &Observed::default(), today, random).unwrap();
    assert!(made.get(Kind::Secret, "gym-postgres-tls").is_none());
    for (kind, name) in [(Kind::StatefulSet, "gym-postgres"), (Kind::Deployment, "gym-api")] {
        let volumes = &made.get(kind, name).unwrap().body["spec"]["template"]["spec"]["volumes"];
        let mut volumes = volumes.as_array().unwrap().iter();
        assert!(volumes.any(|volume| volume["secret"]["secretName"] == "mine"), "{name}");
    }
}
