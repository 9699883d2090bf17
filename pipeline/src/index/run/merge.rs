//! Merging segments and runs into one run: a stream per source, 64 KiB of memory each.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::page::{Bad, PAGE, PageKey};
use super::super::segment::{PackRow, Record, Segment, SegmentName};
use super::write::{Plan, RunWriter};
use super::{RecordPage, Run};
use crate::hash::{Id, ObjectType};

/// Pages of records per read.
const BATCH: u32 = 16;

/// Copies of one chunk, in different packs, that a run keeps. More than one is kept because garbage collection may
/// condemn a pack, and more than a few help nobody.
const COPIES: usize = 4;

/// Something that has sorted records and a pack table.
pub(in crate::index) enum Source {
    Segment(SegmentName, Segment),
    Run(Arc<Run>),
}

/// Why a merge gave up.
#[derive(Debug)]
pub(in crate::index) enum Fault {
    /// This source (counting from 0) cannot be read.
    Source(usize),
    /// The new run cannot be written.
    Write(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl Source {
    fn records(&self) -> u64 {
        match self {
            Self::Segment(_, segment) => segment.record_count() as u64,
            Self::Run(run) => run.records(),
        }
    }

    fn pack_count(&self) -> u32 {
        match self {
            Self::Segment(_, segment) => u32::try_from(segment.pack_count()).unwrap_or(u32::MAX),
            Self::Run(run) => run.head.packs,
        }
    }

    fn pack(&self, row: u32) -> Result<PackRow, Bad> {
        match self {
            Self::Segment(_, segment) => Ok(segment.pack(row as usize)),
            Self::Run(run) => run.pack(row),
        }
    }

    fn covers(&self) -> Result<Vec<SegmentName>, Bad> {
        match self {
            Self::Segment(name, _) => Ok(vec![*name]),
            Self::Run(run) => run.covers(),
        }
    }
}

/// Where a merge is in a source.
struct Cursor<'a> {
    source: &'a Source,
    /// Row of the source's first pack in the new pack table.
    base: u32,
    next: usize,
    /// Record pages of a run that have been read, and the number of the page after them.
    batch: Vec<u8>,
    page: u32,
}

impl Cursor<'_> {
    fn next(&mut self) -> Result<Option<Record>, Bad> {
        let run = match self.source {
            Source::Segment(_, segment) => {
                self.next += 1;
                return Ok(segment.record(self.next - 1));
            }
            Source::Run(run) => run,
        };
        loop {
            if let Some(page) = self.batch.get(..PAGE) {
                let page = RecordPage(page);
                if self.next < page.count() {
                    self.next += 1;
                    return page.get(self.next - 1).map(Some).ok_or(Bad::Damaged);
                }
                self.batch.drain(..PAGE);
                self.next = 0;
            } else if self.page < run.head.pages {
                let pages = BATCH.min(run.head.pages - self.page);
                self.batch.resize(pages as usize * PAGE, 0);
                run.pages.read_many(run.head.records_at() + u64::from(self.page), &mut self.batch)?;
                self.page += pages;
            } else {
                return Ok(None);
            }
        }
    }
}

/// The next record of one source, in the order of the merge.
struct Head {
    order: (Id, ObjectType, usize),
    record: Record,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

/// Merges `sources` into a new run in `dir` and returns its id. Pack tables are put one after the other, so it takes
/// no memory to renumber packs: a pack is in one segment, or in few.
pub(in crate::index) fn merge(dir: &Path, key: &PageKey, sources: &[Source]) -> Result<[u8; 16], Fault> {
    let too_many = || Fault::Write(io::Error::other("too many packs for one run"));
    let mut covers = Vec::new();
    let mut cursors = Vec::with_capacity(sources.len());
    let mut packs = 0u32;
    for (i, source) in sources.iter().enumerate() {
        covers.extend(source.covers().map_err(|_| Fault::Source(i))?);
        cursors.push(Cursor { source, base: packs, next: 0, batch: Vec::new(), page: 0 });
        packs = packs.checked_add(source.pack_count()).ok_or_else(too_many)?;
    }
    covers.sort_unstable();
    covers.dedup();
    let plan = Plan {
        records: sources.iter().map(Source::records).sum(),
        covers: u32::try_from(covers.len()).map_err(io::Error::other)?,
        packs,
    };
    let mut out = RunWriter::create(dir, key, &plan)?;
    out.covers(&covers)?;
    drop(covers);
    let rows = sources.iter().enumerate().flat_map(|(i, source)| {
        (0..source.pack_count()).map(move |row| source.pack(row).map_err(|_| Fault::Source(i)))
    });
    out.packs(rows)?;

    let mut heap = BinaryHeap::with_capacity(cursors.len());
    for (i, cursor) in cursors.iter_mut().enumerate() {
        if let Some(record) = cursor.next().map_err(|_| Fault::Source(i))? {
            heap.push(Reverse(Head { order: (record.id, record.kind, i), record }));
        }
    }
    let mut copies: Vec<(usize, Record)> = Vec::with_capacity(COPIES);
    while let Some(mut top) = heap.peek_mut() {
        let Head { order: (.., i), record } = top.0;
        if copies.last().is_some_and(|(_, last)| last.key() != record.key()) {
            copies.clear();
        }
        if copies.len() < COPIES && !repeats(sources, &copies, i, &record)? {
            copies.push((i, record));
            out.record(&Record { pack: cursors[i].base + record.pack, ..record })?;
        }
        match cursors[i].next().map_err(|_| Fault::Source(i))? {
            Some(record) => top.0 = Head { order: (record.id, record.kind, i), record },
            None => drop(PeekMut::pop(top)),
        }
    }
    Ok(out.finish()?)
}

/// True when one of `copies` is the same frame of the same pack. Pack names are only looked up for near certain hits.
fn repeats(sources: &[Source], copies: &[(usize, Record)], i: usize, record: &Record) -> Result<bool, Fault> {
    for (j, copy) in copies {
        if (Record { pack: record.pack, ..*copy }) == *record {
            let mine = sources[i].pack(record.pack).map_err(|_| Fault::Source(i))?;
            let theirs = sources[*j].pack(copy.pack).map_err(|_| Fault::Source(*j))?;
            if mine.name == theirs.name {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
