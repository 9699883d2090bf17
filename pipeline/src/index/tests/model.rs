//! Random operations against a map: whatever happens to the cache, the index answers as the map does or misses.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::*;
use super::bed::*;

#[derive(Debug, Clone)]
enum Op {
    /// A worker comes along with chunks.
    Claim(u64, u64),
    /// The open pack is uploaded.
    Finish,
    Flush,
    /// The process ends, perhaps by a kill, and the next session starts.
    Reopen,
    /// Another machine stores chunks.
    Foreign(u64, u64),
    /// A byte of a cache file changes, the index open or not.
    Rot(prop::sample::Index, prop::sample::Index, u8),
    /// A killed process leaves files behind.
    Leftovers,
    /// The list of runs is lost, or is one of an earlier time.
    LoseManifest(bool),
    /// Garbage collection condemns a pack.
    Exclude(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let chunks = (0u64..400, 1u64..60);
    prop_oneof![
        6 => chunks.clone().prop_map(|(a, n)| Op::Claim(a, n)),
        4 => Just(Op::Finish),
        3 => Just(Op::Flush),
        2 => Just(Op::Reopen),
        2 => chunks.prop_map(|(a, n)| Op::Foreign(a, n)),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..).prop_map(|(a, b, c)| Op::Rot(a, b, c)),
        1 => Just(Op::Leftovers),
        1 => any::<bool>().prop_map(Op::LoseManifest),
        1 => any::<prop::sample::Index>().prop_map(Op::Exclude),
    ]
}

/// What is true.
#[derive(Default)]
struct World {
    /// Where each chunk is, as far as the store's segments tell.
    stored: BTreeMap<u64, Vec<Location>>,
    /// Chunks that this session has placed, by number.
    placed: BTreeMap<u64, Location>,
    open: Vec<u64>,
    finished: Vec<u64>,
    excluded: BTreeSet<PackName>,
    pack: u64,
    /// False while this process may have lost something.
    intact: bool,
    /// True when pages of the cache have changed.
    rotten: bool,
}

impl World {
    fn check(&self, n: u64, found: Option<Location>) {
        let usable = |at: &&Location| !self.excluded.contains(&at.pack);
        let stored = self.stored.get(&n).into_iter().flatten();
        let right: Vec<_> = stored.chain(self.placed.get(&n)).filter(usable).collect();
        match found {
            Some(at) => assert!(right.contains(&&at), "chunk {n} invented"),
            None => assert!(right.is_empty() || !self.intact, "chunk {n} missed"),
        }
    }

    fn finish(&mut self, index: &Index) {
        let chunks: Vec<_> = self.open.iter().map(|n| chunk(self.pack, *n)).collect();
        if let Some((.., at)) = chunks.first() {
            index.finished(at.pack, 1 << 30, chunks);
            self.finished.append(&mut self.open);
            self.pack += 1;
        }
    }

    fn reopened(self) -> Self {
        Self {
            stored: self.stored,
            pack: self.pack + 1,
            intact: !self.rotten,
            rotten: self.rotten,
            ..Self::default()
        }
    }

