//! Pages of the local cache: 4,080 bytes and a MAC that binds them to their file and place.
//!
//! The cache is on a disk that may rot and that others may write. A page that does not authenticate is never
//! believed: not a flipped bit, not a page of zeros after a power cut, not a page of another place or run.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::seal::MasterKey;

/// Bytes of a page on disk.
pub(super) const PAGE: usize = 4096;
/// Bytes of a page that are the caller's.
pub(super) const PAYLOAD: usize = PAGE - MAC;
const MAC: usize = 16;

/// The key of all cache pages of one repository.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct PageKey([u8; 32]);

impl PageKey {
    pub(super) fn new(master: &MasterKey, repository_id: &[u8; 16]) -> Self {
        Self(master.derive("tradewind v1 index cache", repository_id))
    }

    fn mac(&self, run: &[u8; 16], number: u64, payload: &[u8]) -> [u8; MAC] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(payload).update(run).update(&number.to_le_bytes());
        let mut mac = [0; MAC];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }
}

/// Why a page could not be had.
#[derive(Debug)]
pub(super) enum Bad {
    /// It does not authenticate, is not there, or says something impossible.
    Damaged,
    /// The disk failed.
    Io(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        // The header says how long the file is; a file that was cut is damaged.
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Damaged } else { Self::Io(error) }
    }
}

/// A file of pages.
pub(super) struct PageFile {
    file: File,
    run: [u8; 16],
    key: PageKey,
}

impl PageFile {
    pub(super) fn new(file: File, run: [u8; 16], key: PageKey) -> Self {
        Self { file, run, key }
    }

    /// Size of the file in bytes.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads page `number`; its payload is the first [`PAYLOAD`] bytes.
    pub(super) fn read(&self, number: u64, page: &mut [u8; PAGE]) -> Result<(), Bad> {
        self.read_many(number, page)
    }

    /// Reads consecutive whole pages into `pages`, from page `first` on.
    pub(super) fn read_many(&self, first: u64, pages: &mut [u8]) -> Result<(), Bad> {
        self.file.read_exact_at(pages, first * PAGE as u64)?;
        for (number, page) in (first..).zip(pages.chunks_exact(PAGE)) {
            let (payload, mac) = page.split_at(PAYLOAD);
            let expected = self.key.mac(&self.run, number, payload);
            aws_lc_rs::constant_time::verify_slices_are_equal(&expected, mac).map_err(|_| Bad::Damaged)?;
        }
        Ok(())
    }

    /// Completes `page` with its MAC and writes it as page `number`.
    pub(super) fn write(&self, number: u64, page: &mut [u8; PAGE]) -> io::Result<()> {
        self.seal(number, page);
        self.file.write_all_at(page, number * PAGE as u64)
    }

    /// Writes consecutive pages that are sealed already.
    pub(super) fn write_sealed(&self, first: u64, pages: &[u8]) -> io::Result<()> {
        self.file.write_all_at(pages, first * PAGE as u64)
    }

    /// Puts the MAC of page `number` at the end of `page`.
    pub(super) fn seal(&self, number: u64, page: &mut [u8; PAGE]) {
        let (payload, mac) = page.split_at_mut(PAYLOAD);
        mac.copy_from_slice(&self.key.mac(&self.run, number, payload));
    }
}
