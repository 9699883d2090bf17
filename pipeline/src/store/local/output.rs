//! Writing ropes to a file past the page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use rustix::io::Errno;

use super::direct::{self, ALIGNMENT};

/// Shorter runs are not worth the round trip to the device; they go through the page cache.
const MIN_DIRECT: usize = 64 << 10;

/// Slices per system call; far below the kernel's 1,024.
const MAX_VECTOR: usize = 256;

/// A new file, written by position from several threads at once.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    /// The same file opened with O_DIRECT; `None` inside where the file system does not offer it (tmpfs).
    direct: OnceLock<Option<File>>,
}

impl Output {
    /// Creates `path`, which must not exist, for its owner alone.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, direct: OnceLock::new() })
    }

    /// The file, for metadata and syncing.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes the slices one after the other, the first at `offset` bytes. Aligned stretches go straight to the
    /// device without a copy, the rest (tails, small bodies) through the page cache. A byte of the file is only ever
    /// written one of the two ways at a time, because stretches begin and end on page boundaries.
    pub(super) fn write(&self, slices: &[Bytes], mut offset: u64) -> io::Result<()> {
        let mut run = Run::default();
        for slice in slices.iter().filter(|s| !s.is_empty()) {
            let aligned = (slice.as_ptr() as usize).is_multiple_of(ALIGNMENT)
                && offset.is_multiple_of(ALIGNMENT as u64);
            let (head, tail) = slice.split_at(if aligned { slice.len() & !(ALIGNMENT - 1) } else { 0 });
            for (direct, bytes) in [(true, head), (false, tail)] {
                if bytes.is_empty() {
                    continue;
                }
                if run.direct != direct || run.slices.len() == MAX_VECTOR {
                    self.write_run(std::mem::take(&mut run))?;
                }
                if run.slices.is_empty() {
                    (run.direct, run.offset) = (direct, offset);
                }
                run.slices.push(IoSlice::new(bytes));
                offset += bytes.len() as u64;
            }
        }
        self.write_run(run)
    }

    fn write_run(&self, run: Run<'_>) -> io::Result<()> {
        let mut left: &mut [IoSlice<'_>] = &mut { run.slices };
        let mut offset = run.offset;
        let bytes: usize = left.iter().map(|s| s.len()).sum();
        let mut direct = if run.direct && bytes >= MIN_DIRECT { self.direct() } else { None };
        while !left.is_empty() {
            match rustix::io::pwritev(direct.unwrap_or(&self.file), left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut left, n);
                }
                Err(Errno::INTR) => {}
                // Stricter alignment than ours, or a short write that ended off the boundary.
                Err(Errno::INVAL | Errno::OPNOTSUPP) if direct.is_some() => direct = None,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn direct(&self) -> Option<&File> {
        let open = || direct::open(OpenOptions::new().write(true), &self.path).ok();
        self.direct.get_or_init(open).as_ref()
    }

    /// Drops what the page cache holds of the file. Only after a sync does this free anything.
    pub(super) fn forget_cache(&self) {
        // Advice: whether the kernel takes it changes nothing but memory.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Consecutive bytes that are written the same way.
#[derive(Default)]
struct Run<'a> {
    direct: bool,
    offset: u64,
    slices: Vec<IoSlice<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `len` bytes at an address with the given remainder.
    fn bytes_at(remainder: usize, len: usize, seed: u64) -> Bytes {
        let mut v = vec![0u8; len + 2 * ALIGNMENT];
        fastrand::Rng::with_seed(seed).fill(&mut v);
        let start = (ALIGNMENT - v.as_ptr() as usize % ALIGNMENT) % ALIGNMENT + remainder;
        Bytes::from(v).slice(start..start + len)
    }

    #[test]
    fn ropes_of_every_alignment_arrive_whole() {
        let shapes: &[&[(usize, usize)]] = &[
            &[],
            &[(0, 0)],
            &[(0, 1)],
            &[(0, 1 << 20)],
            &[(0, 1 << 20), (0, 1 << 20), (0, 5000)],
            &[(0, (1 << 20) + 7), (0, 1 << 20)],
            &[(3, 100_000), (0, 1 << 20)],
            &[(0, 70_000), (8, 70_000), (0, 4096), (0, 65_536)],
        ];
        for dir in ["/dev/shm", env!("CARGO_MANIFEST_DIR")] {
            let dir = tempfile::tempdir_in(dir).unwrap();
            for (i, shape) in shapes.iter().enumerate() {
                for offset in [0usize, 512, 4096] {
                    let path = dir.path().join(format!("{i}-{offset}"));
                    let rope: Vec<_> =
                        shape.iter().enumerate().map(|(n, s)| bytes_at(s.0, s.1, n as u64)).collect();
                    Output::create(&path).unwrap().write(&rope, offset as u64).unwrap();
                    let want = rope.concat();
                    let found = std::fs::read(&path).unwrap();
                    assert_eq!(found.get(offset..).unwrap_or(&[]), want, "shape {i} at {offset}");
                }
            }
            let many: Vec<_> = (0..1000).map(|n| bytes_at(0, 4096, n)).collect();
            let path = dir.path().join("many");
            Output::create(&path).unwrap().write(&many, 0).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), many.concat());
        }
    }
}
