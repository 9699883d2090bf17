//! Entry pages: a directory tree as one stream of entries, cut into pages under a tree of nodes.
//!
//! ```text
//! page: version 1, then varint count, then for each entry:
//!         shared, suffix   path: bytes shared with the path before (varint), the rest (string)
//!         kind          1  0 file, 1 directory, 2 mount point, 3 symlink, 4 block, 5 char device, 6 fifo, 7 socket
//!         mode uid gid mtime(signed, nanos) ctime(signed, nanos) inode device links flags     varints
//!         file: size (varint), content; symlink: target (string); device: rdev (varint)
//!         xattrs: varint count, then name and value (strings), names ascending
//!       content: 0 empty | 1 varint count, then each 0 len (hole) or 1 ordinal skip len (chunk) | 2 ordinal level len
//!       ids: varint count, 32 bytes each, in order of first use; `ordinal` counts into them
//! node: version 1, level 1, varint count, then for each child: first and last path (strings), entries and bytes
//!       below it (varints), id 32
//! ```
//! A page ends where a keyed hash of the last path says so, once it has 16 KiB, and at 256 KiB or 1 MiB of written out
//! paths at the latest: an inserted file changes one page. Nodes end likewise by their children's ids.

use std::cmp::Ordering;

use super::codec::{Reader, Writer};
use super::extents::PageSink;
use super::{Malformed, hints};
use crate::entry::{ChunkRef, Content, Entry, EntryKind, Extent, PageRef, Time, compare};
use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::seal::MasterKey;

const VERSION: u8 = 1;

/// Bytes after which a page may end, and must end.
const PAGE_BYTES: std::ops::Range<usize> = 16 << 10..256 << 10;

/// A page also ends when its paths, written out, have this many bytes: neighbours share most of a deep path, and a
/// reader writes them out.
const PATH_BYTES: usize = 1 << 20;

/// A page may end after one in so many entries: 256 more at about 100 bytes each, for pages of 40 KiB.
const PAGE_ODDS: u64 = 256;

/// Children after which a node may end.
const NODE_CHILDREN: usize = 64;

/// Highest node: more than any tree needs, and a bound for readers.
pub const MAX_LEVEL: u8 = 12;

/// Longest path in a tree, bytes. Readers refuse longer ones; sources stay far below.
pub const MAX_PATH: usize = 64 << 10;

/// A child of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Path of the first entry below it.
    pub first: Vec<u8>,
    /// Path of the last entry below it.
    pub last: Vec<u8>,
    /// Entries below it.
    pub entries: u64,
    /// Bytes of all files below it.
    pub bytes: u64,
    /// The page or node.
    pub chunk: ChunkRef,
}

/// Type of the page at `level` of an entry tree.
pub fn kind(level: u8) -> ObjectType {
    if level == 0 { ObjectType::Entries } else { ObjectType::EntryNode }
}

#[derive(Default)]
struct Ids {
    list: Vec<ChunkRef>,
    ordinals: std::collections::HashMap<Id, u64>,
}

impl Ids {
    fn ordinal(&mut self, chunk: &ChunkRef) -> u64 {
        *self.ordinals.entry(chunk.id).or_insert_with(|| {
            self.list.push(*chunk);
            self.list.len() as u64 - 1
        })
    }
}

/// Builds the tree of pages from entries in order, holding one page of each level.
pub struct EntryWriter {
    boundary: [u8; 32],
    page: Writer,
    ids: Ids,
    count: u64,
    bytes: u64,
    /// Bytes of the page's paths, written out.
    paths: usize,
    first: Vec<u8>,
    last: Vec<u8>,
    levels: Vec<Vec<Child>>,
}

impl std::fmt::Debug for EntryWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EntryWriter").field("last", &self.last).finish_non_exhaustive()
    }
}

