//! A real Velero with its node agent, installed as its users do, moves the snapshots of a namespace and restores them
//! into another: what Tradewind will take over is seen to work here without it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use tradewind_cluster::cluster::{Cluster, inside, say};
use tradewind_cluster::components::S3_KEYS;
use tradewind_cluster::folder::Level;
use tradewind_cluster::image::Image;
use tradewind_cluster::network::{NODE, S3_PORT};

use crate::claims::{Claim, Mode, pod};

/// A program of the cluster.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("no {name} in PATH: tests/cluster/setup.sh velero builds it"))
}

/// Runs Velero's command line, as its users do.
pub(crate) fn velero(arguments: &[&str]) -> Result<String> {
    // Its own limits are hours.
    let done =
        Command::new("timeout").args(["600", "velero"]).args(arguments).output().context("running velero")?;
    let (said, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "velero {}: {errors}{said}", arguments.join(" "));
    Ok(said.into_owned())
}

/// Gives the node Velero's images.
fn images(cluster: &Cluster) -> Result<()> {
    let busybox = "/bin/busybox";
    let mut image = Image::new("tradewind.test/velero:1").entrypoint(&["/velero"]).folder("/tmp")?;
    for name in ["velero", "velero-helper", "velero-restore-helper"] {
        image = image.program(&program(name)?, &format!("/{name}"))?;
    }
    image = image.program(busybox.as_ref(), busybox)?.link("/bin/sh", "busybox")?;
    cluster.import(image)?;

    let name = "velero-plugin-for-aws";
    let entrypoint = ["/bin/sh", "-c", "/bin/busybox cp /plugins/* /target/."];
    let image = Image::new("tradewind.test/velero-aws:1")
        .entrypoint(&entrypoint)
        .program(&program(name)?, &format!("/plugins/{name}"))?
        .program(busybox.as_ref(), busybox)?
        .link("/bin/sh", "busybox")?;
    cluster.import(image)
}

/// The settings of a location in the cluster's S3 server, seen at `address`.
pub(crate) fn settings(address: &str) -> String {
    format!("region=us-east-1,s3ForcePathStyle=true,s3Url={address},checksumAlgorithm=")
}

/// Installs it, with its node agent and the location `default`.
pub(crate) async fn install(cluster: &Cluster) -> Result<()> {
    // What another test has put there has another key.
    let bucket = cluster.folder.join("s3/velero");
    if bucket.exists() {
        std::fs::remove_dir_all(&bucket)?;
    }
    std::fs::create_dir_all(&bucket)?;
    let settings = settings(&format!("http://{NODE}:{S3_PORT}"));
    let location = ["--provider=aws", "--bucket=velero", &format!("--backup-location-config={settings}")];
    install_with(cluster, &location, "").await?;
    available(cluster, "default").await
}

/// Installs it with other arguments, and with more objects.
pub(crate) async fn install_with(cluster: &Cluster, location: &[&str], more: &str) -> Result<()> {
    images(cluster)?;
    let keys = cluster.folder.join("velero.keys");
    let text = format!("[default]\naws_access_key_id={}\naws_secret_access_key={}\n", S3_KEYS.0, S3_KEYS.1);
    std::fs::write(&keys, text)?;
    let keys = format!("--secret-file={}", keys.display());
    let always = [
        "install",
        "--image=tradewind.test/velero:1",
        "--plugins=tradewind.test/velero-aws:1",
        &keys,
        "--use-node-agent",
        "--features=EnableCSI",
        "--use-volume-snapshots=false",
        "--dry-run",
        "--output=yaml",
    ];
    let yaml = velero(&[&always[..], location].concat())?;
    cluster.objects.apply(&yaml).await?;
    cluster.objects.apply(more).await?;
    let servers: Api<Deployment> = Api::namespaced(cluster.client.clone(), "velero");
    let agents: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), "velero");
    let runs = async || {
        let server = servers.get("velero").await?.status.and_then(|status| status.ready_replicas);
        let agent = agents.get("node-agent").await?.status.map(|status| status.number_ready);
        Ok((server == Some(1) && agent == Some(1)).then_some(()))
    };
    cluster.until("Velero and its node agent", runs).await
}

