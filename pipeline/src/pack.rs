//! Packs: sealed chunks back to back, then an encrypted table of them, then a fixed trailer. Never changed.
//!
//! ```text
//!  0  magic        8  "TWINDPAK"
//!  8  format       2  little-endian, 1
//! 10  class        1  1 data, 2 metadata
//! 11  flags        1  0
//! 12  epoch        4  key epoch
//! 16  pack id     16  random; also in the name
//! 32  session     12  also in the name
//! 44  reserved     4  0
//! 48  commitment  16  of the pack's key
//! 64  frames: ciphertext and tag (16) each, back to back
//!     table: AEAD over records of 46 bytes (id 32, type 1, codec 1, offset 4, stored 4, length 4), nonce 2^32-1,
//!            associated data: the header
//!     table length 4 (tag included), frames 4, magic 8 "TWINDEND"
//! ```

pub mod reader;
pub mod upload;
pub mod writer;

use std::fmt;

use crate::hash::ObjectType;
use crate::page;
use crate::seal::{Codec, TAG};

/// Version of the pack format.
pub const FORMAT: u16 = 1;

/// Bytes of a pack's header.
pub const HEADER: usize = 64;

/// Bytes of a pack's trailer.
pub const TRAILER: usize = 16;

/// Bytes of a record of a pack's table.
pub const RECORD: usize = 46;

/// No pack is larger, whatever a repository's parameters say, which allow 256 MiB before the last chunk and the table.
const MAX_PACK: u64 = 512 << 20;

const MAGIC: &[u8; 8] = b"TWINDPAK";
const END_MAGIC: &[u8; 8] = b"TWINDEND";

/// What a pack holds. Data and metadata never share one, so that metadata can be cached and listed cheaply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Chunks of volumes and files.
    Data = 1,
    /// Pages.
    Metadata = 2,
}

/// The header of pack `name`.
fn header(name: &PackName, class: u8, epoch: u32, commitment: &[u8; 16]) -> [u8; HEADER] {
    let mut h = [0u8; HEADER];
    h[..8].copy_from_slice(MAGIC);
    h[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    h[10] = class;
    h[12..16].copy_from_slice(&epoch.to_le_bytes());
    h[16..32].copy_from_slice(&name.id);
    h[32..44].copy_from_slice(&name.session.0);
    h[48..64].copy_from_slice(commitment);
    h
}

/// Most frames in a pack. With one key per pack this is far below what GCM allows a key.
pub const MAX_SLOTS: u32 = 1 << 14;

/// Prefix of all packs' keys.
pub const PACKS_PREFIX: &str = "packs/";

/// A session's id: 6 bytes of the store's time in milliseconds (big-endian), then 6 random bytes. Sorts by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 12]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SessionId {
    type Err = ();

    /// 24 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut id = [0; 12];
        hex::decode_to_slice(text, &mut id).map_err(|_| ())?;
        Ok(Self(id))
    }
}

/// Names a pack: a random id and the session that wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackName {
    /// 16 random bytes.
    pub id: [u8; 16],
    /// Who wrote it.
    pub session: SessionId,
}

impl PackName {
    /// Key of the pack in the store: `packs/<2 hex>/<32 hex>-<24 hex>`.
    pub fn key(&self) -> String {
        format!("{PACKS_PREFIX}{:02x}/{self}", self.id[0])
    }

    /// The name in a store key, if it is one.
    pub fn from_key(key: &str) -> Option<Self> {
        let (id_hex, session) = key.strip_prefix(PACKS_PREFIX)?.get(3..)?.split_once('-')?;
        let mut id = [0; 16];
        hex::decode_to_slice(id_hex, &mut id).ok()?;
        let name = Self { id, session: session.parse().ok()? };
        (name.key() == key).then_some(name)
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex::encode(self.id), self.session)
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a chunk or page is, and what is needed to open it besides its id and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackName,
    /// Slot in the pack.
    pub slot: u32,
    /// First byte of the frame in the pack.
    pub offset: u32,
    /// Bytes of the frame, tag included.
    pub stored: u32,
    /// Bytes of the plaintext.
    pub length: u32,
    /// How the plaintext is encoded.
    pub codec: Codec,
}

impl Location {
    /// False for what no writer makes: a place outside of packs, or lengths beyond the format's bounds. Asked before
    /// anything is read or allocated for it.
    pub fn is_possible(&self, kind: ObjectType) -> bool {
        let limit = if kind == ObjectType::Data { reader::MAX_CHUNK } else { page::MAX_PAGE };
        let (raw, stored) = (u64::from(self.length) + TAG as u64, u64::from(self.stored));
        let sealed = match self.codec {
            Codec::Raw => stored == raw,
            Codec::Zstd => stored > TAG as u64 && stored < raw,
        };
        sealed && self.length <= limit && self.slot < MAX_SLOTS && self.offset as usize >= HEADER
    }
}

#[cfg(test)]
mod tests;
