//! The directory store on the file systems that every machine has.

use std::fs;
use std::sync::Arc;

use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::store::{Body, Store, StoreErrorKind};

use super::{conforms, kind};

#[tokio::test(flavor = "multi_thread")]
async fn on_disk() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    conforms(&LocalStore::new(dir.path().join("repository")).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    conforms(&LocalStore::new(dir.path()).unwrap()).await;
}

/// Two processes, as far as the store can tell.
#[tokio::test(flavor = "multi_thread")]
async fn two_stores_on_one_directory() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let stores = [(); 2].map(|()| Arc::new(LocalStore::new(dir.path()).unwrap()));
    for round in 0..50u8 {
        // The folder is new each time, so both make it; deleting removes it under the other's feet.
        let key = format!("sessions/{round}/0");
        let tasks = stores.clone().map(|s| {
            let key = key.clone();
            tokio::spawn(async move {
                let made = s.create(&key, vec![round; 10].into()).await;
                let other = format!("{key}-{:p}", Arc::as_ptr(&s));
                s.create(&other, Body::default()).await.unwrap();
                s.delete(&other).await.unwrap();
                made
            })
        });
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(()) => won += 1,
                Err(e) => assert_eq!(e.kind, StoreErrorKind::AlreadyExists, "{e}"),
            }
        }
        assert_eq!(won, 1);
        stores[0].delete(&key).await.unwrap();
    }
    assert_eq!(fs::read_dir(dir.path().join("sessions")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

/// A file system without room: the error says so and nothing half-written stays.
#[tokio::test(flavor = "multi_thread")]
async fn full_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(dir.path())
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("SKIPPED: full_is_told cannot mount a small tmpfs (needs root)");
        return;
    }
    let store = LocalStore::new(dir.path()).unwrap();
    store.create("small", vec![1; 1000].into()).await.unwrap();
    let made = store.create("packs/00/large", vec![1; 4 << 20].into()).await;
    let upload = store.begin_upload("packs/00/parts").await.unwrap();
    let part = store.upload_part("packs/00/parts", &upload, 1, 0, vec![1; 5 << 20].into()).await;
    store.abort_upload("packs/00/parts", &upload).await.unwrap();
    let small = store.create("small-too", vec![1; 1000].into()).await;
    let listed = store.list("", None).await.unwrap().objects.len();
    let left = fs::read_dir(dir.path().join("tmp")).unwrap().count();
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert_eq!((kind(made), kind(part)), (StoreErrorKind::Full, StoreErrorKind::Full));
    small.unwrap();
    assert_eq!((listed, left), (2, 0));
}
