//! Past the page cache: no copy, and nothing that has to be thrown out again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// What direct I/O wants addresses, lengths and offsets to be a multiple of: covers sectors of 512 and 4,096 bytes.
pub(super) const ALIGNMENT: usize = 4096;

/// Opens `path` with `options` for direct I/O. Fails on file systems that do not offer it (tmpfs before Linux 6.6).
pub(super) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path)
}

/// Reads exactly `len` bytes at `offset` of a file that has them. `None` where direct I/O is not to be had.
pub(super) fn read(path: &Path, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
    let Ok(file) = open(OpenOptions::new().read(true), path) else { return Ok(None) };
    let start = offset / ALIGNMENT as u64 * ALIGNMENT as u64;
    let ahead = usize::try_from(offset - start).unwrap_or(ALIGNMENT);
    let want = ahead + len;
    let mut memory = vec![0; want.next_multiple_of(ALIGNMENT) + ALIGNMENT];
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let whole = skip + want.next_multiple_of(ALIGNMENT);
    let mut filled = 0;
    while filled < want {
        // The last page of the file comes as far as it goes.
        match file.read_at(&mut memory[skip + filled..whole], start + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Stricter alignment than ours, or a short read that ended off the boundary.
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::OPNOTSUPP)) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(Some(Bytes::from(memory).slice(skip + ahead..skip + want)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_gives_the_bytes_asked_for() {
        const SIZE: usize = (1 << 20) + 1234;
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("object");
        let mut content = vec![0; SIZE];
        fastrand::Rng::with_seed(1).fill(&mut content);
        std::fs::write(&path, &content).unwrap();
        assert!(read(&path, 0, SIZE).unwrap().is_some(), "no direct I/O here: nothing would be tested");
        for offset in [0, 1, 511, 512, 4095, 4096, 4097, SIZE - 1] {
            for len in [1, 511, 4096, 4097, 65_536, SIZE - offset] {
                if offset + len <= SIZE {
                    let found = read(&path, offset as u64, len).unwrap();
                    assert!(found.unwrap() == content[offset..offset + len], "{len} bytes at {offset}");
                }
            }
        }
        let past = read(&path, 4096, SIZE).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        // What was written through the page cache and is not on the device yet.
        std::fs::write(&path, &content[..5000]).unwrap();
        assert_eq!(read(&path, 10, 4990).unwrap().unwrap(), content[10..5000]);
    }
}
