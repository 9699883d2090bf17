//! Verification: what is damaged, and who is affected.
//!
//! First the packs are looked at: all are listed, and as many as asked for are read, every frame of them opened and
//! its id compared. Then every snapshot's pages are walked, and each chunk they name must have a place that was not
//! found bad. So damage is reported with both ends: the object, and the volume range or path that needs it.

mod packs;
mod records;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::entry::{ChunkRef, Content, Entry, Extent, PageRef};
use crate::error::{Error, Result};
use crate::hash::ObjectType;
use crate::index::{Index, IndexConfig};
use crate::limits::{FILE_READ, Limits, plan};
use crate::manifest::catalog::{self, Filter, What};
use crate::manifest::{SnapshotKey, VolumeKind};
use crate::pack::{Location, PackName, SessionId};
use crate::page::load::{PageLoader, is_lost};
use crate::page::walk::{EntryWalk, ExtentWalk};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::reading::{loader, open_index};

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Manifests and pages; that each chunk's pack is there and long enough.
    Structure,
    /// Every byte of every pack as well, and every record.
    ReadData,
    /// A random share of the packs, 0 to 1, at least one.
    Sample(f64),
}

/// How to verify.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// How much to read.
    pub mode: Mode,
    /// Snapshots that must be there, by id or its beginning.
    pub expect: Vec<String>,
    /// What the run may spend. The upload rate limits fetching; no disk is read that the read rate could limit.
    pub limits: Limits,
    /// Where to keep the index cache.
    pub cache_dir: Option<PathBuf>,
}

/// Something that is damaged and what it takes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Object in the store.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
    /// The snapshot that needs it; `None` when nothing is known to.
    pub snapshot: Option<SessionId>,
    /// Path in a tree, raw; `None` for a block volume or a whole snapshot.
    pub path: Option<Vec<u8>>,
    /// First byte affected, in the file or volume.
    pub offset: u64,
    /// Bytes affected.
    pub len: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Damages; a sound repository has none.
    pub damages: Vec<Damage>,
    /// Things to know that are not damage.
    pub warnings: Vec<String>,
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Packs that were read to the last byte.
    pub packs_read: u64,
    /// Chunks that were looked up, once for each place a snapshot names them.
    pub chunks: u64,
    /// Bytes of packs that were read.
    pub checked: u64,
}

/// What is known of the packs.
#[derive(Debug, Default)]
struct Packs {
    /// Size in bytes of each that is there.
    sizes: HashMap<PackName, u64>,
    /// Frames that do not open.
    bad: HashMap<(PackName, u32), String>,
}

impl Packs {
    /// What is wrong with a chunk's place, if anything is known to be.
    fn fault(&self, at: &Location) -> Option<String> {
        match self.sizes.get(&at.pack) {
            _ if !at.is_possible(ObjectType::Data) => Some("cannot hold a chunk where a page says".into()),
            None => Some("is missing".into()),
            Some(size) if u64::from(at.offset) + u64::from(at.stored) > *size => Some("is cut short".into()),
            Some(_) => self.bad.get(&(at.pack, at.slot)).cloned(),
        }
    }
}

/// Verifies a repository. Blocks; `runtime` carries the store's requests. Memory grows with the number of packs, by
/// about 60 bytes each (4 MB for 4 TiB).
///
/// # Errors
/// Only what keeps the verification from going on: the store, the keys, cancellation. Damage is in the report.
pub fn run(
    runtime: &Handle,
    repository: &Repository,
    options: &VerifyOptions,
    progress: &Arc<Progress>,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let plan = plan(options.limits.memory, options.limits.workers, FILE_READ)?;
    let config = IndexConfig {
        cache_dir: options.cache_dir.clone(),
        filter_bytes: plan.filter_bytes,
        ..IndexConfig::default()
    };
    let decided = runtime.block_on(catalog::decided(repository))?;
    let (index, synced) = runtime.block_on(open_index(repository, None, &decided, &config))?;
    report.warnings.extend(synced.cache_unused.clone());
    let damaged = synced.damaged.iter().map(|(key, why)| (key.clone(), why.clone()));
    let missing = synced.missing.iter().map(|key| (key.clone(), "is missing".to_owned()));
    for (key, why) in damaged.chain(missing) {
        let why = format!("{why}; the next backup rebuilds it from the packs");
        report.damages.push(whole(None, key, why));
    }
    let snapshots = runtime.block_on(manifests(repository, options, &mut report))?;

    let mut packs = Packs { sizes: runtime.block_on(packs::list(repository))?, ..Packs::default() };
    report.packs = packs.sizes.len() as u64;
    let pace = options.limits.upload_rate.clone();
    let reader = packs::Reader { runtime, repository, progress, pace: &pace };
    reader.read(options.mode, plan.workers, &mut packs, &mut report)?;
    if options.mode == Mode::ReadData {
        runtime.block_on(records::read(repository, progress, &mut report))?;
    }

    let index = Arc::new(index);
    let loader = loader(runtime, repository, &index, progress, pace.clone());
    let mut walk = Walk { packs: &packs, index: &index, loader, progress, report: &mut report };
    for snapshot in &snapshots {
        walk.snapshot(snapshot)?;
    }
    orphans(&packs, &mut report);
    advise(&packs, &mut report);
    Ok(report)
}

