//! Segments: the stored form of the index, `index/<generation>/<session>-<n>`.
//!
//! A segment is a sealed object that says for whole packs which chunks they hold: a pack is in at most one segment
//! of the session that indexes it, with all of its chunks. So a pack that appears in the pack table of some readable
//! segment needs no rebuilding. Plaintext, little-endian:
//!
//! ```text
//!  0  format   2  1
//!  2  reserved 2  zero
//!  4  packs    4
//!  8  records  4  at most 65,536
//! 12  pack table, ascending by name, 40 bytes each:  id 16, session 12, frames 4, size 8
//!     records, ascending by id, kind and pack, 54 bytes each:
//!              id 32, kind 1, codec 1, pack 4 (row of the pack table), slot 4, offset 4, stored 4, length 4
//! ```
//! The encoding is canonical, and a reader checks all of it before it believes any of it.

use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::pack::{Location, MAX_SLOTS, PackName, SessionId};
use crate::seal::object::{self, ObjectClass};
use crate::seal::{Codec, MasterKey};

/// Most records of one segment: 3.5 MiB of plaintext for usual packs.
pub const MAX_RECORDS: usize = 1 << 16;

const FORMAT: u16 = 1;
const HEADER: usize = 12;
/// Bytes of a row of a pack table.
pub(super) const PACK_ROW: usize = 40;
/// Bytes of a record.
pub(super) const RECORD: usize = 54;

/// Largest sealed segment in bytes: every record in a pack of its own, stored raw.
pub(super) const MAX_STORED: u64 = (HEADER + MAX_RECORDS * (PACK_ROW + RECORD) + 128) as u64;

/// Names a segment. Sorts as its key does: by generation, then by the session's time, then by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName {
    /// Generation of garbage collection that the index belongs to.
    pub generation: u32,
    /// Who wrote it.
    pub session: SessionId,
    /// Counts the segments of a session from 0, without gaps.
    pub number: u32,
    /// What it is the last of. Its name says so, so that a lost one is noticed from names alone.
    pub last: Last,
}

/// What a segment is the last of. Ordered as the keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Last {
    /// Others of its session may follow.
    No = 0,
    /// Of a session that read the tables of all packs that no segment named: what older sessions lost is made good.
    OfAll = 1,
    /// Of its session, which commits after it.
    OfSession = 2,
}

impl Last {
    fn suffix(self) -> &'static str {
        match self {
            Self::No => "",
            Self::OfAll => ".all",
            Self::OfSession => ".end",
        }
    }

    /// As stored in the cache; what nobody stored is `No`.
    pub(super) fn from_code(code: u8) -> Self {
        [Self::No, Self::OfAll, Self::OfSession].into_iter().find(|l| *l as u8 == code).unwrap_or(Self::No)
    }
}

impl SegmentName {
    /// Key in the store: `index/<8 hex>/<24 hex>-<8 hex>`, and `.all` or `.end` for the last.
    pub fn key(&self) -> String {
        let Self { generation, session, number, last } = self;
        format!("index/{generation:08x}/{session}-{number:08x}{}", last.suffix())
    }

    /// The name in a store key, if it is one.
    pub fn from_key(key: &str) -> Option<Self> {
        let (generation, rest) = key.strip_prefix("index/")?.split_once('/')?;
        let (session, number) = rest.split_once('-')?;
        let (number, suffix) = number.split_at_checked(8)?;
        let name = Self {
            generation: u32::from_str_radix(generation, 16).ok()?,
            session: session.parse().ok()?,
            number: u32::from_str_radix(number, 16).ok()?,
            last: [Last::No, Last::OfAll, Last::OfSession].into_iter().find(|l| l.suffix() == suffix)?,
        };
        (name.key() == key).then_some(name)
    }
}

/// A pack as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRow {
    /// The pack.
    pub name: PackName,
    /// Number of its frames; every slot is below it.
    pub frames: u32,
    /// Size of the whole pack in bytes.
    pub size: u64,
}

impl PackRow {
    pub(super) fn encode(&self) -> [u8; PACK_ROW] {
        let mut row = [0; PACK_ROW];
        row[..16].copy_from_slice(&self.name.id);
        row[16..28].copy_from_slice(&self.name.session.0);
        row[28..32].copy_from_slice(&self.frames.to_le_bytes());
        row[32..].copy_from_slice(&self.size.to_le_bytes());
        row
    }

