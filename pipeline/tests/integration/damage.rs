//! What is said and done when objects are missing or changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tradewind_pipeline::Kind;
use tradewind_pipeline::io::EngineChoice;
use tradewind_pipeline::limits::Limits;
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::restore::RestoreOptions;
use tradewind_pipeline::verify::{self, Mode, VerifyOptions, VerifyReport};

use crate::bed::{Bed, assert_same, noise};

fn verified(bed: &Bed, mode: Mode) -> VerifyReport {
    let options = VerifyOptions { mode, expect: vec![], limits: Limits::default(), cache_dir: None };
    verify::run(bed.runtime.handle(), &bed.repository, &options, &Arc::new(Progress::default())).unwrap()
}

/// Objects whose path below the repository starts with `prefix`, oldest first.
fn objects(bed: &Bed, prefix: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(&bed.path("repo").join(prefix), &mut found);
    found.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    found
}

/// A pack says in its header what it holds.
fn page_packs(bed: &Bed) -> Vec<PathBuf> {
    objects(bed, "packs").into_iter().filter(|path| fs::read(path).unwrap()[10] == 2).collect()
}

fn key(bed: &Bed, path: &Path) -> String {
    path.strip_prefix(bed.path("repo")).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_missing_page_is_damage_and_names_its_pack() {
    let bed = Bed::new(EngineChoice::Auto);
    let image = bed.path("image");
    fs::write(&image, noise(3 << 20, 1)).unwrap();
    let manifest = bed.backup(&image).manifest.unwrap();
    let pack = page_packs(&bed).pop().unwrap();
    fs::remove_file(&pack).unwrap();
    let error = bed.restore_with(&manifest, bed.restore_options(&bed.path("target"))).unwrap_err();
    assert_eq!(error.kind(), Kind::Damage, "{error}");
    assert!(error.to_string().contains(&key(&bed, &pack)), "{error}");
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[test]
fn a_tree_whose_root_is_lost_is_lost_as_a_whole_and_listed() {
    let bed = Bed::new(EngineChoice::Auto);
    let tree = bed.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "contents").unwrap();
    let manifest = bed.backup(&tree).manifest.unwrap();
    fs::remove_file(page_packs(&bed).pop().unwrap()).unwrap();
    let target = bed.path("target");
    let keep_going = RestoreOptions { keep_going: true, ..bed.restore_options(&target) };
    let report = bed.restore_with(&manifest, keep_going).unwrap();
    assert_eq!(report.damages.len(), 1);
    assert_eq!((report.damages[0].path.len(), report.damages[0].len), (0, 8));
    assert!(!target.join("file").exists());
}

#[test]
fn what_a_file_has_lost_is_listed_for_each_of_its_names() {
    let bed = Bed::new(EngineChoice::Auto);
    let tree = bed.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), noise(1000, 1)).unwrap();
    fs::write(tree.join("another"), noise(1000, 2)).unwrap();
    fs::hard_link(tree.join("a"), tree.join("z")).unwrap();
    let manifest = bed.backup(&tree).manifest.unwrap();
    let pages = page_packs(&bed);
    for pack in objects(&bed, "packs").into_iter().filter(|pack| !pages.contains(pack)) {
        fs::remove_file(pack).unwrap();
    }
    let target = bed.path("target");
    let keep_going = RestoreOptions { keep_going: true, ..bed.restore_options(&target) };
    let damages = bed.restore_with(&manifest, keep_going).unwrap().damages;
    let listed: Vec<_> = damages.iter().map(|d| (&d.path[..], d.offset, d.len)).collect();
    assert_eq!(listed, [(&b"a"[..], 0, 1000), (b"another", 0, 1000), (b"z", 0, 1000)]);
}

#[test]
fn a_missing_last_segment_is_noticed_and_rebuilt() {
    let bed = Bed::new(EngineChoice::Auto);
    let image = bed.path("image");
    for seed in 1..3 {
        fs::write(&image, noise(3 << 20, seed)).unwrap();
        bed.backup(&image);
    }
    assert_eq!(verified(&bed, Mode::ReadData).damages, []);
    fs::remove_file(objects(&bed, "index").pop().unwrap()).unwrap();
    let damages = verified(&bed, Mode::Structure).damages;
    assert_eq!(damages.len(), 1, "{damages:?}");
    assert_eq!(damages[0].object, "index");
    assert!(damages[0].snapshot.is_some() && damages[0].why.contains("segment"), "{damages:?}");
    // The same bytes under another name: known again only if the index is whole again.
    let copy = bed.path("copy");
    fs::copy(&image, &copy).unwrap();
    let report = bed.backup(&image);
    assert!(report.warnings.iter().any(|w| w.contains("rebuilt the index of")), "{:?}", report.warnings);
    let mut other = bed.options(&copy);
    other.volume = Some("other".into());
    let report = bed.backup_with(&other).unwrap();
    assert_eq!((report.statistics.new, report.warnings.len()), (0, 0), "{:?}", report.warnings);
    assert_eq!(verified(&bed, Mode::ReadData).damages, []);
    bed.restore(&report.manifest.unwrap(), &bed.path("target"));
    assert_same(&image, &bed.path("target"));
}

#[test]
fn a_changed_session_record_is_named() {
    let bed = Bed::new(EngineChoice::Auto);
    let image = bed.path("image");
    fs::write(&image, noise(1 << 20, 1)).unwrap();
    bed.backup(&image);
    let record = objects(&bed, "sessions").remove(0);
    let mut bytes = fs::read(&record).unwrap();
    bytes[70] ^= 4;
    fs::write(&record, bytes).unwrap();
    let named: Vec<_> = verified(&bed, Mode::ReadData).damages.into_iter().map(|d| d.object).collect();
    assert_eq!(named, [key(&bed, &record)]);
}
