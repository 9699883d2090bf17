//! Sorted runs of names on disk, for directories that are too large to sort in memory.
//!
//! All runs of a walk share one nameless temporary file. A run is a sequence of records, each `length (2 bytes, little
//! endian), hint (1 byte), name`. It is written once, read once from front to back, and its space is given back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;

use super::list::Hint;
use crate::error::{Error, Result};
use crate::temp;

/// Bytes of a run that are read or written at a time.
pub(super) const BUFFER: usize = 8 * 1024;
const HEAD: usize = 3;
/// Block size of file systems, in bytes.
const BLOCK: u64 = 4096;

/// The temporary file of a walk. Created when the first run is written.
pub(super) struct Spill {
    dir: PathBuf,
    file: Option<File>,
    end: u64,
    /// Runs that are being written or not given back yet.
    live: usize,
    /// A run is being written at the end of the file, which must not move meanwhile.
    writing: bool,
}

impl Spill {
    /// Runs will go to a nameless file in `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, file: None, end: 0, live: 0, writing: false }
    }

    /// Runs that are not given back yet.
    #[cfg(test)]
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Bytes of disk space in use.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.blocks() * 512)
    }

    /// Starts a run at the end of the file. One at a time: finish it before the next is started.
    pub(super) fn writer(&mut self) -> Result<RunWriter> {
        if self.file.is_none() {
            // A cache directory that cannot be written costs speed, never a backup.
            let file = temp::nameless(Some(&self.dir))
                .map_err(Error::io("create a temporary file for sorting in", &self.dir))?;
            self.file = Some(file);
        }
        self.live += 1;
        self.writing = true;
        Ok(RunWriter { start: self.end, buffer: Vec::with_capacity(BUFFER) })
    }

    fn file(&self) -> Result<&File> {
        self.file.as_ref().ok_or_else(|| Error::Internal("a sorted run without its file".into()))
    }

    /// Gives back the space of a run.
    fn free(&mut self, start: u64, end: u64) {
        let end = end.next_multiple_of(BLOCK);
        self.live -= 1;
        let Some(file) = &self.file else { return };
        // Only disk space is at stake: where holes cannot be punched the file stays larger until the walk ends.
        if self.live == 0 {
            self.end = 0;
            let _ = file.set_len(0);
        } else if self.end == end && !self.writing {
            self.end = start;
            let _ = file.set_len(start);
        } else {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(file, mode, start, end - start);
        }
    }
}

/// Writes one run.
pub(super) struct RunWriter {
    start: u64,
    buffer: Vec<u8>,
}

impl RunWriter {
    /// Appends a name, which must not sort before the previous one.
    pub(super) fn push(&mut self, name: &[u8], hint: Hint, spill: &mut Spill) -> Result<()> {
        let len = u16::try_from(name.len()).map_err(|_| Error::Internal("a name of over 64 KiB".into()))?;
        if self.buffer.len() + HEAD + name.len() > BUFFER {
            self.flush(spill)?;
        }
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer.push(hint as u8);
        self.buffer.extend_from_slice(name);
        Ok(())
    }

    fn flush(&mut self, spill: &mut Spill) -> Result<()> {
        let written = spill.file()?.write_all_at(&self.buffer, spill.end);
        written.map_err(Error::io("write names to a temporary file in", &spill.dir))?;
        spill.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the run.
    pub(super) fn finish(mut self, spill: &mut Spill) -> Result<Run> {
        self.flush(spill)?;
        spill.writing = false;
        let end = spill.end;
        // Whole blocks, so that nothing is left when the run is punched out.
        spill.end = spill.end.next_multiple_of(BLOCK);
        Ok(Run { start: self.start, end, next: self.start, buffer: Vec::new(), at: 0 })
    }
}

/// A sorted run that is being read.
pub(super) struct Run {
    start: u64,
    end: u64,
    /// File offset behind `buffer`.
    next: u64,
    buffer: Vec<u8>,
    /// The present record inside `buffer`.
    at: usize,
}

impl Run {
    /// Bytes of memory held.
    pub(super) fn resident(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives the buffer back; reading goes on where it was.
    pub(super) fn park(&mut self) {
        self.next -= (self.buffer.len() - self.at) as u64;
        self.buffer = Vec::new();
        self.at = 0;
    }

    /// Makes the present record readable by [`Run::head`]. False at the end of the run.
    pub(super) fn load(&mut self, spill: &Spill) -> Result<bool> {
        let rest = &self.buffer[self.at..];
        let whole = rest.len() >= HEAD && rest.len() >= HEAD + name_len(rest);
        if whole {
            return Ok(true);
        }
        let kept = rest.len();
        let missing = self.end - self.next;
        if missing == 0 {
            return if kept == 0 {
                Ok(false)
            } else {
                Err(Error::Internal("a sorted run ends early".into()))
            };
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        let more = usize::try_from(missing).unwrap_or(usize::MAX).min(BUFFER - kept);
        self.buffer.reserve_exact(BUFFER - kept);
        self.buffer.resize(kept + more, 0);
        let read = spill.file()?.read_exact_at(&mut self.buffer[kept..], self.next);
        read.map_err(Error::io("read names from a temporary file in", &spill.dir))?;
        self.next += more as u64;
        Ok(true)
    }

    /// The present record, after [`Run::load`] returned true.
    pub(super) fn head(&self) -> (&[u8], Hint) {
        let rest = &self.buffer[self.at..];
        (&rest[HEAD..HEAD + name_len(rest)], Hint::from_code(rest[2]))
    }

    /// Goes on to the next record.
    pub(super) fn advance(&mut self) {
        self.at += HEAD + name_len(&self.buffer[self.at..]);
    }

    /// Gives back the run's space, read to its end or not.
    pub(super) fn free(self, spill: &mut Spill) {
        spill.free(self.start, self.end);
    }
}

fn name_len(record: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([record[0], record[1]]))
}
