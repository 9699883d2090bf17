//! Extent pages: which chunks make up a block volume or a large file.
//!
//! ```text
//! version  1   1
//! level    1   0: items are chunks; n: items are extent pages of level n-1
//! runs         varint count, then for each: tag (1), items (varint), bytes of each item (varint)
//!              tag 0 hole, 1 chunk or page; 2 (patch) and 3 (inline) are reserved, unknown tags are refused
//! ids          32 bytes for each item that is not a hole
//! ```
//! A block volume's leaf has 1,024 chunks, so a changed chunk rewrites one leaf and its parents. A file's leaf ends
//! after a chunk whose id says so, so that an insertion does not move the leaves behind it.

use super::codec::{Reader, Writer};
use super::{Malformed, hints};
use crate::entry::{ChunkRef, Extent, PageRef};
use crate::error::Result;
use crate::hash::{Id, ObjectType};

/// Items of a page of a block volume, and at most of any page but holes.
pub const FIXED_ITEMS: usize = 1024;

/// Items after which a file's page may end, and must end.
const FILE_ITEMS: std::ops::Range<usize> = 256..2048;

/// Highest level: 1,024^5 chunks of 16 KiB are more than 2^64 bytes.
pub const MAX_LEVEL: u8 = 5;

const VERSION: u8 = 1;
const HOLE: u8 = 0;
const CHUNK: u8 = 1;

/// One item of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Bytes of the volume it stands for; never 0.
    pub len: u64,
    /// The chunk or page; `None` for a hole.
    pub chunk: Option<ChunkRef>,
}

/// A decoded page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentPage {
    /// 0 for a leaf.
    pub level: u8,
    /// What it lists, in order of the volume.
    pub items: Vec<Item>,
}

impl ExtentPage {
    /// Encodes the content: the part the page's id covers.
    pub fn encode(&self) -> Vec<u8> {
        let mut runs: Vec<(u8, u64, u64)> = Vec::new();
        for item in &self.items {
            let tag = if item.chunk.is_some() { CHUNK } else { HOLE };
            match runs.last_mut() {
                Some((t, n, len)) if *t == tag && *len == item.len && tag == CHUNK => *n += 1,
                _ => runs.push((tag, 1, item.len)),
            }
        }
        let mut out = Writer::default();
        out.byte(VERSION);
        out.byte(self.level);
        out.varint(runs.len() as u64);
        for (tag, n, len) in runs {
            out.byte(tag);
            out.varint(n);
            out.varint(len);
        }
        for chunk in self.items.iter().filter_map(|i| i.chunk) {
            out.bytes(&chunk.id.0);
        }
        out.into_vec()
    }

    /// The chunks it names, in order.
    pub fn chunks(&self) -> Vec<ChunkRef> {
        self.items.iter().filter_map(|i| i.chunk).collect()
    }

    /// Bytes that it covers.
    pub fn len(&self) -> u64 {
        self.items.iter().map(|i| i.len).sum()
    }

    /// True for the page of an empty volume.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Decodes a page's plaintext.
    ///
    /// # Errors
    /// What does not fit.
    pub fn decode(page: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(super::content(page)?);
        if input.byte()? != VERSION {
            return Err("extent page of a later version");
        }
        let level = input.byte()?;
        if level > MAX_LEVEL {
            return Err("extent page too high");
        }
        let count = input.count(3)?;
        let mut runs = Vec::with_capacity(count);
        let (mut total, mut chunks) = (0usize, 0usize);
        for _ in 0..count {
            let (tag, n, len) = (input.byte()?, input.varint()?, input.varint()?);
            if tag > CHUNK || n == 0 || len == 0 || (tag == HOLE && n != 1) {
                return Err("unknown extent");
            }
            let n = usize::try_from(n).map_err(|_| "too many extents")?;
            total = total.saturating_add(n);
            chunks = chunks.saturating_add(if tag == CHUNK { n } else { 0 });
            if chunks > FILE_ITEMS.end || total > 2 * FILE_ITEMS.end + 1 {
                return Err("too many extents");
            }
            // One form for each list of items, so that equal content has equal bytes.
            if runs.last().is_some_and(|(t, _, l)| *t == tag && (tag == HOLE || *l == len)) {
                return Err("extents that belong together");
            }
            runs.push((tag, n, len));
        }
        let mut ids = Vec::with_capacity(chunks);
        for _ in 0..chunks {
            ids.push(Id(input.array()?));
        }
        input.end()?;
        let mut refs = hints(page, &ids)?.into_iter();
        let mut items = Vec::with_capacity(total);
        for (tag, n, len) in runs {
            for _ in 0..n {
                items.push(Item { len, chunk: if tag == CHUNK { refs.next() } else { None } });
            }
        }
        items.iter().try_fold(0u64, |sum, i| sum.checked_add(i.len)).ok_or("extents too long")?;
        Ok(Self { level, items })
    }
}

/// Stores a page and says where it is; the same page is stored once.
pub trait PageSink {
    /// Stores `content` with the hints of `chunks` as an object of type `kind`.
    ///
    /// # Errors
    /// Whatever storing a chunk can fail with.
    fn store_page(&mut self, kind: ObjectType, content: &[u8], chunks: &[ChunkRef]) -> Result<ChunkRef>;
}

/// Where a page ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A block volume: after every `chunk` bytes times 1,024, on each level.
    Fixed {
        /// Bytes of one chunk.
        chunk: u32,
    },
    /// A file: at ids that end in eight zero bits, between 256 and 2,048 items.
    ContentDefined,
}

