//! A DataDownload: a new volume is made and filled from the bucket, then given to the claim that waits for it.
//!
//! The claim that is restored waits with a selector that no volume matches, so that nobody gives it another. A claim of
//! ours, like it, gets a new volume, which the pod holds while it is filled. Then the volume changes hands: it is kept
//! while our claim is deleted, and told that it is the other's. Its name is written down before, so that an agent that is
//! killed anywhere goes on. Order: Velero 1.18.3, `pkg/exposer/generic_restore.go`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tradewind_k8s::velero::{DataDownload, MovePhase, Restore, RestorePhase};
use tradewind_pipeline::io::EngineChoice;
use tradewind_pipeline::manifest::{VolumeKind, catalog};
use tradewind_pipeline::pack::SessionId;
use tradewind_pipeline::patterns::Patterns;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::restore::{RestoreOptions, Target};
use tradewind_pipeline::source::Volume;

use crate::agent::Agent;
use crate::handover::Held;
use crate::jobs::{Ended, Moved};
use crate::objects::{self, RECLAIM, Uid, VOLUME, made_for};
use crate::pods::{self, Holding, Mode};
use crate::reconcile::{Going, Move, Status};
use crate::repository::Error;
use crate::volumes;

/// On a claim: the node where its first pod will be, and so its volume must.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: that the cluster chose its claim, and may take it back.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

fn on(what: impl Into<String>) -> Result<Going, kube::Error> {
    Ok(Going::On(what.into()))
}

impl Move for DataDownload {
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

    fn write(&mut self, status: Status, _: Option<&Moved>) {
        let to = self.status.get_or_insert_default();
        to.phase = status.phase;
        to.message = status.message;
        to.start_timestamp = status.start;
        to.completion_timestamp = status.completion;
        to.progress = status.progress;
        to.accepted_by_node = status.accepted_by;
        to.accepted_timestamp = status.accepted;
    }

    fn set_node(&mut self, node: &str) {
        node.clone_into(&mut self.status.get_or_insert_default().node);
    }

    /// The claim is made after this object; and where its class says so, only its first pod decides where its volume is.
    async fn ready(&self, agent: &Agent) -> Result<bool, kube::Error> {
        match target(agent, self).await? {
            None => Ok(false),
            Some(claim) => has_place(agent, self, &claim).await,
        }
    }

    async fn expose(&self, agent: &Agent, uid: &Uid) -> Result<Going, kube::Error> {
        let to = &self.spec.target_volume;
        let Some(target) = target(agent, self).await? else {
            return on(format!("claim {}/{} to be made", to.namespace, to.pvc));
        };
        let spec = target.spec.clone().unwrap_or_default();
        if let Some(volume) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
            let shown = format!("{}/{}", to.namespace, to.pvc);
            return Ok(Going::Nowhere(format!("claim {shown} has a volume already: {volume}")));
        }
        objects::create(&agent.ours(), &claim(self, uid, &spec)).await?;
        let holding = Holding {
            mode: Mode::of(spec.volume_mode.as_deref().unwrap_or_default()),
            write: true,
            class: spec.storage_class_name.as_deref().unwrap_or_default(),
            node: target.annotations().get(SELECTED_NODE).map(String::as_str),
        };
        pods::exposed(agent, self, uid, &holding).await
    }

    fn work(
        &self,
        agent: Arc<Agent>,
        held: Arc<Held>,
        progress: Arc<Progress>,
    ) -> impl Future<Output = Ended> + Send + 'static {
        let download = self.clone();
        async move { volumes::ended(Box::pin(restore(&agent, &download, &held, &progress)).await) }
    }

    async fn conclude(&self, agent: &Agent, uid: &Uid) -> Result<Going, kube::Error> {
        hand_over(agent, self, uid).await
    }

    async fn clean_up(&self, agent: &Agent, uid: &Uid) -> Result<bool, kube::Error> {
        let volume = objects::marked(self, VOLUME, uid);
        // Once complete the volume is the user's, whatever has become of the claim since.
        let given = self.status().phase == MovePhase::Completed
            || match volume {
                None => false,
                Some(volume) => is_given(agent, self, volume).await?,
            };
        if !pods::removed(agent, uid, volume.is_none()).await? {
            return Ok(false);
        }
        // Between both claims: nobody's, and nobody will come for it.
        if let Some(name) = volume
            && !given
        {
            let volumes: Api<PersistentVolume> = agent.all();
            let target = target(agent, self).await?;
            if let Some(volume) = volumes.get_opt(name).await?
                && is_known(&volume, agent, uid, target.as_ref())
            {
                let deleted = json!({
                    "metadata": {"resourceVersion": volume.resource_version()},
                    "spec": {"persistentVolumeReclaimPolicy": "Delete"},
                });
                objects::merge(&volumes, name, &deleted).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The claim that waits.
async fn target(
    agent: &Agent,
    download: &DataDownload,
) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
    let to = &download.spec.target_volume;
    let claims: Api<PersistentVolumeClaim> = agent.of(&to.namespace);
    claims.get_opt(&to.pvc).await
}

/// True once it is known where the claim's volume must be, or that nobody will ever say.
async fn has_place(
    agent: &Agent,
    download: &DataDownload,
    claim: &PersistentVolumeClaim,
) -> Result<bool, kube::Error> {
    if agent.config.restore_pvc.ignore_delay_binding || claim.annotations().contains_key(SELECTED_NODE) {
        return Ok(true);
    }
    let classes: Api<StorageClass> = agent.all();
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
    let class = if class.is_empty() { None } else { classes.get_opt(&class).await? };
    let waits =
        class.and_then(|class| class.volume_binding_mode).is_some_and(|mode| mode == "WaitForFirstConsumer");
    if !waits {
        return Ok(true);
    }
    // Until the restore has made all its objects, a pod for the claim may still come.
    let owner = download.owner_references().iter().find(|owner| owner.kind == "Restore");
    if let Some(owner) = owner {
        let restores: Api<Restore> = agent.ours();
        let phase = restores.get_opt(&owner.name).await?.and_then(|restore| restore.status).map(|s| s.phase);
        if matches!(phase, Some(RestorePhase::New | RestorePhase::InProgress)) {
            return Ok(false);
        }
    }
    let pods: Api<Pod> = agent.of(&download.spec.target_volume.namespace);
    let name = claim.name_any();
    let uses = |pod: &Pod| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let finished = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !matches!(finished, Some("Succeeded" | "Failed"))
            && volumes
                .into_iter()
                .any(|v| v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == name))
    };
    // A pod that will use it: the scheduler says where it goes.
    Ok(!pods.list(&ListParams::default()).await?.iter().any(uses))
}

