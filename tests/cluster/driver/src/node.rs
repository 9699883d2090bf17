//! The Node service: volumes attached and mounted on this machine.
//!
//! Staging attaches a loop device to the image and, in file system mode, mounts it at the staging path; publishing binds
//! that mount, or the device's node, to the target path. Who has what is asked of the kernel each time.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use tonic::{Request, Response, Status};

use crate::driver::{Driver, Services, access, internal, needed, signed};
use crate::faults::Call;
use crate::loops::Loop;
use crate::mounts::Mount;
use crate::proto::csi::node_server::Node;
use crate::proto::csi::node_service_capability::{Rpc, Type, rpc};
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::proto::csi::volume_capability::{AccessType, MountVolume};
use crate::proto::csi::{self, volume_usage};
use crate::state::Volume;
use crate::{filesystem, loops, mounts};

fn is_reader(mode: Mode) -> bool {
    matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
}

fn exists_differently(path: &Path) -> Status {
    Status::already_exists(format!("something else is mounted at {}, or otherwise", path.display()))
}

impl Driver {
    fn stage(&self, request: &csi::NodeStageVolumeRequest) -> Result<csi::NodeStageVolumeResponse, Status> {
        let id = needed("volume_id", &request.volume_id)?;
        let path = Path::new(needed("staging_target_path", &request.staging_target_path)?);
        let (access, mode) = access(request.volume_capability.as_ref())?;
        let _held = self.locks.hold(&[id]);
        let volume = self.volume(id)?;
        match access {
            AccessType::Mount(wanted) => self.stage_mount(&volume, path, wanted, is_reader(mode))?,
            AccessType::Block(_) => {
                self.device(id, is_reader(mode))?;
            }
        }
        Ok(csi::NodeStageVolumeResponse {})
    }

    fn stage_mount(
        &self,
        volume: &Volume,
        path: &Path,
        wanted: &MountVolume,
        read_only: bool,
    ) -> Result<(), Status> {
        let id = &volume.id;
        let image = self.state.volumes.image(id);
        if let Some(mount) = mounts::at(path).map_err(internal)? {
            let attached = loops::of(&image).map_err(internal)?;
            let ours = attached.iter().any(|a| mount.is_file_system_on(&a.device));
            let same_kind = wanted.fs_type.is_empty() || wanted.fs_type == mount.kind;
            return if ours && same_kind && mount.read_only == read_only {
                Ok(())
            } else {
                Err(exists_differently(path))
            };
        }
        let unused = self.uses(id).map_err(internal)?.is_empty();
        if unused {
            // What a driver that was killed had attached is attached anew: its cache is older than what is made here.
            loops::detach_all(&image).map_err(internal)?;
        }
        let scratch = self.state.volumes.scratch(id);
        let kind = filesystem::ensure(&image, &scratch, &wanted.fs_type, read_only)
            .map_err(|error| Status::failed_precondition(format!("volume {id}: {error:#}")))?;
        let device = self.device(id, read_only)?.device;
        let mount = || {
            fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
            if unused && !read_only {
                filesystem::grow_unmounted(&device, &kind, volume.capacity)?;
            }
            filesystem::mount(&device, &kind, path, &wanted.mount_flags, read_only)?;
            let mount = mounts::at(path)?.context("what was just mounted is gone")?;
            // ext4 has grown above, as far as it can: its last few blocks may be too few for it.
            if read_only || kind == "ext4" { Ok(()) } else { filesystem::grow(&device, &mount) }
        };
        let mounted = mount();
        if mounted.is_err() {
            mounts::unmount(path).map_err(internal)?;
            if self.uses(id).map_err(internal)?.is_empty() {
                loops::detach_all(&image).map_err(internal)?;
            }
        }
        mounted.map_err(internal)
    }

    /// The device of a volume, attached if it is not, with the volume's size.
    fn device(&self, id: &str, read_only: bool) -> Result<Loop, Status> {
        let image = self.state.volumes.image(id);
        let attached = loops::of(&image).map_err(internal)?;
        if let Some(same) = attached.iter().find(|a| a.read_only == read_only) {
            loops::resize(&same.device).map_err(internal)?;
            return Ok(same.clone());
        }
        if let Some(mount) = self.uses(id).map_err(internal)?.first() {
            return Err(Status::failed_precondition(format!(
                "volume {id} is in use at {}, {}: a device is for readers or for writers",
                mount.target.display(),
                if read_only { "for writing" } else { "for reading only" }
            )));
        }
        loops::detach_all(&image).map_err(internal)?;
        loops::attach(&image, read_only).map_err(internal)
    }

