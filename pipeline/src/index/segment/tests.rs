#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn master() -> MasterKey {
    MasterKey::from_bytes([7; 32])
}

fn name() -> SegmentName {
    SegmentName { generation: 3, session: SessionId([9; 12]), number: 0x1f, last: Last::No }
}

/// Two packs out of order, three records out of order, one chunk in both packs.
fn sample() -> (Vec<PackRow>, Vec<Record>) {
    let pack = |n: u8| PackName { id: [n; 16], session: SessionId([1; 12]) };
    let packs = vec![
        PackRow { name: pack(2), frames: 2, size: 1000 },
        PackRow { name: pack(1), frames: 5, size: 1 << 33 },
    ];
    let record = |id: u8, kind, codec, pack, slot| Record {
        id: Id([id; 32]),
        kind,
        codec,
        pack,
        slot,
        offset: 100,
        stored: 116,
        length: 100,
    };
    let records = vec![
        Record { length: 1000, ..record(8, ObjectType::Data, Codec::Zstd, 0, 1) },
        record(4, ObjectType::Extents, Codec::Raw, 1, 4),
        record(8, ObjectType::Data, Codec::Raw, 1, 0),
    ];
    (packs, records)
}

#[test]
fn golden_bytes() {
    let (packs, mut records) = sample();
    let segment = Segment::new(&packs, &mut records).unwrap();
    let expected = [
        "0100000002000000",
        "03000000",
        // pack 1, then pack 2
        "01010101010101010101010101010101",
        "010101010101010101010101",
        "05000000",
        "0000000002000000",
        "02020202020202020202020202020202",
        "010101010101010101010101",
        "02000000",
        "e803000000000000",
        // id, kind, codec, pack, slot, offset, stored, length
        "0404040404040404040404040404040404040404040404040404040404040404",
        "0200",
        "0000000004000000640000007400000064000000",
        "0808080808080808080808080808080808080808080808080808080808080808",
        "0100",
        "0000000000000000640000007400000064000000",
        "0808080808080808080808080808080808080808080808080808080808080808",
        "0101",
        "01000000010000006400000074000000e8030000",
    ]
    .concat();
    assert_eq!(hex::encode(&segment.plain), expected);
    assert_eq!(segment.packs().map(|p| p.name.id[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(segment.records().map(|r| (r.id.0[0], r.pack)).collect::<Vec<_>>(), [(4, 0), (8, 0), (8, 1)]);
    assert_eq!(name().key(), "index/00000003/090909090909090909090909-0000001f");
    assert_eq!(SegmentName::from_key(&name().key()), Some(name()));
    let lasts = [(Last::No, ""), (Last::OfAll, ".all"), (Last::OfSession, ".end")];
    for (last, suffix) in lasts {
        let name = SegmentName { last, ..name() };
        assert_eq!(name.key(), format!("index/00000003/090909090909090909090909-0000001f{suffix}"));
        assert_eq!((SegmentName::from_key(&name.key()), Last::from_code(last as u8)), (Some(name), last));
    }
    assert!(lasts.is_sorted(), "names sort as keys do");
    for bad in
        ["index/3/090909090909090909090909-0000001f", "index/00000003/09-0000001f", "index/", "packs/00"]
    {
        assert_eq!(SegmentName::from_key(bad), None);
    }
}

#[test]
fn sealed_segment_opens_under_its_own_name_only() {
    let (packs, mut records) = sample();
    let segment = Segment::new(&packs, &mut records).unwrap();
    let stored = segment.seal(&master(), 1, &name()).unwrap();
    assert!((stored.len() as u64) < MAX_STORED);
    assert_eq!(Segment::open(&master(), &name(), &stored).unwrap(), segment);
    let other = SegmentName { number: 0, ..name() };
    assert!(Segment::open(&master(), &other, &stored).is_err());
}

#[test]
fn rules_of_the_format_are_enforced() {
    let refuse = |change: &dyn Fn(&mut Vec<PackRow>, &mut Vec<Record>)| {
        let (mut packs, mut records) = sample();
        change(&mut packs, &mut records);
        Segment::new(&packs, &mut records).unwrap_err().to_string()
    };
    assert!(refuse(&|p, _| p[1].name = p[0].name).contains("out of order"));
    assert!(refuse(&|p, _| p[0].frames = 0).contains("frames"));
    assert!(refuse(&|p, _| p[0].frames = MAX_SLOTS + 1).contains("frames"));
    assert!(refuse(&|_, r| r[0].slot = 2).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].offset = 900).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].offset = u32::MAX).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].stored = 15).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].length = 100).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].length = u32::MAX).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].offset = 63).contains("does not fit"));
    assert!(refuse(&|_, r| r[0].pack = 2).contains("without a pack"));
    assert!(refuse(&|_, r| r[1] = r[0]).contains("out of order"));
    assert!(refuse(&|_, r| r.resize(MAX_RECORDS + 1, r[0])).contains("header"));
    assert!(Segment::new(&[], &mut []).is_ok());
}