/// A claim like the one that waits, for a new volume.
fn claim(download: &DataDownload, uid: &Uid, target: &PersistentVolumeClaimSpec) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: made_for(download, uid),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: target.access_modes.clone(),
            resources: target.resources.clone(),
            storage_class_name: target.storage_class_name.clone(),
            volume_mode: target.volume_mode.clone(),
            volume_attributes_class_name: target.volume_attributes_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// Gives the volume to the claim that waits.
async fn hand_over(agent: &Agent, download: &DataDownload, uid: &Uid) -> Result<Going, kube::Error> {
    let to = &download.spec.target_volume;
    let shown = format!("{}/{}", to.namespace, to.pvc);
    let ours: Api<PersistentVolumeClaim> = agent.ours();
    let Some(name) = objects::marked(download, VOLUME, uid) else {
        let claim = ours.get_opt(&uid.name()).await?;
        let Some(volume) = claim.and_then(|claim| claim.spec?.volume_name) else {
            return Ok(Going::Nowhere("the claim that was filled has no volume".to_owned()));
        };
        let mut after = download.clone();
        after.annotations_mut().insert(VOLUME.to_owned(), objects::mark(uid, &volume));
        objects::change(&agent.ours(), download, &after).await?;
        return on("the volume to change hands");
    };
    let Some(target) = target(agent, download).await? else {
        return Ok(Going::Nowhere(format!("claim {shown} was deleted")));
    };
    let volumes: Api<PersistentVolume> = agent.all();
    let Some(volume) = volumes.get_opt(name).await? else {
        return Ok(Going::Nowhere(format!("volume {name} was deleted before claim {shown} got it")));
    };
    if !is_known(&volume, agent, uid, Some(&target)) {
        return Ok(Going::Nowhere(format!("volume {name} is another claim's by now")));
    }
    let has =
        target.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    if let Some(other) = has.filter(|other| *other != name) {
        return Ok(Going::Nowhere(format!("claim {shown} has a volume already: {other}")));
    }
    let spec = volume.spec.clone().unwrap_or_default();
    let policy = spec.persistent_volume_reclaim_policy.unwrap_or_else(|| "Delete".to_owned());
    if !is_of(&volume, &target) {
        if !volume.annotations().contains_key(RECLAIM) || policy != "Retain" {
            let keep = json!({
                "metadata": {
                    "annotations": {RECLAIM: volume.annotations().get(RECLAIM).unwrap_or(&policy)},
                    "resourceVersion": volume.resource_version(),
                },
                "spec": {"persistentVolumeReclaimPolicy": "Retain"},
            });
            objects::merge(&volumes, name, &keep).await?;
            return on("the volume to change hands");
        }
        if let Some(held) = agent.handover.held(uid) {
            held.release();
        }
        if !pods::removed(agent, uid, false).await? {
            return on("the pod that held the volume to end");
        }
        let selector = target.spec.as_ref().and_then(|spec| spec.selector.as_ref()?.match_labels.clone());
        let given = json!({
            "metadata": {
                "labels": selector.unwrap_or_default(),
                "annotations": {BOUND_BY_CONTROLLER: Value::Null},
                "resourceVersion": volume.resource_version(),
            },
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": to.namespace, "name": to.pvc, "uid": target.uid(), "resourceVersion": Value::Null,
            }},
        });
        objects::merge(&volumes, name, &given).await?;
        return on(format!("claim {shown} to be bound"));
    }
    if has.is_none() {
        let claims: Api<PersistentVolumeClaim> = agent.of(&to.namespace);
        let named = json!({
            "metadata": {"resourceVersion": target.resource_version()},
            "spec": {"volumeName": name},
        });
        objects::merge(&claims, &to.pvc, &named).await?;
        return on(format!("claim {shown} to be bound"));
    }
    let is_bound = |phase: Option<&String>| phase.is_some_and(|phase| phase == "Bound");
    let bound = is_bound(target.status.as_ref().and_then(|s| s.phase.as_ref()))
        && is_bound(volume.status.as_ref().and_then(|s| s.phase.as_ref()));
    if !bound {
        return on(format!("claim {shown} to be bound"));
    }
    if let Some(before) = volume.annotations().get(RECLAIM) {
        let back = json!({
            "metadata": {"annotations": {RECLAIM: Value::Null}, "resourceVersion": volume.resource_version()},
            "spec": {"persistentVolumeReclaimPolicy": before},
        });
        objects::merge(&volumes, name, &back).await?;
    }
    Ok(Going::Done)
}

