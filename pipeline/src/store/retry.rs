//! Tries again what may succeed later, and tells a create that worked from one that lost.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::progress::{Counter, Progress};
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError, StoreErrorKind as Kind};

/// How much of an object is read back at a time when we look whether it is ours, in bytes.
const WINDOW: u64 = 1 << 20;

/// Bodies above this size, in bytes, are not sent again before a look whether the key is taken by now: a server that
/// refuses such a one early cuts the connection, and the refusal is lost in every attempt.
const LARGE: u64 = 128 << 10;

/// How often a waiting request looks whether the run was cancelled.
const GLANCE: Duration = Duration::from_millis(100);

/// How long to go on. Whichever of the two budgets is used up first ends it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Requests in all, the first one included.
    pub attempts: u32,
    /// No new attempt starts later than this after the first one.
    pub elapsed: Duration,
    /// Shortest pause.
    pub shortest: Duration,
    /// Longest pause, unless the store asks for a longer one.
    pub longest: Duration,
}

impl Default for Policy {
    /// Rides out a store that restarts or throttles for some minutes.
    fn default() -> Self {
        Self {
            attempts: 20,
            elapsed: Duration::from_secs(300),
            shortest: Duration::from_millis(100),
            longest: Duration::from_secs(20),
        }
    }
}

/// Retries the requests of `inner`, with pauses that grow and are spread at random.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Store>,
    policy: Policy,
    progress: Arc<Progress>,
    /// True once an answer arrived. Before, an unreachable store is a mistake in its address and fails at once; later
    /// it is an outage to be ridden out.
    reached: AtomicBool,
}

impl Retry {
    /// Wraps `inner`. Counts [`Counter::Retries`]; stops retrying (not the first attempts) when `progress` is cancelled.
    pub fn new(inner: Arc<dyn Store>, policy: Policy, progress: Arc<Progress>) -> Self {
        Self { inner, policy, progress, reached: AtomicBool::new(false) }
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts { retry: self, started: Instant::now(), made: 1, pause: self.policy.shortest }
    }

    async fn run<T, F: Future<Output = Result<T, StoreError>> + Send>(
        &self,
        request: impl Fn() -> F + Send + Sync,
    ) -> Result<T, StoreError> {
        let mut attempts = self.attempts();
        loop {
            match attempts.note(request().await) {
                Err(e) if attempts.another(&e).await => {}
                done => return done,
            }
        }
    }

    /// True when `key` holds exactly these bytes: our own write, of which we did not hear. Two creators of one key
    /// must therefore differ in what they write, or not mind which of them it was.
    async fn is_ours(
        &self,
        key: &str,
        size: u64,
        mut same: impl FnMut(&[u8]) -> bool + Send,
    ) -> Result<bool, StoreError> {
        match self.stat(key).await {
            Ok(found) if found.size == size => {}
            Ok(_) => return Ok(false),
            Err(e) if e.kind == Kind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
        let mut at = 0;
        while at < size {
            let end = size.min(at + WINDOW);
            if !same(&self.read(key, at..end).await?) {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }
}

/// The attempts at one request.
struct Attempts<'a> {
    retry: &'a Retry,
    started: Instant,
    made: u32,
    pause: Duration,
}

impl Attempts<'_> {
    fn note<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if !matches!(&done, Err(e) if e.kind == Kind::Unreachable) {
            self.retry.reached.store(true, Relaxed);
        }
        done
    }