/// Builds a tree of extent pages from extents in order, holding one page of each level.
#[derive(Debug)]
pub struct ExtentWriter {
    shape: Shape,
    levels: Vec<Level>,
    len: u64,
}

#[derive(Debug, Default)]
struct Level {
    items: Vec<Item>,
    /// Bytes below the items.
    len: u64,
}

impl ExtentWriter {
    /// A writer for an empty volume.
    pub fn new(shape: Shape) -> Self {
        Self { shape, levels: vec![Level::default()], len: 0 }
    }

    /// Appends a chunk of `len` bytes.
    ///
    /// # Errors
    /// As [`PageSink::store_page`].
    pub fn chunk(&mut self, chunk: ChunkRef, len: u64, sink: &mut impl PageSink) -> Result<()> {
        self.len += len;
        self.push(0, Item { len, chunk: Some(chunk) }, sink)
    }

    /// Appends `len` bytes of zeros.
    ///
    /// # Errors
    /// As [`PageSink::store_page`].
    pub fn hole(&mut self, mut len: u64, sink: &mut impl PageSink) -> Result<()> {
        self.len += len;
        while len > 0 {
            // A hole that spans whole leaves goes into the node above: 64 TiB of nothing are one item.
            let (level, part) = self.hole_step(len);
            self.push(level, Item { len: part, chunk: None }, sink)?;
            len -= part;
        }
        Ok(())
    }

    /// Level and length of the next piece of a hole of `len` bytes.
    fn hole_step(&self, len: u64) -> (usize, u64) {
        let Shape::Fixed { chunk } = self.shape else { return (0, len) };
        let mut level = 0;
        let mut span = u64::from(chunk) * FIXED_ITEMS as u64;
        // Climb while everything below is complete and the hole covers a whole child of the next level.
        while self.levels[level].items.is_empty() && len >= span && level < usize::from(MAX_LEVEL) {
            level += 1;
            if level == self.levels.len() {
                break;
            }
            span = span.saturating_mul(FIXED_ITEMS as u64);
        }
        let child = u64::from(chunk)
            .saturating_mul((FIXED_ITEMS as u64).saturating_pow(u32::try_from(level).unwrap_or(0)));
        let room = child.saturating_mul(FIXED_ITEMS as u64) - self.levels.get(level).map_or(0, |l| l.len);
        let part = len.min(room);
        (level, if level > 0 { part - part % child } else { part })
    }

    fn push(&mut self, level: usize, item: Item, sink: &mut impl PageSink) -> Result<()> {
        if level == self.levels.len() {
            self.levels.push(Level::default());
        }
        let here = &mut self.levels[level];
        here.len += item.len;
        match (here.items.last_mut(), item.chunk) {
            (Some(last), None) if last.chunk.is_none() => last.len += item.len,
            _ => here.items.push(item),
        }
        if self.is_full(level, &item) { self.close(level, sink) } else { Ok(()) }
    }

    fn is_full(&self, level: usize, item: &Item) -> bool {
        let here = &self.levels[level];
        match self.shape {
            Shape::Fixed { chunk } => {
                let span = u64::from(chunk).saturating_mul(
                    (FIXED_ITEMS as u64).saturating_pow(u32::try_from(level).unwrap_or(0) + 1),
                );
                here.len >= span
            }
            Shape::ContentDefined => {
                let ends = item.chunk.is_some_and(|c| c.id.0[31] == 0);
                here.items.len() >= if ends { FILE_ITEMS.start } else { FILE_ITEMS.end }
            }
        }
    }

    fn close(&mut self, level: usize, sink: &mut impl PageSink) -> Result<()> {
        let here = std::mem::take(&mut self.levels[level]);
        if here.items.is_empty() {
            return Ok(());
        }
        let item = if here.items.iter().all(|i| i.chunk.is_none()) {
            Item { len: here.len, chunk: None }
        } else {
            let page = ExtentPage { level: u8::try_from(level).unwrap_or(u8::MAX), items: here.items };
            let chunk = sink.store_page(ObjectType::Extents, &page.encode(), &page.chunks())?;
            Item { len: here.len, chunk: Some(chunk) }
        };
        self.push(level + 1, item, sink)
    }

    /// Bytes appended so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Stores what is still open and returns the root. An empty volume has a leaf without items.
    ///
    /// # Errors
    /// As [`PageSink::store_page`].
    pub fn finish(mut self, sink: &mut impl PageSink) -> Result<PageRef> {
        let mut level = 0;
        // Close from below until one item is left at the top, and it is a page.
        while level + 1 < self.levels.len() {
            self.close(level, sink)?;
            level += 1;
        }
        let top = std::mem::take(&mut self.levels[level]);
        if let [Item { chunk: Some(chunk), len }] = top.items[..]
            && level > 0
        {
            return Ok(PageRef { chunk, level: u8::try_from(level - 1).unwrap_or(u8::MAX), len });
        }
        let level = u8::try_from(level).unwrap_or(u8::MAX);
        let page = ExtentPage { level, items: top.items };
        let chunk = sink.store_page(ObjectType::Extents, &page.encode(), &page.chunks())?;
        Ok(PageRef { chunk, level, len: self.len })
    }
}

/// The extents of a leaf as a file's or volume's extents.
pub fn extents(items: &[Item]) -> impl Iterator<Item = Extent> + '_ {
    items.iter().map(|item| match item.chunk {
        None => Extent::Hole { len: item.len },
        Some(chunk) => Extent::Chunk { chunk, skip: 0, len: u32::try_from(item.len).unwrap_or(u32::MAX) },
    })
}

#[cfg(test)]
mod tests;
