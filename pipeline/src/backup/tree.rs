//! The way of a directory tree: entries -> bundles of small files, chunks of large ones -> tickets -> pages.
//!
//! Small files travel together in bundles of about 256 KiB. A bundle ends where a keyed hash of a path says so, so
//! that a file inserted in one place moves nothing in another.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender};

use super::held::{Budget, Held};
use super::readahead::ReadAhead;
use super::ticket::{Answer, Outcome, Ticket, ticket};
use super::worker::{Job, Lane};
use crate::chunk::Cutter;
use crate::entry::{ChunkRef, Content, Entry, Extent, PageRef, Time};
use crate::error::{Error, Result};
use crate::io::DirectFile;
use crate::page::entries::{EntryWriter, path_hash};
use crate::page::extents::{ExtentWriter, Shape};
use crate::progress::{Counter, Progress};
use crate::source::tree::{Found, FoundData, OpenFile, SmallFile};

/// Files of this size and more are chunks of their own, bytes: the least a content-defined chunk has.
const BUNDLED: u64 = 128 << 10;

/// A bundle may end at 64 KiB and must at 512 KiB, bytes.
const BUNDLE: Range<usize> = 64 << 10..512 << 10;

/// A bundle may end at one in so many files: with files of 6 KiB that makes 256 KiB.
const BUNDLE_ODDS: u64 = 32;

/// Drafts after which an open bundle ends in any case. Less than [`DRAFTS`], or the page writer could wait for a
/// bundle that cannot be handed out because the page writer's queue is full.
const BUNDLE_DRAFTS: usize = 512;

/// Drafts that may wait for the page writer.
pub(super) const DRAFTS: usize = 2048;

/// Entries of up to this many bytes are drafts without a share of [`HEAVY`]: [`DRAFTS`] of them are granted anyway.
const LIGHT: usize = 4 << 10;

/// Bytes that heavier entries may take while they wait for the page writer, but for one that is alone: those with large
/// attributes.
const HEAVY: usize = 4 << 20;

/// Extents that an entry holds itself; files with more have pages of their own.
const INLINE_EXTENTS: usize = 64;

/// What files with several links may hold of memory while their contents are remembered, in extents of about 96 bytes; a
/// file counts as one more. Links to files that were forgotten are read again, and found to be known.
const LINKS: usize = 64 << 10;

/// What the driver tells the page writer, in tree order.
#[derive(Debug)]
pub(super) enum Draft {
    /// An entry that is complete: it has no bytes, or its parent's.
    Entry(Box<Entry>),
    /// An extent of the file whose [`Draft::File`] follows.
    Piece(Piece),
    /// The file whose extents were sent; with their number when further links to it may come.
    File(Box<Entry>, Option<usize>),
    /// The extents sent last belong to a file that could not be read.
    Abandon,
    /// Another link to a file that was remembered.
    Link(Box<Entry>),
}

/// A draft on its way, and the memory it takes beyond the ordinary.
pub(super) type Sent = (Draft, Option<Held>);

/// A stretch of a file.
#[derive(Debug)]
pub(super) enum Piece {
    Hole(u64),
    /// All `len` bytes of what the ticket stands for.
    Chunk {
        ticket: Ticket,
        len: u32,
    },
    /// `len` bytes at `skip` of the bundle that the ticket stands for.
    Slice {
        ticket: Ticket,
        skip: u32,
        len: u32,
    },
}

/// The last files with several links, by device and inode. Driver and page writer each keep one and do the same with
/// it, by the number of extents that the driver counts, so what one remembers the other knows.
#[derive(Debug)]
struct Recent<V> {
    map: HashMap<(u64, u64), (V, usize)>,
    order: VecDeque<(u64, u64)>,
    extents: usize,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new(), extents: 0 }
    }
}

impl<V> Recent<V> {
    fn insert(&mut self, entry: &Entry, value: V, extents: usize) {
        let key = (entry.device, entry.inode);
        let extents = extents + 1;
        self.extents += extents;
        match self.map.insert(key, (value, extents)) {
            None => self.order.push_back(key),
            Some((_, before)) => self.extents -= before,
        }
        while self.extents > LINKS
            && let Some(oldest) = self.order.pop_front()
        {
            self.extents -= self.map.remove(&oldest).map_or(0, |(_, extents)| extents);
        }
    }

