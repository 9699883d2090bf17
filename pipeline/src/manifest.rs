//! Manifests: what a snapshot is. Creating one is the commit, and nothing else is.
//!
//! `snapshots/<volume key>/<session id>` holds a [`Manifest`], or a [`Tombstone`] where a session was fenced before
//! it could commit: both are made by create-if-absent at the same key, so exactly one of them exists. A snapshot is
//! forgotten by creating `<the same key>.forgotten` beside it; the manifest stays until garbage collection.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chunk::valid_block_chunk;
use crate::entry::PageRef;
use crate::error::{Error, Result};
use crate::pack::SessionId;
use crate::repository::{CdcSizes, Created, MAX_RECORD, Operation, Repository, create_once};
use crate::seal::object::ObjectClass;

pub mod catalog;
pub mod json;
pub mod skipped;

pub use json::Text;
pub(crate) use json::hex_serde;

/// Prefix of all manifests' keys.
pub const SNAPSHOTS_PREFIX: &str = "snapshots/";

/// Most skipped items that a manifest lists; [`Manifest::skipped`] counts them all.
pub const MAX_SKIPPED_ITEMS: usize = 1_000;

/// How many earlier snapshots of its volume a manifest names.
pub const PREDECESSORS: usize = 8;

/// Longest volume name, in bytes.
pub const MAX_VOLUME_NAME: usize = 8 << 10;

const FORGOTTEN: &str = ".forgotten";

/// Name of a volume: what its snapshots have in common. Bytes, usually text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeName(Text);

impl std::fmt::Display for VolumeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl VolumeName {
    /// A name that the user chose.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is empty or longer than [`MAX_VOLUME_NAME`].
    pub fn new(name: impl Into<Vec<u8>>) -> Result<Self> {
        let name: Vec<u8> = name.into();
        if name.is_empty() || name.len() > MAX_VOLUME_NAME {
            return Err(Error::Usage(format!("a volume name has 1 to {MAX_VOLUME_NAME} bytes")));
        }
        Ok(Self(Text(name)))
    }

    /// The default name: `host:canonical path`.
    ///
    /// # Errors
    /// As [`VolumeName::new`].
    pub fn of_path(host: &str, canonical: &Path) -> Result<Self> {
        let path = std::os::unix::ffi::OsStrExt::as_bytes(canonical.as_os_str());
        Self::new([host.as_bytes(), b":", path].concat())
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }
}

/// Keyed hash of a volume name, as it appears in object names: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeKey(pub [u8; 16]);

hex_serde!(VolumeKey);

impl std::fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl VolumeKey {
    /// The key of 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut out = [0; 16];
        hex::decode_to_slice(text, &mut out).ok()?;
        Some(Self(out))
    }
}

/// Where a snapshot is or would be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotKey {
    /// The volume.
    pub volume: VolumeKey,
    /// The session, which is also the snapshot's id.
    pub id: SessionId,
}

impl SnapshotKey {
    /// Key of the manifest in the store.
    pub fn key(&self) -> String {
        format!("{SNAPSHOTS_PREFIX}{}/{}", self.volume, self.id)
    }

    /// Key of the mark that says that the snapshot is forgotten. Sorts right after the manifest.
    pub fn forgotten_key(&self) -> String {
        self.key() + FORGOTTEN
    }

    /// Reads a key below [`SNAPSHOTS_PREFIX`]; true: it is the mark of a forgotten snapshot.
    pub fn parse(key: &str) -> Option<(Self, bool)> {
        let (volume, name) = key.strip_prefix(SNAPSHOTS_PREFIX)?.split_once('/')?;
        let id = name.strip_suffix(FORGOTTEN).unwrap_or(name);
        let parsed = Self { volume: VolumeKey::parse(volume)?, id: id.parse().ok()? };
        let forgotten = id.len() != name.len();
        // One spelling only: upper case names another object.
        let canonical = if forgotten { parsed.forgotten_key() } else { parsed.key() };
        (canonical == key).then_some((parsed, forgotten))
    }
}

