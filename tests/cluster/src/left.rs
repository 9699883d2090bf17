//! What tests have left in a cluster: how one sees that everything that was made is gone again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};

use crate::folder::Folder;
use crate::loops;

/// What is there now, by kind. To be called inside.
///
/// # Errors
/// When the API server does not answer, or `losetup` fails.
pub async fn count(folder: &Folder, client: &Client) -> Result<BTreeMap<&'static str, usize>> {
    let all = ListParams::default();
    let snapshots = |kind: &str| {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind));
        Api::<DynamicObject>::all_with(client.clone(), &resource)
    };
    let loops = loops::standing_on(&folder.join("volumes.img"))?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter(|line| line.contains(" /var/lib/kubelet/")).count();
    Ok(BTreeMap::from([
        ("pods", Api::<Pod>::all(client.clone()).list(&all).await?.items.len()),
        ("claims", Api::<PersistentVolumeClaim>::all(client.clone()).list(&all).await?.items.len()),
        ("volumes", Api::<PersistentVolume>::all(client.clone()).list(&all).await?.items.len()),
        ("snapshots", snapshots("VolumeSnapshot").list(&all).await?.items.len()),
        ("contents", snapshots("VolumeSnapshotContent").list(&all).await?.items.len()),
        ("files of volumes", files(&folder.join("volumes/driver/volumes"))),
        ("files of snapshots", files(&folder.join("volumes/driver/snapshots"))),
        // One is that of the file system of all volumes.
        ("loop devices", loops.len().saturating_sub(1)),
        ("mounts", mounts),
    ]))
}

/// Waits until nothing is left. To be called inside.
///
/// # Errors
/// After `limit`: what there is.
pub async fn nothing(folder: &Folder, client: &Client, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let mut left = count(folder, client).await?;
        left.retain(|_, count| *count > 0);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("left after {} s: {left:?}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}