    fn get(&self, entry: &Entry) -> Option<&V> {
        self.map.get(&(entry.device, entry.inode)).map(|(value, _)| value)
    }
}

/// Turns what the walk finds into jobs and drafts.
pub(super) struct Driver<'a> {
    root: &'a Path,
    cutter: Cutter,
    boundary: [u8; 32],
    jobs: Sender<Job>,
    drafts: Sender<Sent>,
    heavy: Budget,
    progress: Arc<Progress>,
    bundle: Option<Bundle>,
    links: Recent<Stamp>,
    /// Extents sent since the last file.
    extents: usize,
}

/// What tells that a file was written to.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Stamp {
    fn of(entry: &Entry) -> Self {
        Self { size: entry.size, mtime: entry.mtime, ctime: entry.ctime }
    }
}

/// Small files on their way into one chunk.
struct Bundle {
    bytes: BytesMut,
    ticket: Ticket,
    answer: Answer,
    /// Drafts sent since it was opened.
    drafts: usize,
}

/// How far a large file has come.
struct Large {
    /// First byte that was not dealt with yet.
    end: u64,
    /// The beginning of a chunk that goes on in the next piece.
    carry: BytesMut,
    /// The file ended before its size.
    short: bool,
}

impl<'a> Driver<'a> {
    /// A driver without an open bundle, for the tree at `root`.
    pub(super) fn new(
        root: &'a Path,
        cutter: Cutter,
        boundary: [u8; 32],
        jobs: Sender<Job>,
        drafts: Sender<Sent>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            root,
            cutter,
            boundary,
            jobs,
            drafts,
            heavy: Budget::new(HEAVY),
            progress,
            bundle: None,
            links: Recent::default(),
            extents: 0,
        }
    }

    /// Deals with one entry; large files are read with `reads`.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the run failed elsewhere. Trouble with the file itself is reported as skipped.
    pub(super) fn visit(&mut self, found: Found, reads: &mut ReadAhead) -> Result<()> {
        let Found { entry, data } = found;
        let entry = Box::new(entry);
        let linked = entry.links > 1 && entry.size > 0;
        match data {
            FoundData::None => self.draft(Draft::Entry(entry)),
            FoundData::Unchanged => {
                self.progress.add(Counter::Done, entry.size);
                self.progress.add(Counter::Reused, entry.size);
                self.draft(Draft::Entry(entry))
            }
            // Written to since its other name was read, it is another file, with other contents.
            FoundData::Small(_) | FoundData::Large(_)
                if linked && self.links.get(&entry) == Some(&Stamp::of(&entry)) =>
            {
                self.progress.add(Counter::Done, entry.size);
                self.draft(Draft::Link(entry))
            }
            FoundData::Small(file) => {
                self.small(&entry, &file)?;
                self.file(entry, linked)
            }
            FoundData::Large(file) => self.large(entry, &file, linked, reads),
        }
    }

    /// Hands out the last bundle.
    ///
    /// # Errors
    /// As [`Driver::visit`].
    pub(super) fn finish(mut self) -> Result<()> {
        self.close_bundle()
    }

    fn file(&mut self, entry: Box<Entry>, linked: bool) -> Result<()> {
        let extents = std::mem::take(&mut self.extents);
        if linked {
            self.links.insert(&entry, Stamp::of(&entry), extents);
        }
        self.draft(Draft::File(entry, linked.then_some(extents)))
    }

    fn small(&mut self, entry: &Entry, file: &SmallFile) -> Result<()> {
        let mut end = 0;
        for (range, bytes) in file.parts() {
            self.hole(range.offset - end)?;
            end = range.offset + range.len;
            if range.len >= BUNDLED {
                let mut carry = BytesMut::new();
                self.cut(&Bytes::copy_from_slice(bytes), &mut carry)?;
                self.cut_rest(&mut carry)?;
            } else {
                self.bundle(bytes)?;
            }
        }
        self.hole(entry.size - end)?;
        let ends = self.bundle.as_ref().is_some_and(|b| {
            b.bytes.len() >= BUNDLE.start
                && path_hash(&self.boundary, &entry.path).is_multiple_of(BUNDLE_ODDS)
        });
        if ends { self.close_bundle() } else { Ok(()) }
    }

    fn bundle(&mut self, bytes: &[u8]) -> Result<()> {
        if self.bundle.as_ref().is_some_and(|b| b.bytes.len() + bytes.len() > BUNDLE.end) {
            self.close_bundle()?;
        }
        let bundle = self.bundle.get_or_insert_with(|| {
            let (ticket, answer) = ticket();
            Bundle { bytes: BytesMut::new(), ticket, answer, drafts: 0 }
        });
        let skip = length(bundle.bytes.len())?;
        bundle.bytes.extend_from_slice(bytes);
        let ticket = bundle.ticket.clone();
        self.draft(Draft::Piece(Piece::Slice { ticket, skip, len: length(bytes.len())? }))
    }

    fn close_bundle(&mut self) -> Result<()> {
        match self.bundle.take() {
            None => Ok(()),
            Some(bundle) => self.job(bundle.bytes.freeze(), bundle.answer),
        }
    }

    /// Reads a large file's data ranges with several reads in flight and cuts each at content-defined places.
    fn large(
        &mut self,
        mut entry: Box<Entry>,
        file: &OpenFile,
        linked: bool,
        reads: &mut ReadAhead,
    ) -> Result<()> {
        let path = self.root.join(OsStr::from_bytes(file.path()));
        let direct = DirectFile::from_shared(file.file());
        let mut ranges = file.extents().map(|range| {
            range
                .map(|r| r.offset..r.offset + r.len)
                .map_err(|e| Error::source_io(&path, "cannot find its data", e))
        });
        let mut state = Large { end: 0, carry: BytesMut::new(), short: false };
        let read = reads.read(&direct, &path, &mut ranges, &mut |offset, asked, buf| {
            if state.short || buf.is_empty() {
                state.short = true;
                return Ok(());
            }
            if offset > state.end {
                self.cut_rest(&mut state.carry)?;
                self.hole(offset - state.end)?;
            }
            state.end = offset + buf.len() as u64;
            state.short = buf.len() < asked;
            self.cut(&buf.freeze(), &mut state.carry)
        });
        let read = read.and_then(|()| self.cut_rest(&mut state.carry));
        self.cutter.reset();
        match read {
            Ok(()) => {}
            // The file's own trouble; anything else ends the run.
            Err(Error::Source { what, source, .. }) => {
                let reason = source.map_or_else(|| what.clone(), |e| format!("{what}: {e}"));
                self.progress.skip(&entry.path, reason);
                self.extents = 0;
                return self.draft(Draft::Abandon);
            }
            Err(error) => return Err(error),
        }
        if state.short {
            // What was read is what the file had: stored as such, and reported below.
            entry.size = state.end;
        }
        self.hole(entry.size - state.end)?;
        match file.changed() {
            Ok(None) if state.short => self.progress.skip(&entry.path, "could be read in part only"),
            Ok(None) => {}
            Ok(Some(what)) => self.progress.skip(&entry.path, what),
            Err(e) => self.progress.skip(&entry.path, format!("cannot be looked at after reading: {e}")),
        }
        // More than that are in pages of their own, which the entry only names.
        self.extents = self.extents.min(INLINE_EXTENTS);
        self.file(entry, linked)
    }

    /// Cuts the next bytes of a stream into chunks; `carry` holds the beginning of a chunk between calls.
    fn cut(&mut self, bytes: &Bytes, carry: &mut BytesMut) -> Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let Some(n) = self.cutter.next_cut(&bytes[at..]) else {
                carry.extend_from_slice(&bytes[at..]);
                return Ok(());
            };
            let chunk = if carry.is_empty() {
                bytes.slice(at..at + n)
            } else {
                carry.extend_from_slice(&bytes[at..at + n]);
                std::mem::take(carry).freeze()
            };
            self.chunk(chunk)?;
            at += n;
        }
        Ok(())
    }

    /// Ends the stream: what is left is its last chunk.
    fn cut_rest(&mut self, carry: &mut BytesMut) -> Result<()> {
        self.cutter.reset();
        if carry.is_empty() { Ok(()) } else { self.chunk(std::mem::take(carry).freeze()) }
    }

    fn chunk(&mut self, data: Bytes) -> Result<()> {
        let len = length(data.len())?;
        let (ticket, answer) = ticket();
        self.job(data, answer)?;
        self.draft(Draft::Piece(Piece::Chunk { ticket, len }))
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.progress.add(Counter::Holes, len);
        self.progress.add(Counter::Done, len);
        self.draft(Draft::Piece(Piece::Hole(len)))
    }

    fn job(&self, data: Bytes, answer: Answer) -> Result<()> {
        self.jobs.send(Job { data, parent: None, zero_is_hole: false, answer }).map_err(|_| Error::Cancelled)
    }

    fn draft(&mut self, draft: Draft) -> Result<()> {
        if let Some(bundle) = &mut self.bundle {
            bundle.drafts += 1;
            if bundle.drafts >= BUNDLE_DRAFTS {
                self.close_bundle()?;
            }
        }
        if matches!(draft, Draft::Piece(_)) {
            self.extents += 1;
        }
        let held = self.hold(&draft)?;
        self.drafts.send((draft, held)).map_err(|_| Error::Cancelled)
    }

    /// Memory for a draft with a heavy entry: the walk's grant for its attributes ends when the walk goes on, but the
    /// draft waits for the page writer.
    fn hold(&mut self, draft: &Draft) -> Result<Option<Held>> {
        let weight = match draft {
            Draft::Entry(entry) | Draft::File(entry, _) | Draft::Link(entry) => entry.weight(),
            Draft::Piece(_) | Draft::Abandon => return Ok(None),
        };
        if weight <= LIGHT {
            return Ok(None);
        }
        if let Some(held) = self.heavy.try_take(weight) {
            return Ok(Some(held));
        }
        // The page writer may wait for the open bundle: it must be handed out before anyone waits for the page writer.
        self.close_bundle()?;
        Ok(Some(self.heavy.take(weight)))
    }
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::Internal("chunk too large".into()))
}