#[test]
fn a_claimed_size_allocates_nothing() {
    let mut plain = vec![0; HEADER];
    plain[0] = 1;
    plain[4..12].fill(0xff);
    assert_eq!(Segment::decode(plain.clone()), Err("header does not fit"));
    plain[4..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(Segment::decode(plain), Err("length does not fit"));
}

prop_compose! {
    fn arbitrary()(
        packs in prop::collection::btree_map(any::<[u8; 16]>(), (1..=MAX_SLOTS, 100u64..1 << 32), 1..6),
        records in prop::collection::btree_map(
            (any::<[u8; 32]>(), 0usize..4), (any::<(u32, u32, bool, u32)>(), 0usize..6), 0..40),
    ) -> (Vec<PackRow>, Vec<Record>) {
        let packs: Vec<_> = packs.into_iter().map(|(id, (frames, size))| PackRow {
            name: PackName { id, session: SessionId([5; 12]) }, frames, size,
        }).collect();
        let records = records.into_iter().map(|((id, kind), ((a, b, zstd, length), pack))| {
            let pack = pack % packs.len();
            let row = &packs[pack];
            // 17 bytes at least, so that a compressed frame can be one.
            let stored = 17 + (u64::from(a) % (row.size - 64 - 16).min(4_000_000)) as u32;
            let longer = length % (1 << 10) + 1;
            Record {
                id: Id(id),
                kind: ObjectType::ALL[kind],
                codec: if zstd { Codec::Zstd } else { Codec::Raw },
                pack: pack as u32,
                slot: b % row.frames,
                offset: 64 + (u64::from(b) % (row.size - 64 - u64::from(stored) + 1)) as u32,
                stored,
                length: stored - 16 + if zstd { longer } else { 0 },
            }
        }).collect();
        (packs, records)
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded((packs, mut records) in arbitrary()) {
        let segment = Segment::new(&packs, &mut records).unwrap();
        let again = Segment::decode(segment.plain.clone()).unwrap();
        prop_assert_eq!(&again, &segment);
        prop_assert_eq!(again.packs().collect::<Vec<_>>(), packs);
        prop_assert_eq!(again.records().collect::<Vec<_>>(), records);
    }

    #[test]
    fn any_bytes_decode_or_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400), honest: bool) {
        if honest && bytes.len() >= HEADER {
            bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
            bytes[4..12].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
            bytes.resize(HEADER + PACK_ROW + RECORD, 0);
        }
        if let Ok(segment) = Segment::decode(bytes.clone()) {
            // Whatever is accepted is canonical: it encodes to the same bytes.
            let packs: Vec<_> = segment.packs().collect();
            let mut records: Vec<_> = segment.records().collect();
            prop_assert_eq!(Segment::new(&packs, &mut records).unwrap().plain, bytes);
        }
    }

    #[test]
    fn a_flipped_bit_never_opens(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (packs, mut records) = sample();
        let mut stored = Segment::new(&packs, &mut records).unwrap().seal(&master(), 1, &name()).unwrap();
        let at = at.index(stored.len());
        stored[at] ^= 1 << bit;
        prop_assert!(Segment::open(&master(), &name(), &stored).is_err());
    }
}