/// The keyed hash of a path that decides where pages and bundles end.
pub fn path_hash(key: &[u8; 32], path: &[u8]) -> u64 {
    let hash = blake3::keyed_hash(key, path);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

/// The key of [`path_hash`].
pub fn boundary_key(master: &MasterKey) -> [u8; 32] {
    master.derive("tradewind v1 path boundary", &[])
}

impl EntryWriter {
    /// A writer for the repository of `master`.
    pub fn new(master: &MasterKey) -> Self {
        Self {
            boundary: boundary_key(master),
            page: Writer::default(),
            ids: Ids::default(),
            count: 0,
            bytes: 0,
            paths: 0,
            first: Vec::new(),
            last: Vec::new(),
            levels: Vec::new(),
        }
    }

    /// Appends an entry. Its path must come after all paths before.
    ///
    /// # Errors
    /// [`Error::Internal`] when it does not; otherwise as [`PageSink::store_page`].
    pub fn push(&mut self, entry: &Entry, sink: &mut impl PageSink) -> Result<()> {
        let started = self.count > 0 || !self.levels.is_empty();
        if started && compare(&self.last, &entry.path) != Ordering::Less {
            return Err(Error::Internal("entries out of order".into()));
        }
        let shared = if self.count == 0 {
            self.first.clone_from(&entry.path);
            0
        } else {
            self.last.iter().zip(&entry.path).take_while(|(a, b)| a == b).count()
        };
        encode_entry(&mut self.page, entry, shared, &mut self.ids);
        if entry.content.len() != entry.size {
            let (has, size) = (entry.content.len(), entry.size);
            return Err(Error::Internal(format!("an entry of {size} bytes with {has} bytes of contents")));
        }
        self.last.clone_from(&entry.path);
        self.count += 1;
        // Sparse files of exabytes are possible: the sum is for people, so it may saturate.
        self.bytes = self.bytes.saturating_add(entry.size);
        self.paths += entry.path.len();
        let len = self.page.len() + 32 * self.ids.list.len();
        let may = len >= PAGE_BYTES.start && path_hash(&self.boundary, &entry.path).is_multiple_of(PAGE_ODDS);
        if may || len >= PAGE_BYTES.end || self.paths >= PATH_BYTES { self.close_page(sink) } else { Ok(()) }
    }

    fn close_page(&mut self, sink: &mut impl PageSink) -> Result<()> {
        let mut content = Writer::default();
        self.paths = 0;
        content.byte(VERSION);
        content.varint(self.count);
        content.bytes(&std::mem::take(&mut self.page).into_vec());
        let ids = std::mem::take(&mut self.ids).list;
        content.varint(ids.len() as u64);
        for chunk in &ids {
            content.bytes(&chunk.id.0);
        }
        let chunk = sink.store_page(ObjectType::Entries, &content.into_vec(), &ids)?;
        let child = Child {
            first: std::mem::take(&mut self.first),
            last: self.last.clone(),
            entries: std::mem::take(&mut self.count),
            bytes: std::mem::take(&mut self.bytes),
            chunk,
        };
        self.push_child(0, child, sink)
    }

    fn push_child(&mut self, level: usize, child: Child, sink: &mut impl PageSink) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        let ends = child.chunk.id.0[31] < 8;
        let here = &mut self.levels[level];
        here.push(child);
        let bytes: usize = here.iter().map(|c| c.first.len() + c.last.len() + 50).sum();
        let may = here.len() >= NODE_CHILDREN && ends;
        // Two children at least, or a tree of very long paths would never get narrower.
        if here.len() >= 2 && (may || bytes >= PAGE_BYTES.end) {
            self.close_node(level, sink)
        } else {
            Ok(())
        }
    }

    fn close_node(&mut self, level: usize, sink: &mut impl PageSink) -> Result<()> {
        let children = std::mem::take(&mut self.levels[level]);
        let (Some(first), Some(last)) = (children.first(), children.last()) else { return Ok(()) };
        let node_level = u8::try_from(level + 1).unwrap_or(u8::MAX);
        let content = encode_node(node_level, &children);
        let refs: Vec<ChunkRef> = children.iter().map(|c| c.chunk).collect();
        let chunk = sink.store_page(ObjectType::EntryNode, &content, &refs)?;
        let child = Child {
            first: first.first.clone(),
            last: last.last.clone(),
            entries: children.iter().map(|c| c.entries).sum(),
            bytes: children.iter().fold(0, |sum, c| sum.saturating_add(c.bytes)),
            chunk,
        };
        self.push_child(level + 1, child, sink)
    }

    /// Stores what is still open and returns the root; its `len` is the sum of all file sizes in bytes.
    ///
    /// # Errors
    /// As [`EntryWriter::push`]; [`Error::Internal`] for a tree without a single entry.
    pub fn finish(mut self, sink: &mut impl PageSink) -> Result<PageRef> {
        if self.count > 0 {
            self.close_page(sink)?;
        }
        let mut level = 0;
        while level < self.levels.len() {
            let top = level + 1 == self.levels.len();
            match (top, &self.levels[level][..]) {
                (true, [child]) => {
                    let level = u8::try_from(level).unwrap_or(u8::MAX);
                    return Ok(PageRef { chunk: child.chunk, level, len: child.bytes });
                }
                (_, []) => level += 1,
                _ => {
                    self.close_node(level, sink)?;
                    level += 1;
                }
            }
        }
        Err(Error::Internal("a tree without entries".into()))
    }
}

