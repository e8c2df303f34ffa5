//! The Helm chart and the examples, against Kubernetes's own schemas and on a real API server.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::{Map, Value, json};
use sextant_operator::crd::SearchDeployment;
use sextant_stack::kubernetes::ControlPlane;
use tokio::process::Command;

use crate::access::{client, token};
use crate::support::{Operator, TestCluster, repository};

/// Of Kubernetes, for what Helm renders without asking one.
const KUBE_VERSION: &str = "1.36.3";

/// What the chart can be told.
const VALUES: [&str; 6] = [
    "replicas=1",
    "sample.enabled=true,sample.spec.api.replicas=1",
    "watchNamespace=apps,replicas=2",
    "rbac.create=false,serviceAccount.create=false,networkPolicy.enabled=false,crds.enabled=false",
    "monitoring.enabled=true,monitoring.rules.enabled=true,monitoring.dashboards.enabled=true",
    "crds.keep=false,priorityClassName=high,podLabels.team=search,imagePullSecrets[0].name=registry",
];

/// Runs a program of the cache folder that must succeed; what it printed.
async fn run(program: &str, arguments: &[&str]) -> String {
    let path = sextant_stack::cached("CHART_TOOLS", "bin").join(program);
    assert!(path.is_file(), "{} is not there: deploy/setup/setup.sh charts", path.display());
    let output = Command::new(path).args(arguments).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{told}");
    out
}

async fn promtool(arguments: &[&str]) {
    // Installed by deploy/setup/setup.sh services.
    let output = Command::new("promtool").args(arguments).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

fn chart() -> String {
    repository("charts/sextant").display().to_string()
}

async fn rendered(values: &str) -> String {
    let chart = chart();
    let arguments = ["template", "search", &chart, "--kube-version", KUBE_VERSION, "--set", values];
    run("helm", &arguments).await
}

#[tokio::test]
async fn the_chart_passes_lint_and_names_only_values_that_it_has() {
    run("helm", &["lint", "--strict", "--kube-version", KUBE_VERSION, &chart()]).await;
    let path = sextant_stack::cached("CHART_TOOLS", "bin").join("helm");
    for wrong in ["replicass=2", "replicas=many", "image.pullPolicy=Sometimes", "sample.name=A_b"] {
        let mut command = Command::new(&path);
        command.args(["template", "search", &chart(), "--kube-version", KUBE_VERSION]);
        let output = command.args(["--set", wrong]).output().await.unwrap();
        assert!(!output.status.success(), "{wrong} is taken");
    }
}

#[tokio::test]
async fn the_rules_of_prometheus_say_what_their_tests_expect() {
    let rules = repository("charts/sextant/files/alerts.yaml").display().to_string();
    promtool(&["check", "rules", &rules]).await;
    let tests = yaml_files(&repository("tests/monitoring"));
    let tests: Vec<_> = tests.iter().map(|file| file.to_str().unwrap()).collect();
    promtool(&[&["test", "rules"], &tests[..]].concat()).await;
}

#[tokio::test]
async fn each_alert_has_a_test_and_a_runbook() {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let tests: String =
        yaml_files(&repository("tests/monitoring")).iter().map(|file| read(file)).collect();
    let runbook = read(&repository("docs/runbooks/alerts.md"));
    let headings: Vec<String> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    let rendered = rendered("monitoring.rules.enabled=true").await;
    let alerts: Vec<&str> = rendered.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 20, "{} alerts", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        let value = |field: &str| {
            let of_line = |line: &str| line.trim().strip_prefix(field).map(str::to_owned);
            alert.lines().find_map(of_line).unwrap_or_else(|| panic!("{name} has no {field}"))
        };
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} has no test");
        assert!(runbook.contains(&format!("`{name}`")), "{name} is not in its runbook");
        let heading = value("runbook: docs/runbooks/alerts.md#");
        assert!(headings.contains(&heading), "{name}: there is no {heading}");
        let severity = value("severity: ");
        assert!(["page", "ticket"].contains(&&*severity), "{name}: {severity}");
    }
}

