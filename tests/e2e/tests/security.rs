//! Who may do what.

use serde_json::json;

use crate::support::{NAMESPACE, Stack, figure};

#[tokio::test]
async fn the_operators_account_may_do_what_its_role_lists_and_nothing_else() {
    let (stack, _) = Stack::get().await;
    let account = "system:serviceaccount:sextant:sextant-operator";
    let may = async |what: &str| {
        stack
            .cluster
            .try_sh(&format!("kubectl auth can-i {what} --as {account} -n {NAMESPACE} -q"))
            .await
            .is_ok()
    };
    for what in [
        "patch statefulsets.apps",
        "create secrets",
        "delete pods",
        "list nodes",
        "patch searchdeployments --subresource=status",
    ] {
        assert!(may(what).await, "{what}");
    }
    for what in [
        "create pods --subresource=exec",
        "create pods",
        "delete persistentvolumes",
        "patch nodes",
        "create clusterroles",
        "impersonate users",
        "delete namespaces",
        "create searchdeployments",
        "delete searchdeployments",
        "create serviceaccounts --subresource=token",
        "update pods --subresource=ephemeralcontainers",
        "escalate roles",
    ] {
        assert!(!may(what).await, "{what}");
    }
}

#[tokio::test]
async fn the_namespace_enforces_restricted_pods_and_all_of_the_stack_runs_in_it() {
    let (stack, _) = Stack::get().await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "root", "image": "localhost/load:1"}]},
    });
    let refused = stack.cluster.try_sh(&format!("kubectl apply -f - <<'END'\n{pod}\nEND")).await;
    assert!(refused.unwrap_err().contains("violates PodSecurity \"restricted"));
    assert!(stack.pods("api").await.len() >= 2);
}

#[tokio::test]
async fn no_password_is_in_a_process_list_or_a_log_of_the_operator() {
    let (stack, _) = Stack::get().await;
    let secrets = stack
        .cluster
        .get(&format!("secrets -n {NAMESPACE} -l app.kubernetes.io/instance=sextant"))
        .await;
    let log = stack
        .cluster
        .sh("kubectl logs -n sextant -l app.kubernetes.io/name=sextant-operator --tail=-1")
        .await;
    let mut processes = String::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        processes += &String::from_utf8_lossy(&line).replace('\0', " ");
        processes.push('\n');
    }
    let mut looked = 0;
    for secret in secrets["items"].as_array().unwrap() {
        for (entry, value) in secret["data"].as_object().unwrap() {
            let value = String::from_utf8(base64_decoded(value.as_str().unwrap())).unwrap();
            if value.contains('\n') || value.len() < 16 {
                continue;
            }
            looked += 1;
            let name = &secret["metadata"]["name"];
            assert!(!log.contains(&value), "{name} {entry} is in the operator's log");
            assert!(!processes.contains(&value), "{name} {entry} is in a command line");
        }
    }
    assert!(looked >= 4, "{looked}");
}

fn base64_decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

/// Connects from a pod of the Postgres image, which has Python, to each address.
async fn reachable(stack: &Stack, namespace: &str, pod: &str, addresses: &[String]) -> Vec<String> {
    let script = "
import socket, sys
for address in sys.argv[1:]:
    host, port = address.split(':')
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print(address)
    except OSError:
        pass";
    let words = addresses.join(" ");
    let command = format!("kubectl exec -n {namespace} {pod} -- python3 -c \"{script}\" {words}");
    stack.cluster.sh(&command).await.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_connection_that_is_not_listed_is_refused() {
    let (stack, _) = Stack::get().await;
    if !stack.cluster.is_own {
        println!("not run: only of `make cluster-up` it is known that it enforces NetworkPolicies");
        return;
    }
    let stray = json!({
        "apiVersion": "v1", "kind": "Pod",
        // Its labels do not help: they count in the stack's own namespace only.
        "metadata": {"name": "stray", "namespace": "elsewhere", "labels": {
            "app.kubernetes.io/name": "sextant", "app.kubernetes.io/instance": "sextant",
            "app.kubernetes.io/component": "api",
        }},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "stray", "command": ["sleep", "600"], "imagePullPolicy": "IfNotPresent",
            "image": stack.image("postgres").await,
        }]},
    });
    let start = format!(
        "kubectl create namespace elsewhere --dry-run=client -o yaml | kubectl apply -f -
        kubectl apply -f - <<'END'\n{stray}\nEND
        kubectl wait -n elsewhere --for=condition=Ready --timeout=60s pod/stray"
    );
    stack.cluster.sh(&start).await;
    let mut addresses = Vec::new();
    for (component, ports) in [
        ("api", &[8080][..]),
        ("postgres", &[5432, 8008]),
        ("redis", &[6379]),
        ("milvus", &[19530, 9091]),
    ] {
        for pod in stack.addresses(component).await {
            addresses.extend(ports.iter().map(|port| (component, *port, format!("{pod}:{port}"))));
        }
    }
    let all: Vec<_> = addresses.iter().map(|(_, _, address)| address.clone()).collect();
    let of = |wanted: &[(&str, u16)]| {
        let listed = addresses.iter().filter(|(name, port, _)| wanted.contains(&(*name, *port)));
        listed.map(|(_, _, address)| address.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reachable(&stack, "elsewhere", "stray", &all).await, of(&[("api", 8080)]));
    let primary = stack.primary().await.unwrap();
    let listed = of(&[("api", 8080), ("postgres", 5432), ("postgres", 8008)]);
    assert_eq!(reachable(&stack, NAMESPACE, &primary, &all).await, listed);
    figure(&format!("connections tried: 2 × {}; refused: all that are not listed", all.len()));
    stack.cluster.sh("kubectl delete namespace elsewhere --wait --timeout=2m").await;
}
