//! The local cache: a directory of runs, shared by any number of processes, and worth nothing but time.
//!
//! ```text
//!  <cache>/<repository>/index/lock        held while the directory is changed
//!                             runs.json   which runs count; replaced as a whole
//!                             <id>.run    a run; says itself which segments it covers
//! ```
//! Who changes the directory holds the lock; who reads keeps files open and needs none. A new run has its final name
//! before `runs.json` names it, and an old one is removed after `runs.json` has forgotten it, so a process may be
//! killed anywhere: files that `runs.json` does not name are removed by the next one that has the lock. Nothing is
//! synced: a page that a power cut swallowed does not authenticate.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::filter::{Filter, plan};
use super::page::{Bad, PageKey};
use super::run::Run;
use super::run::merge::{Fault, Source, merge};
use super::segment::{Segment, SegmentName};
use crate::hash::{Id, ObjectType};
use crate::pack::Location;
use crate::seal::MasterKey;

/// Runs of about the same size that are merged into one.
const FAN_OUT: usize = 8;
/// Most runs that are merged at once: 4 MiB of buffers.
const MOST: usize = 64;
/// No merge makes a run of more than this share of the disk space, so that running out of space costs a share only.
const SHARE: u64 = 8;

const MANIFEST: &str = "runs.json";
const LOCK: &str = "lock";

/// What `runs.json` holds.
#[derive(Default, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// Ids of the runs that count, in hexadecimal.
    runs: Vec<String>,
}

/// A directory of runs.
pub(super) struct Dir {
    path: PathBuf,
    /// Removes a private directory when the index is closed.
    private: Option<tempfile::TempDir>,
}

impl Dir {
    /// The shared directory of a repository below `cache`.
    pub(super) fn shared(cache: &Path, repository_id: &[u8; 16]) -> io::Result<Self> {
        let path = cache.join(hex::encode(repository_id)).join("index");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { path, private: None })
    }

    /// A directory of this process alone.
    pub(super) fn private() -> io::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("tradewind-index-").tempdir()?;
        Ok(Self { path: temporary.path().to_owned(), private: Some(temporary) })
    }

    /// Waits at most `wait` for the directory's lock, which lasts as long as the file is open.
    fn lock(&self, wait: Duration) -> io::Result<File> {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(LOCK))?;
        let deadline = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "in use by another process"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A run in use, with as much of its filter as there is memory for.
struct Loaded {
    run: Arc<Run>,
    filter: Filter,
}

/// Figures of a cache, for reports and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Runs in use.
    pub runs: usize,
    /// Records in them.
    pub records: u64,
    /// Bytes of them on disk.
    pub disk_bytes: u64,
    /// Bytes of filters in memory.
    pub filter_bytes: usize,
    /// Pages that look-ups have read from the runs in use.
    pub page_reads: u64,
    /// Runs that were found damaged and dropped.
    pub damaged_runs: u64,
    /// Chunks of this session that are stored, but that look-ups miss because the cache could not be written.
    pub forgotten: u64,
}

/// The runs of one repository on this machine.
pub(super) struct Cache {
    key: PageKey,
    filter_bytes: usize,
    disk_bytes: u64,
    /// Where new runs are written. `None`: nowhere.
    dir: Mutex<Option<Arc<Dir>>>,
    runs: RwLock<Arc<Vec<Loaded>>>,
    damaged: AtomicU64,
    forgotten: AtomicU64,
}

impl Cache {
    pub(super) fn new(
        master: &MasterKey,
        repository_id: &[u8; 16],
        filter_bytes: usize,
        disk_bytes: u64,
    ) -> Self {
        Self {
            key: PageKey::new(master, repository_id),
            filter_bytes,
            disk_bytes,
            dir: Mutex::default(),
            runs: RwLock::default(),
            damaged: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        }
    }

    /// The first location of a chunk that `usable` accepts. A damaged run is dropped and answers nothing.
    pub(super) fn find(
        &self,
        kind: ObjectType,
        id: &Id,
        usable: impl Fn(&Location) -> bool,
    ) -> Option<Location> {
        for Loaded { run, filter } in self.loaded().iter() {
            if run.is_dead() || !filter.may_contain(id) {
                continue;
            }
            match run.find(kind, id, &usable) {
                Ok(None) => {}
                Ok(found) => return found,
                Err(_) => self.bury(run),
            }
        }
        None
    }

    fn bury(&self, run: &Run) {
        if run.bury() {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(run = %run.path().display(), "damaged run of the index cache dropped");
        }
    }

