//! From a tree to a tree: everything arrives. Compared by other means than the walk that read it.

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, XattrFlags, lsetxattr, makedev, mknodat};

use super::*;
use crate::entry::FLAG_NODUMP;
use crate::source::tree::{FoundData, TreeOptions, open, stream};

/// Restores what a walk of `source` finds.
fn copy(source: &Path, target: &TreeTarget<'_>, privileged: bool, progress: &Progress) {
    let options = TreeOptions { privileged, inline_limit: 50_000, ..TreeOptions::default() };
    let mut directories = Vec::new();
    stream(open(source).unwrap(), source, options, None, None, progress, |found| {
        let entry = found.entry;
        if let EntryKind::Directory { .. } = entry.kind {
            target.directory(&entry)?;
            directories.push(entry);
            return Ok(());
        }
        if entry.links > 1 && target.link(&entry)? != Linked::First {
            return Ok(());
        }
        if entry.kind != EntryKind::File {
            target.other(&entry)?;
        }
        let file = if entry.kind == EntryKind::File { target.file(&entry)? } else { None };
        if entry.links > 1 {
            assert_eq!(target.remember_link(&entry)?, Linked::First);
        }
        let Some(file) = file else { return Ok(()) };
        match &found.data {
            FoundData::Small(small) => {
                for (range, bytes) in small.parts() {
                    file.file().write_all_at(bytes, range.offset).unwrap();
                }
            }
            FoundData::Large(large) => {
                for range in large.extents().map(Result::unwrap) {
                    let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
                    large.file().read_exact_at(&mut bytes, range.offset).unwrap();
                    file.file().write_all_at(&bytes, range.offset).unwrap();
                }
            }
            FoundData::None | FoundData::Unchanged => {}
        }
        target.finish_file(file, &entry)
    })
    .unwrap();
    for directory in directories.iter().rev() {
        target.finish_directory(directory).unwrap();
    }
    target.sync().unwrap();
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut pairs: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..len].to_vec())
        })
        .collect();
    pairs.sort();
    pairs
}

fn flags(path: &Path) -> u32 {
    File::open(path).map_or(0, |f| rustix::fs::ioctl_getflags(f).map_or(0, |f| f.bits()) & FLAG_NODUMP)
}

/// Asserts that both are the same, all the way down. `ids`: pairs of inode numbers seen, for links.
fn assert_same(a: &Path, b: &Path, ids: &mut Vec<(u64, u64)>) {
    let (x, y) = (fs::symlink_metadata(a).unwrap(), fs::symlink_metadata(b).unwrap());
    assert_eq!(x.file_type(), y.file_type(), "{a:?}");
    assert_eq!(
        (x.uid(), x.gid(), format!("{:o}", x.mode())),
        (y.uid(), y.gid(), format!("{:o}", y.mode())),
        "{a:?}"
    );
    assert_eq!((x.mtime(), x.mtime_nsec(), x.rdev()), (y.mtime(), y.mtime_nsec(), y.rdev()), "{a:?}");
    assert_eq!(attributes(a), attributes(b), "{a:?}");
    if x.is_symlink() {
        assert_eq!(fs::read_link(a).unwrap(), fs::read_link(b).unwrap());
    } else if x.is_dir() {
        assert_eq!(flags(a), flags(b), "{a:?}");
        let names = |dir| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(a), names(b), "{a:?}");
        for name in names(a) {
            assert_same(&a.join(&name), &b.join(&name), ids);
        }
    } else {
        assert_eq!(x.nlink(), y.nlink(), "{a:?}");
        if x.nlink() > 1 {
            ids.push((x.ino(), y.ino()));
        }
        if x.is_file() {
            assert_eq!(flags(a), flags(b), "{a:?}");
            assert_eq!(x.len(), y.len(), "{a:?}");
            if x.len() < 1 << 30 {
                assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{a:?}");
            }
            assert_eq!(x.blocks(), y.blocks(), "{a:?}: holes");
        }
    }
}

