//! Keeps uploads below a rate that can be changed at any time, and counts what moves.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::progress::{Counter, Progress};
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError};

/// Pieces are a tenth of a second's worth: smooth for the network, and a change of the rate is felt at once.
const PIECES_PER_SECOND: u64 = 10;

/// Objects up to this many bytes go at once, and those behind them wait for it. They are few, and a checkpoint that
/// queues behind packs is late, so that more is sent again after a crash.
const AT_ONCE: u64 = 64 << 10;

/// Spreads bytes evenly over time. Shared by everything that goes through one limit.
#[derive(Debug)]
pub struct Pacer {
    /// Bytes per second; 0 is unlimited.
    rate: Arc<AtomicU64>,
    /// When the next piece may go. Each reservation pushes it back, so waiters are served in order.
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    /// A pacer that follows `rate`, in bytes per second; 0 is unlimited.
    pub fn new(rate: Arc<AtomicU64>) -> Self {
        Self { rate, next: Mutex::new(None) }
    }

    /// Reserves room for the first bytes of `want`: how many may go (all of them when there is no limit, otherwise
    /// at most a tenth of a second's worth, at least one unless `want` is 0) and when.
    pub fn reserve(&self, want: u64) -> (u64, Instant) {
        let now = Instant::now();
        let rate = self.rate.load(Relaxed);
        if rate == 0 || want == 0 {
            return (want, now);
        }
        let bytes = want.min((rate / PIECES_PER_SECOND).max(1));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // Time that nobody used is gone: no burst after a pause.
        let start = next.unwrap_or(now).max(now);
        *next = Some(start + takes);
        (bytes, start)
    }

    /// Counts `bytes` that go without waiting: whatever comes next waits for them, too.
    pub fn charge(&self, bytes: u64) {
        let rate = self.rate.load(Relaxed);
        if rate > 0 {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            let now = Instant::now();
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = Some(next.unwrap_or(now).max(now) + takes);
        }
    }

    /// Waits until `bytes` have been let through, piece by piece.
    pub async fn admit(&self, mut bytes: u64) {
        while bytes > 0 {
            let (piece, when) = self.reserve(bytes);
            tokio::time::sleep_until(when).await;
            bytes -= piece;
        }
    }
}

/// Limits what `inner` uploads and counts [`Counter::Uploaded`] and [`Counter::Fetched`].
#[derive(Debug)]
pub struct Rate {
    inner: Arc<dyn Store>,
    pacer: Arc<Pacer>,
    progress: Arc<Progress>,
}

impl Rate {
    /// Wraps `inner`. `upload` is in bytes per second, may change at any time, and 0 is unlimited.
    pub fn new(inner: Arc<dyn Store>, upload: Arc<AtomicU64>, progress: Arc<Progress>) -> Self {
        Self { inner, pacer: Arc::new(Pacer::new(upload)), progress }
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
            self.pacer.charge(bytes);
            self.inner.create(key, body).await?;
        } else {
            self.inner.create(key, body.paced(self.pacer.clone())).await?;
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
            self.inner.upload_part(key, upload, number, offset, body.paced(self.pacer.clone())).await?;
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
    use super::*;

    fn pacer(rate: u64) -> (Arc<AtomicU64>, Arc<Pacer>) {
        let rate = Arc::new(AtomicU64::new(rate));
        (rate.clone(), Arc::new(Pacer::new(rate)))
    }

    #[tokio::test]
    async fn many_at_once_share_the_rate() {
        let (_, pacer) = pacer(1 << 20);
        let start = Instant::now();
        let all: Vec<_> = (0..8)
            .map(|_| {
                let pacer = pacer.clone();
                tokio::spawn(async move { pacer.admit(1 << 17).await })
            })
            .collect();
        for task in all {
            task.await.unwrap();
        }
        let took = start.elapsed().as_secs_f64();
        assert!((0.8..2.0).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn small_objects_go_at_once_and_are_paid_for() {
        let dir = tempfile::tempdir().unwrap();
        let inner: Arc<dyn Store> =
            Arc::new(crate::store::local::LocalStore::new(dir.path().join("repo")).unwrap());
        let (rate, _) = pacer(100 << 10);
        let store = Arc::new(Rate::new(inner, rate, Arc::default()));
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

    #[tokio::test]
    async fn a_change_is_felt_at_once() {
        let (rate, pacer) = pacer(1000);
        let start = Instant::now();
        let task = tokio::spawn(async move { pacer.admit(1 << 30).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        rate.store(0, Relaxed);
        task.await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn no_credit_from_pauses_and_no_rate_too_small() {
        let (_, pacer) = pacer(3);
        for _ in 0..2 {
            let start = Instant::now();
            pacer.admit(3).await;
            assert!((0.6..2.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
}
