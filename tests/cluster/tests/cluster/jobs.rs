//! Jobs of Tradewind's agent, made as a server would make them: how they end, and that nothing is left of them.

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tradewind_cluster::cluster::{Cluster, inside};
use tradewind_cluster::folder::Level;
use tradewind_cluster::network::{NODE, S3_PORT};

use crate::agent::{self, KEY, NAMESPACE, change, ended, kill, limit, tidy, until};
use crate::claims::{Claim, Mode, pod, snapshot};
use crate::velero::{install, one, velero};

/// What is to be moved, in `namespace`: 24 MB that cannot be compressed.
const WRITE: &str = "head -c 24000000 /dev/urandom > /data/file; sync; md5sum /data/file";

/// A DataUpload of the claim `data`, by the snapshot with its own name.
fn upload(name: &str, namespace: &str, location: &str) -> String {
    format!(
        "apiVersion: velero.io/v2alpha1
kind: DataUpload
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  snapshotType: CSI
  csiSnapshot: {{volumeSnapshot: {name}, storageClass: immediate, snapshotClass: snapshots, driver: csi.tradewind.test}}
  sourcePVC: data
  sourceNamespace: {namespace}
  backupStorageLocation: {location}
  operationTimeout: 10m0s
  datamover: tradewind
"
    )
}

/// Takes a snapshot of the claim `data` and has it moved.
async fn start(cluster: &Cluster, name: &str, namespace: &str, location: &str) -> Result<()> {
    snapshot(cluster, namespace, name, "data").await?;
    cluster.objects.apply(&upload(name, namespace, location)).await
}

/// The same, and waits for its end.
async fn moved(cluster: &Cluster, name: &str, namespace: &str, location: &str) -> Result<Value> {
    start(cluster, name, namespace, location).await?;
    ended(cluster, "DataUpload", name).await
}

fn failed(status: &Value, why: &str) -> Result<()> {
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(status["phase"] == json!("Failed") && message.contains(why), "not '{why}': {status}");
    Ok(())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn jobs_end_as_they_must_and_nothing_is_left() {
    inside(Level::Node, async |cluster| {
        let _one = one(cluster)?;
        cluster.remember(NAMESPACE);
        install(cluster).await?;
        agent::install(cluster)?;
        let done = all(cluster).await;
        if done.is_err() {
            agent::show(cluster).await;
        }
        done.and(agent::uninstall()).and(velero(&["uninstall", "--force"]).map(drop))
    });
}

async fn all(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace("jobs").await?;
    Claim::new("data", Mode::Filesystem, "64Mi").create(cluster, &namespace).await?;
    pod(cluster, &namespace, "writer", ("data", Mode::Filesystem), WRITE).await?;
    cluster.succeeded(&namespace, "writer").await?;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    pods.delete("writer", &DeleteParams::default()).await?;

    impossible(cluster, &namespace).await.context("what cannot be done")?;
    stopped(cluster, &namespace).await.context("what is stopped")?;
    killed(cluster, &namespace).await.context("an agent that is killed")?;
    keys(cluster, &namespace).await.context("keys")?;
    downloads(cluster, &namespace).await.context("downloads")
}

/// What cannot be done says why, and the snapshot goes all the same.
async fn impossible(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.objects.apply(&upload("missing", namespace, "default")).await?;
    failed(&ended(cluster, "DataUpload", "missing").await?, "VolumeSnapshot jobs-")?;
    failed(&moved(cluster, "nowhere", namespace, "nowhere").await?, "there is no storage location nowhere")?;
    let odd = |name: &str, bucket: &str, config: &str, mode: &str| {
        format!(
            "apiVersion: velero.io/v1
kind: BackupStorageLocation
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec: {{provider: aws, accessMode: {mode}, objectStorage: {{bucket: {bucket}}}, config: {{{config}}}}}
"
        )
    };
    cluster.objects.apply(&odd("odd", "velero", "colour: red", "ReadWrite")).await?;
    failed(&moved(cluster, "odd", namespace, "odd").await?, "config.colour: there is no such setting")?;
    let reached = format!("region: us-east-1, s3ForcePathStyle: 'true', s3Url: 'http://{NODE}:{S3_PORT}'");
    cluster.objects.apply(&odd("readonly", "velero", &reached, "ReadOnly")).await?;
    failed(&moved(cluster, "readonly", namespace, "readonly").await?, "is read-only")?;
    tidy(cluster).await
}

/// A job that moves its data is stopped, and one that waits for its turn.
async fn stopped(cluster: &Cluster, namespace: &str) -> Result<()> {
    limit(cluster, "upload-rate", "500k").await?;
    start(cluster, "slow", namespace, "default").await?;
    let some = until(cluster, "DataUpload", "slow", "InProgress", |s| {
        s["progress"]["bytesDone"].as_u64().unwrap_or_default() > 0
    });
    let some = some.await?["progress"]["bytesDone"].as_u64();
    until(cluster, "DataUpload", "slow", "InProgress", |s| s["progress"]["bytesDone"].as_u64() > some)
        .await?;
    start(cluster, "queued", namespace, "default").await?;
    until(cluster, "DataUpload", "queued", "Prepared", |_| true).await?;
    for name in ["queued", "slow"] {
        change(cluster, "DataUpload", name, &json!({"spec": {"cancel": true}})).await?;
    }
    for name in ["queued", "slow"] {
        let status = ended(cluster, "DataUpload", name).await?;
        ensure!(status["phase"] == json!("Canceled"), "{name}: {status}");
    }
    tidy(cluster).await
}

/// The agent is killed while data moves; the next one goes on, and what was uploaded is used. A limit that is lifted
/// counts at once.
async fn killed(cluster: &Cluster, namespace: &str) -> Result<()> {
    start(cluster, "resumed", namespace, "default").await?;
    let begun = |s: &Value| s["progress"]["bytesDone"].as_u64().unwrap_or_default() > 0;
    let started =
        until(cluster, "DataUpload", "resumed", "InProgress", begun).await?["startTimestamp"].clone();
    kill(cluster).await?;
    limit(cluster, "upload-rate", "0").await?;
    let status = ended(cluster, "DataUpload", "resumed").await?;
    ensure!(status["phase"] == json!("Completed") && status["startTimestamp"] == started, "{status}");
    tidy(cluster).await
}

/// A key that is lost or another one is a failure that says so; nothing is made in its place.
async fn keys(cluster: &Cluster, namespace: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let kept = secrets.get(KEY).await?;
    let exported = kept.metadata.annotations.clone().unwrap_or_default();
    ensure!(
        exported.get("tradewind-backup.github.io/exported").is_some_and(|said| said == "false"),
        "{exported:?}"
    );
    secrets.delete(KEY, &DeleteParams::default()).await?;
    failed(&moved(cluster, "lost", namespace, "default").await?, "the key of s3://velero/plugins/tradewind")?;
    ensure!(secrets.get_opt(KEY).await?.is_none(), "a key was made for a repository that exists");

    let put = async |key: Vec<u8>| -> Result<()> {
        let data = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEY},
            "data": {"key": ByteString(key)},
        });
        secrets.patch(KEY, &PatchParams::apply("test"), &Patch::Apply(&data)).await?;
        Ok(())
    };
    put(vec![7; 64]).await?;
    failed(&moved(cluster, "wrong", namespace, "default").await?, "no key slot opens with this key file")?;
    put(kept.data.unwrap_or_default().remove("key").context("no key")?.0).await?;
    let status = moved(cluster, "right", namespace, "default").await?;
    ensure!(status["phase"] == json!("Completed"), "{status}");
    tidy(cluster).await
}

