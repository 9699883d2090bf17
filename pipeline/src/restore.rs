//! Restore: the same machine backwards.
//!
//! ```text
//! manifest ─► plan by pack ─► store ─► open ─► write ─► metadata ─► sync, read back a sample
//!
//! planner (this thread)        fetches (async)       workers
//! walks pages, makes ──wants──► ranged reads of ──────► open, check the id,
//! directories                   neighbouring frames     write out of order
//! ```
//! Success is reported after everything is synced and a sample was read back from the disk.

mod block;
mod damages;
pub(crate) mod fetch;
pub(crate) mod plan;
mod sample;
pub(crate) mod stream;
mod tree;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub(crate) use damages::Damages;

use crate::error::{Error, FirstError, Result};
use crate::index::IndexConfig;
use crate::io::{EngineChoice, EngineKind, Pool, Probe, probe};
use crate::limits::{Limits, Plan, plan};
use crate::manifest::{Manifest, SnapshotKey, VolumeKind};
use crate::pack::reader::Opener;
use crate::page::load::PageLoader;
use crate::patterns::Patterns;
use crate::progress::{Counter, Progress};
use crate::repository::Repository;
use crate::repository::reading::{index_warnings, loader, open_index};
use crate::source::Volume;

/// Where to restore to.
pub enum Target {
    /// A directory for a tree; a file or device for a block volume.
    Path(PathBuf),
    /// A stream, in order: standard output. Block volumes only.
    Stream(Box<dyn Write + Send>),
    /// A volume that somebody else has opened, of the snapshot's kind. What is on a block volume is replaced, up to the
    /// snapshot's size, which it has at least; a tree is treated like a directory that exists.
    Volume(Volume),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "Path({})", path.display()),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Volume(volume) => volume.fmt(f),
        }
    }
}

/// How to restore.
#[derive(Debug)]
pub struct RestoreOptions {
    /// Where to.
    pub target: Target,
    /// Only what is below this path of a tree (without leading `/`); empty for everything.
    pub subtree: Vec<u8>,
    /// Only what matches, when not empty. Directories above it are made as needed.
    pub includes: Patterns,
    /// Replace what is there.
    pub overwrite: bool,
    /// Go on after damage; what is lost is in the report.
    pub keep_going: bool,
    /// Restore owners, device nodes, setuid bits, and trusted and security attributes.
    pub privileged: bool,
    /// Which io engine to use.
    pub engine: EngineChoice,
    /// What the run may spend. The upload rate limits fetching, the read rate writing.
    pub limits: Limits,
    /// Where to keep the index cache.
    pub cache_dir: Option<PathBuf>,
}

/// Something that could not be restored because the repository is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Path in the tree, raw; empty for a block volume, and with a length of 0 for what was only counted.
    pub path: Vec<u8>,
    /// First byte of the file or volume that is lost.
    pub offset: u64,
    /// Bytes that are lost.
    pub len: u64,
    /// The object to blame and what is wrong with it.
    pub why: String,
}

/// What a restore did.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// Engine that was used, and why.
    pub engine: Probe,
    /// Things the user should know.
    pub warnings: Vec<String>,
    /// What was lost; empty unless the run was told to keep going. Neighbours that share a reason are one; beyond some
    /// thousands there is one summary for each file, and then a count.
    pub damages: Vec<Damage>,
    /// Items and attributes that could not be restored for other reasons; each was also reported as skipped.
    pub skipped: u64,
    /// Bytes read back and compared after syncing.
    pub sampled: u64,
}

/// Everything a run holds.
pub(crate) struct Run<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) progress: &'a Arc<Progress>,
    pub(crate) engine: EngineKind,
    pub(crate) plan: Plan,
    pub(crate) shared: fetch::Shared,
    pub(crate) damages: Damages,
}

/// Plaintext buffers of a run, unless its workers need more: more would not make it faster.
const MOST_BUFFERS: usize = 256;

