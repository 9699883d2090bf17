//! Golden repositories: what a released version wrote is opened, verified and restored by this one, for ever.
//!
//! `tests/data/repositories/<version>` holds `repository`, two secrets, and `expected.json`, which was made from the
//! sources and not from the repository. Every version there is tested; `make` makes the next one.

mod listing;
mod make;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tradewind_pipeline::browse::{self, LsOptions};
use tradewind_pipeline::gc;
use tradewind_pipeline::manifest::catalog::{self, Filter};
use tradewind_pipeline::manifest::{self, Commit, Manifest, SnapshotKey, VolumeKind, VolumeName};
use tradewind_pipeline::repository::Repository;
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::verify::{self, Mode, VerifyOptions};

use self::listing::{Item, list};
use crate::bed::{Bed, engines};

/// What a golden repository must turn out to hold.
#[derive(Debug, Serialize, Deserialize)]
struct Expected {
    /// Oldest first.
    snapshots: Vec<Snapshot>,
    /// Snapshots that were forgotten.
    forgotten: Vec<String>,
    /// Sessions of volume `image` that were fenced.
    tombstones: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    id: String,
    volume: String,
    parent: Option<String>,
    /// Of a tree everything in it; of a block volume the file itself.
    items: Vec<Item>,
}

/// What was released: none of these may ever be taken away.
const VERSIONS: [&str; 1] = ["v1"];

fn repositories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/repositories")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A copy of the golden repository in `folder`, opened with `secret`.
fn open(folder: &Path, secret: &Secret) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder.join("repository"), &dir.path().join("repo"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Arc::new(LocalStore::new(dir.path().join("repo")).unwrap());
    let (repository, report) = runtime.block_on(Repository::open(store, secret)).unwrap();
    assert_eq!((report.bad_slots, report.barred), (vec![], vec![]));
    Bed { dir, runtime, repository: Arc::new(repository), engine: engines()[0] }
}

#[test]
fn every_released_repository_restores() {
    let mut versions: Vec<PathBuf> = fs::read_dir(repositories())
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("repository").is_dir())
        .collect();
    versions.sort();
    let names: Vec<_> = versions.iter().filter_map(|p| p.file_name()?.to_str()).collect();
    assert!(
        VERSIONS.iter().all(|version| names.contains(version)),
        "of {VERSIONS:?} there are only {names:?}"
    );
    for folder in versions {
        eprintln!("{}", folder.display());
        let expected: Expected =
            serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let passphrase = Secret::passphrase_from_file(fs::read(folder.join("passphrase")).unwrap());
        let key_file = Secret::key_file(fs::read(folder.join("key-file")).unwrap()).unwrap();
        let bed = open(&folder, &passphrase);
        records(&bed, &expected);
        verified(&bed, &expected);
        // The other secret opens the same, and everything is restored with it.
        let bed = open(&folder, &key_file);
        for snapshot in &expected.snapshots {
            restored(&bed, snapshot);
        }
        known_again(&bed, &expected);
    }
}

fn find(bed: &Bed, id: &str) -> Box<Manifest> {
    bed.runtime.block_on(catalog::find(&bed.repository, &Filter::default(), id)).unwrap()
}

/// Manifests, tombstones, marks and lists of condemned packs say what they said.
fn records(bed: &Bed, expected: &Expected) {
    let repository = &bed.repository;
    let listed = bed.runtime.block_on(catalog::list(repository, &Filter::default())).unwrap();
    let mut found: Vec<String> = listed.iter().map(|l| l.at.unwrap().id.to_string()).collect();
    found.sort();
    assert_eq!(found, expected.snapshots.iter().map(|s| s.id.clone()).collect::<Vec<_>>());
    let chain = bed.runtime.block_on(catalog::check_chain(repository, None)).unwrap();
    assert_eq!((chain.missing, chain.damaged), (vec![], vec![]));
    for snapshot in &expected.snapshots {
        let manifest = find(bed, &snapshot.id);
        assert_eq!(manifest.volume.to_string(), snapshot.volume);
        assert_eq!(manifest.parent.map(|id| id.to_string()), snapshot.parent);
    }
    let at = |volume: &str, id: &String| {
        let name = VolumeName::new(volume).unwrap();
        SnapshotKey { volume: repository.volume_key(&name), id: id.parse().unwrap() }
    };
    for id in &expected.tombstones {
        let commit = bed.runtime.block_on(manifest::read(repository, at("image", id))).unwrap();
        assert!(matches!(commit, Some(Commit::Tombstone(_))), "{commit:?}");
    }
    for id in &expected.forgotten {
        let at = at("gone", id);
        assert!(bed.runtime.block_on(manifest::read_forgotten(repository, at)).unwrap().is_some());
        let commit = bed.runtime.block_on(manifest::read(repository, at)).unwrap();
        assert!(matches!(commit, Some(Commit::Snapshot(_))), "{commit:?}");
    }
    let mut unusable = vec![];
    let newest = bed.runtime.block_on(gc::visit_unusable(repository, 0, &mut |p| unusable.push(p.id[0])));
    // Of two generations: one pack that was deleted, and two that are condemned.
    assert_eq!((newest.unwrap(), unusable), (2, vec![1, 3, 4]));
}

