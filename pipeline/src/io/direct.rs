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
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
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

    /// A file that somebody else has opened: as `buffered` without O_DIRECT and, if at all, as `direct` with it; for
    /// writing (and reading back) or for reading. Nothing is opened again, because only that somebody may be able to.
    ///
    /// # Errors
    /// What is wrong with the descriptors, in words that follow the file's name.
    pub fn from_pair(
        direct: Option<Arc<File>>,
        buffered: Arc<File>,
        for_writing: bool,
    ) -> std::result::Result<Self, String> {
        let of = identity(&buffered)?;
        check_flags(&buffered, Way::Buffered, for_writing)?;
        let Some(direct) = direct else { return Ok(Self::buffered(buffered)) };
        if identity(&direct)? != of {
            return Err("was handed over as two descriptors of different files".into());
        }
        check_flags(&direct, Way::Direct, for_writing)?;
        Ok(match direct_alignment(&direct) {
            Some(align) => Self { direct: Some(direct), buffered, align },
            // It has the flag and no use of it (tmpfs), or wants more of memory than our buffers have.
            None => Self::buffered(buffered),
        })
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

/// What tells a file or device from others.
fn identity(file: &File) -> std::result::Result<(bool, u64, u64), String> {
    let meta = file.metadata().map_err(|e| format!("cannot be looked at: {e}"))?;
    let kind = meta.file_type();
    if kind.is_block_device() {
        Ok((true, meta.rdev(), 0))
    } else if kind.is_file() {
        Ok((false, meta.dev(), meta.ino()))
    } else {
        Err("is neither a regular file nor a block device".into())
    }
}

/// Refuses a descriptor that is not open as it should be for `way`.
fn check_flags(file: &File, way: Way, for_writing: bool) -> std::result::Result<(), String> {
    let (name, direct) = match way {
        Way::Direct => ("direct", true),
        Way::Buffered => ("buffered", false),
    };
    let refuse = |what: &str| Err(format!("was handed over with a {name} descriptor that {what}"));
    let flags = match fcntl_getfl(file) {
        Ok(flags) => flags,
        Err(errno) => return refuse(&format!("does not tell its flags: {errno}")),
    };
    let access = flags & OFlags::ACCMODE;
    if flags.contains(OFlags::PATH) {
        refuse("only names it (O_PATH)")
    } else if for_writing && access != OFlags::RDWR {
        refuse("is not open for reading and writing")
    } else if access == OFlags::WRONLY {
        refuse("is not open for reading")
    } else if flags.contains(OFlags::DIRECT) != direct {
        refuse(if direct { "lacks O_DIRECT" } else { "has O_DIRECT" })
    } else if flags.contains(OFlags::APPEND) {
        refuse("only appends (O_APPEND)")
    } else if flags.contains(OFlags::NONBLOCK) {
        refuse("does not wait (O_NONBLOCK)")
    } else {
        Ok(())
    }
}

/// What O_DIRECT on `file` wants offsets and lengths aligned to; `None` when there is no point in trying.
fn direct_alignment(file: &File) -> Option<usize> {
    let kind = file.metadata().ok()?.file_type();
    let seekable = kind.is_file() || kind.is_block_device();
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
    fn descriptors_of_others_are_what_they_are_said_to_be() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("volume");
        std::fs::write(&path, [1; 8192]).unwrap();
        let open = |flags: OFlags| {
            let opened = rustix::fs::open(&path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty());
            opened.ok().map(|fd| Arc::new(File::from(fd)))
        };
        let (read, write) = (open(OFlags::RDONLY).unwrap(), open(OFlags::RDWR).unwrap());
        let Some(direct) = open(OFlags::RDWR | OFlags::DIRECT) else {
            eprintln!("SKIPPED: no file system with O_DIRECT for temporary files");
            return;
        };
        let pair = |direct: Option<&Arc<File>>, buffered: &Arc<File>, for_writing| {
            DirectFile::from_pair(direct.map(Arc::clone), Arc::clone(buffered), for_writing)
        };
        let both = pair(Some(&direct), &write, true).unwrap();
        assert!(Arc::ptr_eq(both.direct.as_ref().unwrap(), &direct) && Arc::ptr_eq(&both.buffered, &write));
        assert!(pair(Some(&direct), &read, false).unwrap().is_direct());
        assert!(!pair(None, &read, false).unwrap().is_direct());
        // Nothing is opened again: the file may be out of reach.
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        assert!(pair(Some(&direct), &write, true).unwrap().is_direct());
        std::fs::write(&path, [1; 8192]).unwrap();
        let other = open(OFlags::RDWR).unwrap();
        let directory = Arc::new(File::open(dir.path()).unwrap());
        let wrong = |flags| open(flags).unwrap();
        for (descriptor, for_writing, what) in [
            (&read, true, "buffered descriptor that is not open for reading and writing"),
            (&wrong(OFlags::WRONLY), false, "buffered descriptor that is not open for reading"),
            (&wrong(OFlags::RDONLY | OFlags::DIRECT), false, "buffered descriptor that has O_DIRECT"),
            (&wrong(OFlags::RDWR | OFlags::APPEND), true, "O_APPEND"),
            (&wrong(OFlags::RDWR | OFlags::NONBLOCK), true, "O_NONBLOCK"),
            (&wrong(OFlags::PATH), false, "O_PATH"),
            (&directory, false, "neither a regular file nor a block device"),
        ] {
            let refused = pair(None, descriptor, for_writing).unwrap_err();
            assert!(refused.contains(what), "{refused}");
        }
        assert!(pair(Some(&direct), &other, true).unwrap_err().contains("different files"));
        assert!(
            pair(Some(&write), &write, true).unwrap_err().contains("direct descriptor that lacks O_DIRECT")
        );
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
