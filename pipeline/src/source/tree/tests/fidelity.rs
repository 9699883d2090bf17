//! Everything a file has is in its entry.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, IFlags, XattrFlags, ioctl_setflags, lsetxattr, mknodat};

use super::*;
use crate::entry::{FLAG_IMMUTABLE, FLAG_NODUMP};

/// A POSIX ACL as the kernel takes it: owner rwx, user 1234 r, group r-x, mask r-x, others nothing.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 210, 4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16,
    0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];
/// `cap_net_raw+ep`.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn metadata_of_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let file = |name: &str| {
        fs::write(root.join(name), name).unwrap();
        root.join(name)
    };
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&file("setuid"), 0o4755);
    mode(&file("setgid"), 0o2711);
    fs::create_dir(root.join("sticky")).unwrap();
    mode(&root.join("sticky"), 0o1777);
    symlink("nowhere/at/all", root.join("dangling")).unwrap();
    symlink(OsStr::from_bytes(b"\xff\xfe"), root.join("raw")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xc3\x28")), "not utf-8").unwrap();
    fs::create_dir(root.join("void")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let linked = file("linked");
    fs::hard_link(&linked, root.join("sticky/other")).unwrap();
    let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH - Duration::new(3, 1));
    File::open(&linked).unwrap().set_times(old).unwrap();

    let walked = walk(root, options());
    assert_eq!(walked.skipped, []);
    assert_eq!(walked.entry("setuid").mode, 0o4755);
    assert_eq!(walked.entry("setgid").mode, 0o2711);
    assert_eq!(walked.entry("sticky").mode, 0o1777);
    let link = |target: &[u8]| EntryKind::Symlink { target: target.to_vec() };
    assert_eq!(walked.entry("dangling").kind, link(b"nowhere/at/all"));
    assert_eq!(walked.entry("raw").kind, link(b"\xff\xfe"));
    assert_eq!(walked.contents[&b"\xc3\x28"[..]], b"not utf-8");
    assert_eq!(walked.entry("void").kind, EntryKind::Directory { mount: false });
    assert_eq!(walked.entry("empty").size, 0);
    assert_eq!(walked.entry("fifo").kind, EntryKind::Fifo);
    assert_eq!(walked.entry("socket").kind, EntryKind::Socket);
    let (a, b) = (walked.entry("linked"), walked.entry("sticky/other"));
    assert_eq!((a.inode, a.device, a.links), (b.inode, b.device, 2));
    assert_eq!(a.mtime, Time { seconds: -4, nanos: 999_999_999 });
    for entry in &walked.entries {
        let real = fs::symlink_metadata(join(root, &entry.path)).unwrap();
        assert_eq!((entry.uid, entry.gid, entry.mode), (real.uid(), real.gid(), real.mode() & 0o7777));
        assert_eq!(
            (entry.inode, entry.device, u64::from(entry.links)),
            (real.ino(), real.dev(), real.nlink())
        );
        assert_eq!((entry.mtime.seconds, i64::from(entry.mtime.nanos)), (real.mtime(), real.mtime_nsec()));
        assert_eq!((entry.ctime.seconds, i64::from(entry.ctime.nanos)), (real.ctime(), real.ctime_nsec()));
    }
}

#[test]
fn devices_have_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let rdev = makedev(259, 70_000);
    let make = |name: &str, kind| {
        mknodat(CWD, dir.path().join(name), kind, Mode::from_raw_mode(0o600), rdev).is_ok()
    };
    if !make("block", FileType::BlockDevice) || !make("char", FileType::CharacterDevice) {
        return;
    }
    let walked = walk(dir.path(), options());
    assert_eq!(walked.entry("block").kind, EntryKind::BlockDevice { rdev });
    assert_eq!(walked.entry("char").kind, EntryKind::CharDevice { rdev });
}

use rustix::fs::makedev;