fn verified(bed: &Bed, expected: &Expected) {
    let options = VerifyOptions {
        mode: Mode::ReadData,
        expect: expected.snapshots.iter().map(|s| s.id.clone()).collect(),
        limits: Default::default(),
        cache_dir: Some(bed.path("cache")),
    };
    let report = verify::run(bed.runtime.handle(), &bed.repository, &options, &Arc::default()).unwrap();
    assert_eq!((report.damages, report.warnings), (vec![], vec![]));
    assert_eq!(report.snapshots, expected.snapshots.len() as u64);
    assert_eq!(report.packs_read, report.packs);
}

fn restored(bed: &Bed, snapshot: &Snapshot) {
    let manifest = find(bed, &snapshot.id);
    let target = bed.path(&snapshot.id);
    let report = bed.restore(&manifest, &target);
    assert_eq!(report.damages, []);
    let root = rustix::process::geteuid().is_root();
    // What nobody but root may make is skipped for others, and what no restore sets is not compared.
    let items = list(&target);
    for item in items.iter().filter(|i| !i.sparse) {
        let sparse = snapshot.items.iter().any(|i| i.path == item.path && i.sparse);
        assert!(!sparse, "{}: its holes take space", item.path);
    }
    let wanted: Vec<Item> = snapshot.items.iter().filter_map(|i| i.restorable(root)).collect();
    let found: Vec<Item> = items.iter().filter_map(|i| i.restorable(root)).collect();
    match manifest.kind {
        VolumeKind::Tree => {
            same(&wanted, &found);
            same(&snapshot.items, &listing::of_snapshot(&entries(bed, &manifest), &snapshot.items));
        }
        // Its name, mode and times are those of the target.
        VolumeKind::Block => {
            assert_eq!((&found[0].size, &found[0].blake3), (&wanted[0].size, &wanted[0].blake3));
        }
    }
}

fn same(wanted: &[Item], found: &[Item]) {
    for (wanted, found) in wanted.iter().zip(found) {
        assert_eq!(wanted, found);
    }
    assert_eq!(wanted.len(), found.len());
}

fn entries(bed: &Bed, manifest: &Manifest) -> Vec<tradewind_pipeline::entry::Entry> {
    let options = LsOptions { path: vec![], recursive: true, cache_dir: Some(bed.path("cache")) };
    let mut all = vec![];
    browse::ls(bed.runtime.handle(), &bed.repository, manifest, &options, &Arc::default(), &mut |e| {
        all.push(e.clone());
        Ok(())
    })
    .unwrap();
    all
}

/// What was restored is backed up as the next snapshot of its volume: ids, cut points and bundles are as they were,
/// so no data is stored again, and a block volume has the same root.
fn known_again(bed: &Bed, expected: &Expected) {
    for volume in ["image", "tree"] {
        let last = expected.snapshots.iter().rfind(|s| s.volume == volume).unwrap();
        let before = find(bed, &last.id);
        let mut options = bed.options(&bed.path(&last.id));
        options.volume = Some(VolumeName::new(volume).unwrap());
        let report = bed.backup_with(&options).unwrap();
        let after = report.manifest.unwrap();
        assert_eq!((after.parent, after.predecessors[0]), (Some(before.id), before.id));
        let root = |m: &Manifest| m.root.unwrap().chunk.id;
        match before.kind {
            VolumeKind::Block => assert_eq!((report.statistics.new, root(&after)), (0, root(&before))),
            // Inode numbers and times of change are new, so pages are; the data is known.
            VolumeKind::Tree => assert_eq!(report.statistics.new, 0, "{:?}", report.statistics),
        }
    }
}
