#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::extents::PageSink;
use super::*;
use crate::error::Result;
use crate::hash::{Hasher, ObjectType};
use crate::seal::MasterKey;

/// Master key of all vectors: 0, 1, 2, ... 31.
pub(crate) fn golden_master() -> MasterKey {
    MasterKey::from_bytes(std::array::from_fn(|i| i as u8))
}

/// The line `name` of the vectors of pages and packs.
pub(crate) fn golden(name: &str) -> &'static str {
    let line = include_str!("vectors.txt").lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no vector `{name}`"))
}

/// Keeps pages in memory, by id, and counts those that are stored for the first time.
pub(super) struct Pages {
    hasher: Hasher,
    pub(super) stored: HashMap<(ObjectType, Id), Vec<u8>>,
    /// Gives every page a hint, another one for each value.
    pub(super) hints: Option<u8>,
}

impl Pages {
    pub(super) fn new() -> Self {
        Self { hasher: Hasher::new(&golden_master()), stored: HashMap::new(), hints: None }
    }

    pub(super) fn page(&self, kind: ObjectType, id: &Id) -> &[u8] {
        &self.stored[&(kind, *id)]
    }

    /// How many pages these are that `other` does not have.
    pub(super) fn beyond(&self, other: &Self) -> usize {
        self.stored.keys().filter(|key| !other.stored.contains_key(key)).count()
    }
}

impl PageSink for Pages {
    fn store_page(&mut self, kind: ObjectType, content: &[u8], chunks: &[ChunkRef]) -> Result<ChunkRef> {
        let id = self.hasher.id(kind, content);
        let page = join(content, chunks);
        assert!(page.len() <= MAX_PAGE as usize, "a page of {} bytes", page.len());
        self.stored.insert((kind, id), page);
        Ok(ChunkRef { id, hint: self.hints.map(|seed| location(u64::from(seed))) })
    }
}

/// Some location, another one for each number.
pub(super) fn location(n: u64) -> Location {
    let pack = PackName { id: [n as u8; 16], session: SessionId([(n >> 8) as u8; 12]) };
    let length = (n % 1000) as u32 + 1;
    Location {
        pack,
        slot: (n % 9) as u32,
        offset: 64 + n as u32 % 5000,
        stored: length + 16,
        length,
        codec: Codec::Raw,
    }
}

/// The chunk number `n`, with a hint.
pub(super) fn chunk(n: u64) -> ChunkRef {
    let mut id = [0x11; 32];
    id[..8].copy_from_slice(&n.to_le_bytes());
    // The last byte decides where pages of files end.
    id[31] = blake3::hash(&n.to_le_bytes()).as_bytes()[0];
    ChunkRef { id: Id(id), hint: Some(location(n)) }
}

fn some_chunk() -> impl Strategy<Value = ChunkRef> {
    (any::<u64>(), any::<bool>())
        .prop_map(|(n, known)| ChunkRef { hint: chunk(n).hint.filter(|_| known), ..chunk(n) })
}

proptest! {
    #[test]
    fn content_and_hints_round_trip(
        body in prop::collection::vec(any::<u8>(), 0..200), chunks in prop::collection::vec(some_chunk(), 0..50)
    ) {
        let page = join(&body, &chunks);
        let ids: Vec<Id> = chunks.iter().map(|c| c.id).collect();
        prop_assert_eq!(content(&page).unwrap(), &body[..]);
        prop_assert_eq!(hints(&page, &ids).unwrap(), chunks);
        prop_assert!(hints(&page, &ids[..ids.len().saturating_sub(1)]).is_err() || ids.is_empty());
        prop_assert!(hints(&page[..page.len() - 1], &ids).is_err());
    }

    #[test]
    fn any_bytes_are_hints_or_refused(page in prop::collection::vec(any::<u8>(), 0..300), ids in 0usize..20) {
        let _ = content(&page);
        if content(&page).is_ok() {
            let _ = hints(&page, &vec![Id([0; 32]); ids]);
        }
    }
}

#[test]
fn a_claimed_size_allocates_nothing() {
    assert!(content(&[0xff; 8]).is_err());
    assert!(content(&[1, 0, 0]).is_err());
    // No content, and 2^62 packs.
    let page = [&[0; 4][..], &[0xff; 8], &[0x3f]].concat();
    assert_eq!(hints(&page, &[]).unwrap_err(), "count too large");
}

#[test]
fn hints_that_name_no_pack_are_refused() {
    let page = [&[0; 4][..], &[0, 1, 0, 0, 0, 0, 0]].concat();
    assert_eq!(hints(&page, &[Id([1; 32])]).unwrap_err(), "hint names no pack");
}

#[test]
fn golden_hints() {
    let chunks = [
        ChunkRef {
            id: Id([0xAA; 32]),
            hint: Some(Location { codec: Codec::Zstd, stored: 200, ..location(300) }),
        },
        ChunkRef { id: Id([0xBB; 32]), hint: None },
        ChunkRef { id: Id([0xCC; 32]), hint: Some(location(7)) },
        ChunkRef { id: Id([0xDD; 32]), hint: Some(location(300)) },
    ];
    assert_eq!(hex::encode(join(b"content", &chunks)), golden("page hints"));
}
