//! Several processes on one cache and one store, killed at any time.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::bed::{chunk, master, session_id};
use crate::store::local::LocalStore;

const DIRECTORY: &str = "TRADEWIND_TEST_INDEX_DIRECTORY";
const SESSION: &str = "TRADEWIND_TEST_INDEX_SESSION";

async fn open(dir: &Path, session: u64) -> (Index, SyncReport) {
    let store = Arc::new(LocalStore::new(dir.join("store")).unwrap());
    let config = IndexConfig { cache_dir: Some(dir.join("cache")), ..IndexConfig::default() };
    Index::open(store, &master(), 0, &[1; 16], Some(session_id(session)), &[], config).await.unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Not a test by itself: what a child process does until it is killed.
#[test]
fn child() {
    let (Ok(dir), Ok(session)) = (std::env::var(DIRECTORY), std::env::var(SESSION)) else { return };
    let session: u64 = session.parse().unwrap();
    block_on(async {
        let (index, report) = open(Path::new(&dir), session).await;
        assert!(report.damaged.is_empty() && report.cache_unused.is_none(), "{report:?}");
        for pack in session * 1_000_000.. {
            let chunks: Vec<_> = (0..300).map(|n| chunk(pack, pack * 1000 + n)).collect();
            index.finished(chunks[0].2.pack, 1 << 30, chunks);
            index.flush().await.unwrap();
        }
    });
}

fn spawn(dir: &Path, session: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "index::tests::processes::child", "--nocapture"])
        .env(DIRECTORY, dir)
        .env(SESSION, session.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_processes_leave_a_cache_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = 0;
    for round in 0..12 {
        let mut children: Vec<Child> = (0..2)
            .map(|_| {
                session += 1;
                spawn(dir.path(), session)
            })
            .collect();
        for child in &mut children {
            std::thread::sleep(Duration::from_millis(40 + round * 37 % 200));
            assert!(child.try_wait().unwrap().is_none(), "a process gave up by itself");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let (index, report) = block_on(open(dir.path(), 1000));
    assert!(report.damaged.is_empty() && report.missing.is_empty() && report.segments > 12, "{report:?}");
    let store = LocalStore::new(dir.path().join("store")).unwrap();
    let mut segments = 0;
    let mut after = None;
    loop {
        let page = block_on(store.list("index/", after.as_deref())).unwrap();
        for object in &page.objects {
            let name = SegmentName::from_key(&object.key).unwrap();
            let stored = block_on(store.read_all(&object.key, segment::MAX_STORED)).unwrap();
            let segment = Segment::open(&master(), &name, &stored).unwrap();
            let packs: Vec<_> = segment.packs().collect();
            for record in segment.records() {
                let found = index.find(record.kind, &record.id);
                assert_eq!(found, Some(record.location(packs[record.pack as usize].name)));
            }
            segments += 1;
        }
        after = page.objects.last().filter(|_| page.more).map(|o| o.key.clone());
        if after.is_none() {
            break;
        }
    }
    assert_eq!((segments, index.cache_stats().damaged_runs), (report.segments, 0));
    // Whatever was left behind is gone.
    let files = std::fs::read_dir(dir.path().join("cache").join("01".repeat(16)).join("index")).unwrap();
    assert_eq!(files.count(), index.cache_stats().runs + 2);
}

#[test]
fn several_indexes_in_one_process_share_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for session in 1..=4 {
            let dir = dir.path();
            scope.spawn(move || {
                block_on(async {
                    let (index, _) = open(dir, session).await;
                    for pack in session * 1000..session * 1000 + 15 {
                        let chunks: Vec<_> = (0..100).map(|n| chunk(pack, pack * 1000 + n)).collect();
                        index.finished(chunks[0].2.pack, 1 << 30, chunks);
                        index.flush().await.unwrap();
                        for earlier in session * 1000..=pack {
                            let (kind, id, at) = chunk(earlier, earlier * 1000 + 99);
                            assert_eq!(index.find(kind, &id), Some(at));
                        }
                    }
                    assert_eq!(index.cache_stats().damaged_runs, 0);
                });
            });
        }
    });
    let (index, report) = block_on(open(dir.path(), 100));
    assert_eq!((report.segments, report.fetched), (60, 0));
    // A segment that one index fetched just before its writer added it is there twice, until runs are merged.
    assert!(index.cache_stats().records >= 6000);
    for pack in (1..=4).flat_map(|session| session * 1000..session * 1000 + 15) {
        for (kind, id, at) in (0..100).map(|n| chunk(pack, pack * 1000 + n)) {
            assert_eq!(index.find(kind, &id), Some(at));
        }
    }
    assert!(index.cache_stats().runs <= 24);
}
