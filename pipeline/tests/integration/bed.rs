//! A repository in a temporary directory, and short ways to back up and restore with it.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tradewind_pipeline::Result;
use tradewind_pipeline::backup::{self, BackupOptions, BackupReport, ParentChoice, Source};
use tradewind_pipeline::io::{EngineChoice, EngineKind, probe};
use tradewind_pipeline::limits::Limits;
use tradewind_pipeline::manifest::{Manifest, VolumeName};
use tradewind_pipeline::patterns::Patterns;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::repository::{InitOptions, Repository};
use tradewind_pipeline::restore::{self, RestoreOptions, RestoreReport, Target};
use tradewind_pipeline::seal::{Level, Secret};
use tradewind_pipeline::store::Store;
use tradewind_pipeline::store::local::LocalStore;

/// A repository and the machine around it.
pub(crate) struct Bed {
    pub(crate) dir: TempDir,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) repository: Arc<Repository>,
    pub(crate) engine: EngineChoice,
}

/// A key file's contents: cheap to derive from, so that tests are quick.
pub(crate) fn secret() -> Secret {
    Secret::KeyFile(vec![7; 64].into())
}

/// Both engines, as far as this kernel has them.
pub(crate) fn engines() -> Vec<EngineChoice> {
    match probe(EngineChoice::Uring) {
        Ok(p) if p.kind == EngineKind::Uring => vec![EngineChoice::Uring, EngineChoice::Pread],
        _ => {
            eprintln!("SKIPPED: io_uring is not to be had here, only pread is tested");
            vec![EngineChoice::Pread]
        }
    }
}

impl Bed {
    /// A new repository in a new directory.
    pub(crate) fn new(engine: EngineChoice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(dir.path().join("repo")).unwrap());
        Self::over(dir, store, engine)
    }

    /// A new repository at `store`.
    pub(crate) fn over(dir: TempDir, store: Arc<dyn Store>, engine: EngineChoice) -> Self {
        Self::with(dir, store, engine, InitOptions::default())
    }

    /// A new repository at `store`, as `options` say.
    pub(crate) fn with(
        dir: TempDir,
        store: Arc<dyn Store>,
        engine: EngineChoice,
        options: InitOptions,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let repository = runtime.block_on(Repository::init(store, &secret(), options)).unwrap();
        Self { dir, runtime, repository: Arc::new(repository), engine }
    }

    /// A path in the bed's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Options for backing up `path` as volume `v`.
    pub(crate) fn options(&self, path: &Path) -> BackupOptions {
        BackupOptions {
            source: Source::Path(path.to_owned()),
            volume: Some(VolumeName::new("v").unwrap()),
            tags: Default::default(),
            parent: ParentChoice::Auto,
            excludes: Patterns::default(),
            live: false,
            dry_run: false,
            one_file_system: true,
            privileged: rustix::process::geteuid().is_root(),
            engine: self.engine,
            limits: Limits::default(),
            level: Level::Auto,
            chunk_size: None,
            cache_dir: Some(self.path("cache")),
            checkpoint_interval: Duration::from_secs(60),
        }
    }

    pub(crate) fn backup_with(&self, options: &BackupOptions) -> Result<BackupReport> {
        backup::run(self.runtime.handle(), &self.repository, options, &Arc::new(Progress::default()))
    }

    pub(crate) fn backup(&self, path: &Path) -> BackupReport {
        self.backup_with(&self.options(path)).unwrap()
    }

    pub(crate) fn restore_options(&self, target: &Path) -> RestoreOptions {
        RestoreOptions {
            target: Target::Path(target.to_owned()),
            subtree: vec![],
            includes: Patterns::default(),
            overwrite: false,
            keep_going: false,
            privileged: rustix::process::geteuid().is_root(),
            engine: self.engine,
            limits: Limits::default(),
            cache_dir: Some(self.path("cache")),
        }
    }

    pub(crate) fn restore_with(&self, manifest: &Manifest, options: RestoreOptions) -> Result<RestoreReport> {
        let progress = Arc::new(Progress::default());
        restore::run(self.runtime.handle(), &self.repository, manifest, options, &progress)
    }

    pub(crate) fn restore(&self, manifest: &Manifest, target: &Path) -> RestoreReport {
        self.restore_with(manifest, self.restore_options(target)).unwrap()
    }
}

/// `len` bytes that do not compress, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// Panics at the first byte in which two files differ, or when their sizes do.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let (fa, fb) = (std::fs::File::open(a).unwrap(), std::fs::File::open(b).unwrap());
    let (la, lb) = (fa.metadata().unwrap().len(), fb.metadata().unwrap().len());
    assert_eq!(la, lb, "sizes of {} and {}", a.display(), b.display());
    let (mut ba, mut bb) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < la {
        let n = usize::try_from((la - at).min(1 << 20)).unwrap();
        fa.read_exact_at(&mut ba[..n], at).unwrap();
        fb.read_exact_at(&mut bb[..n], at).unwrap();
        if ba[..n] != bb[..n] {
            let differ = ba[..n].iter().zip(&bb[..n]).position(|(x, y)| x != y).unwrap();
            panic!("{} and {} differ at byte {}", a.display(), b.display(), at + differ as u64);
        }
        at += n as u64;
    }
}