/// One of everything.
fn torture(root: &Path) {
    let at = |path: &str| root.join(path);
    let owner = |path: &str, uid, gid| {
        if is_root() {
            std::os::unix::fs::lchown(at(path), Some(uid), Some(gid)).unwrap();
        }
    };
    let mode = |path: &str, mode| fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    for (i, dir) in ["a", "a/b", "a/b/c", "empty", "shared"].iter().enumerate() {
        fs::create_dir(at(dir)).unwrap();
        owner(dir, 1000 + u32::try_from(i).unwrap(), 50);
    }
    for (i, size) in [0usize, 1, 4095, 4096, 4097, 49_999, 50_000, 50_001, 300_000].iter().enumerate() {
        let bytes: Vec<u8> = (0..*size).map(|j| u8::try_from((j * 31 + i) % 251).unwrap() + 1).collect();
        fs::write(at(&format!("a/b/{size}")), bytes).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"a/\xff\xc3(\x01")), "raw").unwrap();
    fs::write(at("a/setuid"), "s").unwrap();
    owner("a/setuid", 7, 8);
    mode("a/setuid", 0o6755);
    fs::write(at("a/readonly"), "r").unwrap();
    lsetxattr(at("a/readonly"), "user.key", b"value", XattrFlags::empty()).unwrap();
    lsetxattr(at("a/readonly"), "user.empty", b"", XattrFlags::empty()).unwrap();
    mode("a/readonly", 0o000);
    for (path, target) in [("a/dangling", "no/where"), ("a/absolute", "/etc/passwd"), ("a/loop", "loop")] {
        std::os::unix::fs::symlink(target, at(path)).unwrap();
        owner(path, 11, 12);
    }
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::XOTH, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    for i in 0..5 {
        fs::hard_link(at("a/b/4097"), at(&format!("a/b/c/link{i}"))).unwrap();
    }
    fs::hard_link(at("fifo"), at("fifo2")).unwrap();
    let sparse = |path: &str, size: u64, data: &[u64]| {
        let file = File::create(at(path)).unwrap();
        file.set_len(size).unwrap();
        data.iter().for_each(|offset| file.write_all_at(&[5; 4096], *offset).unwrap());
        file.sync_all().unwrap(); // blocks are counted when they are allocated
    };
    sparse("a/sparse", 40_960, &[8192]);
    sparse("a/all-hole", 40_960, &[]);
    sparse("a/large-sparse", 1 << 40, &[0, 1 << 30, (1 << 40) - 4096]);
    let acl: &[u8] = &[
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 210, 4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
        16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    let _ = lsetxattr(at("a/b/1"), "system.posix_acl_access", acl, XattrFlags::empty());
    let _ = lsetxattr(at("a/b"), "system.posix_acl_default", acl, XattrFlags::empty());
    let _ = metadata::change_flags(File::open(at("a/b/4095")).unwrap(), 0, FLAG_NODUMP);
    let _ = metadata::change_flags(File::open(at("empty")).unwrap(), 0, FLAG_NODUMP);
    if is_root() {
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        lsetxattr(at("a/setuid"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        lsetxattr(at("a/dangling"), "trusted.link", b"t", XattrFlags::empty()).unwrap();
        lsetxattr(at("fifo"), "trusted.fifo", b"t", XattrFlags::empty()).unwrap();
        lsetxattr(at("empty"), "trusted.dir", b"t", XattrFlags::empty()).unwrap();
        for (path, kind) in [("block", FileType::BlockDevice), ("char", FileType::CharacterDevice)] {
            let _ = mknodat(CWD, at(path), kind, Mode::RUSR, makedev(259, 70_000));
        }
        owner("shared", 1, 2);
    }
    mode("shared", 0o3777);
    let times = |path: &str, time: SystemTime| {
        // By name and without following a link.
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let (tv_sec, tv_nsec) = match since {
            Ok(d) => (i64::try_from(d.as_secs()).unwrap(), d.subsec_nanos().into()),
            Err(e) => (-i64::try_from(e.duration().as_secs()).unwrap(), 0),
        };
        let time = rustix::fs::Timespec { tv_sec, tv_nsec };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    times("a/dangling", SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321));
    times("a/b/0", SystemTime::UNIX_EPOCH - Duration::from_secs(86_400));
    times("fifo", SystemTime::UNIX_EPOCH + Duration::new(4_000_000_000, 1));
    for path in ["a/b/c", "a/b", "a", ""] {
        times(path, SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 111_111_111));
    }
}

fn round_trip(privileged: bool, overwrite: bool, with_openat2: bool) {
    let (source, restored) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    torture(source.path());
    let (progress, reported) = watched();
    let mut ids = Vec::new();
    for _ in 0..=u32::from(overwrite) {
        let options = TargetOptions { overwrite, privileged };
        let mut target = TreeTarget::open(restored.path(), options, &progress).unwrap();
        if !with_openat2 {
            target.dirs.forbid_openat2();
        }
        copy(source.path(), &target, privileged, &progress);
        drop(target);
        assert_eq!(reports(&reported), [""; 0]);
        ids.clear();
        assert_same(source.path(), restored.path(), &mut ids);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2, "each file with several names is one file again: {ids:?}");
}

#[test]
fn everything_arrives() {
    if is_root() {
        round_trip(true, false, true);
    }
}

#[test]
fn everything_arrives_over_what_was_there_and_without_openat2() {
    if is_root() {
        round_trip(true, true, false);
    }
}

#[test]
fn paths_beyond_the_systems_limit_arrive() {
    for with_openat2 in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (progress, reported) = watched();
        let mut target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
        if !with_openat2 {
            target.dirs.forbid_openat2();
        }
        // More levels than directories stay open, and more bytes than a path may have.
        let mut directories = Vec::new();
        let mut path = Vec::new();
        for i in 0..200 {
            path.extend_from_slice(format!("{i:040}").as_bytes());
            directories.push(entry(&path, DIRECTORY));
            target.directory(directories.last().unwrap()).unwrap();
            path.push(b'/');
            write(&target, &entry([&path, &b"file"[..]].concat(), EntryKind::File), b"x");
        }
        assert!(path.len() > 8_000);
        // From the far end back, when what is needed is no longer open.
        for directory in directories.iter().rev() {
            write(&target, &entry([&directory.path, &b"/late"[..]].concat(), EntryKind::File), b"x");
            target.finish_directory(directory).unwrap();
        }
        drop(target);
        assert_eq!(reports(&reported), [""; 0]);
        let mut files = 0;
        let options = TreeOptions::default();
        stream(open(dir.path()).unwrap(), dir.path(), options, None, None, &progress, |found| {
            files += usize::from(matches!(found.data, FoundData::Small(_)));
            if !found.entry.path.is_empty() {
                assert_eq!(found.entry.mtime.seconds, 1_000_000_000);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(files, 400);
    }
}

#[test]
fn a_user_restores_what_is_the_users() {
    let (source, restored) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&source, &restored] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    }
    as_nobody(|| {
        let at = |path: &str| source.path().join(path);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("dir/file"), "contents").unwrap();
        rustix::fs::setxattr(at("dir/file"), "user.x", b"y", XattrFlags::empty()).unwrap();
        fs::hard_link(at("dir/file"), at("dir/link")).unwrap();
        fs::set_permissions(at("dir/file"), fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o555)).unwrap();
        std::os::unix::fs::symlink("x", at("symlink")).unwrap();
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let (progress, reported) = watched();
        let inside = restored.path().join("new");
        for overwrite in [false, true] {
            let options = TargetOptions { overwrite, privileged: false };
            let target = TreeTarget::open(&inside, options, &progress).unwrap();
            copy(&at("dir"), &target, false, &progress);
            drop(target);
            assert_eq!(reports(&reported), [""; 0]);
            assert_same(&at("dir"), &inside, &mut Vec::new());
        }
        for dir in [at("dir"), inside] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
    });
}

