//! Directory trees, there and back. Fidelity in every detail is shown by `tests/accept`; here the ways of the data.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tradewind_pipeline::patterns::Patterns;
use tradewind_pipeline::restore::RestoreOptions;

use crate::bed::{Bed, engines, noise};

/// Every path below `root` with what makes it what it is: mode, time, size and bytes or target.
pub(crate) fn picture(root: &Path) -> BTreeMap<String, String> {
    fn add(root: &Path, path: &Path, into: &mut BTreeMap<String, String>) {
        let meta = path.symlink_metadata().unwrap();
        let what = if meta.is_symlink() {
            format!("-> {}", path.read_link().unwrap().display())
        } else if meta.is_file() {
            format!("{} {}", meta.len(), blake3_of(path))
        } else {
            "dir".into()
        };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        into.insert(name, format!("{:o} {}.{} {what}", meta.mode(), meta.mtime(), meta.mtime_nsec()));
        if meta.is_dir() {
            for child in fs::read_dir(path).unwrap() {
                add(root, &child.unwrap().path(), into);
            }
        }
    }
    let mut into = BTreeMap::new();
    add(root, root, &mut into);
    into
}

fn blake3_of(path: &Path) -> String {
    blake3::hash(&fs::read(path).unwrap()).to_hex().to_string()
}

/// A tree with small files, files in one bundle, files of several chunks, links and empty things.
pub(crate) fn plant(root: &Path) {
    fs::create_dir_all(root.join("many/deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for n in 0..500u64 {
        fs::write(root.join(format!("many/file-{n:03}")), noise((n * 37 % 5000) as usize, n)).unwrap();
    }
    fs::write(root.join("large"), noise(9_000_001, 1)).unwrap();
    fs::write(root.join("medium"), noise(200_000, 2)).unwrap();
    fs::write(root.join("many/deep/er/zero"), b"").unwrap();
    fs::set_permissions(root.join("medium"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::hard_link(root.join("large"), root.join("many/large-again")).unwrap();
}

#[test]
fn trees_round_trip_and_increments_store_what_changed() {
    for engine in engines() {
        let bed = Bed::new(engine);
        let source = bed.path("source");
        fs::create_dir(&source).unwrap();
        plant(&source);
        let first = bed.backup(&source);
        assert_eq!(first.skipped, 0);
        assert_eq!((first.counts.files, first.counts.others), (504, 1));
        let target = bed.path("target");
        bed.restore(first.manifest.as_ref().unwrap(), &target);
        assert_eq!(picture(&source), picture(&target));
        let ino = |p: &str| target.join(p).metadata().unwrap().ino();
        assert_eq!(ino("large"), ino("many/large-again"));

        fs::write(source.join("many/file-250"), b"changed").unwrap();
        fs::remove_file(source.join("many/file-251")).unwrap();
        fs::write(source.join("added"), noise(1000, 9)).unwrap();
        let second = bed.backup(&source);
        // Files this young are read again, and those beside the changed ones travel in new bundles.
        assert!(second.statistics.new <= 1 << 20, "{:?}", second.statistics);
        let again = bed.path("again");
        bed.restore(second.manifest.as_ref().unwrap(), &again);
        assert_eq!(picture(&source), picture(&again));
        // The first is as it was.
        let old = bed.path("old");
        bed.restore(first.manifest.as_ref().unwrap(), &old);
        assert_eq!(picture(&target), picture(&old));
    }
}

#[test]
fn a_part_is_restored_alone() {
    let bed = Bed::new(engines()[0]);
    let source = bed.path("source");
    fs::create_dir(&source).unwrap();
    plant(&source);
    let manifest = bed.backup(&source).manifest.unwrap();

    let subtree = bed.path("subtree");
    let options = RestoreOptions { subtree: b"many/deep".to_vec(), ..bed.restore_options(&subtree) };
    bed.restore_with(&manifest, options).unwrap();
    assert_eq!(picture(&source.join("many/deep")), picture(&subtree));

    let chosen = bed.path("chosen");
    let includes = Patterns::new(["many/file-00?", "medium"]).unwrap();
    let options = RestoreOptions { includes, ..bed.restore_options(&chosen) };
    bed.restore_with(&manifest, options).unwrap();
    let found: Vec<String> = picture(&chosen).into_keys().collect();
    let mut expected: Vec<String> = (0..10).map(|n| format!("many/file-00{n}")).collect();
    expected.extend(["".into(), "many".into(), "medium".into()]);
    expected.sort();
    assert_eq!(found, expected);

    let nothing = bed.path("nothing");
    let includes = Patterns::new(["no-such-file"]).unwrap();
    assert!(
        bed.restore_with(&manifest, RestoreOptions { includes, ..bed.restore_options(&nothing) }).is_err()
    );
}

#[test]
fn a_file_that_is_written_to_between_its_names_is_stored_as_it_was_each_time() {
    let bed = Bed::new(engines()[0]);
    let tree = bed.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), "first").unwrap();
    fs::hard_link(tree.join("a"), tree.join("z")).unwrap();
    for n in 0..3000 {
        fs::write(tree.join(format!("between-{n:04}")), noise(2000, n)).unwrap();
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::File::options().append(true).open(tree.join("a")).unwrap();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                std::io::Write::write_all(&mut file, b" more").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let report = bed.backup(&tree);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        report
    });
    let target = bed.path("target");
    bed.restore(&report.manifest.unwrap(), &target);
    let text = fs::read_to_string(target.join("z")).unwrap();
    assert!(text.starts_with("first"), "{text}");
}

#[test]
fn a_selection_leaves_what_was_not_selected_alone() {
    let bed = Bed::new(engines()[0]);
    let tree = bed.path("tree");
    for name in ["one", "two"] {
        fs::create_dir_all(tree.join(name)).unwrap();
        fs::write(tree.join(name).join(format!("{name}.txt")), name).unwrap();
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let manifest = bed.backup(&tree).manifest.unwrap();
    fs::remove_file(tree.join("one/one.txt")).unwrap();
    fs::set_permissions(tree.join("two"), fs::Permissions::from_mode(0o700)).unwrap();
    let includes = Patterns::new(["one.txt"]).unwrap();
    let options = RestoreOptions { includes, overwrite: true, ..bed.restore_options(&tree) };
    bed.restore_with(&manifest, options).unwrap();
    assert_eq!(fs::read_to_string(tree.join("one/one.txt")).unwrap(), "one");
    assert_eq!(fs::metadata(tree.join("two")).unwrap().mode() & 0o777, 0o700);
}
