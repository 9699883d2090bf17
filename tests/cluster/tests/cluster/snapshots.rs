//! Snapshots: of volumes that are being written, restored in the same and in the other mode, in the same and in another
//! namespace, many at once.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tradewind_cluster::cluster::{Cluster, LIMIT, inside};
use tradewind_cluster::components::DRIVER;
use tradewind_cluster::folder::Level;
use tradewind_cluster::objects::wait;

use crate::claims::{Claim, Mode, bound, content, image, pod, resource, snapshot, usable};

/// Deletes a pod and waits until its volume is on no loop device any more.
async fn ended(cluster: &Cluster, namespace: &str, name: &str, image: &Path) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    pods.delete(name, &DeleteParams::default()).await?;
    wait(&pods, name, "to be gone", LIMIT, |pod: Option<&Pod>| pod.is_none()).await?;
    cluster
        .until(&format!("{} to be detached", image.display()), async || {
            let attached =
                Command::new("losetup").arg("--noheadings").arg("--associated").arg(image).output()?;
            Ok(attached.stdout.is_empty().then_some(()))
        })
        .await
}

/// Says that the volumes of a snapshot may be used in another mode than its source was.
async fn allow_other_mode(cluster: &Cluster, of: &DynamicObject) -> Result<()> {
    let name = content(cluster, of).await?.name_any();
    let contents: Api<DynamicObject> =
        Api::all_with(cluster.client.clone(), &resource("VolumeSnapshotContent"));
    let allow = json!({"metadata": {"annotations": {"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"}}});
    contents.patch(&name, &PatchParams::default(), &Patch::Merge(allow)).await?;
    Ok(())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_file_system_that_is_being_written_is_snapshotted_clean() {
    inside(Level::Node, async |cluster| {
        for (class, size) in [("immediate", "128Mi"), ("xfs", "512Mi")] {
            let namespace = cluster.namespace("files").await?;
            Claim { class, ..Claim::new("source", Mode::Filesystem, size) }
                .create(cluster, &namespace)
                .await?;
            // Files of numbers, each renamed into place when it is whole; the journal is never idle.
            let write = "n=0; while :; do seq $n 20000 > /data/part; sync /data/part; mv /data/part /data/$((n % 50)); \
                         rm -f /data/x$((n % 7)); head -c 300000 /dev/urandom > /data/x$((n % 7)); n=$((n + 1)); done";
            pod(cluster, &namespace, "writer", ("source", Mode::Filesystem), write).await?;
            cluster.running(&namespace, "writer").await?;
            let begun = async || Ok(cluster.exec(&namespace, "writer", &["cat", "/data/5"]).await.ok());
            cluster.until("the writer's files", begun).await?;
            snapshot(cluster, &namespace, "busy", "source").await?;

            Claim { class, snapshot: Some("busy"), ..Claim::new("copy", Mode::Filesystem, size) }
                .create(cluster, &namespace)
                .await?;
            // Every file that is in place is whole: its last line is the last number.
            let read = "n=0; for f in /data/[0-9]*; do [ \"$(tail -n 1 $f)\" = 20000 ] || exit 1; n=$((n + 1)); done; echo $n";
            pod(cluster, &namespace, "reader", ("copy", Mode::Filesystem), read).await?;
            let files: u32 = cluster.succeeded(&namespace, "reader").await?.trim().parse()?;
            ensure!(files > 0, "no file is in the snapshot");

            let copy = image(cluster, &namespace, "copy").await?;
            ended(cluster, &namespace, "reader", &copy).await?;
            let check = if class == "xfs" { ["xfs_repair", "-n"] } else { ["e2fsck", "-fn"] };
            let checked = Command::new(check[0]).arg(check[1]).arg(&copy).output()?;
            let said = String::from_utf8_lossy(&checked.stdout);
            ensure!(checked.status.success(), "{} found: {said}", check[0]);
        }
        Ok(())
    });
}

/// Writes block after block, each a line with its number, and each on the device before the next begins.
const NUMBERED: &str = "n=0; while [ $n -lt 8192 ]; do printf '%-4095d\\n' $n | \
                        dd of=/dev/data bs=4096 seek=$n conv=notrunc,fsync 2>/dev/null || exit 1; n=$((n + 1)); done";
/// Reads the lines of [`NUMBERED`]: every one must be where its number says, and none may be missing below the last.
const COUNTED: &str = "tr -d '\\000' </dev/data | awk 'length($0) != 4095 || $1 != NR - 1 { exit 1 } END { print NR }' && \
                       dd if=/dev/data bs=4096 count=8192 2>/dev/null | tr -d '\\000' | wc -c";

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_block_device_that_is_being_written_is_snapshotted_as_of_one_moment() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("blocks").await?;
        Claim::new("source", Mode::Block, "32Mi").create(cluster, &namespace).await?;
        pod(cluster, &namespace, "writer", ("source", Mode::Block), NUMBERED).await?;
        cluster.running(&namespace, "writer").await?;
        let mut before = 0;
        for round in ["first", "second"] {
            // Some blocks further than the last time.
            let at = format!("skip={}", before + 9);
            let block = ["dd", "if=/dev/data", "bs=4096", "count=1", &at];
            let written = async || {
                let said = cluster.exec(&namespace, "writer", &block).await?;
                Ok(said.trim_matches(['\0', '\n', ' ']).parse::<u64>().ok())
            };
            cluster.until("the writer's next blocks", written).await?;
            snapshot(cluster, &namespace, round, "source").await?;
            Claim { snapshot: Some(round), ..Claim::new(round, Mode::Block, "32Mi") }
                .create(cluster, &namespace)
                .await?;
            pod(cluster, &namespace, round, (round, Mode::Block), COUNTED).await?;
            let said = cluster.succeeded(&namespace, round).await?;
            let numbers: Vec<u64> = said.lines().map(str::trim).map(str::parse).collect::<Result<_, _>>()?;
            ensure!(numbers.len() == 2 && numbers[0] * 4096 == numbers[1], "{said}");
            ensure!(numbers[0] > before, "{round}: {} blocks after {before}", numbers[0]);
            before = numbers[0];
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_snapshot_can_become_a_volume_of_the_other_mode() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("modes").await?;
        Claim::new("files", Mode::Filesystem, "64Mi").create(cluster, &namespace).await?;
        pod(cluster, &namespace, "writer", ("files", Mode::Filesystem), "echo kept > /data/file").await?;
        cluster.succeeded(&namespace, "writer").await?;

        let taken = snapshot(cluster, &namespace, "of-files", "files").await?;
        allow_other_mode(cluster, &taken).await?;
        Claim { snapshot: Some("of-files"), ..Claim::new("blocks", Mode::Block, "64Mi") }
            .create(cluster, &namespace)
            .await?;
        let magic = "dd if=/dev/data bs=1 skip=1080 count=2 2>/dev/null | hexdump -e '2/1 \"%02x\"'";
        pod(cluster, &namespace, "as-blocks", ("blocks", Mode::Block), magic).await?;
        let said = cluster.succeeded(&namespace, "as-blocks").await?;
        ensure!(said == "53ef", "no ext4 but '{said}'");

        let taken = snapshot(cluster, &namespace, "of-blocks", "blocks").await?;
        allow_other_mode(cluster, &taken).await?;
        Claim { snapshot: Some("of-blocks"), ..Claim::new("again", Mode::Filesystem, "64Mi") }
            .create(cluster, &namespace)
            .await?;
        pod(cluster, &namespace, "as-files", ("again", Mode::Filesystem), "cat /data/file").await?;
        let said = cluster.succeeded(&namespace, "as-files").await?;
        ensure!(said == "kept\n", "'{said}'");
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_snapshot_can_be_taken_to_another_namespace() {
    inside(Level::Node, async |cluster| {
        let (from, to) = (cluster.namespace("from").await?, cluster.namespace("to").await?);
        Claim::new("source", Mode::Filesystem, "64Mi").create(cluster, &from).await?;
        pod(cluster, &from, "writer", ("source", Mode::Filesystem), "echo moved > /data/file").await?;
        cluster.succeeded(&from, "writer").await?;
        let taken = snapshot(cluster, &from, "taken", "source").await?;

        // The storage's snapshot stays when its first owner goes.
        let contents: Api<DynamicObject> =
            Api::all_with(cluster.client.clone(), &resource("VolumeSnapshotContent"));
        let snapshots: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), &from, &resource("VolumeSnapshot"));
        let first = content(cluster, &taken).await?;
        let handle = first.data["status"]["snapshotHandle"].as_str().context("no handle")?.to_owned();
        let keep = json!({"spec": {"deletionPolicy": "Retain"}});
        contents.patch(&first.name_any(), &PatchParams::default(), &Patch::Merge(keep)).await?;
        snapshots.delete("taken", &DeleteParams::default()).await?;
        contents.delete(&first.name_any(), &DeleteParams::default()).await?;
        let gone = async || Ok(contents.get_opt(&first.name_any()).await?.is_none().then_some(()));
        cluster.until("the first content to be gone", gone).await?;

        let again = format!(
            "apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {{name: again-{to}}}
spec:
  driver: {DRIVER}
  deletionPolicy: Delete
  volumeSnapshotClassName: snapshots
  source: {{snapshotHandle: {handle}}}
  volumeSnapshotRef: {{name: again, namespace: {to}}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: again, namespace: {to}}}
spec: {{volumeSnapshotClassName: snapshots, source: {{volumeSnapshotContentName: again-{to}}}}}
"
        );
        cluster.objects.apply(&again).await?;
        usable(cluster, &to, "again").await?;
        Claim { snapshot: Some("again"), ..Claim::new("copy", Mode::Filesystem, "64Mi") }
            .create(cluster, &to)
            .await?;
        pod(cluster, &to, "reader", ("copy", Mode::Filesystem), "cat /data/file").await?;
        let said = cluster.succeeded(&to, "reader").await?;
        ensure!(said == "moved\n", "'{said}'");
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn eight_block_volumes_at_once() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("eight").await?;
        let names: Vec<String> = (0..8).map(|n| format!("volume{n}")).collect();
        let sum = |name: &str| format!("seq 1 50000 | sed s/^/{name}/");
        for name in &names {
            Claim::new(name, Mode::Block, "16Mi").create(cluster, &namespace).await?;
            let write = format!("{} | dd of=/dev/data bs=4k conv=fsync", sum(name));
            pod(cluster, &namespace, name, (name, Mode::Block), &write).await?;
        }
        for name in &names {
            cluster.succeeded(&namespace, name).await?;
        }
        let copies: Vec<String> = names.iter().map(|name| format!("{name}-copy")).collect();
        for (name, copy) in names.iter().zip(&copies) {
            snapshot(cluster, &namespace, name, name).await?;
            Claim { snapshot: Some(name), ..Claim::new(copy, Mode::Block, "16Mi") }
                .create(cluster, &namespace)
                .await?;
            let read = format!("head -c $({0} | wc -c) /dev/data | md5sum; {0} | md5sum", sum(name));
            pod(cluster, &namespace, copy, (copy, Mode::Block), &read).await?;
        }
        for copy in &copies {
            bound(cluster, &namespace, copy).await?;
            let said = cluster.succeeded(&namespace, copy).await?;
            let sums: Vec<&str> = said.lines().collect();
            ensure!(sums.len() == 2 && sums[0] == sums[1], "{copy}: {said}");
        }
        Ok(())
    });
}
