//! Each decorator, alone and stacked as in a run: a store like any other.

use std::sync::Arc;
use std::time::Instant;

use tradewind_pipeline::limits;
use tradewind_pipeline::progress::{Counter, Progress};
use tradewind_pipeline::store::Store;
use tradewind_pipeline::store::StoreErrorKind as Kind;
use tradewind_pipeline::store::fault::{Effect, Fault, Faulty};
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::store::rate::Rate;
use tradewind_pipeline::store::record::{Operation, Recorder};
use tradewind_pipeline::store::retry::{Policy, Retry};

use super::conforms;

fn memory() -> (tempfile::TempDir, Arc<dyn Store>) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Arc::new(LocalStore::new(dir.path()).unwrap());
    (dir, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn retrying() {
    let (_dir, store) = memory();
    conforms(&Retry::new(store, Policy::default(), Arc::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limited() {
    let (_dir, store) = memory();
    let progress = Arc::new(Progress::default());
    let rate = limits::Rate::new(64 << 20);
    let store = Rate::new(store, rate.clone(), progress.clone());
    let start = Instant::now();
    conforms(&store).await;
    let sent = progress.get(Counter::Uploaded);
    assert!(sent > 30 << 20, "{sent}");
    // What other creators of a key sent in vain is let through at the same rate, but not counted as stored.
    let least = sent as f64 / f64::from(64 << 20) * 0.9;
    assert!(start.elapsed().as_secs_f64() > least, "{sent} bytes in {:?}", start.elapsed());
    assert!(progress.get(Counter::Fetched) > 20 << 20);
    rate.set(0);
    conforms(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded() {
    let (_dir, store) = memory();
    let store = Recorder::new(store);
    conforms(&store).await;
    assert!(store.count(Operation::Create) > 1050);
    assert!(store.uploaded() > 30 << 20);
    assert!(store.take().iter().any(|c| c.operation == Operation::UploadPart && c.ok && c.bytes == 5 << 20));
    assert!(store.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_without_faults() {
    let (_dir, store) = memory();
    conforms(&Faulty::new(store)).await;
}

/// The whole stack, over a store that fails now and then in every way that may be met in passing.
#[tokio::test(flavor = "multi_thread")]
async fn stacked_over_trouble() {
    let (_dir, store) = memory();
    let faulty = Faulty::new(store);
    let operations = [
        Operation::Create,
        Operation::Read,
        Operation::ReadAll,
        Operation::Stat,
        Operation::List,
        Operation::Delete,
        Operation::BeginUpload,
        Operation::UploadPart,
        Operation::FinishUpload,
        Operation::AbortUpload,
        Operation::Now,
    ];
    for operation in operations {
        for (skip, effect) in [(1, Effect::Fail(Kind::Transient)), (3, Effect::Fail(Kind::Checksum))] {
            faulty.add(Fault::new(operation, effect).skip(skip).times(5));
        }
    }
    // Lost answers, where the difference can be told.
    for operation in [Operation::UploadPart, Operation::Read, Operation::List, Operation::Delete] {
        faulty.add(Fault::new(operation, Effect::FailAfter(Kind::Transient)).skip(2).times(3));
    }
    faulty.add(
        Fault::new(Operation::Create, Effect::FailAfter(Kind::Transient))
            .prefix("conformance/")
            .skip(60)
            .times(9),
    );
    let progress = Arc::new(Progress::default());
    let recorder = Arc::new(Recorder::new(Arc::new(faulty)));
    let rate = Rate::new(recorder, limits::Rate::unlimited(), progress.clone());
    let policy = Policy { shortest: std::time::Duration::from_millis(1), ..Policy::default() };
    conforms(&Retry::new(Arc::new(rate), policy, progress.clone())).await;
    let retries = progress.get(Counter::Retries);
    assert!(retries >= 100, "{retries}");
}
