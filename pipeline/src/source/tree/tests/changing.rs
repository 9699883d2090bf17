//! Files that change, vanish or cannot be read; and files that did not change.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use super::*;
use crate::entry::{ChunkRef, Content, Extent};
use crate::hash::Id;

#[test]
fn a_small_file_is_stored_as_it_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    type Change = (fn(&Path), &'static [u8], bool);
    let cases: [Change; 4] = [
        (|_| (), b"0123456789", false),
        (
            |p| OpenOptions::new().append(true).open(p).unwrap().write_all(b"more").unwrap(),
            b"0123456789",
            true,
        ),
        (|p| OpenOptions::new().write(true).open(p).unwrap().set_len(4).unwrap(), b"0123", true),
        (|p| OpenOptions::new().write(true).open(p).unwrap().set_len(0).unwrap(), b"", true),
    ];
    for (change, expected, reported) in cases {
        fs::write(&path, "0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let stat = stat::of_fd(&file).unwrap();
        thread::sleep(Duration::from_millis(20)); // beyond a timer tick, which is a time stamp's grain
        change(&path);
        let outcome = capture::tests_only_regular(dir.path(), b"file", file, &stat);
        let Outcome::Found(finding) = outcome else { panic!("not found") };
        let mut walked = Walked::default();
        assert_eq!(!finding.warnings.is_empty(), reported, "{:?}", finding.warnings);
        take(&mut walked, finding.found);
        assert_eq!(walked.contents[&b"file"[..]], expected);
    }
}

#[test]
fn a_large_file_tells_that_it_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![1u8; 100_000]).unwrap();
    let options = TreeOptions { inline_limit: 1_000, ..options() };
    let mut seen = false;
    stream(dir.path(), options, None, None, &Progress::default(), |found| {
        if let FoundData::Large(large) = found.data {
            assert_eq!(large.changed().unwrap(), None);
            assert!(!rustix::fs::fcntl_getfl(&**large.file()).unwrap().contains(OFlags::NONBLOCK));
            File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
            assert!(large.changed().unwrap().unwrap().contains("100001 after"));
            assert_eq!((large.size(), large.path()), (100_000, &b"file"[..]));
            seen = true;
        }
        Ok(())
    })
    .unwrap();
    assert!(seen);
}

#[test]
fn a_leased_file_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "data").unwrap();
    // A lease for writing is broken by any other open. perl, because there is no safe call for it here.
    let program = "open(F, '+<', $ARGV[0]) or die; $SIG{IO} = sub { select(undef, undef, undef, 0.3); exit };
        fcntl(F, 1024, 1) or die; $| = 1; print 'held'; sleep 10;";
    let child = std::process::Command::new("perl")
        .args(["-e", program])
        .arg(dir.path().join("file"))
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    let mut held = [0; 4];
    let is_held = io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut held).is_ok();
    let walked = walk(dir.path(), options());
    child.wait().unwrap();
    if is_held {
        assert_eq!(walked.skipped, []);
        assert_eq!(walked.contents[&b"file"[..]], b"data");
    }
}

#[test]
fn files_may_come_and_go_while_they_are_walked() {
    let dir = tempfile::tempdir().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let progress = Progress::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(1);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let path = dir.path().join(format!("{}", random.u32(0..300)));
                let _ = match random.u32(0..5) {
                    0 => fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)),
                    1 => fs::create_dir(&path),
                    2 => std::os::unix::fs::symlink("x", &path),
                    _ => fs::write(&path, vec![random.u8(..); random.usize(0..3000)]),
                };
            }
        });
        for _ in 0..30 {
            let walked = walk_with(dir.path(), options(), None, None, &progress);
            for (path, content) in &walked.contents {
                let entry = walked.entry(std::str::from_utf8(path).unwrap());
                assert_eq!(content.len() as u64, entry.size);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn what_may_not_be_read_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let set_mode =
        |path: &str, mode| fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    set_mode("", 0o755);
    for path in ["open", "secret", "void", "closed/in", "blind/in", "own/in"] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), if path == "void" { "" } else { "x" }).unwrap();
    }
    for (path, mode) in [("secret", 0o600), ("void", 0o600), ("closed", 0o711), ("blind", 0o744)] {
        set_mode(path, mode);
    }
    as_nobody(|| {
        let walked = walk(root, options());
        assert!(walked.reason("secret").contains("Permission denied"), "{}", walked.reason("secret"));
        assert!(!walked.has("secret"));
        // Nothing is lost with a file that is empty anyway.
        assert!(walked.has("open") && walked.has("void") && walked.has("own/in"));
        // The directory is there, its contents are missing, and that is said.
        assert!(walked.has("closed") && !walked.has("closed/in"));
        assert!(walked.reason("closed").contains("directory cannot be read"));
        assert!(walked.reason("blind/in").contains("Permission denied"));
        assert_eq!(walked.skipped.len(), 3, "{:?}", walked.skipped);
    });
}

fn now() -> Time {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Time { seconds: i64::try_from(now.as_secs()).unwrap(), nanos: now.subsec_nanos() }
}

#[test]
fn unchanged_files_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["same", "empty", "mtime", "size", "replaced"] {
        fs::write(dir.path().join(name), if name == "empty" { "" } else { "data" }).unwrap();
    }
    let mut first = walk(dir.path(), options()).entries;
    let chunk = ChunkRef { id: Id([7; 32]), hint: None };
    let content = Content::Extents(vec![Extent::Chunk { chunk, skip: 0, len: 4 }]);
    for entry in first.iter_mut().filter(|e| e.size > 0) {
        entry.content = content.clone();
        entry.flags = crate::entry::FLAG_NOATIME; // known to the parent only
    }
    let parent = |path: &[u8]| Ok(first.iter().find(|e| e.path == path).cloned());
    File::open(dir.path().join("mtime"))
        .unwrap()
        .set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5)))
        .unwrap();
    fs::write(dir.path().join("size"), "other").unwrap();
    fs::write(dir.path().join("new"), "data").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("replaced")).unwrap();

    // The parent started two seconds after the last change: everything is settled.
    let later = Time { seconds: now().seconds + 2, nanos: 0 };
    let progress = Progress::default();
    let walked = walk_with(dir.path(), options(), Some(Box::new(parent)), Some(later), &progress);
    assert_eq!(walked.unchanged, [b"same"]);
    assert_eq!(walked.entry("same").content, content);
    assert_eq!(walked.entry("same").flags, crate::entry::FLAG_NOATIME);
    assert_eq!(progress.get(Counter::FilesUnchanged), 2, "the empty one as well");
    assert_eq!(progress.get(Counter::Files), 5);
    assert_eq!(progress.get(Counter::Read), 4 + 5 + 4);
    // It started right now, or nobody knows when: the files could have changed since without a trace.
    for started in [Some(now()), None] {
        let progress = Progress::default();
        let walked = walk_with(dir.path(), options(), Some(Box::new(parent)), started, &progress);
        assert!(walked.unchanged.is_empty());
    }
}