/// Builds the tree of pages from drafts in order and returns its root.
///
/// # Errors
/// [`Error::Cancelled`] when the run failed elsewhere, or what storing a page fails with.
pub(super) fn write_pages(
    drafts: &Receiver<Sent>,
    mut entries: EntryWriter,
    lane: &mut Lane,
) -> Result<PageRef> {
    let mut extents = Extents::default();
    let mut links: Recent<Content> = Recent::default();
    for (draft, _held) in drafts {
        match draft {
            Draft::Entry(entry) => entries.push(&entry, lane)?,
            Draft::Piece(piece) => extents.push(piece, lane)?,
            Draft::Abandon => extents = Extents::default(),
            Draft::File(mut entry, remember) => {
                entry.content = std::mem::take(&mut extents).finish(lane)?;
                entries.push(&entry, lane)?;
                if let Some(extents) = remember {
                    links.insert(&entry, entry.content.clone(), extents);
                }
            }
            Draft::Link(mut entry) => {
                let known =
                    links.get(&entry).ok_or_else(|| Error::Internal("a link without a file".into()))?;
                entry.content = known.clone();
                entries.push(&entry, lane)?;
            }
        }
    }
    let root = entries.finish(lane)?;
    lane.finish()?;
    Ok(root)
}

/// The extents of one file: a short list, or pages once they are many.
#[derive(Debug, Default)]
struct Extents {
    list: Vec<Extent>,
    sliced: bool,
    pages: Option<ExtentWriter>,
}

