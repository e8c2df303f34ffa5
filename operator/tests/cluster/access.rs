//! The cluster that the tests share, and who they and the operator are on it: a control plane of
//! their own, or with `USE_EXISTING_CLUSTER=true` the cluster of `KUBECONFIG`.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams,
    PostParams,
};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config, ResourceExt};
use serde_json::json;
use sextant_operator::crd::{SearchDeployment, definition};
use sextant_stack::kubernetes::{ControlPlane, OPERATOR};
use tokio::sync::OnceCell;

/// On every namespace of the tests.
pub const LABEL: &str = "sextant.dev/test";
/// Of what the tests need for all namespaces.
const NAME: &str = "sextant-operator-test";

/// Kubeconfigs.
pub struct Access {
    pub admin: PathBuf,
    /// Has the rules of the chart and nothing else.
    pub operator: PathBuf,
}

/// The same for all tests.
pub async fn access() -> &'static Access {
    static ACCESS: OnceCell<Access> = OnceCell::const_new();
    ACCESS
        .get_or_init(|| async {
            if let Some(admin) = existing() {
                return Access { operator: prepare_existing(&admin).await, admin };
            }
            let plane = ControlPlane::shared().unwrap();
            prepare(&client(plane.admin_config()).await).await;
            Access { admin: plane.admin_config(), operator: plane.operator_config() }
        })
        .await
}

/// A client with the rights of this kubeconfig.
pub async fn client(kubeconfig: PathBuf) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The CRD and the operator's rights, as the chart has them, on a control plane of the tests.
pub async fn prepare(client: &Client) {
    let user = Subject {
        kind: "User".to_owned(),
        name: OPERATOR.name.to_owned(),
        api_group: Some("rbac.authorization.k8s.io".to_owned()),
        namespace: None,
    };
    prepare_for(client, user).await;
}

async fn prepare_for(client: &Client, operator: Subject) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("test").force();
    let name = "searchdeployments.sextant.dev";
    crds.patch(name, &apply, &Patch::Apply(definition())).await.unwrap();
    let established = kube::runtime::conditions::is_crd_established();
    kube::runtime::wait::await_condition(crds, name, established).await.unwrap();
    let rules = include_str!("../../../charts/sextant/files/rules.yaml");
    let rules: Vec<PolicyRule> = serde_saphyr::from_str(rules).unwrap();
    let role = ClusterRole { metadata: named(), rules: Some(rules), ..ClusterRole::default() };
    let binding = ClusterRoleBinding {
        metadata: named(),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: NAME.to_owned(),
        },
        subjects: Some(vec![operator]),
    };
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch(NAME, &apply, &Patch::Apply(&role)).await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.patch(NAME, &apply, &Patch::Apply(&binding)).await.unwrap();
}

fn named() -> ObjectMeta {
    ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }
}

fn existing() -> Option<PathBuf> {
    std::env::var("USE_EXISTING_CLUSTER").ok().filter(|value| value == "true")?;
    let given = std::env::var_os("KUBECONFIG").map(PathBuf::from);
    given.or_else(|| Some(std::env::home_dir()?.join(".kube/config")))
}

/// The operator is a `ServiceAccount` there. Its kubeconfig, with a token for an hour.
async fn prepare_existing(admin: &PathBuf) -> PathBuf {
    let client = client(admin.clone()).await;
    let apply = PatchParams::apply("test").force();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = Namespace { metadata: named(), ..Namespace::default() };
    namespaces.patch(NAME, &apply, &Patch::Apply(namespace)).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAME);
    let account = ServiceAccount { metadata: named(), ..ServiceAccount::default() };
    accounts.patch(NAME, &apply, &Patch::Apply(account)).await.unwrap();
    let account = Subject {
        kind: "ServiceAccount".to_owned(),
        name: NAME.to_owned(),
        namespace: Some(NAME.to_owned()),
        api_group: None,
    };
    prepare_for(&client, account).await;
    leave_pods_alone(&client).await;
    let token = token(&client, NAME, NAME).await;
    let mut config = Kubeconfig::read_from(admin).unwrap();
    for user in &mut config.auth_infos {
        user.auth_info =
            Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("operator-kubeconfig.yaml");
    // JSON is YAML.
    std::fs::write(&file, serde_json::to_string(&config).unwrap()).unwrap();
    file
}

/// Of a `ServiceAccount`, for an hour.
pub async fn token(client: &Client, namespace: &str, name: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(3_600), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let made = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();
    made.status.unwrap().token
}

/// The tests say when pods are ready: no kubelet is to run them.
async fn leave_pods_alone(client: &Client) {
    let apply = PatchParams::apply("test").force();
    let api = |kind: &str| {
        let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
    };
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": named(),
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {LABEL: "true"}},
                "resourceRules": [{
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["pods"],
                }],
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{
                "patchType": "JSONPatch",
                "jsonPatch": {"expression": format!(
                    "[JSONPatch{{op: 'add', path: '/spec/nodeSelector', value: {{'{LABEL}': 'none'}}}}]"
                )},
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": named(),
        "spec": {"policyName": NAME},
    });
    let policies = api("MutatingAdmissionPolicy");
    policies.patch(NAME, &apply, &Patch::Apply(&policy)).await.unwrap();
    let bindings = api("MutatingAdmissionPolicyBinding");
    bindings.patch(NAME, &apply, &Patch::Apply(&binding)).await.unwrap();
}

/// Takes the namespace of a test away, on a cluster that stays. With a control plane of the tests all
/// of it goes.
pub struct Left(pub String);

impl Drop for Left {
    fn drop(&mut self) {
        let Some(admin) = existing() else { return };
        let namespace = self.0.clone();
        // Not on the test's own threads, which end with it.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let limit = Duration::from_secs(20);
                tokio::time::timeout(limit, delete(client(admin).await, &namespace)).await
            })
        });
        if !matches!(deleted.join(), Ok(Ok(Ok(())))) {
            eprintln!("namespace {} is left behind", self.0);
        }
    }
}

async fn delete(client: Client, namespace: &str) -> Result<(), kube::Error> {
    // Nobody is left who would clean up after them.
    let deployments: Api<SearchDeployment> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"finalizers": null}});
    for object in deployments.list(&ListParams::default()).await? {
        let patch = Patch::Merge(&patch);
        deployments.patch(&object.name_any(), &PatchParams::default(), &patch).await?;
    }
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete(namespace, &DeleteParams::default()).await.map(drop)
}
