//! Restores a tree in three passes: create, data, metadata of directories (children before parents).
//!
//! A file whose bytes lie in one chunk is made, filled and finished by the worker that opens the chunk, so many small
//! files are restored at the same time and none of them is kept open. Only files of several chunks, and files with
//! further links, are made by the planner.

mod target;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::AcqRel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use self::target::{Linked, TargetFile, TargetOptions, TreeTarget};
use super::fetch::{Deliver, Fetcher, fetcher};
use super::sample::Sample;
use super::{Damages, Run};
use crate::entry::{Content, Entry, EntryKind, Extent};
use crate::error::{Error, FirstError, Result};
use crate::manifest::Manifest;
use crate::page::load::is_lost;
use crate::page::walk::{EntryWalk, ExtentWalk, Lost};
use crate::patterns::Patterns;
use crate::progress::{Counter, Progress};

/// Files that are open at the same time, at most: below the usual limit of 1,024 descriptors with room for the rest.
pub(super) const OPEN_FILES: usize = 256;

/// Bytes of memory that their entries may take, but for the one that passes it.
const OPEN_BYTES: usize = 8 << 20;

/// What of a tree is restored.
#[derive(Debug)]
pub(super) struct Select {
    pub(super) subtree: Vec<u8>,
    pub(super) includes: Patterns,
}

impl Select {
    /// The entry as it is to be restored, below the selected subtree.
    fn place(&self, mut entry: Entry) -> Option<Entry> {
        if self.subtree.is_empty() {
            return Some(entry);
        }
        let rest = entry.path.strip_prefix(&self.subtree[..])?;
        entry.path = match rest {
            [] if matches!(entry.kind, EntryKind::Directory { .. }) => Vec::new(),
            // A single file goes into the target under its own name.
            [] => entry.path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec(),
            [b'/', rest @ ..] => rest.to_vec(),
            _ => return None,
        };
        Some(entry)
    }

    /// True when the entry, or a directory above it, is wanted.
    fn wants(&self, entry: &Entry) -> bool {
        if self.includes.is_empty() {
            return true;
        }
        let path = &entry.path;
        let directory = matches!(entry.kind, EntryKind::Directory { .. });
        let above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(n, _)| &path[..n]);
        self.includes.matches(path, directory) || above.into_iter().any(|p| self.includes.matches(p, true))
    }
}

/// Where a tree is restored to.
pub(super) enum Destination {
    /// A directory, which is made where there is none.
    Path(PathBuf),
    /// A directory of somebody else's.
    HandedOver(Arc<OwnedFd>),
}

