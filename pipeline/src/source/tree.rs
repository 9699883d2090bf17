//! A directory as a source: one stream of entries in tree order, metadata and small files included.
//!
//! ```text
//! walk ──batches──► capture (several threads) ──by number──► deliver ──► visit
//! lists, sorts,     stat, attributes, open,                  on the caller's thread,
//! asks the parent   read what is small                       in tree order
//! ```
//!
//! On a cold disk, opening and reading several files at a time is worth more than twice the speed; the order is
//! restored by numbering the batches. What is under way is bounded in items, bytes and descriptors ([`prefetch`]),
//! so memory does not depend on the tree: huge directories are sorted on disk, and the directories above the present
//! place keep only what they still have to deliver.
//!
//! One file system: a directory on another device or mount than the one above it, or in another subvolume, is
//! delivered empty with `mount: true` and not entered. A *file* with something mounted on it is read like any other.
//!
//! Trouble with one file is reported through [`Progress::skip`] and the walk goes on. A file that changes while it is
//! read is delivered as it was read, and reported.

mod capture;
mod file;
mod list;
mod prefetch;
mod spill;
mod stat;
mod walk;
mod xattr;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::{self, Builder};
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use rustix::fs::{CWD, Mode, OFlags};

use self::capture::{Capture, Outcome, Rules};
use self::prefetch::{BATCH, Grant, StopOnPanic, WINDOW, Window};
use self::walk::{Batch, Walk};
use crate::entry::{Entry, EntryKind, Time};
use crate::error::{Error, Result};
use crate::patterns::Patterns;
use crate::progress::{Counter, Progress, Station};

pub use self::file::{Buffer, DataRange, Extents, OpenFile, SmallFile};
pub use self::walk::MAX_PATH;

/// Seconds by which a file must have been left alone before the parent snapshot started, to be trusted unread: the
/// coarsest clock of a file system in use (ext3 and HFS+ count whole seconds; others a timer tick).
const GRAIN: i64 = 1;

/// How to walk a tree.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// Do not enter mount points and subvolumes below the root. On by default.
    pub one_file_system: bool,
    /// What to leave out.
    pub excludes: Patterns,
    /// Read `trusted` attributes too, which needs `CAP_SYS_ADMIN`.
    pub privileged: bool,
    /// Threads that look at files and read small ones. At least 1 is used.
    pub prefetch_threads: usize,
    /// Files up to this many bytes are read whole.
    pub inline_limit: u32,
    /// Bytes of names and of small files in flight together.
    pub memory: usize,
    /// Where names go that do not fit into memory.
    pub temp_dir: PathBuf,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            one_file_system: true,
            excludes: Patterns::default(),
            privileged: false,
            prefetch_threads: 8,
            inline_limit: 256 * 1024,
            memory: 16 * 1024 * 1024,
            temp_dir: std::env::temp_dir(),
        }
    }
}

/// One entry of the tree with what is known of its bytes.
#[derive(Debug)]
pub struct Found {
    /// Everything but the bytes. `content` is empty unless `data` is [`FoundData::Unchanged`].
    pub entry: Entry,
    /// The bytes.
    pub data: FoundData,
}

/// The bytes of an entry.
#[derive(Debug)]
pub enum FoundData {
    /// There are none: not a regular file, or empty.
    None,
    /// As in the parent snapshot, whose `content` the entry has. The file was not opened.
    Unchanged,
    /// Read whole.
    Small(SmallFile),
    /// To be read by whoever gets it.
    Large(OpenFile),
}

/// Looks up the parent snapshot's entry at exactly this path. Called for regular files, in ascending tree order.
pub type Parent<'a> = Box<dyn FnMut(&[u8]) -> Result<Option<Entry>> + Send + 'a>;

/// Opens the directory at the top of a tree.
///
/// # Errors
/// [`Error::Source`] when that is not possible.
pub fn open(root: &Path) -> Result<OwnedFd> {
    open_at(CWD, root, root)
}

fn open_at(dir: BorrowedFd<'_>, path: &Path, shown: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty())
        .map_err(|e| Error::source_io(shown, "cannot be opened as a directory", e.into()))
}

