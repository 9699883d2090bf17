//! Compares two snapshots by their pages: what has equal ids is not looked into.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::page_loader;
use crate::entry::{ChunkRef, Content, Entry, Extent, PageRef, compare};
use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::manifest::{Manifest, VolumeKind};
use crate::page::load::PageLoader;
use crate::page::walk::{EntryWalk, ExtentWalk};
use crate::progress::Progress;
use crate::repository::Repository;

/// One difference between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry of a tree is new, gone or different.
    Entry {
        /// As it was; `None`: it is new.
        before: Option<Box<Entry>>,
        /// As it is; `None`: it is gone.
        after: Option<Box<Entry>>,
        /// The bytes are equal and only metadata differs.
        same_contents: bool,
    },
    /// Bytes of a block volume differ, or one of the two ends before them.
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// Calls `show` with each difference between `from` and `to`, in order of paths or offsets. Inode numbers, device
/// numbers and change times are not differences: a restored copy has others.
///
/// # Errors
/// [`Error::Usage`] for a tree and a block volume; damage; the store's errors; what `show` returns.
pub fn diff(
    runtime: &Handle,
    repository: &Arc<Repository>,
    from: &Manifest,
    to: &Manifest,
    cache_dir: Option<&Path>,
    progress: &Arc<Progress>,
    show: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<()> {
    let no_root = || Error::damaged("manifest", "has no root");
    let (a, b) = (from.root.ok_or_else(no_root)?, to.root.ok_or_else(no_root)?);
    if from.kind != to.kind {
        return Err(Error::Usage("a tree and a block volume cannot be compared".into()));
    }
    if (a.chunk.id, a.level) == (b.chunk.id, b.level) {
        return Ok(());
    }
    let loader = page_loader(runtime, repository, cache_dir, progress)?;
    match from.kind {
        VolumeKind::Tree => {
            let walks = [a, b].map(|root| EntryWalk::forwards(Arc::clone(&loader), root));
            entries(walks, &mut Bundles { loader, kept: VecDeque::new() }, progress, show)
        }
        VolumeKind::Block => {
            let walks = [a, b].map(|root: PageRef| ExtentWalk::new(Arc::clone(&loader), root));
            ranges(walks, [from.size, to.size], show)
        }
    }
}

fn entries(
    [mut from, mut to]: [EntryWalk; 2],
    bundles: &mut Bundles,
    progress: &Progress,
    show: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<()> {
    let (mut a, mut b) = (from.next_entry()?, to.next_entry()?);
    loop {
        progress.check()?;
        let order = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare(&a.path, &b.path),
        };
        let before =
            if order == Ordering::Greater { None } else { std::mem::replace(&mut a, from.next_entry()?) };
        let after = if order == Ordering::Less { None } else { std::mem::replace(&mut b, to.next_entry()?) };
        let same_contents = match (&before, &after) {
            (Some(x), Some(y)) => same_contents(x, y, bundles)?,
            _ => false,
        };
        let same = matches!((&before, &after), (Some(x), Some(y)) if same_contents && same_metadata(x, y));
        if !same {
            show(Change::Entry { before: before.map(Box::new), after: after.map(Box::new), same_contents })?;
        }
    }
}

fn same_metadata(a: &Entry, b: &Entry) -> bool {
    a.kind == b.kind
        && (a.mode, a.uid, a.gid, a.mtime, a.flags) == (b.mode, b.uid, b.gid, b.mtime, b.flags)
        && a.xattrs == b.xattrs
}

fn same_contents(a: &Entry, b: &Entry, bundles: &mut Bundles) -> Result<bool> {
    if a.size != b.size {
        return Ok(false);
    }
    let (x, y) = match (&a.content, &b.content) {
        (Content::Empty, Content::Empty) => return Ok(true),
        (Content::Paged(x), Content::Paged(y)) => return Ok((x.chunk.id, x.level) == (y.chunk.id, y.level)),
        (Content::Extents(x), Content::Extents(y)) => (x, y),
        _ => return Ok(false),
    };
    if x.len() != y.len() {
        return Ok(false);
    }
    for (x, y) in x.iter().zip(y) {
        let same = match (x, y) {
            (Extent::Hole { len: x }, Extent::Hole { len: y }) => x == y,
            (Extent::Chunk { chunk: x, skip: s, len: l }, Extent::Chunk { chunk: y, skip: t, len: m }) => {
                let known = (x.id, s, l) == (y.id, t, m);
                // Equal bytes have another id when they are in another bundle. The id of a whole chunk decides.
                let tells = l != m || is_whole(x, *l) && is_whole(y, *m);
                known || !tells && bundles.bytes(x, *s, *l)? == bundles.bytes(y, *t, *m)?
            }
            _ => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True when `len` bytes are all of the chunk.
fn is_whole(chunk: &ChunkRef, len: u32) -> bool {
    chunk.hint.is_some_and(|at| at.length == len)
}

/// Small files by their place in bundles. Neighbours in a tree are neighbours in bundles, so a few are kept.
struct Bundles {
    loader: Arc<PageLoader>,
    kept: VecDeque<(Id, Arc<Vec<u8>>)>,
}

/// Bundles kept: some for each of two snapshots.
const KEPT: usize = 8;

impl Bundles {
    fn bytes(&mut self, chunk: &ChunkRef, skip: u32, len: u32) -> Result<Vec<u8>> {
        let bundle = match self.kept.iter().find(|(id, _)| *id == chunk.id) {
            Some((_, bundle)) => Arc::clone(bundle),
            None => {
                let bundle = Arc::new(self.loader.fetch(ObjectType::Data, chunk)?);
                self.kept.truncate(KEPT - 1);
                self.kept.push_front((chunk.id, Arc::clone(&bundle)));
                bundle
            }
        };
        let (skip, len) = (skip as usize, len as usize);
        let bytes = skip.checked_add(len).and_then(|end| bundle.get(skip..end));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| Error::damaged("page", "an extent passes its chunk's end"))
    }
}

/// Merges neighbouring differences before they are shown.
struct Merge<'a> {
    show: &'a mut dyn FnMut(Change) -> Result<()>,
    open: Option<(u64, u64)>,
}

impl Merge<'_> {
    fn add(&mut self, offset: u64, end: u64) -> Result<()> {
        match &mut self.open {
            Some((_, last)) if *last == offset => *last = end,
            _ => {
                self.finish()?;
                self.open = Some((offset, end));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self.open.take() {
            Some((offset, end)) => (self.show)(Change::Range { offset, len: end - offset }),
            None => Ok(()),
        }
    }
}

/// Compares extents; where both have equal ids over the same bytes, they are equal.
fn ranges(
    [mut from, mut to]: [ExtentWalk; 2],
    sizes: [u64; 2],
    show: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<()> {
    let mut merge = Merge { show, open: None };
    let mut at = 0;
    let (mut a, mut b) = (from.next_from(0)?, to.next_from(0)?);
    while let (Some((start_a, item_a)), Some((start_b, item_b))) = (a, b) {
        let (end_a, end_b) = (start_a + item_a.len, start_b + item_b.len);
        let end = end_a.min(end_b);
        let same = match (item_a.chunk, item_b.chunk) {
            (None, None) => true,
            (Some(x), Some(y)) => x.id == y.id && (start_a, end_a) == (start_b, end_b),
            _ => false,
        };
        if !same {
            merge.add(at, end)?;
        }
        at = end;
        if end_a == end {
            a = from.next_from(at)?;
        }
        if end_b == end {
            b = to.next_from(at)?;
        }
    }
    let end = sizes[0].max(sizes[1]);
    if at < end {
        merge.add(at, end)?;
    }
    merge.finish()
}