#[test]
fn extended_attributes_and_acls() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::write(root.join("file"), "x").unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    symlink("x", root.join("link")).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(root.join(path), name, value, XattrFlags::empty()).is_ok()
    };
    if !set("file", "user.zzz", b"last") {
        return; // the temporary directory has no attributes
    }
    assert!(set("file", "user.empty", b"") && set("file", "user.raw", &[0, 255, 0]));
    let with_acl = set("file", "system.posix_acl_access", ACL) && set("dir", "system.posix_acl_default", ACL);
    let with_trusted =
        set("link", "trusted.on-a-link", b"t") && set("file", "security.capability", CAPABILITY);
    let names = |walked: &Walked, path: &str| -> Vec<String> {
        let names = walked.entry(path).xattrs.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned());
        names.filter(|n| n != "security.selinux").collect()
    };
    // Read by descriptor for a new file, by name for one that is not opened.
    let first = walk(root, options());
    let parent = |path: &[u8]| {
        let mut entry = first.entry(std::str::from_utf8(path).unwrap()).clone();
        entry.xattrs.clear();
        entry.content = crate::entry::Content::Extents(Vec::new());
        Ok(Some(entry))
    };
    let later = Some(Time { seconds: i64::MAX, nanos: 0 });
    let second = walk_with(root, options(), Some(Box::new(parent)), later, &Progress::default());
    assert_eq!(second.unchanged, [b"file"]);
    for walked in [&first, &second] {
        assert_eq!(walked.skipped, []);
        let file = names(walked, "file");
        assert!(file.is_sorted());
        assert_eq!(file.iter().filter(|n| n.starts_with("user.")).count(), 3);
        assert_eq!(file.contains(&"system.posix_acl_access".into()), with_acl);
        assert_eq!(names(walked, "dir").contains(&"system.posix_acl_default".into()), with_acl);
        assert_eq!(names(walked, "link").contains(&"trusted.on-a-link".into()), with_trusted && is_root());
        let raw = walked.entry("file").xattrs.iter().find(|(n, _)| n == b"user.raw").unwrap();
        assert_eq!(raw.1, [0, 255, 0]);
    }
    assert_eq!(first.entry("file").xattrs, second.entry("file").xattrs);
    let modest = walk(root, TreeOptions { privileged: false, ..options() });
    assert!(names(&modest, "link").is_empty());
}

#[test]
fn inode_flags() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    let file = File::open(&path).unwrap();
    if ioctl_setflags(&file, IFlags::NODUMP).is_err() {
        return;
    }
    assert_eq!(walk(dir.path(), options()).entry("file").flags, FLAG_NODUMP);
    if ioctl_setflags(&file, IFlags::NODUMP | IFlags::IMMUTABLE).is_ok() {
        let flags = walk(dir.path(), options()).entry("file").flags;
        ioctl_setflags(&file, IFlags::empty()).unwrap();
        assert_eq!(flags, FLAG_NODUMP | FLAG_IMMUTABLE);
    }
}

#[test]
fn holes_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, size: u64, data: &[u64]| {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        for offset in data {
            file.write_all_at(&[9; 4096], *offset).unwrap();
        }
    };
    make("small", 100_000, &[0, 40_960]);
    make("hole", 100_000, &[]);
    make("tiny hole", 100, &[]);
    make("large", 10_000_000, &[4096, 9_000_000 / 4096 * 4096]);
    make("large hole", 1 << 40, &[]);
    // Space reserved behind the end: there are more blocks than bytes, and still a hole.
    make("reserved", 20_480, &[0]);
    let file = File::options().write(true).open(dir.path().join("reserved")).unwrap();
    let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 32_768, 65_536);
    let progress = Progress::default();
    let mut ranges = BTreeMap::new();
    stream(dir.path(), options(), None, None, &progress, |found| {
        let name = String::from_utf8(found.entry.path).unwrap();
        match found.data {
            FoundData::Small(small) => {
                let parts: Vec<usize> = small.parts().map(|(_, bytes)| bytes.len()).collect();
                assert!(parts.iter().zip(&small.ranges).all(|(len, range)| *len as u64 == range.len));
                ranges.insert(name, small.ranges);
            }
            FoundData::Large(large) => {
                ranges.insert(name, large.extents().map(Result::unwrap).collect());
            }
            _ => assert_eq!(name, ""),
        }
        Ok(())
    })
    .unwrap();
    let page = |offset| DataRange { offset, len: 4096 };
    if !ranges["hole"].is_empty() {
        return; // a file system that does not know its holes
    }
    assert_eq!(ranges["small"], [page(0), page(40_960)]);
    assert_eq!(ranges["tiny hole"], []);
    assert_eq!(ranges["large"], [page(4096), page(9_000_000 / 4096 * 4096)]);
    assert_eq!(ranges["large hole"], []);
    assert_eq!(ranges["reserved"], [page(0)]);
    assert_eq!(progress.get(Counter::Read), 3 * 4096);
}