/// Restores the tree of `manifest` to the destination; returns the bytes read back.
///
/// # Errors
/// [`Error::Target`] when the target is refused (then untouched) or cannot be written; damage; the store's errors.
pub(super) fn restore(
    run: &Run<'_>,
    manifest: &Manifest,
    to: &Destination,
    select: &Select,
    overwrite: bool,
    privileged: bool,
) -> Result<u64> {
    let root =
        manifest.root.ok_or_else(|| Error::damaged(run.object(manifest), "manifest without a root"))?;
    let options = TargetOptions { overwrite, privileged };
    let (target, new) = match to {
        Destination::Path(path) => {
            let is_new = !path.exists();
            (TreeTarget::open(path, options, run.progress)?, is_new.then_some(path))
        }
        Destination::HandedOver(root) => (TreeTarget::handed_over(root, options, run.progress)?, None),
    };
    let sample = Sample::default();
    let (fetcher, deliveries) = fetcher::<To>(&run.shared, run.window());
    let open = OpenFiles::default();
    let planned = std::thread::scope(|scope| -> Result<()> {
        for _ in 0..run.plan.workers {
            let (deliveries, opener) = (deliveries.clone(), run.opener());
            let writer = Writer {
                target: &target,
                sample: &sample,
                root: target.path(),
                damages: &run.damages,
                progress: run.progress,
                open: &open,
            };
            scope.spawn(move || deliveries.run(opener, writer));
        }
        drop(deliveries);
        let walk = EntryWalk::forwards(run.loader(), root).within(&select.subtree);
        Planner { run, target: &target, fetcher, open: &open, above: Vec::new(), found: false }
            .plan(walk, select)
    });
    if let (Some(path), Err(Error::Usage(_))) = (new, &planned) {
        // Asked for something that is not there: nothing was written, and nothing is left. Not empty, it stays.
        let _ = std::fs::remove_dir(path);
    }
    run.shared.failure.take()?;
    planned?;
    let mut walk = EntryWalk::backwards(run.loader(), root).within(&select.subtree);
    // What is below a directory comes right before it.
    let mut wanted = Vec::new();
    loop {
        match walk.next_entry() {
            Ok(None) => break,
            Ok(Some(entry)) => {
                let Some(entry) = select.place(entry) else { continue };
                let wants = select.wants(&entry);
                if wants {
                    wanted.clone_from(&entry.path);
                }
                let directory = matches!(entry.kind, EntryKind::Directory { .. });
                if directory && (wants || is_above(&entry.path, &wanted)) {
                    target.finish_directory(&entry)?;
                } else if entry.links > 1 && !directory && wants {
                    run.damages.note_link(&entry);
                }
            }
            // Noted on the way forwards.
            Err(error) if is_lost(&error) => {}
            Err(error) => return Err(error),
        }
    }
    target.sync()?;
    sample.check(|(path, file): &Written| {
        let file = file.try_clone().map_err(|e| Error::target_io(path, "cannot read back", e))?;
        Ok((path.clone(), file))
    })
}

/// True when `path` is below the directory `above`.
fn is_above(above: &[u8], path: &[u8]) -> bool {
    above.is_empty() || path.get(above.len()) == Some(&b'/') && path.starts_with(above)
}

/// A file that was written, for reading a sample back.
type Written = (PathBuf, Arc<File>);

/// Who wants a chunk.
enum To {
    /// A file with all its bytes in this chunk.
    Whole { entry: Box<Entry>, skip: u32 },
    /// A part of an open file.
    Part { file: Arc<Open>, offset: u64, skip: u32, len: u32 },
}

/// A file whose parts arrive in any order.
struct Open {
    entry: Entry,
    file: Arc<File>,
    /// Taken by whoever finishes the file.
    target: Mutex<Option<TargetFile>>,
    /// Parts that are not written yet, and one for the planner while it still adds some.
    left: AtomicU64,
}

/// Counts open files and what their entries take.
#[derive(Debug, Default)]
struct OpenFiles {
    held: Mutex<Held>,
    closed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    files: usize,
    bytes: usize,
}

impl Held {
    fn is_full(&self) -> bool {
        self.files >= OPEN_FILES || self.bytes >= OPEN_BYTES
    }
}

impl OpenFiles {
    fn is_full(&self) -> bool {
        self.held().is_full()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, entry: &Entry) {
        let mut held = self.held();
        held.files += 1;
        held.bytes += entry.weight();
    }

    fn remove(&self, entry: &Entry) {
        let mut held = self.held();
        held.files -= 1;
        held.bytes -= entry.weight();
        drop(held);
        self.closed.notify_all();
    }

