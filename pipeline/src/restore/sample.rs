//! A random sample of what was written, read back after syncing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};

use crate::error::{Error, Result};

/// Pieces that are read back. With 64, a disk that lost 5 % of what was written is found out in 96 of 100 restores.
const PIECES: usize = 64;

/// A piece that was written.
#[derive(Debug, Clone)]
pub(super) struct Piece<W> {
    /// Where: a path for a tree, nothing for a volume.
    pub(super) place: W,
    pub(super) offset: u64,
    pub(super) len: usize,
    hash: blake3::Hash,
}

/// A reservoir sample: every piece has the same chance, whatever their number.
#[derive(Debug)]
pub(super) struct Sample<W>(Mutex<(u64, Vec<Piece<W>>)>);

impl<W> Default for Sample<W> {
    fn default() -> Self {
        Self(Mutex::new((0, Vec::new())))
    }
}

impl<W> Sample<W> {
    /// Offers a piece that was written.
    pub(super) fn offer(&self, place: impl FnOnce() -> W, offset: u64, bytes: &[u8]) {
        let slot = {
            let mut sample = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            sample.0 += 1;
            let n = usize::try_from(fastrand::u64(..sample.0)).unwrap_or(usize::MAX);
            if sample.1.len() < PIECES { sample.1.len() } else { n }
        };
        if slot < PIECES {
            // Hashed outside the lock, and only when it is taken.
            let piece = Piece { place: place(), offset, len: bytes.len(), hash: blake3::hash(bytes) };
            let mut sample = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match sample.1.get_mut(slot) {
                Some(old) => *old = piece,
                None => sample.1.push(piece),
            }
        }
    }

    /// Reads the sample back through `open`, past the page cache, and compares it. Returns the bytes compared.
    ///
    /// # Errors
    /// [`Error::Target`] naming the first place that does not read as it was written.
    pub(super) fn check(self, open: impl Fn(&W) -> Result<(PathBuf, File)>) -> Result<u64> {
        let (_, pieces) = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut total = 0;
        for piece in pieces {
            let (path, file) = open(&piece.place)?;
            // Clean pages are dropped, so the bytes come from the device. Only advice: without it the check is weaker.
            let _ =
                fadvise(&file, piece.offset, std::num::NonZeroU64::new(piece.len as u64), Advice::DontNeed);
            let mut bytes = vec![0; piece.len];
            file.read_exact_at(&mut bytes, piece.offset)
                .map_err(|e| Error::target_io(&path, format!("cannot read back byte {}", piece.offset), e))?;
            if blake3::hash(&bytes) != piece.hash {
                let what = format!("does not hold what was written at byte {}; do not use it", piece.offset);
                return Err(Error::Target { path, what, source: None });
            }
            total += piece.len as u64;
        }
        Ok(total)
    }
}