    /// Where a volume is mounted, be it its file system or its device's node.
    fn uses(&self, id: &str) -> anyhow::Result<Vec<Mount>> {
        let devices = loops::of(&self.state.volumes.image(id))?;
        let mut all = mounts::all()?;
        all.retain(|mount| {
            devices.iter().any(|d| mount.is_file_system_on(&d.device) || mount.is_node_of(&d.device))
        });
        Ok(all)
    }

    fn unstage(
        &self,
        request: &csi::NodeUnstageVolumeRequest,
    ) -> Result<csi::NodeUnstageVolumeResponse, Status> {
        let id = needed("volume_id", &request.volume_id)?;
        let path = Path::new(needed("staging_target_path", &request.staging_target_path)?);
        let _held = self.locks.hold(&[id]);
        let known = self.state.volumes.get(id).map_err(internal)?.is_some();
        if known {
            let staging = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let uses = self.uses(id).map_err(internal)?;
            if let Some(other) = uses.iter().find(|mount| mount.target != staging) {
                return Err(Status::failed_precondition(format!(
                    "volume {id} is still in use at {}: unpublish it first",
                    other.target.display()
                )));
            }
        }
        mounts::unmount(path).map_err(internal)?;
        if known {
            loops::detach_all(&self.state.volumes.image(id)).map_err(internal)?;
        }
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    fn publish(
        &self,
        request: &csi::NodePublishVolumeRequest,
    ) -> Result<csi::NodePublishVolumeResponse, Status> {
        let id = needed("volume_id", &request.volume_id)?;
        let target = Path::new(needed("target_path", &request.target_path)?);
        let (access, mode) = access(request.volume_capability.as_ref())?;
        let read_only = request.readonly || is_reader(mode);
        let _held = self.locks.hold(&[id]);
        self.volume(id)?;
        let staging = Path::new(needed("staging_target_path", &request.staging_target_path)?);
        let device = loops::of(&self.state.volumes.image(id)).map_err(internal)?.into_iter().next();
        let device = device
            .ok_or_else(|| Status::failed_precondition(format!("volume {id} is not staged: stage it first")))?
            .device;
        let is_block = matches!(access, AccessType::Block(_));
        let is_ours = |mount: &Mount| {
            if is_block { mount.is_node_of(&device) } else { mount.is_file_system_on(&device) }
        };
        if let Some(mount) = mounts::at(target).map_err(internal)? {
            // A bound node says nothing about writing to the device.
            return if is_ours(&mount) && (is_block || mount.read_only == read_only) {
                Ok(csi::NodePublishVolumeResponse {})
            } else {
                Err(exists_differently(target))
            };
        }
        if mode == Mode::SingleNodeSingleWriter {
            let uses = self.uses(id).map_err(internal)?;
            let staging = staging.canonicalize().unwrap_or_else(|_| staging.to_owned());
            if let Some(other) = uses.iter().find(|mount| mount.target != staging) {
                return Err(Status::failed_precondition(format!(
                    "volume {id} is for one writer, and is published at {}",
                    other.target.display()
                )));
            }
        }
        if is_block {
            target
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| {
                    fs::File::options().write(true).create(true).truncate(false).open(target).map(drop)
                })
                .with_context(|| format!("making {}", target.display()))
                .and_then(|()| mounts::bind(&device, target, false))
                .map_err(internal)?;
        } else {
            let staged = mounts::at(staging).map_err(internal)?.filter(is_ours).is_some();
            if !staged {
                return Err(Status::failed_precondition(format!(
                    "volume {id} is not mounted at {}: stage it there first",
                    staging.display()
                )));
            }
            fs::create_dir_all(target)
                .with_context(|| format!("making {}", target.display()))
                .and_then(|()| mounts::bind(staging, target, read_only))
                .map_err(internal)?;
        }
        Ok(csi::NodePublishVolumeResponse {})
    }

    fn unpublish(
        &self,
        request: &csi::NodeUnpublishVolumeRequest,
    ) -> Result<csi::NodeUnpublishVolumeResponse, Status> {
        let id = needed("volume_id", &request.volume_id)?;
        let target = Path::new(needed("target_path", &request.target_path)?);
        let _held = self.locks.hold(&[id]);
        mounts::unmount(target).and_then(|()| mounts::remove_target(target)).map_err(internal)?;
        Ok(csi::NodeUnpublishVolumeResponse {})
    }

