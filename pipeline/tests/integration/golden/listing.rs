//! What is in a directory, or of one file: by the system's own calls, knowing nothing of the pipeline.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tradewind_pipeline::entry::{Entry, EntryKind};

/// A file, directory or other thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    /// Relative to the root, which is empty; bytes that are no plain ASCII are escaped.
    pub(super) path: String,
    pub(super) kind: String,
    /// Permission bits, octal.
    pub(super) mode: String,
    pub(super) owner: [u32; 2],
    /// Seconds and nanoseconds.
    pub(super) mtime: [i64; 2],
    pub(super) ctime: [i64; 2],
    pub(super) inode: u64,
    pub(super) device: u64,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(super) links: u64,
    /// The first path with the same inode, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) linked_to: Option<String>,
    /// Of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    /// Of a file's contents or a link's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) blake3: Option<String>,
    /// Less than half of it takes space.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) sparse: bool,
    /// Number of a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rdev: Option<u64>,
    /// Names and values of `user` attributes, the values in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) xattrs: Vec<(String, String)>,
}

fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(n: &u64) -> bool {
    *n == 1
}

impl Item {
    /// The part of it that a restore can bring back; `None` when only root can and `root` is false.
    pub(super) fn restorable(&self, root: bool) -> Option<Self> {
        if self.rdev.is_some() && !root {
            return None;
        }
        let owner = if root { self.owner } else { [0, 0] };
        let none = [0, 0];
        Some(Self { owner, ctime: none, inode: 0, device: 0, sparse: false, ..self.clone() })
    }
}

/// `root` and all below it, ascending by path.
pub(super) fn list(root: &Path) -> Vec<Item> {
    let mut paths = vec![];
    collect(root, &mut paths);
    // As in a snapshot: component by component.
    paths.sort();
    let mut items: Vec<Item> = vec![];
    for path in paths {
        let mut item = look(root, &path);
        if item.links > 1 && item.kind != "directory" {
            let first = items.iter().find(|i| (i.device, i.inode) == (item.device, item.inode));
            item.linked_to = first.map(|i| i.path.clone());
        }
        items.push(item);
    }
    items
}

fn collect(path: &Path, into: &mut Vec<std::path::PathBuf>) {
    into.push(path.to_owned());
    if path.symlink_metadata().unwrap().is_dir() {
        fs::read_dir(path).unwrap().for_each(|e| collect(&e.unwrap().path(), into));
    }
}

fn look(root: &Path, path: &Path) -> Item {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let (mut size, mut hash, mut rdev) = (None, None, None);
    let name = if kind.is_file() {
        size = Some(meta.len());
        hash = Some(hash_of(path));
        "file"
    } else if kind.is_symlink() {
        hash = Some(hex(fs::read_link(path).unwrap().as_os_str().as_bytes()));
        "symlink"
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "fifo"
    } else if kind.is_socket() {
        "socket"
    } else {
        rdev = Some(meta.rdev());
        if kind.is_block_device() { "block device" } else { "character device" }
    };
    Item {
        path: escape(path.strip_prefix(root).unwrap().as_os_str().as_bytes()),
        kind: name.into(),
        mode: format!("{:o}", meta.mode() & 0o7777),
        owner: [meta.uid(), meta.gid()],
        mtime: [meta.mtime(), meta.mtime_nsec()],
        ctime: [meta.ctime(), meta.ctime_nsec()],
        inode: meta.ino(),
        device: meta.dev(),
        links: if kind.is_dir() { 1 } else { meta.nlink() },
        linked_to: None,
        size,
        blake3: hash,
        sparse: kind.is_file() && meta.blocks() * 512 < meta.len() / 2,
        rdev,
        xattrs: if kind.is_file() || kind.is_dir() { xattrs(path) } else { vec![] },
    }
}

fn xattrs(path: &Path) -> Vec<(String, String)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::listxattr(path, &mut names[..]).unwrap();
    let mut found = vec![];
    for name in names[..len].split(|b| *b == 0).filter(|n| n.starts_with(b"user.")) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
        found.push((escape(name), value[..len].iter().map(|b| format!("{b:02x}")).collect()));
    }
    found.sort();
    found
}

fn hash_of(path: &Path) -> String {
    let (mut file, mut hasher) = (fs::File::open(path).unwrap(), blake3::Hasher::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finalize().to_hex().to_string(),
            n => hasher.update(&buffer[..n]),
        };
    }
}

fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// The entries of a snapshot in the same form; what entries do not say (contents, sparseness) is taken from `wanted`.
pub(super) fn of_snapshot(entries: &[Entry], wanted: &[Item]) -> Vec<Item> {
    let mut items: Vec<Item> = vec![];
    for (entry, wanted) in entries.iter().zip(wanted) {
        let mut item = Item {
            path: escape(&entry.path),
            kind: String::new(),
            mode: format!("{:o}", entry.mode),
            owner: [entry.uid, entry.gid],
            mtime: [entry.mtime.seconds, entry.mtime.nanos.into()],
            ctime: [entry.ctime.seconds, entry.ctime.nanos.into()],
            inode: entry.inode,
            device: entry.device,
            links: entry.links.into(),
            linked_to: None,
            size: None,
            blake3: None,
            sparse: wanted.sparse,
            rdev: None,
            xattrs: vec![],
        };
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| name.starts_with(b"user.")) {
            item.xattrs.push((escape(name), value.iter().map(|b| format!("{b:02x}")).collect()));
        }
        item.kind = match &entry.kind {
            EntryKind::File => {
                (item.size, item.blake3) = (Some(entry.size), wanted.blake3.clone());
                "file"
            }
            EntryKind::Directory { .. } => {
                item.links = 1;
                "directory"
            }
            EntryKind::Symlink { target } => {
                item.blake3 = Some(hex(target));
                "symlink"
            }
            EntryKind::BlockDevice { rdev } => {
                item.rdev = Some(*rdev);
                "block device"
            }
            EntryKind::CharDevice { rdev } => {
                item.rdev = Some(*rdev);
                "character device"
            }
            EntryKind::Fifo => "fifo",
            EntryKind::Socket => "socket",
        }
        .into();
        if item.links > 1 {
            let first = items.iter().find(|i| (i.device, i.inode) == (item.device, item.inode));
            item.linked_to = first.map(|i| i.path.clone());
        }
        items.push(item);
    }
    items
}
