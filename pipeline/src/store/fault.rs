//! Makes chosen calls of a store fail. For tests.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::record::Operation;
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError, StoreErrorKind};

/// What happens to a call that a [`Fault`] catches.
#[derive(Debug, Clone)]
pub enum Effect {
    /// It fails and has done nothing.
    Fail(StoreErrorKind),
    /// It is carried out, and then fails: the answer was lost.
    FailAfter(StoreErrorKind),
    /// It is carried out after this time.
    Delay(Duration),
    /// Bytes that are read come with one bit flipped, in their middle.
    Flip,
}

/// Which calls to catch, and how often.
#[derive(Debug, Clone)]
pub struct Fault {
    operation: Operation,
    prefix: String,
    skip: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    /// Catches every call of `operation`.
    pub fn new(operation: Operation, effect: Effect) -> Self {
        Self { operation, prefix: String::new(), skip: 0, times: u64::MAX, effect }
    }

    /// Only calls whose key (listings: prefix) starts with `prefix`.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Lets the first `calls` pass.
    #[must_use]
    pub fn skip(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Catches no more than `calls`.
    #[must_use]
    pub fn times(mut self, calls: u64) -> Self {
        self.times = calls;
        self
    }
}

/// Applies faults to the calls to `inner`; of several that fit, the first one added.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    faults: Mutex<Vec<Fault>>,
}

impl Faulty {
    /// Wraps `inner`, without faults yet.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, faults: Mutex::default() }
    }

    /// Adds a fault, for calls from now on.
    pub fn add(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn caught(&self, operation: Operation, key: &str) -> Option<Effect> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |f: &&mut Fault| f.operation == operation && f.times > 0 && key.starts_with(&f.prefix);
        for fault in faults.iter_mut().filter(fits) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else {
                fault.times -= 1;
                return Some(fault.effect.clone());
            }
        }
        None
    }

    async fn run<T>(
        &self,
        operation: Operation,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
        flip: impl FnOnce(T) -> T + Send,
    ) -> Result<T, StoreError> {
        let error = |kind, what| Err(StoreError::new(kind, operation.name(), key, what));
        match self.caught(operation, key) {
            None => call.await,
            Some(Effect::Fail(kind)) => error(kind, "injected fault"),
            Some(Effect::FailAfter(kind)) => {
                call.await?;
                error(kind, "injected fault after success")
            }
            Some(Effect::Delay(time)) => {
                tokio::time::sleep(time).await;
                call.await
            }
            Some(Effect::Flip) => call.await.map(flip),
        }
    }
}

fn same<T>(value: T) -> T {
    value
}

fn flipped(bytes: Bytes) -> Bytes {
    let mut bytes = Vec::from(bytes);
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a method added later must not slip past")]
impl Store for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        self.run(Operation::Create, key, self.inner.create(key, body), same).await
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.run(Operation::Read, key, self.inner.read(key, range), flipped).await
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.run(Operation::ReadAll, key, self.inner.read_all(key, limit), flipped).await
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        self.run(Operation::Stat, key, self.inner.stat(key), same).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        self.run(Operation::List, prefix, self.inner.list(prefix, after), same).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.run(Operation::Delete, key, self.inner.delete(key), same).await
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        self.run(Operation::BeginUpload, key, self.inner.begin_upload(key), same).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        let call = self.inner.upload_part(key, upload, number, offset, body);
        self.run(Operation::UploadPart, key, call, same).await
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        self.run(Operation::FinishUpload, key, self.inner.finish_upload(key, upload, parts), same).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        self.run(Operation::AbortUpload, key, self.inner.abort_upload(key, upload), same).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        self.run(Operation::OpenUploads, prefix, self.inner.open_uploads(prefix), same).await
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.run(Operation::Now, "", self.inner.now(), same).await
    }
}
