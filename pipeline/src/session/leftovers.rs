//! Sessions that stopped short of a commit: what the next run can use of them, and what it must clear up.

use super::record::{Checkpoint, Opened, Outcome, Record, RecordKind, SESSIONS_PREFIX};
use super::record::{parse_record_key, record_key};
use super::{LEASE, is_decided, read_record, write_record};
use crate::error::{Error, Result};
use crate::manifest::{self, Commit, SnapshotKey, VolumeName};
use crate::pack::{PACKS_PREFIX, PackName, SessionId};
use crate::repository::{Repository, millis};
use crate::store::OpenUpload;

/// Why a session is known, or supposed, not to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It said that it stopped, or its process has ended, which is only ever known on the same machine. Certain.
    Dead,
    /// It has written nothing for longer than [`LEASE`], by the store's clock. It may still run, but must expect to
    /// be fenced.
    Expired,
    /// It may well be running. Hands off.
    Alive,
}

/// A session of a volume that neither committed nor was superseded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The session.
    pub session: SessionId,
    /// Where it would commit.
    pub manifest: SnapshotKey,
    /// Its first record, if that can be read.
    pub opened: Option<Opened>,
    /// The newest checkpoint that can be read.
    pub checkpoint: Option<Checkpoint>,
    /// Whether it goes on.
    pub liveness: Liveness,
    /// When it last wrote, by the store's clock, in milliseconds since the Unix epoch.
    pub last_ms: u64,
    /// Records that are damaged, and how. To be reported; an older checkpoint may have been taken.
    pub damaged: Vec<String>,
    next: u32,
}

impl Leftover {
    /// True when its place may be taken: its uploads aborted, its manifest key fenced.
    pub fn is_over(&self) -> bool {
        self.liveness != Liveness::Alive
    }
}

/// The records of one session, as the listing shows them.
struct Seen {
    session: SessionId,
    stopped: bool,
    ended: bool,
    next: u32,
    checkpoints: Vec<u32>,
    last_ms: u64,
}

impl Seen {
    fn new(session: SessionId) -> Self {
        Self { session, stopped: false, ended: false, next: 0, checkpoints: Vec::new(), last_ms: 0 }
    }
}

/// How many checkpoints are tried, newest first, when the newest are damaged.
const TRIES: usize = 3;

/// Finds the sessions of `volume` that neither committed nor were superseded, newest first. `own` is left out.
///
/// # Errors
/// Store errors. Damaged records are values.
pub async fn leftovers(
    repository: &Repository,
    volume: &VolumeName,
    own: Option<SessionId>,
) -> Result<Vec<Leftover>> {
    let volume_key = repository.volume_key(volume);
    let prefix = format!("{SESSIONS_PREFIX}{volume_key}/");
    let mut open: Vec<Seen> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = repository.store().list(&prefix, after.as_deref()).await?;
        for object in &page.objects {
            let Some((_, session, n, kind)) = parse_record_key(&object.key) else { continue };
            if open.last().is_none_or(|s| s.session != session) {
                // Keys come session by session: the one before is complete.
                open.pop_if(|s| s.ended);
                open.push(Seen::new(session));
            }
            let Some(seen) = open.last_mut() else { continue };
            seen.stopped |= kind == RecordKind::Stop;
            seen.ended |= kind == RecordKind::End;
            seen.next = n.saturating_add(1);
            seen.last_ms = seen.last_ms.max(millis(object.modified));
            if kind == RecordKind::Checkpoint {
                seen.checkpoints.push(n);
            }
        }
        after = page.objects.last().map(|o| o.key.clone());
        if !page.more || after.is_none() {
            break;
        }
    }
    open.pop_if(|s| s.ended);
    let now_ms = repository.now_ms().await?;
    let mut found = Vec::new();
    for seen in open.into_iter().rev().filter(|s| Some(s.session) != own) {
        let manifest = SnapshotKey { volume: volume_key, id: seen.session };
        // A manifest or a tombstone decides a session as well: only its last record got lost.
        if !is_decided(repository, manifest).await? {
            found.push(examine(repository, manifest, seen, now_ms).await?);
        }
    }
    Ok(found)
}

