//! What is moved: a held volume as the data plane takes it, and the runs over it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Mode as Bits, OFlags, fcntl_getfl, fstat, fstatvfs, openat};
use tokio::runtime::Handle;
use tradewind_pipeline::backup::{self, BackupOptions, BackupReport};
use tradewind_pipeline::progress::{Counter, Progress};
use tradewind_pipeline::repository::Repository;
use tradewind_pipeline::restore::{self, RestoreOptions, RestoreReport};
use tradewind_pipeline::source::Volume;
use tradewind_pipeline::{Error, Result};

use crate::handover::Held;
use crate::jobs::{Ended, Moved};

/// Opens a held volume: a directory is opened with this agent's rights, a device is taken as it came.
///
/// # Errors
/// When that is refused, or it is something else.
pub(crate) fn opened(held: &Held) -> std::io::Result<Volume> {
    let mut descriptors = held.descriptors()?.into_iter();
    let first = descriptors.next().ok_or_else(|| std::io::Error::other("there is no descriptor"))?;
    if FileType::from_raw_mode(fstat(&first)?.st_mode) == FileType::Directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok(Volume::tree(openat(&first, c".", flags, Bits::empty())?));
    }
    let mut buffered = None;
    let mut direct = None;
    for descriptor in std::iter::once(first).chain(descriptors) {
        let kind: &mut Option<OwnedFd> =
            if fcntl_getfl(&descriptor)?.contains(OFlags::DIRECT) { &mut direct } else { &mut buffered };
        *kind = Some(descriptor);
    }
    let buffered = buffered.ok_or_else(|| std::io::Error::other("it was opened with O_DIRECT only"))?;
    Ok(Volume::block(direct, buffered))
}

/// Bytes that a file system has in use: about what a backup of it will have dealt with. Nothing for a device, whose size
/// the backup knows itself.
pub(crate) fn in_use(volume: &Volume) -> Option<u64> {
    let Volume::Tree(root) = volume else { return None };
    let found = fstatvfs(root).ok()?;
    Some(found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize))
}

/// Backs a volume up, on a thread of its own.
pub(crate) async fn back_up(
    repository: Arc<Repository>,
    options: BackupOptions,
    progress: Arc<Progress>,
) -> Result<BackupReport> {
    blocking(move |runtime| backup::run(runtime, &repository, &options, &progress)).await
}

/// Restores a volume, on a thread of its own.
pub(crate) async fn restore(
    repository: Arc<Repository>,
    manifest: Box<tradewind_pipeline::manifest::Manifest>,
    options: RestoreOptions,
    progress: Arc<Progress>,
) -> Result<RestoreReport> {
    blocking(move |runtime| restore::run(runtime, &repository, &manifest, options, &progress)).await
}

async fn blocking<T: Send + 'static>(run: impl FnOnce(&Handle) -> Result<T> + Send + 'static) -> Result<T> {
    let runtime = Handle::current();
    let done = tokio::task::spawn_blocking(move || run(&runtime)).await;
    done.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}

/// The first items that a run leaves out, once it has: with their reasons.
pub(crate) fn first_skipped(progress: &Progress) -> Arc<Mutex<Vec<String>>> {
    const MOST: usize = 3;
    let first: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&first);
    progress.on_skip(move |item| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST {
            kept.push(format!("{}: {}", String::from_utf8_lossy(&item.path), item.reason));
        }
    });
    first
}

/// How a run has ended: what was left out is a note, not a failure.
pub(crate) fn ended(moved: std::result::Result<Moved, crate::repository::Error>) -> Ended {
    match moved {
        Ok(moved) => Ended::Done(moved),
        Err(crate::repository::Error::Pipeline(Error::Cancelled)) => Ended::Stopped,
        Err(error) => Ended::Failed(error.to_string()),
    }
}

/// What a user should know of a run that is complete as far as it could be.
pub(crate) fn notes(progress: &Progress, skipped: u64, warnings: Vec<String>) -> Vec<String> {
    let left_out = (skipped > 0).then(|| format!("items left out, in whole or in part: {skipped}"));
    let empty = (progress.get(Counter::Done) == 0).then(|| "the volume is empty".to_owned());
    left_out.into_iter().chain(empty).chain(warnings).collect()
}
