//! Writing a run in one pass over sorted records, with a few pages of memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::filter::{Shape, bit, scaled};
use super::super::page::{PAGE, PAYLOAD, PageFile, PageKey};
use super::super::segment::{PackRow, RECORD, Record, SegmentName};
use super::{FULL, Head, MEAN, RECORDS_AT, encode_cover, path};

/// Pages of records per write.
const BATCH: usize = 16;

/// What a run will hold. Its sections are laid out before the first record comes.
pub(in crate::index) struct Plan {
    /// At least as many as will be written; far more would waste space.
    pub(in crate::index) records: u64,
    pub(in crate::index) covers: u32,
    pub(in crate::index) packs: u32,
}

/// A run being written. Call [`RunWriter::covers`] and [`RunWriter::packs`] once, then [`RunWriter::record`] in
/// ascending order. Until [`RunWriter::finish`] there is only a temporary file, which a drop removes.
pub(in crate::index) struct RunWriter {
    id: [u8; 16],
    temporary: PathBuf,
    done: PathBuf,
    pages: PageFile,
    head: Head,
    /// The page that records go to now, and how many it has.
    page: Box<[u8; PAGE]>,
    count: usize,
    number: u32,
    /// Sealed pages that come before it.
    batch: Vec<u8>,
    /// The block that is being filled, in each slice of the filter.
    blocks: Vec<[u8; PAGE]>,
    block: u32,
}

impl RunWriter {
    /// Starts a run in `dir`.
    pub(in crate::index) fn create(dir: &Path, key: &PageKey, plan: &Plan) -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let done = path(dir, &id);
        let temporary = done.with_extension("tmp");
        let file: File =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
        let filter = Shape::of(plan.records);
        let homes = plan.records.div_ceil(MEAN).max(1);
        let head = Head {
            records: 0,
            homes: u32::try_from(homes).map_err(io::Error::other)?,
            pages: 0,
            reach: 0,
            covers: plan.covers,
            packs: plan.packs,
            filter,
        };
        Ok(Self {
            id,
            temporary,
            done,
            pages: PageFile::new(file, id, key.clone()),
            head,
            page: Box::new([0; PAGE]),
            count: 0,
            number: 0,
            batch: Vec::with_capacity(BATCH * PAGE),
            blocks: vec![[0; PAGE]; usize::from(filter.slices)],
            block: 0,
        })
    }

    /// Writes the names of the segments that are in the run, ascending.
    pub(in crate::index) fn covers<'a>(
        &self,
        names: impl IntoIterator<Item = &'a SegmentName>,
    ) -> io::Result<()> {
        let mut section = Section::new(&self.pages, self.head.covers_at());
        names.into_iter().try_for_each(|name| section.push(&encode_cover(name)))?;
        section.finish()
    }

    /// Writes the pack table. Rows count from 0 in this order.
    pub(in crate::index) fn packs<E: From<io::Error>>(
        &self,
        rows: impl IntoIterator<Item = Result<PackRow, E>>,
    ) -> Result<(), E> {
        let mut section = Section::new(&self.pages, self.head.packs_at());
        for row in rows {
            section.push(&row?.encode())?;
        }
        Ok(section.finish()?)
    }

    /// Writes the next record.
    pub(in crate::index) fn record(&mut self, record: &Record) -> io::Result<()> {
        let home = scaled(&record.id, self.head.homes);
        while home > self.number || self.count == FULL {
            self.next_page(home <= self.number)?;
        }
        let at = RECORDS_AT + self.count * RECORD;
        self.page[at..at + RECORD].copy_from_slice(&record.encode());
        self.count += 1;
        self.head.records += 1;
        self.head.reach = self.head.reach.max(self.number - home);
        if !self.blocks.is_empty() {
            let block = scaled(&record.id, self.head.filter.blocks);
            while self.block < block {
                self.next_block()?;
            }
            for (slice, bits) in self.blocks.iter_mut().enumerate() {
                let bit = bit(&record.id, slice);
                bits[bit / 8] |= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    fn next_page(&mut self, goes_on: bool) -> io::Result<()> {
        let count = u16::try_from(self.count).map_err(io::Error::other)?;
        self.page[..2].copy_from_slice(&count.to_le_bytes());
        self.page[2] = u8::from(goes_on);
        self.pages.seal(self.head.records_at() + u64::from(self.number), &mut self.page);
        self.batch.extend_from_slice(&self.page[..]);
        self.page.fill(0);
        self.count = 0;
        self.number += 1;
        if self.batch.len() == BATCH * PAGE { self.write_batch() } else { Ok(()) }
    }

    fn write_batch(&mut self) -> io::Result<()> {
        let first = self.head.records_at() + u64::from(self.number) - (self.batch.len() / PAGE) as u64;
        self.pages.write_sealed(first, &self.batch)?;
        self.batch.clear();
        Ok(())
    }

    fn next_block(&mut self) -> io::Result<()> {
        for (slice, page) in (0..).zip(&mut self.blocks) {
            let number = self.head.filter_at() + slice * u64::from(self.head.filter.blocks);
            self.pages.write(number + u64::from(self.block), page)?;
            page.fill(0);
        }
        self.block += 1;
        Ok(())
    }

    /// Completes the file and gives it its name. It need not be synced: after a power cut its pages authenticate or
    /// the run is fetched again.
    pub(in crate::index) fn finish(mut self) -> io::Result<[u8; 16]> {
        while self.number < self.head.homes || self.count > 0 {
            self.next_page(false)?;
        }
        self.write_batch()?;
        while self.block < self.head.filter.blocks {
            self.next_block()?;
        }
        self.head.pages = self.number;
        self.pages.write(0, &mut self.head.encode())?;
        fs::rename(&self.temporary, &self.done)?;
        Ok(self.id)
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        // After `finish` there is nothing to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Rows of a fixed size in consecutive pages; no row crosses the end of a page.
struct Section<'a> {
    pages: &'a PageFile,
    number: u64,
    page: Box<[u8; PAGE]>,
    at: usize,
}

impl<'a> Section<'a> {
    fn new(pages: &'a PageFile, number: u64) -> Self {
        Self { pages, number, page: Box::new([0; PAGE]), at: 0 }
    }

    fn push(&mut self, row: &[u8]) -> io::Result<()> {
        if self.at + row.len() > PAYLOAD {
            self.flush()?;
        }
        self.page[self.at..self.at + row.len()].copy_from_slice(row);
        self.at += row.len();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pages.write(self.number, &mut self.page)?;
        self.page.fill(0);
        self.number += 1;
        self.at = 0;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        if self.at > 0 { self.flush() } else { Ok(()) }
    }
}
