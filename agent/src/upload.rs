//! A DataUpload: a snapshot is taken over, a volume made from it, and its data moved to the bucket.
//!
//! What is made has the job's name (`tradewind-UID`), in the namespace of the installation: the content and the snapshot
//! that take the source's place, the claim, the token, the pod. The order is such that the storage's snapshot is never
//! without an object that names it, whenever the agent is killed: Velero 1.18.3, `pkg/exposer/csi_snapshot.go`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedLocalObjectReference, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tradewind_k8s::labels;
use tradewind_k8s::node_agent::Config;
use tradewind_k8s::quantity;
use tradewind_k8s::snapshot::{
    ContentSource, MANAGED_BY, SnapshotReference, SnapshotSource, VolumeSnapshot, VolumeSnapshotContent,
    VolumeSnapshotContentSpec, VolumeSnapshotSpec,
};
use tradewind_k8s::velero::{Backup, DataUpload, NodeOs};
use tradewind_pipeline::backup::{BackupOptions, ParentChoice, Source};
use tradewind_pipeline::io::EngineChoice;
use tradewind_pipeline::manifest::VolumeName;
use tradewind_pipeline::patterns::Patterns;
use tradewind_pipeline::progress::{Counter, Progress};
use tradewind_pipeline::seal::Level;

use crate::agent::Agent;
use crate::forget;
use crate::handover::Held;
use crate::jobs::{Ended, Moved};
use crate::objects::{self, TAKEN_FROM, Uid, made_for};
use crate::pods::{self, Holding, Mode};
use crate::reconcile::{Going, Move, Status};
use crate::repository::Error;
use crate::volumes;

/// How much a crash may cost.
const CHECKPOINT: Duration = Duration::from_secs(60);
/// How long the operations of a backup may take that does not say: Velero's default.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// Waits for something.
fn on(what: impl Into<String>) -> Result<Going, kube::Error> {
    Ok(Going::On(what.into()))
}

impl Move for DataUpload {
    fn data_mover(&self) -> &str {
        &self.spec.data_mover
    }

    fn cancel(&self) -> bool {
        self.spec.cancel
    }

    fn status(&self) -> Status {
        let status = self.status.clone().unwrap_or_default();
        Status {
            phase: status.phase,
            message: status.message,
            start: status.start_timestamp,
            completion: status.completion_timestamp,
            progress: status.progress,
            accepted_by: status.accepted_by_node,
            accepted: status.accepted_timestamp,
        }
    }

    fn write(&mut self, status: Status, moved: Option<&Moved>) {
        let to = self.status.get_or_insert_default();
        to.phase = status.phase;
        to.message = status.message;
        to.start_timestamp = status.start;
        to.completion_timestamp = status.completion;
        to.progress = status.progress;
        to.accepted_by_node = status.accepted_by;
        to.accepted_timestamp = status.accepted;
        if let Some(moved) = moved {
            to.snapshot_id.clone_from(&moved.snapshot);
            to.incremental_bytes = i64::try_from(moved.new).unwrap_or(i64::MAX);
            to.node_os = NodeOs::Linux;
        }
    }

    fn set_node(&mut self, node: &str) {
        node.clone_into(&mut self.status.get_or_insert_default().node);
    }

    async fn ready(&self, _: &Agent) -> Result<bool, kube::Error> {
        Ok(true)
    }

    async fn expose(&self, agent: &Agent, uid: &Uid) -> Result<Going, kube::Error> {
        let Some(csi) = &self.spec.csi_snapshot else {
            let kind = &self.spec.snapshot_type;
            return Ok(Going::Nowhere(format!("snapshots of type '{kind}' are not known: only CSI is")));
        };
        let name = uid.name();
        let claims: Api<PersistentVolumeClaim> = agent.ours();
        if claims.get_metadata_opt(&name).await?.is_none() {
            let content = match take_over(agent, self, uid, &csi.volume_snapshot).await? {
                Ok(content) => content,
                Err(going) => return Ok(going),
            };
            let snapshots: Api<VolumeSnapshot> = agent.ours();
            let snapshot = snapshots.get(&name).await?;
            let status = snapshot.status.clone().unwrap_or_default();
            if !status.ready_to_use {
                return on(format!("the snapshot {name} to be ready{}", because(status.error.as_ref())));
            }
            let source: Api<PersistentVolumeClaim> = agent.of(&self.spec.source_namespace);
            let source = source.get_opt(&self.spec.source_pvc).await?;
            match claim(&agent.config, self, uid, source.as_ref(), &content, &status.restore_size) {
                Some(claim) => objects::create(&claims, &claim).await?,
                None => {
                    let claim = format!("{}/{}", self.spec.source_namespace, self.spec.source_pvc);
                    return Ok(Going::Nowhere(format!(
                        "whether claim {claim} was a file system or a device is not known any more"
                    )));
                }
            }
        }
        let claim = claims.get(&name).await?;
        let spec = claim.spec.unwrap_or_default();
        let class = &csi.storage_class;
        let holding = Holding {
            mode: Mode::of(spec.volume_mode.as_deref().unwrap_or_default()),
            write: false,
            class,
            node: None,
        };
        pods::exposed(agent, self, uid, &holding).await
    }

