//! A repository that wants to write somewhere else.

use std::fs;

use super::*;
use crate::Kind;

/// Everything below `dir` with contents, to see that nothing has changed.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>, u32, i64)> {
    use std::os::unix::fs::MetadataExt;
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flat_map(|e| {
            let path = e.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let mut found = vec![(path.clone(), bytes, meta.mode(), meta.mtime())];
            if meta.is_dir() {
                found.extend(snapshot(&path));
            }
            found
        })
        .collect();
    all.sort();
    all
}

#[test]
fn impossible_names_are_damage() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "precious").unwrap();
    let before = snapshot(outside.path());
    let inside = outside.path().join("target");
    let progress = Progress::default();
    let target = TreeTarget::open(&inside, options(true), &progress).unwrap();
    let absolute = outside.path().join("victim").into_os_string().into_encoded_bytes();
    for path in
        [&b"../victim"[..], b"a/../../victim", b"..", b".", b"a//b", b"", b"x\0y", &[b'n'; 256], &absolute]
    {
        let kinds = [EntryKind::File, EntryKind::Symlink { target: b"x".into() }, EntryKind::Fifo];
        for kind in kinds {
            let entry = Entry { links: 2, ..entry(path, kind) };
            assert_eq!(target.file(&entry).unwrap_err().kind(), Kind::Damage);
            assert_eq!(target.other(&entry).unwrap_err().kind(), Kind::Damage);
            assert_eq!(target.link(&entry).unwrap_err().kind(), Kind::Damage);
            assert_eq!(target.remember_link(&entry).unwrap_err().kind(), Kind::Damage);
        }
        if !path.is_empty() {
            assert_eq!(target.directory(&entry(path, DIRECTORY)).unwrap_err().kind(), Kind::Damage);
            assert_eq!(target.finish_directory(&entry(path, DIRECTORY)).unwrap_err().kind(), Kind::Damage);
        }
    }
    drop(target);
    fs::remove_dir(&inside).unwrap();
    assert_eq!(snapshot(outside.path()), before);
}

#[test]
fn links_in_the_target_are_never_followed() {
    for with_openat2 in [true, false] {
        for overwrite in [false, true] {
            let outside = tempfile::tempdir().unwrap();
            for dir in ["dir/sub", "dir/empty"] {
                fs::create_dir_all(outside.path().join(dir)).unwrap();
            }
            fs::write(outside.path().join("dir/victim"), "precious").unwrap();
            let before = snapshot(outside.path());
            let inside = tempfile::tempdir().unwrap();
            let (progress, reported) = watched();
            let mut target = TreeTarget::open(inside.path(), options(overwrite), &progress).unwrap();
            if !with_openat2 {
                target.dirs.forbid_openat2();
            }
            let there = outside.path().to_str().unwrap();
            // Planted by the repository itself, and by somebody else meanwhile.
            target.other(&symlink("planted", &format!("{there}/dir"))).unwrap();
            target.other(&symlink("file", &format!("{there}/dir/victim"))).unwrap();
            target.other(&symlink("up", "..")).unwrap();
            std::os::unix::fs::symlink(outside.path().join("dir"), inside.path().join("other")).unwrap();
            for parent in ["planted", "other", "up", "planted/sub"] {
                let path = |name: &str| format!("{parent}/{name}");
                assert!(target.file(&entry(path("victim"), EntryKind::File)).unwrap().is_none());
                target.other(&symlink(&path("link"), "x")).unwrap();
                target.directory(&entry(path("new"), DIRECTORY)).unwrap();
                target.finish_directory(&entry(path("sub"), DIRECTORY)).unwrap();
                assert_eq!(target.link(&linked(&path("hard"), 5, 2)).unwrap(), Linked::Skipped);
                assert!(!reports(&reported).is_empty());
            }
            // The link itself is in the way, not what it points to.
            write(&target, &entry("file", EntryKind::File), b"new contents");
            target.finish_directory(&entry("planted", DIRECTORY)).unwrap();
            target.directory(&entry("planted", DIRECTORY)).unwrap();
            write(&target, &entry("planted/victim", EntryKind::File), b"inside");
            drop(target);
            assert_eq!(snapshot(outside.path()), before);
            if overwrite {
                assert_eq!(fs::read(inside.path().join("file")).unwrap(), b"new contents");
                assert_eq!(fs::read(inside.path().join("planted/victim")).unwrap(), b"inside");
            } else {
                assert!(fs::symlink_metadata(inside.path().join("planted")).unwrap().is_symlink());
            }
        }
    }
}

#[test]
fn without_privileges_nothing_privileged_is_made() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (progress, reported) = watched();
    let modest = TargetOptions { overwrite: false, privileged: false };
    let target = TreeTarget::open(dir.path(), modest, &progress).unwrap();
    let xattrs = vec![
        (b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (b"trusted.x".to_vec(), b"t".to_vec()),
    ];
    let file = Entry {
        mode: 0o6755,
        uid: 77,
        gid: 78,
        flags: FLAG_IMMUTABLE,
        xattrs,
        ..entry("f", EntryKind::File)
    };
    write(&target, &file, b"x");
    target.other(&entry("null", EntryKind::CharDevice { rdev: rustix::fs::makedev(1, 3) })).unwrap();
    // One of several names that is left out is left out once, and the next is the first again.
    let twice =
        Entry { links: 2, ..entry("zero", EntryKind::CharDevice { rdev: rustix::fs::makedev(1, 5) }) };
    assert_eq!(target.link(&twice).unwrap(), Linked::First);
    target.other(&twice).unwrap();
    target.remember_link(&twice).unwrap();
    drop(target);
    let left_out = "device left out: restoring it needs privileged metadata";
    assert_eq!(reports(&reported), [format!("null: {left_out}"), format!("zero: {left_out}")]);
    let meta = fs::metadata(dir.path().join("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o755));
    let mut names = [0; 100];
    assert_eq!(rustix::fs::listxattr(dir.path().join("f"), &mut names).unwrap(), 0);
    fs::remove_file(dir.path().join("f")).unwrap();
    assert!(!dir.path().join("null").exists());
}
