//! CRDs that are missing, come later, or were others before. Each test has a
//! control plane of its own: they are there for all namespaces.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::{conditions, wait::await_condition};
use serde_json::json;
use sextant_operator::components::Kind;
use sextant_operator::crd::{SearchDeployment, definition};
use sextant_stack::kubernetes::ControlPlane;
use tempfile::TempDir;

use crate::access::client;
use crate::support::{TestCluster, manifest};

const NAME: &str = "searchdeployments.sextant.dev";

/// A cluster of the test's own, which ends with its control plane.
async fn start() -> (TestCluster, ControlPlane, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path()).await.unwrap();
    let admin = client(plane.admin_config()).await;
    let cluster = TestCluster::on(&plane, admin, "gyms").await;
    (cluster, plane, folder)
}

fn crds(cluster: &TestCluster) -> Api<CustomResourceDefinition> {
    Api::all(cluster.client.clone())
}

/// Makes the API server take any object of this kind.
async fn install(cluster: &TestCluster, kind: Kind) {
    let resource = kind.resource();
    let name = format!("{}.{}", resource.plural, resource.group);
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let body = json!({
        "metadata": {
            "name": name,
            // Else the API server refuses kinds of its own project.
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": resource.group,
            "names": {"kind": resource.kind, "plural": resource.plural},
            "scope": "Namespaced",
            "versions": [{
                "name": resource.version,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    let crd: CustomResourceDefinition = serde_json::from_value(body).unwrap();
    crds(cluster).create(&PostParams::default(), &crd).await.unwrap();
    let established = conditions::is_crd_established();
    await_condition(crds(cluster), &name, established).await.unwrap();
}

#[tokio::test]
async fn routes_and_monitors_are_made_as_soon_as_their_kinds_are_there() {
    let (cluster, _plane, _folder) = start().await;
    let operator = cluster.operator().await;
    let spec = json!({
        "api": {"expose": {"gateway": "public", "host": "gym.example.com"}},
        "monitoring": {"labels": {"release": "prometheus"}},
    });
    cluster.apply("gym", spec).await.unwrap();
    cluster.ready("gym").await;
    let is_annotated = || async {
        let service = cluster.api(Kind::Service).get("gym-api").await.unwrap();
        service.annotations().contains_key("prometheus.io/scrape")
    };
    let stand_ins = || async {
        let mut names = cluster.names().await;
        names.retain(|name| name.starts_with("Service/") && name.ends_with("-metrics"));
        names
    };
    assert!(is_annotated().await, "without a ServiceMonitor the Service says what to scrape");
    assert_eq!(stand_ins().await, ["Service/gym-milvus-metrics", "Service/gym-postgres-metrics"]);
    let kinds = [
        (Kind::HttpRoute, "gym-api"),
        (Kind::ServiceMonitor, "gym-api"),
        (Kind::PodMonitor, "gym-postgres"),
    ];
    for (kind, name) in kinds {
        install(&cluster, kind).await;
        let made = || async { cluster.api(kind).get_opt(name).await.unwrap().is_some() };
        sextant_stack::until(kind.as_str(), made)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", operator.log()));
    }
    sextant_stack::until("monitors alone", || async {
        !is_annotated().await && stand_ins().await.is_empty()
    })
    .await
    .unwrap();
    let route = cluster.api(Kind::HttpRoute).get("gym-api").await.unwrap();
    assert_eq!(route.data["spec"]["parentRefs"][0]["name"], "public");
    let monitor = cluster.api(Kind::ServiceMonitor).get("gym-api").await.unwrap();
    assert_eq!(monitor.metadata.labels.unwrap()["release"], "prometheus");
    cluster.apply("gym", json!({"monitoring": {"enabled": false}})).await.unwrap();
    cluster.ready("gym").await;
    for kind in [Kind::HttpRoute, Kind::ServiceMonitor] {
        assert!(cluster.api(kind).get_opt("gym-api").await.unwrap().is_none(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_searchdeployment_that_cannot_be_read_is_told_of_and_stops_no_other() {
    let (cluster, _plane, _folder) = start().await;
    let schema = |spec| {
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        Patch::Json::<()>(
            serde_json::from_value(json!([{"op": "replace", "path": path, "value": spec}]))
                .unwrap(),
        )
    };
    // As if it had been made before there were rules.
    let lax = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let patching = PatchParams::default();
    crds(&cluster).patch(NAME, &patching, &schema(lax)).await.unwrap();
    let odd = |name: &str| -> DynamicObject {
        serde_json::from_value(manifest(name, &json!({"paused": "maybe"}))).unwrap()
    };
    let kind = ApiResource::erase::<SearchDeployment>(&());
    let all: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "gyms", &kind);
    let parameters = PostParams::default();
    sextant_stack::until("an odd one", async || all.create(&parameters, &odd("odd")).await.is_ok())
        .await
        .unwrap();
    let strict = serde_json::to_value(definition()).unwrap();
    let strict = &strict["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    crds(&cluster).patch(NAME, &patching, &schema(strict.clone())).await.unwrap();
    sextant_stack::until("rules again", async || {
        all.create(&PostParams { dry_run: true, ..PostParams::default() }, &odd("odder"))
            .await
            .is_err()
    })
    .await
    .unwrap();

    let operator = cluster.operator().await;
    cluster.apply("gym", json!({})).await.unwrap();
    cluster.ready("gym").await;
    sextant_stack::until("the event", || async {
        cluster.events().await.contains(&"UnreadableObject".to_owned())
    })
    .await
    .unwrap();
    assert!(operator.metric("sextant_operator_reconcile_failures_total").await >= 1);
}
