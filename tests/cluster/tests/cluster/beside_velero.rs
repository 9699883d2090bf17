//! Tradewind's agent beside a real, unmodified Velero with its own agent: backups and restores as users make them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod, Secret};
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind};
use serde_json::json;
use tradewind_cluster::cluster::{Cluster, inside, say};
use tradewind_cluster::folder::Level;
use tradewind_tests::proxy::Record;

use crate::agent::{self, KEY, NAMESPACE, Repository, jobs, stored, tidy};
use crate::claims::{Claim, Mode, pod};
use crate::velero::{available, completed, install, install_with, one, velero};

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

/// What a pod reads of a volume, line by line, after another command.
async fn read(cluster: &Cluster, namespace: &str, volume: &Volume<'_>, before: &str) -> Result<Vec<String>> {
    let claim = &volume.claim;
    let command = format!("{before}{}", volume.read);
    pod(cluster, namespace, claim.name, (claim.name, claim.mode), &command).await?;
    let said = cluster.succeeded(namespace, claim.name).await?;
    let lines: Vec<_> = said.lines().filter(|l| l.contains("  ")).map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{}: nothing was read", claim.name);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    pods.delete(claim.name, &DeleteParams::default().grace_period(0)).await?;
    cluster
        .until("a pod to go", async || Ok(pods.get_opt(claim.name).await?.is_none().then_some(())))
        .await?;
    Ok(lines)
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

/// Makes a backup of a namespace; gives how long that took.
async fn back_up(cluster: &Cluster, name: &str, namespace: &str, mover: &str) -> Result<Duration> {
    let begin = Instant::now();
    // For so long its snapshots are not forgotten, whatever becomes of it.
    let include = [
        "--include-namespaces",
        namespace,
        "--snapshot-move-data",
        "--item-operation-timeout=100s",
        "--wait",
    ];
    let mover = if mover.is_empty() { vec![] } else { vec!["--data-mover", mover] };
    velero(&[&["backup", "create", name][..], &include, &mover].concat())?;
    completed(cluster, "Backup", name).await?;
    Ok(begin.elapsed())
}

/// Restores a backup into another namespace, without its pods: they would write again.
async fn restore(cluster: &Cluster, name: &str, from: &str, to: &str) -> Result<Duration> {
    let begin = Instant::now();
    let mapping = format!("{from}:{to}");
    let words = ["restore", "create", name, "--from-backup", name, "--namespace-mappings", &mapping];
    velero(&[&words[..], &["--exclude-resources", "pods", "--wait"]].concat())?;
    completed(cluster, "Restore", name).await?;
    Ok(begin.elapsed())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn tradewind_moves_snapshots_under_velero_and_restores_them_elsewhere() {
    inside(Level::Node, async |cluster| {
        let _one = one(cluster)?;
        cluster.remember(NAMESPACE);
        install(cluster).await?;
        agent::install(cluster)?;
        let done = moved(cluster).await;
        if done.is_err() {
            agent::show(cluster).await;
        }
        done.and(agent::uninstall()).and(velero(&["uninstall", "--force"]).map(drop))
    });
}

async fn moved(cluster: &Cluster) -> Result<()> {
    let from = cluster.namespace("app").await?;
    let (to, again) = (format!("{from}-copy"), format!("{from}-velero"));
    cluster.remember(&to);
    cluster.remember(&again);
    let volumes = volumes();
    let mut sums = Vec::new();
    for volume in &volumes {
        volume.claim.create(cluster, &from).await?;
        sums.push(read(cluster, &from, volume, &format!("{}; ", volume.write)).await?);
    }

    // There and back.
    let ours = (back_up(cluster, "ours", &from, "tradewind").await?, {
        all_completed(cluster, "DataUpload", volumes.len()).await?;
        tidy(cluster).await.context("after the backup")?;
        restore(cluster, "ours", &from, &to).await?
    });
    all_completed(cluster, "DataDownload", volumes.len()).await?;
    tidy(cluster).await.context("after the restore")?;
    for job in jobs(cluster, "DataUpload").await? {
        let status = &job.data["status"];
        ensure!(status["snapshotID"].is_string() && status["completionTimestamp"].is_string(), "{status}");
        ensure!(status["progress"]["bytesDone"].as_u64() >= Some(100_000_000), "{status}");
        // By this Velero's own agent would take the job for one of its own.
        ensure!(status["node"].is_null(), "{status}");
    }
    for (volume, expected) in volumes.iter().zip(&sums) {
        let found = read(cluster, &to, volume, "").await?;
        ensure!(found == *expected, "{}: {found:#?}, but it was {expected:#?}", volume.claim.name);
    }
    let said = velero(&["backup", "describe", "ours", "--details"])?;
    ensure!(said.contains("Data Mover: tradewind"), "{said}");

    // The same from the command line, with nothing but the bucket and the key.
    let repository = Repository::of(cluster, &from).await?;
    ensure!(repository.snapshots()? == volumes.len(), "{}", repository.run(&["snapshots"])?);
    let target = tempfile::tempdir()?;
    let image = target.path().join("blocks");
    let blocks = format!("{from}/blocks");
    repository.run(&["restore", "latest", "--volume", &blocks, "--target", &image.display().to_string()])?;
    let sum = std::process::Command::new("md5sum").arg(&image).output()?.stdout;
    let (sum, expected) = (String::from_utf8_lossy(&sum), &sums[1][0]);
    ensure!(sum.split(' ').next() == expected.split(' ').next(), "{sum}, but it was {expected}");

    // A second backup after a small change puts little into the bucket.
    let before = stored(cluster, "plugins");
    let change = "dd if=/dev/urandom of=/dev/data bs=4096 seek=1000 count=1 conv=notrunc,fsync; ";
    let changed = read(cluster, &from, &volumes[1], change).await?;
    ensure!(changed != sums[1], "nothing was changed");
    back_up(cluster, "second", &from, "tradewind").await?;
    let more = stored(cluster, "plugins") - before;
    ensure!(more <= (256 << 10) + (1 << 20), "{more} bytes for one changed block");
    tidy(cluster).await.context("after the second backup")?;

    // That Velero's object is deleted says nothing; that its backup is does.
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", "Backup"));
    let backups: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), NAMESPACE, &resource);
    backups.delete("second", &DeleteParams::default()).await?;
    velero(&["backup", "delete", "ours", "--confirm"])?;
    let left = async || Ok((repository.snapshots()? <= volumes.len()).then_some(()));
    cluster.until("the deleted backup to be forgotten", left).await?;
    // Longer than the agent needs to look again, twice.
    let calm = Instant::now();
    while calm.elapsed() < Duration::from_secs(5) {
        ensure!(repository.snapshots()? == volumes.len(), "{}", repository.run(&["snapshots"])?);
    }

    // Velero's own mover beside it. It would wait for ever for a pod that uses the claim without one.
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), &from);
    claims.delete("late", &DeleteParams::default()).await?;
    let is_gone = async || Ok(claims.get_opt("late").await?.is_none().then_some(()));
    cluster.until("a claim to go", is_gone).await?;
    let theirs =
        (back_up(cluster, "theirs", &from, "").await?, restore(cluster, "theirs", &from, &again).await?);
    say(&format!(
        "backup of three volumes {:.1} s, restore {:.1} s; two of them with Velero's own mover {:.1} s and {:.1} s",
        ours.0.as_secs_f64(),
        ours.1.as_secs_f64(),
        theirs.0.as_secs_f64(),
        theirs.1.as_secs_f64()
    ));
    Ok(())
}

