//! Walks over trees made for the purpose. What only root may make is left out for everyone else.

mod changing;
mod fidelity;
mod limits;
mod order;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::progress::Skipped;

/// Everything a walk delivers, with bytes.
#[derive(Debug, Default)]
struct Walked {
    entries: Vec<Entry>,
    /// Contents by path, holes filled.
    contents: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Data ranges by path.
    ranges: BTreeMap<Vec<u8>, Vec<DataRange>>,
    unchanged: Vec<Vec<u8>>,
    skipped: Vec<Skipped>,
}

impl Walked {
    fn entry(&self, path: &str) -> &Entry {
        self.entries.iter().find(|e| e.path == path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"))
    }

    fn has(&self, path: &str) -> bool {
        self.entries.iter().any(|e| e.path == path.as_bytes())
    }

    fn paths(&self) -> Vec<&[u8]> {
        self.entries.iter().map(|e| &*e.path).collect()
    }

    fn reason(&self, path: &str) -> &str {
        let found = self.skipped.iter().find(|s| s.path == path.as_bytes());
        found.map(|s| &*s.reason).unwrap_or_else(|| panic!("{path} was not reported: {:?}", self.skipped))
    }
}

fn options() -> TreeOptions {
    TreeOptions { privileged: is_root(), prefetch_threads: 3, ..TreeOptions::default() }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// As [`super::stream`], by path.
fn stream(
    root: &Path,
    options: TreeOptions,
    parent: Option<Parent<'_>>,
    started: Option<Time>,
    progress: &Progress,
    visit: impl FnMut(Found) -> Result<()>,
) -> Result<()> {
    super::stream(open(root)?, root, options, parent, started, progress, visit)
}

fn walk(root: &Path, options: TreeOptions) -> Walked {
    walk_with(root, options, None, None, &Progress::default())
}

fn walk_with(
    root: &Path,
    options: TreeOptions,
    parent: Option<Parent<'_>>,
    started: Option<Time>,
    progress: &Progress,
) -> Walked {
    let skipped = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&skipped);
    progress.on_skip(move |s| sink.lock().unwrap().push(s.clone()));
    let mut walked = Walked::default();
    stream(root, options, parent, started, progress, |found| {
        take(&mut walked, found);
        Ok(())
    })
    .unwrap();
    walked.skipped = skipped.lock().unwrap().clone();
    walked
}

fn take(walked: &mut Walked, found: Found) {
    let Found { entry, data } = found;
    let path = entry.path.clone();
    let mut content = vec![0; usize::try_from(entry.size).unwrap()];
    match data {
        FoundData::None => assert_eq!(entry.size, 0),
        FoundData::Unchanged => walked.unchanged.push(path.clone()),
        FoundData::Small(small) => {
            for (range, bytes) in small.parts() {
                let at = usize::try_from(range.offset).unwrap();
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            walked.ranges.insert(path.clone(), small.ranges);
        }
        FoundData::Large(large) => {
            use std::os::unix::fs::FileExt;
            assert_eq!(large.size(), entry.size);
            let ranges: Vec<DataRange> = large.extents().map(Result::unwrap).collect();
            for range in &ranges {
                let at = usize::try_from(range.offset).unwrap();
                let end = at + usize::try_from(range.len).unwrap();
                large.file().read_exact_at(&mut content[at..end], range.offset).unwrap();
            }
            assert_eq!(large.changed().unwrap(), None);
            walked.ranges.insert(path.clone(), ranges);
        }
    }
    walked.contents.insert(path, content);
    walked.entries.push(entry);
}

/// Runs `test` as nobody, who may do nothing special. Nothing when the test itself is not root.
pub(crate) fn as_nobody(test: impl FnOnce() + Send) {
    use rustix::process::{Gid, Uid};
    if !is_root() {
        return;
    }
    // Identities belong to threads; those that the walk starts inherit the one of their parent.
    thread::scope(|scope| {
        scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            test();
        });
    });
}