fn encode_entry(out: &mut Writer, entry: &Entry, shared: usize, ids: &mut Ids) {
    out.varint(shared as u64);
    out.string(&entry.path[shared..]);
    out.byte(match &entry.kind {
        EntryKind::File => 0,
        EntryKind::Directory { mount: false } => 1,
        EntryKind::Directory { mount: true } => 2,
        EntryKind::Symlink { .. } => 3,
        EntryKind::BlockDevice { .. } => 4,
        EntryKind::CharDevice { .. } => 5,
        EntryKind::Fifo => 6,
        EntryKind::Socket => 7,
    });
    for n in [entry.mode, entry.uid, entry.gid] {
        out.varint(u64::from(n));
    }
    for time in [entry.mtime, entry.ctime] {
        out.signed(time.seconds);
        out.varint(u64::from(time.nanos));
    }
    for n in [entry.inode, entry.device, u64::from(entry.links), u64::from(entry.flags)] {
        out.varint(n);
    }
    match &entry.kind {
        EntryKind::File => {
            out.varint(entry.size);
            encode_content(out, &entry.content, ids);
        }
        EntryKind::Symlink { target } => out.string(target),
        EntryKind::BlockDevice { rdev } | EntryKind::CharDevice { rdev } => out.varint(*rdev),
        EntryKind::Directory { .. } | EntryKind::Fifo | EntryKind::Socket => {}
    }
    out.varint(entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        out.string(name);
        out.string(value);
    }
}

fn encode_content(out: &mut Writer, content: &Content, ids: &mut Ids) {
    match content {
        Content::Empty => out.byte(0),
        Content::Extents(extents) => {
            out.byte(1);
            out.varint(extents.len() as u64);
            for extent in extents {
                match extent {
                    Extent::Hole { len } => {
                        out.byte(0);
                        out.varint(*len);
                    }
                    Extent::Chunk { chunk, skip, len } => {
                        out.byte(1);
                        out.varint(ids.ordinal(chunk));
                        out.varint(u64::from(*skip));
                        out.varint(u64::from(*len));
                    }
                }
            }
        }
        Content::Paged(root) => {
            out.byte(2);
            out.varint(ids.ordinal(&root.chunk));
            out.byte(root.level);
            out.varint(root.len);
        }
    }
}

fn encode_node(level: u8, children: &[Child]) -> Vec<u8> {
    let mut out = Writer::default();
    out.byte(VERSION);
    out.byte(level);
    out.varint(children.len() as u64);
    for child in children {
        out.string(&child.first);
        out.string(&child.last);
        out.varint(child.entries);
        out.varint(child.bytes);
        out.bytes(&child.chunk.id.0);
    }
    out.into_vec()
}

/// Decodes the plaintext of a page of entries.
///
/// # Errors
/// What does not fit.
pub fn decode_page(page: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let content = super::content(page)?;
    let mut input = Reader::new(content);
    if input.byte()? != VERSION {
        return Err("entry page of a later version");
    }
    let count = input.count(14)?;
    // The ids come after the entries that use them: pass over the entries once to find them.
    let mut scan = input.clone();
    for _ in 0..count {
        decode_entry(&mut scan, &[], None)?;
    }
    let ids = (0..scan.count(32)?).map(|_| Ok(Id(scan.array()?))).collect::<Result<Vec<_>, Malformed>>()?;
    scan.end()?;
    let refs = hints(page, &ids)?;
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    let mut paths = 0;
    for _ in 0..count {
        let before = entries.last().map_or(&[][..], |e| &e.path);
        let entry = decode_entry(&mut input, before, Some(&refs))?;
        if !entries.is_empty() && compare(before, &entry.path) != Ordering::Less {
            return Err("entries out of order");
        }
        paths += entry.path.len();
        if paths > PATH_BYTES + MAX_PATH {
            return Err("paths too long");
        }
        entries.push(entry);
    }
    if entries.is_empty() { Err("entry page without entries") } else { Ok(entries) }
}

