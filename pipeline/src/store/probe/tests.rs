use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::store::fault::{Effect, Fault, Faulty};
use crate::store::local::LocalStore;
use crate::store::record::Operation;
use crate::store::{Listing, ObjectInfo, OpenUpload, Part};

fn bed() -> (tempfile::TempDir, Faulty) {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(Arc::new(LocalStore::new(dir.path()).unwrap()));
    (dir, store)
}

#[tokio::test]
async fn a_directory_can_do_everything_and_is_clean_afterwards() {
    let (_dir, store) = bed();
    let found = probe(&store).await.unwrap();
    for (name, finding) in found.findings() {
        assert!(finding.works, "{name}: {}", finding.reason);
    }
    assert!(found.create_if_absent() && found.usable());
    assert!(store.list("", None).await.unwrap().objects.is_empty());
}

#[tokio::test]
async fn without_the_right_to_delete() {
    let (_dir, store) = bed();
    store.add(Fault::new(Operation::Delete, Effect::Fail(Kind::Denied)));
    let found = probe(&store).await.unwrap();
    assert!(found.create_if_absent() && found.usable() && !found.delete.works);
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_not_judged() {
    let (_dir, store) = bed();
    store.add(Fault::new(Operation::FinishUpload, Effect::Fail(Kind::Transient)));
    assert_eq!(probe(&store).await.unwrap_err().kind, Kind::Transient);
    assert!(store.list("", None).await.unwrap().objects.is_empty(), "cleaned up all the same");
}

#[tokio::test]
async fn features_that_are_missing_are_named() {
    let (_dir, store) = bed();
    store.add(Fault::new(Operation::BeginUpload, Effect::Fail(Kind::Unsupported)));
    store.add(Fault::new(Operation::Read, Effect::Flip));
    let found = probe(&store).await.unwrap();
    assert!(found.conditional_create.works);
    assert!(!found.conditional_finish.works && !found.multipart.works && !found.ranged_reads.works);
    assert!(!found.create_if_absent() && !found.usable());
}

/// How a server may treat the condition.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// Takes the header and ignores it.
    Ignores,
    /// Answers that the key exists, and replaces the object all the same.
    RefusesAndReplaces,
    /// Looks first and writes then, so that several can win.
    Races,
}

#[derive(Debug)]
struct Careless {
    inner: LocalStore,
    manner: Manner,
}

impl Careless {
    /// What happens to the object that is there; true when the caller shall hear that it exists.
    async fn existing(&self, key: &str) -> Result<bool, StoreError> {
        let exists = self.inner.stat(key).await.is_ok();
        if self.manner == Manner::Races {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if exists {
                return Ok(true);
            }
        }
        self.inner.delete(key).await?;
        Ok(exists && self.manner != Manner::Ignores)
    }
}

fn exists(key: &str) -> StoreError {
    StoreError::new(Kind::AlreadyExists, "t", key, "")
}

#[async_trait]
impl Store for Careless {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        let refuse = self.existing(key).await?;
        if self.manner == Manner::Races && refuse {
            return Err(exists(key));
        }
        while let Err(e) = self.inner.create(key, body.clone()).await {
            assert_eq!(e.kind, Kind::AlreadyExists);
            self.inner.delete(key).await?;
        }
        if refuse { Err(exists(key)) } else { Ok(()) }
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.read(key, range).await
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.inner.read_all(key, limit).await
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        self.inner.begin_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        id: &str,
        number: u32,
        at: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        self.inner.upload_part(key, id, number, at, body).await
    }

    async fn finish_upload(&self, key: &str, id: &str, parts: &[Part]) -> Result<(), StoreError> {
        let refuse = self.existing(key).await?;
        if self.manner == Manner::Races && refuse {
            return Err(exists(key));
        }
        self.inner.finish_upload(key, id, parts).await?;
        if refuse { Err(exists(key)) } else { Ok(()) }
    }

    async fn abort_upload(&self, key: &str, id: &str) -> Result<(), StoreError> {
        self.inner.abort_upload(key, id).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.inner.open_uploads(prefix).await
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.inner.now().await
    }
}

#[tokio::test]
async fn servers_that_ignore_the_condition_are_found_out() {
    for (manner, what) in [
        (Manner::Ignores, "condition is ignored"),
        (Manner::RefusesAndReplaces, "refused but replaced"),
        (Manner::Races, "creations at the same time succeeded"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = Careless { inner: LocalStore::new(dir.path()).unwrap(), manner };
        let found = probe(&store).await.unwrap();
        assert!(!found.create_if_absent() && found.usable(), "{manner:?}: {found:?}");
        let races = manner == Manner::Races;
        for finding in [&found.conditional_create, &found.conditional_finish] {
            assert_eq!(finding.works, races, "{manner:?}: {finding:?}");
            assert_eq!(finding.reason.contains(what), !races, "{manner:?}: {finding:?}");
        }
        assert!(!found.one_winner.works, "{manner:?}: {found:?}");
        assert!(store.list("", None).await.unwrap().objects.is_empty());
    }
}