/// What is needed of a manifest: a whole one may list a thousand skipped items.
#[derive(Debug)]
struct Listed {
    at: SnapshotKey,
    kind: VolumeKind,
    root: Option<PageRef>,
}

/// Lists the manifests, oldest first; what is wrong with the list itself goes into the report.
async fn manifests(
    repository: &Repository,
    options: &VerifyOptions,
    report: &mut VerifyReport,
) -> Result<Vec<Listed>> {
    let (mut snapshots, mut damaged) = (Vec::new(), Vec::new());
    catalog::visit(repository, &Filter::default(), &mut |listed| {
        match (listed.what, listed.at) {
            (What::Snapshot(m), Some(at)) => snapshots.push(Listed { at, kind: m.kind, root: m.root }),
            (What::Snapshot(_), None) => {
                return Err(Error::Internal("a snapshot without a key".into()));
            }
            (What::Damaged(why), at) => damaged.push(whole(at.map(|at| at.id), listed.key, why)),
        }
        Ok(())
    })
    .await?;
    snapshots.sort_unstable_by_key(|listed| (listed.at.id, listed.at.volume));
    damaged.sort_by_key(|damage| (damage.snapshot, damage.object.clone()));
    report.damages.extend(damaged);
    report.snapshots = snapshots.len() as u64;
    for missing in catalog::check_chain(repository, None).await?.missing {
        let why = format!("is missing: snapshot {} names it as its predecessor", missing.named_by);
        let at = missing.missing;
        report.damages.push(whole(Some(at.id), at.key(), why));
    }
    for id in &options.expect {
        match catalog::find(repository, &Filter::default(), id).await {
            Ok(_) => {}
            Err(Error::Usage(why)) => report.damages.push(whole(None, format!("snapshots/{id}"), why)),
            Err(Error::Damaged { object, what, .. }) => report.damages.push(whole(None, object, what)),
            Err(error) => return Err(error),
        }
    }
    Ok(snapshots)
}

fn whole(snapshot: Option<SessionId>, object: String, why: String) -> Damage {
    Damage { object, why, snapshot, path: None, offset: 0, len: 0 }
}

/// Bad frames that no snapshot needs are reported too, once for each pack.
fn orphans(packs: &Packs, report: &mut VerifyReport) {
    let mut seen: std::collections::HashSet<String> =
        report.damages.iter().map(|d| d.object.clone()).collect();
    for ((pack, _), why) in &packs.bad {
        if seen.insert(pack.key()) {
            report.damages.push(whole(None, pack.key(), format!("{why}; no snapshot is known to need it")));
        }
    }
}

/// What cures packs that are there and damaged inside: a backup looks at their names and sizes only, and goes on to
/// refer to them.
fn advise(packs: &Packs, report: &mut VerifyReport) {
    let is_there = |key: &&str| PackName::from_key(key).is_some_and(|name| packs.sizes.contains_key(&name));
    let objects = report.damages.iter().map(|d| d.object.as_str());
    let there: std::collections::BTreeSet<&str> = objects.filter(is_there).collect();
    if let Some(first) = there.first() {
        report.warnings.push(format!(
            "damaged packs: {}, such as {first}. Backups go on to refer to them. To cure that, restore what only older \
             snapshots have, delete these objects and back up again: what the sources still have is stored anew, also for \
             the older snapshots",
            there.len()
        ));
    }
}

/// Walks snapshots and looks up what they name.
struct Walk<'a> {
    packs: &'a Packs,
    index: &'a Index,
    loader: Arc<PageLoader>,
    progress: &'a Progress,
    report: &'a mut VerifyReport,
}

