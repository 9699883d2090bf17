//! Walks over trees of pages, holding one page of each level.

use std::cmp::Ordering;
use std::sync::Arc;

use super::entries::{Child, MAX_LEVEL, decode_node, decode_page, kind};
use super::extents::{ExtentPage, Item, MAX_LEVEL as MAX_EXTENT_LEVEL};
use super::load::PageLoader;
use crate::entry::{ChunkRef, Entry, PageRef, compare};
use crate::error::{Error, Result};
use crate::hash::ObjectType;

/// The extents of a volume or file in order: chunks, and holes of any length.
#[derive(Debug)]
pub struct ExtentWalk {
    loader: Arc<PageLoader>,
    /// Pages from the root down, each with the items still to come; the last is the deepest.
    stack: Vec<(u8, std::vec::IntoIter<Item>)>,
    root: Option<PageRef>,
    offset: u64,
    current: Option<(u64, Item)>,
    lost: Option<(u64, u64)>,
}

impl ExtentWalk {
    /// Starts at the beginning of `root`.
    pub fn new(loader: Arc<PageLoader>, root: PageRef) -> Self {
        Self { loader, stack: vec![], root: Some(root), offset: 0, current: None, lost: None }
    }

    /// The next extent that ends after byte `from`, with the offset it starts at; subtrees before `from` are not
    /// loaded. `None` at the end.
    ///
    /// # Errors
    /// As [`PageLoader::load`].
    pub fn next_from(&mut self, from: u64) -> Result<Option<(u64, Item)>> {
        if let Some(root) = self.root.take() {
            self.enter(root.level, &root.chunk, root.len)?;
        }
        while let Some((level, items)) = self.stack.last_mut() {
            let level = *level;
            let Some(item) = items.next() else {
                self.stack.pop();
                continue;
            };
            let start = self.offset;
            match item.chunk {
                Some(chunk) if level > 0 && start + item.len > from => {
                    self.enter(level - 1, &chunk, item.len)?;
                }
                _ => {
                    self.offset += item.len;
                    if self.offset > from {
                        return Ok(Some((start, item)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// After an error: offset and length in bytes of what could not be listed. The walk can go on behind it.
    pub fn lost(&mut self) -> Option<(u64, u64)> {
        self.lost.take()
    }

    fn enter(&mut self, level: u8, chunk: &ChunkRef, len: u64) -> Result<()> {
        let result = self.descend(level, chunk, len);
        if result.is_err() {
            self.lost = Some((self.offset, len));
            self.offset += len;
        }
        result
    }

    /// The chunk at exactly `offset` with exactly `len` bytes, asked for in ascending order.
    ///
    /// # Errors
    /// As [`PageLoader::load`].
    pub fn chunk_at(&mut self, offset: u64, len: u64) -> Result<Option<ChunkRef>> {
        while self.current.is_none_or(|(start, item)| start + item.len <= offset) {
            self.current = self.next_from(offset)?;
            if self.current.is_none() {
                return Ok(None);
            }
        }
        Ok(self
            .current
            .filter(|(start, item)| *start == offset && item.len == len)
            .and_then(|(_, item)| item.chunk))
    }

    fn descend(&mut self, level: u8, chunk: &ChunkRef, len: u64) -> Result<()> {
        let malformed = PageLoader::malformed(chunk);
        let page = ExtentPage::decode(&self.loader.load(ObjectType::Extents, chunk)?).map_err(&malformed)?;
        if page.level != level || level > MAX_EXTENT_LEVEL {
            return Err(malformed("page of another level"));
        }
        if page.len() != len {
            return Err(malformed("page does not cover what its parent says"));
        }
        self.stack.push((level, page.items.into_iter()));
        Ok(())
    }
}

/// The entries of a tree, forwards or backwards.
#[derive(Debug)]
pub struct EntryWalk {
    loader: Arc<PageLoader>,
    backwards: bool,
    /// Nodes from the root down with their children still to come, in the order of the walk.
    stack: Vec<(u8, std::vec::IntoIter<Child>)>,
    root: Option<PageRef>,
    page: std::vec::IntoIter<Entry>,
    within: Vec<u8>,
    lost: Option<Lost>,
}

/// Entries that could not be listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lost {
    /// Path of the first of them.
    pub first: Vec<u8>,
    /// Path of the last of them; both are empty when it is the whole tree.
    pub last: Vec<u8>,
    /// Bytes of the files among them.
    pub bytes: u64,
}

impl EntryWalk {
    /// From the root of the tree to its last entry.
    pub fn forwards(loader: Arc<PageLoader>, root: PageRef) -> Self {
        Self {
            loader,
            backwards: false,
            stack: vec![],
            root: Some(root),
            page: Vec::new().into_iter(),
            within: vec![],
            lost: None,
        }
    }

    /// From the last entry to the root of the tree: children before their parents.
    pub fn backwards(loader: Arc<PageLoader>, root: PageRef) -> Self {
        Self { backwards: true, ..Self::forwards(loader, root) }
    }

    /// After an error: what could not be listed. The walk can go on behind it.
    pub fn lost(&mut self) -> Option<Lost> {
        self.lost.take()
    }

    /// Only the entry at `path` and what is below it; other pages are not loaded.
    #[must_use]
    pub fn within(mut self, path: &[u8]) -> Self {
        self.within = path.to_vec();
        self
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// As [`PageLoader::load`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.next_where(|_| true)
    }

    /// Forwards only: the first entry at or after `path`; pages before it are not loaded.
    ///
    /// # Errors
    /// As [`PageLoader::load`].
    pub fn next_from(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        while let Some(entry) = self.next_where(|child| compare(&child.last, path) != Ordering::Less)? {
            if compare(&entry.path, path) != Ordering::Less {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn next_where(&mut self, wanted: impl Fn(&Child) -> bool) -> Result<Option<Entry>> {
        if let Some(root) = self.root.take()
            && let Err(error) = self.descend(root.level, &root.chunk, None)
        {
            self.lost = Some(Lost { bytes: root.len, ..Lost::default() });
            return Err(error);
        }
        loop {
            while let Some(entry) = if self.backwards { self.page.next_back() } else { self.page.next() } {
                if is_within(&entry.path, &self.within) {
                    return Ok(Some(entry));
                }
            }
            let Some((level, children)) = self.stack.last_mut() else { return Ok(None) };
            let level = *level;
            let child = if self.backwards { children.next_back() } else { children.next() };
            match child {
                None => drop(self.stack.pop()),
                Some(child) if wanted(&child) && self.reaches(&child) => {
                    let range = (&child.first[..], &child.last[..]);
                    if let Err(error) = self.descend(level - 1, &child.chunk, Some(range)) {
                        self.lost = Some(Lost { first: child.first, last: child.last, bytes: child.bytes });
                        return Err(error);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// True when something below `child` may be within the subtree: its range neither ends before it nor starts
    /// behind it.
    fn reaches(&self, child: &Child) -> bool {
        let behind = compare(&child.first, &self.within) == Ordering::Greater
            && !is_within(&child.first, &self.within);
        compare(&child.last, &self.within) != Ordering::Less && !behind
    }

    /// `range`: first and last path, as the parent says.
    fn descend(&mut self, level: u8, chunk: &ChunkRef, range: Option<(&[u8], &[u8])>) -> Result<()> {
        let malformed = PageLoader::malformed(chunk);
        let fits = |first: &[u8], last: &[u8]| match range {
            Some(range) if range != (first, last) => {
                Err(malformed("page has other paths than its parent says"))
            }
            _ => Ok(()),
        };
        if level > MAX_LEVEL {
            return Err(malformed("tree too high"));
        }
        let page = self.loader.load(kind(level), chunk)?;
        if level == 0 {
            let entries = decode_page(&page).map_err(&malformed)?;
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                fits(&first.path, &last.path)?;
            }
            self.page = entries.into_iter();
        } else {
            let (found, children) = decode_node(&page).map_err(&malformed)?;
            if found != level {
                return Err(malformed("node of another level"));
            }
            if let (Some(first), Some(last)) = (children.first(), children.last()) {
                fits(&first.first, &last.last)?;
            }
            self.stack.push((level, children.into_iter()));
        }
        Ok(())
    }
}

/// True for the entry at `subtree` and those below it.
fn is_within(path: &[u8], subtree: &[u8]) -> bool {
    subtree.is_empty() || path.strip_prefix(subtree).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
}

/// Looks up entries by ascending path, for comparing a tree with its parent.
#[derive(Debug)]
pub struct EntryCursor {
    walk: EntryWalk,
    ahead: Option<Entry>,
}

impl EntryCursor {
    /// A cursor at the beginning of `root`.
    pub fn new(loader: Arc<PageLoader>, root: PageRef) -> Self {
        Self { walk: EntryWalk::forwards(loader, root), ahead: None }
    }

    /// The entry at exactly `path`. Paths must be asked for in ascending order.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the store's errors, as [`PageLoader::load`].
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Entry>, Error> {
        loop {
            if let Some(entry) = self.ahead.take() {
                match compare(&entry.path, path) {
                    Ordering::Equal => return Ok(Some(entry)),
                    Ordering::Greater => {
                        self.ahead = Some(entry);
                        return Ok(None);
                    }
                    Ordering::Less => {}
                }
            }
            self.ahead = self.walk.next_from(path)?;
            if self.ahead.is_none() {
                return Ok(None);
            }
        }
    }
}
