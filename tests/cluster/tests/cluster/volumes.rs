//! Volumes of both modes and both binding modes, written by pods.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt as _};
use tradewind_cluster::cluster::{Cluster, inside};
use tradewind_cluster::folder::Level;
use tradewind_cluster::network::NODE_NAME;

use crate::claims::{Claim, Mode, bound, pod};

/// Writes to a new volume in one pod and reads it in the next; returns their namespace.
async fn written_and_read(cluster: &Cluster, claim: &Claim<'_>) -> Result<String> {
    let namespace = cluster.namespace("volume").await?;
    claim.create(cluster, &namespace).await?;
    let data = if claim.mode == Mode::Block { "/dev/data" } else { "/data/file" };
    // Something that nobody else has written: 100,000 numbered lines.
    let volume = (claim.name, claim.mode);
    pod(cluster, &namespace, "writer", volume, &format!("seq 100000 | dd of={data} bs=64k conv=fsync"))
        .await?;
    cluster.succeeded(&namespace, "writer").await?;
    bound(cluster, &namespace, claim.name).await?;
    let expected = (1..=100_000).map(|n| format!("{n}\n")).collect::<String>();
    pod(
        cluster,
        &namespace,
        "reader",
        volume,
        &format!("head -c {} {data} | md5sum; seq 100000 | md5sum", expected.len()),
    )
    .await?;
    let said = cluster.succeeded(&namespace, "reader").await?;
    let sums: Vec<&str> = said.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "{said}");
    Ok(namespace)
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_file_system_is_written_and_read() {
    inside(Level::Node, async |cluster| {
        written_and_read(cluster, &Claim::new("files", Mode::Filesystem, "64Mi")).await?;
        written_and_read(cluster, &Claim { class: "xfs", ..Claim::new("files", Mode::Filesystem, "512Mi") })
            .await
            .map(drop)
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_block_device_is_written_and_read() {
    inside(Level::Node, async |cluster| {
        written_and_read(cluster, &Claim::new("blocks", Mode::Block, "64Mi")).await.map(drop)
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_volume_can_wait_for_its_first_consumer() {
    inside(Level::Node, async |cluster| {
        let class = "on-first-consumer";
        for claim in
            [Claim::new("files", Mode::Filesystem, "64Mi"), Claim::new("blocks", Mode::Block, "64Mi")]
        {
            let namespace = written_and_read(cluster, &Claim { class, ..claim }).await?;
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), &namespace);
            let waited = claims.get(claim.name).await?;
            // Who only waits for a volume is told no node.
            let node = waited.annotations().get("volume.kubernetes.io/selected-node");
            ensure!(node.is_some_and(|node| node == NODE_NAME), "{}: {node:?}", claim.name);
        }
        Ok(())
    });
}
