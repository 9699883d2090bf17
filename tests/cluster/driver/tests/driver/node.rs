//! Volumes in use: mounted, grown, converted, broken.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::io::Errno;
use tonic::{Code, Status};

use crate::bed::{Bed, MIB, block, code, mount, run, say};
use crate::csi;
use crate::csi::volume_capability::access_mode::Mode;

async fn stats(bed: &Bed, volume: &str, path: &Path) -> csi::VolumeUsage {
    let volume_path = path.to_str().unwrap().to_owned();
    let request = csi::NodeGetVolumeStatsRequest { volume_id: volume.to_owned(), volume_path };
    bed.node().node_get_volume_stats(request).await.unwrap().into_inner().usage.remove(0)
}

/// Returns how the node's part ended.
async fn expand(bed: &Bed, volume: &str, path: &Path, mib: u64) -> Result<(), Status> {
    let required_bytes = i64::try_from(mib * MIB).unwrap();
    let capacity_range = Some(csi::CapacityRange { required_bytes, limit_bytes: 0 });
    let request = csi::ControllerExpandVolumeRequest { volume_id: volume.to_owned(), capacity_range };
    let answer = bed.controller().controller_expand_volume(request).await.unwrap().into_inner();
    assert_eq!((answer.capacity_bytes, answer.node_expansion_required), (required_bytes, true));
    let volume_path = path.to_str().unwrap().to_owned();
    let request = csi::NodeExpandVolumeRequest { volume_id: volume.to_owned(), volume_path, capacity_range };
    let answer = bed.node().node_expand_volume(request).await?.into_inner();
    assert_eq!(answer.capacity_bytes, required_bytes);
    Ok(())
}

/// Containers may lack it, and ext4 asks for it.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << 24 != 0
}

