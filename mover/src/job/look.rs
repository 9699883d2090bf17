//! What commands that only look call: snapshots, entries, contents, differences, totals.

use std::ffi::OsStr;
use std::io::Write;

use tradewind_pipeline::entry::{Entry as TreeEntry, EntryKind as TreeKind};
use tradewind_pipeline::manifest::{Manifest, catalog};
use tradewind_pipeline::{Result, browse, stats as totals};

use super::{Repository, Tags, filter, find, kind, lost, moment};
use crate::args::{CatArgs, DiffArgs, LsArgs, Place};
use crate::context::Context;
use crate::output::human::Moment;
use crate::output::listing::{Change, ChangeKind, Entry, EntryKind, Listed, Snapshot};
use crate::output::messages::{Damage, Path};
use crate::output::summaries::{Cat, Stats};

impl From<&Manifest> for Snapshot {
    fn from(m: &Manifest) -> Self {
        Self {
            id: m.id.to_string(),
            volume: m.volume.as_bytes().into(),
            kind: kind(m.kind),
            time: moment(m.finished_ms),
            started: moment(m.started_ms),
            parent: m.parent.map(|id| id.to_string()),
            size_bytes: m.size,
            stored_bytes: m.statistics.stored,
            files: m.counts.files,
            directories: m.counts.directories,
            others: m.counts.others,
            skipped: m.skipped,
            mounts: m.counts.mounts,
            live: m.source.live,
            tags: m.tags.clone(),
        }
    }
}

/// All snapshots that are wanted, and damage among them.
pub(crate) fn snapshots(
    context: &Context,
    repository: &Repository,
    volume: Option<&OsStr>,
    tags: Tags,
) -> Result<(Vec<Snapshot>, Vec<Damage>)> {
    let filter = filter(volume, tags)?;
    let (mut snapshots, mut damages) = (Vec::new(), Vec::new());
    for listed in context.wait(catalog::list(&repository.inner, &filter))? {
        match listed.what {
            catalog::What::Snapshot(m) => snapshots.push(Snapshot::from(&*m)),
            catalog::What::Damaged(reason) => {
                let lost = lost(listed.at.map(|at| at.id), None, 0, 0);
                damages.push(Damage { lost, object: Some(listed.key), reason });
            }
        }
    }
    Ok((snapshots, damages))
}

impl From<&TreeEntry> for Entry {
    fn from(e: &TreeEntry) -> Self {
        let mut raw_target = None;
        let mut mount = false;
        let kind = match &e.kind {
            TreeKind::File => EntryKind::File,
            TreeKind::Directory { mount: m } => {
                mount = *m;
                EntryKind::Directory
            }
            TreeKind::Symlink { target: t } => {
                raw_target = Some(t.clone());
                EntryKind::Symlink
            }
            TreeKind::BlockDevice { .. } => EntryKind::BlockDevice,
            TreeKind::CharDevice { .. } => EntryKind::CharDevice,
            TreeKind::Fifo => EntryKind::Fifo,
            TreeKind::Socket => EntryKind::Socket,
        };
        let target = raw_target.as_deref().map(Path::from);
        let (target, target_hex) = target.map_or((None, None), |t| (Some(t.path), t.path_hex));
        Self {
            path: e.path.as_slice().into(),
            kind,
            mode: e.mode,
            uid: e.uid,
            gid: e.gid,
            size_bytes: e.size,
            mtime: Moment { seconds: e.mtime.seconds, nanos: e.mtime.nanos },
            links: e.links,
            target,
            target_hex,
            mount,
            long: false,
            raw: e.path.clone(),
            raw_target,
        }
    }
}

pub(crate) fn ls(
    context: &Context,
    repository: &Repository,
    args: &LsArgs,
    tags: Tags,
    show: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<Listed> {
    let Place { snapshot, path } = &args.place;
    let manifest = find(context, repository, snapshot, args.selection.volume.as_deref(), tags)?;
    let mut entries = 0;
    let options = browse::LsOptions {
        path: path.clone(),
        recursive: args.recursive,
        cache_dir: context.settings.cache_dir.clone(),
    };
    browse::ls(context.handle(), &repository.inner, &manifest, &options, &context.progress, &mut |entry| {
        entries += 1;
        show(Entry::from(entry))
    })?;
    let volume = manifest.volume.as_bytes().into();
    Ok(Listed { command: "ls", snapshot: manifest.id.to_string(), volume, entries })
}

pub(crate) fn cat(
    context: &Context,
    repository: &Repository,
    args: &CatArgs,
    tags: Tags,
    out: &mut dyn Write,
) -> Result<Cat> {
    let Place { snapshot, path } = &args.place;
    let manifest = find(context, repository, snapshot, args.selection.volume.as_deref(), tags)?;
    let options = browse::CatOptions {
        path: path.clone(),
        limits: repository.limits.clone(),
        cache_dir: context.settings.cache_dir.clone(),
    };
    let written_bytes =
        browse::cat(context.handle(), &repository.inner, &manifest, &options, &context.progress, out)?;
    let volume = manifest.volume.as_bytes().into();
    Ok(Cat { command: "cat", snapshot: manifest.id.to_string(), volume, written_bytes })
}

/// Shows each change and gives the two snapshots' ids.
pub(crate) fn diff(
    context: &Context,
    repository: &Repository,
    args: &DiffArgs,
    tags: Tags,
    show: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<(String, String)> {
    let volume = args.selection.volume.as_deref();
    let from = find(context, repository, &args.from, volume, tags.clone())?;
    let to = find(context, repository, &args.to, volume, tags)?;
    let cache_dir = context.settings.cache_dir.as_deref();
    let (runtime, progress) = (context.handle(), &context.progress);
    browse::diff(runtime, &repository.inner, &from, &to, cache_dir, progress, &mut |change| {
        show(changed(change))
    })?;
    Ok((from.id.to_string(), to.id.to_string()))
}

fn changed(change: browse::Change) -> Change {
    let none = Change {
        change: ChangeKind::Modified,
        path: None,
        path_hex: None,
        offset_bytes: None,
        length_bytes: None,
        size_before_bytes: None,
        size_after_bytes: None,
        raw: Vec::new(),
    };
    match change {
        browse::Change::Range { offset, len } => {
            Change { offset_bytes: Some(offset), length_bytes: Some(len), ..none }
        }
        browse::Change::Entry { before, after, same_contents } => {
            let kind = match (&before, &after) {
                (None, _) => ChangeKind::Added,
                (_, None) => ChangeKind::Removed,
                _ if same_contents => ChangeKind::Metadata,
                _ => ChangeKind::Modified,
            };
            let raw = after.as_ref().or(before.as_ref()).map(|e| e.path.clone()).unwrap_or_default();
            let Path { path, path_hex } = raw.as_slice().into();
            Change {
                change: kind,
                path: Some(path),
                path_hex,
                size_before_bytes: before.map(|e| e.size),
                size_after_bytes: after.map(|e| e.size),
                raw,
                ..none
            }
        }
    }
}

pub(crate) fn stats(context: &Context, repository: &Repository) -> Result<Stats> {
    let total = context.wait(totals::collect(&repository.inner))?;
    Ok(Stats {
        command: "stats",
        repository: repository.inner.location(),
        repository_id: repository.inner.id().to_string(),
        snapshots: total.snapshots,
        volumes: total.volumes,
        volume_bytes: total.volume_bytes,
        packs: total.packs,
        pack_bytes: total.pack_bytes,
        index_segments: total.index_segments,
        index_bytes: total.index_bytes,
        objects: total.objects,
        stored_bytes: total.stored_bytes,
    })
}
