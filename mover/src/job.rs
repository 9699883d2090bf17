//! The only module that knows the library's entry points: what was asked for becomes a call, what comes back becomes a
//! message. Nothing is decided here that the library or the commands could decide.

mod look;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use tradewind_pipeline::backup::{self, BackupOptions, ParentChoice};
use tradewind_pipeline::io::{EngineChoice, Probe};
use tradewind_pipeline::manifest::{self, Manifest, VolumeName, catalog};
use tradewind_pipeline::pack::SessionId;
use tradewind_pipeline::patterns::Patterns;
use tradewind_pipeline::repository::{InitOptions, Operation, SlotKind};
use tradewind_pipeline::restore::{self, RestoreOptions, Target};
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::store::rate::Rate as PacedStore;
use tradewind_pipeline::store::retry::{Policy, Retry};
use tradewind_pipeline::store::{Store, url};
use tradewind_pipeline::verify::{self, Mode, VerifyOptions};
use tradewind_pipeline::{Error, Result, limits, repository};

pub(crate) use look::{cat, diff, ls, snapshots, stats};

use crate::args::{BackupArgs, Engine, InitArgs, Parent, Place, Privileged, RestoreArgs, VerifyArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::human::Moment;
use crate::output::listing::{Slot, VolumeKind};
use crate::output::messages::{Counters, Damage, Lost, Path};
use crate::output::summaries::{self, Backup, Init, Restore, Verify};
use crate::secret::Ask;

type Tags = BTreeMap<String, String>;

/// What a backup leaves out.
pub(crate) type Excludes = Patterns;

/// An open repository, and the limits that its store and the runs share.
pub(crate) struct Repository {
    inner: Arc<repository::Repository>,
    limits: limits::Limits,
    /// What this version must not do here, and why.
    barred: Vec<String>,
}

// Opening

/// The limits as the library takes them. The upload rate is one with that of the store.
fn limits(context: &Context) -> limits::Limits {
    let asked = context.limits;
    limits::Limits {
        memory: asked.memory,
        workers: asked.workers,
        read_rate: limits::Rate::new(asked.read_rate),
        upload_rate: limits::Rate::new(asked.upload_rate),
    }
}

/// The store with what every run wants around it: each try is paced, what failed for a moment is tried again.
async fn store(context: &Context, limits: &limits::Limits) -> Result<Arc<dyn Store>> {
    let settings = &context.settings;
    let options = url::Options {
        endpoint: settings.endpoint.clone(),
        region: settings.region.clone(),
        path_style: settings.path_style,
        ca_file: settings.ca_file.clone(),
        ..url::Options::default()
    };
    let plain = url::open(&settings.repository, &options).await?;
    let progress = Arc::clone(&context.progress);
    let paced = PacedStore::new(plain, limits.upload_rate.clone(), Arc::clone(&progress));
    Ok(Arc::new(Retry::new(Arc::new(paced), Policy::default(), progress)))
}

pub(crate) fn init(context: &Context, args: &InitArgs, secret: &Secret) -> Result<Init> {
    let options = InitOptions {
        accept_single_writer: args.single_writer,
        label: args.label.clone(),
        ..InitOptions::default()
    };
    let created = context.wait(async {
        let store = store(context, &limits(context)).await?;
        repository::Repository::init(store, secret, options).await
    })?;
    Ok(Init {
        command: "init",
        repository: created.location(),
        repository_id: created.id().to_string(),
        slot: created.slot().to_owned(),
        single_writer: created.single_writer(),
    })
}

pub(crate) fn open(context: &Context) -> Result<Repository> {
    let secret = context.secret(Ask::Once)?;
    let limits = limits(context);
    let (inner, report) = context.wait(async {
        let store = store(context, &limits).await?;
        repository::Repository::open(store, &secret).await
    })?;
    for bad in report.bad_slots {
        context.output.warn(&format!("{}: {}", bad.key, bad.what));
    }
    let barred =
        |(operation, why): (Operation, String)| format!("no `{}` with this version: {why}", operation.name());
    let barred = report.barred.into_iter().map(barred).collect();
    Ok(Repository { inner: Arc::new(inner), limits, barred })
}

/// The snapshot that was asked for.
fn find(
    context: &Context,
    repository: &Repository,
    text: &str,
    volume: Option<&OsStr>,
    tags: Tags,
) -> Result<Box<Manifest>> {
    let filter = filter(volume, tags)?;
    context.wait(catalog::find(&repository.inner, &filter, text))
}

fn filter(volume: Option<&OsStr>, tags: Tags) -> Result<catalog::Filter> {
    let volume = volume.map(|name| VolumeName::new(name.as_bytes())).transpose()?;
    Ok(catalog::Filter { volume, tags })
}

// Runs

fn engine(choice: Engine) -> EngineChoice {
    match choice {
        Engine::Auto => EngineChoice::Auto,
        Engine::Uring => EngineChoice::Uring,
        Engine::Pread => EngineChoice::Pread,
    }
}

fn used(probe: &Probe) -> summaries::Engine {
    summaries::Engine { name: probe.kind.to_string(), reason: probe.why.clone() }
}

fn privileged(choice: Privileged) -> bool {
    match choice {
        Privileged::Auto => rustix::process::geteuid().is_root(),
        Privileged::On => true,
        Privileged::Off => false,
    }
}

fn utf8(text: &OsStr) -> Result<String> {
    let refused = || Error::Usage(format!("{} is not UTF-8", text.to_string_lossy()));
    text.to_str().map(str::to_owned).ok_or_else(refused)
}

fn patterns<'a>(given: impl IntoIterator<Item = &'a OsString>) -> Result<Vec<String>> {
    given.into_iter().map(|pattern| utf8(pattern)).collect()
}

