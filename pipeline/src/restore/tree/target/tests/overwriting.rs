//! Targets that exist already.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::Kind;

#[test]
fn only_absent_and_empty_targets_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress::default();
    let open = |path: &str, overwrite| {
        TreeTarget::open(&dir.path().join(path), options(overwrite), &progress).map(|_| ())
    };
    open("new/deep/er", false).unwrap();
    open("new/deep/er", false).unwrap();
    assert_eq!(fs::metadata(dir.path().join("new/deep/er")).unwrap().mode() & 0o777, 0o700);
    fs::create_dir_all(dir.path().join("volume/lost+found")).unwrap();
    open("volume", false).unwrap();
    fs::write(dir.path().join("volume/lost+found/#123"), "").unwrap();
    assert_eq!(
        open("volume", false).unwrap_err().to_string(),
        format!(
            "{}/volume: is not empty: give --overwrite to replace what is in the way",
            dir.path().display()
        )
    );
    assert_eq!(open("new", false).unwrap_err().kind(), Kind::Target);
    open("new", true).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    for overwrite in [false, true] {
        assert_eq!(open("file", overwrite).unwrap_err().kind(), Kind::Target);
    }
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
}

#[test]
fn what_is_in_the_way_is_replaced_on_request() {
    for overwrite in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let (progress, reported) = watched();
        // An empty target that somebody fills after it was opened, or one that is meant to be overwritten.
        let target = TreeTarget::open(dir.path(), options(overwrite), &progress).unwrap();
        for existing in ["file", "file-for-dir", "file-for-link"] {
            fs::write(at(existing), "old").unwrap();
        }
        fs::hard_link(at("file"), at("same")).unwrap();
        fs::create_dir_all(at("dir/kept")).unwrap();
        fs::create_dir_all(at("dir-for-file")).unwrap();
        fs::create_dir_all(at("full-dir-for-file/in")).unwrap();
        fs::write(at("dir/kept/other"), "other").unwrap();

        write(&target, &entry("file", EntryKind::File), b"new");
        write(&target, &entry("dir-for-file", EntryKind::File), b"new");
        write(&target, &entry("full-dir-for-file", EntryKind::File), b"new");
        for path in ["dir", "dir/kept", "file-for-dir"] {
            target.directory(&entry(path, DIRECTORY)).unwrap();
        }
        write(&target, &entry("file-for-dir/new", EntryKind::File), b"new");
        target.other(&symlink("file-for-link", "x")).unwrap();
        for path in ["file-for-dir", "dir/kept", "dir"] {
            target.finish_directory(&entry(path, DIRECTORY)).unwrap();
        }
        drop(target);
        let reports = reports(&reported);
        assert_eq!(
            fs::read(at("same")).unwrap(),
            b"old",
            "another name of a replaced file keeps its contents"
        );
        assert_eq!(fs::read(at("dir/kept/other")).unwrap(), b"other");
        assert!(at("full-dir-for-file/in").is_dir());
        if overwrite {
            assert_eq!(reports, ["full-dir-for-file: a directory that is not empty is in the way"]);
            for path in ["file", "dir-for-file", "file-for-dir/new"] {
                assert_eq!(fs::read(at(path)).unwrap(), b"new", "{path}");
            }
            assert!(fs::symlink_metadata(at("file-for-link")).unwrap().is_symlink());
        } else {
            assert_eq!(reports.len(), 8, "{reports:#?}");
            assert!(reports.iter().any(|r| r == "file: is there already"));
            assert_eq!(fs::read(at("file")).unwrap(), b"old");
            assert!(at("dir-for-file").is_dir());
        }
    }
}

#[test]
fn a_kept_directory_is_ours_meanwhile_and_as_recorded_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o777)).unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&kept, name, value, rustix::fs::XattrFlags::empty()).is_ok()
    };
    // owner rwx, user 1234 r, group r-x, mask r-x, others nothing
    let acl = [
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 210, 4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
        16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    if !set("user.old", b"x") || !set("system.posix_acl_default", &acl) {
        return;
    }
    let (progress, reported) = watched();
    let target = TreeTarget::open(dir.path(), options(true), &progress).unwrap();
    let with_attributes =
        Entry { xattrs: vec![(b"user.new".to_vec(), b"y".to_vec())], ..entry("kept", DIRECTORY) };
    target.directory(&with_attributes).unwrap();
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o700);
    write(&target, &entry("kept/file", EntryKind::File), b"x");
    target.finish_directory(&with_attributes).unwrap();
    drop(target);
    let list = |path: &Path| {
        let mut names = vec![0; 1000];
        let len = rustix::fs::listxattr(path, &mut names).unwrap();
        names.truncate(len);
        String::from_utf8(names).unwrap()
    };
    assert_eq!(list(&kept.join("file")), "", "nothing is inherited");
    assert_eq!(list(&kept), "user.new\0");
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o755);
    assert_eq!(reports(&reported), [""; 0]);
}

#[test]
fn a_full_disk_ends_the_restore() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&str]| {
        std::process::Command::new(program).args(args).arg(dir.path()).status().is_ok_and(|s| s.success())
    };
    if !run("mount", &["-t", "tmpfs", "-o", "nr_inodes=4", "none"]) {
        return;
    }
    let progress = Progress::default();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    let result = (0..10).try_for_each(|i| target.file(&entry(format!("{i}"), EntryKind::File)).map(|_| ()));
    drop(target);
    assert!(run("umount", &[]));
    assert_eq!(result.unwrap_err().kind(), Kind::Target);
    assert_eq!(progress.get(Counter::Skips), 0);
}
