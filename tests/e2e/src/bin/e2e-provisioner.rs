//! Volumes of the test cluster: a folder of this machine for each claim, which both nodes see.
//! Those of the class with `parameters.bounded` are file systems of the claim's size, which can be full.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::process::Command;

const PROVISIONER: &str = "sextant.dev/e2e";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PERIOD: Duration = Duration::from_millis(300);

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("usage: e2e-provisioner FOLDER")?.into();
    std::fs::create_dir_all(&folder)?;
    let client = Client::try_default().await?;
    loop {
        if let Err(error) = look(&client, &folder).await {
            eprintln!("{error}");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Makes the volumes that are asked for and removes those that nobody claims any more.
async fn look(client: &Client, folder: &Path) -> Result<(), Error> {
    let all = ListParams::default();
    let classes: Api<StorageClass> = Api::all(client.clone());
    let bounded: BTreeMap<String, bool> = classes
        .list(&all)
        .await?
        .into_iter()
        .filter(|class| class.provisioner == PROVISIONER)
        .map(|class| {
            let parameters = class.parameters.clone().unwrap_or_default();
            (class.name_any(), parameters.contains_key("bounded"))
        })
        .collect();
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for claim in claims.list(&all).await? {
        let spec = claim.spec.clone().unwrap_or_default();
        let class = spec.storage_class_name.unwrap_or_default();
        let Some(&bounded) = bounded.get(&class) else { continue };
        let waits = spec.volume_name.is_none() && claim.annotations().contains_key(SELECTED_NODE);
        if !waits {
            continue;
        }
        let size = spec.resources.and_then(|of| of.requests).unwrap_or_default();
        let size = size.get("storage").map_or("1Gi", |size| size.0.as_str()).to_owned();
        let name = format!("pvc-{}", claim.uid().unwrap_or_default());
        if volumes.get_opt(&name).await?.is_some() {
            continue;
        }
        let path = folder.join(&name);
        make(&path, bounded.then_some(size.as_str())).await?;
        let volume = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": size},
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": claim.uid(),
                    "namespace": claim.namespace(), "name": claim.name_any(),
                },
                "hostPath": {"path": path, "type": "Directory"},
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": class,
            },
        }))?;
        volumes.create(&PostParams::default(), &volume).await?;
    }
    for volume in volumes.list(&all).await? {
        let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        let ours = class.is_some_and(|class| bounded.contains_key(class));
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if ours && phase == Some("Released") {
            remove(&folder.join(volume.name_any())).await?;
            volumes.delete(&volume.name_any(), &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

async fn make(path: &Path, size: Option<&str>) -> Result<(), Error> {
    std::fs::create_dir_all(path)?;
    if let Some(size) = size {
        let image = path.with_extension("img");
        // `truncate` knows Kubernetes's binary units without their `i`.
        run("truncate", &["--size", size.trim_end_matches('i'), text(&image)?]).await?;
        run("mkfs.ext4", &["-q", "-m", "0", text(&image)?]).await?;
        run("mount", &["-o", "loop", text(&image)?, text(path)?]).await?;
    }
    // Whoever the pod runs as.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    Ok(())
}

async fn remove(path: &Path) -> Result<(), Error> {
    let image = path.with_extension("img");
    if image.exists() {
        run("umount", &[text(path)?]).await?;
        std::fs::remove_file(image)?;
    }
    if path.exists() {
        std::fs::remove_dir_all(path)?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| "a path in UTF-8".into())
}

async fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let output = Command::new(program).args(arguments).output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}
