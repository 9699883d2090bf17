#![allow(clippy::unwrap_used, reason = "tests")]

use super::reader::{Opener, read_frame};
use super::writer::Placed;
use super::*;
use crate::error::{Error, Result};
use crate::hash::Hasher;
use crate::page::join;
use crate::page::tests::{golden, golden_master};
use crate::repository::test_store::TestStore;
use crate::seal::{FrameHead, PackKey};

const NAME: PackName = PackName { id: [0xB2; 16], session: SessionId([0xC3; 12]) };

/// A chunk stored raw, one stored as a zstd frame, and a page. Packs keep data and pages apart; readers do not care.
fn chunks() -> Vec<(ObjectType, Codec, Vec<u8>, Vec<u8>)> {
    // By hand, so that no release of zstd changes it: single segment, content size 1000 in 2 bytes, one block of RLE.
    let zstd = [&[0x28, 0xB5, 0x2F, 0xFD, 0x60, 0xE8, 0x02, 0x43, 0x1F, 0x00][..], b"a"].concat();
    let page = join(&[1, 0, 0], &[]);
    vec![
        (ObjectType::Data, Codec::Raw, b"raw bytes".to_vec(), b"raw bytes".to_vec()),
        (ObjectType::Data, Codec::Zstd, vec![b'a'; 1000], zstd),
        (ObjectType::Extents, Codec::Raw, page.clone(), page),
    ]
}

/// The pack of [`chunks`], put together from the format's description alone.
fn build() -> (Vec<u8>, Vec<Placed>) {
    let key = PackKey::derive(&golden_master(), 1, NAME).unwrap();
    let hasher = Hasher::new(&golden_master());
    let header = header(&NAME, Class::Data as u8, 1, &key.commitment);
    let (mut pack, mut table, mut placed) = (header.to_vec(), vec![], vec![]);
    for (slot, (kind, codec, plain, mut bytes)) in (0..).zip(chunks()) {
        let covered = if kind == ObjectType::Data { &plain[..] } else { page::content(&plain).unwrap() };
        let id = hasher.id(kind, covered);
        let offset = u32::try_from(pack.len()).unwrap();
        let [stored, length] = [bytes.len() + TAG, plain.len()].map(|n| u32::try_from(n).unwrap());
        let tag = key.seal(&FrameHead { slot, kind, codec, length, id }, &mut bytes).unwrap();
        pack.extend([&bytes[..], &tag].concat());
        table.extend([&id.0[..], &[kind as u8, codec as u8]].concat());
        [offset, stored, length].iter().for_each(|n| table.extend(n.to_le_bytes()));
        placed.push((kind, id, Location { pack: NAME, slot, offset, stored, length, codec }));
    }
    let tag = key.seal_table(&header, &mut table).unwrap();
    table.extend(tag);
    let lengths = [table.len(), placed.len()].map(|n| u32::try_from(n).unwrap().to_le_bytes());
    pack.extend([&table[..], &lengths.concat(), END_MAGIC].concat());
    (pack, placed)
}

fn opener() -> Opener {
    Opener::new(golden_master(), Hasher::new(&golden_master()), 1)
}

async fn fetch(opener: &mut Opener, store: &TestStore, (kind, id, at): &Placed) -> Result<Vec<u8>> {
    let stored = read_frame(store, *kind, at).await?;
    let mut out = vec![0; at.length as usize];
    opener.open(*kind, id, at, &stored, &mut out).map(|()| out)
}

/// The table of `pack`, and what each of its frames opens to.
async fn read(pack: &[u8]) -> Result<Vec<(Placed, Result<Vec<u8>>)>> {
    let store = TestStore::new();
    store.put(&NAME.key(), pack.to_vec());
    let mut opener = opener();
    let mut found = vec![];
    for placed in opener.table(&*store, NAME, pack.len() as u64).await? {
        let opened = fetch(&mut opener, &store, &placed).await;
        found.push((placed, opened));
    }
    Ok(found)
}

