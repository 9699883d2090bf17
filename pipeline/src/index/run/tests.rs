#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::segment::Segment;
use super::merge::{Source, merge};
use super::*;
use crate::pack::PackName;
use crate::seal::{Codec, MasterKey};

fn key() -> PageKey {
    PageKey::new(&MasterKey::from_bytes([3; 32]), &[1; 16])
}

fn pack(n: u32) -> PackName {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    PackName { id, session: SessionId([2; 12]) }
}

fn cover(number: u32) -> SegmentName {
    SegmentName { generation: 0, session: SessionId([2; 12]), number, last: Last::No }
}

fn location(pack_number: u32, slot: u32) -> Location {
    Location {
        pack: pack(pack_number),
        slot,
        offset: 64 + slot * 100,
        stored: 99,
        length: 100 + slot,
        codec: Codec::Zstd,
    }
}

fn segment(number: u32, chunks: &[(ObjectType, Id, Location)]) -> Source {
    let mut rows: Vec<PackRow> = Vec::new();
    let mut records = Vec::new();
    for (kind, id, at) in chunks {
        let row = rows.iter().position(|r| r.name == at.pack).unwrap_or_else(|| {
            rows.push(PackRow { name: at.pack, frames: crate::pack::MAX_SLOTS, size: 1 << 30 });
            rows.len() - 1
        });
        records.push(Record::new(*kind, *id, row as u32, at));
    }
    Source::Segment(cover(number), Segment::new(&rows, &mut records).unwrap())
}

fn hash(n: u32) -> Id {
    Id(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn write(dir: &Path, sources: &[Source]) -> Run {
    let id = merge(dir, &key(), sources).unwrap();
    Run::open(dir, id, &key()).unwrap()
}

fn find(run: &Run, kind: ObjectType, id: &Id) -> Option<Location> {
    run.find(kind, id, |_| true).unwrap()
}

#[test]
fn every_record_is_found_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let chunk = |n: u32| (ObjectType::Data, hash(n), location(n / 1000, n % 1000));
    let halves: Vec<Vec<_>> =
        [0, 1].map(|odd| (0..20_000).filter(|n| n % 2 == odd).map(chunk).collect()).into();
    let run = write(dir.path(), &[segment(0, &halves[0]), segment(1, &halves[1])]);
    let mut filter = Filter::default();
    run.load_filter(&mut filter, 7).unwrap();
    assert_eq!(run.records(), 20_000);
    assert_eq!(run.covers().unwrap(), [cover(0), cover(1)]);
    for n in 0..20_000 {
        let (kind, id, at) = chunk(n);
        assert!(filter.may_contain(&id));
        assert_eq!(find(&run, kind, &id), Some(at));
        assert_eq!(find(&run, ObjectType::Entries, &id), None);
    }
    let before = run.reads();
    let wrong = (20_000..40_000).filter(|n| {
        assert_eq!(find(&run, ObjectType::Data, &hash(*n)), None);
        filter.may_contain(&hash(*n))
    });
    let wrong = wrong.count();
    assert!(wrong < 400, "{wrong} of 20,000 unknown ids pass the filter");
    let reads = run.reads() - before;
    assert!(reads < 22_000, "{reads} pages for 20,000 look-ups");
}

#[test]
fn ids_that_are_no_hashes_are_found_too() {
    let dir = tempfile::tempdir().unwrap();
    let id = |n: u32| {
        let mut id = [0xab; 32];
        id[20..24].copy_from_slice(&n.to_be_bytes());
        Id(id)
    };
    let chunks: Vec<_> = (0..10_000).map(|n| (ObjectType::Data, id(2 * n), location(0, n))).collect();
    let run = write(dir.path(), &[segment(0, &chunks)]);
    for (kind, id, at) in &chunks {
        assert_eq!(find(&run, *kind, id), Some(*at));
    }
    for n in 0..10_001 {
        assert_eq!(find(&run, ObjectType::Data, &id(2 * n + 1)), None);
    }
    let per_find = run.reads() / 20_001;
    assert!(per_find < 10, "{per_find} pages per look-up");
}

#[test]
fn copies_in_other_packs_survive_merging_and_repeats_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let one = |pack| segment(pack, &[(ObjectType::Data, hash(1), location(pack, 7))]);
    let first = write(dir.path(), &[one(0), one(1), one(0)]);
    assert_eq!(first.records(), 2);
    let run = write(dir.path(), &[Source::Run(Arc::new(first)), one(2), one(1)]);
    assert_eq!(run.records(), 3);
    assert_eq!(run.covers().unwrap(), [cover(0), cover(1), cover(2)]);
    for wanted in 0..3 {
        let found = run.find(ObjectType::Data, &hash(1), |at| at.pack == pack(wanted)).unwrap();
        assert_eq!(found, Some(location(wanted, 7)));
    }
    assert_eq!(run.find(ObjectType::Data, &hash(1), |_| false).unwrap(), None);
}

