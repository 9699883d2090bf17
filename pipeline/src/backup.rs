//! Backup: from a source to a committed snapshot.
//!
//! ```text
//! source ─► io ─► chunk ─► index ─► seal ─► pack ─► store ─► manifest
//!
//! driver (this thread)          workers                     uploads (async)
//! walks or reads, cuts ──jobs──► zero? id, known?           parts of packs, in parallel
//!        │                       compress, encrypt ──parts──►        │
//!        └──drafts (ordered)──► page writer ──pages──────────────────┤
//!                               waits for each job's ticket          ▼
//!                                                         index segments, then the manifest
//! ```
//! Whatever fails or dies before the manifest's creation leaves garbage at worst: packs that the next run finds in
//! the index and uses again.

mod block;
mod commit;
mod held;
mod opened;
mod parent;
mod readahead;
mod repair;
mod ticket;
mod tree;
mod worker;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::runtime::Handle;

use crate::chunk::{Cutter, Sizes, valid_block_chunk};
use crate::entry::{PageRef, Time};
use crate::error::{Error, FirstError, Result};
use crate::index::{Index, IndexConfig, MAX_RECORDS};
use crate::io::{EngineChoice, Pool, Probe, probe};
use crate::limits::{BLOCK_READ, FILE_READ, Limits, Plan, plan};
use crate::manifest::{Counts, Manifest, Statistics, VolumeKind, VolumeName, catalog, skipped::SkippedItems};
use crate::pack::upload::Uploads;
use crate::pack::{Class, SessionId};
use crate::page::entries::{EntryWriter, boundary_key};
use crate::patterns::Patterns;
use crate::progress::{Counter, Progress, Skipped};
use crate::repository::reading::{index_warnings, open_index};
use crate::repository::{CdcSizes, Repository};
use crate::seal::Level;
use crate::session::{Alive, Checkpoint, Leftover, Session, abort_uploads, leftovers, open_uploads};
use crate::source::Volume;
use crate::source::tree::TreeOptions;
use opened::Opened;
use parent::Parent;
use readahead::ReadAhead;
use worker::{Job, Lane, Shared};

/// What to read.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory is a tree; a block device or regular file is a block volume.
    Path(PathBuf),
    /// Standard input, to its end, as a block volume.
    Stdin,
    /// A volume that somebody else has opened. Nobody writes to it meanwhile: [`BackupOptions::live`] has no meaning here.
    Volume(Volume),
}

/// Which snapshot unchanged data is taken over from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentChoice {
    /// The newest of the volume, if it fits.
    Auto,
    /// None: read and compare everything. What the repository knows is still not stored again.
    None,
    /// This one: an id, or its beginning.
    Id(String),
}

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// What to read.
    pub source: Source,
    /// Name of the volume; by default `host:canonical path`, for all that has a path.
    pub volume: Option<VolumeName>,
    /// Marks for finding the snapshot again.
    pub tags: BTreeMap<String, String>,
    /// Parent snapshot.
    pub parent: ParentChoice,
    /// What to leave out of a tree.
    pub excludes: Patterns,
    /// Read a device although it is mounted read-write; recorded in the manifest.
    pub live: bool,
    /// Do everything but write to the store.
    pub dry_run: bool,
    /// Do not enter mount points and subvolumes below the root of a tree.
    pub one_file_system: bool,
    /// Read attributes that need privileges.
    pub privileged: bool,
    /// Which io engine to use.
    pub engine: EngineChoice,
    /// What the run may spend.
    pub limits: Limits,
    /// How hard to compress.
    pub level: Level,
    /// Bytes of a block volume's chunks; by default those of the parent, or of the repository.
    pub chunk_size: Option<u32>,
    /// Where to keep the index cache.
    pub cache_dir: Option<PathBuf>,
    /// How much a crash may cost: packs are finished and recorded at least this often.
    pub checkpoint_interval: Duration,
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// The committed manifest; `None` for a dry run.
    pub manifest: Option<Box<Manifest>>,
    /// Volume name.
    pub volume: VolumeName,
    /// A tree or a block volume.
    pub kind: VolumeKind,
    /// The volume was in use, as [`BackupOptions::live`] said.
    pub live: bool,
    /// Parent that was used.
    pub parent: Option<SessionId>,
    /// Engine that was used, and why.
    pub engine: Probe,
    /// Things the user should know that did not stop the run: damaged parents, index repairs, clocks, caches.
    pub warnings: Vec<String>,
    /// Items skipped, in all.
    pub skipped: u64,
    /// Contents of the tree.
    pub counts: Counts,
    /// What it took.
    pub statistics: Statistics,
}