#[tokio::test(flavor = "multi_thread")]
async fn file_systems_are_made_grown_and_copied_to_larger_volumes() {
    let Some(bed) = Bed::new(&[]).await else { return };
    for kind in ["ext4", "xfs", "btrfs"] {
        let volume = bed.create(kind, 320, None).await.unwrap();
        bed.file_system(&volume, kind).await;
        let writer = mount(kind, Mode::SingleNodeWriter);
        let target = bed.publish(&volume, writer.clone(), false, &format!("target-{kind}")).await.unwrap();
        fs::write(target.join("file"), kind).unwrap();
        let size = i64::try_from(320 * MIB).unwrap();
        let small = stats(&bed, &volume, &target).await;
        assert!(small.total > size / 2 && small.total <= size, "{kind}: {small:?}");
        let expanded = expand(&bed, &volume, &target, 640).await;
        if kind == "ext4" && !has_sys_resource() {
            let said = expanded.unwrap_err();
            assert!(said.message().contains("CAP_SYS_RESOURCE"), "{said}");
            say("SKIPPED: growing a mounted ext4, without CAP_SYS_RESOURCE; it grows when staged again");
            bed.unpublish(&volume, &format!("target-{kind}")).await.unwrap();
            bed.unstage(&volume).await.unwrap();
            bed.file_system(&volume, kind).await;
            bed.publish(&volume, writer.clone(), false, &format!("target-{kind}")).await.unwrap();
        } else {
            expanded.unwrap();
        }
        let large = stats(&bed, &volume, &target).await;
        assert!(large.total > small.total + size / 2, "{kind}: {small:?}, then {large:?}");

        // The same mount for a reader.
        let reader = bed.publish(&volume, writer.clone(), true, &format!("reader-{kind}")).await.unwrap();
        assert_eq!(fs::read_to_string(reader.join("file")).unwrap(), kind);
        assert!(fs::write(reader.join("other"), "").is_err());
        let again = bed.publish(&volume, writer.clone(), false, &format!("reader-{kind}")).await;
        assert_eq!(code(&again), Code::AlreadyExists, "{again:?}");

        let snapshot = bed.snapshot(kind, &volume).await.unwrap();
        let copy = bed.create(&format!("copy of {kind}"), 1000, Some(&snapshot)).await.unwrap();
        let dir = bed.file_system(&copy, "").await;
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), kind);
        let larger = stats(&bed, &copy, &dir).await;
        assert!(larger.total > large.total + size / 2, "{kind}: {large:?}, then {larger:?}");

        assert_eq!(code(&bed.unstage(&volume).await), Code::FailedPrecondition, "it is still published");
        for target in [format!("target-{kind}"), format!("reader-{kind}")] {
            bed.unpublish(&volume, &target).await.unwrap();
            bed.unpublish(&volume, &target).await.unwrap();
            assert!(!bed.dir.join(target).exists());
        }
        for id in [volume, copy] {
            bed.unstage(&id).await.unwrap();
            bed.unstage(&id).await.unwrap();
            bed.controller().delete_volume(csi::DeleteVolumeRequest { volume_id: id }).await.unwrap();
        }
        // Its source is gone, and it serves nevertheless.
        bed.create(&format!("late copy of {kind}"), 0, Some(&snapshot)).await.unwrap();
        let request = csi::DeleteSnapshotRequest { snapshot_id: snapshot };
        bed.controller().delete_snapshot(request).await.unwrap();
    }
    assert_eq!(bed.loops(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_grow_and_are_as_large_as_asked() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 5, None).await.unwrap();
    let device = bed.device(&volume).await;
    let size = || run("blockdev", &["--getsize64", device.to_str().unwrap()]).parse::<u64>().unwrap();
    assert_eq!(size(), 5 * MIB);
    expand(&bed, &volume, &device, 9).await.unwrap();
    assert_eq!(size(), 9 * MIB);
    assert_eq!(stats(&bed, &volume, &device).await.total, 9 << 20);
    let request = csi::NodeGetVolumeStatsRequest { volume_id: volume, volume_path: bed.path("state") };
    assert_eq!(code(&bed.node().node_get_volume_stats(request).await), Code::NotFound);
    let small = bed.create("small", 1, Some("vol-0000000000000000")).await;
    assert_eq!(code(&small), Code::NotFound);
    let huge = bed.create("huge", 1 << 30, None).await;
    assert_eq!(code(&huge), Code::ResourceExhausted, "{huge:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_changes_its_mode_and_keeps_its_bytes() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let dir = bed.file_system(&volume, "ext4").await;
    fs::write(dir.join("file"), "content").unwrap();
    let snapshot = bed.snapshot("snapshot", &volume).await.unwrap();
    let as_device = bed.create("as a device", 0, Some(&snapshot)).await.unwrap();
    let device = bed.device(&as_device).await;
    let plain = fs::read(&device).unwrap();
    assert!(plain == fs::read(bed.dir.join(format!("state/snapshots/{snapshot}.img"))).unwrap());

    // Written to another device, byte for byte, it is a file system there.
    let empty = bed.create("empty", 64, None).await.unwrap();
    let target = fs::File::options().write(true).open(bed.device(&empty).await).unwrap();
    target.write_all_at(&plain, 0).unwrap();
    drop(target);
    let snapshot = bed.snapshot("of the device", &empty).await.unwrap();
    let as_files = bed.create("as files", 0, Some(&snapshot)).await.unwrap();
    assert_eq!(fs::read_to_string(bed.file_system(&as_files, "").await.join("file")).unwrap(), "content");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_never_formatted() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let device = bed.device(&volume).await;
    let file = fs::File::options().write(true).open(&device).unwrap();
    file.write_all_at(b"x", 50 * MIB).unwrap();
    drop(file);
    bed.unpublish(&volume, &format!("device-{volume}")).await.unwrap();
    bed.unstage(&volume).await.unwrap();
    let before = fs::read(bed.image(&volume)).unwrap();
    let refused = bed.stage(&volume, mount("", Mode::SingleNodeWriter)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("holds data"), "{refused}");
    assert!(fs::read(bed.image(&volume)).unwrap() == before);

    let other = bed.create("other", 64, None).await.unwrap();
    let reader = bed.stage(&other, mount("", Mode::SingleNodeReaderOnly)).await.unwrap_err();
    assert!(reader.message().contains("empty"), "{reader}");
    bed.file_system(&other, "ext4").await;
    bed.unstage(&other).await.unwrap();
    let wrong = bed.stage(&other, mount("xfs", Mode::SingleNodeWriter)).await.unwrap_err();
    assert!(wrong.message().contains("holds ext4, not xfs"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leftover_device_is_detached_with_its_volume() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 1, None).await.unwrap();
    bed.stage(&volume, block(Mode::SingleNodeWriter)).await.unwrap();
    assert_eq!(bed.loops().len(), 1);
    bed.controller().delete_volume(csi::DeleteVolumeRequest { volume_id: volume.clone() }).await.unwrap();
    assert_eq!(bed.loops(), []);
    assert!(!bed.image(&volume).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_image_was_cut_fails_with_eio() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let device = bed.device(&volume).await;
    let file = fs::File::options().read(true).write(true).open(&device).unwrap();
    file.write_all_at(&vec![7; 64 << 20], 0).unwrap();
    file.sync_all().unwrap();
    fs::File::options().write(true).open(bed.image(&volume)).unwrap().set_len(16 * MIB).unwrap();
    // What is in the cache would still be read.
    run("blockdev", &["--flushbufs", device.to_str().unwrap()]);
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 8 * MIB).unwrap();
    assert_eq!(block, [7; 4096]);
    let error = file.read_exact_at(&mut block, 32 * MIB).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{error}");
}
