//! The Controller service: volumes and snapshots as such, wherever they are used.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::{Request, Response, Status};

use crate::driver::{Driver, Services, access, internal, needed, signed};
use crate::faults::Call;
use crate::paging::page;
use crate::proto::csi::controller_server::Controller;
use crate::proto::csi::controller_service_capability::{Rpc, Type, rpc};
use crate::proto::csi::volume_capability::AccessType;
use crate::proto::csi::{self, validate_volume_capabilities_response, volume_content_source};
use crate::state::{self, Record as _, Snapshot, Source, Volume};
use crate::{capacity, loops, moment, mounts};

impl Driver {
    fn create_volume(&self, request: csi::CreateVolumeRequest) -> Result<csi::CreateVolumeResponse, Status> {
        let name = needed("name", &request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities are missing"));
        }
        let mut least = capacity::GRAIN;
        for capability in &request.volume_capabilities {
            if let (AccessType::Mount(mount), _) = access(Some(capability))? {
                least = least.max(capacity::least(&mount.fs_type));
            }
        }
        let range = request.capacity_range.as_ref();
        let source = request.volume_content_source.as_ref().map(source).transpose()?;
        let _held = self.locks.hold(&[&format!("volume named {name}")]);
        if let Some(volume) = self.state.volumes.named(name).map_err(internal)? {
            let same = capacity::fits(range, volume.capacity)?
                && volume.source == source
                && volume.parameters == request.parameters;
            return if same {
                Ok(csi::CreateVolumeResponse { volume: Some(self.describe(&volume)?) })
            } else {
                Err(Status::already_exists(format!(
                    "{} is named {name} and has another size, source or other parameters: take another name",
                    volume.id
                )))
            };
        }
        self.is_reachable(request.accessibility_requirements.as_ref())?;
        let source_size = match &source {
            None => None,
            Some(Source::Snapshot(id)) => Some(self.snapshot(id)?.size),
            Some(Source::Volume(id)) => Some(self.volume(id)?.capacity),
        };
        let least = if source.is_some() { capacity::GRAIN } else { least };
        let capacity = capacity::choose(range, least, source_size)?;
        self.has_room(capacity)?;

        let id = self.state.volumes.new_id().map_err(internal)?;
        let image = self.state.volumes.image(&id);
        let parameters = request.parameters;
        let volume = Volume { id, name: request.name, capacity, source, parameters };
        let made = self.fill(&image, volume.source.as_ref()).and_then(|()| {
            state::set_length(&image, capacity).map_err(internal)?;
            self.state.volumes.put(&volume).map_err(internal)
        });
        if made.is_err() {
            self.state.volumes.remove(&volume.id).map_err(internal)?;
        }
        made?;
        Ok(csi::CreateVolumeResponse { volume: Some(self.describe(&volume)?) })
    }

    /// Copies the source, if any, to a new image.
    fn fill(&self, image: &Path, source: Option<&Source>) -> Result<(), Status> {
        match source {
            None => Ok(()),
            Some(Source::Snapshot(id)) => {
                let _held = self.locks.hold(&[id]);
                let snapshot = self.snapshot(id)?;
                state::clone_file(&self.state.snapshots.image(&snapshot.id), image).map_err(internal)
            }
            Some(Source::Volume(id)) => {
                let _held = self.locks.hold(&[id]);
                let volume = self.volume(id)?;
                moment::copy(&self.state, &self.faults, &volume, image).map_err(internal)
            }
        }
    }

    fn delete_volume(&self, id: &str) -> Result<csi::DeleteVolumeResponse, Status> {
        let _held = self.locks.hold(&[needed("volume_id", id)?]);
        if self.state.volumes.get(id).map_err(internal)?.is_some() {
            let image = self.state.volumes.image(id);
            for attached in loops::of(&image).map_err(internal)? {
                let used = mounts::all().map_err(internal)?.into_iter().find(|mount| {
                    mount.is_file_system_on(&attached.device) || mount.is_node_of(&attached.device)
                });
                if let Some(mount) = used {
                    return Err(Status::failed_precondition(format!(
                        "volume {id} is in use at {}: unpublish and unstage it first",
                        mount.target.display()
                    )));
                }
            }
            // A device that nobody uses was left by a hard end of the cluster.
            loops::detach_all(&image).map_err(internal)?;
            self.state.volumes.remove(id).map_err(internal)?;
        }
        Ok(csi::DeleteVolumeResponse {})
    }

