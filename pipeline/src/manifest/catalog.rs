//! Which snapshots there are: listing, `latest`, finding by id, and noticing that one is gone.
//!
//! Everything here goes through the listing of `snapshots/` page by page and reads a few manifests at a time, so
//! memory does not depend on how many there are. Damaged manifests are entries of the listing, not failures: the
//! others are still there. Order is that of session ids, which is the order of the store's clock when the sessions
//! were opened, never that of a client's.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;

use super::{Commit, Manifest, SNAPSHOTS_PREFIX, SnapshotKey, VolumeName, read, read_forgotten};
use crate::error::{Error, Result};
use crate::pack::SessionId;
use crate::repository::{Repository, millis};
use crate::store::Listing;

/// Manifests that are read at the same time.
const READS: usize = 16;

/// Newest keys that are looked at in one pass when searching backwards.
const WINDOW: usize = 256;

/// Most candidates that an ambiguity names.
const CANDIDATES: usize = 8;

/// Which snapshots are wanted. The default is all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this volume only.
    pub volume: Option<VolumeName>,
    /// With all of these tags.
    pub tags: BTreeMap<String, String>,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Key of the object in the store.
    pub key: String,
    /// Which snapshot; `None` when the key does not say.
    pub at: Option<SnapshotKey>,
    /// When the store says it was written, in milliseconds since the Unix epoch. A copied repository has new times.
    pub modified_ms: u64,
    /// What is there.
    pub what: What,
}

/// What is at a listed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A snapshot.
    Snapshot(Box<Manifest>),
    /// Something that cannot be trusted, and why.
    Damaged(String),
}

/// A snapshot that later ones name and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The one that is gone.
    pub missing: SnapshotKey,
    /// Its volume.
    pub volume: VolumeName,
    /// The oldest snapshot that names it.
    pub named_by: SessionId,
}

/// What [`check_chain`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Sound snapshots seen, forgotten ones left out.
    pub snapshots: u64,
    /// Snapshots that vanished.
    pub missing: Vec<Missing>,
    /// Objects that cannot be trusted.
    pub damaged: Vec<Listed>,
}

/// A key below `snapshots/`, with the mark beside it.
#[derive(Debug, Clone)]
struct Found {
    key: String,
    at: Option<SnapshotKey>,
    /// False: only the mark of a forgotten snapshot is left.
    commit: bool,
    forgotten: bool,
    modified_ms: u64,
}

/// Pages of keys, each snapshot together with its mark.
struct Keys<'a> {
    repository: &'a Repository,
    prefix: String,
    after: Option<String>,
    done: bool,
    /// The last key of a page waits for its mark, which may be the first of the next.
    held: Option<Found>,
}

impl<'a> Keys<'a> {
    fn new(repository: &'a Repository, volume: Option<&VolumeName>) -> Self {
        let prefix = match volume {
            Some(name) => format!("{SNAPSHOTS_PREFIX}{}/", repository.volume_key(name)),
            None => SNAPSHOTS_PREFIX.to_owned(),
        };
        Self { repository, prefix, after: None, done: false, held: None }
    }

    /// The next keys in ascending order; `None` at the end. A page may be empty.
    async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        if self.done {
            return Ok(None);
        }
        let Listing { objects, more } =
            self.repository.store().list(&self.prefix, self.after.as_deref()).await?;
        let mut page: Vec<Found> = self.held.take().into_iter().collect();
        self.after = objects.last().map(|o| o.key.clone());
        self.done = !more || objects.is_empty();
        for object in objects {
            let parsed = SnapshotKey::parse(&object.key);
            let (at, mark) = (parsed.map(|p| p.0), parsed.is_some_and(|p| p.1));
            if mark
                && let Some(last) = page.last_mut()
                && last.commit
                && last.at == at
            {
                last.forgotten = true;
                continue;
            }
            page.push(Found {
                key: object.key,
                at,
                commit: !mark,
                forgotten: mark,
                modified_ms: millis(object.modified),
            });
        }
        if !self.done {
            self.held = page.pop();
        }
        Ok(Some(page))
    }
}

/// What reading one found key gives.
struct Looked {
    found: Found,
    entries: Vec<Listed>,
    /// The mark was read and is sound.
    forgotten: bool,
}

async fn look(repository: &Repository, found: Found) -> Result<Looked> {
    let mut looked = Looked { entries: Vec::new(), forgotten: false, found };
    let found = &looked.found;
    let entry = |key: String, what| Listed { key, at: found.at, modified_ms: found.modified_ms, what };
    let Some(at) = found.at else {
        let what = What::Damaged("not the name of a snapshot".into());
        looked.entries = vec![entry(found.key.clone(), what)];
        return Ok(looked);
    };
    if found.forgotten {
        match read_forgotten(repository, at).await {
            Ok(mark) => looked.forgotten = mark.is_some(),
            Err(Error::Damaged { object, what, .. }) => {
                looked.entries.push(entry(object, What::Damaged(what)));
            }
            Err(e) => return Err(e),
        }
    }
    if looked.forgotten || !looked.found.commit {
        return Ok(looked);
    }
    match read(repository, at).await {
        Ok(Some(Commit::Snapshot(m))) => looked.entries.push(entry(at.key(), What::Snapshot(m))),
        // Fenced, or collected since it was listed.
        Ok(Some(Commit::Tombstone(_)) | None) => {}
        Err(Error::Damaged { object, what, .. }) => looked.entries.push(entry(object, What::Damaged(what))),
        Err(e) => return Err(e),
    }
    Ok(looked)
}

