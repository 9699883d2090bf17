//! A sound repository, copies of it that are harmed, and what must hold of every one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tradewind_pipeline::backup::BackupReport;
use tradewind_pipeline::manifest::{Manifest, VolumeKind, VolumeName};
use tradewind_pipeline::repository::{OpenReport, Repository};
use tradewind_pipeline::restore::{Damage, RestoreOptions};
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::verify::{self, Mode, VerifyOptions, VerifyReport};
use tradewind_pipeline::{Error, Kind, Result};

use crate::bed::{Bed, engines, noise, secret};

/// A snapshot and a copy of what it was made from.
pub(super) struct Taken {
    pub(super) manifest: Box<Manifest>,
    pub(super) truth: PathBuf,
    /// Keys of the objects that came with it.
    pub(super) brought: Vec<String>,
}

impl Taken {
    /// The packs of a class (1 data, 2 pages) that came with it: as many as workers had work.
    pub(super) fn packs(&self, bed: &Bed, class: u8) -> Vec<&str> {
        let is = |key: &&str| {
            key.starts_with("packs/") && fs::read(bed.path("repo").join(key)).unwrap()[10] == class
        };
        self.brought.iter().map(String::as_str).filter(is).collect()
    }

    pub(super) fn object(&self, prefix: &str) -> &str {
        self.brought.iter().find(|key| key.starts_with(prefix)).unwrap()
    }
}

/// A repository with two states of an image and of a tree, in this order: image, tree, image, tree.
pub(super) struct Original {
    pub(super) bed: Bed,
    pub(super) taken: Vec<Taken>,
}

const VOLUMES: [&str; 2] = ["image", "tree"];

impl Original {
    pub(super) fn new() -> Self {
        let bed = Bed::new(engines()[0]);
        let (image, tree) = (bed.path("image"), bed.path("tree"));
        fs::write(&image, noise((1 << 20) + 700, 1)).unwrap();
        for (n, len) in (0..30).zip((1000..).step_by(500)) {
            let folder = tree.join(format!("folder-{}", n % 4));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("file-{n}")), noise(len, n)).unwrap();
        }
        fs::write(tree.join("large"), noise(900_000, 50)).unwrap();
        let mut original = Self { bed, taken: vec![] };
        for state in 0..2 {
            if state == 1 {
                let mut bytes = fs::read(&image).unwrap();
                bytes[300_000] ^= 1;
                fs::write(&image, bytes).unwrap();
                fs::write(tree.join("folder-1/file-5"), noise(200_000, 60)).unwrap();
                fs::write(tree.join("added"), b"added").unwrap();
            }
            for volume in VOLUMES {
                let source = original.bed.path(volume);
                let before = original.keys();
                let manifest = original.bed.volume(volume, &source).unwrap().manifest.unwrap();
                let truth = original.bed.path(&format!("truth-{volume}-{state}"));
                copy(&source, &truth);
                let brought = original.keys().difference(&before).cloned().collect();
                original.taken.push(Taken { manifest, truth, brought });
            }
        }
        original
    }

    pub(super) fn keys(&self) -> BTreeSet<String> {
        objects(&self.bed.path("repo"))
    }

    /// A harmed copy: `harm` gets the path of the object `key` in it.
    pub(super) fn harmed(&self, key: &str, harm: impl Fn(&Path)) -> Harmed<'_> {
        let dir = tempfile::tempdir().unwrap();
        copy(&self.bed.path("repo"), &dir.path().join("repo"));
        harm(&dir.path().join("repo").join(key));
        Harmed { original: self, dir, key: key.to_owned() }
    }
}

impl Bed {
    pub(super) fn volume(&self, volume: &str, source: &Path) -> Result<BackupReport> {
        let mut options = self.options(source);
        options.volume = Some(VolumeName::new(volume).unwrap());
        self.backup_with(&options)
    }
}

/// A repository that was harmed and not opened yet.
pub(super) struct Harmed<'a> {
    original: &'a Original,
    dir: tempfile::TempDir,
    key: String,
}

impl<'a> Harmed<'a> {
    /// Opens it with `secret`.
    pub(super) fn try_open(self, secret: &Secret) -> Result<(Opened<'a>, OpenReport)> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = Arc::new(LocalStore::new(self.dir.path().join("repo")).unwrap());
        let (repository, report) = runtime.block_on(Repository::open(store, secret))?;
        let engine = self.original.bed.engine;
        let bed = Bed { dir: self.dir, runtime, repository: Arc::new(repository), engine };
        Ok((Opened { original: self.original, bed, key: self.key }, report))
    }

    pub(super) fn open(self) -> Opened<'a> {
        self.try_open(&secret()).unwrap().0
    }
}

/// A harmed repository that opened.
pub(super) struct Opened<'a> {
    pub(super) original: &'a Original,
    pub(super) bed: Bed,
    pub(super) key: String,
}