    fn loaded(&self) -> Arc<Vec<Loaded>> {
        Arc::clone(&self.runs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The runs in use.
    pub(super) fn runs(&self) -> Vec<Arc<Run>> {
        self.loaded().iter().filter(|l| !l.run.is_dead()).map(|l| Arc::clone(&l.run)).collect()
    }

    pub(super) fn stats(&self) -> CacheStats {
        let loaded = self.loaded();
        let live = || loaded.iter().filter(|l| !l.run.is_dead());
        CacheStats {
            runs: live().count(),
            records: live().map(|l| l.run.records()).sum(),
            disk_bytes: live().map(|l| l.run.bytes()).sum(),
            filter_bytes: live().map(|l| l.filter.bytes()).sum(),
            page_reads: live().map(|l| l.run.reads()).sum(),
            damaged_runs: self.damaged.load(Ordering::Relaxed),
            forgotten: self.forgotten.load(Ordering::Relaxed),
        }
    }

    /// Uses `dir` from now on and locks it.
    pub(super) fn enter(self: &Arc<Self>, dir: Dir, wait: Duration) -> io::Result<Locked> {
        let dir = Arc::new(dir);
        let locked = Locked::new(Arc::clone(self), Arc::clone(&dir), wait)?;
        *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir);
        Ok(locked)
    }

    /// Makes a segment that has just been stored a run. When the directory cannot be had in time, a private one
    /// takes its place; when nothing can be written, the segment's chunks are misses from now on.
    pub(super) fn add(self: &Arc<Self>, name: SegmentName, segment: Segment) {
        let records = segment.record_count() as u64;
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let added = dir.map_or(Ok(()), |dir| {
            let mut locked = Locked::new(Arc::clone(self), dir, Duration::from_secs(5))
                .or_else(|_| self.enter(Dir::private()?, Duration::ZERO))?;
            locked.add(&[Source::Segment(name, segment)])?;
            locked.compact()?;
            locked.shrink()?;
            locked.publish();
            Ok::<_, io::Error>(())
        });
        if let Err(error) = added {
            self.forgotten.fetch_add(records, Ordering::Relaxed);
            tracing::warn!(%error, "index cache not written: later copies of these chunks will be stored again");
        }
    }

    /// Puts `runs` into use, with the filters that there is memory for. At no time is there more than that.
    fn publish(&self, runs: &[Arc<Run>]) {
        let shapes: Vec<_> = runs.iter().map(|r| r.filter_shape()).collect();
        let slices = plan(&shapes, self.filter_bytes);
        let now = self.loaded();
        let mut kept = Vec::with_capacity(runs.len());
        for (run, slices) in runs.iter().zip(&slices) {
            let mut filter =
                now.iter().find(|l| Arc::ptr_eq(&l.run, run)).map(|l| l.filter.clone()).unwrap_or_default();
            filter.slices.truncate(*slices);
            kept.push(filter);
        }
        drop(now);
        let put = |filters: Vec<Filter>| {
            let loaded = runs.iter().cloned().zip(filters).map(|(run, filter)| Loaded { run, filter });
            *self.runs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded.collect());
        };
        put(kept.clone());
        for ((run, slices), filter) in runs.iter().zip(slices).zip(&mut kept) {
            if run.load_filter(filter, slices).is_err() {
                self.bury(run);
            }
        }
        put(kept);
    }
}

/// The right to change a cache's directory.
pub(super) struct Locked {
    cache: Arc<Cache>,
    dir: Arc<Dir>,
    _lock: File,
    runs: Vec<Arc<Run>>,
    /// Runs that were named but are damaged or gone.
    pub(super) dropped: u64,
}