    /// Waits and returns true when the request shall be made again after `error`.
    async fn another(&mut self, error: &StoreError) -> bool {
        let Retry { policy, progress, reached, .. } = self.retry;
        let may_pass = error.is_transient() || (error.kind == Kind::Unreachable && reached.load(Relaxed));
        if !may_pass || self.made >= policy.attempts || progress.check().is_err() {
            return false;
        }
        // Decorrelated jitter: clients that failed together do not come back together.
        let most = (self.pause * 3).clamp(policy.shortest, policy.longest);
        let spread = (most - policy.shortest).mul_f64(fastrand::f64());
        self.pause = policy.shortest + spread;
        let wait = self.pause.max(error.retry_after.unwrap_or_default());
        if self.started.elapsed() + wait > policy.elapsed {
            return false;
        }
        tracing::debug!(%error, attempt = self.made, ?wait, "trying again");
        let until = Instant::now() + wait;
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(Instant::now() + GLANCE)).await;
            if progress.check().is_err() {
                return false;
            }
        }
        self.made += 1;
        progress.add(Counter::Retries, 1);
        true
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a method added later must not slip past")]
impl Store for Retry {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        let mut attempts = self.attempts();
        let mut unsure = false;
        loop {
            let mut done = attempts.note(self.inner.create(key, body.clone()).await);
            if let Err(e) = &done
                && e.is_transient()
                && body.len() > LARGE
                && self.inner.stat(key).await.is_ok()
            {
                unsure = true;
                done = Err(StoreError::new(Kind::AlreadyExists, "create", &e.key, "the key exists"));
            }
            match done {
                // The key was free when we began: perhaps it is our own write, whose answer was lost.
                Err(e) if e.kind == Kind::AlreadyExists && unsure => {
                    let mut rope = Rope::new(&body);
                    let ours = self.is_ours(key, body.len(), |bytes| rope.continues_with(bytes)).await?;
                    return if ours { Ok(()) } else { Err(e) };
                }
                Err(e) if attempts.another(&e).await => unsure = true,
                done => return done,
            }
        }
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.run(|| self.inner.read(key, range.clone())).await
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.run(|| self.inner.read_all(key, limit)).await
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        self.run(|| self.inner.stat(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        self.run(|| self.inner.list(prefix, after)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.run(|| self.inner.delete(key)).await
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        // A lost answer leaves an upload that nobody knows; buckets expire those by a lifecycle rule.
        self.run(|| self.inner.begin_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        self.run(|| self.inner.upload_part(key, upload, number, offset, body.clone())).await
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        let mut attempts = self.attempts();
        let mut unsure = false;
        loop {
            match attempts.note(self.inner.finish_upload(key, upload, parts).await) {
                // A finished upload is no longer there (some servers: no longer ours to finish): that is what success
                // looks like from behind, too.
                Err(e) if matches!(e.kind, Kind::AlreadyExists | Kind::NotFound | Kind::Denied) && unsure => {
                    let size = parts.iter().map(|p| p.size).sum();
                    let mut sums = PartSums::new(parts);
                    let same = self.is_ours(key, size, |bytes| sums.continues_with(bytes)).await?;
                    return if same { Ok(()) } else { Err(e) };
                }
                Err(e) if attempts.another(&e).await => unsure = true,
                done => return done,
            }
        }
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        self.run(|| self.inner.abort_upload(key, upload)).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        // Once: nothing but tidiness depends on it, and a run must not wait for that.
        self.inner.open_uploads(prefix).await
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.run(|| self.inner.now()).await
    }
}

/// Compares a body with bytes that come in pieces.
struct Rope<'a> {
    slices: &'a [Bytes],
    at: usize,
}

impl<'a> Rope<'a> {
    fn new(body: &'a Body) -> Self {
        Self { slices: body.slices(), at: 0 }
    }

    fn continues_with(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some((first, rest)) = self.slices.split_first() else { return false };
            let here = &first[self.at..];
            let common = here.len().min(bytes.len());
            if here[..common] != bytes[..common] {
                return false;
            }
            bytes = &bytes[common..];
            self.at += common;
            if self.at == first.len() {
                (self.slices, self.at) = (rest, 0);
            }
        }
        true
    }
}

/// Compares bytes that come in pieces with the checksums of the parts they were sent as. Parts without one are not
/// taken for the same: stores that give none answer every request, so nothing about them is left unsure.
struct PartSums<'a> {
    parts: std::slice::Iter<'a, Part>,
    sum: crc_fast::Digest,
    left: u64,
    expected: Option<u64>,
}

impl<'a> PartSums<'a> {
    fn new(parts: &'a [Part]) -> Self {
        let sum = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        Self { parts: parts.iter(), sum, left: 0, expected: None }
    }

    fn continues_with(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.left == 0 {
                let Some(part) = self.parts.next() else { return false };
                (self.left, self.expected) = (part.size, part.crc64);
                self.sum.reset();
                continue;
            }
            let common = usize::try_from(self.left).map_or(bytes.len(), |l| l.min(bytes.len()));
            self.sum.update(&bytes[..common]);
            bytes = &bytes[common..];
            self.left -= common as u64;
            if self.left == 0 && Some(self.sum.finalize()) != self.expected {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
