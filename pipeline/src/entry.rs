//! One entry of a directory tree: everything about a file but its bytes.
//!
//! Names are bytes, not UTF-8. A path is relative to the root of the tree, its components joined by `/`, and empty
//! for the root itself. The order of a tree is depth first with siblings in byte order: compare component by
//! component, parents first ([`compare`]).

use std::cmp::Ordering;

use crate::hash::Id;
use crate::pack::Location;

/// Inode flags that are kept and restored, as bits of `FS_IOC_GETFLAGS`: synchronous updates, immutable, append only,
/// not dumped, no access times, synchronous directory, and btrfs' compression and no-copy-on-write. The others say
/// what a file system did (extents, indexed, encrypted), not what somebody asked for.
pub const RESTORED_FLAGS: u32 = FLAG_COMPRESSED
    | FLAG_SYNC
    | FLAG_IMMUTABLE
    | FLAG_APPEND
    | FLAG_NODUMP
    | FLAG_NOATIME
    | FLAG_DIRSYNC
    | FLAG_NOCOW;
/// `FS_COMPR_FL`.
pub const FLAG_COMPRESSED: u32 = 0x4;
/// `FS_SYNC_FL`.
pub const FLAG_SYNC: u32 = 0x8;
/// `FS_IMMUTABLE_FL`.
pub const FLAG_IMMUTABLE: u32 = 0x10;
/// `FS_APPEND_FL`.
pub const FLAG_APPEND: u32 = 0x20;
/// `FS_NODUMP_FL`.
pub const FLAG_NODUMP: u32 = 0x40;
/// `FS_NOATIME_FL`.
pub const FLAG_NOATIME: u32 = 0x80;
/// `FS_DIRSYNC_FL`.
pub const FLAG_DIRSYNC: u32 = 0x1_0000;
/// `FS_NOCOW_FL`. Takes effect on empty files only, so it is set before the first byte.
pub const FLAG_NOCOW: u32 = 0x80_0000;

/// An entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root, empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode. Not restored; tells whether a file changed.
    pub ctime: Time,
    /// Size in bytes; 0 for everything but regular files.
    pub size: u64,
    /// Inode number, for hard links and change detection.
    pub inode: u64,
    /// Device number of the file system, for hard links.
    pub device: u64,
    /// Number of hard links. Entries with the same device and inode and more than one link are one file.
    pub links: u32,
    /// Inode flags as `FS_IOC_GETFLAGS` gives them, reduced to those that are restored.
    pub flags: u32,
    /// Extended attributes in byte order of names: user, trusted, security, and ACLs as `system.posix_acl_*`.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the bytes of a regular file are.
    pub content: Content,
}

impl Entry {
    /// Bytes of memory that it takes, as far as they depend on what is in it.
    pub fn weight(&self) -> usize {
        let pair =
            |(name, value): &(Vec<u8>, Vec<u8>)| size_of::<(Vec<u8>, Vec<u8>)>() + name.len() + value.len();
        let xattrs: usize = self.xattrs.iter().map(pair).sum();
        let content = match &self.content {
            Content::Empty => 0,
            Content::Extents(extents) => size_of_val(&extents[..]),
            Content::Paged(root) => size_of_val(&**root),
        };
        let target = if let EntryKind::Symlink { target } = &self.kind { target.len() } else { 0 };
        size_of::<Self>() + self.path.len() + xattrs + content + target
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds since the Unix epoch, negative before it.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory. `mount`: another file system or subvolume starts here and was not entered.
    Directory {
        /// True at a mount point below the root.
        mount: bool,
    },
    /// A symbolic link and where it points, raw.
    Symlink {
        /// The link's text.
        target: Vec<u8>,
    },
    /// A block device with its device number.
    BlockDevice {
        /// Device number.
        rdev: u64,
    },
    /// A character device with its device number.
    CharDevice {
        /// Device number.
        rdev: u64,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Content {
    /// No bytes: an empty file or not a file.
    #[default]
    Empty,
    /// A few extents, in order, covering the file exactly.
    Extents(Vec<Extent>),
    /// Many extents: the root of a tree of extent pages.
    Paged(Box<PageRef>),
}

impl Content {
    /// Bytes of the file, holes included.
    pub fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Extents(extents) => extents.iter().map(Extent::len).sum(),
            Self::Paged(root) => root.len,
        }
    }

    /// True for a file without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A stretch of a file or volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Zeros that take no space.
    Hole {
        /// Bytes.
        len: u64,
    },
    /// `len` bytes at `skip` in a chunk.
    Chunk {
        /// The chunk.
        chunk: ChunkRef,
        /// Bytes of the chunk before this file's.
        skip: u32,
        /// Bytes.
        len: u32,
    },
}

impl Extent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Hole { len } => *len,
            Self::Chunk { len, .. } => u64::from(*len),
        }
    }

    /// True for a stretch of no bytes, which is never stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A chunk by identity, with a hint where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Identity.
    pub id: Id,
    /// Where it was when the reference was written. Only a hint: the index knows better.
    pub hint: Option<Location>,
}

/// The root of a tree of extent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// The page.
    pub chunk: ChunkRef,
    /// 0 for a leaf, one more for each level of nodes above the leaves.
    pub level: u8,
    /// Bytes of the file or volume below it.
    pub len: u64,
}

/// Order of a tree: component by component, parents before children.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    // `/` sorts before every other byte that a name can have; NUL cannot occur.
    let key = |c: &u8| if *c == b'/' { 0 } else { *c };
    a.iter().map(key).cmp(b.iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_component() {
        let mut paths: Vec<&[u8]> =
            vec![b"a/b", b"a.b", b"a", b"", b"a b", b"a/b/c", b"a-b", b"ab", b"a\x01"];
        paths.sort_by(|a, b| compare(a, b));
        let expected: Vec<&[u8]> = vec![b"", b"a", b"a/b", b"a/b/c", b"a\x01", b"a b", b"a-b", b"a.b", b"ab"];
        assert_eq!(paths, expected);
    }
}
