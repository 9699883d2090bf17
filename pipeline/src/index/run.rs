//! Runs: many segments merged into one sorted, immutable file of the local cache. [`write`] makes them.
//!
//! ```text
//!  page 0    header: counts, from which everything else follows
//!  covers    names of the segments whose records are all here, ascending, 21 bytes each
//!  packs     rows of 40 bytes, as in segments
//!  filter    slice after slice, block after block
//!  records   2 bytes number of records, 1 byte 'goes on', 1 reserved, then records of 54 bytes
//! ```
//! Ids are hashes, so where a record belongs is known without any table: its *home* is the page that the first 64
//! bits of its id scale to. Pages are filled to 64 records on average and hold 75; when one is full, records go to
//! the next one and the page is marked. The header has the farthest any record is from home. So a look-up reads one
//! page, seldom two, and with ids that are no hashes the logarithm of that distance. Nothing is mapped: a disk error
//! under a mapping kills a process, under a read it is a miss.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::filter::{Filter, Shape, scaled};
use super::page::{Bad, PAGE, PAYLOAD, PageFile, PageKey};
use super::segment::{Last, PACK_ROW, PackRow, RECORD, Record, SegmentName};
use crate::hash::{Id, ObjectType};
use crate::pack::{Location, SessionId};

pub(super) mod merge;
pub(super) mod write;

const MAGIC: &[u8; 8] = b"TWINDRUN";
const FORMAT: u16 = 2;

const COVER: usize = 21;
const COVERS_PER_PAGE: usize = PAYLOAD / COVER;
const ROWS_PER_PAGE: usize = PAYLOAD / PACK_ROW;
const RECORDS_AT: usize = 4;
/// Most records in a page.
const FULL: usize = (PAYLOAD - RECORDS_AT) / RECORD;
/// Records in a page on average.
const MEAN: u64 = 64;

/// Pages of pack rows kept in memory per run. Chunks that are read together were mostly stored together.
const ROW_CACHE: usize = 4;

/// Where a run's sections are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    records: u64,
    /// Pages that ids scale to.
    homes: u32,
    /// Pages with records: homes and what spills over the last one.
    pages: u32,
    /// Farthest that a record is from its home, in pages.
    reach: u32,
    covers: u32,
    packs: u32,
    filter: Shape,
}

impl Head {
    fn covers_at(&self) -> u64 {
        1
    }

    fn packs_at(&self) -> u64 {
        self.covers_at() + u64::from(self.covers).div_ceil(COVERS_PER_PAGE as u64)
    }

    fn filter_at(&self) -> u64 {
        self.packs_at() + u64::from(self.packs).div_ceil(ROWS_PER_PAGE as u64)
    }

    fn records_at(&self) -> u64 {
        self.filter_at() + self.filter.pages()
    }

    fn file_len(&self) -> u64 {
        (self.records_at() + u64::from(self.pages)) * PAGE as u64
    }

    fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(MAGIC);
        page[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        page[10] = self.filter.slices;
        page[16..24].copy_from_slice(&self.records.to_le_bytes());
        let words = [self.homes, self.pages, self.reach, self.covers, self.packs, self.filter.blocks];
        for (at, word) in (24..).step_by(4).zip(words) {
            page[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    fn decode(page: &[u8; PAGE]) -> Option<Self> {
        if page[..8] != MAGIC[..] || page[8..10] != FORMAT.to_le_bytes() {
            return None;
        }
        let word = |at: usize| page[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        Some(Self {
            records: page[16..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b)),
            homes: word(24),
            pages: word(28),
            reach: word(32),
            covers: word(36),
            packs: word(40),
            filter: Shape { blocks: word(44), slices: page[10] },
        })
    }
}

/// A page of records, authenticated.
struct RecordPage<'a>(&'a [u8]);

impl RecordPage<'_> {
    fn count(&self) -> usize {
        usize::from(u16::from_le_bytes([self.0[0], self.0[1]])).min(FULL)
    }

    /// True when records whose home is this page or an earlier one are on the next.
    fn goes_on(&self) -> bool {
        self.0[2] != 0
    }

    fn bytes(&self, i: usize) -> Option<&[u8; RECORD]> {
        self.0[RECORDS_AT + i * RECORD..].first_chunk()
    }

    fn get(&self, i: usize) -> Option<Record> {
        if i < self.count() { Record::decode(self.bytes(i)?) } else { None }
    }

    /// What the order of records goes by: the first 33 bytes, as bytes.
    fn order(&self, i: usize) -> &[u8] {
        self.bytes(i).map_or(&[], |b| &b[..33])
    }

    /// Index of the first record that is not before `key`.
    fn lower_bound(&self, key: &[u8; 33]) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.order(middle) < &key[..] { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// An open run.
pub(super) struct Run {
    path: PathBuf,
    pages: PageFile,
    head: Head,
    dead: AtomicBool,
    reads: AtomicU64,
    rows: Mutex<RowCache>,
}

/// A few pages of pack rows; page `n` can only be in place `n % ROW_CACHE`.
type RowCache = [Option<(u64, Box<[u8; PAGE]>)>; ROW_CACHE];

impl Run {
    /// Opens the run `id` in `dir`. Its header must authenticate and fit the file's size.
    pub(super) fn open(dir: &Path, id: [u8; 16], key: &PageKey) -> Result<Self, Bad> {
        let path = path(dir, &id);
        let pages = PageFile::new(File::open(&path)?, id, key.clone());
        let mut page = [0; PAGE];
        pages.read(0, &mut page)?;
        let head = Head::decode(&page).ok_or(Bad::Damaged)?;
        if head.file_len() != pages.len()? || head.homes == 0 || head.pages < head.homes {
            return Err(Bad::Damaged);
        }
        let (dead, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { path, pages, head, dead, reads, rows: Mutex::new(std::array::from_fn(|_| None)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of records.
    pub(super) fn records(&self) -> u64 {
        self.head.records
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.head.file_len()
    }

    pub(super) fn filter_shape(&self) -> Shape {
        self.head.filter
    }

    /// Pages read by look-ups so far.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// True once a page was found damaged: the run answers nothing any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Gives the run up: removes its file, so that the next [`sync`](super::cache) fetches its segments again.
    /// Returns true for the first caller.
    pub(super) fn bury(&self) -> bool {
        let first = !self.dead.swap(true, Ordering::Relaxed);
        if first {
            // If it cannot be removed it will be found damaged again.
            let _ = std::fs::remove_file(&self.path);
        }
        first
    }

    /// Loads slices until the filter has `slices` of them.
    pub(super) fn load_filter(&self, filter: &mut Filter, slices: usize) -> Result<(), Bad> {
        filter.slices.truncate(slices);
        let Shape { blocks, slices: most } = self.head.filter;
        while filter.slices.len() < slices.min(usize::from(most)) {
            let first = self.head.filter_at() + filter.slices.len() as u64 * u64::from(blocks);
            let mut slice: Arc<[u8]> = std::iter::repeat_n(0, self.head.filter.slice_bytes()).collect();
            let bytes = Arc::get_mut(&mut slice).ok_or(Bad::Damaged)?;
            let mut page = [0; PAGE];
            for (number, block) in (first..).zip(bytes.chunks_exact_mut(PAYLOAD)) {
                self.pages.read(number, &mut page)?;
                block.copy_from_slice(&page[..PAYLOAD]);
            }
            filter.slices.push(slice);
        }
        Ok(())
    }

    /// The first location of a chunk that `usable` accepts.
    pub(super) fn find(
        &self,
        kind: ObjectType,
        id: &Id,
        usable: impl Fn(&Location) -> bool,
    ) -> Result<Option<Location>, Bad> {
        let mut key = [0; 33];
        key[..32].copy_from_slice(&id.0);
        key[32] = kind as u8;
        let mut page = [0; PAGE];
        let Some(mut number) = self.seek(&key, &mut page)? else { return Ok(None) };
        // Copies of a chunk in different packs follow each other, perhaps over the end of the page.
        loop {
            let records = RecordPage(&page);
            for i in records.lower_bound(&key)..records.count() {
                if records.order(i) != &key[..] {
                    return Ok(None);
                }
                let record = records.get(i).ok_or(Bad::Damaged)?;
                let at = record.location(self.pack(record.pack)?.name);
                if usable(&at) {
                    return Ok(Some(at));
                }
            }
            number += 1;
            if !records.goes_on() || number >= self.head.pages {
                return Ok(None);
            }
            self.read_records(number, &mut page)?;
        }
    }

    /// Reads the page that the first record not before `key` is on into `page` and returns its number; `None`:
    /// `key` is not in the run.
    fn seek(&self, key: &[u8; 33], page: &mut [u8; PAGE]) -> Result<Option<u32>, Bad> {
        let home = scaled(&Id(key[..32].try_into().map_err(|_| Bad::Damaged)?), self.head.homes);
        let last = home.saturating_add(self.head.reach).min(self.head.pages - 1);
        // Records are in order over all pages, and every page between a record and its home is full and marked.
        let (mut low, mut high, mut middle) = (home, last, home);
        loop {
            self.read_records(middle, page)?;
            let records = RecordPage(page);
            let at = records.lower_bound(key);
            if at == records.count() {
                if !records.goes_on() || middle == high {
                    return Ok(None);
                }
                low = middle + 1;
            } else if records.order(at) == &key[..] && (at > 0 || middle == low) {
                return Ok(Some(middle));
            } else if at > 0 || middle == low {
                return Ok(None);
            } else {
                // Everything here is at or after the key; the key may be on an earlier page, or start here.
                high = middle;
            }
            middle = low + (high - low) / 2;
        }
    }

    fn read_records(&self, number: u32, page: &mut [u8; PAGE]) -> Result<(), Bad> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.pages.read(self.head.records_at() + u64::from(number), page)
    }

    /// A row of the pack table.
    pub(super) fn pack(&self, row: u32) -> Result<PackRow, Bad> {
        if row >= self.head.packs {
            return Err(Bad::Damaged);
        }
        let (page, at) = (u64::from(row) / ROWS_PER_PAGE as u64, row as usize % ROWS_PER_PAGE * PACK_ROW);
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(page).unwrap_or(0) % ROW_CACHE;
        let entry = match &mut rows[place] {
            Some((number, bytes)) if *number == page => bytes,
            slot => {
                let mut bytes = Box::new([0; PAGE]);
                self.reads.fetch_add(1, Ordering::Relaxed);
                self.pages.read(self.head.packs_at() + page, &mut bytes)?;
                &mut slot.insert((page, bytes)).1
            }
        };
        entry[at..].first_chunk().map(PackRow::decode).ok_or(Bad::Damaged)
    }

    /// All packs of the run, a page at a time. A pack may be listed twice.
    pub(super) fn packs(&self) -> impl Iterator<Item = Result<PackRow, Bad>> + '_ {
        (0..self.head.packs).map(|row| self.pack(row))
    }

    /// The segments whose records are all in the run, ascending.
    pub(super) fn covers(&self) -> Result<Vec<SegmentName>, Bad> {
        let mut out = Vec::new();
        let mut page = [0; PAGE];
        for i in 0..self.head.covers as usize {
            let at = i % COVERS_PER_PAGE * COVER;
            if at == 0 {
                self.pages.read(self.head.covers_at() + (i / COVERS_PER_PAGE) as u64, &mut page)?;
            }
            out.push(decode_cover(page[at..].first_chunk().ok_or(Bad::Damaged)?));
        }
        Ok(out)
    }
}

fn encode_cover(name: &SegmentName) -> [u8; COVER] {
    let mut out = [0; COVER];
    out[..4].copy_from_slice(&name.generation.to_le_bytes());
    out[4..16].copy_from_slice(&name.session.0);
    out[16..20].copy_from_slice(&name.number.to_le_bytes());
    out[20] = name.last as u8;
    out
}

fn decode_cover(from: &[u8; COVER]) -> SegmentName {
    let word = |at: usize| from[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    let mut session = [0; 12];
    session.copy_from_slice(&from[4..16]);
    SegmentName {
        generation: word(0),
        session: SessionId(session),
        number: word(16),
        last: Last::from_code(from[20]),
    }
}

/// File of the run `id` in `dir`.
pub(super) fn path(dir: &Path, id: &[u8; 16]) -> PathBuf {
    dir.join(format!("{}.run", hex::encode(id)))
}

#[cfg(test)]
mod tests;