    fn work(
        &self,
        agent: Arc<Agent>,
        held: Arc<Held>,
        progress: Arc<Progress>,
    ) -> impl Future<Output = Ended> + Send + 'static {
        let upload = self.clone();
        async move { volumes::ended(Box::pin(back_up(&agent, &upload, &held, &progress)).await) }
    }

    async fn conclude(&self, _: &Agent, _: &Uid) -> Result<Going, kube::Error> {
        Ok(Going::Done)
    }

    async fn clean_up(&self, agent: &Agent, uid: &Uid) -> Result<bool, kube::Error> {
        let name = uid.name();
        if !pods::removed(agent, uid, true).await? {
            return Ok(false);
        }
        // The source's first: while both are there, the storage's snapshot has two objects that name it.
        if let Some(csi) = &self.spec.csi_snapshot {
            let snapshots: Api<VolumeSnapshot> = agent.of(&self.spec.source_namespace);
            if let Some(snapshot) = snapshots.get_opt(&csi.volume_snapshot).await? {
                remove_with_storage(agent, &snapshot).await?;
                return Ok(false);
            }
        }
        let snapshots: Api<VolumeSnapshot> = agent.ours();
        let contents: Api<VolumeSnapshotContent> = agent.all();
        if !objects::delete(&snapshots, &name).await? {
            return Ok(false);
        }
        // The snapshot controller takes it along; one that we delete beside it makes both wait for each other.
        let Some(content) = contents.get_opt(&name).await? else { return Ok(true) };
        if content.metadata.deletion_timestamp.is_none() {
            objects::delete(&contents, &name).await?;
        }
        Ok(false)
    }
}

fn because(error: Option<&tradewind_k8s::snapshot::SnapshotError>) -> String {
    error.map(|error| format!(": {}", error.message)).unwrap_or_default()
}

/// Takes the snapshot over: a content and a snapshot of ours name the storage's snapshot, and the source's objects go
/// without it. Gives the content, or what is waited for.
async fn take_over(
    agent: &Agent,
    upload: &DataUpload,
    uid: &Uid,
    snapshot: &str,
) -> Result<Result<VolumeSnapshotContent, Going>, kube::Error> {
    let contents: Api<VolumeSnapshotContent> = agent.all();
    let sources: Api<VolumeSnapshot> = agent.of(&upload.spec.source_namespace);
    let name = uid.name();
    let shown = format!("VolumeSnapshot {}/{snapshot}", upload.spec.source_namespace);
    let content = match contents.get_opt(&name).await? {
        Some(content) => content,
        None => {
            let Some(source) = sources.get_opt(snapshot).await? else {
                return Ok(Err(Going::Nowhere(format!("{shown} is not there"))));
            };
            let status = source.status.clone().unwrap_or_default();
            if !status.ready_to_use {
                return Ok(Err(Going::On(format!("{shown} to be ready{}", because(status.error.as_ref())))));
            }
            let bound = &status.bound_volume_snapshot_content_name;
            let Some(from) = contents.get_opt(bound).await? else {
                return Ok(Err(Going::Nowhere(format!("the content {bound} of {shown} is not there"))));
            };
            let of = &from.spec.volume_snapshot_ref;
            if of.uid != source.uid().unwrap_or_default() {
                return Ok(Err(Going::Nowhere(format!("the content {bound} is not that of {shown}"))));
            }
            let Some(content) = content_of(uid, &agent.options.namespace, &from) else {
                return Ok(Err(Going::On(format!("{shown} to have a handle"))));
            };
            objects::create(&contents, &content).await?;
            contents.get(&name).await?
        }
    };
    let snapshots: Api<VolumeSnapshot> = agent.ours();
    if snapshots.get_metadata_opt(&name).await?.is_none() {
        let mut taken = VolumeSnapshot::new(
            &name,
            VolumeSnapshotSpec {
                source: SnapshotSource {
                    volume_snapshot_content_name: name.clone(),
                    ..SnapshotSource::default()
                },
                volume_snapshot_class_name: content.spec.volume_snapshot_class_name.clone(),
                ..VolumeSnapshotSpec::default()
            },
        );
        // No owner: it must outlive the claim that is made from it.
        taken.metadata.labels = Some([(objects::JOB.to_owned(), uid.to_string())].into());
        objects::create(&snapshots, &taken).await?;
    }
    // From here on the storage's snapshot is ours. The source's objects go, and leave it alone.
    let from = content.annotations().get(TAKEN_FROM).cloned().unwrap_or_default();
    if let Some(source) = contents.get_opt(&from).await? {
        if source.spec.deletion_policy != "Retain" {
            objects::merge(&contents, &from, &json!({"spec": {"deletionPolicy": "Retain"}})).await?;
        }
        let gone = objects::delete(&sources, snapshot).await?;
        if !gone || !objects::delete(&contents, &from).await? {
            return Ok(Err(Going::On(format!("{shown} to be taken over"))));
        }
    }
    Ok(Ok(content))
}

