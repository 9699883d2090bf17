//! The parent snapshot: what unchanged data is compared with and taken over from.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::{BackupOptions, ParentChoice};
use crate::entry::{ChunkRef, Content, Extent};
use crate::error::{Error, Result};
use crate::hash::ObjectType;
use crate::index::Index;
use crate::limits::Rate;
use crate::manifest::catalog::{self, Filter};
use crate::manifest::{Manifest, VolumeKind, VolumeName};
use crate::pack::PackName;
use crate::page::extents::ExtentPage;
use crate::page::load::{PageLoader, is_lost};
use crate::page::walk::{EntryCursor, ExtentWalk};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::reading::loader;
use crate::source::tree;

/// The parent, if there is one.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) manifest: Option<Box<Manifest>>,
    lost: Arc<Lost>,
}

/// What could not be read of the parent. A backup goes on without it, and stores again what was in that pack.
#[derive(Debug, Default)]
pub(super) struct Lost(Mutex<Option<String>>);

impl Lost {
    /// `found`, or nothing when that is lost; the caller asks no more then.
    ///
    /// # Errors
    /// Those that say nothing about the parent.
    pub(super) fn or_none<T>(&self, index: &Index, found: Result<Option<T>>) -> Result<(Option<T>, bool)> {
        match found {
            Ok(found) => Ok((found, true)),
            Err(error) if is_lost(&error) => {
                if let Error::Damaged { object, .. } = &error {
                    index.exclude(PackName::from_key(object));
                }
                let warning = format!("going on without the parent snapshot: {error}; run `verify`");
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(warning);
                Ok((None, false))
            }
            Err(error) => Err(error),
        }
    }
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
        Ok(Self { manifest, lost: Arc::default() })
    }

    /// When its run began by the clock of its machine, in milliseconds since the Unix epoch.
    pub(super) fn started(&self) -> Option<u64> {
        self.manifest.as_ref().map(|m| m.local_started_ms).filter(|ms| *ms > 0)
    }

    /// What the user should know about it.
    pub(super) fn warning(&self) -> Option<String> {
        self.lost.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its chunks, if it was cut into chunks of `chunk` bytes.
    pub(super) fn extents(
        &self,
        chunk: u32,
        runtime: &Handle,
        repository: &Repository,
        index: &Arc<Index>,
        progress: &Arc<Progress>,
    ) -> Option<Extents> {
        let manifest = self.manifest.as_ref().filter(|m| m.block_chunk == Some(chunk))?;
        let walk =
            ExtentWalk::new(loader(runtime, repository, index, progress, Rate::unlimited()), manifest.root?);
        Some(Extents { walk: Some(walk), lost: Arc::clone(&self.lost), index: Arc::clone(index) })
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
        let loader = loader(runtime, repository, index, progress, Rate::unlimited());
        let mut cursor = Some(EntryCursor::new(Arc::clone(&loader), root));
        let (lost, index) = (Arc::clone(&self.lost), Arc::clone(index));
        Some(Box::new(move |path| {
            let Some(entries) = &mut cursor else { return Ok(None) };
            let (found, more) = lost.or_none(&index, entries.find(path))?;
            cursor = cursor.take().filter(|_| more);
            let Some(mut entry) = found else { return Ok(None) };
            // Pages that cannot be read cost this file another reading, and the rest of the parent nothing.
            let (may, _) = lost.or_none(&index, may_refer(&index, &loader, &mut entry.content).map(Some))?;
            Ok((may == Some(true)).then_some(entry))
        }))
    }
}

/// True when each chunk of the contents is in a pack that is there and stays; then they say which.
fn may_refer(index: &Index, loader: &PageLoader, content: &mut Content) -> Result<bool> {
    match content {
        Content::Empty => Ok(true),
        Content::Extents(extents) => Ok(extents.iter_mut().all(|extent| match extent {
            Extent::Hole { .. } => true,
            Extent::Chunk { chunk, .. } => {
                chunk.hint = index.still_there(ObjectType::Data, &chunk.id, chunk.hint.as_ref());
                chunk.hint.is_some()
            }
        })),
        // Where its chunks are is in pages, which are read only when some pack is gone, or may be.
        Content::Paged(_) if index.allows(None) => Ok(true),
        Content::Paged(root) => {
            root.chunk.hint =
                index.still_there(ObjectType::Extents, &root.chunk.id, root.chunk.hint.as_ref());
            is_whole(index, loader, &root.chunk, root.level)
        }
    }
}

/// True when a page of level `level`, and everything below it, is in packs that are there and stay.
fn is_whole(index: &Index, loader: &PageLoader, page: &ChunkRef, level: u8) -> Result<bool> {
    if index.still_there(ObjectType::Extents, &page.id, page.hint.as_ref()).is_none() {
        return Ok(false);
    }
    let malformed = PageLoader::malformed(page);
    let decoded = ExtentPage::decode(&loader.load(ObjectType::Extents, page)?).map_err(&malformed)?;
    if decoded.level != level {
        return Err(malformed("page of another level"));
    }
    for chunk in decoded.items.iter().filter_map(|item| item.chunk) {
        let whole = match level {
            0 => index.still_there(ObjectType::Data, &chunk.id, chunk.hint.as_ref()).is_some(),
            _ => is_whole(index, loader, &chunk, level - 1)?,
        };
        if !whole {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The chunks of a block volume's parent.
pub(super) struct Extents {
    walk: Option<ExtentWalk>,
    lost: Arc<Lost>,
    index: Arc<Index>,
}

impl Extents {
    /// The chunk at exactly `offset` with exactly `len` bytes, asked for in ascending order.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn chunk_at(&mut self, offset: u64, len: u64) -> Result<Option<ChunkRef>> {
        let Some(walk) = &mut self.walk else { return Ok(None) };
        let (found, more) = self.lost.or_none(&self.index, walk.chunk_at(offset, len))?;
        self.walk = self.walk.take().filter(|_| more);
        Ok(found)
    }
}
