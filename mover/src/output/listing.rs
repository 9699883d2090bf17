//! What is in a repository: snapshots, entries, changes, key slots.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Message;
use super::human::{Bytes, Count, Moment, Name, plural};
use super::messages::Path;

/// Where the random half of a snapshot's id starts. The first half is a time, which neighbours nearly share.
const RANDOM_HALF: usize = 12;

/// Digits of an id in a table and in texts; the library finds a snapshot by them.
const ID_DIGITS: usize = 8;

/// The digits that tell a snapshot from others.
pub(crate) fn short(id: &str) -> &str {
    id.get(RANDOM_HALF..RANDOM_HALF + ID_DIGITS).unwrap_or(id)
}

/// Name of a volume: bytes, usually text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Volume {
    volume: String,
    volume_hex: Option<String>,
    #[serde(skip)]
    raw: Vec<u8>,
}

impl From<&[u8]> for Volume {
    fn from(name: &[u8]) -> Self {
        let Path { path, path_hex } = name.into();
        Self { volume: path, volume_hex: path_hex, raw: name.to_vec() }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Name(&self.raw).fmt(f)
    }
}

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VolumeKind {
    /// A directory.
    Tree,
    /// A device, an image file or a stream.
    Block,
}

/// One snapshot.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) kind: VolumeKind,
    pub(crate) time: Moment,
    pub(crate) started: Moment,
    pub(crate) parent: Option<String>,
    pub(crate) size_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) others: u64,
    pub(crate) skipped: u64,
    pub(crate) mounts: u64,
    pub(crate) live: bool,
    pub(crate) tags: BTreeMap<String, String>,
}

/// Result of `snapshots`.
#[derive(Debug, Serialize)]
pub(crate) struct Snapshots {
    pub(crate) command: &'static str,
    pub(crate) repository: String,
    pub(crate) snapshots: Vec<Snapshot>,
}

impl Message for Snapshots {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.snapshots.is_empty() {
            return f.write_str("no snapshots");
        }
        let widest = self.snapshots.iter().map(|s| s.volume.to_string().chars().count());
        let width = widest.max().unwrap_or(0).max("VOLUME".len());
        write!(
            f,
            "{:ID_DIGITS$}  {:19}  {:5}  {:width$}  {:>9}  {:>9}  {:>7}  TAGS",
            "ID", "TIME (UTC)", "KIND", "VOLUME", "SIZE", "NEW", "SKIPPED"
        )?;
        for s in &self.snapshots {
            let kind = match s.kind {
                VolumeKind::Tree => "tree",
                VolumeKind::Block => "block",
            };
            let tags: Vec<String> =
                s.tags.iter().map(|(k, v)| Name(format!("{k}={v}").as_bytes()).to_string()).collect();
            let line = format!(
                "{:ID_DIGITS$}  {}  {kind:5}  {:width$}  {:>9}  {:>9}  {:>7}  {}",
                short(&s.id),
                s.time,
                s.volume.to_string(),
                Bytes(s.size_bytes),
                Bytes(s.stored_bytes),
                Count(s.skipped),
                tags.join(" ")
            );
            write!(f, "\n{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

/// One entry of a tree, for `ls`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    pub(crate) path: Path,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size_bytes: u64,
    pub(crate) mtime: Moment,
    pub(crate) links: u32,
    pub(crate) target: Option<String>,
    pub(crate) target_hex: Option<String>,
    pub(crate) mount: bool,
    /// How people see it.
    #[serde(skip)]
    pub(crate) long: bool,
    /// The raw path.
    #[serde(skip)]
    pub(crate) raw: Vec<u8>,
    /// The raw target of a symlink.
    #[serde(skip)]
    pub(crate) raw_target: Option<Vec<u8>>,
}

impl Message for Entry {
    const TYPE: &'static str = "entry";
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.long {
            let size = Count(self.size_bytes);
            let mode = permissions(self.kind, self.mode);
            write!(f, "{mode}  {:>7} {:>7}  {size:>16}  {}  ", self.uid, self.gid, self.mtime)?;
        }
        write!(f, "{}", Name(&self.raw))?;
        if self.kind == EntryKind::Directory && !self.raw.is_empty() {
            f.write_str("/")?;
        }
        if self.long {
            if let Some(target) = &self.raw_target {
                write!(f, " -> {}", Name(target))?;
            }
            if self.mount {
                f.write_str("  (mount point, not entered)")?;
            }
        }
        Ok(())
    }
}

/// `drwxr-xr-x`, as `ls -l` writes it.
fn permissions(kind: EntryKind, mode: u32) -> String {
    let first = match kind {
        EntryKind::File => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::BlockDevice => 'b',
        EntryKind::CharDevice => 'c',
        EntryKind::Fifo => 'p',
        EntryKind::Socket => 's',
    };
    let mut text = String::from(first);
    // Owner, group, others: the special bit replaces the x.
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        text.push(if mode >> shift & 4 != 0 { 'r' } else { '-' });
        text.push(if mode >> shift & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, mode >> shift & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// How two snapshots differ at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChangeKind {
    Added,
    Removed,
    /// Other contents, or another kind of entry.
    Modified,
    /// Same contents, other owner, mode, time or attributes.
    Metadata,
}

/// One difference, for `diff`: a path of a tree, or a stretch of a block volume.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Change {
    pub(crate) change: ChangeKind,
    pub(crate) path: Option<String>,
    pub(crate) path_hex: Option<String>,
    pub(crate) offset_bytes: Option<u64>,
    pub(crate) length_bytes: Option<u64>,
    pub(crate) size_before_bytes: Option<u64>,
    pub(crate) size_after_bytes: Option<u64>,
    /// The raw path.
    #[serde(skip)]
    pub(crate) raw: Vec<u8>,
}

impl Message for Change {
    const TYPE: &'static str = "change";
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.change {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Modified => 'M',
            ChangeKind::Metadata => 'm',
        };
        match (self.offset_bytes, self.length_bytes) {
            (Some(offset), Some(length)) => {
                let end = offset.saturating_add(length);
                write!(f, "{mark}  bytes {offset} to {end} ({})", Bytes(length))
            }
            _ => write!(f, "{mark}  {}", Name(&self.raw)),
        }
    }
}

