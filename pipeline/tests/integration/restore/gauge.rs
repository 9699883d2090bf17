//! A store that knows how many reads of packs it served, and how many at the same time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tradewind_pipeline::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

#[derive(Debug)]
pub(super) struct Gauge {
    inner: Arc<dyn Store>,
    /// Least time that a read takes.
    delay: Duration,
    now: AtomicU64,
    most: AtomicU64,
    reads: AtomicU64,
}

impl Gauge {
    pub(super) fn new(inner: Arc<dyn Store>, delay: Duration) -> Self {
        let zero = AtomicU64::default;
        Self { inner, delay, now: zero(), most: zero(), reads: zero() }
    }

    pub(super) fn reset(&self) {
        self.most.store(0, SeqCst);
        self.reads.store(0, SeqCst);
    }

    /// Reads of packs since the last reset.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(SeqCst)
    }

    /// How many there were at the same time, at most.
    pub(super) fn most(&self) -> u64 {
        self.most.load(SeqCst)
    }
}

#[async_trait]
impl Store for Gauge {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, body: Body) -> Result<()> {
        self.inner.create(key, body).await
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if !key.starts_with("packs/") {
            return self.inner.read(key, range).await;
        }
        self.reads.fetch_add(1, SeqCst);
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(self.delay).await;
        let read = self.inner.read(key, range).await;
        self.now.fetch_sub(1, SeqCst);
        read
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes> {
        self.inner.read_all(key, limit).await
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo> {
        self.inner.stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }

    async fn begin_upload(&self, key: &str) -> Result<String> {
        self.inner.begin_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part> {
        self.inner.upload_part(key, upload, number, offset, body).await
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<()> {
        self.inner.finish_upload(key, upload, parts).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.inner.abort_upload(key, upload).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>> {
        self.inner.open_uploads(prefix).await
    }

    async fn now(&self) -> Result<SystemTime> {
        self.inner.now().await
    }
}
