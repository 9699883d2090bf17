//! Sessions: one run of one writer, from the moment it may refer to packs until it commits or gives up.
//!
//! What a writer owes the others, in order:
//! 1. [`Session::open`]: say who writes and where the commit will be, then learn which packs are condemned.
//! 2. Learn about packs (parent, index, leftovers) only after that, and refer to no condemned one
//!    ([`crate::gc::visit_unusable`]).
//! 3. Upload packs, then index segments; [`Session::checkpoint`] and [`Session::tick`] show that it lives.
//! 4. [`Session::commit`], which first looks for generations that appeared meanwhile, and creates the manifest at the
//!    key that was fixed in step 1. Exactly one of the manifest and a tombstone can be there.
//! 5. [`Session::end`].
//!
//! Nobody waits for anybody. Garbage collection deletes a condemned pack only when every session that had not seen it
//! condemned has ended or was fenced; `FORMAT.md` has the argument.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::gc;
use crate::manifest::{
    self, Commit, Manifest, PREDECESSORS, SnapshotKey, VolumeKey, VolumeName, catalog, shape,
    skipped::SkippedItems,
};
use crate::pack::SessionId;
use crate::repository::{Created, MAX_RECORD, Operation, Repository, create_once, millis};
use crate::seal::object::ObjectClass;
use crate::store::StoreErrorKind;

mod alive;
mod leftovers;
mod owner;
mod record;

pub use alive::Alive;
pub use leftovers::{Leftover, Liveness, abort_uploads, leftovers, open_uploads, supersede};
pub use owner::{Owner, host_name};
pub use record::{Checkpoint, Opened, Outcome, SESSIONS_PREFIX};
use record::{Record, record_key};

/// A session that has written nothing for this long, by the store's clock, may be fenced.
pub const LEASE: Duration = Duration::from_secs(2 * 3600);

/// How often a session shows that it lives.
pub const RENEW_EVERY: Duration = Duration::from_secs(600);

impl SessionId {
    /// The id of a session opened at `millis` milliseconds since the Unix epoch.
    pub fn new(millis: u64, random: [u8; 6]) -> Self {
        let mut id = [0; 12];
        id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        id[6..].copy_from_slice(&random);
        Self(id)
    }

    /// When it was opened, by the store's clock, in milliseconds since the Unix epoch.
    pub fn millis(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, b| ms << 8 | u64::from(*b))
    }

    /// Eight digits of the random half, to show and to type: the first half is alike in neighbours.
    pub fn short(&self) -> String {
        hex::encode(&self.0[6..10])
    }
}

/// What came of [`Session::commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The snapshot exists.
    Done(Box<Manifest>),
    /// Nothing was written: packs were condemned that the snapshot may refer to. Read them with
    /// [`gc::visit_unusable`] after the manifest's generation, store chunks in them anew, set the manifest's
    /// generation to what that returned, and commit again.
    Overtaken(Box<Manifest>),
}

/// An open session. Methods may be called from several tasks.
#[derive(Debug)]
pub struct Session {
    repository: Arc<Repository>,
    volume: VolumeName,
    at: SnapshotKey,
    generation: u32,
    started_ms: u64,
    clock_ahead_ms: i64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u32,
    written: Instant,
    ended: bool,
}

impl Session {
    /// Opens a session for `volume`.
    ///
    /// # Errors
    /// [`Error::Repository`] when this program must not write here; store errors.
    pub async fn open(repository: &Arc<Repository>, volume: &VolumeName) -> Result<Self> {
        repository.allow(Operation::Write)?;
        let store_ms = repository.now_ms().await?;
        let local_ms = millis(SystemTime::now());
        // Never older than what is committed, should the store's clock have been set back.
        let newest = catalog::newest_ids(repository, volume, 1).await?;
        let ms = newest.first().map_or(store_ms, |id| store_ms.max(id.millis() + 1));
        let mut random = [0; 6];
        getrandom::fill(&mut random).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
        let at = SnapshotKey { volume: repository.volume_key(volume), id: SessionId::new(ms, random) };
        let opened = Opened {
            owner: Owner::current(),
            volume: volume.clone(),
            manifest: at.key(),
            generation: newest_generation(repository, 0).await?,
            tool: crate::TOOL.to_owned(),
            at_ms: store_ms,
        };
        let written = Instant::now();
        write_record(repository, at.volume, at.id, 0, &Record::Open(opened.clone())).await?;
        // Again, now that collectors see us: what was condemned before that is known to us, what is condemned after
        // waits for us.
        let generation = newest_generation(repository, opened.generation).await?;
        Ok(Self {
            repository: Arc::clone(repository),
            volume: volume.clone(),
            at,
            generation,
            started_ms: store_ms,
            clock_ahead_ms: i64::try_from(local_ms).unwrap_or(0) - i64::try_from(store_ms).unwrap_or(0),
            state: Mutex::new(State { next: 1, written, ended: false }),
        })
    }

    /// The session's id: part of its packs' names, and the snapshot's id once it has committed.
    pub fn id(&self) -> SessionId {
        self.at.id
    }

    /// The volume.
    pub fn volume(&self) -> &VolumeName {
        &self.volume
    }

    /// Where the manifest will be.
    pub fn manifest_key(&self) -> SnapshotKey {
        self.at
    }

    /// Newest generation of condemned packs when the session opened. All up to it must be honoured.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// When the session opened, by the store's clock, in milliseconds since the Unix epoch.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// How far this machine's clock is ahead of the store's, in milliseconds. Nothing depends on it; more than a
    /// minute is worth a warning.
    pub fn clock_ahead_ms(&self) -> i64 {
        self.clock_ahead_ms
    }