/// Decodes one entry; without `ids` only to get past it, then its path and chunks are placeholders.
fn decode_entry(input: &mut Reader<'_>, before: &[u8], ids: Option<&[ChunkRef]>) -> Result<Entry, Malformed> {
    let shared = usize::try_from(input.varint()?).map_err(|_| "path")?;
    let suffix = input.string()?;
    let mut path = Vec::new();
    if ids.is_some() {
        path.extend_from_slice(before.get(..shared).ok_or("path")?);
        path.extend_from_slice(suffix);
        if path.len() > MAX_PATH {
            return Err("path too long");
        }
    }
    let kind = input.byte()?;
    let (mode, uid, gid) = (input.varint32()?, input.varint32()?, input.varint32()?);
    let mut time = || -> Result<Time, Malformed> {
        let time = Time { seconds: input.signed()?, nanos: input.varint32()? };
        if time.nanos < 1_000_000_000 { Ok(time) } else { Err("time") }
    };
    let (mtime, ctime) = (time()?, time()?);
    let (inode, device, links, flags) =
        (input.varint()?, input.varint()?, input.varint32()?, input.varint32()?);
    let (mut size, mut content) = (0, Content::Empty);
    let kind = match kind {
        0 => {
            size = input.varint()?;
            content = decode_content(input, size, ids)?;
            EntryKind::File
        }
        1 | 2 => EntryKind::Directory { mount: kind == 2 },
        3 => EntryKind::Symlink { target: input.string()?.to_vec() },
        4 => EntryKind::BlockDevice { rdev: input.varint()? },
        5 => EntryKind::CharDevice { rdev: input.varint()? },
        6 => EntryKind::Fifo,
        7 => EntryKind::Socket,
        _ => return Err("unknown kind of entry"),
    };
    if mode > 0o7777 {
        return Err("mode");
    }
    let mut xattrs = Vec::new();
    for _ in 0..input.count(2)? {
        xattrs.push((input.string()?.to_vec(), input.string()?.to_vec()));
    }
    Ok(Entry { path, kind, mode, uid, gid, mtime, ctime, size, inode, device, links, flags, xattrs, content })
}

fn decode_content(input: &mut Reader<'_>, size: u64, ids: Option<&[ChunkRef]>) -> Result<Content, Malformed> {
    let placeholder = ChunkRef { id: Id([0; 32]), hint: None };
    let chunk = |ordinal: u64| match ids {
        None => Ok(placeholder),
        Some(ids) => {
            usize::try_from(ordinal).ok().and_then(|n| ids.get(n)).copied().ok_or("extent names no chunk")
        }
    };
    let (content, len) = match input.byte()? {
        0 => (Content::Empty, 0),
        1 => {
            let count = input.count(2)?;
            let mut extents = Vec::with_capacity(count);
            let mut total = 0u64;
            for _ in 0..count {
                let extent = match input.byte()? {
                    0 => Extent::Hole { len: input.varint()? },
                    1 => {
                        let chunk = chunk(input.varint()?)?;
                        Extent::Chunk { chunk, skip: input.varint32()?, len: input.varint32()? }
                    }
                    _ => return Err("unknown extent"),
                };
                if extent.is_empty() {
                    return Err("empty extent");
                }
                total = total.checked_add(extent.len()).ok_or("file too long")?;
                extents.push(extent);
            }
            (Content::Extents(extents), total)
        }
        2 => {
            let chunk = chunk(input.varint()?)?;
            let root = PageRef { chunk, level: input.byte()?, len: input.varint()? };
            (Content::Paged(Box::new(root)), root.len)
        }
        _ => return Err("unknown content"),
    };
    if len == size { Ok(content) } else { Err("content does not cover the file") }
}

/// Decodes the plaintext of a node; returns its level and children.
///
/// # Errors
/// What does not fit.
pub fn decode_node(page: &[u8]) -> Result<(u8, Vec<Child>), Malformed> {
    let mut input = Reader::new(super::content(page)?);
    if input.byte()? != VERSION {
        return Err("entry node of a later version");
    }
    let level = input.byte()?;
    if level == 0 || level > MAX_LEVEL {
        return Err("entry node level");
    }
    let count = input.count(36)?;
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        let (first, last) = (input.string()?.to_vec(), input.string()?.to_vec());
        let (entries, bytes, id) = (input.varint()?, input.varint()?, Id(input.array()?));
        let after = children.last().map(|c: &Child| &c.last);
        if compare(&first, &last) == Ordering::Greater
            || after.is_some_and(|a| compare(a, &first) != Ordering::Less)
        {
            return Err("children out of order");
        }
        children.push(Child { first, last, entries, bytes, chunk: ChunkRef { id, hint: None } });
    }
    input.end()?;
    if children.is_empty() {
        return Err("entry node without children");
    }
    let ids: Vec<Id> = children.iter().map(|c| c.chunk.id).collect();
    for (child, chunk) in children.iter_mut().zip(hints(page, &ids)?) {
        child.chunk = chunk;
    }
    Ok((level, children))
}

#[cfg(test)]
mod tests;
