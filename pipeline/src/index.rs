//! The index: is this chunk in the repository already, and where?
//!
//! A look-up may miss, it never invents: a miss costs a second copy of a chunk, a wrong hit would cost the data. So
//! segments are sealed, every page of the local cache carries a MAC, and whatever does not authenticate is a miss.
//!
//! ```text
//!  store   index/<generation>/<session>-<n>     segments: sealed, sorted, at most 65,536 records     segment
//!  disk    <cache>/<repository>/index/*.run     runs: many segments merged, read by single pages     cache, run
//!  memory  Bloom filters of the runs, within a budget; this session's chunks that are in no run yet  filter, session
//! ```
//! Look-ups go from the bottom of this picture to its middle and never to the store. Memory does not depend on the
//! size of the repository: the filters have a budget, and beyond it a look-up reads a page more often.

mod cache;
mod filter;
pub mod foreign;
mod page;
mod presence;
mod rebuild;
mod run;
mod segment;
mod session;
mod sync;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

pub use cache::CacheStats;
pub use presence::PackCheck;
pub use rebuild::{Coverage, Uncovered};
pub use segment::{Last, MAX_RECORDS, PackRow, Record, Segment, SegmentName};

use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::pack::{Location, PackName, SessionId};
use crate::seal::MasterKey;
use crate::store::{Store, StoreErrorKind};
use cache::Cache;
use presence::Checked;
use session::Session;

/// How an [`Index`] uses this machine.
#[derive(Debug, Clone)]
pub struct IndexConfig {
    /// Directory for caches of any number of repositories and processes. `None`, or not writable: a private
    /// temporary directory, for as long as the index is open.
    pub cache_dir: Option<PathBuf>,
    /// Most memory for filters, in bytes. About 1.3 bytes per chunk in the repository make nearly every look-up of
    /// an unknown chunk free of I/O; with less, look-ups read more pages.
    pub filter_bytes: usize,
    /// Most disk space of the cache, in bytes. Beyond it the newest segments are kept. While runs are merged, an
    /// eighth more may be used.
    pub cache_bytes: u64,
    /// Generation of garbage collection that new segments are written to.
    pub generation: u32,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { cache_dir: None, filter_bytes: 8 << 20, cache_bytes: 4 << 30, generation: 0 }
    }
}

/// What opening an index found in the store and what it did. Damage is a value here, not an error: the index can
/// be rebuilt from the packs, see [`Index::uncovered`].
#[derive(Debug, Clone, Default)]
pub struct SyncReport {
    /// Segments in the store.
    pub segments: u64,
    /// Segments that were fetched because no run had them.
    pub fetched: u64,
    /// Bytes that were fetched.
    pub fetched_bytes: u64,
    /// Readable segments that are not in the cache because its disk space is used up. Their chunks are misses.
    pub beyond_cache: u64,
    /// Runs dropped because they were damaged or because a segment in them is gone from the store.
    pub dropped_runs: u64,
    /// Segments that cannot be read: key and reason.
    pub damaged: Vec<(String, String)>,
    /// Segments that must have existed, because a session's later ones do.
    pub missing: Vec<String>,
    /// The newest session that has read the tables of all packs. What was lost before it is not missing any more.
    pub last_of_all: Option<SessionId>,
    /// Sessions that must have written a last segment if they committed, and did not or it is gone.
    pub endless: Vec<SessionId>,
    /// Why the cache directory was not used, when it was not.
    pub cache_unused: Option<String>,
}

/// Answer to [`Index::claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Stored already, or being stored by another worker of this session; then the location may not be known yet.
    Known(Option<Location>),
    /// Absent: the caller stores it, and calls [`Index::place`]. Everybody else is told that it is known.
    New,
}

