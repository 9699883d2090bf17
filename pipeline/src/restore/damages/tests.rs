use super::*;
use crate::entry::{Content, EntryKind, Time};

fn lost(pack: &str, at: u64) -> Error {
    Error::damaged_at(pack, at, "is missing")
}

fn ranges(damages: &Damages) -> Vec<(String, u64, u64, String)> {
    let text = |d: Damage| (String::from_utf8(d.path).unwrap(), d.offset, d.len, d.why);
    damages.take().into_iter().map(text).collect()
}

fn named(path: &str, links: u32) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        ctime: Time::default(),
        size: 100,
        inode: 7,
        device: 1,
        links,
        flags: 0,
        xattrs: vec![],
        content: Content::Empty,
    }
}

#[test]
fn a_lost_pack_is_one_place_in_whatever_order_its_chunks_come() {
    let damages = Damages::new(true);
    let mut order: Vec<u64> = (0..4096).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    for n in order {
        damages.note(&[], n * 10, 10, lost("packs/a", 64 + n)).unwrap();
    }
    damages.note(&[], 40_960, 10, lost("packs/b", 64)).unwrap();
    damages.note(&[], 40_980, 10, lost("packs/b", 65)).unwrap();
    let why = |pack: &str, at| format!("damaged: packs/{pack} at byte {at}: is missing");
    assert_eq!(
        ranges(&damages),
        [
            (String::new(), 0, 40_960, why("a", 64)),
            (String::new(), 40_960, 10, why("b", 64)),
            (String::new(), 40_980, 10, why("b", 65)),
        ]
    );
}

#[test]
fn merging_gives_memory_back() {
    let damages = Damages::new(true);
    for n in (0..2000).step_by(2).chain((1..2000).step_by(2)) {
        damages.note(b"file", n, 1, lost("packs/a", n)).unwrap();
    }
    assert!(damages.list().bytes < 1000, "{}", damages.list().bytes);
    assert_eq!(ranges(&damages).len(), 1);
}

#[test]
fn too_many_places_are_summarized_by_file_and_then_counted() {
    let damages = Damages::new(true);
    let count = 300_000;
    for n in 0..count {
        damages.note(b"large", n * 20, 10, lost("packs/a", n)).unwrap();
    }
    for n in 0..count {
        damages.note(format!("small-{n:06}").as_bytes(), 0, 10, lost("packs/a", n)).unwrap();
    }
    assert!(damages.list().bytes <= ALL);
    let found = ranges(&damages);
    assert!((5000..30_000).contains(&found.len()), "{}", found.len());
    let large: Vec<_> = found.iter().filter(|f| f.0 == "large").collect();
    let rest = large.last().unwrap();
    assert_eq!(rest.1 + rest.2, count * 20 - 10);
    let listed = large.len() as u64 - 1;
    let counted = format!("{} more places in this range, of {} bytes", count - listed, (count - listed) * 10);
    assert!(rest.3.contains(&counted), "{}", rest.3);
    let small = found.iter().filter(|f| f.0.starts_with("small")).count() as u64;
    assert!(small > 1000, "{small}");
    let last = found.last().unwrap();
    let unnamed = count - small;
    assert_eq!(
        last.3,
        format!("{unnamed} more places, of {} bytes together, are too many to be named", unnamed * 10)
    );
}

#[test]
fn every_name_of_a_damaged_file_is_listed() {
    let damages = Damages::new(true);
    let first = named("a", 3);
    damages.note_file(&first, 0, 10, lost("packs/a", 64)).unwrap();
    damages.note_file(&first, 50, 10, lost("packs/a", 65)).unwrap();
    for name in ["z", "b", "a"] {
        damages.note_link(&named(name, 3));
    }
    damages.note_link(&Entry { inode: 8, ..named("other", 2) });
    let places: Vec<_> = ranges(&damages).into_iter().map(|(path, offset, ..)| (path, offset)).collect();
    let expected = [("a", 0), ("a", 50), ("b", 0), ("b", 50), ("z", 0), ("z", 50)];
    assert_eq!(places, expected.map(|(path, offset)| (path.to_owned(), offset)));
}

#[test]
fn the_first_damage_ends_a_run_that_is_not_to_go_on() {
    let damages = Damages::new(false);
    assert!(damages.note(b"a", 0, 1, lost("packs/a", 64)).is_err());
    assert!(damages.note_file(&named("a", 2), 0, 1, lost("packs/a", 64)).is_err());
    assert!(damages.take().is_empty());
}
