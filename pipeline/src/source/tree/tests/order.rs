//! Which paths come, and in which order.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::entry::compare;

/// The reference: everything below `dir`, sorted at the end.
fn reference(root: &Path) -> Vec<Vec<u8>> {
    fn collect(dir: &Path, prefix: &[u8], paths: &mut Vec<Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let mut path = prefix.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.file_name().as_bytes());
            if entry.file_type().unwrap().is_dir() {
                collect(&entry.path(), &path, paths);
            }
            paths.push(path);
        }
    }
    let mut paths = vec![Vec::new()];
    collect(root, b"", &mut paths);
    paths.sort_by(|a, b| compare(a, b));
    paths
}

/// Names from few letters, so that prefixes, separators' neighbours and depth are frequent.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let letter =
        prop_oneof![Just(b'a'), Just(b'.'), Just(b'-'), Just(b'0'), Just(1u8), Just(0xffu8), Just(b' ')];
    prop::collection::vec(letter, 1..4).prop_filter("reserved", |n| n != b"." && n != b"..")
}

fn paths() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    prop::collection::vec(prop::collection::vec(name(), 1..6), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_stream_is_sorted_and_complete(paths in paths(), memory in prop_oneof![Just(0usize), Just(4_000), Just(1 << 24)]) {
        let dir = tempfile::tempdir().unwrap();
        for path in &paths {
            let (last, parents) = path.split_last().unwrap();
            let mut at = dir.path().to_owned();
            at.extend(parents.iter().map(|n| OsStr::from_bytes(n)));
            // Where a file is in the way, there is no directory, and the other way round.
            if fs::create_dir_all(&at).is_ok() {
                let _ = fs::write(at.join(OsStr::from_bytes(last)), last);
            }
        }
        let walked = walk(dir.path(), TreeOptions { memory, ..options() });
        prop_assert_eq!(walked.paths(), reference(dir.path()));
        prop_assert!(walked.skipped.is_empty());
        for entry in walked.entries.iter().filter(|e| e.kind == EntryKind::File) {
            let name = capture::name_of(&entry.path);
            prop_assert_eq!(walked.contents[&entry.path].as_slice(), name);
        }
    }
}

#[test]
fn an_excluded_directory_is_not_entered() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["keep/a.o", "keep/a.c", "cache/deep/er", "x/cache/y", "x/z"] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let excludes = Patterns::new(["*.o", "/cache/", "!nothing"]).unwrap();
    let walked = walk(dir.path(), TreeOptions { excludes, ..options() });
    let expected: Vec<&[u8]> = vec![b"", b"keep", b"keep/a.c", b"x", b"x/cache", b"x/cache/y", b"x/z"];
    assert_eq!(walked.paths(), expected);
    assert_eq!(walked.skipped, []);
}

#[test]
fn the_parent_is_asked_in_tree_order() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["a/b", "a.b", "a-b", "c", "d/e/f"] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let asked = Mutex::new(Vec::new());
    let parent: Parent<'_> = Box::new(|path| {
        asked.lock().unwrap().push(path.to_vec());
        Ok(None)
    });
    walk_with(dir.path(), options(), Some(parent), None, &Progress::default());
    let asked = asked.into_inner().unwrap();
    let expected: Vec<&[u8]> = vec![b"a/b", b"a-b", b"a.b", b"c", b"d/e/f"];
    assert_eq!(asked, expected);
}

#[test]
fn mount_points_are_delivered_empty() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for path in ["disk", "bound", "source/inside", "after"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    let mount = |args: &[&str]| {
        std::process::Command::new("mount")
            .current_dir(dir.path())
            .args(args)
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount(&["-t", "tmpfs", "none", "disk"]) || !mount(&["--bind", "source", "bound"]) {
        return;
    }
    fs::write(dir.path().join("disk/file"), "x").unwrap();
    let progress = Progress::default();
    let one = walk_with(dir.path(), options(), None, None, &progress);
    let all = walk(dir.path(), TreeOptions { one_file_system: false, ..options() });
    for path in ["disk", "bound"] {
        std::process::Command::new("umount").arg(dir.path().join(path)).status().unwrap();
    }
    let expected: Vec<&[u8]> = vec![b"", b"after", b"bound", b"disk", b"source", b"source/inside"];
    assert_eq!(one.paths(), expected);
    let mount = |walked: &Walked, path: &str| walked.entry(path).kind == EntryKind::Directory { mount: true };
    assert!(mount(&one, "disk") && mount(&one, "bound") && !mount(&one, "source"));
    assert_eq!(progress.get(Counter::Mounts), 2);
    assert!(all.has("disk/file") && all.has("bound/inside") && !mount(&all, "disk"));
}