/// The index of one repository, shared by all workers of a run.
pub struct Index {
    store: Arc<dyn Store>,
    master: MasterKey,
    epoch: u32,
    generation: u32,
    session: Option<SessionId>,
    local: Session,
    cache: Arc<Cache>,
    /// Packs that are about to be deleted, ascending.
    excluded: RwLock<Vec<PackName>>,
    /// Packs that the store has, once they were listed.
    checked: OnceLock<Checked>,
    /// Where temporary files go if they can.
    cache_dir: Option<PathBuf>,
    /// Number of the next segment. Held for the whole of a flush.
    next: tokio::sync::Mutex<u32>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the index and brings its cache up to date with the store.
    ///
    /// `session` is needed to write segments ([`Index::flush`]). `decided`: sessions that committed or were fenced
    /// before the call; the report names those without a last segment. Empty when nobody asks.
    ///
    /// # Errors
    /// [`Error::Store`] when the store fails. Damaged segments and an unusable cache are in the report.
    pub async fn open(
        store: Arc<dyn Store>,
        master: &MasterKey,
        epoch: u32,
        repository_id: &[u8; 16],
        session: Option<SessionId>,
        decided: &[SessionId],
        config: IndexConfig,
    ) -> Result<(Self, SyncReport)> {
        let opened = sync::open(&store, master, repository_id, session, decided, &config).await?;
        let (cache, report, next) = opened;
        let index = Self {
            store,
            master: master.clone(),
            epoch,
            generation: config.generation,
            session,
            local: Session::new(),
            cache,
            excluded: RwLock::default(),
            checked: OnceLock::new(),
            cache_dir: config.cache_dir,
            next: tokio::sync::Mutex::new(next),
        };
        Ok((index, report))
    }

    /// Where a chunk is. Never asks the store; at most reads a few pages of 4 KiB from the local cache.
    ///
    /// `None`: not known here, or claimed by a worker of this session that has not placed it yet.
    pub fn find(&self, kind: ObjectType, id: &Id) -> Option<Location> {
        match self.local.get(kind, id) {
            Some(Some(at)) if self.usable(&at) => Some(at),
            Some(None) => None,
            _ => self.find_stored(kind, id),
        }
    }

    /// A place of a stored chunk that `fits`: there may be several copies, and some of them lost.
    pub fn find_where(
        &self,
        kind: ObjectType,
        id: &Id,
        fits: impl Fn(&Location) -> bool,
    ) -> Option<Location> {
        self.cache.find(kind, id, |at| self.usable(at) && fits(at))
    }

    /// Asks for a chunk and claims it when it is absent: of all workers that ask at the same time, one gets
    /// [`Claim::New`].
    pub fn claim(&self, kind: ObjectType, id: &Id) -> Claim {
        if let Some(known) = self.local.claim(kind, id, |at| self.usable(at)) {
            return Claim::Known(known);
        }
        // The claim stands while the runs are asked, which may take a disk read, so nobody waits for it.
        match self.find_stored(kind, id) {
            Some(at) => {
                self.local.release(kind, id);
                Claim::Known(Some(at))
            }
            None => Claim::New,
        }
    }

    /// A claimed chunk is not going to be stored.
    pub fn release(&self, kind: ObjectType, id: &Id) {
        self.local.release(kind, id);
    }

    /// A claimed chunk is now in an open pack, and others may refer to it there.
    pub fn place(&self, kind: ObjectType, id: &Id, at: Location) {
        self.local.place(kind, id, at);
    }

    /// A pack of `size` bytes is durable in the store. `chunks` is everything in it; the next flush names it in a
    /// segment.
    pub fn finished(&self, pack: PackName, size: u64, chunks: Vec<(ObjectType, Id, Location)>) {
        self.local.finished(pack, size, chunks);
    }

    /// Number of chunks in finished packs that no stored segment names yet. Callers flush when it reaches
    /// [`MAX_RECORDS`]: that bounds the memory of the index.
    pub fn pending(&self) -> usize {
        self.local.pending()
    }

    /// Treats everything in `packs` as absent from now on: garbage collection is about to delete them.
    pub fn exclude(&self, packs: impl IntoIterator<Item = PackName>) {
        let mut excluded = self.excluded.write().unwrap_or_else(PoisonError::into_inner);
        excluded.extend(packs);
        excluded.sort_unstable();
        excluded.dedup();
    }

    /// True when a chunk that the parent snapshot has at `at` may be referred to again. Without a location only while
    /// nothing is excluded or lost, since nobody can tell which pack it is in.
    pub fn allows(&self, at: Option<&Location>) -> bool {
        match at {
            Some(at) => self.usable(at),
            None => {
                self.checked.get().is_none_or(Checked::is_whole)
                    && self.excluded.read().unwrap_or_else(PoisonError::into_inner).is_empty()
            }
        }
    }