impl Opened<'_> {
    pub(super) fn verify(&self, mode: Mode) -> VerifyReport {
        let options = VerifyOptions {
            mode,
            expect: vec![],
            limits: Default::default(),
            cache_dir: Some(self.bed.path("cache")),
        };
        verify::run(self.bed.runtime.handle(), &self.bed.repository, &options, &Arc::default()).unwrap()
    }

    /// Everything is read, and every damage found is in the object that was harmed.
    pub(super) fn only_damage(&self) -> Vec<verify::Damage> {
        let damages = self.verify(Mode::ReadData).damages;
        assert!(!damages.is_empty(), "{}: not found", self.key);
        for damage in &damages {
            assert_eq!(damage.object, self.key, "{damage:?}");
        }
        damages
    }

    /// All snapshots are sound.
    pub(super) fn all_restore(&self) {
        assert_eq!(self.restores(), [false; 4], "{}", self.key);
    }

    /// Restores every snapshot, with and without going on after damage. Returns which of them lost something; of
    /// those everything else is there, what is lost is listed and named after the harmed object, and no byte is wrong.
    pub(super) fn restores(&self) -> [bool; 4] {
        std::array::from_fn(|n| self.restore(&self.original.taken[n], n))
    }

    fn restore(&self, taken: &Taken, n: usize) -> bool {
        let what = format!("{}, snapshot {n}", self.key);
        let strict = self.bed.path(&format!("strict-{n}"));
        let result = self.bed.restore_with(&taken.manifest, self.bed.restore_options(&strict));
        assert_right(&taken.truth, &strict, &what);
        let kept = self.bed.path(&format!("kept-{n}"));
        let options = RestoreOptions { keep_going: true, ..self.bed.restore_options(&kept) };
        let damages = self.bed.restore_with(&taken.manifest, options).unwrap().damages;
        assert_eq!(damages.is_empty(), result.is_ok(), "{what}: {damages:?}, {result:?}");
        if let Err(error) = &result {
            assert_eq!(error.kind(), Kind::Damage, "{what}");
            assert!(error.to_string().contains(&self.key), "{what}: {error}");
        }
        for damage in &damages {
            assert!(damage.why.contains(&self.key), "{what}: {}", damage.why);
        }
        assert_right(&taken.truth, &kept, &what);
        assert_complete(taken, &kept, &damages, &what);
        !damages.is_empty()
    }

    /// The next backup of both volumes; each is whole afterwards. Returns their warnings.
    pub(super) fn backs_up(&self) -> Vec<String> {
        let mut warnings = vec![];
        for volume in VOLUMES {
            let source = self.original.bed.path(volume);
            let report = self.bed.volume(volume, &source).unwrap_or_else(|e| panic!("{}: {e}", self.key));
            warnings.extend(report.warnings);
            let target = self.bed.path(&format!("next-{volume}"));
            self.bed.restore(&report.manifest.unwrap(), &target);
            assert_eq!(contents(&source), contents(&target), "{}", self.key);
        }
        warnings
    }

    /// The next backup of either volume ends with damage of the harmed object, and commits nothing.
    pub(super) fn does_not_back_up(&self) {
        for volume in VOLUMES {
            let before = objects(&self.bed.path("repo/snapshots"));
            match self.bed.volume(volume, &self.original.bed.path(volume)) {
                Err(Error::Damaged { object, .. }) => assert_eq!(object, self.key),
                other => panic!("{}: {other:?}", self.key),
            }
            assert_eq!(objects(&self.bed.path("repo/snapshots")), before);
        }
    }
}

/// Keys below `root`.
fn objects(root: &Path) -> BTreeSet<String> {
    contents(root).into_iter().filter(|(_, bytes)| bytes.is_some()).map(|(path, _)| path).collect()
}

/// Paths below `root` with the bytes of files; the root alone when it is a file, nothing when it is not there.
pub(super) fn contents(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    fn add(root: &Path, path: &Path, into: &mut BTreeMap<String, Option<Vec<u8>>>) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            into.insert(name, None);
            fs::read_dir(path).unwrap().for_each(|e| add(root, &e.unwrap().path(), into));
        } else if let Ok(bytes) = fs::read(path) {
            into.insert(name, Some(bytes));
        }
    }
    let mut into = BTreeMap::new();
    add(root, root, &mut into);
    into
}

fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Whatever is in `found` is either as in `truth` or zeros that stand for something lost.
fn assert_right(truth: &Path, found: &Path, what: &str) {
    let truth = contents(truth);
    for (path, bytes) in contents(found) {
        let (Some(bytes), Some(Some(right))) = (bytes, truth.get(&path)) else {
            assert!(truth.contains_key(&path), "{what}: {path} is not in the snapshot");
            continue;
        };
        let wrong = bytes.iter().zip(right).position(|(b, r)| b != r && *b != 0);
        assert!(wrong.is_none() && bytes.len() <= right.len(), "{what}: {path} is wrong at {wrong:?}");
    }
}

/// What is not as in the snapshot is listed, and something listed is not.
fn assert_complete(taken: &Taken, found: &Path, damages: &[Damage], what: &str) {
    let (truth, found) = (contents(&taken.truth), contents(found));
    let mut lost = 0;
    for (path, right) in &truth {
        let listed = |at: u64| {
            damages.iter().any(|d| {
                // A page of a tree takes all entries from its first on; these trees have one page.
                let whole_page = taken.manifest.kind == VolumeKind::Tree && d.path.is_empty();
                let here = d.path == path.as_bytes() && (d.offset..d.offset + d.len).contains(&at);
                whole_page || here
            })
        };
        let bytes = found.get(path);
        let missing = |at| {
            assert!(listed(at), "{what}: byte {at} of {path} is lost and not listed: {damages:?}");
            1
        };
        lost += match (right, bytes) {
            (Some(right), Some(Some(bytes))) => {
                let differ = (0..right.len()).filter(|n| bytes.get(*n) != Some(&right[*n]));
                differ.map(|n| missing(n as u64)).sum::<usize>()
            }
            (_, Some(_)) => 0,
            (_, None) => missing(0),
        };
    }
    assert_eq!(lost > 0, !damages.is_empty(), "{what}: {damages:?}");
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << (at % 8);
    fs::write(path, bytes).unwrap();
}

pub(super) fn cut(path: &Path, to: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(to).unwrap();
}

pub(super) fn delete(path: &Path) {
    fs::remove_file(path).unwrap();
}
