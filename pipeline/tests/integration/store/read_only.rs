//! A location that must not be written to.

use std::path::Path;
use std::sync::Arc;

use tradewind_pipeline::manifest::catalog::{self, Filter};
use tradewind_pipeline::repository::{InitOptions, Repository};
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::store::read_only::ReadOnly;
use tradewind_pipeline::store::record::{Operation, Recorder};
use tradewind_pipeline::store::{Store, StoreErrorKind};
use tradewind_pipeline::{Error, Kind};

use super::kind;
use crate::bed::{Bed, assert_same, engines, noise, secret};

fn files(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in dir.read_dir().unwrap().map(Result::unwrap) {
        match entry.metadata().unwrap() {
            meta if meta.is_dir() => found.extend(files(&entry.path())),
            meta => found.push((entry.path(), meta.len())),
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn a_read_only_location_is_read_and_never_written() {
    let mut bed = Bed::new(engines()[0]);
    let source = bed.path("source");
    std::fs::write(&source, noise(3 << 20, 1)).unwrap();
    bed.backup(&source);
    let before = files(&bed.path("repo"));

    let plain: Arc<dyn Store> = Arc::new(LocalStore::new(bed.path("repo")).unwrap());
    let asked = Arc::new(Recorder::new(Arc::new(ReadOnly::new(plain))));
    let store = Arc::clone(&asked) as Arc<dyn Store>;
    let opened = bed.runtime.block_on(Repository::open(store, &secret())).unwrap();
    bed.repository = Arc::new(opened.0);
    std::fs::write(&source, noise(3 << 20, 2)).unwrap();
    let error = bed.backup_with(&bed.options(&source)).unwrap_err();
    assert_eq!(error.kind(), Kind::Store);
    assert!(error.to_string().contains("read-only"), "{error}");
    assert!(
        matches!(&error, Error::Store(e) if e.kind == StoreErrorKind::Denied && e.operation == "create"),
        "{error:?}"
    );
    let is_write = |operation| {
        use Operation::{AbortUpload, BeginUpload, Create, Delete, FinishUpload, UploadPart};
        matches!(operation, AbortUpload | BeginUpload | Create | Delete | FinishUpload | UploadPart)
    };
    let writes: Vec<_> = asked.take().into_iter().filter(|call| is_write(call.operation)).collect();
    assert!(writes.len() == 1 && !writes[0].ok, "the first refusal ends it: {writes:?}");
    assert_eq!(files(&bed.path("repo")), before);

    let listed = bed.runtime.block_on(catalog::list(&bed.repository, &Filter::default())).unwrap();
    assert_eq!(listed.len(), 1);
    let latest = bed.runtime.block_on(catalog::find(&bed.repository, &Filter::default(), "latest")).unwrap();
    bed.restore(&latest, &bed.path("target"));
    std::fs::write(&source, noise(3 << 20, 1)).unwrap();
    assert_same(&source, &bed.path("target"));
    let writes: Vec<_> = asked.take().into_iter().filter(|call| is_write(call.operation)).collect();
    assert!(writes.is_empty(), "{writes:?}");
}

#[tokio::test]
async fn every_change_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plain: Arc<dyn Store> = Arc::new(LocalStore::new(dir.path()).unwrap());
    plain.create("a", vec![1; 3].into()).await.unwrap();
    let store = ReadOnly::new(Arc::clone(&plain));
    let refusals = [
        kind(store.create("b", vec![1].into()).await),
        kind(store.delete("a").await),
        kind(store.begin_upload("b").await),
        kind(store.upload_part("b", "u", 1, 0, vec![1].into()).await),
        kind(store.finish_upload("b", "u", &[]).await),
        kind(store.abort_upload("b", "u").await),
    ];
    assert_eq!(refusals, [StoreErrorKind::Denied; 6]);
    let error = store.delete("a").await.unwrap_err().to_string();
    let place = dir.path().canonicalize().unwrap();
    assert_eq!(
        error,
        format!(
            "delete {}/a: this location is read-only: nothing is written to it or deleted",
            place.display()
        )
    );
    assert_eq!(store.read_all("a", 3).await.unwrap().len(), 3);
    assert_eq!(store.stat("a").await.unwrap().size, 3);
    assert_eq!(store.list("", None).await.unwrap().objects.len(), 1);
    let store: Arc<dyn Store> = Arc::new(store);
    assert!(Repository::init(store, &secret(), InitOptions::default()).await.is_err());
    assert_eq!(plain.list("", None).await.unwrap().objects.len(), 1);
}