/// What was backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// A block device or image: one stretch of bytes.
    Block,
    /// A directory.
    Tree,
}

/// Where a snapshot came from. For people; nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceInfo {
    /// Path as the user gave it, made canonical; `-` for standard input, and words for what has no path.
    pub path: Text,
    /// Name of the machine.
    pub host: String,
    /// The volume was in use and may be inconsistent.
    pub live: bool,
    /// How it was read: `uring` or `pread`.
    pub engine: String,
}

/// How many of what a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks, devices, fifos, sockets.
    pub others: u64,
    /// Directories at which another file system starts, which was not entered.
    pub mounts: u64,
}

/// What making the snapshot took. Bytes unless said otherwise; see [`crate::progress::Counter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Read from the source.
    pub read: u64,
    /// Holes and zeros.
    pub holes: u64,
    /// Known from the parent or the repository.
    pub reused: u64,
    /// New, before compression.
    pub new: u64,
    /// New, compressed and sealed.
    pub stored: u64,
    /// Acknowledged by the store, of every kind of object.
    pub uploaded: u64,
    /// New chunks and pages, in pieces.
    pub chunks_new: u64,
    /// Known chunks and pages, in pieces.
    pub chunks_reused: u64,
    /// Packs.
    pub packs: u64,
    /// Files taken over from the parent without being opened.
    pub files_unchanged: u64,
    /// Wall time in milliseconds.
    pub wall_ms: u64,
}

/// An item that is not in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedItem {
    /// Path relative to the root.
    pub path: Text,
    /// Why.
    pub reason: String,
}

/// A snapshot. Fields that a later version adds are ignored by this one.
///
/// What [`crate::session::Session::commit`] sets itself is marked with *(commit)*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Snapshot id: that of the session that made it. *(commit)*
    pub id: SessionId,
    /// The volume. *(commit)*
    pub volume: VolumeName,
    /// The newest snapshots of the volume when this one was committed, newest first, at most [`PREDECESSORS`]. One
    /// that is neither there nor recorded as forgotten has been lost or suppressed. *(commit)*
    #[serde(default)]
    pub predecessors: Vec<SessionId>,
    /// The snapshot that unchanged data was taken over from.
    #[serde(default)]
    pub parent: Option<SessionId>,
    /// What was backed up.
    pub kind: VolumeKind,
    /// Root of the tree of extent pages (block) or of entry pages (tree). `None`: there is nothing.
    #[serde(with = "json::page", default)]
    pub root: Option<PageRef>,
    /// Size in bytes: of the volume, or of all regular files.
    pub size: u64,
    /// Contents of a tree.
    #[serde(default)]
    pub counts: Counts,
    /// Bytes of a block volume's chunk.
    #[serde(default)]
    pub block_chunk: Option<u32>,
    /// Sizes that large files of a tree were cut with.
    #[serde(default)]
    pub cdc: Option<CdcSizes>,
    /// Where it came from.
    #[serde(default)]
    pub source: SourceInfo,
    /// What the user marked it with.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Start by the store's clock, in milliseconds since the Unix epoch. *(commit)*
    pub started_ms: u64,
    /// End by the store's clock, in milliseconds since the Unix epoch. *(commit)*
    pub finished_ms: u64,
    /// Start by the clock of the machine that ran it, in milliseconds since the Unix epoch. Compared with that
    /// machine's change times to tell which files were left alone since, and with nothing else.
    #[serde(default)]
    pub local_started_ms: u64,
    /// Items that are not in the snapshot, all of them.
    #[serde(default)]
    pub skipped: u64,
    /// The first of them: at most [`MAX_SKIPPED_ITEMS`], and [`skipped::MAX_SKIPPED_BYTES`] in all.
    #[serde(default)]
    pub skipped_items: Vec<SkippedItem>,
    /// What it took.
    #[serde(default)]
    pub statistics: Statistics,
    /// Key epoch of its packs. *(commit)*
    pub epoch: u32,
    /// Newest generation of condemned packs that it is known not to refer to. Starts as
    /// [`crate::session::Session::generation`].
    #[serde(default)]
    pub generation: u32,
    /// Name and version of the program. *(commit)*
    #[serde(default)]
    pub tool: String,
    /// Owners, device nodes, setuid and trusted attributes were recorded.
    #[serde(default)]
    pub privileged_metadata: bool,
    /// Patterns of what was left out on purpose.
    #[serde(default)]
    pub excludes: Vec<Text>,
}

