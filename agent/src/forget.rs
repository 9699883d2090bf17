//! Snapshots whose backup is gone are forgotten. Nobody else does it: Velero leaves what other data movers made alone, and
//! that an object of the cluster is deleted says nothing about the data. A Backup that is deleted with `kubectl` comes back
//! from the bucket, and its DataUploads do not.
//!
//! What counts is the bucket: Velero deletes `backups/NAME/velero-backup.json` when a backup is deleted or expires. A
//! snapshot is forgotten when that object is not there, or is of another backup of the same name; when no Backup in this
//! cluster claims it; and when it has been there for the grace by the store's clock, because a backup that is still being
//! made, here or in another cluster, has no such object yet. Whatever cannot be read is kept. Forgetting deletes nothing:
//! garbage collection does, later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tradewind_k8s::velero::{AccessMode, Backup, BackupStorageLocation};
use tradewind_pipeline::manifest::catalog::{self, Filter, What};
use tradewind_pipeline::manifest::{self, SnapshotKey};
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::store::{Store, StoreErrorKind};

use crate::agent::Agent;
use crate::repository::{Error, REPOSITORIES};

/// On a snapshot: name and UID of the backup that it belongs to, and how long that backup's operations may take, in seconds.
pub(crate) const BACKUP: &str = "backup";
pub(crate) const BACKUP_UID: &str = "backup-uid";
pub(crate) const OPERATION_TIMEOUT: &str = "operation-timeout";
/// The largest object of a backup that is read, in bytes: it is a spec and a status.
const LARGEST: u64 = 16 << 20;

/// A snapshot, and the backup that it says it belongs to.
struct Claim {
    at: SnapshotKey,
    backup: String,
    uid: String,
    /// For how long it must have been there.
    grace: Duration,
    /// Since when it has been there, by the store's clock, in milliseconds since the Unix epoch.
    since_ms: u64,
}

/// Looks for such snapshots again and again, if this agent is the one that does.
pub(crate) async fn run(agent: Arc<Agent>) {
    loop {
        tokio::time::sleep(agent.options.forget_interval).await;
        if agent.leads()
            && let Err(error) = sweep(&agent).await
        {
            tracing::warn!("looking for backups that are gone: {error}");
        }
    }
}

/// Looks once, through all locations and namespaces. What fails in one is said, and does not keep the others.
async fn sweep(agent: &Agent) -> Result<(), kube::Error> {
    let locations: Api<BackupStorageLocation> = agent.ours();
    let backups: Api<Backup> = agent.ours();
    let locations = locations.list(&ListParams::default()).await?;
    let live = backups.list_metadata(&ListParams::default()).await?;
    let live: HashSet<String> = live.iter().filter_map(kube::ResourceExt::uid).collect();
    for location in locations {
        if location.spec.access_mode == AccessMode::ReadOnly {
            continue;
        }
        let name = location.name_any();
        if let Err(error) = Box::pin(location_swept(agent, &name, &live)).await {
            tracing::warn!("looking for backups that are gone from storage location {name}: {error}");
        }
    }
    Ok(())
}

async fn location_swept(agent: &Agent, location: &str, live: &HashSet<String>) -> Result<(), Error> {
    let (limits, progress) = (agent.budget.for_one(), Arc::new(Progress::default()));
    let root = agent.keys.root(location, &limits, &progress).await?;
    for namespace in namespaces(&root).await? {
        if let Err(error) = Box::pin(namespace_swept(agent, location, &namespace, &root, live)).await {
            tracing::warn!(
                "looking for backups of {namespace} that are gone from storage location {location}: {error}"
            );
        }
    }
    Ok(())
}

async fn namespace_swept(
    agent: &Agent,
    location: &str,
    namespace: &str,
    root: &Arc<dyn Store>,
    live: &HashSet<String>,
) -> Result<(), Error> {
    let (limits, progress) = (agent.budget.for_one(), Arc::new(Progress::default()));
    let repository = agent.keys.open(location, namespace, false, &limits, &progress).await?;
    let mut claims = Vec::new();
    let grace = agent.options.forget_grace;
    let collect = &mut |listed: catalog::Listed| {
        if let (Some(at), What::Snapshot(found)) = (listed.at, &listed.what)
            && let (Some(backup), Some(uid)) = (found.tags.get(BACKUP), found.tags.get(BACKUP_UID))
        {
            let timeout = found.tags.get(OPERATION_TIMEOUT).and_then(|text| text.parse().ok());
            claims.push(Claim {
                at,
                backup: backup.clone(),
                uid: uid.clone(),
                grace: grace.max(Duration::from_secs(timeout.unwrap_or_default())),
                since_ms: listed.modified_ms,
            });
        }
        Ok(())
    };
    catalog::visit(&repository, &Filter::default(), collect).await?;
    let now_ms = repository.now_ms().await?;
    let mut there = HashMap::new();
    for claim in claims.iter().filter(|claim| is_old(claim, now_ms) && !live.contains(&claim.uid)) {
        let uid = match there.get(&claim.backup) {
            Some(uid) => uid,
            None => {
                let uid = in_bucket(root, &claim.backup).await?;
                there.entry(claim.backup.clone()).or_insert(uid)
            }
        };
        if !is_gone(uid, &claim.uid) {
            continue;
        }
        let why = format!("backup {} is not in the bucket any more", claim.backup);
        if manifest::forget(&repository, claim.at, &why).await? {
            agent.metrics.forgot();
            tracing::info!(snapshot = %claim.at.id, namespace, location, "forgotten: {why}");
        }
    }
    Ok(())
}