    pub(super) fn decode(row: &[u8; PACK_ROW]) -> Self {
        let name = PackName { id: array(&row[..16]), session: SessionId(array(&row[16..28])) };
        Self { name, frames: word(row, 28), size: u64::from_le_bytes(array(&row[32..])) }
    }
}

/// A chunk in a pack, the pack given as a row of a pack table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Identity.
    pub id: Id,
    /// What it is.
    pub kind: ObjectType,
    /// How it is encoded.
    pub codec: Codec,
    /// Row of the pack in the table that goes with the record.
    pub pack: u32,
    /// Slot in the pack.
    pub slot: u32,
    /// First byte of the frame in the pack.
    pub offset: u32,
    /// Bytes of the frame, tag included.
    pub stored: u32,
    /// Bytes of the plaintext.
    pub length: u32,
}

impl Record {
    /// The record of a chunk whose pack is row `pack`.
    pub fn new(kind: ObjectType, id: Id, pack: u32, at: &Location) -> Self {
        let Location { pack: _, slot, offset, stored, length, codec } = *at;
        Self { id, kind, codec, pack, slot, offset, stored, length }
    }

    /// The location, given the name of the record's pack.
    pub fn location(&self, pack: PackName) -> Location {
        let Self { slot, offset, stored, length, codec, .. } = *self;
        Location { pack, slot, offset, stored, length, codec }
    }

    /// What look-ups compare.
    pub(super) fn key(&self) -> (Id, ObjectType) {
        (self.id, self.kind)
    }

