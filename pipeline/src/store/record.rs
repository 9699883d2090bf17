//! Remembers what was asked of a store. For tests: every call stays in memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError};

/// A method of [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::create`].
    Create,
    /// [`Store::read`].
    Read,
    /// [`Store::read_all`].
    ReadAll,
    /// [`Store::stat`].
    Stat,
    /// [`Store::list`].
    List,
    /// [`Store::delete`].
    Delete,
    /// [`Store::begin_upload`].
    BeginUpload,
    /// [`Store::upload_part`].
    UploadPart,
    /// [`Store::finish_upload`].
    FinishUpload,
    /// [`Store::abort_upload`].
    AbortUpload,
    /// [`Store::open_uploads`].
    OpenUploads,
    /// [`Store::now`].
    Now,
}

impl Operation {
    /// The method's name, as in [`StoreError::operation`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Read => "read",
            Self::ReadAll => "read_all",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Delete => "delete",
            Self::BeginUpload => "begin_upload",
            Self::UploadPart => "upload_part",
            Self::FinishUpload => "finish_upload",
            Self::AbortUpload => "abort_upload",
            Self::OpenUploads => "open_uploads",
            Self::Now => "now",
        }
    }
}

/// One call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub operation: Operation,
    /// Of which key (listings: the prefix; `now`: empty).
    pub key: String,
    /// Bytes sent (also when it failed) or received.
    pub bytes: u64,
    /// Whether it succeeded.
    pub ok: bool,
}

/// Records the calls to `inner`, in the order of their ends.
#[derive(Debug)]
pub struct Recorder {
    inner: Arc<dyn Store>,
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, calls: Mutex::default() }
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.locked().clone()
    }

    /// The calls so far, which are forgotten.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.locked())
    }

    /// How many calls of `operation` there were.
    pub fn count(&self, operation: Operation) -> usize {
        self.locked().iter().filter(|c| c.operation == operation).count()
    }

    /// Bytes that the store acknowledged, by [`Store::create`] and [`Store::upload_part`].
    pub fn uploaded(&self) -> u64 {
        let sent = |c: &&Call| c.ok && matches!(c.operation, Operation::Create | Operation::UploadPart);
        self.locked().iter().filter(sent).map(|c| c.bytes).sum()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call; `sent` is what went out, `received` what came back.
    fn note<T>(
        &self,
        operation: Operation,
        key: &str,
        sent: u64,
        done: Result<T, StoreError>,
        received: impl FnOnce(&T) -> u64,
    ) -> Result<T, StoreError> {
        let bytes = sent + done.as_ref().map_or(0, received);
        self.locked().push(Call { operation, key: key.to_owned(), bytes, ok: done.is_ok() });
        done
    }
}

fn nothing<T>(_: &T) -> u64 {
    0
}

fn length(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a method added later must not slip past")]
impl Store for Recorder {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        let sent = body.len();
        self.note(Operation::Create, key, sent, self.inner.create(key, body).await, nothing)
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.note(Operation::Read, key, 0, self.inner.read(key, range).await, length)
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.note(Operation::ReadAll, key, 0, self.inner.read_all(key, limit).await, length)
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        self.note(Operation::Stat, key, 0, self.inner.stat(key).await, nothing)
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        self.note(Operation::List, prefix, 0, self.inner.list(prefix, after).await, nothing)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.note(Operation::Delete, key, 0, self.inner.delete(key).await, nothing)
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        self.note(Operation::BeginUpload, key, 0, self.inner.begin_upload(key).await, nothing)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        let sent = body.len();
        let done = self.inner.upload_part(key, upload, number, offset, body).await;
        self.note(Operation::UploadPart, key, sent, done, nothing)
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        let done = self.inner.finish_upload(key, upload, parts).await;
        self.note(Operation::FinishUpload, key, 0, done, nothing)
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        self.note(Operation::AbortUpload, key, 0, self.inner.abort_upload(key, upload).await, nothing)
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.note(Operation::OpenUploads, prefix, 0, self.inner.open_uploads(prefix).await, nothing)
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.note(Operation::Now, "", 0, self.inner.now().await, nothing)
    }
}
