//! Faults, seen by those whom they shall hit.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim};
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use rustix::process::Signal;
use serde_json::json;
use tradewind_cluster::cluster::{Cluster, alone, inside};
use tradewind_cluster::folder::Level;

use crate::claims::{Claim, Mode, bound, image, pod, resource, snapshot, usable};

/// Waits for an event about an object of the namespace that says `text`.
async fn event(cluster: &Cluster, namespace: &str, text: &str) -> Result<()> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    let said = async || {
        let all = events.list(&ListParams::default()).await?;
        Ok(all.items.iter().any(|e| e.message.as_deref().is_some_and(|m| m.contains(text))).then_some(()))
    };
    cluster.until(&format!("an event that says '{text}'"), said).await
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn the_drivers_faults_are_seen_by_kubernetes() {
    alone(Level::Node, async |cluster| {
        let namespace = cluster.namespace("struck").await?;
        cluster.driver_faults(
            &json!({"create_volume": {"error": "UNAVAILABLE", "times": 2, "volume": "pvc-"}}),
        )?;
        Claim::new("late", Mode::Filesystem, "64Mi").create(cluster, &namespace).await?;
        event(cluster, &namespace, "fault on demand: create_volume").await?;
        bound(cluster, &namespace, "late").await?; // the third attempt

        cluster.driver_faults(&json!({"stage": {"error": "INTERNAL", "times": 1}}))?;
        pod(cluster, &namespace, "writer", ("late", Mode::Filesystem), "echo 1 > /data/file").await?;
        event(cluster, &namespace, "MountVolume.MountDevice failed").await?;
        cluster.succeeded(&namespace, "writer").await?;

        cluster.driver_faults(&json!({"snapshot_never_ready": true}))?;
        let yaml = format!(
            "apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: never, namespace: {namespace}}}
spec: {{volumeSnapshotClassName: snapshots, source: {{persistentVolumeClaimName: late}}}}
"
        );
        cluster.objects.apply(&yaml).await?;
        let snapshots: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), &namespace, &resource("VolumeSnapshot"));
        let taken = async || {
            let status = snapshots.get("never").await?.data["status"].clone();
            Ok((status["readyToUse"] == json!(false)).then_some(()))
        };
        cluster.until("a snapshot that is not ready", taken).await?;
        cluster.driver_faults(&json!({}))?;
        usable(cluster, &namespace, "never").await.map(drop)
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_cut_device_gives_io_errors() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("cut").await?;
        Claim::new("volume", Mode::Block, "64Mi").create(cluster, &namespace).await?;
        let wait =
            "dd if=/dev/urandom of=/dev/data bs=1M count=64 conv=fsync && touch /tmp/filled && sleep 3600";
        pod(cluster, &namespace, "holder", ("volume", Mode::Block), wait).await?;
        cluster.running(&namespace, "holder").await?;
        let image = image(cluster, &namespace, "volume").await?;
        let filled =
            async || Ok(cluster.exec(&namespace, "holder", &["test", "-e", "/tmp/filled"]).await.ok());
        cluster.until("the device to be filled", filled).await?;
        // Past the page cache, which still has what was written.
        let read = ["dd", "if=/dev/data", "of=/dev/null", "bs=1M", "iflag=direct"];
        cluster.exec(&namespace, "holder", &read).await.context("before the cut")?;
        std::fs::File::options().write(true).open(&image)?.set_len(8 << 20)?;
        match cluster.exec(&namespace, "holder", &read).await {
            Ok(_) => bail!("the cut device was read"),
            Err(e) => ensure!(format!("{e:#}").contains("Input/output error"), "{e:#}"),
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn components_can_be_killed_and_paused() {
    alone(Level::Node, async |cluster| {
        let namespace = cluster.namespace("killed").await?;
        // The sidecars end with the connection to the driver, and come again too.
        cluster.restart("csi-driver").await?;
        Claim::new("after", Mode::Filesystem, "64Mi").create(cluster, &namespace).await?;
        pod(cluster, &namespace, "writer", ("after", Mode::Filesystem), "echo 1 > /data/file").await?;
        cluster.succeeded(&namespace, "writer").await?;
        snapshot(cluster, &namespace, "after", "after").await?;

        cluster.signal("apiserver", Signal::STOP)?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), &namespace);
        let asked = tokio::time::timeout(Duration::from_millis(500), claims.get("after")).await;
        cluster.signal("apiserver", Signal::CONT)?;
        ensure!(asked.is_err(), "the paused API server has answered");
        claims.get("after").await?;

        cluster.restart("apiserver").await?;
        let again = async || Ok(claims.get("after").await.ok());
        cluster.until("the API server to answer again", again).await.map(drop)
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn the_s3_server_refuses_on_demand() {
    inside(Level::Node, async |cluster| {
        std::fs::create_dir_all(cluster.folder.join("s3/faults"))?;
        let proxy = cluster.s3_faults(&["GET,*,1,status=503"])?;
        // Nobody's request: refused by the rule first, and by the server itself then.
        let status = || {
            let url = format!("{}/faults?list-type=2", proxy.endpoint());
            let options = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", &url];
            anyhow::Ok(String::from_utf8(Command::new("curl").args(options).output()?.stdout)?)
        };
        let (first, second) = (status()?, status()?);
        ensure!(first == "503" && second == "403", "{first}, then {second}");
        Ok(())
    });
}
