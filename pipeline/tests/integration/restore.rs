//! Restores and verifications under limits: how many reads, how much memory, how fast.

mod gauge;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tradewind_pipeline::backup::Source;
use tradewind_pipeline::limits::{Limits, Rate};
use tradewind_pipeline::manifest::VolumeName;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::verify::{self, Mode, VerifyOptions};

use self::gauge::Gauge;
use crate::bed::{Bed, assert_same, engines, noise};

const KIB: usize = 1 << 10;

/// A bed over a store that counts its reads, each of which takes at least `delay`.
fn gauged(delay: Duration) -> (Bed, Arc<Gauge>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::new(dir.path().join("repo")).unwrap());
    let gauge = Arc::new(Gauge::new(store, delay));
    (Bed::over(dir, gauge.clone(), engines()[0]), gauge)
}

#[test]
fn scattered_chunks_are_read_a_few_at_a_time() {
    let (bed, gauge) = gauged(Duration::from_millis(20));
    let (chunk, every, count) = (16 * KIB, 18, 120);
    let (dense, sparse) = (bed.path("dense"), bed.path("sparse"));
    let bytes = noise(chunk * every * count, 1);
    std::fs::write(&dense, &bytes).unwrap();
    // Chunks that lie too far from each other to be read together.
    let scattered: Vec<u8> = bytes.chunks(chunk).step_by(every).flatten().copied().collect();
    std::fs::write(&sparse, scattered).unwrap();
    let mut options = bed.options(&dense);
    options.chunk_size = Some(u32::try_from(chunk).unwrap());
    // One worker, one pack at a time: neighbours in the volume are neighbours in the pack.
    options.limits = Limits { workers: 1, ..Limits::default() };
    bed.backup_with(&options).unwrap();
    options.source = Source::Path(sparse.clone());
    options.volume = Some(VolumeName::new("sparse").unwrap());
    let report = bed.backup_with(&options).unwrap();
    assert_eq!(report.statistics.new, 0);
    gauge.reset();
    let target = bed.path("target");
    bed.restore(&report.manifest.unwrap(), &target);
    assert_same(&sparse, &target);
    assert!(gauge.reads() > count as u64, "{} reads", gauge.reads());
    assert!(gauge.most() <= 64, "{} reads at the same time", gauge.most());
}

#[test]
fn verify_fetches_at_the_rate_it_was_given() {
    let bed = Bed::new(engines()[0]);
    let source = bed.path("source");
    std::fs::write(&source, noise(12 << 20, 1)).unwrap();
    bed.backup(&source);
    let limits = Limits { upload_rate: Rate::new(8 << 20), ..Limits::default() };
    let cache_dir = Some(bed.path("cache"));
    let options = VerifyOptions { mode: Mode::ReadData, expect: vec![], limits, cache_dir };
    let start = Instant::now();
    let progress = Arc::new(Progress::default());
    let report = verify::run(bed.runtime.handle(), &bed.repository, &options, &progress).unwrap();
    assert!(report.damages.is_empty() && report.checked > 12 << 20, "{report:?}");
    // The last read of 4 MiB is not waited for.
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
}
