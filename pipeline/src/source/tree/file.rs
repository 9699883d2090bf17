//! The bytes of regular files: small ones read whole, large ones handed on open; holes are known in both cases.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::prefetch::Grant;
use super::stat::Stat;
use crate::entry::Time;

/// A stretch of a file that holds data. What lies between stretches is a hole: zeros without blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRange {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes, never 0.
    pub len: u64,
}

/// The contents of a small file.
#[derive(Debug)]
pub struct SmallFile {
    /// The bytes of all [`SmallFile::ranges`], one after the other.
    pub bytes: Buffer,
    /// Where the bytes belong, in ascending order, not touching. One range for a file without holes, none for a file
    /// that is one hole. The file's size is in its entry.
    pub ranges: Vec<DataRange>,
}

impl SmallFile {
    /// The data ranges with their bytes.
    pub fn parts(&self) -> impl Iterator<Item = (DataRange, &[u8])> {
        let mut rest: &[u8] = &self.bytes;
        self.ranges.iter().map(move |range| {
            let (bytes, behind) = rest.split_at(usize::try_from(range.len).unwrap_or(rest.len()));
            rest = behind;
            (*range, bytes)
        })
    }
}

/// Bytes that count against the walk's memory until they are dropped. Whoever keeps them slows the walk down, but
/// never stops it.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    _grant: Option<Grant>,
}

impl Buffer {
    pub(super) fn new(bytes: Vec<u8>, grant: Option<Grant>) -> Self {
        Self { bytes, _grant: grant }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A regular file that is too large to be read ahead, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    file: Arc<File>,
    path: Vec<u8>,
    size: u64,
    mtime: Time,
    _grant: Option<Grant>,
}

impl OpenFile {
    pub(super) fn new(file: File, path: Vec<u8>, stat: &Stat, grant: Option<Grant>) -> Self {
        Self { file: Arc::new(file), path, size: stat.size, mtime: stat.mtime, _grant: grant }
    }

    /// The file. Read it by offset: its own position is moved by [`OpenFile::extents`].
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Path relative to the root of the tree, for messages.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Bytes when it was opened. A reader that finds the end earlier stores what it got and reports
    /// [`OpenFile::changed`]; bytes beyond are not read.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The stretches that hold data, in order, found while they are asked for.
    pub fn extents(&self) -> Extents<'_> {
        Extents { file: &self.file, next: 0, size: self.size }
    }

    /// What happened to the file since it was opened, as a reason for [`crate::progress::Progress::skip`]; to be
    /// asked after the last byte was read. `None` when size and modification time are what they were.
    pub fn changed(&self) -> io::Result<Option<String>> {
        Ok(super::stat::of_fd(&*self.file)?.change_since(self.size, self.mtime))
    }
}

/// Iterator over the data ranges of a file. A file system that does not know its holes has one range.
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a File,
    next: u64,
    size: u64,
}

impl<'a> Extents<'a> {
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        Self { file, next: 0, size }
    }

    fn find(&mut self) -> rustix::io::Result<Option<DataRange>> {
        if self.next >= self.size {
            return Ok(None);
        }
        let offset = match rustix::fs::seek(self.file, SeekFrom::Data(self.next)) {
            Ok(offset) => offset,
            // No data behind this place; also when the file was cut short meanwhile.
            Err(Errno::NXIO) => self.size,
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY | Errno::SPIPE) => {
                let range = DataRange { offset: self.next, len: self.size - self.next };
                self.next = self.size;
                return Ok(Some(range));
            }
            Err(errno) => return Err(errno),
        };
        if offset >= self.size {
            self.next = self.size;
            return Ok(None);
        }
        let end = match rustix::fs::seek(self.file, SeekFrom::Hole(offset)) {
            // A hole right here can only be one that was punched since: the bytes read as zeros either way.
            Ok(end) if end > offset => end.min(self.size),
            Ok(_) | Err(Errno::NXIO) => self.size,
            Err(errno) => return Err(errno),
        };
        self.next = end;
        Ok(Some(DataRange { offset, len: end - offset }))
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<DataRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find();
        if found.is_err() {
            self.next = self.size;
        }
        found.map_err(io::Error::from).transpose()
    }
}

/// Reads `range` and appends it to `bytes`; returns how many bytes there were before the end of the file.
pub(super) fn read_range(file: &File, range: DataRange, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let start = bytes.len();
    let len = usize::try_from(range.len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    bytes.resize(start + len, 0);
    let mut done = 0;
    while done < len {
        match rustix::io::pread(file, &mut bytes[start + done..], range.offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    bytes.truncate(start + done);
    Ok(done)
}
