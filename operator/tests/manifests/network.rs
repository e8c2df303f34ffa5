//! The network policies, judged as Kubernetes would, over all pairs of pods.

use std::collections::BTreeMap;

use serde_json::Value;
use sextant_operator::components::{Desired, Kind};

use crate::examples;

type Labels = BTreeMap<String, String>;

/// A pod: its labels, and the name of its component, or of who it is outside.
struct Pod {
    name: String,
    labels: Labels,
}

fn labels(of: &Value) -> Labels {
    serde_json::from_value(of.clone()).unwrap_or_default()
}

fn pods(objects: &Desired) -> Vec<Pod> {
    let templates = objects.manifests().map(|manifest| &manifest.body["spec"]["template"]);
    let of_component = templates.filter(|template| template.is_object()).map(|template| {
        let labels = labels(&template["metadata"]["labels"]);
        Pod { name: labels["app.kubernetes.io/component"].clone(), labels }
    });
    let outside = ["stranger", "prometheus", "sextant-operator"].map(|name| Pod {
        name: name.to_owned(),
        labels: Labels::from([("app.kubernetes.io/name".to_owned(), name.to_owned())]),
    });
    of_component.chain(outside).collect()
}

/// Whether a selector without expressions matches.
fn selects(selector: &Value, of: &Labels) -> bool {
    labels(&selector["matchLabels"]).iter().all(|(key, value)| of.get(key) == Some(value))
}

/// Whether Kubernetes lets `from` reach a port of `to`, both in one namespace.
///
/// # Source
/// <https://kubernetes.io/docs/concepts/services-networking/network-policies/>
fn is_allowed(objects: &Desired, from: &Pod, to: &Pod, port: u16) -> bool {
    let policies = objects.manifests().filter(|manifest| manifest.kind == Kind::NetworkPolicy);
    let mut selected = policies
        .map(|manifest| &manifest.body["spec"])
        .filter(|policy| selects(&policy["podSelector"], &to.labels))
        .peekable();
    // A pod that no policy selects takes whatever comes.
    if selected.peek().is_none() {
        return true;
    }
    selected.flat_map(|policy| policy["ingress"].as_array().unwrap()).any(|rule| {
        let mut peers = rule["from"].as_array().unwrap().iter();
        let mut ports = rule["ports"].as_array().unwrap().iter();
        ports.any(|allowed| allowed["port"] == port)
            && peers.any(|peer| {
                let namespace = peer.get("namespaceSelector");
                let in_namespace = namespace.is_none_or(|of| selects(of, &Labels::new()));
                let pods = peer.get("podSelector");
                in_namespace && pods.is_none_or(|of| selects(of, &from.labels))
            })
    })
}

/// The connections that the components make, said once more and in another way than the operator does.
fn exists(from: &str, to: &str, port: u16) -> bool {
    let role = |name: &str| name.starts_with("milvus-") && name != "milvus-etcd";
    let internal = match to {
        "milvus-proxy" => 19_529,
        "milvus-coordinator" => 53_100,
        "milvus-streamingnode" => 22_222,
        "milvus-querynode" => 21_123,
        "milvus-datanode" => 21_124,
        "milvus-indexnode" => 21_121,
        _ => 0,
    };
    match (to, port) {
        ("api", 8_080) => true,
        ("embedder", 8_080) => ["api", "prometheus"].contains(&from),
        ("redis", 6_379) | ("milvus" | "milvus-proxy", 19_530) => from == "api",
        ("postgres", 5_432) => ["api", "postgres"].contains(&from),
        ("postgres", 8_008) => ["postgres", "prometheus", "sextant-operator"].contains(&from),
        ("milvus-etcd", 2_379) => role(from),
        ("milvus-etcd", 2_380) => from == "milvus-etcd",
        (to, 9_091) if to == "milvus" || role(to) => from == "prometheus",
        (_, port) => port == internal && role(from),
    }
}

#[test]
fn exactly_the_connections_that_exist_are_allowed() {
    let ports = [
        22, 80, 2_379, 2_380, 5_432, 6_379, 8_008, 8_080, 9_091, 9_121, 19_529, 19_530, 21_121,
        21_123, 21_124, 22_222, 53_100,
    ];
    for (name, objects) in examples() {
        // Its clients are those of one namespace, which this does not know.
        if name == "production-gpu" {
            continue;
        }
        let pods = pods(&objects);
        let outside = |pod: &Pod| !pod.labels.contains_key("app.kubernetes.io/component");
        for to in pods.iter().filter(|pod| !outside(pod)) {
            for from in &pods {
                for port in ports {
                    assert_eq!(
                        is_allowed(&objects, from, to, port),
                        exists(&from.name, &to.name, port),
                        "{name}: {} to {}:{port}",
                        from.name,
                        to.name
                    );
                }
            }
        }
    }
}