    /// Where the volume is mounted at a path that a call names.
    fn mount_at(&self, id: &str, path: &str) -> Result<Mount, Status> {
        let path = Path::new(needed("volume_path", path)?);
        let mount = mounts::at(path).map_err(internal)?;
        let uses = self.uses(id).map_err(internal)?;
        mount
            .filter(|mount| uses.contains(mount))
            .ok_or_else(|| Status::not_found(format!("volume {id} is not mounted at {}", path.display())))
    }

    fn stats(
        &self,
        request: &csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        needed("volume_id", &request.volume_id)?;
        needed("volume_path", &request.volume_path)?;
        let volume = self.volume(&request.volume_id)?;
        let mount = self.mount_at(&volume.id, &request.volume_path)?;
        let usage = |unit: volume_usage::Unit, total: u64, free: u64, available: u64| {
            Ok::<_, Status>(csi::VolumeUsage {
                available: signed(available)?,
                total: signed(total)?,
                used: signed(total.saturating_sub(free))?,
                unit: unit.into(),
            })
        };
        if mount.target.is_dir() {
            let stat = rustix::fs::statvfs(&mount.target)
                .with_context(|| format!("statvfs {}", mount.target.display()))
                .map_err(internal)?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            let (total, free, available) = (bytes(stat.f_blocks), bytes(stat.f_bfree), bytes(stat.f_bavail));
            let bytes = usage(volume_usage::Unit::Bytes, total, free, available)?;
            let inodes = usage(volume_usage::Unit::Inodes, stat.f_files, stat.f_ffree, stat.f_favail)?;
            return Ok(csi::NodeGetVolumeStatsResponse { usage: vec![bytes, inodes] });
        }
        // What of a device is used only its user knows.
        let total = csi::VolumeUsage {
            total: signed(volume.capacity)?,
            unit: volume_usage::Unit::Bytes.into(),
            ..Default::default()
        };
        Ok(csi::NodeGetVolumeStatsResponse { usage: vec![total] })
    }

    fn expand_node(
        &self,
        request: &csi::NodeExpandVolumeRequest,
    ) -> Result<csi::NodeExpandVolumeResponse, Status> {
        needed("volume_id", &request.volume_id)?;
        needed("volume_path", &request.volume_path)?;
        let _held = self.locks.hold(&[&request.volume_id]);
        let volume = self.volume(&request.volume_id)?;
        for attached in loops::of(&self.state.volumes.image(&volume.id)).map_err(internal)? {
            loops::resize(&attached.device).map_err(internal)?;
            let mounted = self.uses(&volume.id).map_err(internal)?;
            let writable = |mount: &&Mount| mount.is_file_system_on(&attached.device) && !mount.all_read_only;
            if let Some(mount) = mounted.iter().find(writable) {
                filesystem::grow(&attached.device, mount).map_err(internal)?;
            }
        }
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: signed(volume.capacity)? })
    }
}

#[tonic::async_trait]
impl Node for Services {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::Stage, &[&id], move |driver| driver.stage(&request)).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::Unstage, &[&id], move |driver| driver.unstage(&request)).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::Publish, &[&id], move |driver| driver.publish(&request)).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::Unpublish, &[&id], move |driver| driver.unpublish(&request)).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::GetVolumeStats, &[&id], move |driver| driver.stats(&request)).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.run(Call::NodeExpand, &[&id], move |driver| driver.expand_node(&request)).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        self.run(Call::NodeGetCapabilities, &[], |_| {
            let can = [
                rpc::Type::StageUnstageVolume,
                rpc::Type::GetVolumeStats,
                rpc::Type::ExpandVolume,
                rpc::Type::SingleNodeMultiWriter,
            ];
            let capability = |kind: rpc::Type| csi::NodeServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
            };
            Ok(csi::NodeGetCapabilitiesResponse { capabilities: can.map(capability).into() })
        })
        .await
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        self.run(Call::NodeGetInfo, &[], |driver| {
            Ok(csi::NodeGetInfoResponse {
                node_id: driver.node.clone(),
                accessible_topology: Some(driver.topology()),
            })
        })
        .await
    }
}