    /// Shows that the session lives, when that is due. To be called every minute or so: see [`Alive`].
    ///
    /// # Errors
    /// Store errors: not fatal as long as a later call succeeds within [`LEASE`].
    pub async fn tick(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.ended || state.written.elapsed() < RENEW_EVERY {
            return Ok(());
        }
        self.write(&mut state, &Record::Renew).await
    }

    /// Records how far the session has got. Everything it refers to must be durable.
    ///
    /// # Errors
    /// Store errors.
    pub async fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        let mut state = self.state.lock().await;
        self.write(&mut state, &Record::Checkpoint(checkpoint.clone())).await
    }

    /// Commits: creates the manifest. Everything it refers to must be durable. Fills in what the manifest's
    /// documentation marks with *(commit)*, and ends the session when it is done; the end record is not waited for
    /// with more than one try, because the manifest itself ends the session.
    ///
    /// # Errors
    /// [`Error::Conflict`]: the session was fenced, nothing is committed, run again. Store errors: not committed, or,
    /// if the answer was lost and cannot be learned, committed without our knowing.
    pub async fn commit(&self, mut manifest: Box<Manifest>) -> Result<Committed> {
        let repository = &self.repository;
        let key = self.at.key();
        let mut state = self.state.lock().await;
        if state.ended {
            return Err(Error::Internal(format!("session {} has ended", self.at.id)));
        }
        manifest.generation = manifest.generation.max(self.generation);
        if newest_generation(repository, manifest.generation).await? > manifest.generation {
            return Ok(Committed::Overtaken(manifest));
        }
        manifest.id = self.at.id;
        manifest.volume = self.volume.clone();
        manifest.predecessors = catalog::newest_ids(repository, &self.volume, PREDECESSORS + 1).await?;
        manifest.predecessors.retain(|id| *id != self.at.id);
        manifest.predecessors.truncate(PREDECESSORS);
        manifest.started_ms = self.started_ms;
        manifest.finished_ms = repository.now_ms().await?.max(self.started_ms);
        manifest.epoch = repository.epoch();
        manifest.tool = crate::TOOL.to_owned();
        let mut listed = SkippedItems::default();
        manifest.skipped_items.iter().for_each(|item| listed.keep(&item.path.0, &item.reason));
        manifest.skipped_items = listed.items().to_vec();
        let plain = manifest::Record::Snapshot(manifest.clone()).encode()?;
        let sealed = repository.seal(ObjectClass::Manifest, &key, &plain)?;
        if sealed.len() as u64 > MAX_RECORD {
            // Nobody could read it, and it would stand in the way of every later run of the volume.
            return Err(Error::Usage(format!(
                "the manifest would have {} bytes, and {MAX_RECORD} can be read: use fewer or shorter tags and excludes",
                sealed.len()
            )));
        }
        if create_once(&**repository.store(), &key, sealed).await? == Created::Taken {
            return Err(match manifest::read(repository, self.at).await? {
                Some(Commit::Tombstone(t)) => Error::Conflict(format!(
                    "this run was fenced ({}) and did not commit: it had shown no sign of life for too long",
                    t.reason
                )),
                _ => Error::Conflict(format!("{key} was written by another process with this session's id")),
            });
        }
        // The snapshot exists, whatever becomes of this.
        let _ = self.write(&mut state, &Record::End { outcome: Outcome::Committed }).await;
        state.ended = true;
        Ok(Committed::Done(manifest))
    }

    /// Ends a session that does not commit: [`Outcome::Cancelled`] or [`Outcome::Failed`], from whose last checkpoint
    /// the next run goes on.
    ///
    /// # Errors
    /// Store errors; harmless, the session then counts as one that died.
    pub async fn end(&self, outcome: Outcome) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.ended {
            return Ok(());
        }
        self.write(&mut state, &Record::End { outcome }).await?;
        state.ended = true;
        Ok(())
    }

    async fn write(&self, state: &mut State, record: &Record) -> Result<()> {
        if state.ended {
            return Err(Error::Internal(format!("session {} has ended", self.at.id)));
        }
        let n = state.next;
        // A number is never used twice: a failed write may still arrive.
        state.next = n.checked_add(1).ok_or_else(|| Error::Internal("too many session records".into()))?;
        // The lease runs from before the write: the store's time of the record can only be later.
        let written = Instant::now();
        write_record(&self.repository, self.at.volume, self.at.id, n, record).await?;
        state.written = written;
        Ok(())
    }
}

/// Newest generation that exists, or `after` when none is newer.
async fn newest_generation(repository: &Repository, after: u32) -> Result<u32> {
    Ok(gc::generations(repository, after).await?.last().map_or(after, |g| g.number))
}

async fn write_record(
    repository: &Repository,
    volume: VolumeKey,
    session: SessionId,
    n: u32,
    record: &Record,
) -> Result<()> {
    let plain = serde_json::to_vec(record).map_err(|e| Error::Internal(format!("session record: {e}")))?;
    repository.put(ObjectClass::Session, &record_key(volume, session, n, record.kind()), &plain).await
}

async fn read_record(repository: &Repository, key: &str) -> Result<Option<Record>> {
    let Some(plain) = repository.get(ObjectClass::Session, key, MAX_RECORD).await? else { return Ok(None) };
    serde_json::from_slice(&plain)
        .map(Some)
        .map_err(|e| Error::damaged(key, format!("not a session record: {}", shape(&e))))
}

/// True when the manifest of session `at` or its tombstone exists: the session is over for good.
///
/// # Errors
/// Store errors.
pub async fn is_decided(repository: &Repository, at: SnapshotKey) -> Result<bool> {
    match repository.store().stat(&at.key()).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests;
