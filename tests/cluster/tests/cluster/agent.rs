//! Tradewind's agent beside a real, unmodified Velero with its own agent.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use serde_json::json;
use tradewind_cluster::cluster::{Cluster, inside, say};
use tradewind_cluster::folder::Level;
use tradewind_cluster::image::Image;
use tradewind_cluster::left;

use crate::claims::{Claim, Mode, pod};
use crate::helm::helm;
use crate::velero::{completed, install, one, velero};

/// Installs the agent as its users do.
fn agent(cluster: &Cluster) -> Result<()> {
    cluster.import(Image::tradewind(&cluster.folder)?)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let chart = root.join("deploy/chart").display().to_string();
    helm(&[
        "install",
        "tradewind",
        &chart,
        "--namespace=velero",
        "--wait",
        "--timeout=90s",
        "--set-string=image.repository=tradewind.test/tradewind,image.tag=1",
        "--set=verbosity=1",
    ])
    .map(drop)
}

/// A volume of the application: how it is written, and how it is read.
struct Volume<'a> {
    claim: Claim<'a>,
    write: &'a str,
    read: &'a str,
}

const FILES: &str = "mkdir /data/d; for n in 1 2 3 4; do head -c 25000000 /dev/urandom > /data/d/$n; done; \
    chown 1000:2000 /data/d/1; chmod 700 /data/d; ln -s 1 /data/d/link; sync";
const READ_FILES: &str = "cd /data && find . -type f | grep -v lost+found | sort | xargs md5sum; \
    find . | grep -v lost+found | sort | xargs stat -c '%n  %a %u %g %F %Y'";
const BLOCKS: &str = "head -c 200000000 /dev/urandom | dd of=/dev/data bs=1M conv=fsync";
const READ_BLOCKS: &str = "md5sum /dev/data";

fn volumes() -> Vec<Volume<'static>> {
    let late = |claim: Claim<'static>| Claim { class: "on-first-consumer", ..claim };
    vec![
        Volume { claim: Claim::new("files", Mode::Filesystem, "200Mi"), write: FILES, read: READ_FILES },
        Volume { claim: Claim::new("blocks", Mode::Block, "256Mi"), write: BLOCKS, read: READ_BLOCKS },
        Volume { claim: late(Claim::new("late", Mode::Filesystem, "200Mi")), write: FILES, read: READ_FILES },
    ]
}

/// What a pod reads of a volume, line by line.
async fn read(cluster: &Cluster, namespace: &str, volume: &Volume<'_>, command: &str) -> Result<Vec<String>> {
    let claim = &volume.claim;
    pod(cluster, namespace, claim.name, (claim.name, claim.mode), command).await?;
    let said = cluster.succeeded(namespace, claim.name).await?;
    let lines: Vec<_> = said.lines().filter(|l| l.contains("  ")).map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{}: nothing was read", claim.name);
    Ok(lines)
}

/// All jobs of a kind, with their statuses.
async fn jobs(cluster: &Cluster, kind: &str) -> Result<Vec<DynamicObject>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v2alpha1", kind));
    let all: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "velero", &resource);
    Ok(all.list(&ListParams::default()).await?.items)
}

async fn all_completed(cluster: &Cluster, kind: &str, count: usize) -> Result<()> {
    let all = jobs(cluster, kind).await?;
    let is_done = |job: &DynamicObject| {
        job.data["status"]["phase"] == json!("Completed")
            && job.data["spec"]["datamover"] == json!("tradewind")
    };
    ensure!(all.len() == count && all.iter().all(is_done), "{kind}: {all:#?}");
    Ok(())
}

/// Waits until nothing is left in Velero's namespace of what was made for jobs.
async fn tidy(cluster: &Cluster) -> Result<()> {
    let ours = ListParams::default().labels("tradewind-backup.github.io/job");
    let (client, namespace) = (cluster.client.clone(), "velero");
    cluster
        .until("the agent to clean up", async || {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
            let left = pods.list(&ours).await?.items.len()
                + claims.list(&ours).await?.items.len()
                + secrets.list(&ours).await?.items.len();
            let held = ["DataUpload", "DataDownload"];
            let mut finalizers = 0;
            for kind in held {
                finalizers +=
                    jobs(cluster, kind).await?.iter().filter(|j| j.metadata.finalizers.is_some()).count();
            }
            let now = left::count(&cluster.folder, &client).await?;
            let snapshots = now["snapshots"] + now["contents"] + now["files of snapshots"];
            Ok((left + finalizers + snapshots == 0).then_some(()))
        })
        .await
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn tradewind_moves_snapshots_under_velero_and_restores_them_elsewhere() {
    inside(Level::Node, async |cluster| {
        let _one = one(cluster)?;
        cluster.remember("velero");
        install(cluster).await?;
        agent(cluster)?;
        let moved = moved(cluster).await;
        if moved.is_err() {
            for kind in ["DataUpload", "DataDownload"] {
                say(&format!("{:#?}", jobs(cluster, kind).await));
            }
        }
        let removed = helm(&["uninstall", "tradewind", "--namespace=velero", "--wait"]).map(drop);
        moved.and(removed).and(velero(&["uninstall", "--force"]).map(drop))
    });
}

async fn moved(cluster: &Cluster) -> Result<()> {
    let from = cluster.namespace("app").await?;
    let to = format!("{from}-copy");
    cluster.remember(&to);
    let volumes = volumes();
    let mut sums = Vec::new();
    for volume in &volumes {
        volume.claim.create(cluster, &from).await?;
        let command = format!("{}; {}", volume.write, volume.read);
        sums.push(read(cluster, &from, volume, &command).await?);
    }

    let begin = Instant::now();
    let include = ["--include-namespaces", from.as_str()];
    let mover = ["--snapshot-move-data", "--data-mover", "tradewind", "--wait"];
    velero(&[&["backup", "create", "ours"][..], &include, &mover].concat())?;
    completed(cluster, "Backup", "ours").await?;
    all_completed(cluster, "DataUpload", volumes.len()).await?;
    let backup = begin.elapsed();
    tidy(cluster).await.context("after the backup")?;
    for job in jobs(cluster, "DataUpload").await? {
        let status = &job.data["status"];
        ensure!(status["snapshotID"].is_string() && status["completionTimestamp"].is_string(), "{status}");
        ensure!(status["progress"]["bytesDone"].as_u64() >= Some(100_000_000), "{status}");
        // By this Velero's own agent would take the job for one of its own.
        ensure!(status["node"].is_null(), "{status}");
    }

    let begin = Instant::now();
    let mapping = format!("{from}:{to}");
    // Not the pods: they would write again.
    let words = ["restore", "create", "back", "--from-backup", "ours", "--namespace-mappings", &mapping];
    velero(&[&words[..], &["--exclude-resources", "pods", "--wait"]].concat())?;
    completed(cluster, "Restore", "back").await?;
    all_completed(cluster, "DataDownload", volumes.len()).await?;
    let restore = begin.elapsed();
    tidy(cluster).await.context("after the restore")?;
    say(&format!("tradewind: backup after {:.1} s, restore after {:.1} s", secs(backup), secs(restore)));

    for (volume, expected) in volumes.iter().zip(&sums) {
        let found = read(cluster, &to, volume, volume.read).await?;
        ensure!(found == *expected, "{}: {found:#?}, but it was {expected:#?}", volume.claim.name);
    }
    Ok(())
}

fn secs(time: Duration) -> f64 {
    time.as_secs_f64()
}
