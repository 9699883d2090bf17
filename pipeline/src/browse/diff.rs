//! Compares two snapshots by their pages: what has equal ids is not looked into.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::page_loader;
use crate::entry::{Content, Entry, Extent, PageRef, compare};
use crate::error::{Error, Result};
use crate::hash::Id;
use crate::manifest::{Manifest, VolumeKind};
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
            entries(walks, show)
        }
        VolumeKind::Block => {
            let walks = [a, b].map(|root: PageRef| ExtentWalk::new(Arc::clone(&loader), root));
            ranges(walks, [from.size, to.size], show)
        }
    }
}

fn entries([mut from, mut to]: [EntryWalk; 2], show: &mut dyn FnMut(Change) -> Result<()>) -> Result<()> {
    let (mut a, mut b) = (from.next_entry()?, to.next_entry()?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare(&a.path, &b.path),
        };
        let before =
            if order == Ordering::Greater { None } else { std::mem::replace(&mut a, from.next_entry()?) };
        let after = if order == Ordering::Less { None } else { std::mem::replace(&mut b, to.next_entry()?) };
        let same_contents = matches!((&before, &after), (Some(x), Some(y)) if same_contents(x, y));
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

fn same_contents(a: &Entry, b: &Entry) -> bool {
    a.size == b.size && extents(&a.content).eq(extents(&b.content))
}

/// What tells one content from another: ids and lengths, not hints. Small files of equal bytes in different bundles
/// count as different; telling would mean reading them.
fn extents(content: &Content) -> impl Iterator<Item = (Option<Id>, u64, u64)> + '_ {
    let (list, root) = match content {
        Content::Empty => (&[][..], None),
        Content::Extents(list) => (&list[..], None),
        Content::Paged(root) => (&[][..], Some((Some(root.chunk.id), u64::from(root.level), root.len))),
    };
    list.iter()
        .map(|e| match e {
            Extent::Hole { len } => (None, 0, *len),
            Extent::Chunk { chunk, skip, len } => (Some(chunk.id), u64::from(*skip), u64::from(*len)),
        })
        .chain(root)
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
