//! What the examples of deploy/examples become, without a cluster.
#![allow(clippy::unwrap_used, reason = "test code")]

mod certificates;
mod monitoring;
mod network;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::civil::date;
use kube::ResourceExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use sextant_operator::components::{Desired, Kind, Manifest, Observed, desired};
use sextant_operator::crd::{SearchDeployment, parse};
use sextant_operator::plan;
use sextant_operator::validate::validate;

const VERSION: &str = "1.2.3";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// Name and objects of each example.
pub fn examples() -> BTreeMap<String, Desired> {
    let mut examples = BTreeMap::new();
    for entry in std::fs::read_dir(repository("deploy/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let body = parse(&text).unwrap();
        let mut object: SearchDeployment = serde_json::from_value(body).unwrap();
        object.metadata.namespace = Some("default".to_owned());
        object.metadata.uid = Some("00000000-0000-0000-0000-000000000000".to_owned());
        let deployment = validate(&object, VERSION).unwrap();
        let random = &mut StdRng::seed_from_u64(1);
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        examples.insert(
            name,
            desired(&deployment, &Observed::default(), date(2026, 1, 1), random).unwrap(),
        );
    }
    assert!(examples.len() >= 5);
    examples
}

#[test]
fn the_examples_become_the_objects_that_they_became_before() {
    for (name, objects) in examples() {
        let documents = objects.manifests().map(|manifest| {
            format!("---\n{}", serde_saphyr::to_string(&plan::body(manifest)).unwrap())
        });
        let made: String = documents.collect();
        let file = repository(&format!("operator/tests/golden/{name}.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        let differs = similar::TextDiff::from_lines(&kept, &made);
        assert!(
            kept == made,
            "{name}: if this is meant, UPDATE_GOLDEN=1 cargo test --test manifests\n{}",
            differs.unified_diff()
        );
    }
}

/// The pod of a workload.
fn pod(manifest: &Manifest) -> Option<&Value> {
    let pod = &manifest.body["spec"]["template"]["spec"];
    (!pod.is_null()).then_some(pod)
}

#[test]
fn every_pod_keeps_to_the_restricted_standard() {
    for (name, objects) in examples() {
        for manifest in objects.manifests() {
            let Some(pod) = pod(manifest) else { continue };
            let what = format!("{name}: {}", manifest.name);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(pod["enableServiceLinks"], false, "{what}");
            let patroni = manifest.name.ends_with("-postgres");
            assert_eq!(pod["automountServiceAccountToken"], patroni, "{what}");
            for container in pod["containers"].as_array().unwrap() {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{what}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{what}");
                assert_eq!(security["capabilities"]["drop"][0], "ALL", "{what}");
            }
        }
    }
}

#[test]
fn no_secret_is_anywhere_but_in_a_secret() {
    for (name, objects) in examples() {
        let secrets = objects.manifests().filter(|manifest| manifest.kind == Kind::Secret);
        let mut passwords = Vec::new();
        for secret in secrets {
            for (entry, value) in secret.body["data"].as_object().unwrap() {
                let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
                passwords.push((entry.clone(), String::from_utf8(bytes).unwrap()));
            }
        }
        for manifest in objects.manifests().filter(|manifest| manifest.kind != Kind::Secret) {
            let text = manifest.body.to_string();
            for (entry, password) in &passwords {
                assert!(!text.contains(password), "{name}: {} has {entry}", manifest.name);
            }
        }
    }
}

#[test]
fn gpus_are_asked_for_only_where_somebody_asked_for_them() {
    for (name, objects) in examples() {
        for manifest in objects.manifests() {
            let Some(pod) = pod(manifest) else { continue };
            let has_gpu = pod.to_string().contains("nvidia");
            let asked = name == "production-gpu" && manifest.name == "search-embedder";
            assert_eq!(has_gpu, asked, "{name}: {}", manifest.name);
        }
    }
}

/// Kubernetes would put the variables of a container into the ones after them.
fn environment(container: &Value) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap().to_owned();
        let mut value = match variable["value"].as_str() {
            Some(value) => value.to_owned(),
            None => "postgres://user:password@host:5432/database".to_owned(),
        };
        for (other, content) in &variables {
            value = value.replace(&format!("$({other})"), content);
        }
        variables.push((name, value));
    }
    variables
}

#[test]
fn the_server_accepts_every_configuration() {
    // Beside this test's folder: `make test` builds it first.
    let target = std::env::current_exe().unwrap();
    let server = target.ancestors().nth(2).unwrap().join("sextant-server");
    assert!(server.is_file(), "there is no {}: run `make test`", server.display());
    let mut checked = 0;
    for (name, objects) in examples() {
        for component in ["api", "embedder"] {
            let named = |kind| {
                let suffix = format!("-{component}");
                let mut all = objects.manifests().filter(move |manifest| manifest.kind == kind);
                all.find(|manifest| manifest.name.ends_with(&suffix))
            };
            let (Some(config), Some(workload)) = (named(Kind::ConfigMap), named(Kind::Deployment))
            else {
                continue;
            };
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("sextant.yaml");
            std::fs::write(&file, config.body["data"]["sextant.yaml"].as_str().unwrap()).unwrap();
            let keys = keys_of(&objects, component);
            std::fs::write(folder.path().join("keys.yaml"), keys).unwrap();
            std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
            let mut command = Command::new(&server);
            command.args(["config", "check", "--config"]).arg(&file);
            command.env_clear();
            command.envs(environment(&pod(workload).unwrap()["containers"][0]));
            // What pods have at places that are not there on the machine of the test.
            command.env("SEXTANT_AUTH__KEYS_FILE", folder.path().join("keys.yaml"));
            command.env("SEXTANT_EMBEDDER__MODEL_DIR", folder.path());
            let output = command.output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}, {component}: {told}");
            checked += 1;
        }
    }
    assert!(checked >= 6);
}

/// The file with the hashes of the keys that the operator made, or an empty one.
fn keys_of(objects: &Desired, component: &str) -> Vec<u8> {
    let secrets = objects.manifests().filter(|manifest| manifest.kind == Kind::Secret);
    let mut of_component = secrets.filter(|secret| {
        let object: kube::api::DynamicObject = serde_json::from_value(secret.body.clone()).unwrap();
        object.labels().get("app.kubernetes.io/component").is_some_and(|label| label == component)
    });
    let file = of_component.find_map(|secret| secret.body["data"]["keys.yaml"].as_str());
    file.map_or_else(|| b"keys: []\n".to_vec(), |file| STANDARD.decode(file).unwrap())
}