impl Walk<'_> {
    fn snapshot(&mut self, snapshot: &Listed) -> Result<()> {
        let id = snapshot.at.id;
        match (snapshot.root, snapshot.kind) {
            (None, _) => {
                self.report.damages.push(whole(Some(id), snapshot.at.key(), "has no root".into()));
            }
            (Some(root), VolumeKind::Block) => self.extents(id, None, root)?,
            (Some(root), VolumeKind::Tree) => {
                let mut walk = EntryWalk::forwards(Arc::clone(&self.loader), root);
                loop {
                    match walk.next_entry() {
                        Ok(None) => break,
                        Ok(Some(entry)) => self.entry(id, &entry)?,
                        Err(error) if is_lost(&error) => {
                            let lost = walk.lost().unwrap_or_default();
                            let to = String::from_utf8_lossy(&lost.last).into_owned();
                            self.damage(
                                id,
                                Some(&lost.first),
                                0,
                                lost.bytes,
                                &error,
                                &format!("; all entries to {to}"),
                            );
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, id: SessionId, entry: &Entry) -> Result<()> {
        match &entry.content {
            Content::Empty => Ok(()),
            Content::Paged(root) => self.extents(id, Some(&entry.path), **root),
            Content::Extents(extents) => {
                let mut offset = 0;
                for extent in extents {
                    if let Extent::Chunk { chunk, .. } = extent {
                        self.chunk(id, Some(&entry.path), offset, extent.len(), chunk)?;
                    }
                    offset += extent.len();
                }
                Ok(())
            }
        }
    }

    fn extents(&mut self, id: SessionId, path: Option<&[u8]>, root: PageRef) -> Result<()> {
        let mut walk = ExtentWalk::new(Arc::clone(&self.loader), root);
        let mut end = 0;
        loop {
            match walk.next_from(end) {
                Ok(None) => return Ok(()),
                Ok(Some((offset, item))) => {
                    end = offset + item.len;
                    if let Some(chunk) = item.chunk {
                        self.chunk(id, path, offset, item.len, &chunk)?;
                    }
                }
                Err(error) if is_lost(&error) => {
                    let (offset, len) = walk.lost().unwrap_or((end, root.len - end));
                    end = offset + len;
                    self.damage(id, path, offset, len, &error, "");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A chunk is sound when one of its places is: the hint, or any that the index knows.
    fn chunk(
        &mut self,
        id: SessionId,
        path: Option<&[u8]>,
        offset: u64,
        len: u64,
        chunk: &ChunkRef,
    ) -> Result<()> {
        self.progress.check()?;
        self.report.chunks += 1;
        let hinted = chunk.hint.map(|at| (at, self.packs.fault(&at)));
        if hinted.as_ref().is_some_and(|(_, fault)| fault.is_none()) {
            return Ok(());
        }
        let sound = |at: &Location| self.packs.fault(at).is_none();
        if self.index.find_where(ObjectType::Data, &chunk.id, sound).is_some() {
            return Ok(());
        }
        let indexed = || self.index.find(ObjectType::Data, &chunk.id).map(|at| (at, self.packs.fault(&at)));
        let (object, why) = match hinted.or_else(indexed) {
            Some((at, fault)) => (at.pack.key(), fault.unwrap_or_default()),
            None => ("index".to_owned(), "knows no pack for a chunk".to_owned()),
        };
        let path = path.map(<[u8]>::to_vec);
        // Neighbours that share a fault are one damage: a lost pack takes hundreds of chunks with it.
        if let Some(last) = self.report.damages.last_mut()
            && (&last.object, &last.path, last.snapshot) == (&object, &path, Some(id))
            && last.offset + last.len == offset
        {
            last.len += len;
            return Ok(());
        }
        self.report.damages.push(Damage { object, why, snapshot: Some(id), path, offset, len });
        Ok(())
    }

    fn damage(
        &mut self,
        id: SessionId,
        path: Option<&[u8]>,
        offset: u64,
        len: u64,
        error: &Error,
        also: &str,
    ) {
        let (object, why) = match error {
            Error::Damaged { object, what, .. } => (object.clone(), what.clone()),
            Error::Store(e) => (e.key.clone(), e.message.clone()),
            other => (String::new(), other.to_string()),
        };
        let why = format!("{why}{also}");
        self.report.damages.push(Damage {
            object,
            why,
            snapshot: Some(id),
            path: path.map(<[u8]>::to_vec),
            offset,
            len,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_costs_what_the_architecture_says() {
        assert!(size_of::<Listed>() <= 192, "{}", size_of::<Listed>());
    }
}