/// Patterns of the flags, then those of the files.
pub(crate) fn excludes(args: &BackupArgs) -> Result<Excludes> {
    let mut all = patterns(&args.excludes)?;
    for file in &args.exclude_files {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Error::Usage(format!("cannot read {}: {e}", file.display())))?;
        all.extend(Patterns::lines(&text).map(str::to_owned));
    }
    Patterns::new(all)
}

pub(crate) fn backup(
    context: &Context,
    repository: &Repository,
    args: &BackupArgs,
    tags: Tags,
    excludes: Excludes,
) -> Result<Backup> {
    let options = BackupOptions {
        source: match args.is_stdin() {
            true => backup::Source::Stdin,
            false => backup::Source::Path(args.source.clone()),
        },
        volume: args.volume.as_deref().map(|name| VolumeName::new(name.as_bytes())).transpose()?,
        tags: tags.clone(),
        parent: match &args.parent {
            None => ParentChoice::Auto,
            Some(Parent::None) => ParentChoice::None,
            Some(Parent::Id(id)) => ParentChoice::Id(id.clone()),
        },
        excludes,
        live: args.live,
        dry_run: args.dry_run,
        one_file_system: !args.cross_file_systems,
        privileged: privileged(args.privileged_metadata),
        engine: engine(args.engine.engine),
        limits: repository.limits.clone(),
        level: args.compression,
        chunk_size: args.chunk_size,
        cache_dir: context.settings.cache_dir.clone(),
        checkpoint_interval: args.checkpoint_interval,
    };
    warn(context, &repository.barred);
    let report = backup::run(context.handle(), &repository.inner, &options, &context.progress)?;
    warn(context, &report.warnings);
    Ok(Backup {
        command: "backup",
        outcome: Outcome::of(0, report.skipped),
        snapshot: report.manifest.as_ref().map(|m| m.id.to_string()),
        volume: report.volume.as_bytes().into(),
        kind: kind(report.kind),
        parent: report.parent.map(|id| id.to_string()),
        tags,
        dry_run: args.dry_run,
        live: report.live,
        counters: Counters::from(&*context.progress),
        mounts: report.counts.mounts,
        engine: used(&report.engine),
        elapsed_seconds: context.progress.elapsed().as_secs_f64(),
    })
}

fn warn(context: &Context, warnings: &[String]) {
    for warning in warnings {
        context.output.warn(warning);
    }
}

fn kind(kind: manifest::VolumeKind) -> VolumeKind {
    match kind {
        manifest::VolumeKind::Tree => VolumeKind::Tree,
        manifest::VolumeKind::Block => VolumeKind::Block,
    }
}

pub(crate) fn restore(
    context: &Context,
    repository: &Repository,
    args: &RestoreArgs,
    tags: Tags,
    output: Option<std::fs::File>,
) -> Result<(Restore, impl Iterator<Item = Damage> + use<>)> {
    let includes = Patterns::new(patterns(&args.includes)?)?;
    let Place { snapshot, path } = &args.place;
    let manifest = find(context, repository, snapshot, args.selection.volume.as_deref(), tags)?;
    let options = RestoreOptions {
        target: match output {
            Some(file) => Target::Stream(Box::new(file)),
            None => Target::Path(args.target.clone()),
        },
        subtree: path.clone(),
        includes,
        overwrite: args.overwrite,
        keep_going: args.keep_going,
        privileged: privileged(args.privileged_metadata),
        engine: engine(args.engine.engine),
        limits: repository.limits.clone(),
        cache_dir: context.settings.cache_dir.clone(),
    };
    let report = restore::run(context.handle(), &repository.inner, &manifest, options, &context.progress)?;
    warn(context, &report.warnings);
    let is_tree = manifest.kind == manifest::VolumeKind::Tree;
    let damages = report.damages.len() as u64;
    let summary = Restore {
        command: "restore",
        outcome: Outcome::of(damages, report.skipped),
        snapshot: manifest.id.to_string(),
        volume: manifest.volume.as_bytes().into(),
        kind: kind(manifest.kind),
        target: args.target.to_string_lossy().into_owned(),
        counters: Counters::from(&*context.progress),
        damages,
        engine: used(&report.engine),
        elapsed_seconds: context.progress.elapsed().as_secs_f64(),
    };
    let id = manifest.id;
    // One after the other, when they are written: they may be thousands.
    Ok((summary, report.damages.into_iter().map(move |damage| restored(id, is_tree, damage))))
}

