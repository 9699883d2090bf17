//! Opens what packs hold: single frames by location, and whole tables.

use std::collections::HashMap;

use bytes::Bytes;

use super::{END_MAGIC, FORMAT, HEADER, Location, MAGIC, MAX_PACK, MAX_SLOTS, PackName, RECORD, TRAILER};
use crate::error::{Error, Result};
use crate::hash::{Hasher, Id, ObjectType};
use crate::page;
use crate::seal::{Codec, Compressor, FrameHead, Level, MasterKey, PackKey, TAG};
use crate::store::{Store, StoreErrorKind};

use super::writer::Placed;

/// Largest chunk of data, bytes. Bounds what a reader allocates for one.
pub const MAX_CHUNK: u32 = 16 << 20;

/// Opens frames. One per worker: it keeps decompression state and the keys of the packs seen last.
pub struct Opener {
    master: MasterKey,
    hasher: Hasher,
    epoch: u32,
    keys: HashMap<PackName, PackKey>,
    compressor: Compressor,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener(..)")
    }
}

/// Pack keys kept by an [`Opener`].
const KEYS: usize = 64;

impl Opener {
    /// An opener for packs of the repository with these keys.
    pub fn new(master: MasterKey, hasher: Hasher, epoch: u32) -> Self {
        Self {
            master,
            hasher,
            epoch,
            keys: HashMap::new(),
            compressor: Compressor::new(Level::Off),
            plain: Vec::new(),
        }
    }

    /// Authenticates, decrypts, decompresses and checks the identity of the frame at `at`, whose bytes (tag
    /// included) are `stored`; the plaintext goes to `out`, which must have `at.length` bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the pack and the frame's offset. `out` must then not be used.
    pub fn open(
        &mut self,
        kind: ObjectType,
        id: &Id,
        at: &Location,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        self.open_inner(kind, id, at, stored, out)
            .map_err(|what| Error::damaged_at(at.pack.key(), u64::from(at.offset), what))
    }

    fn open_inner(
        &mut self,
        kind: ObjectType,
        id: &Id,
        at: &Location,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<(), &'static str> {
        if stored.len() != at.stored as usize || out.len() != at.length as usize || stored.len() < TAG {
            return Err("lengths do not fit");
        }
        if self.keys.len() >= KEYS && !self.keys.contains_key(&at.pack) {
            self.keys.clear();
        }
        let key = match self.keys.entry(at.pack) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(PackKey::derive(&self.master, self.epoch, at.pack).map_err(|_| "no key")?)
            }
        };
        let head = FrameHead { slot: at.slot, kind, codec: at.codec, length: at.length, id: *id };
        match at.codec {
            Codec::Raw if stored.len() - TAG == out.len() => key.open_to(&head, stored, out)?,
            Codec::Raw => return Err("lengths do not fit"),
            Codec::Zstd => {
                self.plain.resize(stored.len() - TAG, 0);
                key.open_to(&head, stored, &mut self.plain)?;
                self.compressor.decompress(&self.plain, out)?;
            }
        }
        // The tag already binds the id; hashing again catches a writer that hashed other bytes than it stored, for
        // instance because memory was bad.
        let covered = if kind == ObjectType::Data { &*out } else { page::content(out)? };
        if self.hasher.id(kind, covered) != *id {
            return Err("contents are not what their id says");
        }
        Ok(())
    }

    /// Reads the table of a pack of `size` bytes: every frame in it. Needs nothing but the pack and the master key.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the pack, or the store's error.
    pub async fn table(&mut self, store: &dyn Store, name: PackName, size: u64) -> Result<Vec<Placed>> {
        let object = name.key();
        let damaged = |what: &str| Error::damaged(object.clone(), what);
        if size < (HEADER + TAG + TRAILER) as u64 || size > MAX_PACK {
            return Err(damaged("size is not that of a pack"));
        }
        let header = store.read(&object, 0..HEADER as u64).await?;
        let tail_start = size.saturating_sub(64 << 10).max(HEADER as u64);
        let tail = store.read(&object, tail_start..size).await?;
        let (rest, trailer) = tail.split_at(tail.len() - TRAILER);
        let word =
            |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
        let (length, count) = (word(0) as usize, word(4));
        if &trailer[8..] != END_MAGIC || count > MAX_SLOTS || length != count as usize * RECORD + TAG {
            return Err(damaged("trailer does not fit"));
        }
        let mut table = if length <= rest.len() {
            rest[rest.len() - length..].to_vec()
        } else {
            let end = size - TRAILER as u64;
            let start = end.checked_sub(length as u64).ok_or_else(|| damaged("table does not fit"))?;
            store.read(&object, start..end).await?.to_vec()
        };
        let end = size - (TRAILER + length) as u64;
        let format = u16::from_le_bytes([header[8], header[9]]);
        if &header[..8] == MAGIC && format != FORMAT {
            return Err(damaged(&format!("pack format {format} is not known to this version")));
        }
        let key = PackKey::derive(&self.master, self.epoch, name)?;
        let fits = &header[..8] == MAGIC
            && header[16..32] == name.id
            && header[32..44] == name.session.0
            && header[48..64] == key.commitment;
        if !fits {
            return Err(damaged("header does not fit"));
        }
        let table = key.open_table(&header, &mut table).map_err(|what| damaged(&format!("table: {what}")))?;
        decode_table(name, table, end).map_err(damaged)
    }
}

/// Reads the bytes of one frame, to be given to [`Opener::open`]. For pages and other single look-ups; bulk reads
/// coalesce.
///
/// # Errors
/// [`Error::Damaged`] naming the pack and the frame's offset, when it cannot be there or the pack is gone or cut short;
/// the store's other errors.
pub async fn read_frame(store: &dyn Store, kind: ObjectType, at: &Location) -> Result<Bytes> {
    let (key, start) = (at.pack.key(), u64::from(at.offset));
    let damaged = |what: &str| Err(Error::damaged_at(&key, start, what));
    if !at.is_possible(kind) {
        return damaged("beyond the format's bounds");
    }
    match store.read(&key, start..start + u64::from(at.stored)).await {
        Ok(stored) => Ok(stored),
        Err(e) if e.kind == StoreErrorKind::NotFound => damaged("is missing"),
        Err(e) if e.kind == StoreErrorKind::OutOfRange => damaged("is cut short"),
        Err(e) => Err(e.into()),
    }
}

/// Decodes a pack's table; frames must follow each other from the header to `end`.
fn decode_table(pack: PackName, table: &[u8], end: u64) -> Result<Vec<Placed>, &'static str> {
    let mut placed = Vec::with_capacity(table.len() / RECORD);
    let mut next = HEADER as u64;
    for (slot, record) in table.chunks_exact(RECORD).enumerate() {
        let (id, rest) = record.split_first_chunk::<32>().ok_or("table record")?;
        let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let kind = ObjectType::from_code(rest[0]).ok_or("unknown object type")?;
        let codec = Codec::from_code(rest[1]).ok_or("unknown codec")?;
        let (offset, stored, length) = (word(2), word(6), word(10));
        if u64::from(offset) != next {
            return Err("frames do not follow each other");
        }
        next += u64::from(stored);
        let slot = u32::try_from(slot).map_err(|_| "slots")?;
        let at = Location { pack, slot, offset, stored, length, codec };
        if !at.is_possible(kind) {
            return Err("impossible frame");
        }
        placed.push((kind, Id(*id), at));
    }
    if next == end { Ok(placed) } else { Err("frames do not end at the table") }
}
