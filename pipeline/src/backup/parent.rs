//! The parent snapshot: what unchanged data is compared with and taken over from.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{BackupOptions, ParentChoice};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::manifest::catalog::{self, Filter};
use crate::manifest::{Manifest, VolumeKind, VolumeName};
use crate::pack::reader::Opener;
use crate::page::load::PageLoader;
use crate::page::walk::{EntryCursor, ExtentWalk};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::source::tree;

/// The parent, if there is one.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) manifest: Option<Box<Manifest>>,
}

impl Parent {
    /// Finds the parent that `options` ask for.
    ///
    /// # Errors
    /// [`Error::Usage`] when the one asked for does not exist or is of another kind; the store's errors.
    pub(super) async fn find(
        repository: &Repository,
        options: &BackupOptions,
        volume: &VolumeName,
        kind: VolumeKind,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let of_volume = Filter { volume: Some(volume.clone()), ..Filter::default() };
        let manifest = match &options.parent {
            ParentChoice::None => None,
            ParentChoice::Auto => {
                let latest = catalog::latest(repository, &of_volume).await?;
                warnings
                    .extend(latest.damaged.iter().map(|d| format!("not used as parent, damaged: {}", d.key)));
                latest.snapshot.filter(|m| m.kind == kind)
            }
            ParentChoice::Id(id) => {
                let manifest = catalog::find(repository, &Filter::default(), id).await?;
                if manifest.kind != kind {
                    return Err(Error::Usage(format!(
                        "snapshot {} is of another kind of volume",
                        manifest.id
                    )));
                }
                Some(manifest)
            }
        };
        Ok(Self { manifest })
    }

    /// When its run began by the clock of its machine, in milliseconds since the Unix epoch.
    pub(super) fn started(&self) -> Option<u64> {
        self.manifest.as_ref().map(|m| m.local_started_ms).filter(|ms| *ms > 0)
    }

    /// Its chunks, if it was cut into chunks of `chunk` bytes.
    pub(super) fn extents(
        &self,
        chunk: u32,
        runtime: &Handle,
        repository: &Repository,
        index: &Arc<Index>,
        progress: &Arc<Progress>,
    ) -> Option<ExtentWalk> {
        let manifest = self.manifest.as_ref().filter(|m| m.block_chunk == Some(chunk))?;
        let loader = loader(runtime, repository, index, progress);
        manifest.root.map(|root| ExtentWalk::new(loader, root))
    }

    /// Its entries by ascending path.
    pub(super) fn entries<'a>(
        &self,
        runtime: &Handle,
        repository: &Repository,
        index: &Arc<Index>,
        progress: &Arc<Progress>,
    ) -> Option<tree::Parent<'a>> {
        let root = self.manifest.as_ref()?.root?;
        let mut cursor = EntryCursor::new(loader(runtime, repository, index, progress), root);
        Some(Box::new(move |path| cursor.find(path)))
    }
}

/// A page loader for `repository`.
pub(crate) fn loader(
    runtime: &Handle,
    repository: &Repository,
    index: &Arc<Index>,
    progress: &Arc<Progress>,
) -> Arc<PageLoader> {
    let opener = Opener::new(repository.master().clone(), repository.hasher().clone(), repository.epoch());
    Arc::new(PageLoader::new(
        Arc::clone(repository.store()),
        Arc::clone(index),
        opener,
        runtime.clone(),
        Arc::clone(progress),
    ))
}