impl Manifest {
    /// A manifest of a volume's contents, with nothing else in it yet.
    pub fn new(volume: VolumeName, kind: VolumeKind, root: Option<PageRef>, size: u64) -> Self {
        Self {
            id: SessionId([0; 12]),
            volume,
            predecessors: Vec::new(),
            parent: None,
            kind,
            root,
            size,
            counts: Counts::default(),
            block_chunk: None,
            cdc: None,
            source: SourceInfo::default(),
            tags: BTreeMap::new(),
            started_ms: 0,
            finished_ms: 0,
            local_started_ms: 0,
            skipped: 0,
            skipped_items: Vec::new(),
            statistics: Statistics::default(),
            epoch: 0,
            generation: 0,
            tool: String::new(),
            privileged_metadata: false,
            excludes: Vec::new(),
        }
    }

    /// True when the sizes that the volume was cut with are within the bounds of the format.
    fn has_possible_chunks(&self) -> bool {
        self.block_chunk.is_none_or(valid_block_chunk) && self.cdc.is_none_or(|sizes| sizes.is_valid())
    }

    /// True when the snapshot has each of `tags`.
    pub fn has_tags(&self, tags: &BTreeMap<String, String>) -> bool {
        tags.iter().all(|(k, v)| self.tags.get(k) == Some(v))
    }
}

/// Says that a session was fenced: it can never commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The session.
    pub session: SessionId,
    /// Why, for people.
    pub reason: String,
    /// When, by the store's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Says that a snapshot is not wanted any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The snapshot.
    pub snapshot: SessionId,
    /// Why, for people: the rule or the user.
    pub reason: String,
    /// When, by the store's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// What is stored below `snapshots/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub(crate) enum Record {
    /// At a snapshot's key.
    Snapshot(Box<Manifest>),
    /// At a snapshot's key.
    Tombstone(Tombstone),
    /// At a snapshot's key with `.forgotten` after it.
    Forgotten(Forgotten),
}

/// What is at a snapshot's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// A snapshot.
    Snapshot(Box<Manifest>),
    /// The session was fenced.
    Tombstone(Tombstone),
}

impl Record {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::Internal(format!("manifest: {e}")))
    }
}

/// Reads what is at `at`. `None`: nothing.
///
/// # Errors
/// [`Error::Damaged`] when it is not a commit of that snapshot; store errors.
pub async fn read(repository: &Repository, at: SnapshotKey) -> Result<Option<Commit>> {
    let key = at.key();
    let Some(plain) = repository.get(ObjectClass::Manifest, &key, MAX_RECORD).await? else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&plain).map_err(|e| {
        Error::damaged(&key, format!("not a manifest that this version knows: {}", shape(&e)))
    })?;
    let (id, commit) = match record {
        Record::Snapshot(m) if repository.volume_key(&m.volume) != at.volume => {
            return Err(Error::damaged(&key, "manifest of another volume"));
        }
        // Buffers are made by these sizes.
        Record::Snapshot(m) if !m.has_possible_chunks() => {
            return Err(Error::damaged(&key, "chunk sizes are beyond the format's bounds"));
        }
        Record::Snapshot(m) => (m.id, Commit::Snapshot(m)),
        Record::Tombstone(t) => (t.session, Commit::Tombstone(t)),
        Record::Forgotten(_) => return Err(Error::damaged(&key, "a forgotten mark in a manifest's place")),
    };
    if id != at.id {
        return Err(Error::damaged(&key, "manifest of another snapshot"));
    }
    Ok(Some(commit))
}