fn is_old(claim: &Claim, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(claim.since_ms)) > claim.grace.as_millis()
}

/// What the bucket has for the name of a backup.
#[derive(Debug, PartialEq, Eq)]
enum InBucket {
    /// Nothing.
    Nothing,
    /// A backup with this UID.
    Uid(String),
    /// Something that says nothing.
    Unclear,
}

fn is_gone(found: &InBucket, uid: &str) -> bool {
    match found {
        InBucket::Nothing => true,
        InBucket::Uid(other) => other != uid,
        InBucket::Unclear => false,
    }
}

/// What there is for a backup. A store that does not say clearly that there is nothing is an error.
async fn in_bucket(root: &Arc<dyn Store>, backup: &str) -> Result<InBucket, Error> {
    match root.read_all(&format!("backups/{backup}/velero-backup.json"), LARGEST).await {
        Ok(text) => Ok(uid_in(&text)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(InBucket::Nothing),
        Err(error) => Err(tradewind_pipeline::Error::from(error).into()),
    }
}

fn uid_in(text: &[u8]) -> InBucket {
    let read: Option<Value> = serde_json::from_slice(text).ok();
    let uid =
        read.as_ref().and_then(|backup| backup["metadata"]["uid"].as_str()).filter(|uid| !uid.is_empty());
    uid.map_or(InBucket::Unclear, |uid| InBucket::Uid(uid.to_owned()))
}

/// The namespaces that have a repository in a location. One request for each.
async fn namespaces(root: &Arc<dyn Store>) -> Result<Vec<String>, Error> {
    let mut found: Vec<String> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page =
            root.list(REPOSITORIES, after.as_deref()).await.map_err(tradewind_pipeline::Error::from)?;
        let next = page.objects.iter().find_map(|object| {
            let name = object.key.strip_prefix(REPOSITORIES)?.split_once('/')?.0;
            (found.last().map(String::as_str) != Some(name)).then(|| name.to_owned())
        });
        match next {
            Some(name) => {
                // Behind everything of that repository: all its keys begin with letters before this one.
                after = Some(format!("{REPOSITORIES}{name}/zz"));
                found.push(name);
            }
            None if page.more => {
                after = page.objects.last().map(|object| object.key.clone());
            }
            None => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use tradewind_pipeline::manifest::VolumeKey;
    use tradewind_pipeline::pack::SessionId;
    use tradewind_pipeline::store::Body;
    use tradewind_pipeline::store::local::LocalStore;

    use super::*;

    #[test]
    fn only_what_is_clearly_gone_is_gone() {
        assert!(is_gone(&InBucket::Nothing, "a"));
        assert!(is_gone(&uid_in(br#"{"metadata": {"uid": "b"}}"#), "a"));
        assert!(!is_gone(&uid_in(br#"{"metadata": {"uid": "a"}}"#), "a"));
        for unclear in ["", "{", "{}", r#"{"metadata": {"uid": ""}}"#, r#"{"metadata": {"uid": 5}}"#] {
            assert_eq!(uid_in(unclear.as_bytes()), InBucket::Unclear, "{unclear}");
        }
    }

    #[test]
    fn a_snapshot_has_a_grace() {
        let claim = Claim {
            at: SnapshotKey { volume: VolumeKey([0; 16]), id: SessionId([0; 12]) },
            backup: "b".to_owned(),
            uid: "u".to_owned(),
            grace: Duration::from_secs(10),
            since_ms: 100_000,
        };
        assert!(!is_old(&claim, 110_000) && is_old(&claim, 110_001));
        // The store's clock was set back.
        assert!(!is_old(&claim, 5));
    }

    #[tokio::test]
    async fn namespaces_are_found_without_reading_everything() {
        let folder = tempfile::tempdir().unwrap();
        let root: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path()).unwrap());
        assert!(namespaces(&root).await.unwrap().is_empty());
        for key in ["a-b/config", "a/config", "a/packs/00/x", "a/snapshots/x", "a0/config", "tmp/config"] {
            root.create(&format!("{REPOSITORIES}{key}"), Body::from(b"x".to_vec())).await.unwrap();
        }
        root.create("backups/a/velero-backup.json", Body::from(b"x".to_vec())).await.unwrap();
        assert_eq!(namespaces(&root).await.unwrap(), ["a-b", "a", "a0", "tmp"]);
    }
}