/// Calls `visit` for each snapshot that `filter` lets through, volume by volume, oldest first, and for everything
/// that cannot be trusted. Fenced sessions and forgotten snapshots are left out.
///
/// # Errors
/// Store errors, and those of `visit`, which end the listing.
pub async fn visit(
    repository: &Repository,
    filter: &Filter,
    visit: &mut (dyn FnMut(Listed) -> Result<()> + Send),
) -> Result<()> {
    let mut keys = Keys::new(repository, filter.volume.as_ref());
    while let Some(page) = keys.next().await? {
        let reads: Vec<_> = page.into_iter().map(|found| look(repository, found)).collect();
        let mut reads = futures_util::stream::iter(reads).buffered(READS);
        while let Some(looked) = reads.next().await {
            for entry in looked?.entries {
                match &entry.what {
                    What::Snapshot(m) if !m.has_tags(&filter.tags) => {}
                    _ => visit(entry)?,
                }
            }
        }
    }
    Ok(())
}

/// As [`visit`], collected and ordered oldest first over all volumes. Memory grows with the number of snapshots.
///
/// # Errors
/// As [`visit`].
pub async fn list(repository: &Repository, filter: &Filter) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    visit(repository, filter, &mut |entry| {
        all.push(entry);
        Ok(())
    })
    .await?;
    all.sort_by_key(|e| (e.at.map(|at| at.id), e.key.clone()));
    Ok(all)
}

/// What [`latest`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latest {
    /// The newest sound snapshot.
    pub snapshot: Option<Box<Manifest>>,
    /// Newer ones that cannot be trusted. To be shown to the user: this is not what was asked for.
    pub damaged: Vec<Listed>,
}

/// The newest snapshot that `filter` lets through.
///
/// # Errors
/// Store errors.
pub async fn latest(repository: &Repository, filter: &Filter) -> Result<Latest> {
    let mut latest = Latest::default();
    let mut before = None;
    loop {
        let window = newest(repository, filter.volume.as_ref(), before, WINDOW).await?;
        let Some(oldest) = window.last().and_then(|f| f.at).map(|at| (at.id, at.volume)) else {
            return Ok(latest);
        };
        for found in window {
            for entry in look(repository, found).await?.entries {
                match entry.what {
                    What::Snapshot(m) if m.has_tags(&filter.tags) => {
                        latest.snapshot = Some(m);
                        return Ok(latest);
                    }
                    What::Snapshot(_) => {}
                    What::Damaged(_) => latest.damaged.push(entry),
                }
            }
        }
        before = Some(oldest);
    }
}

/// The newest `limit` keys before `before`, newest first.
async fn newest(
    repository: &Repository,
    volume: Option<&VolumeName>,
    before: Option<(SessionId, super::VolumeKey)>,
    limit: usize,
) -> Result<Vec<Found>> {
    let mut top = BTreeMap::new();
    let mut keys = Keys::new(repository, volume);
    while let Some(page) = keys.next().await? {
        for found in page {
            let Some(at) = found.at else { continue };
            let order = (at.id, at.volume);
            if before.is_none_or(|b| order < b) {
                top.insert(order, found);
                if top.len() > limit {
                    top.pop_first();
                }
            }
        }
    }
    Ok(top.into_values().rev().collect())
}

/// Ids of the newest sessions of a volume that committed or were fenced, newest first.
pub(crate) async fn newest_ids(
    repository: &Repository,
    volume: &VolumeName,
    limit: usize,
) -> Result<Vec<SessionId>> {
    let found = newest(repository, Some(volume), None, limit).await?;
    Ok(found.iter().filter_map(|f| f.at.map(|at| at.id)).collect())
}

/// All sessions that committed or were fenced, from names alone; 44 bytes of memory each.
pub(crate) async fn decided(repository: &Repository) -> Result<Vec<SnapshotKey>> {
    let mut decided = Vec::new();
    let mut keys = Keys::new(repository, None);
    while let Some(page) = keys.next().await? {
        decided.extend(page.iter().filter(|found| found.commit).filter_map(|found| found.at));
    }
    Ok(decided)
}