#[test]
fn a_run_is_bound_to_key_name_and_length() {
    let dir = tempfile::tempdir().unwrap();
    let id =
        merge(dir.path(), &key(), &[segment(0, &[(ObjectType::Data, hash(1), location(0, 0))])]).unwrap();
    let other = PageKey::new(&MasterKey::from_bytes([4; 32]), &[1; 16]);
    assert!(matches!(Run::open(dir.path(), id, &other), Err(Bad::Damaged)));
    std::fs::copy(path(dir.path(), &id), path(dir.path(), &[9; 16])).unwrap();
    assert!(matches!(Run::open(dir.path(), [9; 16], &key()), Err(Bad::Damaged)));
    let file = std::fs::OpenOptions::new().write(true).open(path(dir.path(), &id)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    assert!(matches!(Run::open(dir.path(), id, &key()), Err(Bad::Damaged)));
    file.set_len(10).unwrap();
    assert!(matches!(Run::open(dir.path(), id, &key()), Err(Bad::Damaged)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any way of cutting chunks into segments, merged in two steps, answers as a map does; and with any one byte of
    /// the file changed it answers as the map does or reports damage.
    #[test]
    fn answers_as_a_map_and_damage_only_takes_away(
        chunks in prop::collection::btree_map((0u32..3000, 0usize..4), 0u32..6, 1..1500),
        spread: bool,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let id = |n: u32| if spread { hash(n) } else { Id([(n / 1000) as u8; 32].map(|b| b ^ (n % 251) as u8)) };
        let chunks: BTreeMap<_, _> = chunks.iter()
            .map(|((n, kind), pack)| ((id(*n), ObjectType::ALL[*kind]), location(*pack, n % 1000))).collect();
        let mut parts = vec![Vec::new(); 6];
        for (i, ((id, kind), at)) in chunks.iter().enumerate() {
            parts[i * i % 6].push((*kind, *id, *at));
        }
        let mut sources: Vec<_> = (0..).zip(&parts).map(|(n, part)| segment(n, part)).collect();
        let rest = sources.split_off(3);
        let first = write(dir.path(), &sources);
        let run = write(dir.path(), &[vec![Source::Run(Arc::new(first))], rest].into_iter().flatten().collect::<Vec<_>>());
        let mut filter = Filter::default();
        run.load_filter(&mut filter, 7).unwrap();
        for ((id, kind), at) in &chunks {
            prop_assert!(filter.may_contain(id));
            prop_assert_eq!(find(&run, *kind, id), Some(*at));
        }
        for n in 3000..3100 {
            prop_assert_eq!(find(&run, ObjectType::Data, &hash(n)), None);
        }
        let bytes = std::fs::read(run.path()).unwrap();
        for (at, change) in flips {
            let mut bytes = bytes.clone();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            std::fs::write(run.path(), &bytes).unwrap();
            let name = run.path().file_stem().unwrap().to_str().unwrap();
            let name: [u8; 16] = hex::decode(name).unwrap().try_into().unwrap();
            let Ok(run) = Run::open(dir.path(), name, &key()) else { continue };
            let mut filter = Filter::default();
            let _ = run.load_filter(&mut filter, 7);
            for ((id, kind), at) in &chunks {
                prop_assert!(filter.may_contain(id));
                match run.find(*kind, id, |_| true) {
                    Ok(found) => prop_assert_eq!(found, Some(*at)),
                    Err(bad) => prop_assert!(matches!(bad, Bad::Damaged)),
                }
            }
        }
    }
}
