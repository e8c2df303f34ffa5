//! `sextant-operator plan`.

use serde_json::json;
use tokio::process::Command;

use crate::access::access;
use crate::support::TestCluster;

/// Whether it succeeded, and what it printed.
async fn plan(cluster: &TestCluster, text: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.yaml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sextant-operator"));
    command.args(["plan", "--namespace", &cluster.namespace, "--file"]).arg(&file);
    let output = command.env("KUBECONFIG", &access().await.admin).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

const HEAD: &str =
    "apiVersion: sextant.dev/v1alpha1\nkind: SearchDeployment\nmetadata: {name: gym}\n";

#[tokio::test]
async fn a_plan_shows_what_an_apply_would_do_and_does_nothing() {
    let cluster = TestCluster::start().await;
    let (succeeded, told) = plan(&cluster, HEAD).await;
    assert!(succeeded, "{told}");
    assert!(told.contains("# create Deployment/gym-api"), "{told}");
    assert!(told.contains("0 to change, 0 to delete"), "{told}");
    assert!(cluster.names().await.is_empty());
    assert!(cluster.deployments().get_opt("gym").await.unwrap().is_none());

    let _operator = cluster.operator().await;
    cluster.apply("gym", json!({"postgres": {"storage": {"size": "20Gi"}}})).await.unwrap();
    cluster.ready("gym").await;
    let before = cluster.versions().await;
    let same = format!("{HEAD}spec: {{postgres: {{storage: {{size: 20Gi}}}}}}\n");
    let (succeeded, told) = plan(&cluster, &same).await;
    assert!(succeeded && told.contains("0 to create, 0 to change, 0 to delete"), "{told}");

    let other = format!(
        "{HEAD}spec: {{postgres: {{storage: {{size: 20Gi}}}}, api: {{replicas: 3}}, cache: {{enabled: false}}}}\n"
    );
    let (succeeded, told) = plan(&cluster, &other).await;
    assert!(succeeded, "{told}");
    assert!(told.contains("# update Deployment/gym-api"), "{told}");
    assert!(told.contains("-  replicas: 2\n+  replicas: 3\n"), "{told}");
    assert!(told.contains("# delete Deployment/gym-redis"), "{told}");
    let secret = cluster.secret("gym-postgres", "password").await;
    assert!(!told.contains(&secret), "a password is shown");
    assert_eq!(cluster.versions().await, before);

    for (wrong, reason) in [
        ("spec: {api: {replicaz: 3}}", "replicaz"),
        ("spec: {postgres: {synchronous: required}}", "three instances"),
        ("spec: {postgres: {storage: {size: 5Gi}}}", "cannot shrink"),
        ("spec: [", "is no SearchDeployment"),
    ] {
        let (succeeded, told) = plan(&cluster, &format!("{HEAD}{wrong}\n")).await;
        assert!(!succeeded && told.contains(reason), "{wrong}: {told}");
    }
    let (succeeded, told) = plan(&cluster, "apiVersion: v1\nkind: Pod\n").await;
    assert!(!succeeded && told.contains("apiVersion is not"), "{told}");
}