/// The content that takes another's place. Nothing while that one has no handle.
fn content_of(uid: &Uid, namespace: &str, from: &VolumeSnapshotContent) -> Option<VolumeSnapshotContent> {
    let handle =
        from.status.as_ref().map(|status| status.snapshot_handle.clone()).filter(|h| !h.is_empty())?;
    let mut content = VolumeSnapshotContent::new(
        &uid.name(),
        VolumeSnapshotContentSpec {
            volume_snapshot_ref: SnapshotReference {
                namespace: namespace.to_owned(),
                name: uid.name(),
                ..SnapshotReference::default()
            },
            deletion_policy: "Delete".to_owned(),
            driver: from.spec.driver.clone(),
            source: ContentSource { snapshot_handle: handle, ..ContentSource::default() },
            volume_snapshot_class_name: from.spec.volume_snapshot_class_name.clone(),
            // So that nobody makes a volume of another mode from it by mistake.
            source_volume_mode: from.spec.source_volume_mode.clone(),
            ..VolumeSnapshotContentSpec::default()
        },
    );
    // Among them those that name the Secrets for the storage.
    let mut annotations = from.annotations().clone();
    annotations.insert(TAKEN_FROM.to_owned(), from.name_any());
    let mut labels: BTreeMap<_, _> = from
        .labels()
        .iter()
        .filter(|(key, _)| *key == MANAGED_BY)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    labels.insert(objects::JOB.to_owned(), uid.to_string());
    content.metadata.annotations = Some(annotations);
    content.metadata.labels = Some(labels);
    Some(content)
}

/// The claim to a volume that is made from the snapshot. Nothing where nobody knows of what mode that is: a device that is
/// taken for a file system would be formatted.
fn claim(
    config: &Config,
    upload: &DataUpload,
    uid: &Uid,
    source: Option<&PersistentVolumeClaim>,
    content: &VolumeSnapshotContent,
    restore_size: &str,
) -> Option<PersistentVolumeClaim> {
    let csi = upload.spec.csi_snapshot.clone().unwrap_or_default();
    let wanted = config.backup_pvc.get(&csi.storage_class).cloned().unwrap_or_default();
    // One that was made anew with its name says nothing of the snapshot.
    let is_it = |claim: &&PersistentVolumeClaim| {
        upload.labels().get(labels::PVC_UID).is_none_or(|uid| claim.metadata.uid.as_ref() == Some(uid))
    };
    let spec = source.filter(is_it).and_then(|claim| claim.spec.as_ref());
    let requested = spec
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"))
        .and_then(|amount| quantity::bytes(&amount.0));
    let size = quantity::bytes(restore_size).max(requested).unwrap_or_default();
    let mode = Some(content.spec.source_volume_mode.clone()).filter(|mode| !mode.is_empty());
    let mode =
        mode.or_else(|| spec.map(|spec| spec.volume_mode.clone().unwrap_or_else(|| "Filesystem".into())))?;
    let class = if wanted.storage_class.is_empty() { csi.storage_class } else { wanted.storage_class };
    let access = if wanted.read_only { "ReadOnlyMany" } else { "ReadWriteOnce" };
    let mut metadata = made_for(upload, uid);
    metadata.annotations = Some(wanted.annotations).filter(|all| !all.is_empty());
    Some(PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![access.to_owned()]),
            storage_class_name: Some(class),
            volume_mode: Some(mode),
            data_source: Some(TypedLocalObjectReference {
                api_group: Some("snapshot.storage.k8s.io".to_owned()),
                kind: "VolumeSnapshot".to_owned(),
                name: uid.name(),
            }),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size.to_string()))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

