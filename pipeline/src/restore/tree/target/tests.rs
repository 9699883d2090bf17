//! Restores into temporary directories. What only root may do is left out for everyone else.

mod hostile;
mod linked;
mod overwriting;
mod round_trip;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use super::*;
use crate::entry::{Content, Time};
use crate::source::tree::tests::{as_nobody, is_root};

/// An entry at `path`, owned by whoever runs the test.
fn entry(path: impl AsRef<[u8]>, kind: EntryKind) -> Entry {
    let mode = if matches!(kind, EntryKind::Directory { .. }) { 0o755 } else { 0o644 };
    Entry {
        path: path.as_ref().to_vec(),
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Time { seconds: 1_000_000_000, nanos: 123_456_789 },
        ctime: Time::default(),
        size: 0,
        inode: 1,
        device: 1,
        links: 1,
        flags: 0,
        xattrs: Vec::new(),
        content: Content::Empty,
    }
}

const DIRECTORY: EntryKind = EntryKind::Directory { mount: false };

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink { target: target.into() })
}

/// A file of which `links` names exist somewhere.
fn linked(path: &str, inode: u64, links: u32) -> Entry {
    Entry { inode, links, ..entry(path, EntryKind::File) }
}

fn options(overwrite: bool) -> TargetOptions {
    TargetOptions { overwrite, privileged: is_root() }
}

/// Progress that keeps what is reported, as `path: reason`.
fn watched() -> (Progress, Arc<Mutex<Vec<String>>>) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let progress = Progress::default();
    progress.on_skip(move |s| {
        sink.lock().unwrap().push(format!("{}: {}", s.path.escape_ascii(), s.reason));
    });
    (progress, reports)
}

fn reports(reports: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut reports.lock().unwrap())
}

/// Creates a file with these bytes and finishes it.
fn write(target: &TreeTarget<'_>, entry: &Entry, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let entry = Entry { size: bytes.len() as u64, ..entry.clone() };
    if let Some(file) = target.file(&entry).unwrap() {
        file.file().write_all_at(bytes, 0).unwrap();
        target.finish_file(file, &entry).unwrap();
    }
}