    fn expand_volume(
        &self,
        request: &csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let _held = self.locks.hold(&[needed("volume_id", &request.volume_id)?]);
        let range = request
            .capacity_range
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
        let mut volume = self.volume(&request.volume_id)?;
        let capacity = capacity::expand(range, volume.capacity)?;
        if capacity > volume.capacity {
            self.has_room(capacity)?;
            state::set_length(&self.state.volumes.image(&volume.id), capacity).map_err(internal)?;
            volume.capacity = capacity;
            self.state.volumes.put(&volume).map_err(internal)?;
        }
        // The device and the file system, if the volume is in use, are the node's part.
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: signed(capacity)?,
            node_expansion_required: true,
        })
    }

    fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
        self.volume(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities are missing"));
        }
        let refused =
            request.volume_capabilities.iter().find_map(|capability| access(Some(capability)).err());
        let confirmed = refused.is_none().then_some(validate_volume_capabilities_response::Confirmed {
            volume_capabilities: request.volume_capabilities,
        });
        let message = refused.map_or_else(String::new, |status| status.message().to_owned());
        Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed, message })
    }

    fn list_volumes(&self, request: &csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, Status> {
        let all = self.state.volumes.all().map_err(internal)?;
        let (volumes, next_token) = page(all, Volume::id, request.max_entries, &request.starting_token)?;
        let entry = |volume| {
            self.describe(volume).map(|volume| csi::list_volumes_response::Entry { volume: Some(volume) })
        };
        let entries = volumes.iter().map(entry).collect::<Result<_, _>>()?;
        Ok(csi::ListVolumesResponse { entries, next_token })
    }

    fn capacity(&self, request: &csi::GetCapacityRequest) -> Result<csi::GetCapacityResponse, Status> {
        let (free, total) = self.state.space().map_err(internal)?;
        let here = request.accessible_topology.as_ref().is_none_or(|t| *t == self.topology());
        let maximum = csi::Int64Value { value: signed(total / capacity::GRAIN * capacity::GRAIN)? };
        Ok(csi::GetCapacityResponse {
            available_capacity: if here { signed(free)? } else { 0 },
            maximum_volume_size: Some(maximum),
        })
    }

    fn create_snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::CreateSnapshotResponse, Status> {
        let name = needed("name", &request.name)?;
        let source = needed("source_volume_id", &request.source_volume_id)?;
        let _held = self.locks.hold(&[&format!("snapshot named {name}"), source]);
        if let Some(snapshot) = self.state.snapshots.named(name).map_err(internal)? {
            return if snapshot.volume == source {
                Ok(csi::CreateSnapshotResponse { snapshot: Some(self.describe_snapshot(&snapshot)?) })
            } else {
                Err(Status::already_exists(format!(
                    "{} is named {name} and is of volume {}: take another name",
                    snapshot.id, snapshot.volume
                )))
            };
        }
        let volume = self.volume(source)?;
        let id = self.state.snapshots.new_id().map_err(internal)?;
        let image = self.state.snapshots.image(&id);
        let made = moment::copy(&self.state, &self.faults, &volume, &image).and_then(|()| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let snapshot = Snapshot {
                id: id.clone(),
                name: request.name,
                volume: volume.id,
                size: volume.capacity,
                seconds: now.as_secs().try_into()?,
                nanos: now.subsec_nanos().try_into()?,
            };
            self.state.snapshots.put(&snapshot)?;
            Ok(snapshot)
        });
        if made.is_err() {
            self.state.snapshots.remove(&id).map_err(internal)?;
        }
        let snapshot = made.map_err(internal)?;
        Ok(csi::CreateSnapshotResponse { snapshot: Some(self.describe_snapshot(&snapshot)?) })
    }

    fn delete_snapshot(&self, id: &str) -> Result<csi::DeleteSnapshotResponse, Status> {
        let _held = self.locks.hold(&[needed("snapshot_id", id)?]);
        if self.state.snapshots.get(id).map_err(internal)?.is_some() {
            self.state.snapshots.remove(id).map_err(internal)?;
        }
        Ok(csi::DeleteSnapshotResponse {})
    }

    fn list_snapshots(
        &self,
        request: &csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse, Status> {
        let mut all = self.state.snapshots.all().map_err(internal)?;
        let wanted = |filter: &str, value: &str| filter.is_empty() || filter == value;
        all.retain(|s| wanted(&request.snapshot_id, &s.id) && wanted(&request.source_volume_id, &s.volume));
        let (snapshots, next_token) = page(all, Snapshot::id, request.max_entries, &request.starting_token)?;
        let entry = |snapshot| {
            let snapshot = Some(self.describe_snapshot(snapshot)?);
            Ok::<_, Status>(csi::list_snapshots_response::Entry { snapshot })
        };
        let entries = snapshots.iter().map(entry).collect::<Result<_, _>>()?;
        Ok(csi::ListSnapshotsResponse { entries, next_token })
    }

    /// The snapshot with this id.
    pub(crate) fn snapshot(&self, id: &str) -> Result<Snapshot, Status> {
        let snapshot = self.state.snapshots.get(needed("snapshot_id", id)?).map_err(internal)?;
        snapshot.ok_or_else(|| Status::not_found(format!("there is no snapshot {id}")))
    }

    /// Refuses what the state could never hold. Volumes are sparse, so that they may promise more than is free.
    fn has_room(&self, capacity: u64) -> Result<(), Status> {
        let (_, total) = self.state.space().map_err(internal)?;
        if capacity > total {
            return Err(Status::resource_exhausted(format!(
                "{capacity} bytes are more than the {total} of the file system of {}",
                self.state.dir().display()
            )));
        }
        Ok(())
    }

    /// Refuses a volume that must be elsewhere.
    fn is_reachable(&self, requirement: Option<&csi::TopologyRequirement>) -> Result<(), Status> {
        let requisite = requirement.map(|r| r.requisite.as_slice()).unwrap_or_default();
        let here = self.topology();
        if requisite.is_empty() || requisite.contains(&here) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!("volumes are made on node {} only", self.node)))
    }

    fn describe(&self, volume: &Volume) -> Result<csi::Volume, Status> {
        let content_source = volume.source.as_ref().map(|source| csi::VolumeContentSource {
            r#type: Some(match source.clone() {
                Source::Snapshot(snapshot_id) => {
                    volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource {
                        snapshot_id,
                    })
                }
                Source::Volume(volume_id) => {
                    volume_content_source::Type::Volume(volume_content_source::VolumeSource { volume_id })
                }
            }),
        });
        Ok(csi::Volume {
            capacity_bytes: signed(volume.capacity)?,
            volume_id: volume.id.clone(),
            content_source,
            accessible_topology: vec![self.topology()],
        })
    }

    fn describe_snapshot(&self, snapshot: &Snapshot) -> Result<csi::Snapshot, Status> {
        Ok(csi::Snapshot {
            size_bytes: signed(snapshot.size)?,
            snapshot_id: snapshot.id.clone(),
            source_volume_id: snapshot.volume.clone(),
            creation_time: Some(csi::Timestamp { seconds: snapshot.seconds, nanos: snapshot.nanos }),
            ready_to_use: !self.faults.snapshots_are_never_ready()?,
        })
    }
}