async fn examine(
    repository: &Repository,
    manifest: SnapshotKey,
    seen: Seen,
    now_ms: u64,
) -> Result<Leftover> {
    let mut damaged = Vec::new();
    let mut read = async |n, kind| {
        let key = record_key(manifest.volume, seen.session, n, kind);
        match read_record(repository, &key).await {
            Ok(record) => Ok(record),
            Err(e @ Error::Damaged { .. }) => {
                damaged.push(e.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    };
    let opened = match read(0, RecordKind::Open).await? {
        Some(Record::Open(opened)) => Some(opened),
        _ => None,
    };
    let mut checkpoint = None;
    for n in seen.checkpoints.iter().rev().take(TRIES) {
        if let Some(Record::Checkpoint(found)) = read(*n, RecordKind::Checkpoint).await? {
            checkpoint = Some(found);
            break;
        }
    }
    let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    let liveness = if seen.stopped || opened.as_ref().is_some_and(|o| o.owner.is_provably_dead()) {
        Liveness::Dead
    } else if now_ms.saturating_sub(seen.last_ms) > lease {
        Liveness::Expired
    } else {
        Liveness::Alive
    };
    Ok(Leftover {
        session: seen.session,
        manifest,
        opened,
        checkpoint,
        liveness,
        last_ms: seen.last_ms,
        damaged,
        next: seen.next,
    })
}

/// Uploads of packs that are open now, of all sessions. What a session began after its last checkpoint, only the store
/// knows; where it does not say, there are none here, and the store's own rules clear them.
pub async fn open_uploads(repository: &Repository) -> Vec<OpenUpload> {
    let found = repository.store().open_uploads(PACKS_PREFIX).await;
    found.unwrap_or_else(|error| {
        tracing::debug!(%error, "open uploads are not listed");
        Vec::new()
    })
}

/// Aborts the uploads that `leftover` had begun, if it is over ([`Leftover::is_over`]): those of its checkpoint, and its
/// own among `open` ([`open_uploads`]). Returns how many there were, and those that could not be aborted: the store
/// keeps them, and charges for them, until its own rules clear them.
pub async fn abort_uploads(
    repository: &Repository,
    leftover: &Leftover,
    open: &[OpenUpload],
) -> (usize, Vec<(OpenUpload, Error)>) {
    if !leftover.is_over() {
        return (0, Vec::new());
    }
    let store = repository.store();
    let ours = |u: &&OpenUpload| PackName::from_key(&u.key).is_some_and(|p| p.session == leftover.session);
    let mut uploads = leftover.checkpoint.as_ref().map_or_else(Vec::new, |c| c.uploads.clone());
    uploads.extend(open.iter().filter(ours).cloned());
    uploads.sort_unstable();
    uploads.dedup();
    let count = uploads.len();
    let mut failed = Vec::new();
    for upload in uploads {
        if let Err(e) = store.abort_upload(&upload.key, &upload.upload).await {
            failed.push((upload, e.into()));
        }
    }
    (count, failed)
}

/// Ends `leftover` for good: takes its manifest's place, then says so in its own records. To be called once what was
/// taken from it is safe in a commit or checkpoint of another session. False: it was faster and has committed.
///
/// # Errors
/// [`Error::Conflict`] when it may be alive; otherwise as [`manifest::fence`].
pub async fn supersede(repository: &Repository, leftover: &Leftover) -> Result<bool> {
    if !leftover.is_over() {
        return Err(Error::Conflict(format!("session {} may still be running", leftover.session)));
    }
    // Where there is one writer at a time there is nobody to fence, and nothing to fence with.
    let fenced = repository.single_writer()
        || match manifest::fence(repository, leftover.manifest, "superseded by a later run").await? {
            Commit::Tombstone(_) => true,
            Commit::Snapshot(_) => false,
        };
    let outcome = if fenced { Outcome::Superseded } else { Outcome::Committed };
    let record = Record::End { outcome };
    let SnapshotKey { volume, id } = leftover.manifest;
    match write_record(repository, volume, id, leftover.next, &record).await {
        // Another run wrote the same. The tombstone is what counts.
        Err(Error::Conflict(_)) => Ok(fenced),
        other => other.map(|()| fenced),
    }
}
