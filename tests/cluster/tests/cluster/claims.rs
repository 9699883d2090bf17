//! Claims, snapshots and pods, as the tests write them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;
use tradewind_cluster::cluster::{Cluster, LIMIT};
use tradewind_cluster::objects::wait;

/// How a volume is seen by its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Filesystem,
    Block,
}

/// A claim to a volume.
pub(crate) struct Claim<'a> {
    pub(crate) name: &'a str,
    pub(crate) mode: Mode,
    pub(crate) class: &'a str,
    /// For instance `64Mi`.
    pub(crate) size: &'a str,
    /// The snapshot that it is filled from.
    pub(crate) snapshot: Option<&'a str>,
}

impl<'a> Claim<'a> {
    /// An empty volume of the default class.
    pub(crate) fn new(name: &'a str, mode: Mode, size: &'a str) -> Self {
        Self { name, mode, class: "immediate", size, snapshot: None }
    }

    pub(crate) async fn create(&self, cluster: &Cluster, namespace: &str) -> Result<()> {
        let source = self.snapshot.map_or(String::new(), |snapshot| {
            format!(
                "dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {snapshot}}}"
            )
        });
        let yaml = format!(
            "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {}, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {:?}
  storageClassName: {}
  resources: {{requests: {{storage: {}}}}}
  {source}
",
            self.name, self.mode, self.class, self.size
        );
        cluster.objects.apply(&yaml).await
    }
}

/// Waits until a claim has its volume.
pub(crate) async fn bound(cluster: &Cluster, namespace: &str, claim: &str) -> Result<()> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
    let is_bound = |claim: Option<&PersistentVolumeClaim>| {
        claim.and_then(|c| c.status.as_ref()?.phase.as_deref()).is_some_and(|phase| phase == "Bound")
    };
    wait(&claims, claim, "to be bound", LIMIT, is_bound).await.map(drop)
}

/// The driver's file of a claim's volume.
pub(crate) async fn image(cluster: &Cluster, namespace: &str, claim: &str) -> Result<PathBuf> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
    let volume = claims.get(claim).await?.spec.and_then(|spec| spec.volume_name).context("no volume")?;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let source = volumes.get(&volume).await?.spec.and_then(|spec| spec.csi).context("no CSI volume")?;
    Ok(cluster.folder.join("volumes/driver/volumes").join(format!("{}.img", source.volume_handle)))
}

/// A pod that runs a shell command with the claim as /data (a file system) or /dev/data (a block device).
pub(crate) async fn pod(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    claim: (&str, Mode),
    command: &str,
) -> Result<()> {
    let place = match claim.1 {
        Mode::Filesystem => "volumeMounts: [{name: data, mountPath: /data}]",
        Mode::Block => "volumeDevices: [{name: data, devicePath: /dev/data}]",
    };
    let command = serde_json::to_string(command)?;
    let yaml = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: tradewind.test/busybox:1
    command: [/bin/sh, -c, {command}]
    {place}
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {}}}}}]
",
        claim.0
    );
    cluster.objects.apply(&yaml).await
}

/// A kind of the snapshots' API.
pub(crate) fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind))
}

/// Takes a snapshot of a claim and waits until it can be used; returns it.
pub(crate) async fn snapshot(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    claim: &str,
) -> Result<DynamicObject> {
    let yaml = format!(
        "apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  volumeSnapshotClassName: snapshots
  source: {{persistentVolumeClaimName: {claim}}}
"
    );
    cluster.objects.apply(&yaml).await?;
    usable(cluster, namespace, name).await
}

/// Waits until a snapshot can be used; returns it.
pub(crate) async fn usable(cluster: &Cluster, namespace: &str, name: &str) -> Result<DynamicObject> {
    let snapshots: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), namespace, &resource("VolumeSnapshot"));
    cluster
        .until(&format!("snapshot {namespace}/{name} to be ready"), async || {
            let snapshot = snapshots.get(name).await?;
            Ok((snapshot.data["status"]["readyToUse"] == Value::Bool(true)).then_some(snapshot))
        })
        .await
}

/// The content that a snapshot is bound to.
pub(crate) async fn content(cluster: &Cluster, snapshot: &DynamicObject) -> Result<DynamicObject> {
    let name = snapshot.data["status"]["boundVolumeSnapshotContentName"].as_str().unwrap_or_default();
    let contents: Api<DynamicObject> =
        Api::all_with(cluster.client.clone(), &resource("VolumeSnapshotContent"));
    Ok(contents.get(name).await?)
}