/// A download of another mover's snapshot, and of one into a claim that has a volume.
async fn downloads(cluster: &Cluster, namespace: &str) -> Result<()> {
    let download = |name: &str, claim: &str, snapshot: &str| {
        format!(
            "apiVersion: velero.io/v2alpha1
kind: DataDownload
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  targetVolume: {{pvc: {claim}, pv: \"\", namespace: {namespace}}}
  backupStorageLocation: default
  datamover: tradewind
  snapshotID: {snapshot}
  sourceNamespace: {namespace}
  operationTimeout: 10m0s
"
        )
    };
    let claim = |name: &str| {
        format!(
            "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: immediate
  resources: {{requests: {{storage: 64Mi}}}}
  selector: {{matchLabels: {{velero.io/dynamic-pv-restore: {name}}}}}
"
        )
    };
    cluster.objects.apply(&claim("kopia")).await?;
    cluster.objects.apply(&download("kopia", "kopia", "8f23b1c1b8a0a5f6c9d3e4f5a6b7c8d9")).await?;
    failed(&ended(cluster, "DataDownload", "kopia").await?, "is no snapshot of tradewind")?;
    let id = agent::api(cluster, "DataUpload").get("right").await?.data["status"]["snapshotID"].clone();
    let id = id.as_str().context("no snapshot")?;
    cluster.objects.apply(&download("bound", "data", id)).await?;
    failed(&ended(cluster, "DataDownload", "bound").await?, "has a volume already")?;

    // The agent is killed while it restores; the claim comes after the job.
    limit(cluster, "upload-rate", "2M").await?;
    cluster.objects.apply(&download("back", "back", id)).await?;
    cluster.objects.apply(&claim("back")).await?;
    until(cluster, "DataDownload", "back", "InProgress", |_| true).await?;
    kill(cluster).await?;
    limit(cluster, "upload-rate", "0").await?;
    let status = ended(cluster, "DataDownload", "back").await?;
    ensure!(status["phase"] == json!("Completed"), "{status}");
    let sums = |claim: &'static str| async move {
        let read = "md5sum /data/file";
        pod(cluster, namespace, &format!("read-{claim}"), (claim, Mode::Filesystem), read).await?;
        cluster.succeeded(namespace, &format!("read-{claim}")).await
    };
    let (before, after) = (sums("data").await?, sums("back").await?);
    ensure!(!before.is_empty() && before == after, "{after}, but it was {before}");
    tidy(cluster).await
}
