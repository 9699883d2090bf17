#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod bed;
mod model;
mod processes;

use std::collections::BTreeSet;

use super::*;
use crate::store::Store;
use bed::*;

#[test]
fn claims_places_and_finishes() {
    let bed = Bed::new();
    let (index, report) = bed.open(1);
    assert_eq!((report.segments, report.damaged.len()), (0, 0));
    let (kind, id, at) = chunk(1, 7);
    assert_eq!(index.find(kind, &id), None);
    assert_eq!(index.claim(kind, &id), Claim::New);
    assert_eq!(index.claim(kind, &id), Claim::Known(None));
    assert_eq!(index.claim(ObjectType::Entries, &id), Claim::New, "a page is another object than a chunk");
    assert_eq!(index.find(kind, &id), None);
    index.place(kind, &id, at);
    assert_eq!(index.claim(kind, &id), Claim::Known(Some(at)));
    assert_eq!((index.find(kind, &id), index.pending()), (Some(at), 0));
    index.finished(at.pack, 1 << 20, vec![(kind, id, at)]);
    assert_eq!(index.pending(), 1);
    bed.run(index.flush()).unwrap();
    assert_eq!((index.find(kind, &id), index.pending()), (Some(at), 0));
    assert_eq!(index.cache_stats().records, 1);
    bed.run(index.flush()).unwrap();
    assert_eq!(bed.keys(), ["index/00000000/000000000000000000000001-00000000"]);
}

#[test]
fn one_worker_of_many_gets_the_chunk() {
    let bed = Bed::new();
    let (index, _) = bed.open(1);
    let new: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let new = |n: &u64| {
                        let (kind, id, _) = chunk(1, *n);
                        index.claim(kind, &id) == Claim::New
                    };
                    (0..5000).filter(new).count()
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    assert_eq!(new, 5000);
}

#[test]
fn another_machine_learns_from_the_store() {
    let bed = Bed::new();
    bed.store_chunks(1, 0..100);
    bed.store_chunks(2, 100..200);
    let other = Bed { cache: tempfile::tempdir().unwrap(), ..bed };
    let (index, report) = other.open(3);
    assert_eq!((report.segments, report.fetched), (2, 2));
    for n in 0..200 {
        let (kind, id, at) = chunk(1 + n / 100, n);
        assert_eq!(index.claim(kind, &id), Claim::Known(Some(at)));
    }
    assert_eq!(index.find(ObjectType::Data, &chunk(1, 200).1), None);
    drop(index);
    let (_, report) = other.open(4);
    assert_eq!((report.segments, report.fetched, report.dropped_runs), (2, 0, 0));
}

#[test]
fn numbers_go_on_and_never_clash() {
    let bed = Bed::new();
    let (index, _) = bed.open(1);
    for n in 0..20 {
        let (kind, id, at) = chunk(n, n);
        index.finished(at.pack, 1 << 20, vec![(kind, id, at)]);
    }
    bed.run(async {
        let (a, b, c) = tokio::join!(index.flush(), index.flush(), index.flush());
        a.and(b).and(c).unwrap();
    });
    assert_eq!(index.pending(), 0);
    bed.store_more(&index, 1, 50..60);
    drop(index);
    let (index, _) = bed.open(1);
    bed.store_more(&index, 1, 60..70);
    let numbers: Vec<_> = bed.keys().iter().map(|k| SegmentName::from_key(k).unwrap().number).collect();
    assert_eq!(numbers, [0, 1, 2]);
}

#[test]
fn a_full_segment_is_followed_by_another() {
    let bed = Bed::new();
    let (index, _) = bed.open(1);
    for pack in 0..5 {
        let chunks: Vec<_> = (0..16_000).map(|n| chunk(pack, pack * 16_000 + n)).collect();
        index.finished(chunks[0].2.pack, u64::from(u32::MAX), chunks);
    }
    assert_eq!(index.pending(), 80_000);
    bed.run(index.flush()).unwrap();
    assert_eq!(bed.keys().len(), 2);
    let (kind, id, at) = chunk(4, 4 * 16_000 + 15_999);
    assert_eq!(index.find(kind, &id), Some(at));
}

