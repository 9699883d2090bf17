//! The target of a block volume: a new file, an existing file, or a device.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatfs};
use rustix::io::Errno;

use crate::chunk::is_zero;
use crate::error::{Error, Result};
use crate::io::DirectFile;
use crate::source::Volume;
use crate::source::block::mounted_writable;

/// An open target of known size.
#[derive(Debug)]
pub(super) struct BlockTarget {
    path: PathBuf,
    file: DirectFile,
    /// A file that was made or emptied for the volume: what nobody writes reads as zeros.
    fresh: bool,
    /// Room can be reserved without harm.
    reserves: bool,
}

/// `f_type` of btrfs (`linux/magic.h`). What is reserved there is written without compression, even where the mount asks
/// for it, and the rest of the file as well.
const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;

/// Places at which a device is looked at before it counts as blank.
const BLANK_PROBES: u64 = 64;

/// Bytes read at each of them.
const BLANK_BYTES: usize = 4096;

impl BlockTarget {
    /// Opens `path` for a volume of `size` bytes. Nothing is written before everything was checked. A new file is
    /// created; without `overwrite` an existing file is refused, and so is a device that is not blank; a device that
    /// is in use or too small always is.
    ///
    /// # Errors
    /// [`Error::Target`] with the reason.
    pub(super) fn open(path: &Path, size: u64, overwrite: bool) -> Result<Self> {
        let refuse = |what: String| Error::Target { path: path.to_owned(), what, source: None };
        let fail = |e| Error::target_io(path, "cannot open", e);
        let device = match std::fs::metadata(path) {
            Ok(meta) if meta.file_type().is_block_device() => Some(meta.rdev()),
            Ok(meta) if meta.is_file() && overwrite => None,
            Ok(meta) if meta.is_file() => {
                return Err(refuse("exists already; give --overwrite to replace it".into()));
            }
            Ok(meta) if meta.is_dir() => {
                return Err(refuse("is a directory; a block volume needs a file, a device or -".into()));
            }
            Ok(_) => return Err(refuse("is neither a file nor a block device".into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail(e)),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let Some(rdev) = device else {
            let file = options.create(true).truncate(true).mode(0o600).open(path).map_err(fail)?;
            file.set_len(size)
                .map_err(|e| Error::target_io(path, format!("cannot grow to {size} bytes"), e))?;
            #[expect(
                clippy::cast_sign_loss,
                reason = "its type differs between platforms, its values are 32 bits"
            )]
            let reserves = fstatfs(&file).is_ok_and(|fs| fs.f_type as u64 != BTRFS_SUPER_MAGIC);
            return Ok(Self {
                path: path.to_owned(),
                file: DirectFile::from_file(file),
                fresh: true,
                reserves,
            });
        };
        // O_EXCL on a block device fails while anything has it mounted or claimed (open(2)).
        options.custom_flags(i32::try_from(OFlags::EXCL.bits()).unwrap_or(0));
        let file = options.open(path).map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::BUSY) => refuse("is in use: unmount it first".into()),
            _ => fail(e),
        })?;
        if mounted_writable(rdev) {
            return Err(refuse("is mounted: unmount it first".into()));
        }
        let room = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| fail(e.into()))?;
        if room < size {
            return Err(refuse(format!("has {room} bytes, the volume has {size}")));
        }
        if !overwrite && !is_blank(&file, room).map_err(|e| Error::target_io(path, "cannot read", e))? {
            return Err(refuse("is not blank; give --overwrite to replace what is on it".into()));
        }
        Ok(Self { path: path.to_owned(), file: DirectFile::from_file(file), fresh: false, reserves: false })
    }

    /// A volume of somebody else's that is handed over for one of `size` bytes, whatever is on it. What lies beyond
    /// stays as it is.
    ///
    /// # Errors
    /// [`Error::Target`]: the descriptors are not what they should be, or there is no room.
    pub(super) fn handed_over(direct: Option<Arc<File>>, buffered: Arc<File>, size: u64) -> Result<Self> {
        let path = Volume::shown();
        let refuse = |what: String| Error::Target { path: path.to_owned(), what, source: None };
        let file = DirectFile::from_pair(direct, buffered, true).map_err(refuse)?;
        let room = rustix::fs::seek(&file.buffered, rustix::fs::SeekFrom::End(0))
            .map_err(|e| Error::target_io(path, "cannot find its size", e.into()))?;
        if room < size {
            return Err(refuse(format!("has {room} bytes, the snapshot has {size}")));
        }
        Ok(Self { path: path.to_owned(), file, fresh: false, reserves: false })
    }

    /// Its descriptors.
    pub(super) fn file(&self) -> &DirectFile {
        &self.file
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has `len` bytes at `offset` of a file lie together on the disk, however the order in which they will be written.
    /// No contents depend on it: where it cannot be done, or there is no room, writing says so. Not on btrfs: see
    /// [`BTRFS_SUPER_MAGIC`].
    pub(super) fn reserve(&self, offset: u64, len: u64) {
        if self.reserves {
            let _ = fallocate(&self.file.buffered, FallocateFlags::KEEP_SIZE, offset, len);
        }
    }

    /// Makes `len` bytes at `offset` read as zeros. A file has a hole there already, or room that
    /// was reserved and never written; what was there before may hold anything.
    ///
    /// # Errors
    /// [`Error::Target`] naming the offset.
    pub(super) fn zero(&self, offset: u64, len: u64) -> Result<()> {
        if self.fresh {
            return Ok(());
        }
        // Punching zeroes *and* frees on a thin device. BLKDISCARD alone promises nothing about what is read after.
        let aligned = offset.is_multiple_of(512) && len.is_multiple_of(512);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if aligned && fallocate(&self.file.buffered, flags, offset, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0u8; 1 << 20];
        let mut at = offset;
        while at < offset + len {
            let n = zeros.len().min(usize::try_from(offset + len - at).unwrap_or(usize::MAX));
            std::os::unix::fs::FileExt::write_all_at(&*self.file.buffered, &zeros[..n], at)
                .map_err(|e| Error::target_io(&self.path, format!("cannot write zeros at byte {at}"), e))?;
            at += n as u64;
        }
        Ok(())
    }

    /// Makes everything durable. A failed sync is final and never tried again: the kernel drops what it could not
    /// write and reports the error once.
    ///
    /// # Errors
    /// [`Error::Target`]: the target's contents are not to be trusted.
    pub(super) fn sync(&self) -> Result<()> {
        self.file
            .buffered
            .sync_all()
            .map_err(|e| Error::target_io(&self.path, "cannot sync; do not use it", e))?;
        if self.fresh
            && let Some(parent) = self.path.parent()
        {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let synced = File::open(parent).and_then(|dir| dir.sync_all());
            synced.map_err(|e| Error::target_io(parent, "cannot sync", e))?;
        }
        Ok(())
    }
}

/// True when the first and last bytes and a sample in between are zero.
fn is_blank(file: &File, size: u64) -> std::io::Result<bool> {
    let mut page = [0; BLANK_BYTES];
    let last = size.saturating_sub(BLANK_BYTES as u64);
    let random = (0..BLANK_PROBES).map(|_| fastrand::u64(0..=last) / BLANK_BYTES as u64 * BLANK_BYTES as u64);
    // File systems keep their first superblock within the first 128 KiB (btrfs: 64 KiB, ext4: 1 KiB, xfs: 0).
    let head = (0..32).map(|n| n * BLANK_BYTES as u64);
    for at in head.chain([last]).chain(random).filter(|at| *at <= last) {
        let n = BLANK_BYTES.min(usize::try_from(size - at).unwrap_or(BLANK_BYTES));
        std::os::unix::fs::FileExt::read_exact_at(file, &mut page[..n], at)?;
        if !is_zero(&page[..n]) {
            return Ok(false);
        }
    }
    Ok(true)
}
