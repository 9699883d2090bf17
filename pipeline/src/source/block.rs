//! A block device or image file: how large it is, where its data is, and whether it may be read at all.

use std::fs::{File, FileType};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{SeekFrom as Whence, seek};
use rustix::io::Errno;

use super::Volume;
use crate::error::{Error, Result};
use crate::io::DirectFile;

/// An open block volume.
#[derive(Debug)]
pub struct BlockSource {
    path: PathBuf,
    file: DirectFile,
    size: u64,
    /// A regular file: holes are found by SEEK_DATA.
    sparse: bool,
}

impl BlockSource {
    /// Opens a block device or regular file for reading. A device that is mounted read-write is refused unless
    /// `live`, because its contents change while they are read. What device mapper or partitions hide is not seen.
    ///
    /// # Errors
    /// [`Error::Source`]: not there, not readable, not a device or file, mounted read-write.
    pub fn open(path: &Path, live: bool) -> Result<Self> {
        let refuse = |what: &str| Error::Source { path: path.to_owned(), what: what.into(), source: None };
        let fail = |e| Error::source_io(path, "cannot open", e);
        let volume = |kind: FileType| kind.is_file() || kind.is_block_device();
        // Looked at before it is opened: opening a fifo waits for its other end.
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !volume(kind) {
            return Err(refuse("is neither a directory, a regular file nor a block device"));
        }
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let kind = meta.file_type();
        if kind.is_block_device() {
            if !live && mounted_writable(meta.rdev()) {
                return Err(refuse(
                    "is mounted read-write: take a snapshot of it, mount it read-only, or give --live",
                ));
            }
        } else if !volume(kind) {
            return Err(refuse("is neither a directory, a regular file nor a block device"));
        }
        let size = end_of(&file).map_err(fail)?;
        Ok(Self { path: path.to_owned(), file: DirectFile::from_file(file), size, sparse: kind.is_file() })
    }

    /// A block volume by descriptors of somebody else's ([`Volume::Block`](super::Volume::Block)), who answers for its
    /// contents staying as they are.
    ///
    /// # Errors
    /// [`Error::Source`]: the descriptors are not what they should be.
    pub fn handed_over(direct: Option<Arc<File>>, buffered: Arc<File>) -> Result<Self> {
        let path = Volume::shown().to_owned();
        let file = match DirectFile::from_pair(direct, buffered, false) {
            Ok(file) => file,
            Err(what) => return Err(Error::Source { path, what, source: None }),
        };
        let found = file.buffered.metadata().and_then(|meta| Ok((meta.is_file(), end_of(&file.buffered)?)));
        let (sparse, size) = found.map_err(|e| Error::source_io(&path, "cannot find its size", e))?;
        Ok(Self { path, file, size, sparse })
    }

    /// Where it was opened, or what messages call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptors.
    pub fn file(&self) -> &DirectFile {
        &self.file
    }

    /// Its size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its size in bytes now.
    ///
    /// # Errors
    /// [`Error::Source`] when it cannot tell any more.
    pub fn present_size(&self) -> Result<u64> {
        end_of(&self.file.buffered).map_err(|e| Error::source_io(&self.path, "cannot find its size", e))
    }

    /// The ranges that hold data, in ascending order, widened to whole chunks of `chunk` bytes and merged. A device
    /// is one range: SEEK_DATA does not work there.
    pub fn data_ranges(&self, chunk: u64) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let range = self.data_after(next, chunk).transpose()?;
            if let Ok(range) = &range {
                next = range.end;
            }
            Some(range)
        })
    }

    /// The first merged range that starts at or after `from`, a multiple of `chunk`.
    fn data_after(&self, from: u64, chunk: u64) -> Result<Option<Range<u64>>> {
        if from >= self.size {
            return Ok(None);
        }
        if !self.sparse {
            return Ok(Some(from..self.size));
        }
        let Some(mut data) = self.seek(Whence::Data(from), from)? else { return Ok(None) };
        let start = (data / chunk * chunk).max(from);
        loop {
            // The hole is looked for behind data: at the chunk's beginning there may be one already.
            let hole = self.seek(Whence::Hole(data), data)?.unwrap_or(self.size);
            let end = hole.next_multiple_of(chunk).min(self.size);
            // Data that begins in the chunk behind, or right there, belongs to the same range.
            match self.seek(Whence::Data(end), end)? {
                Some(next) if next < self.size && next / chunk * chunk == end => data = next,
                _ => return Ok(Some(start..end)),
            }
        }
    }

    fn seek(&self, whence: Whence, at: u64) -> Result<Option<u64>> {
        if at >= self.size {
            return Ok(None);
        }
        match seek(&self.file.buffered, whence) {
            Ok(offset) => Ok(Some(offset)),
            // No data (or hole) at or after `at`.
            Err(Errno::NXIO) => Ok(None),
            // A file system without holes: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                Ok(Some(if matches!(whence, Whence::Data(_)) { at } else { self.size }))
            }
            Err(e) => {
                Err(Error::source_io(&self.path, format!("cannot find data after byte {at}"), e.into()))
            }
        }
    }
}

fn end_of(mut file: &File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// True when a mount of the device with this number is writable, by `/proc/self/mountinfo` (proc(5)). Without it
/// nothing is known to be mounted. Btrfs mounts have a device number of their own; their source tells.
pub fn mounted_writable(rdev: u64) -> bool {
    let device = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    mounts.lines().any(|line| {
        let (mount, super_options) = line.split_once(" - ").unwrap_or((line, ""));
        let read_write = super_options.split(' ').nth(2).is_some_and(|o| o.split(',').any(|o| o == "rw"));
        let is_source = |path: &str| {
            let meta = path.starts_with('/').then(|| std::fs::metadata(path).ok()).flatten();
            meta.is_some_and(|m| m.file_type().is_block_device() && m.rdev() == rdev)
        };
        let source = super_options.split(' ').nth(1);
        read_write && (mount.split(' ').nth(2) == Some(&device) || source.is_some_and(is_source))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const CHUNK: u64 = 64 << 10;

    fn ranges(writes: &[(u64, usize)], size: u64) -> Vec<Range<u64>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        for (at, len) in writes {
            file.as_file().write_all_at(&vec![1; *len], *at).unwrap();
        }
        let source = BlockSource::open(file.path(), false).unwrap();
        source.data_ranges(CHUNK).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn holes_are_not_ranges() {
        assert_eq!(ranges(&[], 10 << 20), []);
        assert_eq!(ranges(&[], 0), []);
        assert_eq!(ranges(&[(0, 1)], 1), Vec::from_iter([Range { start: 0, end: 1 }]));
        let end = 10 << 20;
        assert_eq!(
            ranges(&[(1 << 20, 4096), (5 << 20, 1)], end),
            [(1 << 20)..(1 << 20) + CHUNK, (5 << 20)..(5 << 20) + CHUNK]
        );
    }

    #[test]
    fn ranges_that_share_a_chunk_are_merged() {
        let size = (1 << 20) + 512;
        let found = ranges(&[(0, 4096), (32 << 10, 4096), (CHUNK, 4096), (1 << 20, 512)], size);
        assert_eq!(found, [0..2 * CHUNK, (1 << 20)..size]);
    }

    #[test]
    fn directories_and_missing_files_are_refused() {
        assert!(BlockSource::open(Path::new("/"), false).is_err());
        assert!(BlockSource::open(Path::new("/nonexistent"), false).is_err());
    }
}
