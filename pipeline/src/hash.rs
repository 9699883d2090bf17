//! Identity: the only place that says when two pieces of data are the same.
//!
//! An id is a keyed BLAKE3-256 over the plaintext, under a key of its own for each [`ObjectType`]: the same bytes as
//! a chunk and as a page have unrelated ids, and without the master key nobody can tell whether a repository holds
//! given data. Collisions at 2^30 chunks are as likely as 5e-60.

use std::fmt;

use crate::seal::MasterKey;

/// What a frame of a pack holds. Part of its identity and of its authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ObjectType {
    /// Bytes of a volume or file, or a bundle of small files.
    Data = 1,
    /// A page of extents: which chunks make up a volume or a large file.
    Extents = 2,
    /// A page of directory entries in stream order.
    Entries = 3,
    /// A page that points at pages of entries.
    EntryNode = 4,
}

impl ObjectType {
    /// All types, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::Data, Self::Extents, Self::Entries, Self::EntryNode];

    /// The type of a stored code; `None` for codes of later versions.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == code)
    }
}

/// Identity of a chunk or page: 32 bytes. Deliberately without `Display`: ids stay out of logs and names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub [u8; 32]);

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Id(..)")
    }
}

/// Computes ids under a repository's keys. Cheap to clone; one per worker.
#[derive(Clone)]
pub struct Hasher {
    keys: [[u8; 32]; ObjectType::ALL.len()],
}

impl Hasher {
    /// Derives the id keys of `master`.
    pub fn new(master: &MasterKey) -> Self {
        Self { keys: ObjectType::ALL.map(|t| master.derive("tradewind v1 id", &[t as u8])) }
    }

    /// Id of `plaintext` as an object of type `kind`.
    pub fn id(&self, kind: ObjectType, plaintext: &[u8]) -> Id {
        Id(*blake3::keyed_hash(&self.keys[kind as usize - 1], plaintext).as_bytes())
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.keys);
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher(..)")
    }
}
