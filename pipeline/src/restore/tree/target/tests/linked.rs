//! Hard links.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;

/// Restores one name as a caller does.
fn restore(target: &TreeTarget<'_>, entry: &Entry, bytes: &[u8]) -> Linked {
    let linked = target.link(entry).unwrap();
    if linked == Linked::First {
        let entry = Entry { size: bytes.len() as u64, ..entry.clone() };
        let file = target.file(&entry).unwrap().unwrap();
        if target.remember_link(&entry).unwrap() == Linked::First {
            std::os::unix::fs::FileExt::write_all_at(&**file.file(), bytes, 0).unwrap();
            target.finish_file(file, &entry).unwrap();
        }
    }
    linked
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn names_of_one_file_are_links() {
    let dir = tempfile::tempdir().unwrap();
    let (progress, reported) = watched();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    target.directory(&entry("", DIRECTORY)).unwrap();
    target.directory(&entry("sub", DIRECTORY)).unwrap();
    let size = 4;
    let file = |path: &str, inode| Entry { size, ..linked(path, inode, 3) };
    assert_eq!(restore(&target, &file("a", 7), b"data"), Linked::First);
    assert_eq!(restore(&target, &file("b", 8), b"else"), Linked::First);
    assert_eq!(restore(&target, &file("sub/c", 7), b"data"), Linked::Done);
    // The inode number was used again for another file while the tree was walked.
    assert_eq!(restore(&target, &Entry { size: 2, ..file("d", 7) }, b"me"), Linked::First);
    // Links of what is not a regular file.
    for (path, expected) in [("l1", Linked::First), ("l2", Linked::Done)] {
        let link = Entry { inode: 9, links: 2, ..symlink(path, "nowhere") };
        assert_eq!(target.link(&link).unwrap(), expected);
        if expected == Linked::First {
            target.other(&link).unwrap();
            assert_eq!(target.remember_link(&link).unwrap(), Linked::First);
        }
    }
    target.finish_directory(&entry("sub", DIRECTORY)).unwrap();
    target.finish_directory(&entry("", DIRECTORY)).unwrap();
    let at = |path: &str| fs::symlink_metadata(dir.path().join(path)).unwrap();
    assert_eq!((at("a").ino(), at("a").nlink()), (at("sub/c").ino(), 2));
    assert_eq!((at("b").nlink(), at("d").nlink()), (1, 1));
    assert_eq!((at("l1").ino(), at("l1").nlink()), (at("l2").ino(), 2));
    assert_eq!(names(dir.path()), ["a", "b", "d", "l1", "l2", "sub"]);
    assert_eq!(at("").mtime(), 1_000_000_000, "removing the private directory comes before the root's times");
    assert_eq!(reports(&reported), [""; 0]);
}

#[test]
fn a_file_that_can_take_no_more_links_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (progress, reported) = watched();
    let mut target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    target.links.max_links = Some(4);
    for i in 0..10 {
        restore(&target, &linked(&format!("{i}"), 7, 10), b"");
    }
    drop(target);
    // Four each: the private name becomes the last one.
    let inode = |i: usize| fs::metadata(dir.path().join(i.to_string())).unwrap();
    for i in 0..10 {
        let expected = if i < 8 { 4 } else { 2 };
        assert_eq!((inode(i).nlink(), inode(i).ino()), (expected, inode(i / 4 * 4).ino()), "{i}");
    }
    let apart = |i| format!("{i}: {APART}");
    assert_eq!(reports(&reported), [apart(4), apart(8)]);
    assert_eq!(names(dir.path()).len(), 10);
}

#[test]
fn two_threads_that_find_the_first_name_agree() {
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress::default();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    let (a, b) = (linked("a", 7, 2), linked("b", 7, 2));
    assert_eq!(target.link(&a).unwrap(), Linked::First);
    assert_eq!(target.link(&b).unwrap(), Linked::First);
    let (_a, _b) = (target.file(&a).unwrap().unwrap(), target.file(&b).unwrap().unwrap());
    assert_eq!(target.remember_link(&b).unwrap(), Linked::First);
    assert_eq!(target.remember_link(&a).unwrap(), Linked::Done);
    drop(target);
    let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));

    let dir = tempfile::tempdir().unwrap();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let target = &target;
            scope.spawn(move || {
                for i in 0..200 {
                    restore(target, &linked(&format!("{i}-{thread}"), i, 4), b"");
                }
            });
        }
    });
    drop(target);
    assert_eq!(names(dir.path()).len(), 800);
    for name in names(dir.path()) {
        assert_eq!(fs::metadata(dir.path().join(&name)).unwrap().nlink(), 4, "{name}");
    }
}

#[test]
fn immutable_files_get_their_links_and_their_flag() {
    let dir = tempfile::tempdir().unwrap();
    let probe = File::create(dir.path().join("probe")).unwrap();
    if metadata::change_flags(&probe, 0, FLAG_IMMUTABLE).is_err() {
        return;
    }
    metadata::change_flags(&probe, FLAG_IMMUTABLE, 0).unwrap();
    fs::remove_file(dir.path().join("probe")).unwrap();
    let (progress, reported) = watched();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    for name in ["a", "b", "c"] {
        restore(&target, &Entry { flags: FLAG_IMMUTABLE, ..linked(name, 7, 3) }, b"");
    }
    drop(target);
    assert_eq!(reports(&reported), [""; 0]);
    let a = File::open(dir.path().join("a")).unwrap();
    let flags = rustix::fs::ioctl_getflags(&a).unwrap().bits() & FLAG_IMMUTABLE;
    assert_eq!(names(dir.path()), ["a", "b", "c"]);
    // Restoring over it has to take the flag away first.
    let target = TreeTarget::open(dir.path(), options(true), &progress).unwrap();
    write(&target, &entry("b", EntryKind::File), b"new");
    drop(target);
    let links = a.metadata().unwrap().nlink();
    metadata::change_flags(&a, FLAG_IMMUTABLE, 0).unwrap();
    assert_eq!((flags, links), (FLAG_IMMUTABLE, 2));
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"new");
    assert_eq!(reports(&reported), [""; 0]);
}

#[test]
fn what_a_killed_restore_left_behind_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let progress = Progress::default();
    let target = TreeTarget::open(dir.path(), options(false), &progress).unwrap();
    restore(&target, &linked("a", 7, 2), b"");
    std::mem::forget(target);
    assert_eq!(names(dir.path()).len(), 2);
    let foreign = dir.path().join(".tradewind-links-0123456789abcdef");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("Somebody's notes"), "").unwrap();
    drop(TreeTarget::open(dir.path(), options(true), &progress).unwrap());
    assert_eq!(names(dir.path()), [".tradewind-links-0123456789abcdef", "a"]);
}