    fn flushed(&mut self) {
        for n in self.finished.drain(..) {
            if let Some(at) = self.placed.get(&n) {
                self.stored.entry(n).or_default().push(*at);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_index_is_a_map_that_may_forget(ops in prop::collection::vec(op(), 1..60)) {
        let bed = Bed::new();
        let elsewhere = Bed { store: Arc::clone(&bed.store), ..Bed::new() };
        let mut session = 1;
        let (mut index, _) = bed.open(session);
        let mut world = World { intact: true, pack: 1000, ..World::default() };
        let mut old_manifest = None;
        let manifest = bed.cache.path().join("01".repeat(16)).join("index/runs.json");
        for op in ops {
            match op {
                Op::Claim(first, count) => for n in first..first + count {
                    let (kind, id, at) = chunk(world.pack, n);
                    match index.claim(kind, &id) {
                        Claim::New => {
                            world.check(n, None);
                            index.place(kind, &id, at);
                            world.placed.insert(n, at);
                            world.open.push(n);
                        }
                        Claim::Known(found) => world.check(n, Some(found.unwrap())),
                    }
                },
                Op::Finish => world.finish(&index),
                Op::Flush => {
                    bed.run(index.flush()).unwrap();
                    world.flushed();
                }
                Op::Reopen => {
                    session += 1;
                    drop(index);
                    let (next, report) = bed.open(session);
                    assert!(report.damaged.is_empty() && report.missing.is_empty());
                    index = next;
                    // What was not flushed is garbage, and a run that rotted has been fetched again, or will be missed.
                    world = world.reopened();
                }
                Op::Foreign(first, count) => {
                    session += 1;
                    let pack = 1_000_000 + session;
                    let (other, _) = elsewhere.open(session);
                    elsewhere.store_more(&other, pack, first..first + count);
                    for n in first..first + count {
                        world.stored.entry(n).or_default().push(chunk(pack, n).2);
                    }
                    // This machine learns of it when it looks.
                    drop(other);
                    bed.run(index.flush()).unwrap();
                    world.flushed();
                    drop(index);
                    session += 1;
                    index = bed.open(session).0;
                    world = world.reopened();
                }
                Op::Rot(file, at, change) => {
                    let files = bed.cache_files();
                    if !files.is_empty() {
                        let file = file.get(&files);
                        let mut bytes = std::fs::read(file).unwrap();
                        let at = at.index(bytes.len());
                        bytes[at] ^= change;
                        // In place: a process that has the run open sees it rot.
                        std::os::unix::fs::FileExt::write_at(
                            &std::fs::OpenOptions::new().write(true).open(file).unwrap(), &bytes, 0).unwrap();
                        (world.intact, world.rotten) = (false, true);
                    }
                }
                Op::Leftovers => {
                    let dir = manifest.parent().unwrap();
                    std::fs::write(dir.join(format!("{}.run", "ab".repeat(16))), [7; 5000]).unwrap();
                    std::fs::write(dir.join(format!("{}.tmp", "cd".repeat(16))), [7; 5000]).unwrap();
                    std::fs::write(dir.join("runs.tmp"), "{").unwrap();
                }
                Op::LoseManifest(old) => {
                    let text = old_manifest.take().filter(|_| old).unwrap_or_else(|| b"not a list".to_vec());
                    old_manifest = std::fs::read(&manifest).ok();
                    std::fs::write(&manifest, text).unwrap();
                    // Runs of this process may go when it adds one; the next process fetches them again.
                    world.intact = false;
                }
                Op::Exclude(which) => {
                    let packs: BTreeSet<_> = world.stored.values().flatten().map(|at| at.pack).collect();
                    if !packs.is_empty() {
                        let packs: Vec<_> = packs.into_iter().collect();
                        let pack = *which.get(&packs);
                        index.exclude([pack]);
                        world.excluded.insert(pack);
                    }
                }
            }
            for n in (0..460).step_by(11) {
                let (kind, id, _) = chunk(0, n);
                let found = index.find(kind, &id);
                world.check(n, found);
            }
        }
        // The next process knows all that was flushed, but for what rots; with a new cache, all.
        drop(index);
        let (index, report) = bed.open(10_000_000);
        assert!(report.damaged.is_empty());
        world = world.reopened();
        (0..460).for_each(|n| world.check(n, index.find(ObjectType::Data, &chunk(0, n).1)));
        drop(index);
        std::fs::remove_dir_all(bed.cache.path().join("01".repeat(16))).unwrap();
        let (index, _) = bed.open(10_000_001);
        world = World { intact: true, ..world.reopened() };
        (0..460).for_each(|n| world.check(n, index.find(ObjectType::Data, &chunk(0, n).1)));
    }
}
