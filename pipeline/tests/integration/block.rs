//! Block volumes, there and back.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use tradewind_pipeline::manifest::VolumeName;
use tradewind_pipeline::progress::{Counter, Progress};
use tradewind_pipeline::repository::{InitOptions, Parameters};
use tradewind_pipeline::store::Store;
use tradewind_pipeline::store::fault::{Effect, Fault, Faulty};
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::store::record::Operation;
use tradewind_pipeline::{Kind, backup};

use crate::bed::{Bed, assert_same, engines, noise};

#[test]
fn odd_sizes_round_trip() {
    for engine in engines() {
        let bed = Bed::new(engine);
        for size in [0usize, 1, 511, 512, 4095, 4096, 256 << 10, (256 << 10) + 512, (5 << 20) + 512] {
            let source = bed.path(&format!("source-{size}"));
            std::fs::write(&source, noise(size, size as u64)).unwrap();
            let mut options = bed.options(&source);
            options.volume = Some(VolumeName::new(format!("v{size}")).unwrap());
            let report = bed.backup_with(&options).unwrap();
            let manifest = report.manifest.unwrap();
            assert_eq!(manifest.size, size as u64);
            let target = bed.path(&format!("target-{size}"));
            bed.restore(&manifest, &target);
            assert_same(&source, &target);
        }
    }
}

#[test]
fn an_incremental_stores_only_what_changed() {
    for engine in engines() {
        let bed = Bed::new(engine);
        let source = bed.path("source");
        std::fs::write(&source, noise(40 << 20, 1)).unwrap();
        let first = bed.backup(&source);
        assert_eq!(first.statistics.new, 40 << 20);
        let file = File::options().write(true).open(&source).unwrap();
        for (n, at) in [(7u64, 3u64 << 20), (8, 17 << 20), (9, (33 << 20) + 4096)] {
            file.write_all_at(&noise(4096, n), at).unwrap();
        }
        let second = bed.backup(&source);
        assert_eq!(second.parent, Some(first.manifest.as_ref().unwrap().id));
        assert_eq!(second.statistics.new, 3 * (256 << 10));
        let target = bed.path("target");
        bed.restore(&second.manifest.unwrap(), &target);
        assert_same(&source, &target);
        // Nothing changed: nothing is stored, and the root is the same.
        let third = bed.backup(&source);
        assert_eq!((third.statistics.new, third.statistics.stored), (0, 0));
    }
}

#[test]
fn holes_stay_holes_and_are_not_read() {
    for engine in engines() {
        let bed = Bed::new(engine);
        let source = bed.path("source");
        let size = (10u64 << 30) + 512;
        let file = File::create(&source).unwrap();
        file.set_len(size).unwrap();
        let writes = [(0u64, 4096usize), (3 << 30, 3 << 20), ((7 << 30) + 8192, 512), (size - 512, 512)];
        for (n, (at, len)) in writes.into_iter().enumerate() {
            file.write_all_at(&noise(len, n as u64), at).unwrap();
        }
        let report = bed.backup(&source);
        assert!(report.statistics.read < 6 << 20, "read {} bytes", report.statistics.read);
        let target = bed.path("target");
        bed.restore(report.manifest.as_ref().unwrap(), &target);
        let blocks = target.metadata().unwrap().blocks() * 512;
        assert!(blocks < 8 << 20, "{blocks} bytes are allocated");
        let restored = File::open(&target).unwrap();
        assert_eq!(restored.metadata().unwrap().len(), size);
        for (n, (at, len)) in writes.into_iter().enumerate() {
            let mut bytes = vec![0; len];
            restored.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes == noise(len, n as u64), "bytes at {at}");
        }
    }
}

#[test]
fn chunks_that_several_workers_meet_at_once_are_restored_without_an_index() {
    let bed = Bed::new(engines()[0]);
    let source = bed.path("source");
    // Each chunk occurs eight times in a row, so that workers meet while one of them stores it.
    let bytes: Vec<u8> = (0..64).flat_map(|n| noise(256 << 10, n / 8)).collect();
    std::fs::write(&source, bytes).unwrap();
    let report = bed.backup(&source);
    assert_eq!(report.statistics.new, 8 * (256 << 10));
    std::fs::remove_dir_all(bed.path("repo/index")).unwrap();
    std::fs::remove_dir_all(bed.path("cache")).unwrap();
    let target = bed.path("target");
    bed.restore(&report.manifest.unwrap(), &target);
    assert_same(&source, &target);
}

#[test]
fn packs_are_as_large_as_the_repository_says() {
    let dir = tempfile::tempdir().unwrap();
    let packs = dir.path().join("repo/packs");
    let store = Arc::new(LocalStore::new(dir.path().join("repo")).unwrap());
    let parameters = Parameters { pack: 8 << 20, ..Parameters::default() };
    let options = InitOptions { parameters, ..InitOptions::default() };
    let bed = Bed::with(dir, store, engines()[0], options);
    let image = bed.path("image");
    std::fs::write(&image, noise(24 << 20, 3)).unwrap();
    let mut options = bed.options(&image);
    options.limits.workers = 1;
    bed.backup_with(&options).unwrap();
    let mut sizes = Vec::new();
    let mut folders = vec![packs];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { folders.push(entry.path()) } else { sizes.push(meta.len()) }
        }
    }
    sizes.sort_unstable();
    let full = sizes.iter().filter(|size| (8 << 20..9 << 20).contains(*size)).count();
    assert!(full >= 2 && sizes.last().is_some_and(|largest| *largest < 9 << 20), "{sizes:?}");
}

#[test]
fn whoever_cancels_does_not_wait_for_a_slow_store() {
    // Sent whole, and in parts.
    for size in [3 << 20, 40 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let slow = Arc::new(Faulty::new(Arc::new(LocalStore::new(dir.path().join("repo")).unwrap())));
        let bed = Bed::over(dir, Arc::clone(&slow) as Arc<dyn Store>, engines()[0]);
        let source = bed.path("source");
        std::fs::write(&source, noise(size, 1)).unwrap();
        let hours = Effect::Delay(Duration::from_secs(24 * 3600));
        slow.add(Fault::new(Operation::Create, hours.clone()).prefix("packs/"));
        slow.add(Fault::new(Operation::UploadPart, hours));
        let progress = Arc::new(Progress::default());
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while progress.get(Counter::Done) < size as u64 {
                    std::thread::yield_now();
                }
                progress.cancel();
            });
            backup::run(bed.runtime.handle(), &bed.repository, &bed.options(&source), &progress)
        });
        assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
        slow.clear();
        let manifest = bed.backup(&source).manifest.unwrap();
        let target = bed.path("target");
        bed.restore(&manifest, &target);
        assert_same(&source, &target);
    }
}