    pub(super) fn encode(&self) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        out[..32].copy_from_slice(&self.id.0);
        out[32] = self.kind as u8;
        out[33] = self.codec as u8;
        for (at, word) in (34..).step_by(4).zip([self.pack, self.slot, self.offset, self.stored, self.length])
        {
            out[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None` for a kind or codec that this version does not know.
    pub(super) fn decode(from: &[u8; RECORD]) -> Option<Self> {
        Some(Self {
            id: Id(array(&from[..32])),
            kind: ObjectType::from_code(from[32])?,
            codec: Codec::from_code(from[33])?,
            pack: word(from, 34),
            slot: word(from, 38),
            offset: word(from, 42),
            stored: word(from, 46),
            length: word(from, 50),
        })
    }

    /// True when the frame can be in a pack of that shape.
    fn fits(&self, row: &PackRow) -> bool {
        self.location(row.name).is_possible(self.kind)
            && self.slot < row.frames
            && u64::from(self.offset) + u64::from(self.stored) <= row.size
    }
}

fn array<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(from);
    out
}

fn word(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(&from[at..at + 4]))
}

/// A segment in memory: its plaintext, checked. Rows and records are decoded as they are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    plain: Vec<u8>,
    packs: usize,
    records: usize,
}

impl Segment {
    /// A segment of these packs and records, in any order. A record's `pack` counts in the order given here.
    ///
    /// # Errors
    /// [`Error::Internal`] when they break a rule of the format: too many, a pack twice, a frame outside its pack.
    pub fn new(packs: &[PackRow], records: &mut [Record]) -> Result<Self> {
        let internal = |what: &str| Error::Internal(format!("index segment: {what}"));
        let mut order: Vec<usize> = (0..packs.len()).collect();
        order.sort_unstable_by_key(|i| packs[*i].name);
        let mut place = vec![0u32; packs.len()];
        for (to, from) in order.iter().enumerate() {
            place[*from] = u32::try_from(to).map_err(|_| internal("too many packs"))?;
        }
        for record in records.iter_mut() {
            record.pack =
                *place.get(record.pack as usize).ok_or_else(|| internal("record without a pack"))?;
        }
        records.sort_unstable_by_key(|r| (r.id, r.kind, r.pack));
        let count = |n: usize| u32::try_from(n).map_err(|_| internal("too many records"));
        let mut plain = Vec::with_capacity(HEADER + packs.len() * PACK_ROW + records.len() * RECORD);
        plain.extend_from_slice(&FORMAT.to_le_bytes());
        plain.extend_from_slice(&[0; 2]);
        plain.extend_from_slice(&count(packs.len())?.to_le_bytes());
        plain.extend_from_slice(&count(records.len())?.to_le_bytes());
        order.iter().for_each(|i| plain.extend_from_slice(&packs[*i].encode()));
        records.iter().for_each(|r| plain.extend_from_slice(&r.encode()));
        Self::decode(plain).map_err(internal)
    }

    /// The segment with this plaintext.
    ///
    /// # Errors
    /// A static text for the caller to wrap with the object's name, when any rule of the format is broken.
    pub fn decode(plain: Vec<u8>) -> Result<Self, &'static str> {
        if plain.len() < HEADER {
            return Err("shorter than its header");
        }
        if plain[..2] != FORMAT.to_le_bytes() {
            return Err("segment format is not known to this version");
        }
        let (packs, records) = (word(&plain, 4) as usize, word(&plain, 8) as usize);
        // A pack without records has no reason to be here, so packs are bounded by records, too.
        if plain[2..4] != [0; 2] || records > MAX_RECORDS || packs > MAX_RECORDS {
            return Err("header does not fit");
        }
        if plain.len() != HEADER + packs * PACK_ROW + records * RECORD {
            return Err("length does not fit");
        }
        let segment = Self { plain, packs, records };
        segment.check()?;
        Ok(segment)
    }

    fn check(&self) -> Result<(), &'static str> {
        let mut last = None;
        for row in self.packs() {
            if last.is_some_and(|l| l >= row.name) {
                return Err("pack table is out of order");
            }
            if row.frames == 0 || row.frames > MAX_SLOTS {
                return Err("number of frames does not fit");
            }
            last = Some(row.name);
        }
        let mut last = None;
        for i in 0..self.records {
            let record = Record::decode(self.record_bytes(i)).ok_or("unknown kind or codec")?;
            if record.pack as usize >= self.packs {
                return Err("record names no pack");
            }
            if !record.fits(&self.pack(record.pack as usize)) {
                return Err("record does not fit its pack");
            }
            let key = (record.id, record.kind, record.pack);
            if last.is_some_and(|l| l >= key) {
                return Err("records are out of order");
            }
            last = Some(key);
        }
        Ok(())
    }

    fn record_bytes(&self, i: usize) -> &[u8; RECORD] {
        let at = HEADER + self.packs * PACK_ROW + i * RECORD;
        self.plain[at..].first_chunk().unwrap_or(&[0; RECORD])
    }

    /// Row `i` of the pack table, which must be below [`Segment::pack_count`].
    pub(super) fn pack(&self, i: usize) -> PackRow {
        PackRow::decode(self.plain[HEADER + i * PACK_ROW..].first_chunk().unwrap_or(&[0; PACK_ROW]))
    }

    /// Record `i` in ascending order, `None` past the end.
    pub(super) fn record(&self, i: usize) -> Option<Record> {
        if i < self.records { Record::decode(self.record_bytes(i)) } else { None }
    }

    /// The packs, ascending by name.
    pub fn packs(&self) -> impl Iterator<Item = PackRow> + '_ {
        (0..self.packs).map(|i| self.pack(i))
    }

    /// The records, ascending by id, kind and pack.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        (0..self.records).filter_map(|i| self.record(i))
    }

    /// Number of packs.
    pub fn pack_count(&self) -> usize {
        self.packs
    }

    /// Number of records.
    pub fn record_count(&self) -> usize {
        self.records
    }

    /// Seals the segment as the object `name`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system has no randomness.
    pub fn seal(&self, master: &MasterKey, epoch: u32, name: &SegmentName) -> Result<Vec<u8>> {
        object::seal(master, epoch, ObjectClass::Index, &name.key(), &self.plain)
    }

    /// Opens the stored object `name`.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the key, when it is not exactly what was sealed or breaks a rule of the format.
    pub fn open(master: &MasterKey, name: &SegmentName, stored: &[u8]) -> Result<Self> {
        let key = name.key();
        let plain = object::open(master, ObjectClass::Index, &key, stored)?;
        Self::decode(plain).map_err(|what| Error::damaged(key, what))
    }
}

#[cfg(test)]
mod tests;
