//! Volumes that are handed over as descriptors. Wherever it can be done, no path leads to them any more when they are used.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, XattrFlags};
use tradewind_pipeline::backup::{BackupOptions, Source};
use tradewind_pipeline::manifest::Manifest;
use tradewind_pipeline::patterns::Patterns;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::restore::{RestoreOptions, Target};
use tradewind_pipeline::source::Volume;
use tradewind_pipeline::store::StoreErrorKind;
use tradewind_pipeline::store::fault::{Effect, Fault, Faulty};
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::store::record::Operation;
use tradewind_pipeline::{Error, Kind, Result, restore};

use crate::bed::{Bed, engines, noise};
use crate::tree::{picture, plant};

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

fn tree(path: &Path) -> Volume {
    Volume::tree(open(path, OFlags::RDONLY | OFlags::DIRECTORY).unwrap())
}

/// A file or device as a holder opens it; without the direct descriptor where the file system has none.
fn block(path: &Path, direct: bool, access: OFlags) -> Volume {
    let direct = direct.then(|| open(path, access | OFlags::DIRECT).ok()).flatten();
    Volume::block(direct, open(path, access).unwrap())
}

fn from(bed: &Bed, volume: &Volume) -> BackupOptions {
    BackupOptions { source: Source::Volume(volume.clone()), ..bed.options(Path::new("/nowhere")) }
}

fn backup(bed: &Bed, volume: &Volume) -> Manifest {
    let report = bed.backup_with(&from(bed, volume)).unwrap();
    assert_eq!((report.skipped, &report.warnings[..]), (0, &[][..]));
    *report.manifest.unwrap()
}

fn to(bed: &Bed, volume: &Volume, overwrite: bool) -> RestoreOptions {
    let target = Target::Volume(volume.clone());
    RestoreOptions { target, overwrite, ..bed.restore_options(Path::new("/nowhere")) }
}

fn restore(bed: &Bed, manifest: &Manifest, volume: &Volume, overwrite: bool) -> Result<()> {
    let report = bed.restore_with(manifest, to(bed, volume, overwrite))?;
    assert_eq!((report.skipped, &report.warnings[..], &report.damages[..]), (0, &[][..], &[][..]));
    assert!(report.sampled > 0 || manifest.size == 0);
    Ok(())
}

/// A way for the test to look into what is handed over.
fn inside(volume: &Volume) -> PathBuf {
    let Volume::Tree(root) = volume else { panic!("no tree") };
    format!("/proc/self/fd/{}/.", root.as_raw_fd()).into()
}

fn bytes(volume: &Volume) -> Vec<u8> {
    let Volume::Block { buffered, .. } = volume else { panic!("no block volume") };
    let size = rustix::fs::seek(buffered, rustix::fs::SeekFrom::End(0)).unwrap();
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    buffered.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A tree whose top has metadata of its own.
fn planted(root: &Path) {
    plant(root);
    fs::set_permissions(root, fs::Permissions::from_mode(0o2751)).unwrap();
    let set = rustix::fs::setxattr(root, "user.colour", b"blue", XattrFlags::empty());
    set.or_else(|errno| if errno == rustix::io::Errno::OPNOTSUPP { Ok(()) } else { Err(errno) }).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root, Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::chown(root.join("medium"), Some(99), Some(98)).unwrap();
    }
    File::open(root).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
}

fn assert_same_trees(a: &Volume, b: &Volume) {
    let (a, b) = (inside(a), inside(b));
    assert_eq!(picture(&a), picture(&b));
    for path in [".", "medium", "many/deep"] {
        let owner = |root: &Path| root.join(path).metadata().map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!(owner(&a), owner(&b), "{path}");
    }
    let colour = |root: &Path| {
        let mut value = vec![0; 100];
        rustix::fs::getxattr(root, "user.colour", &mut value).map(|len| value[..len].to_vec())
    };
    assert_eq!(colour(&a), colour(&b));
}