#[tokio::test]
async fn the_chart_and_the_manifests_fit_the_schemas_of_the_api_server() {
    let cluster = TestCluster::start().await;
    let folder = tempfile::tempdir().unwrap();
    write_schemas(&cluster.client, folder.path()).await;
    let mut files = Vec::new();
    for (number, values) in VALUES.iter().enumerate() {
        let file = folder.path().join(format!("chart-{number}.yaml"));
        std::fs::write(&file, rendered(values).await).unwrap();
        files.push(file);
    }
    for folder in ["operator/tests/golden", "deploy/examples"] {
        files.extend(yaml_files(&repository(folder)));
    }
    let location =
        format!("{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", folder.path().display());
    let mut arguments = vec!["-strict", "-summary", "-schema-location", &location];
    // Of other projects: the API server does not know them.
    arguments.extend([
        "-skip",
        "HTTPRoute,ServiceMonitor,PodMonitor,PrometheusRule,CustomResourceDefinition",
    ]);
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    let told = run("kubeconform", &arguments).await;
    assert!(told.contains("Invalid: 0, Errors: 0"), "{told}");
}

pub fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

/// A JSON schema for each kind that the API server has, in which no unknown field is allowed.
async fn write_schemas(client: &Client, folder: &Path) {
    let request = http::Request::get("/openapi/v2").body(Vec::new()).unwrap();
    let document: Value = client.request(request).await.unwrap();
    let mut definitions = document["definitions"].as_object().unwrap().clone();
    for (name, definition) in &mut definitions {
        if name.ends_with(".IntOrString") || name.ends_with(".Quantity") {
            *definition = json!({"type": ["string", "number"]});
        }
        strict(definition);
    }
    let kinds: Vec<(String, String)> = definitions.iter().flat_map(kinds_of).collect();
    assert!(kinds.len() > 100, "{} kinds", kinds.len());
    for (file, name) in kinds {
        let mut needed = Map::new();
        collect(&definitions, &name, &mut needed);
        let schema = json!({"$ref": format!("#/definitions/{name}"), "definitions": needed});
        std::fs::write(folder.join(file), schema.to_string()).unwrap();
    }
}

/// kubeconform's file names for a definition that is a kind.
fn kinds_of((name, definition): (&String, &Value)) -> Vec<(String, String)> {
    let kinds = definition["x-kubernetes-group-version-kind"].as_array();
    let file = |kind: &Value| {
        let text = |field: &str| kind[field].as_str().unwrap_or_default().to_lowercase();
        let group = text("group").split('.').next().unwrap_or_default().to_owned();
        let group = if group.is_empty() { group } else { format!("-{group}") };
        (format!("{}{group}-{}.json", text("kind"), text("version")), name.clone())
    };
    kinds.into_iter().flatten().map(file).collect()
}

fn strict(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        if object.contains_key("properties") {
            object.insert("additionalProperties".to_owned(), false.into());
        }
        for value in object.values_mut() {
            strict(value);
        }
    } else if let Some(list) = schema.as_array_mut() {
        list.iter_mut().for_each(strict);
    }
}

/// The definition and all that it refers to.
fn collect(all: &Map<String, Value>, name: &str, into: &mut Map<String, Value>) {
    if into.contains_key(name) {
        return;
    }
    let definition = &all[name];
    into.insert(name.to_owned(), definition.clone());
    let mut pending = vec![definition];
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(object) => {
                if let Some(name) = object.get("$ref").and_then(Value::as_str) {
                    collect(all, name.trim_start_matches("#/definitions/"), into);
                }
                pending.extend(object.values());
            }
            Value::Array(list) => pending.extend(list),
            _ => {}
        }
    }
}

/// A kubeconfig of a `ServiceAccount`, as a pod of it would have.
async fn service_account_config(plane: &ControlPlane, client: &Client, namespace: &str) -> String {
    let token = token(client, namespace, "search-sextant-operator").await;
    let admin = std::fs::read_to_string(plane.admin_config()).unwrap();
    admin.replace(sextant_stack::kubernetes::ADMIN.token, &token)
}

