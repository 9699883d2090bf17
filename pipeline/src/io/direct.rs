//! O_DIRECT: past the page cache, where that is possible, decided anew for each file.
//!
//! Reading a volume through the page cache costs as much CPU time as encrypting it and throws everyone else's pages
//! out. O_DIRECT avoids both but wants offset, length and memory aligned, and not every file system has it. So a file
//! that may be read or written directly is held by *two* descriptors: a direct one for aligned pieces and a buffered
//! one for the rest (usually the last partial block, or everything). The `O_DIRECT` flag belongs to the open file,
//! not to the call; toggling it under operations in flight would be a race, hence two.
//!
//! Both ways may be used on one file at a time as long as they do not meet in a page. Pieces that start aligned and all
//! end aligned but the last (blocks of a volume) never do. Pieces with odd boundaries do: a direct write has to throw its
//! range out of the page cache, and when it finds a neighbour's piece dirty there the kernel reports `EIO` at the next
//! fsync. Write such files through [`buffered`](DirectFile::buffered) alone.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, fstatfs, statx};

use super::buf::ALIGN;
use crate::error::{Error, Result};

/// `statfs` type of tmpfs. Its files *are* page cache: newer kernels accept O_DIRECT there and ignore it.
const TMPFS: u64 = 0x0102_1994;
/// `statfs` type of ramfs, which is the same without limits.
const RAMFS: u64 = 0x8584_58f6;

/// Which of the two descriptors a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Buffered,
}

/// A file with one descriptor for aligned O_DIRECT transfers, if it can have one, and one for everything else.
#[derive(Debug, Clone)]
pub struct DirectFile {
    /// Open with O_DIRECT.
    pub direct: Option<Arc<File>>,
    /// Open without.
    pub buffered: Arc<File>,
    /// Alignment in bytes that the direct descriptor wants of offsets and lengths; a power of two, at least 4,096.
    pub align: usize,
}

impl DirectFile {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// [`Error::Source`] when it cannot be opened at all. That O_DIRECT is not to be had is no error.
    pub fn open_read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::source_io(path, "cannot open", e))?;
        Ok(Self::from_file(file))
    }

    /// Opens `path` for reading and writing, creating it (mode 0600) if it is missing, keeping its contents if not.
    ///
    /// # Errors
    /// [`Error::Target`] when it cannot be opened at all. That O_DIRECT is not to be had is no error.
    pub fn open_write(path: &Path) -> Result<Self> {
        let file = open_for_writing(path).map_err(|e| Error::target_io(path, "cannot open", e))?;
        Ok(Self::from_file(file))
    }

    /// Adds a direct descriptor to a file that others hold too; as [`DirectFile::from_file`].
    pub fn from_shared(file: &Arc<File>) -> Self {
        let direct = direct_alignment(file).and_then(|align| {
            let flags = fcntl_getfl(file).ok()?;
            Some((reopen(file, flags | OFlags::DIRECT).ok()?, align))
        });
        match direct {
            Some((direct, align)) => {
                Self { direct: Some(Arc::new(direct)), buffered: Arc::clone(file), align }
            }
            None => Self::buffered(Arc::clone(file)),
        }
    }

    /// Adds a direct descriptor to an open file, with the same access, if the file can have one. Takes any
    /// descriptor, however it was obtained; never fails, because the file as it is does for everything.
    pub fn from_file(file: File) -> Self {
        let Some(align) = direct_alignment(&file) else { return Self::buffered(Arc::new(file)) };
        let Ok(flags) = fcntl_getfl(&file) else { return Self::buffered(Arc::new(file)) };
        if flags.contains(OFlags::DIRECT) {
            // The caller's descriptor is direct already: it needs the buffered twin, or has to become it.
            return match reopen(&file, flags - OFlags::DIRECT) {
                Ok(twin) => Self { direct: Some(Arc::new(file)), buffered: Arc::new(twin), align },
                Err(_) => {
                    let _ = fcntl_setfl(&file, flags - OFlags::DIRECT);
                    Self::buffered(Arc::new(file))
                }
            };
        }
        // A device passed in by descriptor may not be open-able here (device cgroup, no /proc): buffered then.
        let direct = reopen(&file, flags | OFlags::DIRECT).ok().map(Arc::new);
        Self { direct, buffered: Arc::new(file), align }
    }

    /// A file with its one descriptor, whatever that is. Nothing is asked of it.
    pub fn buffered(file: Arc<File>) -> Self {
        Self { direct: None, buffered: file, align: ALIGN }
    }

    /// True when aligned transfers bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// The descriptor that can transfer *all* of `len` bytes at `offset` in one call, to or from aligned memory.
    pub fn pick(&self, offset: u64, len: usize) -> &Arc<File> {
        match self.way(offset, len, 0) {
            (Way::Direct, whole) if whole == len => self.descriptor(Way::Direct),
            _ => &self.buffered,
        }
    }

    /// How far a transfer of `len` bytes between `offset` and memory at `address` gets in one call, and on which
    /// descriptor: the aligned head goes directly, an unaligned tail (or everything, if the start is not aligned)
    /// does not.
    pub(super) fn way(&self, offset: u64, len: usize, address: usize) -> (Way, usize) {
        let mask = self.align - 1;
        let whole = len & !mask;
        // 4,096 for memory even where a larger block is wanted of offsets: that is all any device asks.
        if self.direct.is_some() && whole > 0 && offset & (mask as u64) == 0 && address.is_multiple_of(ALIGN)
        {
            (Way::Direct, whole)
        } else {
            (Way::Buffered, len)
        }
    }

    pub(super) fn descriptor(&self, way: Way) -> &Arc<File> {
        match (way, &self.direct) {
            (Way::Direct, Some(file)) => file,
            _ => &self.buffered,
        }
    }
}

