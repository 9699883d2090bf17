//! Looking into snapshots without restoring them: list, print, compare.
//!
//! Only pages on the way are read: listing one directory of a million loads what holds that directory.

mod diff;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

pub use diff::{Change, diff};

use crate::entry::{Content, Entry, EntryKind, PageRef};
use crate::error::{Error, Result};
use crate::index::IndexConfig;
use crate::io::EngineKind;
use crate::limits::{Limits, Rate};
use crate::manifest::{Manifest, VolumeKind};
use crate::page::load::PageLoader;
use crate::page::walk::EntryWalk;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::reading::{loader, open_index};
use crate::restore::{self, stream};

/// What to list.
#[derive(Debug, Clone)]
pub struct LsOptions {
    /// Path in the tree without leading `/`; empty for the root.
    pub path: Vec<u8>,
    /// Everything below, not only the directory itself.
    pub recursive: bool,
    /// Where to keep the index cache.
    pub cache_dir: Option<PathBuf>,
}

/// What to print.
#[derive(Debug, Clone)]
pub struct CatOptions {
    /// Path of a file in a tree without leading `/`; empty for a block volume.
    pub path: Vec<u8>,
    /// What the run may spend.
    pub limits: Limits,
    /// Where to keep the index cache.
    pub cache_dir: Option<PathBuf>,
}

/// Calls `show` with the entries of a directory (or of everything below it), or with the one entry that is no
/// directory, in tree order.
///
/// # Errors
/// [`Error::Usage`] when there is no such path, or for a block volume; damage; the store's errors; what `show` returns.
pub fn ls(
    runtime: &Handle,
    repository: &Arc<Repository>,
    manifest: &Manifest,
    options: &LsOptions,
    progress: &Arc<Progress>,
    show: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    let root = tree_root(manifest)?;
    let loader = page_loader(runtime, repository, options.cache_dir.as_deref(), progress)?;
    let path = clean(&options.path);
    let mut walk = EntryWalk::forwards(loader, root).within(path);
    let Some(first) = walk.next_entry()? else { return Err(no_such_path(path)) };
    if !matches!(first.kind, EntryKind::Directory { .. }) {
        return show(&first);
    }
    if options.recursive {
        show(&first)?;
    }
    let depth = depth(path);
    while let Some(entry) = walk.next_entry()? {
        if options.recursive || self::depth(&entry.path) == depth + 1 {
            show(&entry)?;
        }
    }
    Ok(())
}

/// Writes a file of a tree, or a block volume, to `out`; returns the bytes written.
///
/// # Errors
/// [`Error::Usage`] when there is no such file; damage, always: a stream cannot have gaps; [`Error::Target`] when
/// `out` fails; the store's errors.
pub fn cat(
    runtime: &Handle,
    repository: &Arc<Repository>,
    manifest: &Manifest,
    options: &CatOptions,
    progress: &Arc<Progress>,
    out: &mut dyn Write,
) -> Result<u64> {
    let path = clean(&options.path);
    let cache_dir = options.cache_dir.as_deref();
    let (run, _) = restore::Run::prepare(
        runtime,
        repository,
        manifest,
        &options.limits,
        cache_dir,
        EngineKind::Pread,
        false,
        progress,
    )?;
    let (content, size) = match (manifest.kind, manifest.root) {
        (VolumeKind::Block, Some(root)) if path.is_empty() => (Content::Paged(Box::new(root)), manifest.size),
        (VolumeKind::Block, _) => return Err(no_such_path(path)),
        (VolumeKind::Tree, _) => {
            let mut walk = EntryWalk::forwards(run.loader(), tree_root(manifest)?).within(path);
            match walk.next_entry()? {
                Some(entry) if entry.kind == EntryKind::File => (entry.content, entry.size),
                Some(_) => {
                    let what = match path {
                        [] => "the snapshot is a tree: name a file in it, as in `latest:path`".into(),
                        _ => format!("{}: is not a regular file", String::from_utf8_lossy(path)),
                    };
                    return Err(Error::Usage(what));
                }
                None => return Err(no_such_path(path)),
            }
        }
    };
    progress.expect_total(size);
    stream::write_content(&run, &content, size, out)?;
    Ok(size)
}

fn page_loader(
    runtime: &Handle,
    repository: &Arc<Repository>,
    cache_dir: Option<&Path>,
    progress: &Arc<Progress>,
) -> Result<Arc<PageLoader>> {
    let config = IndexConfig { cache_dir: cache_dir.map(Path::to_owned), ..IndexConfig::default() };
    let (index, _) = runtime.block_on(open_index(repository, None, &[], &config))?;
    Ok(loader(runtime, repository, &Arc::new(index), progress, Rate::unlimited()))
}

fn tree_root(manifest: &Manifest) -> Result<PageRef> {
    match (manifest.kind, manifest.root) {
        (VolumeKind::Tree, Some(root)) => Ok(root),
        (VolumeKind::Tree, None) => Err(Error::damaged("manifest", "a tree without a root")),
        (VolumeKind::Block, _) => {
            Err(Error::Usage(format!("snapshot {} is a block volume: it has no paths", manifest.id)))
        }
    }
}

fn clean(path: &[u8]) -> &[u8] {
    let start = path.iter().take_while(|b| **b == b'/').count();
    let end = path.iter().rev().take_while(|b| **b == b'/').count();
    path.get(start..path.len() - end).unwrap_or_default()
}

fn depth(path: &[u8]) -> usize {
    if path.is_empty() { 0 } else { 1 + path.iter().filter(|b| **b == b'/').count() }
}

fn no_such_path(path: &[u8]) -> Error {
    Error::Usage(format!("{}: no such path in the snapshot", String::from_utf8_lossy(path)))
}
