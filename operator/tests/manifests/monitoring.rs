//! What Prometheus is told to scrape, with its operator and without.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::jiff::civil::date;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sextant_operator::components::{Desired, Kind, Manifest, Observed, desired};
use sextant_operator::crd::SearchDeployment;
use sextant_operator::validate::validate;

const MONITORS: [Kind; 2] = [Kind::ServiceMonitor, Kind::PodMonitor];

fn object(name: &str, spec: &Value) -> SearchDeployment {
    let object = json!({
        "apiVersion": "sextant.dev/v1alpha1",
        "kind": "SearchDeployment",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// The objects where these kinds are not installed.
fn objects(name: &str, spec: &Value, missing: &[Kind]) -> Desired {
    seen(name, spec, &Observed { missing: missing.to_vec(), ..Observed::default() })
}

fn seen(name: &str, spec: &Value, observed: &Observed) -> Desired {
    let deployment = validate(&object(name, spec), "1.0.0").unwrap();
    desired(&deployment, observed, date(2026, 1, 1), &mut StdRng::seed_from_u64(1)).unwrap()
}

/// All that there is of Milvus's roles, and everything else that has metrics.
fn all_of_it() -> Value {
    json!({
        "embedder": {"placement": "dedicated"},
        "cache": {"exporter": {"enabled": true}},
        "milvus": {"mode": "cluster"},
        "objectStorage": {
            "endpoint": "https://s3.example.com", "bucket": "vectors", "credentialsSecret": "s3",
        },
    })
}

fn of_kind(objects: &Desired, kind: Kind) -> BTreeMap<&str, &Manifest> {
    let all = objects.manifests().filter(|manifest| manifest.kind == kind);
    all.map(|manifest| (manifest.name.as_str(), manifest)).collect()
}

/// The templates of all pods.
fn templates(objects: &Desired) -> BTreeMap<&str, &Value> {
    let all = objects
        .manifests()
        .map(|manifest| (manifest.name.as_str(), &manifest.body["spec"]["template"]));
    all.filter(|(_, template)| template.is_object()).collect()
}

/// Services that say that they are to be scraped, and the port that they say.
fn annotated(objects: &Desired) -> BTreeMap<&str, &str> {
    let services = of_kind(objects, Kind::Service).into_iter().filter_map(|(name, service)| {
        let annotations = &service.body["metadata"]["annotations"];
        let port = annotations["prometheus.io/port"].as_str()?;
        assert_eq!(annotations["prometheus.io/scrape"], "true");
        assert_eq!(annotations["prometheus.io/path"], "/metrics");
        assert_eq!(annotations["prometheus.io/scheme"], "http");
        Some((name, port))
    });
    services.collect()
}

#[test]
fn redis_has_an_exporter_where_one_is_asked_for() {
    let without = objects("gym", &json!({}), &[]);
    assert_eq!(containers(&without).len(), 1);
    assert!(!of_kind(&without, Kind::PodMonitor).contains_key("gym-redis"));

    let with = objects("gym", &json!({"cache": {"exporter": {"enabled": true}}}), &[]);
    let exporter = &containers(&with)[1];
    assert_eq!(exporter["image"], "docker.io/oliver006/redis_exporter:v1.91.1");
    assert_eq!(exporter["ports"][0]["name"], "metrics");
    assert_eq!(exporter["ports"][0]["containerPort"], 9_121);
    let variable = |name: &str| {
        let mut all = exporter["env"].as_array().unwrap().iter();
        all.find(|variable| variable["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let password = &variable("REDIS_PASSWORD")["valueFrom"]["secretKeyRef"];
    assert_eq!((&password["name"], &password["key"]), (&json!("gym-redis"), &json!("password")));
    assert_eq!(variable("REDIS_EXPORTER_DISABLE_SCRAPE_ENDPOINT")["value"], "true");
    assert!(exporter["args"].is_null() && exporter["command"].is_null());
    let monitor = &of_kind(&with, Kind::PodMonitor)["gym-redis"].body["spec"];
    assert_eq!(monitor["podMetricsEndpoints"][0]["port"], "metrics");

    let other = json!({
        "images": {"redisExporter": "registry.example.com/exporter:1"},
        "cache": {"exporter": {"enabled": true}},
    });
    let other = objects("gym", &other, &[]);
    assert_eq!(containers(&other)[1]["image"], "registry.example.com/exporter:1");
}

/// Of Redis.
fn containers(objects: &Desired) -> &Vec<Value> {
    let redis = objects.get(Kind::Deployment, "gym-redis").unwrap();
    redis.body["spec"]["template"]["spec"]["containers"].as_array().unwrap()
}

#[test]
fn an_exporter_of_a_redis_that_is_there_already_is_refused() {
    let spec = json!({
        "cache": {"exporter": {"enabled": true}, "external": {"url": "redis://elsewhere:6379"}},
    });
    let faults = validate(&object("gym", &spec), "1.0.0").unwrap_err();
    assert!(faults[0].reason.contains("leave them out with external"), "{faults:?}");
}

#[test]
fn only_prometheus_reaches_the_exporter() {
    let objects = objects("gym", &json!({"cache": {"exporter": {"enabled": true}}}), &[]);
    let policy = &of_kind(&objects, Kind::NetworkPolicy)["gym-redis"].body["spec"]["ingress"];
    let rules = policy.as_array().unwrap().iter();
    let scraped: Vec<_> = rules.filter(|rule| rule["ports"][0]["port"] == 9_121).collect();
    assert_eq!(scraped.len(), 1);
    let from = &scraped[0]["from"][0]["podSelector"]["matchLabels"];
    assert_eq!(from["app.kubernetes.io/name"], "prometheus");
}

#[test]
fn with_prometheuss_operator_each_component_has_a_monitor_and_no_service_has_annotations() {
    let objects = objects("gym", &all_of_it(), &[]);
    let of_services: Vec<_> = of_kind(&objects, Kind::ServiceMonitor).into_keys().collect();
    assert_eq!(of_services, ["gym-api", "gym-embedder"]);
    let of_pods: Vec<_> = of_kind(&objects, Kind::PodMonitor).into_keys().collect();
    let roles = ["coordinator", "datanode", "proxy", "querynode", "streamingnode"];
    let roles = roles.map(|role| format!("gym-milvus-{role}"));
    let expected: Vec<_> =
        roles.iter().map(String::as_str).chain(["gym-postgres", "gym-redis"]).collect();
    assert_eq!(of_pods, expected);
    assert!(annotated(&objects).is_empty());
}

#[test]
fn without_it_services_say_the_same_and_each_leads_to_pods_that_have_the_port() {
    let objects = objects("gym", &all_of_it(), &MONITORS);
    for kind in MONITORS {
        assert!(of_kind(&objects, kind).is_empty());
    }
    let annotated = annotated(&objects);
    let expected = BTreeMap::from([
        ("gym-api", "8080"),
        ("gym-embedder", "8080"),
        ("gym-redis-metrics", "9121"),
        ("gym-postgres-metrics", "8008"),
        ("gym-coordinator-metrics", "9091"),
        ("gym-datanode-metrics", "9091"),
        ("gym-proxy-metrics", "9091"),
        ("gym-querynode-metrics", "9091"),
        ("gym-streamingnode-metrics", "9091"),
    ]);
    assert_eq!(annotated, expected);
    for (name, port) in annotated {
        let spec = &objects.get(Kind::Service, name).unwrap().body["spec"];
        let mut pods = templates(&objects).into_values();
        let pod = pods.find(|pod| pod["metadata"]["labels"] == spec["selector"]);
        // Pods of Postgres have a label of Patroni's beside those that select.
        let postgres = templates(&objects)["gym-postgres"];
        let pod = pod.or((name == "gym-postgres-metrics").then_some(postgres));
        let containers = pod.unwrap()["spec"]["containers"].as_array().unwrap();
        let mut ports = containers.iter().flat_map(|it| it["ports"].as_array().unwrap());
        let leads_to = &spec["ports"][0]["targetPort"];
        let port: u16 = port.parse().unwrap();
        let is_it = |it: &Value| it["name"] == *leads_to && it["containerPort"] == port;
        assert!(ports.any(is_it), "{name}");
    }
}

#[test]
fn the_kinds_of_prometheuss_operator_replace_no_pod_when_they_come() {
    let with = objects("gym", &all_of_it(), &[]);
    let without = objects("gym", &all_of_it(), &MONITORS);
    assert_eq!(templates(&with), templates(&without));
    assert!(templates(&with).len() >= 9);
}

#[test]
fn the_names_of_services_fit_into_63_characters_whatever_the_name() {
    let name = "a".repeat(40);
    for manifest in of_kind(&objects(&name, &all_of_it(), &MONITORS), Kind::Service).into_values() {
        assert!(manifest.name.len() <= 63, "{} has {}", manifest.name, manifest.name.len());
    }
}

#[test]
fn nothing_is_scraped_where_nobody_wants_it() {
    let mut spec = all_of_it();
    spec["monitoring"] = json!({"enabled": false});
    for missing in [MONITORS.as_slice(), &[]] {
        let objects = objects("gym", &spec, missing);
        assert!(annotated(&objects).is_empty());
        assert!(MONITORS.into_iter().all(|kind| of_kind(&objects, kind).is_empty()));
    }
}

#[test]
fn the_headers_for_a_collector_are_only_named_and_other_ones_replace_the_servers_alone() {
    let mut spec = all_of_it();
    let headers = json!({"name": "otel", "key": "headers"});
    spec["traces"] = json!({"endpoint": "https://otel.example.com", "headersSecret": headers});
    assert!(object("gym", &spec).spec.secrets().contains(&"otel"));
    let with = |headers: &[u8]| {
        let secret = BTreeMap::from([("headers".to_owned(), ByteString(headers.to_vec()))]);
        let referenced = BTreeMap::from([("otel".to_owned(), secret)]);
        seen("gym", &spec, &Observed { referenced, ..Observed::default() })
    };
    let (one, other) = (with(b"authorization=one"), with(b"authorization=other"));
    let (one, other) = (templates(&one), templates(&other));
    let servers = ["gym-api", "gym-embedder"];
    for server in servers {
        let variables = one[server]["spec"]["containers"][0]["env"].as_array().unwrap();
        let source = json!({"secretKeyRef": headers});
        let is_it =
            |it: &Value| it["name"] == "OTEL_EXPORTER_OTLP_HEADERS" && it["valueFrom"] == source;
        assert!(variables.iter().any(is_it), "{server}");
    }
    let replaced = one.keys().filter(|name| one[*name] != other[*name]);
    assert!(replaced.copied().eq(servers));
    assert!(!one.values().any(|template| template.to_string().contains("authorization")));
}