/// Waits until a location can be used.
pub(crate) async fn available(cluster: &Cluster, location: &str) -> Result<()> {
    let kind = GroupVersionKind::gvk("velero.io", "v1", "BackupStorageLocation");
    let locations: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), "velero", &ApiResource::from_gvk(&kind));
    let is_available = async || {
        let found = locations.get(location).await?;
        Ok((found.data["status"]["phase"] == "Available").then_some(()))
    };
    cluster.until("Velero's location", is_available).await
}

/// There is one Velero at a time: whoever installs it holds this.
pub(crate) fn one(cluster: &Cluster) -> Result<File> {
    let lock = File::create(cluster.folder.join("run/velero.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn velero_moves_snapshots_and_restores_them_elsewhere() {
    inside(Level::Node, async |cluster| {
        let _one = one(cluster)?;
        cluster.remember("velero");
        let begin = Instant::now();
        install(cluster).await?;
        say(&format!("velero: installed after {:.1} s", begin.elapsed().as_secs_f64()));
        let moved = moved(cluster).await;
        if moved.is_err() {
            say(&velero(&["backup", "describe", "--details"]).unwrap_or_default());
        }
        moved.and(velero(&["uninstall", "--force"]).map(drop))
    });
}

async fn moved(cluster: &Cluster) -> Result<()> {
    let from = cluster.namespace("app").await?;
    let to = format!("{from}-copy");
    cluster.remember(&to);
    let volumes = [
        (
            Claim::new("files", Mode::Filesystem, "200Mi"),
            "mkdir /data/d; for n in 1 2 3 4; do head -c 25000000 /dev/urandom > /data/d/$n; done; sync",
            "cd /data && find . -type f | grep -v lost+found | sort | xargs md5sum",
        ),
        (
            Claim::new("blocks", Mode::Block, "256Mi"),
            "head -c 200000000 /dev/urandom | dd of=/dev/data bs=1M conv=fsync",
            "md5sum /dev/data",
        ),
    ];
    let mut sums = Vec::new();
    for (claim, write, read) in &volumes {
        claim.create(cluster, &from).await?;
        let volume = (claim.name, claim.mode);
        pod(cluster, &from, claim.name, volume, &format!("{write}; {read}")).await?;
        sums.push(
            cluster
                .succeeded(&from, claim.name)
                .await?
                .lines()
                .filter(|l| l.contains("  "))
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
    }

    let begin = Instant::now();
    velero(&["backup", "create", "moved", "--include-namespaces", &from, "--snapshot-move-data", "--wait"])?;
    completed(cluster, "Backup", "moved").await?;
    all_moved(cluster, "DataUpload").await?;
    say(&format!("velero: backup after {:.1} s", begin.elapsed().as_secs_f64()));

    let begin = Instant::now();
    let mapping = format!("{from}:{to}");
    // Not the pods: they would write again.
    velero(&[
        "restore",
        "create",
        "back",
        "--from-backup",
        "moved",
        "--namespace-mappings",
        &mapping,
        "--exclude-resources",
        "pods",
        "--wait",
    ])?;
    completed(cluster, "Restore", "back").await?;
    all_moved(cluster, "DataDownload").await?;
    say(&format!("velero: restore after {:.1} s", begin.elapsed().as_secs_f64()));

    for ((claim, _, read), expected) in volumes.iter().zip(&sums) {
        pod(cluster, &to, claim.name, (claim.name, claim.mode), read).await?;
        let said = cluster.succeeded(&to, claim.name).await?;
        let found: Vec<&str> = said.lines().collect();
        ensure!(
            !expected.is_empty() && found == *expected,
            "{}: {found:?}, but it was {expected:?}",
            claim.name
        );
    }
    Ok(())
}

/// Sees that the data of both volumes went by way of the bucket: a snapshot that is left would be restored as well.
async fn all_moved(cluster: &Cluster, kind: &str) -> Result<()> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v2alpha1", kind));
    let all: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "velero", &resource);
    let phases: Vec<_> = all
        .list(&ListParams::default())
        .await?
        .into_iter()
        .map(|o| o.data["status"]["phase"].clone())
        .collect();
    ensure!(phases == [json!("Completed"), json!("Completed")], "{kind}: {phases:?}");
    Ok(())
}

pub(crate) async fn completed(cluster: &Cluster, kind: &str, name: &str) -> Result<()> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", kind));
    let all: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "velero", &resource);
    let status = all.get(name).await?.data["status"].clone();
    ensure!(status["phase"] == json!("Completed"), "{kind} {name}: {status}");
    Ok(())
}
