//! The end of a run: the manifest is created, or the session is left so that the next run goes on from it.

use std::sync::{Arc, PoisonError};

use super::{BackupReport, Opened, Run};
use crate::entry::PageRef;
use crate::error::{Error, Result};
use crate::manifest::{Counts, Manifest, SourceInfo, Statistics, Text, VolumeKind};
use crate::progress::Counter;
use crate::session::{Committed, Outcome, host_name, supersede};

impl Run<'_> {
    /// Commits what was transferred, or leaves the session so that the next run goes on from it.
    pub(super) fn settle(
        self,
        transferred: Result<(PageRef, u64)>,
        source: &Opened,
        warnings: &mut Vec<String>,
    ) -> Result<BackupReport> {
        warnings.extend(self.parent.warning());
        warnings.extend(self.index.missed_pack().map(|pack| {
            format!(
                "packs that the parent snapshot names are gone from the store or cut short, such as {}: what is \
                 needed of them is stored again; `verify` tells what older snapshots have lost",
                pack.key()
            )
        }));
        let Some(session) = self.session.clone() else {
            let (root, size) = transferred?;
            let manifest = self.manifest(root, size, source);
            return Ok(self.report(None, &manifest));
        };
        let committed = transferred.and_then(|(root, size)| {
            self.progress.check()?;
            self.runtime.block_on(async {
                self.index.finish(self.index_rebuilt).await?;
                session.commit(self.manifest(root, size, source)).await
            })
        });
        match committed {
            Ok(Committed::Done(manifest)) => {
                for leftover in self.leftovers.iter().filter(|l| l.is_over()) {
                    // Their packs are safe now, in this snapshot or in the index. Next time is soon enough too.
                    let _ = self.runtime.block_on(supersede(self.repository, leftover));
                }
                Ok(self.report(Some(manifest.clone()), &manifest))
            }
            Ok(Committed::Overtaken(_)) => {
                let _ = self.runtime.block_on(session.end(Outcome::Failed));
                Err(Error::Conflict(
                    "a collection condemned packs that this run used again: run it again".into(),
                ))
            }
            Err(error) => {
                let outcome = match error {
                    Error::Cancelled => Outcome::Cancelled,
                    _ => Outcome::Failed,
                };
                // What is durable shall be found by the next run; the error that ended this one is what matters.
                let index = Arc::clone(&self.index);
                let _ = self.runtime.block_on(async move {
                    index.flush().await?;
                    session.end(outcome).await
                });
                Err(error)
            }
        }
    }

    fn manifest(&self, root: PageRef, size: u64, source: &Opened) -> Box<Manifest> {
        let kind = source.kind();
        let mut manifest = Manifest::new(self.volume.clone(), kind, Some(root), size);
        let count = |c| self.progress.get(c);
        manifest.parent = self.parent.manifest.as_ref().map(|m| m.id);
        manifest.block_chunk = (kind == VolumeKind::Block).then_some(self.chunk);
        manifest.cdc = (kind == VolumeKind::Tree).then_some(self.repository.config().parameters.cdc);
        manifest.counts = Counts {
            files: count(Counter::Files),
            directories: count(Counter::Directories),
            others: count(Counter::Others),
            mounts: count(Counter::Mounts),
        };
        manifest.source = SourceInfo {
            path: std::os::unix::ffi::OsStrExt::as_bytes(source.path().as_os_str()).to_vec().into(),
            host: host_name(),
            live: self.options.live,
            engine: self.engine.kind.to_string(),
        };
        manifest.tags = self.options.tags.clone();
        manifest.skipped = count(Counter::Skips);
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        manifest.skipped_items = skipped.items().to_vec();
        drop(skipped);
        manifest.statistics = Statistics {
            read: count(Counter::Read),
            holes: count(Counter::Holes),
            reused: count(Counter::Reused),
            new: count(Counter::New),
            stored: count(Counter::Stored),
            uploaded: count(Counter::Uploaded),
            chunks_new: count(Counter::ChunksNew),
            chunks_reused: count(Counter::ChunksReused),
            packs: count(Counter::Packs),
            files_unchanged: count(Counter::FilesUnchanged),
            wall_ms: u64::try_from(self.progress.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        manifest.privileged_metadata = self.options.privileged;
        manifest.excludes = self.options.excludes.given().iter().map(|p| Text::from(p.as_str())).collect();
        manifest.local_started_ms = self.local_started_ms;
        Box::new(manifest)
    }

    fn report(self, committed: Option<Box<Manifest>>, manifest: &Manifest) -> BackupReport {
        BackupReport {
            volume: self.volume,
            kind: manifest.kind,
            live: manifest.source.live,
            parent: manifest.parent,
            engine: self.engine,
            warnings: Vec::new(),
            skipped: manifest.skipped,
            counts: manifest.counts,
            statistics: manifest.statistics,
            manifest: committed,
        }
    }
}