#[test]
fn trees_go_there_and_back_without_a_path() {
    for engine in engines() {
        let bed = Bed::new(engine);
        fs::create_dir_all(bed.path("above/source")).unwrap();
        fs::create_dir_all(bed.path("above/target/lost+found")).unwrap();
        planted(&bed.path("above/source"));
        let (source, target) = (tree(&bed.path("above/source")), tree(&bed.path("above/target")));
        fs::rename(bed.path("above"), bed.path("elsewhere")).unwrap();

        let manifest = backup(&bed, &source);
        restore(&bed, &manifest, &target, false).unwrap();
        // That of a new file system stays. Removing it leaves the top's time to be set again.
        fs::remove_dir(inside(&target).join("lost+found")).unwrap();
        File::open(inside(&target)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_same_trees(&source, &target);
        // The same descriptor serves another time, and finds its parent.
        let again = bed.backup_with(&from(&bed, &source)).unwrap();
        assert_eq!((again.parent, again.statistics.stored), (Some(manifest.id), 0));
    }
}

#[test]
fn a_tree_that_is_occupied_is_refused_unless_it_is_to_be_overwritten() {
    let bed = Bed::new(engines()[0]);
    for dir in ["source/lost+found", "target/lost+found"] {
        fs::create_dir_all(bed.path(dir)).unwrap();
    }
    fs::write(bed.path("source/lost+found/#12"), "found").unwrap();
    fs::set_permissions(bed.path("source/lost+found"), fs::Permissions::from_mode(0o710)).unwrap();
    let (source, target) = (tree(&bed.path("source")), tree(&bed.path("target")));
    let manifest = backup(&bed, &source);
    fs::write(bed.path("target/file"), "mine").unwrap();
    let error = restore(&bed, &manifest, &target, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Target);
    assert!(error.to_string().starts_with("the volume: is not empty"), "{error}");
    assert_eq!(fs::read_dir(inside(&target)).unwrap().count(), 2);
    restore(&bed, &manifest, &target, true).unwrap();
    assert_eq!(fs::read(bed.path("target/file")).unwrap(), b"mine");
    fs::remove_file(bed.path("target/file")).unwrap();
    fs::remove_file(bed.path("target/lost+found/#12")).unwrap();
    // One of the snapshot's own takes over that of the new file system.
    restore(&bed, &manifest, &target, false).unwrap();
    assert_eq!(picture(&inside(&source)), picture(&inside(&target)));
}

#[test]
fn a_tree_half_restored_is_restored_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Faulty::new(Arc::new(LocalStore::new(dir.path().join("repo")).unwrap())));
    let bed = Bed::over(dir, Arc::clone(&store) as _, engines()[0]);
    for dir in ["source", "target/lost+found"] {
        fs::create_dir_all(bed.path(dir)).unwrap();
    }
    planted(&bed.path("source"));
    let (source, target) = (tree(&bed.path("source")), tree(&bed.path("target")));
    let manifest = backup(&bed, &source);
    let includes = Patterns::new(["file-1*", "large"]).unwrap();
    let report = bed.restore_with(&manifest, RestoreOptions { includes, ..to(&bed, &target, false) });
    assert_eq!(report.unwrap().skipped, 0);
    store.add(Fault::new(Operation::Read, Effect::Fail(StoreErrorKind::Denied)).prefix("packs/").skip(2));
    assert_eq!(restore(&bed, &manifest, &target, true).unwrap_err().kind(), Kind::Store);
    store.clear();
    // What a run that was killed leaves in addition.
    let link = inside(&target).join(".tradewind-links-0123456789abcdef");
    fs::create_dir(&link).unwrap();
    fs::write(link.join("1-2-f3-4-5"), "linked").unwrap();
    fs::write(inside(&target).join("medium"), noise(200_000, 77)).unwrap();
    fs::write(inside(&target).join("large"), "half").unwrap();
    assert_eq!(restore(&bed, &manifest, &target, false).unwrap_err().kind(), Kind::Target);
    restore(&bed, &manifest, &target, true).unwrap();
    fs::remove_dir(inside(&target).join("lost+found")).unwrap();
    File::open(inside(&target)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_same_trees(&source, &target);
}