impl Extents {
    fn push(&mut self, piece: Piece, lane: &mut Lane) -> Result<()> {
        let extent = match piece {
            Piece::Hole(len) => Extent::Hole { len },
            Piece::Chunk { ticket, len } => Extent::Chunk { chunk: wait(&ticket)?, skip: 0, len },
            Piece::Slice { ticket, skip, len } => {
                // Pages list whole chunks. A file with slices has few extents, because only small files have any.
                self.sliced = true;
                Extent::Chunk { chunk: wait(&ticket)?, skip, len }
            }
        };
        if self.pages.is_none() && self.list.len() >= INLINE_EXTENTS && !self.sliced {
            let mut pages = ExtentWriter::new(Shape::ContentDefined);
            for earlier in self.list.drain(..) {
                append(&mut pages, &earlier, lane)?;
            }
            self.pages = Some(pages);
        }
        match &mut self.pages {
            Some(pages) => append(pages, &extent, lane),
            None => {
                self.list.push(extent);
                Ok(())
            }
        }
    }

    fn finish(self, lane: &mut Lane) -> Result<Content> {
        Ok(match self.pages {
            Some(pages) => Content::Paged(Box::new(pages.finish(lane)?)),
            None if self.list.is_empty() => Content::Empty,
            None => Content::Extents(self.list),
        })
    }
}