fn restored(snapshot: SessionId, is_tree: bool, damage: restore::Damage) -> Damage {
    let restore::Damage { path, offset, len, why } = damage;
    // What was only counted has no place.
    let path = (is_tree && (len > 0 || !path.is_empty())).then_some(&path);
    Damage {
        lost: lost(Some(snapshot), path, offset, len),
        object: None,
        // An error's text says it too.
        reason: why.strip_prefix("damaged: ").map(str::to_owned).unwrap_or(why),
    }
}

fn lost(snapshot: Option<SessionId>, path: Option<&Vec<u8>>, offset: u64, len: u64) -> Lost {
    let path = path.map(|p| Path::from(p.as_slice()));
    let (path, path_hex) = path.map_or((None, None), |p| (Some(p.path), p.path_hex));
    Lost {
        snapshot: snapshot.map(|id| id.to_string()),
        path,
        path_hex,
        offset_bytes: (len > 0).then_some(offset),
        length_bytes: (len > 0).then_some(len),
    }
}

pub(crate) fn verify(
    context: &Context,
    repository: &Repository,
    args: &VerifyArgs,
) -> Result<(Verify, impl Iterator<Item = Damage> + use<>)> {
    let (mode, name) = match args.sample {
        Some(share) => (Mode::Sample(share), "sample"),
        None if args.read_data => (Mode::ReadData, "read_data"),
        None => (Mode::Structure, "structure"),
    };
    let options = VerifyOptions {
        mode,
        expect: args.expect.clone(),
        limits: repository.limits.clone(),
        cache_dir: context.settings.cache_dir.clone(),
    };
    let report = verify::run(context.handle(), &repository.inner, &options, &context.progress)?;
    warn(context, &report.warnings);
    let damages = report.damages.len() as u64;
    let summary = Verify {
        command: "verify",
        outcome: Outcome::of(damages, 0),
        mode: name,
        sample: args.sample,
        snapshots: report.snapshots,
        packs: report.packs,
        chunks: report.chunks,
        packs_read: report.packs_read,
        checked_bytes: report.checked,
        counters: Counters::from(&*context.progress),
        damages,
        elapsed_seconds: context.progress.elapsed().as_secs_f64(),
    };
    let lost = |d: verify::Damage| Damage {
        lost: lost(d.snapshot, d.path.as_ref(), d.offset, d.len),
        object: Some(d.object),
        reason: d.why,
    };
    Ok((summary, report.damages.into_iter().map(lost)))
}

// Keys

/// Milliseconds since the Unix epoch, as the store's clock counts.
fn moment(ms: u64) -> Moment {
    let nanos = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
    Moment { seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX), nanos }
}

pub(crate) fn slots(context: &Context, repository: &Repository) -> Result<Vec<Slot>> {
    // What cannot be used was remarked upon when the repository was opened.
    let (slots, _) = context.wait(repository.inner.list_keys())?;
    let slot = |info: repository::SlotInfo| Slot {
        opened: info.name == repository.inner.slot(),
        slot: info.name,
        kind: match info.kind {
            SlotKind::Passphrase => "passphrase",
            SlotKind::KeyFile => "key file",
        },
        label: info.label,
        created: moment(info.created_ms),
    };
    Ok(slots.into_iter().map(slot).collect())
}

pub(crate) fn add_slot(
    context: &Context,
    repository: &Repository,
    secret: &Secret,
    label: &str,
) -> Result<String> {
    context.wait(repository.inner.add_key(secret, label)).map(|info| info.name)
}

pub(crate) fn change_slot(
    context: &Context,
    mut repository: Repository,
    secret: &Secret,
    label: Option<&str>,
) -> Result<String> {
    let shared = || Error::Internal("the repository is in use".to_owned());
    let inner = Arc::get_mut(&mut repository.inner).ok_or_else(shared)?;
    let (info, failed) = context.wait(inner.change_key(secret, label))?;
    if let Some(error) = failed {
        context.output.warn(&format!("the old key slot is still there: {error}"));
    }
    Ok(info.name)
}

/// Gives the name of the removed slot.
pub(crate) fn remove_slot(context: &Context, repository: &Repository, slot: &str) -> Result<String> {
    context.wait(repository.inner.remove_key(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_only_counted_has_no_place() {
        let of = |is_tree, path: &[u8], len| {
            let why = "damaged: packs/a: is missing".to_owned();
            let damage = restore::Damage { path: path.to_vec(), offset: 0, len, why };
            let Damage { lost, reason, .. } = restored(SessionId([1; 12]), is_tree, damage);
            assert_eq!(reason, "packs/a: is missing");
            (lost.path, lost.length_bytes)
        };
        assert_eq!(of(true, b"a/b", 5), (Some("a/b".to_owned()), Some(5)));
        assert_eq!(of(true, b"a/b", 0), (Some("a/b".to_owned()), None));
        // The page of the root takes the tree with it.
        assert_eq!(of(true, b"", 5), (Some(String::new()), Some(5)));
        assert_eq!(of(true, b"", 0), (None, None));
        assert_eq!(of(false, b"", 5), (None, Some(5)));
    }
}