/// Threads that look at files ahead of the driver. More than the CPUs, because they wait for the disk.
const PREFETCH: usize = 8;

/// Runs a backup. Blocks; `runtime` carries the store's requests.
///
/// # Errors
/// See [`crate::error::Kind`]. After any error the repository is as before, and a later run uses what was uploaded.
pub fn run(
    runtime: &Handle,
    repository: &Arc<Repository>,
    options: &BackupOptions,
    progress: &Arc<Progress>,
) -> Result<BackupReport> {
    let engine = probe(options.engine)?;
    let (volume, source) = opened::open(options)?;
    let mut warnings = Vec::new();
    let prepared =
        Run::prepare(runtime, repository, options, progress, volume, &source, engine, &mut warnings);
    let ended = prepared.and_then(|run| {
        let result = run.transfer(&source);
        run.settle(result, &source, &mut warnings)
    });
    match ended {
        Ok(report) => Ok(BackupReport { warnings, ..report }),
        Err(error) => {
            // There is no report to be found in, and they may say why it failed.
            warnings.iter().for_each(|warning| progress.warn(warning));
            Err(error)
        }
    }
}

/// Everything a run holds.
struct Run<'a> {
    runtime: &'a Handle,
    repository: &'a Arc<Repository>,
    options: &'a BackupOptions,
    progress: &'a Arc<Progress>,
    engine: Probe,
    session: Option<Arc<Session>>,
    volume: VolumeName,
    parent: Parent,
    plan: Plan,
    read_bytes: usize,
    chunk: u32,
    index: Arc<Index>,
    index_rebuilt: bool,
    failure: Arc<FirstError>,
    flush: Arc<tokio::sync::Notify>,
    leftovers: Vec<Leftover>,
    _alive: Option<Alive>,
    skipped: Arc<Mutex<SkippedItems>>,
    local_started_ms: u64,
}