#[test]
fn a_failed_flush_loses_nothing_and_a_lost_answer_costs_nothing() {
    let bed = Bed::new();
    let (index, _) = bed.open(1);
    let (kind, id, at) = chunk(1, 1);
    index.finished(at.pack, 1 << 20, vec![(kind, id, at)]);
    bed.store.fail_next(Failure::Before);
    bed.run(index.flush()).unwrap_err();
    assert_eq!((index.pending(), index.find(kind, &id)), (1, Some(at)));
    // Stored, but the answer does not arrive: the next try finds its number taken, by the same segment.
    bed.store.fail_next(Failure::After);
    bed.run(index.flush()).unwrap_err();
    bed.run(index.flush()).unwrap();
    assert_eq!((index.pending(), bed.keys().len()), (0, 1));
    // The same when more has been finished since: the number is passed over.
    let (kind, id, at) = chunk(2, 2);
    index.finished(at.pack, 1 << 20, vec![(kind, id, at)]);
    bed.store.fail_next(Failure::After);
    bed.run(index.flush()).unwrap_err();
    let (kind, id, at) = chunk(3, 3);
    index.finished(at.pack, 1 << 20, vec![(kind, id, at)]);
    bed.run(index.flush()).unwrap();
    assert_eq!((index.pending(), bed.keys().len()), (0, 3));
    let (_, report) = bed.open(2);
    assert!(report.missing.is_empty());
}

#[test]
fn the_last_segment_of_a_session_that_committed_is_missed() {
    let mut bed = Bed::new();
    for session in 1..=3 {
        let (index, _) = bed.open(session);
        bed.store_more(&index, session, session * 100..session * 100 + 10);
        let (kind, id, at) = chunk(session, session * 100 + 50);
        index.finished(at.pack, 1 << 20, vec![(kind, id, at)]);
        bed.run(index.finish(false)).unwrap();
    }
    // Nothing new: its segment is empty, and fetched once.
    let (index, _) = bed.open(4);
    bed.run(index.finish(false)).unwrap();
    drop(index);
    assert_eq!(bed.keys().last().unwrap(), "index/00000000/000000000000000000000004-00000000.end");
    bed.decided = (1..=4).map(session_id).collect();
    let (index, report) = bed.open(5);
    assert!(report.endless.is_empty(), "{report:?}");
    drop(index);
    let (_, report) = bed.open(5);
    assert_eq!((report.fetched, report.dropped_runs), (0, 0), "{report:?}");

    bed.store.remove("index/00000000/000000000000000000000002-00000001.end");
    bed.store.remove("index/00000000/000000000000000000000004-00000000.end");
    let (index, report) = bed.open(5);
    assert_eq!(report.endless, [2, 4].map(session_id));
    // Made good, and not missed any more.
    bed.run(index.finish(true)).unwrap();
    drop(index);
    let (_, report) = bed.open(6);
    assert!(report.missing.is_empty() && report.endless.is_empty(), "{report:?}");
    bed.decided.extend([6, 5].map(session_id));
    let (_, report) = bed.open(7);
    assert_eq!(report.endless, [session_id(6)]);
}