/// A file of 5 MiB and a bit: noise, a hole, noise.
fn image(path: &Path) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len((5 << 20) + 512).unwrap();
    file.write_all_at(&noise(1 << 20, 1), 0).unwrap();
    file.write_all_at(&noise((1 << 20) + 512, 2), 4 << 20).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn block_volumes_go_there_and_back_without_a_path() {
    for engine in engines() {
        for direct in [true, false] {
            let bed = Bed::new(engine);
            let image = image(&bed.path("source"));
            let source = block(&bed.path("source"), direct, OFlags::RDONLY);
            // Larger than what comes, and full of something else.
            let garbage = noise(7 << 20, 3);
            fs::write(bed.path("target"), &garbage).unwrap();
            let target = block(&bed.path("target"), direct, OFlags::RDWR);
            fs::remove_file(bed.path("source")).unwrap();
            fs::remove_file(bed.path("target")).unwrap();

            let manifest = backup(&bed, &source);
            assert_eq!(manifest.size, image.len() as u64);
            assert_eq!(manifest.statistics.holes, 3 << 20);
            for _ in 0..2 {
                restore(&bed, &manifest, &target, false).unwrap();
                let restored = bytes(&target);
                assert!(restored[..image.len()] == image, "restored with engine {engine:?}, direct {direct}");
                assert!(restored[image.len()..] == garbage[image.len()..], "nothing beyond is touched");
                // A run that was killed left some of it; another one is started.
                let Volume::Block { buffered, .. } = &target else { unreachable!() };
                buffered.write_all_at(&noise(3 << 20, 4), 1 << 20).unwrap();
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_untouched() {
    let bed = Bed::new(engines()[0]);
    image(&bed.path("image"));
    fs::create_dir_all(bed.path("tree")).unwrap();
    fs::write(bed.path("tree/file"), "x").unwrap();
    fs::write(bed.path("small"), noise(5 << 20, 1)).unwrap();
    let source = block(&bed.path("image"), true, OFlags::RDONLY);
    for volume in [&source, &tree(&bed.path("tree"))] {
        let nameless = BackupOptions { volume: None, ..from(&bed, volume) };
        assert_eq!(bed.backup_with(&nameless).unwrap_err().kind(), Kind::Usage);
    }
    let of_block = backup(&bed, &source);
    let of_tree = backup(&bed, &tree(&bed.path("tree")));
    let small = block(&bed.path("small"), true, OFlags::RDWR);
    let refused = |manifest, volume: &Volume, what: &str| {
        let error = restore(&bed, manifest, volume, true).unwrap_err();
        assert!(matches!(error, Error::Target { .. }) && error.to_string() == what, "{error}");
    };
    refused(&of_block, &small, "the volume: has 5242880 bytes, the snapshot has 5243392");
    refused(&of_tree, &small, "the volume: is a block volume, the snapshot is of a directory");
    refused(
        &of_block,
        &tree(&bed.path("tree")),
        "the volume: is a directory, the snapshot is of a block volume",
    );
    refused(
        &of_block,
        &source,
        "the volume: was handed over with a buffered descriptor that is not open for reading and writing",
    );
    assert!(bytes(&small) == noise(5 << 20, 1));
    let directory = open(&bed.path("tree"), OFlags::RDONLY).unwrap();
    let error = bed.backup_with(&from(&bed, &Volume::block(None, directory))).unwrap_err();
    assert_eq!(error.to_string(), "the volume: is neither a regular file nor a block device");
    let file = open(&bed.path("small"), OFlags::RDONLY).unwrap();
    let error = bed.backup_with(&from(&bed, &Volume::tree(file))).unwrap_err();
    assert_eq!(error.kind(), Kind::Source);
}

fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output();
    match output {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8(output.stdout).unwrap().trim().into())
        }
        other => {
            eprintln!("SKIPPED: {program} {args:?}: {other:?}");
            None
        }
    }
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path, bytes: &[u8]) -> Option<Self> {
        fs::write(path, bytes).unwrap();
        run("losetup", &["--find", "--show", path.to_str().unwrap()]).map(|device| Self(device.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn devices_are_overwritten_with_zeros_where_there_were_holes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: loop devices need root");
        return;
    }
    for engine in engines() {
        let bed = Bed::new(engine);
        let image = image(&bed.path("image"));
        let garbage = noise(6 << 20, 5);
        let Some(source) = Loop::over(&bed.path("source"), &image) else { return };
        let Some(target) = Loop::over(&bed.path("target"), &garbage) else { return };
        let direct = block(&target.0, true, OFlags::RDWR);
        assert!(matches!(direct, Volume::Block { direct: Some(_), .. }));
        let manifest = backup(&bed, &block(&source.0, true, OFlags::RDONLY));
        assert_eq!(manifest.size, image.len() as u64);
        for target in [direct, block(&target.0, false, OFlags::RDWR)] {
            let Volume::Block { buffered, .. } = &target else { unreachable!() };
            buffered.write_all_at(&garbage, 0).unwrap();
            restore(&bed, &manifest, &target, false).unwrap();
            let restored = bytes(&target);
            assert!(restored[..image.len()] == image && restored[image.len()..] == garbage[image.len()..]);
        }
    }
}

/// New file systems that no path leads to, as those of another mount namespace.
#[test]
fn mounts_of_nowhere_are_read_and_filled() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let bed = Bed::new(engines()[0]);
    let mut devices = Vec::new();
    let mut mounted = |name: &str, fill: &dyn Fn(&Path)| {
        let device = Loop::over(&bed.path(&format!("{name}.img")), &vec![0; 64 << 20])?;
        let (path, at) = (device.0.to_str().unwrap().to_owned(), bed.path(name));
        devices.push(device);
        fs::create_dir(&at).unwrap();
        run("mkfs.ext4", &["-q", &path])?;
        run("mount", &[&path, at.to_str().unwrap()])?;
        fill(&at);
        let volume = tree(&at);
        run("umount", &["--lazy", at.to_str().unwrap()]).unwrap();
        Some(volume)
    };
    let Some(source) = mounted("source", &planted) else { return };
    let Some(target) = mounted("target", &|_| {}) else { return };
    assert!(!bed.path("source/medium").exists(), "still mounted");
    let manifest = backup(&bed, &source);
    restore(&bed, &manifest, &target, false).unwrap();
    assert_same_trees(&source, &target);
    assert!(picture(&inside(&target)).contains_key("lost+found"));
    // Cancelled, it says so and can be had again.
    let progress = Arc::new(Progress::default());
    progress.cancel();
    let options = to(&bed, &target, true);
    let cancelled = restore::run(bed.runtime.handle(), &bed.repository, &manifest, options, &progress);
    assert_eq!(cancelled.unwrap_err().kind(), Kind::Cancelled);
    restore(&bed, &manifest, &target, true).unwrap();
    assert_same_trees(&source, &target);
    drop((source, target));
}