fn source(content: &csi::VolumeContentSource) -> Result<Source, Status> {
    use volume_content_source::Type;
    match &content.r#type {
        Some(Type::Snapshot(source)) => {
            Ok(Source::Snapshot(needed("snapshot_id of the source", &source.snapshot_id)?.to_owned()))
        }
        Some(Type::Volume(source)) => {
            Ok(Source::Volume(needed("volume_id of the source", &source.volume_id)?.to_owned()))
        }
        None => Err(Status::invalid_argument("volume_content_source names neither a snapshot nor a volume")),
    }
}

#[tonic::async_trait]
impl Controller for Services {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        self.run(Call::CreateVolume, &[&name], |driver| driver.create_volume(request)).await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        self.run(Call::DeleteVolume, &[&id.clone()], move |driver| driver.delete_volume(&id)).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::ValidateVolumeCapabilities, &[&id], |driver| driver.validate(request)).await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        self.run(Call::ListVolumes, &[], move |driver| driver.list_volumes(&request)).await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        self.run(Call::GetCapacity, &[], move |driver| driver.capacity(&request)).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        self.run(Call::ControllerGetCapabilities, &[], |_| {
            let can = [
                rpc::Type::CreateDeleteVolume,
                rpc::Type::ListVolumes,
                rpc::Type::GetCapacity,
                rpc::Type::CreateDeleteSnapshot,
                rpc::Type::ListSnapshots,
                rpc::Type::CloneVolume,
                rpc::Type::ExpandVolume,
                rpc::Type::SingleNodeMultiWriter,
            ];
            let capability = |kind: rpc::Type| csi::ControllerServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
            };
            Ok(csi::ControllerGetCapabilitiesResponse { capabilities: can.map(capability).into() })
        })
        .await
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let about = [request.name.clone(), request.source_volume_id.clone()];
        self.run(Call::CreateSnapshot, &about.each_ref().map(String::as_str), |driver| {
            driver.create_snapshot(request)
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        self.run(Call::DeleteSnapshot, &[&id.clone()], move |driver| driver.delete_snapshot(&id)).await
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        self.run(Call::ListSnapshots, &[], move |driver| driver.list_snapshots(&request)).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::ControllerExpand, &[&id], move |driver| driver.expand_volume(&request)).await
    }
}