impl<'a> Run<'a> {
    #[expect(clippy::too_many_arguments, reason = "called once, by who has just made them")]
    fn prepare(
        runtime: &'a Handle,
        repository: &'a Arc<Repository>,
        options: &'a BackupOptions,
        progress: &'a Arc<Progress>,
        volume: VolumeName,
        source: &Opened,
        engine: Probe,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let local_started_ms = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        if let Some(bytes) = options.chunk_size
            && !valid_block_chunk(bytes)
        {
            return Err(Error::Usage(format!(
                "chunk size {bytes}: give a power of two from 16 KiB to 4 MiB"
            )));
        }
        let parent = runtime.block_on(Parent::find(repository, options, &volume, source.kind(), warnings))?;
        let chunk = options
            .chunk_size
            .or(parent.manifest.as_ref().and_then(|m| m.block_chunk))
            .unwrap_or(repository.config().parameters.block_chunk);
        let read_bytes = match source.kind() {
            VolumeKind::Tree => FILE_READ,
            VolumeKind::Block => BLOCK_READ.max(chunk as usize),
        };
        let plan = plan(options.limits.memory, options.limits.workers, read_bytes)?;
        let session = match options.dry_run {
            true => None,
            false => Some(Arc::new(runtime.block_on(Session::open(repository, &volume))?)),
        };
        let alive = session.as_ref().map(|session| Alive::keep(runtime, session));
        if let Some(ahead) = session.as_ref().map(|s| s.clock_ahead_ms()).filter(|ms| ms.abs() > 60_000) {
            warnings.push(format!("this machine's clock is {} s ahead of the store's", ahead / 1000));
        }
        let leftovers = match &session {
            None => Vec::new(),
            Some(session) => {
                runtime.block_on(clear_leftovers(repository, &volume, session.id(), warnings))?
            }
        };
        let from = parent.manifest.as_ref().map(|m| m.id);
        let opened = open_for(repository, options, session.as_deref(), plan.filter_bytes, from, warnings);
        let (index, index_rebuilt) = runtime.block_on(opened)?;
        let skipped: Arc<Mutex<SkippedItems>> = Arc::default();
        let kept = Arc::clone(&skipped);
        progress.on_skip(move |item: &Skipped| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.keep(&item.path, &item.reason);
        });
        Ok(Self {
            runtime,
            repository,
            options,
            progress,
            engine,
            session,
            volume,
            parent,
            plan,
            read_bytes,
            chunk,
            index,
            index_rebuilt,
            failure: Arc::default(),
            flush: Arc::default(),
            leftovers,
            _alive: alive,
            skipped,
            local_started_ms,
        })
    }

    /// Wires the stations and moves the volume; returns the root and the size in bytes.
    fn transfer(&self, source: &Opened) -> Result<(PageRef, u64)> {
        let parts = Pool::new(self.plan.part_bytes, self.plan.parts)?;
        let buffers = Pool::new(self.read_bytes, self.plan.read_buffers)?;
        let uploads = self.uploads(parts);
        let shared = self.shared(&uploads);
        let rate = self.options.limits.read_rate.clone();
        let (failure, progress) = (Arc::clone(&self.failure), Arc::clone(self.progress));
        let mut reads = ReadAhead::new(self.engine.kind, buffers, rate, progress, failure)?;
        // Jobs at hand for each worker. A job of a tree may hold memory of its own; jobs of a block volume share read
        // buffers, which are counted, and every job that waits spares two threads a sleep.
        let at_hand = if source.kind() == VolumeKind::Tree { 2 } else { 16 };
        let (jobs, work) = bounded::<Job>(at_hand * self.plan.workers);

        let checkpoints = self.session.as_ref().map(|s| self.runtime.spawn(self.checkpoints(s, &uploads)));
        let result = std::thread::scope(|scope| {
            for n in 0..self.plan.workers {
                let (lane, work) = (Lane::new(&shared, Class::Data), work.clone());
                std::thread::Builder::new()
                    .name(format!("worker-{n}"))
                    .spawn_scoped(scope, move || lane.run(&work))
                    .map_err(|e| Error::Internal(format!("cannot start a thread: {e}")))?;
            }
            drop(work);
            let pages = Lane::new(&shared, Class::Metadata);
            match source {
                Opened::Tree { root, shown } => {
                    self.progress.expect_total(self.parent.manifest.as_ref().map_or(0, |m| m.size));
                    let (drafts, ordered) = bounded(tree::DRAFTS);
                    let writer = EntryWriter::new(self.repository.master());
                    let pages = self.page_writer(scope, pages, ordered, |drafts, lane| {
                        tree::write_pages(drafts, writer, lane)
                    })?;
                    let driven = first(self.drive_tree(root, shown, jobs, drafts, &mut reads), &self.failure);
                    let root = join(pages, &self.failure);
                    driven?;
                    root.map(|root| (root, root.len))
                }
                Opened::Block(_) | Opened::Stdin => {
                    let (drafts, ordered) = bounded(tree::DRAFTS);
                    let chunk = self.chunk;
                    let pages = self.page_writer(scope, pages, ordered, move |drafts, lane| {
                        block::write_pages(drafts, chunk, lane)
                    })?;
                    let driven = first(self.drive_block(source, jobs, drafts, &mut reads), &self.failure);
                    let root = join(pages, &self.failure);
                    let size = driven?;
                    root.map(|root| (root, size))
                }
            }
        });
        self.runtime.block_on(uploads.settle());
        if let Some(task) = checkpoints {
            task.abort();
            let _ = self.runtime.block_on(task);
        }
        self.failure.take()?;
        let done = result?;
        if done.0.len != done.1 {
            return Err(Error::Internal(format!("pages cover {} of {} bytes", done.0.len, done.1)));
        }
        Ok(done)
    }

    fn uploads(&self, parts: Pool) -> Arc<Uploads> {
        let (index, flush) = (Arc::clone(&self.index), Arc::clone(&self.flush));
        Uploads::new(
            Arc::clone(self.repository.store()),
            self.runtime.clone(),
            parts,
            Arc::clone(&self.failure),
            Arc::clone(self.progress),
            Box::new(move |pack, size, placed| {
                index.finished(pack, size, placed);
                if index.pending() >= MAX_RECORDS {
                    flush.notify_one();
                }
            }),
        )
    }

    fn shared(&self, uploads: &Arc<Uploads>) -> Shared {
        Shared {
            index: Arc::clone(&self.index),
            hasher: self.repository.hasher().clone(),
            failure: Arc::clone(&self.failure),
            progress: Arc::clone(self.progress),
            uploads: Arc::clone(uploads),
            master: self.repository.master().clone(),
            epoch: self.repository.epoch(),
            session: self.session.as_ref().map_or(SessionId([0; 12]), |s| s.id()),
            level: self.options.level,
            workers: self.plan.workers,
            pack_bytes: self.repository.config().parameters.pack.into(),
            checkpoint: self.options.checkpoint_interval,
            dry_run: self.session.is_none(),
        }
    }

    fn page_writer<'s, T: Send + 's>(
        &self,
        scope: &'s std::thread::Scope<'s, '_>,
        mut lane: Lane,
        drafts: Receiver<T>,
        write: impl FnOnce(&Receiver<T>, &mut Lane) -> Result<PageRef> + Send + 's,
    ) -> Result<std::thread::ScopedJoinHandle<'s, Result<PageRef>>> {
        std::thread::Builder::new()
            .name("pages".into())
            .spawn_scoped(scope, move || write(&drafts, &mut lane))
            .map_err(|e| Error::Internal(format!("cannot start a thread: {e}")))
    }

    fn drive_tree(
        &self,
        root: &OwnedFd,
        shown: &Path,
        jobs: Sender<Job>,
        drafts: Sender<tree::Sent>,
        reads: &mut ReadAhead,
    ) -> Result<()> {
        let master = self.repository.master();
        let cutter = Cutter::new(master, self.cdc());
        let progress = Arc::clone(self.progress);
        let mut driver = tree::Driver::new(shown, cutter, boundary_key(master), jobs, drafts, progress);
        let options = TreeOptions {
            one_file_system: self.options.one_file_system,
            excludes: self.options.excludes.clone(),
            privileged: self.options.privileged,
            prefetch_threads: PREFETCH,
            memory: self.plan.tree_bytes,
            temp_dir: self.options.cache_dir.clone().unwrap_or_else(std::env::temp_dir),
            ..TreeOptions::default()
        };
        let parent = self.parent.entries(self.runtime, self.repository, &self.index, self.progress);
        let started = self.parent.started().map(|ms| Time {
            seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            nanos: u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
        });
        crate::source::tree::stream(root, shown, options, parent, started, self.progress, |found| {
            self.failure.check()?;
            driver.visit(found, reads)
        })?;
        driver.finish()
    }

    fn drive_block(
        &self,
        source: &Opened,
        jobs: Sender<Job>,
        drafts: Sender<block::Draft>,
        reads: &mut ReadAhead,
    ) -> Result<u64> {
        let driver = block::Driver {
            chunk: self.chunk as usize,
            parent: self.parent.extents(
                self.chunk,
                self.runtime,
                self.repository,
                &self.index,
                self.progress,
            ),
            jobs,
            drafts,
            progress: Arc::clone(self.progress),
            failure: Arc::clone(&self.failure),
            next: 0,
        };
        match source {
            Opened::Block(source) => {
                self.progress.expect_total(source.size());
                driver.read(source, reads)
            }
            _ => {
                // Past the buffer of `std::io::Stdin`: what sits in there is invisible to who waits for more.
                let stdin = std::io::stdin().as_fd().try_clone_to_owned();
                let path = Path::new("-");
                let stdin = stdin.map_err(|e| Error::source_io(path, "cannot open", e))?;
                driver.read_stream(&File::from(stdin), path, reads)
            }
        }
    }

    fn cdc(&self) -> Sizes {
        let CdcSizes { min, average, max } = self.repository.config().parameters.cdc;
        Sizes { min, average, max }
    }

    /// Writes index segments and checkpoints until it is aborted.
    fn checkpoints(
        &self,
        session: &Arc<Session>,
        uploads: &Arc<Uploads>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (index, failure, flush) =
            (Arc::clone(&self.index), Arc::clone(&self.failure), Arc::clone(&self.flush));
        let (uploads, progress, session) =
            (Arc::clone(uploads), Arc::clone(self.progress), Arc::clone(session));
        // Counted from one to the next, however long their writing takes and however often the index is flushed between.
        let interval = self.options.checkpoint_interval.max(Duration::from_millis(10));
        async move {
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let due = tokio::select! {
                    _ = ticks.tick() => true,
                    () = flush.notified() => false,
                };
                if let Err(error) = index.flush().await {
                    failure.set(error);
                    return;
                }
                if !due {
                    continue;
                }
                let done = progress.get(Counter::Done);
                let checkpoint = Checkpoint { uploads: uploads.open(), done, ..Checkpoint::default() };
                // A checkpoint that fails costs nothing but resuming from an older one; a store that stays away
                // fails the uploads as well.
                let _ = session.checkpoint(&checkpoint).await;
            }
        }
    }
}

