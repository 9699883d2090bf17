//! Large, deep and stopped walks.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use crate::Kind;

#[test]
fn a_directory_of_many_names_is_sorted_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..20_000u32 {
        fs::write(dir.path().join(format!("{:08x}", i.wrapping_mul(2_654_435_761))), "").unwrap();
    }
    let mut last = Vec::new();
    let mut count = 0;
    let options = TreeOptions { memory: 100_000, inline_limit: 4096, ..options() };
    stream(dir.path(), options, None, None, &Progress::default(), |found| {
        assert!(count == 0 || last < found.entry.path);
        last = found.entry.path;
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 20_001);
}

#[test]
fn paths_beyond_the_systems_limit() {
    let dir = tempfile::tempdir().unwrap();
    let name = [b'd'; 100];
    let mut fd: OwnedFd = fs::File::open(dir.path()).unwrap().into();
    // A file before and one behind each directory: the walk has to come back to every level.
    for _ in 0..90 {
        for file in ["a", "z"] {
            let flags = OFlags::CREATE | OFlags::WRONLY;
            rustix::fs::openat(&fd, file, flags, Mode::from_raw_mode(0o600)).unwrap();
        }
        rustix::fs::mkdirat(&fd, &name[..], Mode::from_raw_mode(0o700)).unwrap();
        rustix::fs::symlinkat("nowhere", &fd, "link").unwrap();
        fd = rustix::fs::openat(&fd, &name[..], OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let walked = walk(dir.path(), TreeOptions { memory: 10_000, ..options() });
    assert_eq!(walked.skipped, []);
    assert_eq!(walked.entries.len(), 90 * 4 + 1);
    assert!(walked.entries.iter().any(|e| e.path.len() > 9_000));
    assert!(walked.entries.is_sorted_by(|a, b| crate::entry::compare(&a.path, &b.path).is_lt()));
}

#[test]
fn directories_that_are_moved_while_the_walk_is_below_them() {
    // One move leaves a way back to every level: through `..`, or by the names from the root. With two there is none
    // to what lies between them.
    let moves: [(&[&str], &[&str]); 2] = [(&["d/d/d"], &[]), (&["d/d/d/d", "d/d/d"], &["d/d/d"])];
    for (moves, lost) in moves {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 60).collect();
        fs::create_dir_all(dir.path().join(&deep)).unwrap();
        for file in ["last", "d/z", "d/d/z", "d/d/d/z", "d/d/d/d/z"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        for i in 0..2_000 {
            fs::write(dir.path().join(&deep).join(format!("{i}")), "").unwrap();
        }
        let progress = Progress::default();
        let skipped = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&skipped);
        progress.on_skip(move |s| sink.lock().unwrap().push(String::from_utf8(s.path.clone()).unwrap()));
        let mut files = Vec::new();
        stream(dir.path(), options(), None, None, &progress, |found| {
            // While the walk is still busy at the bottom: there are more names than it runs ahead.
            if found.entry.path.ends_with(b"d/d/0") {
                for (i, from) in moves.iter().enumerate() {
                    fs::rename(dir.path().join(from), elsewhere.path().join(i.to_string())).unwrap();
                }
            }
            if found.entry.path.ends_with(b"z") || found.entry.path == b"last" {
                files.push(found.entry.path);
            }
            Ok(())
        })
        .unwrap();
        let mut expected: Vec<&[u8]> = vec![b"d/d/d/d/z", b"d/d/d/z", b"d/d/z", b"d/z", b"last"];
        expected.retain(|path| !lost.iter().any(|l| *path == format!("{l}/z").as_bytes()));
        assert_eq!(files, expected);
        assert_eq!(*skipped.lock().unwrap(), lost);
    }
}

#[test]
fn an_error_of_the_visitor_ends_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3_000 {
        fs::write(dir.path().join(format!("{i:04}")), "data").unwrap();
    }
    for stop_at in [0, 1, 100, 2_999] {
        let mut seen = 0;
        let result = stream(dir.path(), options(), None, None, &Progress::default(), |_| {
            seen += 1;
            if seen > stop_at { Err(Error::Usage("enough".into())) } else { Ok(()) }
        });
        assert_eq!(result.unwrap_err().kind(), Kind::Usage);
        assert_eq!(seen, stop_at + 1);
    }
    let progress = Progress::default();
    let result = stream(dir.path(), options(), None, None, &progress, |_| {
        progress.cancel();
        Ok(())
    });
    assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
    let parent: Parent<'_> =
        Box::new(|path| if path == b"1000" { Err(Error::Usage("parent".into())) } else { Ok(None) });
    let result = stream(dir.path(), options(), Some(parent), None, &Progress::default(), |_| Ok(()));
    assert_eq!(result.unwrap_err().to_string(), "parent");
}

#[test]
fn a_panic_of_the_visitor_ends_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3_000 {
        fs::write(dir.path().join(format!("{i:04}")), "data").unwrap();
    }
    let result = std::panic::catch_unwind(|| {
        stream(dir.path(), options(), None, None, &Progress::default(), |_| panic!("on purpose"))
    });
    assert!(result.is_err());
}

#[test]
fn a_missing_root_is_a_source_error() {
    let result = stream(Path::new("/nonexistent/x"), options(), None, None, &Progress::default(), |_| Ok(()));
    assert_eq!(result.unwrap_err().kind(), Kind::Source);
    let file = tempfile::NamedTempFile::new().unwrap();
    let result = stream(file.path(), options(), None, None, &Progress::default(), |_| Ok(()));
    assert_eq!(result.unwrap_err().kind(), Kind::Source);
}

#[test]
fn memory_is_bounded_while_the_visitor_is_slow() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..400 {
        fs::write(dir.path().join(format!("{i:04}")), vec![7u8; 10_000]).unwrap();
    }
    // Half of it is for files: 200,000 bytes, of which one batch of 8 may take what it needs.
    let options = TreeOptions { memory: 400_000, inline_limit: 10_000, prefetch_threads: 4, ..options() };
    let mut kept = Vec::new();
    let mut count = 0;
    stream(dir.path(), options, None, None, &Progress::default(), |found| {
        if count == 1 {
            thread::sleep(Duration::from_millis(200));
        }
        count += 1;
        if let FoundData::Small(small) = found.data {
            // Keeping everything slows the walk down to one batch at a time; it must not stop it.
            kept.push(small.bytes);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 401);
    assert_eq!(kept.len(), 400);
}
