//! A store that may be read and nothing else.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError, StoreErrorKind};

/// Passes reads on to `inner` and refuses everything that would change it, with [`StoreErrorKind::Denied`].
#[derive(Debug)]
pub struct ReadOnly {
    inner: Arc<dyn Store>,
}

impl ReadOnly {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner }
    }

    fn refuse<T>(&self, operation: &'static str, key: &str) -> Result<T, StoreError> {
        let what = "this location is read-only: nothing is written to it or deleted";
        let key = format!("{}/{key}", self.inner.location());
        Err(StoreError::new(StoreErrorKind::Denied, operation, &key, what))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a method added later must not slip past")]
impl Store for ReadOnly {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, _body: Body) -> Result<(), StoreError> {
        self.refuse("create", key)
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
        self.refuse("delete", key)
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        self.refuse("begin_upload", key)
    }

    async fn upload_part(
        &self,
        key: &str,
        _upload: &str,
        _number: u32,
        _offset: u64,
        _body: Body,
    ) -> Result<Part, StoreError> {
        self.refuse("upload_part", key)
    }

    async fn finish_upload(&self, key: &str, _upload: &str, _parts: &[Part]) -> Result<(), StoreError> {
        self.refuse("finish_upload", key)
    }

    async fn abort_upload(&self, key: &str, _upload: &str) -> Result<(), StoreError> {
        self.refuse("abort_upload", key)
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.inner.open_uploads(prefix).await
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.inner.now().await
    }
}
