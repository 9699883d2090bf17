//! Keeps uploads below a rate that can be changed at any time, and counts what moves.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::limits;
use crate::progress::{Counter, Progress};
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError};

/// Objects up to this many bytes go at once, and those behind them wait for it. They are few, and a checkpoint that
/// queues behind packs is late, so that more is sent again after a crash.
const AT_ONCE: u64 = 64 << 10;

/// Limits what `inner` uploads and counts [`Counter::Uploaded`] and [`Counter::Fetched`].
#[derive(Debug)]
pub struct Rate {
    inner: Arc<dyn Store>,
    upload: limits::Rate,
    progress: Arc<Progress>,
}

impl Rate {
    /// Wraps `inner`. All that shares `upload` is one limit.
    pub fn new(inner: Arc<dyn Store>, upload: limits::Rate, progress: Arc<Progress>) -> Self {
        Self { inner, upload, progress }
    }

    fn fetched(&self, bytes: Bytes) -> Bytes {
        self.progress.add(Counter::Fetched, bytes.len() as u64);
        bytes
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a method added later must not slip past")]
impl Store for Rate {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        let bytes = body.len();
        if bytes <= AT_ONCE {
            self.upload.charge(bytes);
            self.inner.create(key, body).await?;
        } else {
            self.inner.create(key, body.paced(self.upload.clone())).await?;
        }
        self.progress.add(Counter::Uploaded, bytes);
        Ok(())
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.read(key, range).await.map(|b| self.fetched(b))
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.inner.read_all(key, limit).await.map(|b| self.fetched(b))
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
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        let part =
            self.inner.upload_part(key, upload, number, offset, body.paced(self.upload.clone())).await?;
        self.progress.add(Counter::Uploaded, part.size);
        Ok(part)
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        self.inner.finish_upload(key, upload, parts).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        self.inner.abort_upload(key, upload).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.inner.open_uploads(prefix).await
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.inner.now().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn small_objects_go_at_once_and_are_paid_for() {
        let dir = tempfile::tempdir().unwrap();
        let inner: Arc<dyn Store> =
            Arc::new(crate::store::local::LocalStore::new(dir.path().join("repo")).unwrap());
        let store = Arc::new(Rate::new(inner, limits::Rate::new(100 << 10), Arc::default()));
        let large = |key: &'static str| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.create(key, vec![0; 100 << 10].into()).await })
        };
        let start = Instant::now();
        let before = large("index/large");
        tokio::time::sleep(Duration::from_millis(50)).await;
        store.create("index/small", vec![0; 50 << 10].into()).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
        before.await.unwrap().unwrap();
        large("index/next").await.unwrap().unwrap();
        // 250 KiB at 100 KiB/s, of which the last piece is not waited for.
        assert!(start.elapsed() > Duration::from_millis(2200), "{:?}", start.elapsed());
    }
}