fn is_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone());
    of.is_some() && of == claim.metadata.uid
}

/// True for a volume that is the claim's that was filled, or the one's that waits: no other is touched, whatever somebody
/// has written into the job.
fn is_known(
    volume: &PersistentVolume,
    agent: &Agent,
    uid: &Uid,
    target: Option<&PersistentVolumeClaim>,
) -> bool {
    let of = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let filled = of.is_some_and(|of| {
        of.namespace.as_ref() == Some(&agent.options.namespace) && of.name.as_ref() == Some(&uid.name())
    });
    filled || target.is_some_and(|target| is_of(volume, target))
}

/// True when the claim that waits has the volume.
async fn is_given(agent: &Agent, download: &DataDownload, volume: &str) -> Result<bool, kube::Error> {
    let volumes: Api<PersistentVolume> = agent.all();
    let (Some(volume), Some(target)) = (volumes.get_opt(volume).await?, target(agent, download).await?)
    else {
        return Ok(false);
    };
    let has = target.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
    Ok(is_of(&volume, &target) && has == volume.metadata.name.as_ref())
}

/// Moves the data of a download.
async fn restore(
    agent: &Agent,
    download: &DataDownload,
    held: &Held,
    progress: &Arc<Progress>,
) -> Result<Moved, Error> {
    let spec = &download.spec;
    let text = &spec.snapshot_id;
    let id: SessionId = text.parse().map_err(|_| {
        Error::Location(format!("'{text}' is no snapshot of tradewind: another data mover made it"))
    })?;
    let (location, namespace) = (&spec.backup_storage_location, &spec.source_namespace);
    let limits = agent.budget.for_one();
    let repository = agent.keys.open(location, namespace, false, &limits, progress).await?;
    let manifest = Box::pin(catalog::find(&repository, &catalog::Filter::default(), &id.to_string())).await?;
    let volume = volumes::opened(held).map_err(|e| Error::File("the volume".into(), e))?;
    let same = matches!(
        (&volume, manifest.kind),
        (Volume::Tree(_), VolumeKind::Tree) | (Volume::Block { .. }, VolumeKind::Block)
    );
    if !same {
        return Err(Error::Location(format!(
            "the snapshot is of a {}, and claim {}/{} is not for one",
            match manifest.kind {
                VolumeKind::Tree => "file system",
                VolumeKind::Block => "block volume",
            },
            spec.target_volume.namespace,
            spec.target_volume.pvc
        )));
    }
    let total = manifest.size;
    let options = RestoreOptions {
        target: Target::Volume(volume),
        subtree: Vec::new(),
        includes: Patterns::default(),
        // The volume is ours: what is in it an agent before this one has begun.
        overwrite: true,
        keep_going: false,
        privileged: true,
        engine: EngineChoice::Auto,
        limits,
        cache_dir: Some(agent.options.cache_dir.clone()),
    };
    let report = volumes::restore(repository, manifest, options, Arc::clone(progress)).await?;
    agent.metrics.used(&report.engine.kind.to_string());
    let notes = volumes::notes(progress, report.skipped, report.warnings);
    Ok(Moved { snapshot: text.clone(), total, new: 0, notes })
}