    /// Where a chunk of the parent snapshot is: at `hint`, if that may be referred to again, or wherever the index knows it.
    /// `None`: it has to be stored again.
    pub fn still_there(&self, kind: ObjectType, id: &Id, hint: Option<&Location>) -> Option<Location> {
        if let Some(at) = hint.filter(|at| self.usable(at)) {
            return Some(*at);
        }
        let found = self.find(kind, id);
        if let (None, Some(at), Some(checked)) = (found, hint, self.checked.get())
            && !self.is_present(at)
        {
            checked.miss(at.pack);
        }
        found
    }

    /// Writes segments for all packs that were finished before the call, then moves their chunks from memory to the
    /// local cache. Any number of callers at the same time. Given up half way or failed, it loses nothing: the next
    /// flush does the rest.
    ///
    /// # Errors
    /// [`Error::Store`] when a segment cannot be written; [`Error::Internal`] for an index opened without a session,
    /// or a pack whose chunks break a rule of the format.
    pub async fn flush(&self) -> Result<()> {
        self.write_out(Last::No).await
    }

    /// As [`Index::flush`], before the session commits: the last segment says in its name that it is the last, even
    /// if it has to be empty. So its loss is noticed. `all`: the packs of [`Index::uncovered`] are in.
    ///
    /// # Errors
    /// As [`Index::flush`].
    pub async fn finish(&self, all: bool) -> Result<()> {
        self.write_out(if all { Last::OfAll } else { Last::OfSession }).await
    }

    async fn write_out(&self, last: Last) -> Result<()> {
        let mut next = self.next.lock().await;
        let mut waiting = self.local.waiting();
        let mut ended = last == Last::No;
        while waiting > 0 || !ended {
            let batch = self.local.batch(waiting);
            if batch.is_empty() && waiting > 0 {
                return Err(Error::Internal("a pack has more chunks than an index segment".into()));
            }
            waiting -= batch.len();
            ended |= waiting == 0;
            let last = if waiting == 0 { last } else { Last::No };
            let mut packs = Vec::with_capacity(batch.len());
            let mut records = Vec::with_capacity(batch.iter().map(|p| p.records.len()).sum());
            for (row, pack) in (0..).zip(&batch) {
                packs.push(pack.row);
                records.extend(pack.records.iter().map(|r| Record { pack: row, ..*r }));
            }
            let segment = Segment::new(&packs, &mut records)?;
            drop((packs, records));
            let name = self.write(&segment, &mut next, last).await?;
            self.local.stored(&batch);
            let cache = Arc::clone(&self.cache);
            sync::blocking(move || cache.add(name, segment)).await?;
            self.local.forget(&batch);
        }
        Ok(())
    }

    /// Stores `segment` under the session's next number. A number that was taken by a try of ours whose answer was
    /// lost is passed over.
    async fn write(&self, segment: &Segment, next: &mut u32, last: Last) -> Result<SegmentName> {
        let session = self.session.ok_or_else(|| Error::Internal("index opened for reading only".into()))?;
        loop {
            let name = SegmentName { generation: self.generation, session, number: *next, last };
            let sealed = segment.seal(&self.master, self.epoch, &name)?;
            let created = self.store.create(&name.key(), sealed.into()).await;
            match created {
                Ok(()) => {
                    *next += 1;
                    return Ok(name);
                }
                Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                    *next += 1;
                    let there = self.store.read_all(&name.key(), segment::MAX_STORED).await?;
                    if Segment::open(&self.master, &name, &there).is_ok_and(|s| s == *segment) {
                        return Ok(name);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Figures of the local cache.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    fn find_stored(&self, kind: ObjectType, id: &Id) -> Option<Location> {
        self.cache.find(kind, id, |at| self.usable(at))
    }

    fn usable(&self, at: &Location) -> bool {
        let excluded = self.excluded.read().unwrap_or_else(PoisonError::into_inner);
        excluded.binary_search(&at.pack).is_err() && self.is_present(at)
    }

    fn is_present(&self, at: &Location) -> bool {
        // What this session has stored came after the packs were listed.
        let own = self.session == Some(at.pack.session);
        own || self.checked.get().is_none_or(|checked| checked.holds(at))
    }
}

#[cfg(test)]
mod tests;
