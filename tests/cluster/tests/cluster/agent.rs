//! Tradewind's agent, installed as its users do, and what its tests look at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tradewind_cluster::cluster::{Cluster, say};
use tradewind_cluster::components::S3_KEYS;
use tradewind_cluster::image::{Image, tradewind};
use tradewind_cluster::left;
use tradewind_cluster::network::{NODE, S3_PORT};

use crate::helm::helm;

/// The namespace of Velero and of the agent.
pub(crate) const NAMESPACE: &str = "velero";
/// The Secret with the key of the repositories.
pub(crate) const KEY: &str = "tradewind-repository-key";

/// Installs the agent.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    cluster.import(Image::tradewind(&cluster.folder)?)?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart").display().to_string();
    helm(&[
        "install",
        "tradewind",
        &chart,
        "--namespace=velero",
        "--wait",
        "--timeout=90s",
        "--set-string=image.repository=tradewind.test/tradewind,image.tag=1",
        "--set=verbosity=1,forgetting.interval=2s,forgetting.grace=1s",
    ])
    .map(drop)
}

/// Shows what there is to be seen of a test that failed.
pub(crate) async fn show(cluster: &Cluster) {
    for kind in ["DataUpload", "DataDownload"] {
        for job in jobs(cluster, kind).await.unwrap_or_default() {
            say(&format!("{kind} {}: {}", job.name_any(), job.data));
        }
    }
    let words = ["--namespace=velero", "logs", "daemonset/tradewind", "--tail=300"];
    if let Ok(logs) = Command::new("kubectl").args(words).output() {
        say(&String::from_utf8_lossy(&logs.stdout));
    }
}

/// Removes it.
pub(crate) fn uninstall() -> Result<()> {
    helm(&["uninstall", "tradewind", "--namespace=velero", "--wait"]).map(drop)
}

/// The jobs of a kind.
pub(crate) fn api(cluster: &Cluster, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v2alpha1", kind));
    Api::namespaced_with(cluster.client.clone(), NAMESPACE, &resource)
}

/// All jobs of a kind.
pub(crate) async fn jobs(cluster: &Cluster, kind: &str) -> Result<Vec<DynamicObject>> {
    Ok(api(cluster, kind).list(&ListParams::default()).await?.items)
}

/// Waits until a job has ended; gives its status.
pub(crate) async fn ended(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    let jobs = api(cluster, kind);
    let what = format!("{kind} {name} to end");
    let status = cluster.until(&what, async || {
        let status = jobs.get(name).await?.data["status"].clone();
        let phase = status["phase"].as_str().unwrap_or_default();
        Ok(["Completed", "Failed", "Canceled"].contains(&phase).then_some(status))
    });
    let status = status.await?;
    ensure!(status["completionTimestamp"].is_string(), "{status}");
    Ok(status)
}

/// Waits until a job's phase is this, and `also`; gives its status.
pub(crate) async fn until(
    cluster: &Cluster,
    kind: &str,
    name: &str,
    phase: &str,
    also: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let jobs = api(cluster, kind);
    let what = format!("{kind} {name} to be {phase}");
    cluster
        .until(&what, async || {
            let status = jobs.get(name).await?.data["status"].clone();
            Ok((status["phase"] == json!(phase) && also(&status)).then_some(status))
        })
        .await
}

/// Changes a job.
pub(crate) async fn change(cluster: &Cluster, kind: &str, name: &str, to: &Value) -> Result<()> {
    api(cluster, kind).patch(name, &PatchParams::default(), &Patch::Merge(to)).await?;
    Ok(())
}

/// Sets a limit of the agents, which they follow while they run.
pub(crate) async fn limit(cluster: &Cluster, name: &str, amount: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let data = json!({"data": {name: amount}});
    maps.patch("tradewind", &PatchParams::default(), &Patch::Merge(&data)).await?;
    Ok(())
}

/// Kills the agents: without time to say anything.
pub(crate) async fn kill(cluster: &Cluster) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let agents = ListParams::default().labels("tradewind-backup.github.io/role=agent");
    for pod in pods.list(&agents).await? {
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
    }
    Ok(())
}

/// Waits until nothing is left of what was made for jobs, and no snapshot anywhere.
pub(crate) async fn tidy(cluster: &Cluster) -> Result<()> {
    let ours = ListParams::default().labels("tradewind-backup.github.io/job");
    let client = &cluster.client;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    cluster
        .until("the agent to clean up", async || {
            let mut left = pods.list(&ours).await?.items.len()
                + claims.list(&ours).await?.items.len()
                + secrets.list(&ours).await?.items.len();
            for kind in ["DataUpload", "DataDownload"] {
                left += jobs(cluster, kind).await?.iter().filter(|job| !job.finalizers().is_empty()).count();
            }
            let now = left::count(&cluster.folder, client).await?;
            left += now["snapshots"] + now["contents"] + now["files of snapshots"];
            Ok((left == 0).then_some(()))
        })
        .await
}

/// The repository of a namespace, as whoever has the bucket and the key sees it from the command line.
pub(crate) struct Repository {
    key: tempfile::NamedTempFile,
    namespace: String,
}

impl Repository {
    /// With the key that the cluster has now.
    pub(crate) async fn of(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let data = secrets.get(KEY).await?.data.unwrap_or_default();
        let key = tempfile::NamedTempFile::new()?;
        fs::write(key.path(), &data.get("key").context("the Secret has no key")?.0)?;
        Ok(Self { key, namespace: namespace.to_owned() })
    }

    /// Runs the program on it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let done = Command::new("timeout")
            .arg("120")
            .arg(tradewind()?)
            .arg(format!("--repository=s3://velero/plugins/tradewind/{}", self.namespace))
            .arg(format!("--endpoint=http://{NODE}:{S3_PORT}"))
            .args(["--region=us-east-1", "--path-style"])
            .arg(format!("--key-file={}", self.key.path().display()))
            .args(arguments)
            .env("AWS_ACCESS_KEY_ID", S3_KEYS.0)
            .env("AWS_SECRET_ACCESS_KEY", S3_KEYS.1)
            .output()
            .context("running tradewind")?;
        let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.success(), "tradewind {}: {errors}{said}", arguments.join(" "));
        Ok(said.into_owned())
    }

    /// How many snapshots it has that are not forgotten.
    pub(crate) fn snapshots(&self) -> Result<usize> {
        let said = self.run(&["snapshots", "--json"])?;
        let last = said.lines().last().context("it said nothing")?;
        let all = serde_json::from_str::<Value>(last)?["snapshots"].as_array().map(Vec::len);
        all.with_context(|| format!("no list: {last}"))
    }
}

/// Bytes of all objects in the bucket of Velero's location, below a folder.
pub(crate) fn stored(cluster: &Cluster, folder: &str) -> u64 {
    fn below(folder: &PathBuf) -> u64 {
        let Ok(entries) = fs::read_dir(folder) else { return 0 };
        let size = |entry: fs::DirEntry| match entry.metadata() {
            Ok(found) if found.is_dir() => below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        };
        entries.flatten().map(size).sum()
    }
    below(&cluster.folder.join("s3/velero").join(folder))
}
