//! What `statx` says about a file, and the entry made of it.

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp, makedev, statx};

use crate::entry::{Content, Entry, EntryKind, FLAG_APPEND, FLAG_IMMUTABLE, FLAG_NODUMP, Time};

/// The figures of one file.
#[derive(Debug, Clone)]
pub(super) struct Stat {
    pub(super) kind: FileType,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    /// Allocated, in units of 512 bytes.
    pub(super) blocks: u64,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) inode: u64,
    pub(super) device: u64,
    pub(super) rdev: u64,
    pub(super) links: u32,
    /// The mount, where the kernel tells (5.8).
    pub(super) mount: Option<u64>,
    /// Inode flags that are known without opening the file.
    pub(super) flags: u32,
    /// Which flags those are.
    pub(super) flags_known: u32,
}

/// The file `name` in `dir`, without following a link or mounting anything.
pub(super) fn at(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Stat> {
    get(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

/// An open file.
pub(super) fn of_fd(fd: impl AsFd) -> rustix::io::Result<Stat> {
    get(fd, b"", AtFlags::EMPTY_PATH)
}

fn get(dir: impl AsFd, name: &[u8], flags: AtFlags) -> rustix::io::Result<Stat> {
    let x = statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
    let (known, set) = attributes(&x);
    Ok(Stat {
        kind: FileType::from_raw_mode(x.stx_mode.into()),
        mode: u32::from(x.stx_mode) & 0o7777,
        uid: x.stx_uid,
        gid: x.stx_gid,
        size: x.stx_size,
        blocks: x.stx_blocks,
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        inode: x.stx_ino,
        device: makedev(x.stx_dev_major, x.stx_dev_minor),
        rdev: makedev(x.stx_rdev_major, x.stx_rdev_minor),
        links: x.stx_nlink,
        mount: (x.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(x.stx_mnt_id),
        flags: set,
        flags_known: known,
    })
}

fn time(t: StatxTimestamp) -> Time {
    Time { seconds: t.tv_sec, nanos: t.tv_nsec }
}

fn attributes(x: &Statx) -> (u32, u32) {
    let pairs = [
        (StatxAttributes::APPEND, FLAG_APPEND),
        (StatxAttributes::IMMUTABLE, FLAG_IMMUTABLE),
        (StatxAttributes::NODUMP, FLAG_NODUMP),
    ];
    pairs
        .into_iter()
        .filter(|(a, _)| x.stx_attributes_mask.contains(*a))
        .fold((0, 0), |(known, set), (a, f)| {
            (known | f, if x.stx_attributes.contains(a) { set | f } else { set })
        })
}

impl Stat {
    /// True when it is another file system, mount or subvolume than `other`.
    pub(super) fn is_elsewhere(&self, other: &Self) -> bool {
        self.device != other.device || self.mount.zip(other.mount).is_some_and(|(a, b)| a != b)
    }

    /// True when both are the same file.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        self.inode == other.inode && !self.is_elsewhere(other)
    }

    /// Why a file that had `size` and `mtime` is no longer what it was.
    pub(super) fn change_since(&self, size: u64, mtime: Time) -> Option<String> {
        // The change time is left out: it also moves when a link is made or the mode changes.
        if self.size != size {
            Some(format!("changed while being read: {size} bytes before, {} after", self.size))
        } else if self.mtime != mtime {
            Some("changed while being read".into())
        } else {
            None
        }
    }

    /// The entry at `path`, without extended attributes and contents.
    pub(super) fn entry(&self, path: Vec<u8>, kind: EntryKind) -> Entry {
        Entry {
            path,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ctime: self.ctime,
            size: if kind == EntryKind::File { self.size } else { 0 },
            inode: self.inode,
            device: self.device,
            links: self.links,
            flags: self.flags,
            xattrs: Vec::new(),
            content: Content::Empty,
            kind,
        }
    }
}
