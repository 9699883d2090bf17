//! What a run counts, what it skipped, and whether it should stop.
//!
//! One [`Progress`] is shared by all threads of a run and by whoever watches it. A new figure is one documented
//! variant of [`Counter`], which tests and watchers can read at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// A figure that only grows during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Bytes of the volume that are dealt with: read, skipped as hole, or taken over from the parent.
    Done,
    /// Bytes read from the source.
    Read,
    /// Bytes of holes and zeros that need no storage.
    Holes,
    /// Bytes that the parent snapshot or the repository already had.
    Reused,
    /// Bytes of new chunks, before compression.
    New,
    /// Bytes of new chunks in packs, compressed and sealed.
    Stored,
    /// Bytes the store acknowledged, of every kind of object.
    Uploaded,
    /// Bytes fetched from the store.
    Fetched,
    /// Bytes written to the target.
    Written,
    /// Chunks stored for the first time.
    ChunksNew,
    /// Chunks that were there already.
    ChunksReused,
    /// Packs finished.
    Packs,
    /// Regular files seen.
    Files,
    /// Directories seen.
    Directories,
    /// Everything else in a tree: symlinks, devices, fifos, sockets.
    Others,
    /// Files taken over from the parent without being opened.
    FilesUnchanged,
    /// Mount points and subvolumes below the root of a tree that were not entered.
    Mounts,
    /// Files that were listed and gone before they could be looked at.
    Vanished,
    /// Items skipped; each is also a [`Skipped`].
    Skips,
    /// Items restored without their owner, setuid or setgid bit, or attributes that only root may set, as asked.
    Unprivileged,
    /// Requests that were tried again.
    Retries,
}

/// [`Counter::Retries`] is the last.
const COUNTERS: usize = Counter::Retries as usize + 1;

/// A kind of worker, for finding the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Station {
    /// Reading the source (backup) or writing the target (restore).
    Disk,
    /// Hashing, compressing, sealing, opening.
    Cpu,
    /// The store: uploads or fetches.
    Store,
}

/// An item of a tree that is not in the snapshot, or not fully restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path relative to the root of the tree, raw bytes.
    pub path: Vec<u8>,
    /// Why, without the path.
    pub reason: String,
}

type SkipSink = Box<dyn Fn(&Skipped) + Send + Sync>;
type WarningSink = Box<dyn Fn(&str) + Send + Sync>;

/// Counters, skips, waiting times and the cancel flag of one run.
pub struct Progress {
    started: Instant,
    counters: [AtomicU64; COUNTERS],
    total: AtomicU64,
    waited: [AtomicU64; 3],
    cancelled: AtomicBool,
    skip_sinks: Mutex<Vec<SkipSink>>,
    warning_sinks: Mutex<Vec<WarningSink>>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("done", &self.get(Counter::Done)).finish_non_exhaustive()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            counters: Default::default(),
            total: AtomicU64::new(0),
            waited: Default::default(),
            cancelled: AtomicBool::new(false),
            skip_sinks: Mutex::default(),
            warning_sinks: Mutex::default(),
        }
    }
}

impl Progress {
    /// Adds `n` to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Relaxed);
    }

    /// The counter's present value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    /// Sets the expected final value of [`Counter::Done`], in bytes. 0: unknown.
    pub fn expect_total(&self, bytes: u64) {
        self.total.store(bytes, Relaxed);
    }

    /// The expected final value of [`Counter::Done`] in bytes, if known.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Relaxed)).filter(|t| *t > 0)
    }

    /// Time since the run started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says that somebody stood still for `time` because `station` was not ready.
    pub fn waited_for(&self, station: Station, time: Duration) {
        self.waited[station as usize].fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Nanoseconds that others have waited so far for disk, CPU and store, in the order of [`Station`]. The station
    /// whose figure grows fastest is the bottleneck.
    pub fn waits(&self) -> [u64; 3] {
        [0, 1, 2].map(|i| self.waited[i].load(Relaxed))
    }

    /// Calls `sink` for each item that is skipped from now on.
    pub fn on_skip(&self, sink: impl Fn(&Skipped) + Send + Sync + 'static) {
        if let Ok(mut sinks) = self.skip_sinks.lock() {
            sinks.push(Box::new(sink));
        }
    }

    /// Counts and reports an item that could not be dealt with.
    pub fn skip(&self, path: &[u8], reason: impl Into<String>) {
        self.add(Counter::Skips, 1);
        if let Ok(sinks) = self.skip_sinks.lock() {
            let item = Skipped { path: path.to_vec(), reason: reason.into() };
            sinks.iter().for_each(|sink| sink(&item));
        }
    }

    /// Calls `sink` for each warning of a run that failed; those of others are in its report.
    pub fn on_warning(&self, sink: impl Fn(&str) + Send + Sync + 'static) {
        if let Ok(mut sinks) = self.warning_sinks.lock() {
            sinks.push(Box::new(sink));
        }
    }

    /// Passes a warning on.
    pub fn warn(&self, text: &str) {
        if let Ok(sinks) = self.warning_sinks.lock() {
            sinks.iter().for_each(|sink| sink(text));
        }
    }

    /// Asks the run to stop at the next chunk.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Fails with [`Error::Cancelled`] once somebody has asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}