#[tokio::test]
async fn an_installed_chart_brings_all_that_its_operator_needs() {
    // One of its own: the others have the CustomResourceDefinition already.
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path()).await.unwrap();
    let admin = client(plane.admin_config()).await;
    let config = plane.admin_config().display().to_string();
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    // A whole cluster, then a single namespace.
    for (namespace, watched, extra) in
        [("whole", "whole", "sample.enabled=true"), ("single", "apps", "crds.enabled=false")]
    {
        for name in [namespace, watched] {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let namespace = Namespace { metadata, ..Namespace::default() };
            // The two may be the same.
            let _ = namespaces.create(&PostParams::default(), &namespace).await;
        }
        let watch = if watched == namespace { "" } else { watched };
        let values = format!("{extra},sample.enabled=true,watchNamespace={watch}");
        let chart = chart();
        let helm = async |verb: &str, more: &str| {
            let values = format!("{values}{more}");
            let arguments = [verb, "search", &chart, "--namespace", namespace];
            let arguments = [&arguments[..], &["--kubeconfig", &config, "--set", &values]].concat();
            run("helm", &arguments).await
        };
        helm("install", "").await;
        let file = folder.path().join(format!("{namespace}.yaml"));
        std::fs::write(&file, service_account_config(&plane, &admin, namespace).await).unwrap();
        let mut arguments = vec!["--lease-namespace", namespace];
        if !watch.is_empty() {
            arguments.extend(["--watch-namespace", watch]);
        }
        let operator = Operator::start(folder.path(), &file, &arguments).await;
        let cluster = TestCluster::of(admin.clone(), watched.to_owned());
        let ready = cluster.ready("sextant").await;
        assert_eq!(operator.metric("sextant_operator_reconcile_failures_total").await, 0);
        let upgraded = helm("upgrade", ",replicas=2").await;
        assert!(upgraded.contains("STATUS: deployed"), "{upgraded}");
        let arguments = ["uninstall", "search", "--namespace", namespace, "--kubeconfig", &config];
        run("helm", &arguments).await;
        let deployments: Api<SearchDeployment> = Api::namespaced(admin.clone(), watched);
        let left = deployments.get("sextant").await.unwrap();
        assert_eq!(left.metadata.uid, ready.metadata.uid, "the sample has data, and stays");
        drop(operator);
    }
    let crds: Api<CustomResourceDefinition> = Api::all(admin);
    assert!(crds.get_opt("searchdeployments.sextant.dev").await.unwrap().is_some());
}

#[tokio::test]
async fn every_example_becomes_its_objects() {
    for file in yaml_files(&repository("deploy/examples")) {
        let cluster = TestCluster::start().await;
        cluster.runtime_class("nvidia").await;
        let operator = cluster.operator().await;
        let text = std::fs::read_to_string(&file).unwrap();
        let body = sextant_operator::crd::parse(&text).unwrap();
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        cluster.apply(&name, body["spec"].clone()).await.unwrap();
        cluster.ready(&name).await;
        let golden = repository("operator/tests/golden").join(file.file_name().unwrap());
        let golden = std::fs::read_to_string(golden).unwrap();
        let objects: Vec<Value> = golden
            .split("---\n")
            .skip(1)
            .map(|text| serde_saphyr::from_str(text).unwrap())
            .collect();
        let mut expected: Vec<String> = objects
            .iter()
            .filter_map(|object| {
                let name = object["metadata"]["name"].as_str().unwrap();
                match object["kind"].as_str().unwrap() {
                    // Their kinds are not there.
                    "HTTPRoute" | "ServiceMonitor" => None,
                    "PodMonitor" => {
                        Some(format!("Service/{}-metrics", name.replace("-milvus-", "-")))
                    }
                    kind => Some(format!("{kind}/{name}")),
                }
            })
            .collect();
        expected.sort();
        let mut made = cluster.names().await;
        made.sort();
        assert_eq!(made, expected, "{}", file.display());
        let failures = operator.metric("sextant_operator_reconcile_failures_total").await;
        assert_eq!(failures, 0, "{}: {}", file.display(), operator.log());
    }
}