#[test]
fn what_cannot_be_set_is_reported_and_the_rest_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let (progress, reported) = watched();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    let xattrs = vec![
        (b"system.unknown".to_vec(), b"never tried".to_vec()),
        (b"user.large".to_vec(), vec![1; 70_000]),
        (b"user.x".to_vec(), b"y".to_vec()),
    ];
    let file = Entry { xattrs: xattrs.clone(), mode: 0o640, ..entry("file", EntryKind::File) };
    write(&target, &file, b"x");
    target.other(&Entry { xattrs: xattrs[2..].to_vec(), ..symlink("link", "x") }).unwrap();
    // Never made, so there is nothing to say about them.
    target.finish_directory(&entry("absent", DIRECTORY)).unwrap();
    target.finish_directory(&entry("absent/too", DIRECTORY)).unwrap();
    // More than any file system takes.
    let huge = Entry { size: u64::MAX, ..entry("huge", EntryKind::File) };
    assert!(target.file(&huge).unwrap().is_none());
    drop(target);
    let reports = reports(&reported);
    assert_eq!(reports.len(), 3, "{reports:?}");
    assert!(reports[0].starts_with("file: extended attribute user.large not set: "), "{reports:?}");
    assert!(reports[1].starts_with("link: extended attribute user.x not set: "), "{reports:?}");
    assert!(reports[2].starts_with("huge: file cannot be made that large: "), "{reports:?}");
    let meta = fs::metadata(dir.path().join("file")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 1_000_000_000));
    assert!(attributes(&dir.path().join("file")).contains(&("user.x".into(), b"y".to_vec())));
    assert!(!dir.path().join("huge").exists());
    assert!(!meta.file_type().is_fifo());
}