/// Reads the mark of a forgotten snapshot. `None`: it is not forgotten.
///
/// # Errors
/// [`Error::Damaged`] when the mark is not what [`forget`] made: the snapshot then counts as not forgotten, because
/// partial knowledge never deletes, and a stranger cannot hide one.
pub async fn read_forgotten(repository: &Repository, at: SnapshotKey) -> Result<Option<Forgotten>> {
    let key = at.forgotten_key();
    let Some(plain) = repository.get(ObjectClass::Manifest, &key, MAX_RECORD).await? else {
        return Ok(None);
    };
    match serde_json::from_slice(&plain) {
        Ok(Record::Forgotten(f)) if f.snapshot == at.id => Ok(Some(f)),
        _ => Err(Error::damaged(&key, "not the mark of a forgotten snapshot")),
    }
}

/// Marks the snapshot `at` as forgotten. Deletes nothing: the mark hides it and lets garbage collection treat it as
/// dead; until then removing the mark brings it back. True: it was not forgotten before.
///
/// # Errors
/// [`Error::Usage`] when there is no such snapshot; store errors.
pub async fn forget(repository: &Repository, at: SnapshotKey, reason: &str) -> Result<bool> {
    repository.allow(Operation::Write)?;
    if let Err(e) = repository.store().stat(&at.key()).await {
        return Err(match e.kind {
            crate::store::StoreErrorKind::NotFound => Error::Usage(format!("there is no snapshot {}", at.id)),
            _ => e.into(),
        });
    }
    let at_ms = repository.now_ms().await?;
    let record = Record::Forgotten(Forgotten { snapshot: at.id, reason: reason.to_owned(), at_ms });
    let key = at.forgotten_key();
    let sealed = repository.seal(ObjectClass::Manifest, &key, &record.encode()?)?;
    match create_once(&**repository.store(), &key, sealed).await? {
        Created::Yes => Ok(true),
        // Somebody forgot it already; what stands there must say so.
        Created::Taken => read_forgotten(repository, at).await.map(|_| false),
    }
}

/// Makes sure that session `at` can never commit, by taking its manifest's place. Returns what stands there now:
/// the tombstone, ours or an earlier one, or the snapshot if the session was faster.
///
/// Only for a session whose owner is dead or whose lease has expired: fencing a live one costs its owner the run,
/// though never data.
///
/// # Errors
/// [`Error::Repository`] on a single-writer repository, where there is nothing to fence with; store errors.
pub async fn fence(repository: &Repository, at: SnapshotKey, reason: &str) -> Result<Commit> {
    repository.allow(Operation::Write)?;
    if repository.single_writer() {
        return Err(Error::Repository {
            location: repository.location(),
            what: "a session cannot be fenced in a single-writer repository".into(),
            hint: None,
        });
    }
    let at_ms = repository.now_ms().await?;
    let tombstone = Tombstone { session: at.id, reason: reason.to_owned(), at_ms };
    let key = at.key();
    let plain = Record::Tombstone(tombstone.clone()).encode()?;
    match create_once(&**repository.store(), &key, repository.seal(ObjectClass::Manifest, &key, &plain)?)
        .await?
    {
        Created::Yes => Ok(Commit::Tombstone(tombstone)),
        Created::Taken => {
            read(repository, at).await?.ok_or_else(|| Error::damaged(&key, "exists and cannot be read"))
        }
    }
}

/// A JSON error without any of the content.
pub(crate) fn shape(error: &serde_json::Error) -> String {
    format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
}

#[cfg(test)]
mod tests;