fn wait(ticket: &Ticket) -> Result<ChunkRef> {
    match ticket.wait()? {
        Outcome::Chunk(chunk) => Ok(chunk),
        Outcome::Hole => Err(Error::Internal("a file's zeros became a hole".into())),
    }
}

fn append(pages: &mut ExtentWriter, extent: &Extent, lane: &mut Lane) -> Result<()> {
    match extent {
        Extent::Hole { len } => pages.hole(*len, lane),
        Extent::Chunk { chunk, len, .. } => pages.chunk(*chunk, u64::from(*len), lane),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;
    use crate::chunk::Sizes;
    use crate::entry::EntryKind;
    use crate::seal::MasterKey;

    fn entry(inode: u64, attributes: usize) -> Entry {
        Entry {
            path: b"file".to_vec(),
            kind: EntryKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            ctime: Time::default(),
            size: 1,
            inode,
            device: 1,
            links: 2,
            flags: 0,
            xattrs: vec![(b"user.x".to_vec(), vec![0; attributes])],
            content: Content::Empty,
        }
    }

    /// What waits for a page writer that is late, after `drafts` entries with so many bytes of attributes.
    fn waiting(drafts: usize, attributes: usize) -> usize {
        let (jobs, work) = crossbeam_channel::unbounded();
        let (sent, received) = crossbeam_channel::bounded(DRAFTS);
        let cutter = Cutter::new(&MasterKey::from_bytes([0; 32]), Sizes::FILES);
        let mut driver = Driver::new(Path::new("/"), cutter, [0; 32], jobs, sent, Arc::default());
        driver.bundle(b"bytes of a small file").unwrap();
        let before = received.len();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                (0..drafts).for_each(|_| driver.draft(Draft::Entry(Box::new(entry(0, attributes)))).unwrap());
            });
            let mut waiting = usize::MAX;
            while waiting != received.len() {
                waiting = received.len();
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
            if waiting < before + drafts {
                // The page writer waits for this.
                assert_eq!(work.len(), 1);
            }
            assert_eq!(received.iter().count(), before + drafts);
            waiting - before
        })
    }

    #[test]
    fn drafts_hold_a_bounded_amount_of_attributes() {
        assert_eq!(waiting(300, 1000), 300);
        let waiting = waiting(300, 60 << 10);
        assert!((60..70).contains(&waiting), "{waiting}");
    }

    #[test]
    fn an_entry_larger_than_all_that_may_wait_goes_alone() {
        assert_eq!(waiting(5, HEAVY + 1), 1);
    }

    #[test]
    fn linked_files_are_remembered_by_their_extents_and_both_sides_forget_the_same() {
        // What `BOOKKEEPING` of the plan has room for.
        assert!(LINKS * size_of::<Extent>() <= 8 << 20, "{}", size_of::<Extent>());
        let (mut driver, mut writer) = (Recent::default(), Recent::<Vec<u64>>::default());
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..50_000 {
            // Some come again, because the file was written to meanwhile.
            let (inode, extents) = (rng.u64(..20_000), rng.usize(..=INLINE_EXTENTS));
            driver.insert(&entry(inode, 0), (), extents);
            writer.insert(&entry(inode, 0), vec![0; extents], extents);
            assert!(driver.get(&entry(inode, 0)).is_some());
        }
        let held: usize = writer.map.values().map(|(extents, _)| extents.len() + 1).sum();
        assert_eq!(held, writer.extents);
        assert!((LINKS / 2..=LINKS).contains(&held), "{held}");
        assert!(
            (0..20_000).all(|n| driver.get(&entry(n, 0)).is_some() == writer.get(&entry(n, 0)).is_some())
        );
        assert_eq!(writer.map.len(), writer.order.len());
    }
}