/// Opens `path` for reading, with O_DIRECT if it can be had; says whether it was. A single descriptor: transfers that
/// are not aligned need [`DirectFile`].
///
/// # Errors
/// [`Error::Source`] when it cannot be opened at all.
pub fn open_read(path: &Path) -> Result<(Arc<File>, bool)> {
    Ok(single(DirectFile::open_read(path)?))
}

/// Opens `path` for reading and writing, creating it (mode 0600) if missing, with O_DIRECT if it can be had; says
/// whether it was.
///
/// # Errors
/// [`Error::Target`] when it cannot be opened at all.
pub fn open_write(path: &Path) -> Result<(Arc<File>, bool)> {
    Ok(single(DirectFile::open_write(path)?))
}

fn single(file: DirectFile) -> (Arc<File>, bool) {
    match file.direct {
        Some(direct) => (direct, true),
        None => (file.buffered, false),
    }
}

fn open_for_writing(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// What O_DIRECT on `file` wants offsets and lengths aligned to; `None` when there is no point in trying.
fn direct_alignment(file: &File) -> Option<usize> {
    let kind = file.metadata().ok()?.file_type();
    let seekable = kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind);
    if !seekable {
        return None;
    }
    // Of a device the answer would be about the file system of its name: /dev is a tmpfs.
    if kind.is_file()
        && let Ok(fs) = fstatfs(file)
    {
        #[expect(clippy::cast_sign_loss, reason = "a bit pattern; its type differs between architectures")]
        let kind = fs.f_type as u64;
        if kind == TMPFS || kind == RAMFS {
            return None;
        }
    }
    let Ok(stat) = statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Some(ALIGN);
    };
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Some(ALIGN); // an older kernel, or a file system that does not say: the open decides
    }
    let offsets = usize::try_from(stat.stx_dio_offset_align).ok()?;
    let memory = usize::try_from(stat.stx_dio_mem_align).ok()?;
    let usable = offsets.is_power_of_two() && memory.is_power_of_two() && memory <= ALIGN;
    usable.then_some(offsets.max(ALIGN))
}

/// A second, independent open of the same file. Through /proc, because `dup` would share the flags.
fn reopen(file: &File, flags: OFlags) -> rustix::io::Result<File> {
    let kept = OFlags::ACCMODE | OFlags::DIRECT | OFlags::NOATIME | OFlags::SYNC | OFlags::DSYNC;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, (flags & kept) | OFlags::CLOEXEC, rustix::fs::Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(align: usize) -> DirectFile {
        let null = Arc::new(File::open("/dev/null").unwrap());
        DirectFile { direct: Some(Arc::clone(&null)), buffered: null, align }
    }

    #[test]
    fn head_goes_directly_and_tail_does_not() {
        let file = both(4096);
        assert_eq!(file.way(0, 8192, 0), (Way::Direct, 8192));
        assert_eq!(file.way(4096, 8191, 4096), (Way::Direct, 4096));
        assert_eq!(file.way(8192, 4095, 0), (Way::Buffered, 4095));
        assert_eq!(file.way(512, 8192, 0), (Way::Buffered, 8192));
        assert_eq!(file.way(0, 8192, 512), (Way::Buffered, 8192));
        assert_eq!(both(65_536).way(4096, 1 << 20, 0), (Way::Buffered, 1 << 20));
        assert_eq!(both(65_536).way(65_536, (1 << 20) + 1, 4096), (Way::Direct, 1 << 20));
        let plain = DirectFile::buffered(Arc::clone(&file.buffered));
        assert_eq!(plain.way(0, 8192, 0), (Way::Buffered, 8192));
    }

    #[test]
    fn devices_without_blocks_are_buffered() {
        assert!(!DirectFile::open_read(Path::new("/dev/zero")).unwrap().is_direct());
    }

    #[test]
    fn memory_file_systems_are_buffered() {
        let memory = rustix::fs::memfd_create("tmpfs", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(!DirectFile::from_file(File::from(memory)).is_direct());
    }

    #[test]
    fn errors_name_the_path_and_the_side() {
        let missing = Path::new("/nonexistent/file");
        assert_eq!(open_read(missing).unwrap_err().kind(), crate::Kind::Source);
        let error = open_write(missing).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Target);
        assert!(error.to_string().contains("/nonexistent/file"));
    }
}