/// Records the driver's own error before the page writer, left alone, ends with another one.
fn first<T>(driven: Result<T>, failure: &FirstError) -> Result<T> {
    match driven {
        Ok(_) | Err(Error::Cancelled) => driven,
        Err(error) => {
            failure.set(error);
            Err(Error::Cancelled)
        }
    }
}

fn join(pages: std::thread::ScopedJoinHandle<'_, Result<PageRef>>, failure: &FirstError) -> Result<PageRef> {
    match pages.join() {
        Ok(Ok(root)) => Ok(root),
        Ok(Err(Error::Cancelled)) => Err(Error::Cancelled),
        Ok(Err(error)) => {
            failure.set(error);
            Err(Error::Cancelled)
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Opens the index for a backup. For one that writes, as `session`, it is checked and repaired first; true: rebuilt.
/// `parent`: the snapshot whose data may be taken over.
async fn open_for(
    repository: &Repository,
    options: &BackupOptions,
    session: Option<&Session>,
    filter_bytes: usize,
    parent: Option<SessionId>,
    warnings: &mut Vec<String>,
) -> Result<(Arc<Index>, bool)> {
    let decided = match session {
        Some(_) => catalog::decided(repository).await?,
        None => Vec::new(),
    };
    let config = IndexConfig {
        cache_dir: options.cache_dir.clone(),
        filter_bytes,
        generation: session.map_or(0, Session::generation),
        ..IndexConfig::default()
    };
    let (index, report) = open_index(repository, session.map(Session::id), &decided, &config).await?;
    warnings.extend(index_warnings(&report));
    if report.beyond_cache > 0 {
        let beyond = report.beyond_cache;
        warnings.push(format!(
            "{beyond} index segments found no room in the cache: what only they name is stored once more"
        ));
    }
    let index = Arc::new(index);
    if session.is_none() {
        return Ok((index, false));
    }
    repair::check_packs(&index, &report, parent, warnings).await?;
    let rebuilt = repair::repair(repository, &index, &report, warnings).await?;
    Ok((index, rebuilt))
}

/// Sessions of earlier runs that did not finish. Uploads of those that are dead are aborted.
async fn clear_leftovers(
    repository: &Repository,
    volume: &VolumeName,
    own: SessionId,
    warnings: &mut Vec<String>,
) -> Result<Vec<Leftover>> {
    let found = leftovers(repository, volume, Some(own)).await?;
    let open = if found.iter().any(Leftover::is_over) { open_uploads(repository).await } else { Vec::new() };
    for leftover in &found {
        warnings.extend(leftover.damaged.iter().map(|what| format!("of an earlier run: {what}")));
        // What cannot be aborted now stays until the store's own rules clear it.
        let (begun, failed) = abort_uploads(repository, leftover, &open).await;
        let session = leftover.session;
        if begun > failed.len() {
            let count = begun - failed.len();
            warnings.push(format!("aborted what was left of {count} uploads of run {session}"));
        }
        if let Some((upload, error)) = failed.first() {
            warnings.push(format!(
                "cannot abort {} uploads of run {session}, such as {}: {error}; the store keeps their parts",
                failed.len(),
                upload.key
            ));
        }
    }
    Ok(found)
}
