//! What an apply would do, without doing it.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, ValidationDirective};
use kube::{Client, ResourceExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use similar::TextDiff;

use crate::changes::{APPLIED, Change, changes, whole};
use crate::components::meta::INSTANCE;
use crate::components::{Kind, Manifest, Observed, desired};
use crate::controller::today;
use crate::crd::{self, SearchDeployment};
use crate::validate::validate;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Prints the changes and how many there are.
///
/// # Errors
/// When the file is no SearchDeployment that can be had, or the cluster does not answer.
pub async fn run(file: &Path, namespace: Option<String>) -> Result<(), AnyError> {
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?
    };
    let mut body = crd::parse(&text)
        .map_err(|error| format!("{} is no SearchDeployment: {error}", file.display()))?;
    let client = Client::try_default().await?;
    let namespace = namespace
        .or_else(|| body["metadata"]["namespace"].as_str().map(str::to_owned))
        .unwrap_or_else(|| client.default_namespace().to_owned());
    body["metadata"]["namespace"] = namespace.as_str().into();
    let object = accepted(&client, &namespace, body).await?;
    let deployment = validate(&object, env!("CARGO_PKG_VERSION"))
        .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let mut observed = observe(&client, &namespace, &deployment.name).await?;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> =
        Api::namespaced(client.clone(), &namespace);
    for name in deployment.spec.secrets() {
        if let Some(secret) = secrets.get_opt(name).await? {
            observed.referenced.insert(name.to_owned(), secret.data.unwrap_or_default());
        }
    }
    let wanted = desired(&deployment, &observed, today(), &mut StdRng::from_os_rng())?;
    let changes = changes(&deployment, &wanted, &observed);
    for change in &changes {
        print!("{}", describe(change));
    }
    if deployment.spec.paused {
        println!("# paused: all this waits for `paused: false`");
    }
    let count = |verb| changes.iter().filter(|change| change.verb() == verb).count();
    println!(
        "{} to create, {} to change, {} to delete",
        count("create"),
        count("update") + count("grow"),
        count("delete")
    );
    Ok(())
}

/// What the API server would make of the file, by a dry run: it knows the rules, the fields and what
/// must not change.
async fn accepted(
    client: &Client,
    namespace: &str,
    body: Value,
) -> Result<SearchDeployment, AnyError> {
    let api: Api<SearchDeployment> = Api::namespaced(client.clone(), namespace);
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let mut parameters = PatchParams::apply("sextant-operator-plan").force().dry_run();
    parameters.field_validation = Some(ValidationDirective::Strict);
    let answer = if api.get_opt(name).await?.is_some() {
        // Not merged with what is there: what the file does not say is to be no more.
        let spec = vec![json!({"op": "replace", "path": "/spec", "value": body["spec"]})];
        let patch = serde_json::from_value(Value::Array(spec))?;
        parameters.force = false;
        api.patch(name, &parameters, &Patch::Json::<()>(patch)).await
    } else {
        api.patch(name, &parameters, &Patch::Apply(&body)).await
    };
    Ok(answer.map_err(|error| match error {
        kube::Error::Api(status) => format!("the API server refuses it: {}", status.message),
        other => format!("the API server cannot be asked: {other}"),
    })?)
}

/// The same as the operator's caches hold, asked once.
async fn observe(client: &Client, namespace: &str, name: &str) -> Result<Observed, AnyError> {
    let mut observed = Observed::default();
    let labels = ListParams::default().labels(&format!("{INSTANCE}={name}"));
    for kind in Kind::ALL {
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), namespace, &kind.resource());
        match api.list(&labels).await {
            Ok(list) => {
                for object in list {
                    observed.objects.insert((kind, object.name_any()), Arc::new(object));
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 && kind.is_optional() => {
                observed.missing.push(kind);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(observed)
}

/// A heading and the lines that differ. What a Secret holds is not shown.
pub fn describe(change: &Change) -> String {
    let (before, after) = match change {
        Change::Create(manifest) => (Value::Null, body(manifest)),
        Change::Update { manifest, live, .. } | Change::Grow { manifest, live, .. } => {
            let after = body(manifest);
            (shown(change.kind(), like(&whole(change.kind(), live), &after)), after)
        }
        Change::Delete { live, .. } => {
            let mut before = whole(change.kind(), live);
            if let Some(before) = before.as_object_mut() {
                before.remove("status");
            }
            (shown(change.kind(), before), Value::Null)
        }
    };
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        value => serde_saphyr::to_string(value).unwrap_or_default(),
    };
    let (before, after) = (text(&before), text(&after));
    let diff = TextDiff::from_lines(&before, &after);
    format!("# {change}\n{}\n", diff.unified_diff().context_radius(2))
}

/// What is to be, as it may be shown.
pub fn body(manifest: &Manifest) -> Value {
    shown(manifest.kind, manifest.body.clone())
}

fn shown(kind: Kind, mut body: Value) -> Value {
    if kind == Kind::Secret {
        for value in body["data"].as_object_mut().into_iter().flat_map(|data| data.values_mut()) {
            *value = "(hidden)".into();
        }
    }
    let annotations = body.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        annotations.remove(APPLIED);
    }
    body
}

/// Of what there is, the fields that the manifest speaks of.
fn like(live: &Value, wanted: &Value) -> Value {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => live
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), like(value, wanted.get(key)?))))
            .collect(),
        (Value::Array(live), Value::Array(wanted)) => {
            let template = |number: usize| wanted.get(number).unwrap_or(&Value::Null);
            live.iter().enumerate().map(|(number, live)| like(live, template(number))).collect()
        }
        (live, _) => live.clone(),
    }
}