/// Deletes a snapshot that nobody took over, and the storage's with it, whatever its class says: whoever asked for it will
/// not come again.
async fn remove_with_storage(agent: &Agent, snapshot: &VolumeSnapshot) -> Result<(), kube::Error> {
    let contents: Api<VolumeSnapshotContent> = agent.all();
    let bound = snapshot.status.clone().unwrap_or_default().bound_volume_snapshot_content_name;
    if !bound.is_empty()
        && let Some(content) = contents.get_opt(&bound).await?
        && content.spec.deletion_policy != "Delete"
    {
        objects::merge(&contents, &bound, &json!({"spec": {"deletionPolicy": "Delete"}})).await?;
    }
    let namespace = snapshot.namespace().unwrap_or_default();
    let snapshots: Api<VolumeSnapshot> = agent.of(&namespace);
    objects::delete(&snapshots, &snapshot.name_any()).await.map(drop)
}

/// The backup that an upload is part of.
struct BackupOf {
    name: String,
    uid: String,
    /// How long its operations may take.
    timeout: Duration,
}

/// The backup that owns an upload; nothing for one that somebody else made. Its label has the name too, but shortened.
async fn backup_of(agent: &Agent, upload: &DataUpload) -> Result<Option<BackupOf>, Error> {
    let owner = upload.owner_references().iter().find(|owner| owner.kind == "Backup");
    let Some(owner) = owner else { return Ok(None) };
    let backups: Api<Backup> = agent.ours();
    let shown = || format!("reading backup {}", owner.name);
    let backup = backups.get_opt(&owner.name).await.map_err(|e| Error::Cluster(shown(), e))?;
    let said = backup.and_then(|backup| backup.spec.item_operation_timeout).and_then(|timeout| timeout.set());
    let timeout = said.unwrap_or(OPERATION_TIMEOUT);
    Ok(Some(BackupOf { name: owner.name.clone(), uid: owner.uid.clone(), timeout }))
}