    /// Waits until there is room; the planner has handed everything out before.
    fn wait(&self, failure: &FirstError, progress: &Progress) -> Result<()> {
        let mut held = self.held();
        while held.is_full() {
            failure.check()?;
            progress.check()?;
            let wait = Duration::from_millis(100);
            held = self.closed.wait_timeout(held, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

struct Planner<'a> {
    run: &'a Run<'a>,
    target: &'a TreeTarget<'a>,
    fetcher: Fetcher<To>,
    open: &'a OpenFiles,
    /// Directories above the present place that were not made, because nothing in them was wanted so far.
    above: Vec<Entry>,
    found: bool,
}

impl Planner<'_> {
    fn plan(mut self, mut walk: EntryWalk, select: &Select) -> Result<()> {
        loop {
            self.run.shared.failure.check()?;
            let entry = match walk.next_entry() {
                Ok(None) => break,
                Ok(Some(entry)) => entry,
                Err(error) if is_lost(&error) => {
                    let Lost { first, last, bytes } = walk.lost().unwrap_or_default();
                    let range =
                        format!("{error}; lost with it: all entries to {}", String::from_utf8_lossy(&last));
                    self.run.damages.note(&first, 0, bytes, Error::damaged("page", range))?;
                    // What was asked for may have been there.
                    self.found = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(entry) = select.place(entry) else { continue };
            let directory = matches!(entry.kind, EntryKind::Directory { .. });
            self.above.retain(|d| is_below(&entry.path, &d.path));
            if !select.wants(&entry) {
                if directory {
                    self.above.push(entry);
                }
                continue;
            }
            self.found = true;
            for directory in std::mem::take(&mut self.above) {
                self.target.directory(&directory)?;
            }
            self.create(entry)?;
        }
        if !self.found {
            return Err(Error::Usage("nothing in the snapshot matches what was asked for".into()));
        }
        self.fetcher.flush()
    }

    fn create(&mut self, entry: Entry) -> Result<()> {
        self.run.progress.add(
            match entry.kind {
                EntryKind::File => Counter::Files,
                EntryKind::Directory { .. } => Counter::Directories,
                _ => Counter::Others,
            },
            1,
        );
        if matches!(entry.kind, EntryKind::Directory { .. }) {
            return self.target.directory(&entry);
        }
        if entry.links > 1 {
            match self.target.link(&entry)? {
                Linked::Done | Linked::Skipped => {
                    self.run.progress.add(Counter::Done, entry.size);
                    return Ok(());
                }
                Linked::First if entry.kind == EntryKind::File => return self.parts(entry, true),
                Linked::First => {
                    self.target.other(&entry)?;
                    return self.target.remember_link(&entry).map(drop);
                }
            }
        }
        match (&entry.kind, &entry.content) {
            (EntryKind::File, Content::Extents(extents)) => match extents[..] {
                [Extent::Chunk { chunk, skip, .. }] => {
                    let weight = entry.weight();
                    let entry = Box::new(entry);
                    self.fetcher.want(chunk, To::Whole { entry, skip }, weight)
                }
                _ => self.parts(entry, false),
            },
            (EntryKind::File, _) => self.parts(entry, false),
            _ => self.target.other(&entry),
        }
    }

    /// Makes a file whose parts come from several chunks, or from none.
    fn parts(&mut self, entry: Entry, linked: bool) -> Result<()> {
        if self.open.is_full() {
            self.fetcher.flush()?;
            self.open.wait(&self.run.shared.failure, self.run.progress)?;
        }
        let Some(file) = self.target.file(&entry)? else { return Ok(()) };
        if linked {
            self.target.remember_link(&entry)?;
        }
        self.open.add(&entry);
        let open = Arc::new(Open {
            entry,
            file: Arc::clone(file.file()),
            target: Mutex::new(Some(file)),
            left: AtomicU64::new(1),
        });
        match &open.entry.content {
            Content::Empty => {}
            Content::Extents(extents) => {
                let mut offset = 0;
                for extent in extents {
                    self.part(&open, offset, extent)?;
                    offset += extent.len();
                }
            }
            Content::Paged(root) => {
                let mut walk = ExtentWalk::new(self.run.loader(), **root);
                let mut end = 0;
                loop {
                    match walk.next_from(end) {
                        Ok(None) => break,
                        Ok(Some((offset, item))) => {
                            end = offset + item.len;
                            let extent = match (item.chunk, u32::try_from(item.len)) {
                                (Some(chunk), Ok(len)) => Extent::Chunk { chunk, skip: 0, len },
                                _ => Extent::Hole { len: item.len },
                            };
                            self.part(&open, offset, &extent)?;
                        }
                        Err(error) if is_lost(&error) => {
                            let (offset, len) = walk.lost().unwrap_or((end, open.entry.size - end));
                            self.run.damages.note_file(&open.entry, offset, len, error)?;
                            end = offset + len;
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        part_done(&open, self.target, self.open)
    }

    fn part(&mut self, open: &Arc<Open>, offset: u64, extent: &Extent) -> Result<()> {
        match *extent {
            Extent::Hole { len } => {
                self.run.progress.add(Counter::Holes, len);
                self.run.progress.add(Counter::Done, len);
                Ok(())
            }
            Extent::Chunk { chunk, skip, len } => {
                open.left.fetch_add(1, AcqRel);
                // The entry is counted with the open files.
                let to = To::Part { file: Arc::clone(open), offset, skip, len };
                self.fetcher.want(chunk, to, size_of::<To>())
            }
        }
    }
}

/// One part less; the last one sets the file's metadata.
fn part_done(open: &Open, target: &TreeTarget<'_>, files: &OpenFiles) -> Result<()> {
    if open.left.fetch_sub(1, AcqRel) > 1 {
        return Ok(());
    }
    files.remove(&open.entry);
    match open.target.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(file) => target.finish_file(file, &open.entry),
        None => Err(Error::Internal("a file was finished twice".into())),
    }
}

/// Writes what one worker opens.
struct Writer<'a> {
    target: &'a TreeTarget<'a>,
    sample: &'a Sample<Written>,
    root: &'a Path,
    damages: &'a Damages,
    progress: &'a Arc<Progress>,
    open: &'a OpenFiles,
}

impl Writer<'_> {
    fn write(&self, file: &Arc<File>, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        // Through the page cache: cut at content-defined places, parts are not aligned, and a direct write beside a
        // neighbour's dirty page can fail.
        let place = || self.root.join(OsStr::from_bytes(&entry.path));
        file.write_all_at(bytes, offset)
            .map_err(|e| Error::target_io(&place(), format!("cannot write at byte {offset}"), e))?;
        self.progress.add(Counter::Written, bytes.len() as u64);
        self.progress.add(Counter::Done, bytes.len() as u64);
        self.sample.offer(|| (place(), Arc::clone(file)), offset, bytes);
        Ok(())
    }
}

impl Deliver for Writer<'_> {
    type To = To;

    fn deliver(&mut self, plain: &Bytes, to: To) -> Result<()> {
        match to {
            To::Whole { entry, skip } => {
                let Some(bytes) = slice(plain, skip, entry.size) else {
                    return self.damages.note(&entry.path, 0, entry.size, passes_end());
                };
                let Some(file) = self.target.file(&entry)? else { return Ok(()) };
                self.write(file.file(), &entry, 0, bytes)?;
                self.target.finish_file(file, &entry)
            }
            To::Part { file, offset, skip, len } => {
                match slice(plain, skip, len.into()) {
                    Some(bytes) => self.write(&file.file, &file.entry, offset, bytes)?,
                    None => self.damages.note_file(&file.entry, offset, len.into(), passes_end())?,
                }
                part_done(&file, self.target, self.open)
            }
        }
    }

    fn lost(&mut self, to: To, why: Error) -> Result<()> {
        match to {
            To::Whole { entry, .. } => self.damages.note(&entry.path, 0, entry.size, why),
            To::Part { file, offset, len, .. } => {
                self.damages.note_file(&file.entry, offset, len.into(), why)?;
                part_done(&file, self.target, self.open)
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

fn slice(plain: &Bytes, skip: u32, len: u64) -> Option<&[u8]> {
    let start = skip as usize;
    plain.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn passes_end() -> Error {
    Error::damaged("page", "an extent passes its chunk's end")
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}