#[test]
fn damaged_and_missing_segments_are_values_and_can_be_rebuilt() {
    let bed = Bed::new();
    for session in 1..=3 {
        let (index, _) = bed.open(session);
        for part in 0..3 {
            bed.store_more(&index, session * 10 + part, part * 100..part * 100 + 50);
        }
    }
    let packs: Vec<_> =
        (0..3).flat_map(|part| (1..=3).map(move |s| chunk(s * 10 + part, 0).2.pack)).collect();
    for pack in &packs {
        bed.store.put(&pack.key(), vec![0; 100]);
    }
    let lone = chunk(99, 0).2.pack;
    bed.store.put(&lone.key(), vec![0; 100]);
    let damaged = "index/00000000/000000000000000000000001-00000001";
    let missing = "index/00000000/000000000000000000000002-00000000";
    bed.store.change(damaged, |bytes| bytes[50] ^= 1);
    bed.store.remove(missing);
    let fresh = Bed { cache: tempfile::tempdir().unwrap(), ..bed };
    for bed in [&fresh, &fresh] {
        let (index, report) = bed.open(4);
        assert_eq!(report.damaged.len(), 1);
        assert_eq!(report.damaged[0].0, damaged);
        assert_eq!(report.missing, [missing]);
        let mut uncovered = bed.run(index.uncovered()).unwrap();
        assert_eq!(uncovered.damaged, report.damaged);
        let mut found = BTreeSet::new();
        loop {
            let page = bed.run(uncovered.next()).unwrap();
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        let expected = [chunk(11, 0).2.pack, chunk(20, 0).2.pack, lone];
        assert_eq!(found, expected.into_iter().map(|p| (p, 100)).collect());
    }
    let (index, _) = fresh.open(4);
    for (pack, part) in [(11, 1), (20, 0)] {
        let chunks: Vec<_> = (part * 100..part * 100 + 50).map(|n| chunk(pack, n)).collect();
        index.finished(chunks[0].2.pack, 1 << 20, chunks);
    }
    fresh.run(index.flush()).unwrap();
    let mut uncovered = fresh.run(index.uncovered()).unwrap();
    assert_eq!(fresh.run(uncovered.next()).unwrap(), [(lone, 100)]);
    assert_eq!(fresh.run(uncovered.next()).unwrap(), []);
}

#[test]
fn condemned_packs_are_absent_and_a_copy_elsewhere_counts() {
    let bed = Bed::new();
    bed.store_chunks(1, 0..10);
    let (index, _) = bed.open(2);
    let (kind, id, at) = chunk(1, 5);
    assert!(index.allows(Some(&at)) && index.allows(None));
    index.exclude([at.pack]);
    assert!(!index.allows(Some(&at)) && !index.allows(None));
    assert_eq!(index.find(kind, &id), None);
    assert_eq!(index.claim(kind, &id), Claim::New);
    let (_, _, again) = chunk(2, 5);
    index.place(kind, &id, again);
    index.finished(again.pack, 1 << 20, vec![(kind, id, again)]);
    bed.run(index.flush()).unwrap();
    assert_eq!(index.find(kind, &id), Some(again));
    // Merged into one run, both copies are kept, and the one that counts is found.
    for session in 3..20 {
        bed.store_chunks(session, session * 100..session * 100 + 1);
    }
    let (index, _) = bed.open(30);
    assert!(index.cache_stats().runs < 8);
    for (gone, left) in [(at, again), (again, at)] {
        let (index, _) = bed.open(31);
        index.exclude([gone.pack]);
        assert_eq!(index.find(kind, &id), Some(left));
    }
    drop(index);
}

#[test]
fn segments_that_vanish_take_their_runs_along() {
    let bed = Bed::new();
    for session in 1..=20 {
        bed.store_chunks(session, session * 10..session * 10 + 10);
    }
    bed.store.remove("index/00000000/000000000000000000000003-00000000");
    let (index, report) = bed.open(50);
    assert!(report.dropped_runs > 0 && report.fetched > 0, "{report:?}");
    for session in 1..=20 {
        let (kind, id, at) = chunk(session, session * 10);
        assert_eq!(index.find(kind, &id), (session != 3).then_some(at));
    }
}

#[test]
fn disk_space_is_kept_and_goes_to_the_newest() {
    let mut bed = Bed::new();
    for session in 1..=40 {
        bed.store_chunks(session, session * 1000..session * 1000 + 1000);
    }
    bed.cache = tempfile::tempdir().unwrap();
    bed.config.cache_bytes = 1 << 20;
    let (index, report) = bed.open(50);
    assert!(report.beyond_cache > 10, "{report:?}");
    assert!(bed.cache_size() <= 1 << 20);
    let known = |index: &Index, session: u64| {
        let (kind, id, _) = chunk(session, session * 1000);
        index.find(kind, &id).is_some()
    };
    assert!(known(&index, 40) && !known(&index, 1));
    for pack in 100..140 {
        bed.store_more(&index, pack, pack * 1000..pack * 1000 + 1000);
        assert!(known(&index, pack));
        assert!(bed.cache_size() <= 1 << 20);
    }
    bed.config.cache_bytes = 0;
    let (index, report) = bed.open(51);
    assert_eq!((report.beyond_cache, index.cache_stats().runs), (80, 0));
}

#[test]
fn filters_keep_to_their_budget_and_only_cost_speed() {
    let mut bed = Bed::new();
    for session in 1..=10 {
        bed.store_chunks(session, session * 10_000..session * 10_000 + 4000);
    }
    let mut reads = Vec::new();
    for budget in [0, 9000, 30_000, 1 << 20] {
        bed.config.filter_bytes = budget;
        let (index, _) = bed.open(20);
        for session in 1..=10 {
            let (kind, id, at) = chunk(session, session * 10_000 + 3999);
            assert_eq!(index.find(kind, &id), Some(at));
        }
        let before = index.cache_stats().page_reads;
        for n in 200_000..201_000 {
            assert_eq!(index.find(ObjectType::Data, &chunk(1, n).1), None);
        }
        let stats = index.cache_stats();
        assert!(stats.filter_bytes <= budget);
        reads.push(stats.page_reads - before);
    }
    assert!(reads[0] > reads[1] && reads[1] > reads[2] && reads[2] > reads[3], "{reads:?}");
    assert!(reads[3] < 100, "{reads:?}");
}

#[test]
fn without_a_writable_directory_there_is_a_private_one() {
    let mut bed = Bed::new();
    bed.store_chunks(1, 0..100);
    let file = bed.cache.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (dir, reason) in [(None, false), (Some(file), true)] {
        bed.config.cache_dir = dir;
        let (index, report) = bed.open(2);
        assert_eq!(report.cache_unused.is_some(), reason, "{report:?}");
        let (kind, id, at) = chunk(1, 50);
        assert_eq!(index.find(kind, &id), Some(at));
        for pack in 0..20 {
            bed.store_more(&index, 100 + pack, 1000 + pack..1001 + pack);
        }
        assert_eq!(index.find(kind, &id), Some(at));
        assert_eq!(index.cache_stats().records, 120);
        assert!(index.cache_stats().runs < 9);
        for key in bed.keys().iter().skip(1) {
            bed.store.remove(key);
        }
    }
}

#[test]
fn foreign_chunks_are_found() {
    let bed = Bed::new();
    let store: &dyn Store = bed.store.as_ref();
    assert_eq!(bed.run(foreign::write(store, &master(), 0, 0, 70_000)).unwrap(), 2);
    let (index, report) = bed.open(1);
    assert_eq!((report.fetched, report.damaged.len()), (2, 0));
    for n in (0..70_000).step_by(7) {
        let (kind, id, at) = foreign::chunk(n);
        assert_eq!(index.find(kind, &id), Some(at));
    }
    let (kind, id, _) = foreign::chunk(70_000);
    assert_eq!(index.find(kind, &id), None);
}

#[test]
fn packs_that_are_gone_or_cut_are_absent_whether_a_segment_tells_or_not() {
    let bed = Bed::new();
    let size = 10_000;
    let (index, _) = bed.open(1);
    for pack in 1..=3 {
        let chunks: Vec<_> = (pack * 10..pack * 10 + 5).map(|n| chunk(pack, n)).collect();
        index.finished(chunks[0].2.pack, size, chunks);
    }
    bed.run(index.finish(false)).unwrap();
    let place = |pack: u64| chunk(pack, pack * 10);
    // The first is there, the second cut short, the third gone; of the fourth and the fifth no segment tells.
    for (pack, bytes) in [(1, size), (2, size - 1), (4, size)] {
        bed.store.put(&place(pack).2.pack.key(), vec![0; usize::try_from(bytes).unwrap()]);
    }
    let (index, _) = bed.open(20);
    assert!(index.find(place(3).0, &place(3).1).is_some(), "not looked at yet");
    let check = bed.run(index.check_packs(true)).unwrap();
    assert_eq!((check.lost, check.resized), (vec![place(3).2.pack], vec![place(2).2.pack]));
    for (pack, there) in [(1, true), (2, false), (3, false), (4, true), (5, false)] {
        let (kind, id, at) = place(pack);
        assert_eq!(index.allows(Some(&at)), there, "{pack}");
        assert_eq!(index.find(kind, &id).is_some(), pack == 1, "{pack}");
        assert_eq!(index.claim(kind, &id) == Claim::New, pack != 1, "{pack}");
    }
    assert!(!index.allows(None));
    for (pack, there) in [(1, Some(place(1).2)), (4, Some(place(4).2)), (5, None)] {
        let (kind, id, at) = place(pack);
        assert_eq!(index.still_there(kind, &id, Some(&at)), there, "{pack}");
    }
    assert_eq!(index.missed_pack(), None, "told already");
    // This session's own come later.
    let own = Location { pack: PackName { id: [7; 16], session: session_id(20) }, ..place(1).2 };
    assert!(index.allows(Some(&own)));

    bed.store.put(&place(2).2.pack.key(), vec![0; usize::try_from(size).unwrap()]);
    bed.store.put(&place(3).2.pack.key(), vec![0; usize::try_from(size).unwrap()]);
    for named in [true, false] {
        let (index, _) = bed.open(30);
        assert_eq!(bed.run(index.check_packs(named)).unwrap(), PackCheck::default());
        assert_eq!(index.allows(None), named);
        assert!(index.allows(Some(&place(2).2)) && !index.allows(Some(&place(5).2)));
        // A place that is gone, of a chunk that has another one, is nothing to tell of.
        let (kind, id, at) = place(2);
        assert_eq!(index.still_there(kind, &id, Some(&place(5).2)), Some(at));
        assert_eq!(index.missed_pack(), None);
        assert_eq!(index.still_there(kind, &place(5).1, Some(&place(5).2)), None);
        assert_eq!(index.missed_pack(), Some(place(5).2.pack));
    }
}