/// One key slot.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Slot {
    pub(crate) slot: String,
    pub(crate) kind: &'static str,
    pub(crate) label: String,
    pub(crate) created: Moment,
    /// It opened the repository this time.
    pub(crate) opened: bool,
}

/// Result of `key list`.
#[derive(Debug, Serialize)]
pub(crate) struct Slots {
    pub(crate) command: &'static str,
    pub(crate) slots: Vec<Slot>,
}

impl Message for Slots {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.slots.iter().map(|s| s.slot.len()).max().unwrap_or(0).max("SLOT".len());
        write!(f, "  {:width$}  {:10}  {:19}  LABEL", "SLOT", "KIND", "CREATED (UTC)")?;
        for s in &self.slots {
            let mark = if s.opened { '*' } else { ' ' };
            let label = Name(s.label.as_bytes());
            write!(f, "\n{mark} {:width$}  {:10}  {}", s.slot, s.kind, s.created)?;
            if !s.label.is_empty() {
                write!(f, "  {label}")?;
            }
        }
        Ok(())
    }
}

/// The end of `ls`, for programs only.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) command: &'static str,
    pub(crate) snapshot: String,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) entries: u64,
}

impl Message for Listed {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", plural(self.entries, "entry", "entries"))
    }
}

/// The end of `diff`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Differed {
    pub(crate) command: &'static str,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) added: u64,
    pub(crate) removed: u64,
    pub(crate) modified: u64,
    pub(crate) metadata: u64,
}

impl Differed {
    /// Counts one change.
    pub(crate) fn count(&mut self, change: ChangeKind) {
        *match change {
            ChangeKind::Added => &mut self.added,
            ChangeKind::Removed => &mut self.removed,
            ChangeKind::Modified => &mut self.modified,
            ChangeKind::Metadata => &mut self.metadata,
        } += 1;
    }
}

impl Message for Differed {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Differed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [added, removed, modified, metadata] =
            [self.added, self.removed, self.modified, self.metadata].map(Count);
        write!(f, "{added} added, {removed} removed, {modified} modified, {metadata} with other metadata")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_as_ls_writes_them() {
        assert_eq!(permissions(EntryKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(permissions(EntryKind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(permissions(EntryKind::File, 0o6644), "-rwSr-Sr--");
        assert_eq!(permissions(EntryKind::CharDevice, 0o000), "c---------");
    }

    #[test]
    fn a_table_of_snapshots() {
        let snapshot = Snapshot {
            id: "0123456789abcdef01234567".to_owned(),
            volume: b"host:/srv/data"[..].into(),
            kind: VolumeKind::Tree,
            time: Moment { seconds: 0, nanos: 0 },
            started: Moment { seconds: 0, nanos: 0 },
            parent: None,
            size_bytes: 1 << 30,
            stored_bytes: 1 << 20,
            files: 0,
            directories: 0,
            others: 0,
            skipped: 0,
            mounts: 0,
            live: false,
            tags: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        };
        let list = Snapshots { command: "snapshots", repository: "/r".to_owned(), snapshots: vec![snapshot] };
        assert_eq!(
            list.to_string(),
            "ID        TIME (UTC)           KIND   VOLUME               SIZE        NEW  SKIPPED  TAGS\n\
             cdef0123  1970-01-01 00:00:00  tree   host:/srv/data   1.00 GiB   1.00 MiB        0  a=b"
        );
    }
}