impl Locked {
    /// Locks `dir`, opens what it has and removes what a killed process left.
    fn new(cache: Arc<Cache>, dir: Arc<Dir>, wait: Duration) -> io::Result<Self> {
        let lock = dir.lock(wait)?;
        let mut locked = Self { cache, dir, _lock: lock, runs: Vec::new(), dropped: 0 };
        let manifest: Manifest = fs::read(locked.dir.path.join(MANIFEST))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let open = locked.cache.runs();
        for name in manifest.runs {
            let mut id = [0; 16];
            if hex::decode_to_slice(&name, &mut id).is_err() {
                continue;
            }
            let path = super::run::path(&locked.dir.path, &id);
            if let Some(run) = open.iter().find(|r| r.path() == path) {
                locked.runs.push(Arc::clone(run));
                continue;
            }
            match Run::open(&locked.dir.path, id, &locked.cache.key) {
                Ok(run) => locked.runs.push(Arc::new(run)),
                Err(Bad::Io(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Err(_) => locked.dropped += 1,
            }
        }
        locked.clean()?;
        Ok(locked)
    }

    /// Removes files that belong to no run that counts.
    fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir.path)? {
            let path = entry?.path();
            let known = path.file_name().is_some_and(|n| n == LOCK || n == MANIFEST);
            if !known && !self.runs.iter().any(|r| r.path() == path) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    /// Writes which runs count.
    fn save(&self) -> io::Result<()> {
        let runs =
            self.runs.iter().filter_map(|r| r.path().file_stem()?.to_str().map(str::to_owned)).collect();
        let text = serde_json::to_vec(&Manifest { format: 1, runs })?;
        let temporary = self.dir.path.join("runs.tmp");
        fs::write(&temporary, text)?;
        fs::rename(temporary, self.dir.path.join(MANIFEST))
    }

    /// The runs of the directory.
    pub(super) fn runs(&self) -> &[Arc<Run>] {
        &self.runs
    }

    /// Bytes of the runs on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.runs.iter().map(|r| r.bytes()).sum()
    }

    /// Drops the runs that `keep` refuses.
    pub(super) fn retain(&mut self, keep: impl Fn(&Run) -> bool) -> io::Result<()> {
        let (keep, drop): (Vec<_>, Vec<_>) = self.runs.drain(..).partition(|run| keep(run));
        self.runs = keep;
        if !drop.is_empty() {
            self.dropped += drop.len() as u64;
            self.save()?;
            drop.iter().for_each(|run| remove(run));
        }
        Ok(())
    }

    /// Makes `segments` one run.
    pub(super) fn add(&mut self, segments: &[Source]) -> io::Result<()> {
        match merge(&self.dir.path, &self.cache.key, segments) {
            Ok(id) => {
                self.runs.push(self.open(id)?);
                self.save()
            }
            Err(Fault::Write(e)) => Err(e),
            Err(Fault::Source(_)) => Err(io::Error::other("a segment in memory cannot be read")),
        }
    }

    fn open(&self, id: [u8; 16]) -> io::Result<Arc<Run>> {
        match Run::open(&self.dir.path, id, &self.cache.key) {
            Ok(run) => {
                if self.dir.private.is_some() {
                    // Nobody else opens it, and without a name it cannot outlive a killed process.
                    remove(&run);
                }
                Ok(Arc::new(run))
            }
            Err(Bad::Io(e)) => Err(e),
            Err(Bad::Damaged) => Err(io::Error::other("a run is not what was just written")),
        }
    }

    /// Merges runs of about the same size until there are few of each.
    pub(super) fn compact(&mut self) -> io::Result<()> {
        while let Some(picked) = self.pick() {
            let sources: Vec<_> = picked.iter().map(|run| Source::Run(Arc::clone(run))).collect();
            match merge(&self.dir.path, &self.cache.key, &sources) {
                Ok(id) => {
                    let merged = self.open(id)?;
                    self.runs.retain(|run| !picked.iter().any(|p| Arc::ptr_eq(p, run)));
                    self.runs.push(merged);
                    self.save()?;
                    picked.iter().for_each(|run| remove(run));
                }
                Err(Fault::Source(i)) => {
                    self.cache.bury(&picked[i]);
                    self.dropped += 1;
                    self.runs.retain(|run| !Arc::ptr_eq(run, &picked[i]));
                    self.save()?;
                }
                Err(Fault::Write(e)) => return Err(e),
            }
        }
        Ok(())
    }

    /// The smallest tier that has enough runs to be merged.
    fn pick(&self) -> Option<Vec<Arc<Run>>> {
        let tier = |run: &Run| run.records().max(1).ilog2() / FAN_OUT.ilog2();
        let mut runs = self.runs.clone();
        runs.sort_by_key(|run| (tier(run), run.records()));
        runs.chunk_by(|a, b| tier(a) == tier(b)).find_map(|group| {
            let mut bytes = 0;
            let fit = group.iter().take(MOST).take_while(|run| {
                bytes += run.bytes();
                bytes <= self.cache.disk_bytes / SHARE
            });
            let picked: Vec<_> = fit.cloned().collect();
            (picked.len() >= FAN_OUT).then_some(picked)
        })
    }

    /// Drops the oldest runs until the rest fits the disk space.
    pub(super) fn shrink(&mut self) -> io::Result<()> {
        while self.bytes() > self.cache.disk_bytes {
            let newest = |run: &Arc<Run>| run.covers().ok().and_then(|c| c.last().copied());
            let Some(oldest) = self.runs.iter().min_by_key(|run| newest(run)).cloned() else { break };
            self.runs.retain(|run| !Arc::ptr_eq(run, &oldest));
            self.save()?;
            remove(&oldest);
        }
        Ok(())
    }

    /// Puts the runs into use, beside those that this process has open in another directory.
    pub(super) fn publish(&mut self) {
        let mut runs = self.runs.clone();
        let elsewhere = |run: &Arc<Run>| run.path().parent() != Some(&self.dir.path);
        runs.extend(self.cache.runs().into_iter().filter(elsewhere));
        self.cache.publish(&runs);
    }
}

/// Removes a run's file. Who has it open reads on.
fn remove(run: &Run) {
    // What stays is a leftover, and removed by the next process that has the lock.
    let _ = fs::remove_file(run.path());
}