/// Walks the tree below the directory `root`, which messages call `shown`, and calls `visit` with each entry on the
/// calling thread, in tree order ([`crate::entry::compare`]), the root first. No path is opened, only names.
///
/// `parent_started` is when the run that made the parent snapshot began, by the clock of the machine that ran it.
/// Files are taken over from the parent only when they were left alone for a while before.
///
/// Counts files, directories, others, mounts, unchanged and vanished files, and the bytes read of small files. Ends
/// with the first error of `visit` or `parent`, with [`Error::Cancelled`] on request, and with [`Error::Source`] when
/// the root cannot be read or descriptors run out. No thread outlives the call.
#[expect(clippy::needless_pass_by_value, reason = "options belong to one walk")]
pub fn stream(
    root: impl AsFd,
    shown: &Path,
    options: TreeOptions,
    parent: Option<Parent<'_>>,
    parent_started: Option<Time>,
    progress: &Progress,
    visit: impl FnMut(Found) -> Result<()>,
) -> Result<()> {
    // A descriptor of our own: listing moves a position, which others may share with `root`.
    let fd = open_at(root.as_fd(), Path::new("."), shown)?;
    let rules = Rules {
        root: shown,
        privileged: options.privileged,
        inline_limit: u64::from(options.inline_limit),
        settled_before: parent_started.map(|t| Time { seconds: t.seconds.saturating_sub(GRAIN), ..t }),
    };
    // Half for names, half for files; of that, what the one batch that never waits may take on top.
    let half = options.memory / 2;
    let window = Window::new(half.saturating_sub(BATCH * options.inline_limit as usize).max(half / 2));

    thread::scope(|scope| {
        let _guard = StopOnPanic(&window);
        // The window bounds what is in the channels, so sending never blocks.
        let capacity = usize::try_from(WINDOW).unwrap_or(usize::MAX);
        let (work, batches) = bounded::<Batch>(capacity);
        let (done, results) = bounded(capacity);
        let spawn_error = |e: io::Error| {
            window.stop();
            Error::Internal(format!("cannot start a thread: {e}"))
        };
        let walk = Walk::new(shown, &options, half, parent, progress, window.clone(), work);
        let walker = Builder::new()
            .name("tree-walk".into())
            .spawn_scoped(scope, {
                let window = &window;
                move || {
                    let _guard = StopOnPanic(window);
                    walk.run(fd)
                }
            })
            .map_err(spawn_error)?;
        for _ in 0..options.prefetch_threads.max(1) {
            let (batches, done, window) = (batches.clone(), done.clone(), &window);
            Builder::new()
                .name("tree-read".into())
                .spawn_scoped(scope, move || {
                    let _guard = StopOnPanic(window);
                    let mut capture = Capture::new(rules, window.clone());
                    for (ticket, items, grant) in batches {
                        if done.send((ticket, capture.batch(ticket, items), grant)).is_err() {
                            return;
                        }
                    }
                })
                .map_err(spawn_error)?;
        }
        drop((batches, done));
        let delivered = deliver(&results, &window, progress, visit);
        // Whatever the reason for the end: nobody may go on waiting.
        window.stop();
        drop(results);
        let walked = walker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        delivered.and(walked)
    })
}

/// Puts batches back in order and hands out what is in them.
fn deliver(
    results: &Receiver<(u64, Vec<Outcome>, Grant)>,
    window: &Window,
    progress: &Progress,
    mut visit: impl FnMut(Found) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    for ticket in 0.. {
        let (outcomes, grant) = loop {
            if let Some(batch) = early.remove(&ticket) {
                break batch;
            }
            let Some((number, outcomes, grant)) = receive(results, progress) else { return Ok(()) };
            early.insert(number, (outcomes, grant));
        };
        for outcome in outcomes {
            progress.check()?;
            match outcome {
                Outcome::Found(finding) => {
                    for reason in finding.warnings {
                        progress.skip(&finding.found.entry.path, reason);
                    }
                    count(&finding.found, progress);
                    progress.add(Counter::FilesUnchanged, u64::from(finding.unchanged));
                    visit(finding.found)?;
                }
                Outcome::Skipped { path, reason } => progress.skip(&path, reason),
                Outcome::Vanished => progress.add(Counter::Vanished, 1),
                Outcome::Failed(error) => return Err(error),
                Outcome::Stopped => return Ok(()),
            }
        }
        drop(grant);
        window.advance();
    }
    Ok(())
}

fn receive<T>(results: &Receiver<T>, progress: &Progress) -> Option<T> {
    match results.try_recv() {
        Ok(result) => Some(result),
        Err(TryRecvError::Disconnected) => None,
        Err(TryRecvError::Empty) => {
            let start = Instant::now();
            let result = results.recv().ok();
            progress.waited_for(Station::Disk, start.elapsed());
            result
        }
    }
}

fn count(found: &Found, progress: &Progress) {
    match found.entry.kind {
        EntryKind::File => progress.add(Counter::Files, 1),
        EntryKind::Directory { mount } => {
            progress.add(Counter::Directories, 1);
            progress.add(Counter::Mounts, u64::from(mount));
        }
        _ => progress.add(Counter::Others, 1),
    }
    if let FoundData::Small(small) = &found.data {
        progress.add(Counter::Read, small.bytes.len() as u64);
    }
}

fn join(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) }
}