/// Moves the data of an upload.
async fn back_up(
    agent: &Agent,
    upload: &DataUpload,
    held: &Held,
    progress: &Arc<Progress>,
) -> Result<Moved, Error> {
    let spec = &upload.spec;
    let (location, namespace) = (&spec.backup_storage_location, &spec.source_namespace);
    let limits = agent.budget.for_one();
    let repository = agent.keys.open(location, namespace, true, &limits, progress).await?;
    let volume = volumes::opened(held).map_err(|e| Error::File("the volume".into(), e))?;
    // What the snapshot is found by once more, should everything else be lost.
    if let Some(bytes) = volumes::in_use(&volume) {
        progress.expect_total(bytes);
    }
    let first = volumes::first_skipped(progress);
    let backup = backup_of(agent, upload).await?;
    let tags = [
        (forget::BACKUP, backup.as_ref().map(|backup| backup.name.clone())),
        (forget::BACKUP_UID, backup.as_ref().map(|backup| backup.uid.clone())),
        (forget::OPERATION_TIMEOUT, backup.as_ref().map(|backup| backup.timeout.as_secs().to_string())),
        ("pvc-uid", upload.labels().get(labels::PVC_UID).cloned()),
        ("data-upload", upload.metadata.name.clone()),
    ];
    let tags = tags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    let options = BackupOptions {
        source: Source::Volume(volume),
        volume: Some(VolumeName::new(format!("{namespace}/{}", spec.source_pvc).as_bytes())?),
        tags,
        parent: if spec.parent_snapshot == "none" { ParentChoice::None } else { ParentChoice::Auto },
        excludes: Patterns::default(),
        live: false,
        dry_run: false,
        one_file_system: true,
        privileged: false,
        engine: EngineChoice::Auto,
        limits,
        level: Level::Auto,
        chunk_size: None,
        cache_dir: Some(agent.options.cache_dir.clone()),
        checkpoint_interval: CHECKPOINT,
    };
    let report = volumes::back_up(repository, options, Arc::clone(progress)).await?;
    agent.metrics.used(&report.engine.kind.to_string());
    let snapshot = report.manifest.as_ref().map(|manifest| manifest.id.to_string()).unwrap_or_default();
    if report.skipped > 0 {
        // Nothing changes while a snapshot is read: what cannot be read is missing, and a backup without it is none.
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).join("; ");
        let many = report.skipped;
        return Err(Error::Location(format!(
            "items that could not be read, in whole or in part: {many}: {first}"
        )));
    }
    let notes = volumes::notes(progress, report.skipped, report.warnings);
    Ok(Moved { snapshot, total: progress.get(Counter::Done), new: report.statistics.stored, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid() -> Uid {
        Uid::parse(b"01234567-89ab-cdef-0123-456789abcdef").unwrap()
    }

    fn source() -> VolumeSnapshotContent {
        serde_json::from_value(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "snapcontent-1", "labels": {"x": "y", MANAGED_BY: "node"}, "annotations": {
                "snapshot.storage.kubernetes.io/deletion-secret-name": "s"}},
            "spec": {"deletionPolicy": "Retain", "driver": "d", "source": {"volumeHandle": "v"},
                "volumeSnapshotRef": {"name": "n", "namespace": "app"}, "volumeSnapshotClassName": "c",
                "sourceVolumeMode": "Block"},
            "status": {"snapshotHandle": "handle"},
        }))
        .unwrap()
    }

    #[test]
    fn a_content_takes_the_storages_snapshot_over() {
        let content = content_of(&uid(), "velero", &source()).unwrap();
        assert_eq!(
            (content.spec.source.snapshot_handle.as_str(), content.spec.driver.as_str()),
            ("handle", "d")
        );
        assert!(
            content.spec.source.volume_handle.is_empty() && content.spec.volume_snapshot_ref.uid.is_empty()
        );
        assert_eq!(content.spec.deletion_policy, "Delete");
        // Without its Secret the storage would not let it go.
        assert_eq!(content.annotations()["snapshot.storage.kubernetes.io/deletion-secret-name"], "s");
        assert_eq!(content.annotations()[TAKEN_FROM], "snapcontent-1");
        assert_eq!((content.labels().get("x"), content.labels()[MANAGED_BY].as_str()), (None, "node"));
        let mut without = source();
        without.status = None;
        assert!(content_of(&uid(), "velero", &without).is_none());
    }

    #[test]
    fn a_claim_is_as_large_as_it_must_be() {
        let upload: DataUpload = serde_json::from_value(json!({
            "apiVersion": "velero.io/v2alpha1", "kind": "DataUpload",
            "metadata": {"name": "a", "uid": uid().as_str()},
            "spec": {"snapshotType": "CSI", "sourcePVC": "p", "sourceNamespace": "n", "backupStorageLocation": "b",
                "operationTimeout": "10m0s", "csiSnapshot": {"volumeSnapshot": "s", "storageClass": "gold"}},
        }))
        .unwrap();
        let source_claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "spec": {"volumeMode": "Filesystem", "resources": {"requests": {"storage": "2Gi"}}},
        }))
        .unwrap();
        let text = r#"{"backupPVC": {"gold": {"storageClass": "fast", "readOnly": true, "annotations": {"a": "b"}}}}"#;
        let config = Config::read(&[("k".to_owned(), text.to_owned())].into()).unwrap();
        let taken = content_of(&uid(), "velero", &source()).unwrap();
        let made = |config: &Config, source: Option<&PersistentVolumeClaim>, size: &str| {
            let spec = claim(config, &upload, &uid(), source, &taken, size).unwrap().spec.unwrap();
            let size = spec.resources.unwrap().requests.unwrap()["storage"].0.clone();
            (
                spec.storage_class_name.unwrap(),
                spec.access_modes.unwrap().remove(0),
                spec.volume_mode.unwrap(),
                size,
            )
        };
        let of = |class: &str, access: &str, mode: &str, size: u64| {
            (class.to_owned(), access.to_owned(), mode.to_owned(), size.to_string())
        };
        let plain = made(&Config::default(), Some(&source_claim), "3Gi");
        // What the snapshot was taken of counts: the claim may have been made anew.
        assert_eq!(plain, of("gold", "ReadWriteOnce", "Block", 3 << 30));
        assert_eq!(made(&config, Some(&source_claim), ""), of("fast", "ReadOnlyMany", "Block", 2 << 30));
        assert_eq!(made(&config, None, "1Gi"), of("fast", "ReadOnlyMany", "Block", 1 << 30));
        // The snapshot does not say; then only the very claim does.
        let mut silent = taken.clone();
        silent.spec.source_volume_mode.clear();
        let mode = |upload: &DataUpload, source| {
            claim(&config, upload, &uid(), source, &silent, "1Gi")
                .map(|claim| claim.spec.unwrap().volume_mode.unwrap())
        };
        assert_eq!(mode(&upload, Some(&source_claim)).as_deref(), Some("Filesystem"));
        assert_eq!(mode(&upload, None), None);
        let mut labelled = upload.clone();
        labelled.labels_mut().insert(labels::PVC_UID.to_owned(), "another".to_owned());
        assert_eq!(mode(&labelled, Some(&source_claim)), None);
    }
}
