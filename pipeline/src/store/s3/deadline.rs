//! When a request has taken too long.
//!
//! The SDK's own timeouts and stalled stream protection are off: they know nothing of the upload rate a user has set.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::store::{StoreError, StoreErrorKind};

/// For the TCP and TLS handshakes.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// For a request with nothing to transfer; assembling a large object is the slowest.
const BASE: Duration = Duration::from_secs(30);

/// A transfer that is slower than this on average is given up and tried again, in bytes per second.
const SLOWEST: u64 = 64 << 10;

/// A transfer in which nothing moves for this long is dead. What an upload has handed over may still be in the
/// kernel's buffers (up to 4 MiB, a minute at the slowest rate), and then the store may need a while to answer.
const STALLED: Duration = Duration::from_secs(90);

/// What a transfer says about itself while it runs.
#[derive(Debug)]
pub(super) struct Activity {
    started: Instant,
    /// Milliseconds from the start to the last bytes.
    last: AtomicU64,
    /// Nanoseconds spent waiting for the rate limit; they do not count.
    paused: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { started: Instant::now(), last: AtomicU64::new(0), paused: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Bytes have moved.
    pub(super) fn moved(&self) {
        self.last.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The rate limit lets nothing through for `time`.
    pub(super) fn paused(&self, time: Duration) {
        self.paused.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.moved();
    }

    /// Time spent waiting for the rate limit so far.
    pub(super) fn pauses(&self) -> Duration {
        Duration::from_nanos(self.paused.load(Relaxed))
    }

    /// When to give up on a transfer of `bytes`, as known now, and why.
    fn deadline(&self, bytes: u64) -> (Instant, &'static str) {
        let whole = self.started + BASE + Duration::from_secs(bytes / SLOWEST) + self.pauses();
        let stalled = self.started + Duration::from_millis(self.last.load(Relaxed)) + STALLED;
        if whole <= stalled { (whole, "took too long") } else { (stalled, "stalled") }
    }
}

/// Runs a request that transfers `bytes`, and gives it up with [`StoreErrorKind::Transient`] when it is too slow.
pub(super) async fn within<T>(
    operation: &'static str,
    key: &str,
    bytes: u64,
    activity: &Activity,
    request: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let mut request = std::pin::pin!(request);
    loop {
        let (deadline, why) = activity.deadline(bytes);
        tokio::select! {
            done = &mut request => return done,
            () = sleep_until(deadline) => {
                if activity.deadline(bytes).0 <= Instant::now() {
                    let what = format!("request {why}: no end after {:.0?}", activity.started.elapsed());
                    return Err(StoreError::new(StoreErrorKind::Transient, operation, key, what));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_grow_with_size_and_pauses() {
        let a = Activity::default();
        assert_eq!(a.deadline(0), (a.started + BASE, "took too long"));
        assert_eq!(a.deadline(64 << 20), (a.started + STALLED, "stalled"));
        a.last.store(1_000_000, Relaxed);
        assert_eq!(a.deadline(64 << 20), (a.started + BASE + Duration::from_secs(1024), "took too long"));
        a.paused.store(7_000_000_000, Relaxed);
        assert_eq!(a.deadline(0), (a.started + BASE + Duration::from_secs(7), "took too long"));
    }

    #[tokio::test]
    async fn a_request_that_ends_is_left_alone() {
        let a = Activity::default();
        assert_eq!(within("t", "k", 0, &a, async { Ok(1) }).await.unwrap(), 1);
    }
}
