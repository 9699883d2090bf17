//! The way of a block volume: data ranges -> reads -> chunks -> tickets -> leaves of 1,024 chunks.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::parent::Extents;
use super::readahead::ReadAhead;
use super::ticket::{Outcome, Ticket, ticket};
use super::worker::{Job, Lane};
use crate::entry::PageRef;
use crate::error::{Error, FirstError, Result};
use crate::io::Buf;
use crate::page::extents::{ExtentWriter, Shape};
use crate::progress::{Counter, Progress};
use crate::source::block::BlockSource;

/// How long a silent writer is waited for before somebody looks whether the run was cancelled.
const WAKE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the driver tells the page writer, in order of the volume.
#[derive(Debug)]
pub(super) enum Draft {
    /// Bytes that were not read because there is nothing.
    Hole(u64),
    /// Bytes that a worker has in hand.
    Chunk(Ticket, u64),
}

/// Cuts what is read into chunks and hands them out.
pub(super) struct Driver {
    pub(super) chunk: usize,
    pub(super) parent: Option<Extents>,
    pub(super) jobs: Sender<Job>,
    pub(super) drafts: Sender<Draft>,
    pub(super) progress: Arc<Progress>,
    pub(super) failure: Arc<FirstError>,
    /// First byte that was not handed out yet.
    pub(super) next: u64,
}

impl Driver {
    /// Reads a device or image file of `source.size()` bytes.
    ///
    /// # Errors
    /// [`Error::Source`] when it cannot be read or ends early; [`Error::Cancelled`].
    pub(super) fn read(mut self, source: &BlockSource, reads: &mut ReadAhead) -> Result<u64> {
        let size = source.size();
        let mut ranges = source.data_ranges(self.chunk as u64);
        reads.read(source.file(), source.path(), &mut ranges, &mut |offset, asked, buf| {
            self.hole_until(offset)?;
            if buf.len() < asked {
                return Err(ended_early(source.path(), offset + buf.len() as u64, size));
            }
            self.cut(buf)
        })?;
        drop(ranges);
        self.hole_until(size)?;
        if source.present_size()? != size {
            return Err(ended_early(source.path(), source.present_size()?, size));
        }
        Ok(size)
    }

    /// Reads a stream to its end and returns its length in bytes.
    ///
    /// # Errors
    /// [`Error::Source`] when it cannot be read; [`Error::Cancelled`].
    pub(super) fn read_stream(mut self, mut input: &File, path: &Path, reads: &ReadAhead) -> Result<u64> {
        loop {
            let mut buf = reads.take()?;
            let capacity = buf.capacity();
            buf.set_len(capacity);
            let mut filled = 0;
            while filled < capacity {
                self.wait_for(input)?;
                match input.read(&mut buf[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        let at = self.next + filled as u64;
                        return Err(Error::source_io(path, format!("cannot read at byte {at}"), e));
                    }
                }
            }
            buf.set_len(filled);
            self.progress.add(Counter::Read, filled as u64);
            if filled > 0 {
                self.cut(buf)?;
            }
            if filled < capacity {
                return Ok(self.next);
            }
        }
    }

    /// Waits until a read would not block. The writer may be silent for hours; whoever cancels does not wait for it.
    fn wait_for(&self, input: &File) -> Result<()> {
        loop {
            self.progress.check()?;
            self.failure.check()?;
            let mut ready = [PollFd::new(input, PollFlags::IN)];
            // Whatever is wrong with the descriptor, the read says it better.
            if !matches!(poll(&mut ready, Some(&WAKE)), Ok(0) | Err(Errno::INTR)) {
                return Ok(());
            }
        }
    }

    fn hole_until(&mut self, offset: u64) -> Result<()> {
        if offset > self.next {
            let len = offset - self.next;
            self.progress.add(Counter::Holes, len);
            self.progress.add(Counter::Done, len);
            self.next = offset;
            self.drafts.send(Draft::Hole(len)).map_err(|_| Error::Cancelled)?;
        }
        Ok(())
    }

    fn cut(&mut self, buf: Buf) -> Result<()> {
        let bytes = buf.freeze();
        let mut at = 0;
        while at < bytes.len() {
            let data = bytes.slice(at..bytes.len().min(at + self.chunk));
            let len = data.len() as u64;
            let parent = match &mut self.parent {
                Some(parent) => parent.chunk_at(self.next, len)?,
                None => None,
            };
            let (ticket, answer) = ticket();
            self.jobs.send(Job { data, parent, zero_is_hole: true, answer }).map_err(|_| Error::Cancelled)?;
            self.drafts.send(Draft::Chunk(ticket, len)).map_err(|_| Error::Cancelled)?;
            self.next += len;
            at += self.chunk;
        }
        Ok(())
    }
}

fn ended_early(path: &Path, at: u64, size: u64) -> Error {
    Error::Source {
        path: path.to_owned(),
        what: format!(
            "ends before byte {at} now, and had {size} bytes when the backup began; take a snapshot of it first"
        ),
        source: None,
    }
}

/// Builds the tree of pages from drafts in order and returns its root.
pub(super) fn write_pages(drafts: &Receiver<Draft>, chunk: u32, lane: &mut Lane) -> Result<PageRef> {
    let mut pages = ExtentWriter::new(Shape::Fixed { chunk });
    while let Ok(first) = drafts.recv() {
        // All that is there, and the last first: its answer comes when most others are in, so one sleep is for all.
        let batch: Vec<_> = std::iter::once(first).chain(drafts.try_iter()).collect();
        if let Some(Draft::Chunk(last, _)) = batch.last() {
            last.wait()?;
        }
        for draft in batch {
            match draft {
                Draft::Hole(len) => pages.hole(len, lane)?,
                Draft::Chunk(ticket, len) => match ticket.wait()? {
                    Outcome::Hole => pages.hole(len, lane)?,
                    Outcome::Chunk(chunk) => pages.chunk(chunk, len, lane)?,
                },
            }
        }
    }
    let root = pages.finish(lane)?;
    lane.finish()?;
    Ok(root)
}