/// Restores `manifest`. Blocks; `runtime` carries the store's requests.
///
/// # Errors
/// See [`crate::error::Kind`]. A target that was refused is untouched; one that failed later must not be used.
pub fn run(
    runtime: &Handle,
    repository: &Repository,
    manifest: &Manifest,
    options: RestoreOptions,
    progress: &Arc<Progress>,
) -> Result<RestoreReport> {
    if manifest.kind == VolumeKind::Block && !(options.subtree.is_empty() && options.includes.is_empty()) {
        return Err(Error::Usage("a block volume has no paths: it is restored as a whole".into()));
    }
    let engine = probe(options.engine)?;
    let (run, mut warnings) = Run::prepare(
        runtime,
        repository,
        manifest,
        &options.limits,
        options.cache_dir.as_deref(),
        engine.kind,
        options.keep_going,
        progress,
    )?;
    progress.expect_total(manifest.size);
    let tree = |to| {
        let select = tree::Select { subtree: options.subtree, includes: options.includes };
        tree::restore(&run, manifest, &to, &select, options.overwrite, options.privileged)
    };
    let sampled = match (manifest.kind, options.target) {
        (VolumeKind::Block, Target::Path(path)) => {
            block::restore(&run, manifest, block::Destination::Path { path, overwrite: options.overwrite })?
        }
        (VolumeKind::Block, Target::Volume(Volume::Block { direct, buffered })) => {
            block::restore(&run, manifest, block::Destination::HandedOver { direct, buffered })?
        }
        (VolumeKind::Block, Target::Stream(out)) => stream::restore(&run, manifest, out)?,
        (VolumeKind::Tree, Target::Path(path)) => tree(tree::Destination::Path(path))?,
        (VolumeKind::Tree, Target::Volume(Volume::Tree(root))) => tree(tree::Destination::HandedOver(root))?,
        (VolumeKind::Tree, Target::Stream(_)) => {
            return Err(Error::Usage(
                "a tree cannot be restored to a stream; `cat` gives single files".into(),
            ));
        }
        (VolumeKind::Block, Target::Volume(Volume::Tree(_))) => {
            return Err(other_kind("is a directory, the snapshot is of a block volume"));
        }
        (VolumeKind::Tree, Target::Volume(Volume::Block { .. })) => {
            return Err(other_kind("is a block volume, the snapshot is of a directory"));
        }
    };
    let damages = run.damages.take();
    if manifest.skipped > 0 {
        warnings.push(format!(
            "the snapshot itself is not complete: items skipped, in whole or in part, when it was made: {}",
            manifest.skipped
        ));
    }
    let plainer = progress.get(Counter::Unprivileged);
    if plainer > 0 {
        warnings.push(format!(
            "items without the owner, setuid bits or attributes of the snapshot, which takes privileges: {plainer}"
        ));
    }
    Ok(RestoreReport { engine, warnings, damages, skipped: progress.get(Counter::Skips), sampled })
}

fn other_kind(what: &str) -> Error {
    Error::Target { path: Volume::shown().to_owned(), what: what.into(), source: None }
}

/// Plaintext buffers of `chunk` bytes. Each worker holds one while opening and the others until they are written, so
/// there are two for each, however many workers there are.
fn buffers(plan: &Plan, chunk: usize) -> usize {
    (plan.write_bytes / chunk).min(MOST_BUFFERS).max(2 * plan.workers)
}

impl<'a> Run<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is used once, by name, in two places")]
    pub(crate) fn prepare(
        runtime: &'a Handle,
        repository: &'a Repository,
        manifest: &Manifest,
        limits: &Limits,
        cache_dir: Option<&Path>,
        engine: EngineKind,
        keep_going: bool,
        progress: &'a Arc<Progress>,
    ) -> Result<(Self, Vec<String>)> {
        // Largest chunk of this volume: that is what a plaintext buffer must hold.
        let chunk = match (manifest.block_chunk, manifest.cdc) {
            (Some(bytes), _) => bytes,
            (None, Some(cdc)) => cdc.max,
            (None, None) => crate::chunk::BLOCK_CHUNK,
        }
        .min(crate::pack::reader::MAX_CHUNK) as usize;
        let plan = plan(limits.memory, limits.workers, chunk)?;
        let config = IndexConfig {
            cache_dir: cache_dir.map(Path::to_owned),
            filter_bytes: plan.filter_bytes,
            ..IndexConfig::default()
        };
        let (index, report) = runtime.block_on(open_index(repository, None, &[], &config))?;
        let index = Arc::new(index);
        let loader = loader(runtime, repository, &index, progress, limits.upload_rate.clone());
        let buffers = buffers(&plan, chunk);
        // Room for one frame of the largest size at least, or its fetch would wait for ever.
        let shared = fetch::Shared {
            store: Arc::clone(repository.store()),
            runtime: runtime.clone(),
            index,
            loader,
            failure: Arc::<FirstError>::default(),
            progress: Arc::clone(progress),
            pool: Pool::new(chunk.max(4096), buffers)?,
            fetch_pace: limits.upload_rate.clone(),
            write_pace: limits.read_rate.clone(),
            fetched: Arc::new(Semaphore::new(
                plan.fetch_bytes.max(fetch::LARGEST_FETCH) / usize::try_from(fetch::GRAIN).unwrap_or(1),
            )),
            reads: Arc::new(Semaphore::new(fetch::READS)),
        };
        let damages = Damages::new(keep_going);
        Ok((Self { repository, progress, engine, plan, shared, damages }, index_warnings(&report)))
    }

    /// Key of the manifest's object, for messages.
    pub(crate) fn object(&self, manifest: &Manifest) -> String {
        SnapshotKey { volume: self.repository.volume_key(&manifest.volume), id: manifest.id }.key()
    }

    /// Opens chunks for one worker.
    pub(crate) fn opener(&self) -> Opener {
        let repository = self.repository;
        Opener::new(repository.master().clone(), repository.hasher().clone(), repository.epoch())
    }

    /// Bytes of a planner's window: enough to fill what may be fetched at a time.
    pub(crate) fn window(&self) -> u64 {
        (self.plan.fetch_bytes / 2).max(8 << 20) as u64
    }

    pub(crate) fn loader(&self) -> Arc<PageLoader> {
        Arc::clone(&self.shared.loader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_workers_has_buffers() {
        for workers in [1, 2, 128, 129, 1024] {
            let plan = plan(64 << 30, workers, 1 << 20).unwrap();
            assert_eq!(plan.workers, workers);
            assert_eq!(buffers(&plan, 1 << 20), 256.max(2 * workers));
        }
    }
}