#[tokio::test]
async fn golden_pack() {
    let (pack, placed) = build();
    assert_eq!(hex::encode(&pack), golden("pack"));
    let found = read(&pack).await.unwrap();
    assert_eq!(found.iter().map(|(p, _)| *p).collect::<Vec<_>>(), placed);
    for ((_, opened), (_, _, plain, _)) in found.into_iter().zip(chunks()) {
        assert_eq!(opened.unwrap(), plain);
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found_and_named() {
    let (pack, placed) = build();
    let frames = HEADER..placed.iter().map(|(_, _, at)| at.offset + at.stored).max().unwrap() as usize;
    for at in 0..pack.len() {
        let mut harmed = pack.clone();
        harmed[at] ^= 1 << (at % 8);
        match read(&harmed).await {
            Err(Error::Damaged { object, .. }) => {
                assert!(!frames.contains(&at), "byte {at}: a frame is no reason to distrust the table");
                assert_eq!(object, NAME.key());
            }
            Err(other) => panic!("byte {at}: {other}"),
            Ok(found) => {
                let bad: Vec<_> = found.iter().filter(|(_, opened)| opened.is_err()).collect();
                let [((_, _, place), Err(Error::Damaged { object, offset, .. }))] = bad[..] else {
                    panic!("byte {at}: {} frames are bad", bad.len())
                };
                let (from, to) = (place.offset as usize, (place.offset + place.stored) as usize);
                assert!((from..to).contains(&at), "byte {at} is not in the frame at {from}");
                assert_eq!((object, *offset), (&NAME.key(), Some(u64::from(place.offset))));
            }
        }
    }
}

#[tokio::test]
async fn a_pack_cut_anywhere_has_no_table() {
    let (pack, placed) = build();
    for len in 0..pack.len() {
        assert!(matches!(read(&pack[..len]).await, Err(Error::Damaged { .. })), "{len} bytes");
    }
    // What is whole still opens where a page's hint says.
    let store = TestStore::new();
    let (kind, id, at) = placed[1];
    store.put(&NAME.key(), pack[..(at.offset + at.stored) as usize].to_vec());
    assert_eq!(fetch(&mut opener(), &store, &(kind, id, at)).await.unwrap(), vec![b'a'; 1000]);
    for (lost, what) in [(placed[2], "is cut short"), ((kind, id, elsewhere(at)), "is missing")] {
        match fetch(&mut opener(), &store, &lost).await {
            Err(Error::Damaged { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{other:?}"),
        }
    }
}

fn elsewhere(at: Location) -> Location {
    Location { pack: PackName { id: [0xB3; 16], ..NAME }, ..at }
}

#[test]
fn impossible_locations_are_told_apart() {
    let at = Location { pack: NAME, slot: 0, offset: 64, stored: 116, length: 100, codec: Codec::Raw };
    let possible = |at: Location| [ObjectType::Data, ObjectType::Extents].map(|kind| at.is_possible(kind));
    assert_eq!(possible(at), [true, true]);
    assert_eq!(possible(Location { length: 0, stored: 16, ..at }), [true, true]);
    assert_eq!(possible(Location { codec: Codec::Zstd, stored: 115, ..at }), [true, true]);
    let large = |n: u32| Location { length: n, stored: n + 16, ..at };
    assert_eq!(possible(large(page::MAX_PAGE)), [true, true]);
    assert_eq!(possible(large(page::MAX_PAGE + 1)), [true, false]);
    assert_eq!(possible(large(reader::MAX_CHUNK)), [true, false]);
    for wrong in [
        large(reader::MAX_CHUNK + 1),
        Location { stored: u32::MAX, length: u32::MAX, ..at },
        Location { stored: 115, ..at },
        Location { stored: 117, ..at },
        Location { codec: Codec::Zstd, ..at },
        Location { codec: Codec::Zstd, stored: 16, ..at },
        Location { slot: MAX_SLOTS, ..at },
        Location { offset: 63, ..at },
    ] {
        assert_eq!(possible(wrong), [false, false], "{wrong:?}");
    }
}

/// A table of one frame as only a program that means harm writes it: it authenticates, and is refused.
#[tokio::test]
async fn a_table_with_an_impossible_frame_is_refused() {
    let key = PackKey::derive(&golden_master(), 1, NAME).unwrap();
    let header = header(&NAME, Class::Data as u8, 1, &key.commitment);
    for (stored, length, expected) in [
        (16 + 9, 9, None),
        (16 + 9, u32::MAX, Some("impossible frame")),
        (8, 8, Some("impossible frame")),
        (16 + 8, 8, Some("frames do not end at the table")),
    ] {
        let mut table = [&[0xEE; 32][..], &[1, 0]].concat();
        [64u32, stored, length].iter().for_each(|n| table.extend(n.to_le_bytes()));
        let tag = key.seal_table(&header, &mut table).unwrap();
        let lengths = [62u32, 1].map(u32::to_le_bytes).concat();
        let pack = [&header[..], &[0; 25], &table, &tag, &lengths, END_MAGIC].concat();
        let found = read(&pack).await;
        match (found, expected) {
            (Ok(_), None) => {}
            (Err(Error::Damaged { what, .. }), Some(expected)) => assert_eq!(what, expected),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}