/// A cluster is lost: there is the bucket, which nobody may write to now, and a copy of the key.
#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_new_cluster_needs_the_bucket_and_the_key_alone() {
    inside(Level::Node, async |cluster| {
        let _one = one(cluster)?;
        cluster.remember(NAMESPACE);
        install(cluster).await?;
        agent::install(cluster)?;
        let from = cluster.namespace("lost").await?;
        let volume =
            Volume { claim: Claim::new("files", Mode::Filesystem, "200Mi"), write: FILES, read: READ_FILES };
        volume.claim.create(cluster, &from).await?;
        let expected = read(cluster, &from, &volume, &format!("{FILES}; ")).await?;
        back_up(cluster, "lost", &from, "tradewind").await?;
        tidy(cluster).await?;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let key = secrets.get(KEY).await?.data.unwrap_or_default().remove("key").context("no key")?;
        agent::uninstall()?;
        velero(&["uninstall", "--force"])?;
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        for name in [NAMESPACE, &from] {
            if namespaces.get_opt(name).await?.is_some() {
                namespaces.delete(name, &DeleteParams::default()).await?;
            }
            let is_gone = async || Ok(namespaces.get_opt(name).await?.is_none().then_some(()));
            cluster.until("a namespace to go", is_gone).await?;
        }

        let bucket = cluster.s3_faults(&["PUT|POST|DELETE,*,*,status=403"])?;
        let address = bucket.endpoint();
        let more = format!(
            "apiVersion: velero.io/v1
kind: BackupStorageLocation
metadata: {{name: elsewhere, namespace: {NAMESPACE}}}
spec:
  provider: aws
  accessMode: ReadOnly
  default: true
  backupSyncPeriod: 5s
  objectStorage: {{bucket: velero}}
  config: {{region: us-east-1, s3ForcePathStyle: 'true', s3Url: '{address}'}}
---
{{apiVersion: v1, kind: Secret, metadata: {{name: {KEY}, namespace: {NAMESPACE}}}, data: {{key: {}}}}}
",
            serde_json::to_value(&key)?
        );
        install_with(cluster, &["--no-default-backup-location"], &more).await?;
        available(cluster, "elsewhere").await?;
        agent::install(cluster)?;
        let is_known = async || Ok(velero(&["backup", "get", "lost"]).is_ok().then_some(()));
        cluster.until("the backup to be found in the bucket", is_known).await?;
        let to = format!("{from}-copy");
        cluster.remember(&to);
        let _ = bucket.take_records();
        let mapping = format!("{from}:{to}");
        let words = ["restore", "create", "lost", "--from-backup", "lost", "--namespace-mappings", &mapping];
        velero(&[&words[..], &["--exclude-resources", "pods", "--wait"]].concat())?;
        all_completed(cluster, "DataDownload", 1).await?;
        let found = read(cluster, &to, &volume, "").await?;
        ensure!(found == expected, "{found:#?}, but it was {expected:#?}");
        // Velero tries to keep its logs of the restore there; we try nothing.
        let tried = |record: &&Record| record.method != "GET" && record.method != "HEAD";
        let records = bucket.records();
        let ours: Vec<_> = records.iter().filter(|r| r.key.starts_with("plugins/")).collect();
        ensure!(ours.len() > 5 && !ours.iter().any(tried), "{ours:#?}");
        agent::uninstall()?;
        velero(&["uninstall", "--force"]).map(drop)
    });
}