/// The snapshot that `text` means: `latest`, or the beginning of an id, or the beginning of an id's random half (the
/// first half is a time, so neighbours share much of it; see [`SessionId::short`]).
///
/// # Errors
/// [`Error::Usage`] when there is none or more than one; [`Error::Damaged`] when it is the one and damaged, or when
/// damaged manifests hide what `latest` is.
pub async fn find(repository: &Repository, filter: &Filter, text: &str) -> Result<Box<Manifest>> {
    let scope = filter.volume.as_ref().map(|v| format!(" of volume {v}")).unwrap_or_default();
    if text == "latest" {
        let Latest { snapshot, damaged } = latest(repository, filter).await?;
        if let Some(first) = damaged.into_iter().next() {
            let What::Damaged(what) = first.what else { return Err(Error::Internal("latest".into())) };
            let what = format!("{what}; it is newer than any sound snapshot{scope}: name one by its id");
            return Err(Error::damaged(first.key, what));
        }
        let tags: String =
            filter.tags.iter().map(|(key, value)| format!(" with tag {key}={value}")).collect();
        return snapshot.ok_or_else(|| Error::Usage(format!("there is no snapshot{scope}{tags}")));
    }
    let wanted = text.to_ascii_lowercase();
    if wanted.is_empty() || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) || wanted.len() > 24 {
        return Err(Error::Usage(format!("`{}`: give `latest` or a snapshot id", text.escape_default())));
    }
    let mut candidates = Vec::new();
    let mut keys = Keys::new(repository, filter.volume.as_ref());
    while let Some(page) = keys.next().await? {
        for found in page {
            let Some(at) = found.at else { continue };
            let id = at.id.to_string();
            if found.commit && (id.starts_with(&wanted) || id[12..].starts_with(&wanted)) {
                for entry in look(repository, found).await?.entries {
                    candidates.push(entry);
                }
                if candidates.len() > CANDIDATES {
                    return Err(ambiguous(text, &candidates));
                }
            }
        }
    }
    // A damaged mark beside a sound snapshot is not a candidate of its own.
    let sound = candidates.iter().filter(|c| matches!(c.what, What::Snapshot(_))).count();
    if sound == 1 {
        candidates.retain(|c| matches!(c.what, What::Snapshot(_)));
    }
    match (candidates.len(), candidates.pop()) {
        (_, None) => Err(Error::Usage(format!("there is no snapshot {text}{scope}"))),
        (1, Some(only)) => match only.what {
            What::Snapshot(m) => Ok(m),
            What::Damaged(what) => Err(Error::damaged(only.key, what)),
        },
        (_, Some(last)) => {
            candidates.push(last);
            Err(ambiguous(text, &candidates))
        }
    }
}

fn ambiguous(text: &str, candidates: &[Listed]) -> Error {
    let ids: BTreeSet<String> =
        candidates.iter().filter_map(|c| c.at).map(|at| at.id.to_string()).take(CANDIDATES).collect();
    let more = if candidates.len() > CANDIDATES { ", ..." } else { "" };
    let ids: Vec<String> = ids.into_iter().collect();
    Error::Usage(format!("more than one snapshot starts with `{text}`: {}{more}", ids.join(", ")))
}

/// Goes through all manifests of one volume, or of all, and notices snapshots that later ones name as predecessors
/// and that are gone without having been forgotten. Memory: the ids of one volume at a time.
///
/// # Errors
/// Store errors.
pub async fn check_chain(repository: &Repository, volume: Option<&VolumeName>) -> Result<Chain> {
    let mut chain = Chain::default();
    let mut open = Volume::default();
    let mut keys = Keys::new(repository, volume);
    while let Some(page) = keys.next().await? {
        let reads: Vec<_> = page.into_iter().map(|found| look(repository, found)).collect();
        let mut reads = futures_util::stream::iter(reads).buffered(READS);
        while let Some(looked) = reads.next().await {
            let looked = looked?;
            if let Some(at) = looked.found.at {
                if open.key != Some(at.volume) {
                    std::mem::take(&mut open).finish(&mut chain);
                    open.key = Some(at.volume);
                }
                // A damaged mark does not excuse a manifest that is gone.
                if looked.found.commit || looked.forgotten {
                    open.present.insert(at.id);
                }
            }
            for entry in looked.entries {
                match entry.what {
                    What::Snapshot(m) => {
                        chain.snapshots += 1;
                        for id in m.predecessors {
                            open.named.entry(id).or_insert_with(|| (m.volume.clone(), m.id));
                        }
                    }
                    What::Damaged(_) => chain.damaged.push(entry),
                }
            }
        }
    }
    open.finish(&mut chain);
    Ok(chain)
}

/// What is known of one volume while its keys go by.
#[derive(Default)]
struct Volume {
    key: Option<super::VolumeKey>,
    present: BTreeSet<SessionId>,
    named: BTreeMap<SessionId, (VolumeName, SessionId)>,
}

impl Volume {
    fn finish(self, chain: &mut Chain) {
        let Some(volume) = self.key else { return };
        for (id, (name, named_by)) in self.named {
            if !self.present.contains(&id) {
                let missing = SnapshotKey { volume, id };
                chain.missing.push(Missing { missing, volume: name, named_by });
            }
        }
    }
}
