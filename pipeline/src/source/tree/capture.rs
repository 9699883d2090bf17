//! From a name to an entry: metadata, extended attributes and the bytes of small files. Runs on several threads.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::file::{Buffer, DataRange, Extents, OpenFile, SmallFile, read_range};
use super::list::Hint;
use super::prefetch::{Grant, Window};
use super::stat::{self, Stat};
use super::xattr::{Place, Xattrs};
use super::{Found, FoundData};
use crate::entry::{Content, Entry, EntryKind, RESTORED_FLAGS, Time};
use crate::error::Error;

/// Files up to this many bytes have no hole worth looking for unless they have fewer blocks than bytes.
const BLOCK: u64 = 4096;
/// Attributes below this many bytes are part of what an item costs anyway.
const FREE_XATTRS: usize = 4096;

/// One thing the walk came across.
pub(super) struct Item {
    /// Relative to the root.
    pub(super) path: Vec<u8>,
    pub(super) what: What,
}

pub(super) enum What {
    /// A directory that is being walked.
    Directory { fd: Arc<OwnedFd>, stat: Stat },
    /// A directory that is not walked: a mount point, or (with the reason) one that cannot be read.
    Closed { dir: Arc<OwnedFd>, stat: Stat, unreadable: Option<Errno> },
    /// Anything else, in `dir`. `parent`: what the parent snapshot has at this path.
    Node { dir: Arc<OwnedFd>, hint: Hint, parent: Option<Box<Entry>> },
    /// Something the walk could not deal with.
    Skip { reason: String },
    /// Listed and gone.
    Vanished,
}

/// What became of an item.
pub(super) enum Outcome {
    Found(Box<Finding>),
    Skipped {
        path: Vec<u8>,
        reason: String,
    },
    Vanished,
    /// The walk must end: descriptors or memory have run out, and what follows would be skipped for no good reason.
    Failed(Error),
    /// The walk was stopped.
    Stopped,
}

pub(super) struct Finding {
    pub(super) found: Found,
    /// What is not as it should be with this entry.
    pub(super) warnings: Vec<String>,
    /// The contents are those of the parent's entry.
    pub(super) unchanged: bool,
    _attributes: Option<Grant>,
}

/// What all captures of a walk have in common.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) root: &'a Path,
    pub(super) privileged: bool,
    pub(super) inline_limit: u64,
    /// Files whose inode changed at or after this time may have changed again unseen.
    pub(super) settled_before: Option<Time>,
}

/// Captures items, one after the other.
pub(super) struct Capture<'a> {
    rules: Rules<'a>,
    window: Arc<Window>,
    xattrs: Xattrs,
    /// Number of the batch in hand.
    ticket: u64,
}

/// A capture that ends early.
struct Early(Outcome);

type Captured<T> = Result<T, Early>;

/// Opens `name` in `dir` for reading, leaving its access time alone where that is allowed. Never follows a link,
/// never waits for a fifo's writer.
pub(super) fn open(dir: impl AsFd, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_quietly(dir.as_fd(), name, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK)
}

fn open_quietly(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, path, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and CAP_FOWNER may leave no trace.
        Err(Errno::PERM) => rustix::fs::openat(dir, path, flags, Mode::empty()),
        result => result,
    }
}

/// Opens a regular file on which somebody holds a lease, as file servers do: waits until it is given up, for which
/// the kernel sets a limit (45 seconds by default).
fn open_leased(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    // Known to be a regular file before anything waits.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    if stat::of_fd(&place)?.kind != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    open_quietly(dir.as_fd(), format!("/proc/self/fd/{}", place.as_raw_fd()).as_bytes(), OFlags::empty())
}

/// The last component of a path.
pub(super) fn name_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(path, |slash| &path[slash + 1..])
}

/// True when an error says nothing about the file but that the process or the machine is at its limit.
pub(super) fn is_exhaustion(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

impl<'a> Capture<'a> {
    pub(super) fn new(rules: Rules<'a>, window: Arc<Window>) -> Self {
        Self { rules, window, xattrs: Xattrs::new(rules.privileged), ticket: 0 }
    }

    /// Captures the items of batch `ticket`.
    pub(super) fn batch(&mut self, ticket: u64, items: Vec<Item>) -> Vec<Outcome> {
        self.ticket = ticket;
        items.into_iter().map(|item| self.item(item)).collect()
    }

    fn item(&mut self, item: Item) -> Outcome {
        let captured = match item.what {
            What::Directory { fd, stat } => self.directory(item.path, &fd, &stat),
            What::Closed { dir, stat, unreadable } => self.closed(&item.path, &dir, &stat, unreadable),
            What::Node { dir, hint, parent } => self.node(item.path, &dir, hint, parent),
            What::Skip { reason } => return Outcome::Skipped { path: item.path, reason },
            What::Vanished => return Outcome::Vanished,
        };
        captured.map_or_else(|early| early.0, |finding| Outcome::Found(Box::new(finding)))
    }

    fn directory(&mut self, path: Vec<u8>, fd: &OwnedFd, stat: &Stat) -> Captured<Finding> {
        let mut entry = stat.entry(path, EntryKind::Directory { mount: false });
        entry.flags = flags(fd, stat);
        self.finding(entry, FoundData::None, &Place::Fd(fd.as_fd()))
    }

    fn closed(
        &mut self,
        path: &[u8],
        dir: &OwnedFd,
        stat: &Stat,
        unreadable: Option<Errno>,
    ) -> Captured<Finding> {
        let entry = stat.entry(path.to_vec(), EntryKind::Directory { mount: unreadable.is_none() });
        let mut finding = self.finding(entry, FoundData::None, &Place::Name(dir.as_fd(), name_of(path)))?;
        finding.warnings.extend(unreadable.map(|errno| format!("directory cannot be read: {errno}")));
        Ok(finding)
    }

    fn node(
        &mut self,
        path: Vec<u8>,
        dir: &OwnedFd,
        hint: Hint,
        parent: Option<Box<Entry>>,
    ) -> Captured<Finding> {
        let name = name_of(&path).to_vec();
        if hint == Hint::File && parent.is_none() {
            // The usual case of a first backup: one look-up of the name instead of two. Whatever else this finds out
            // is found out again below.
            if let Ok(fd) = open(dir, &name, OFlags::empty()) {
                let stat = stat::of_fd(&fd).map_err(|errno| self.failed(&path, "cannot be read", errno))?;
                if stat.kind == FileType::RegularFile {
                    return self.regular(path, File::from(fd), &stat);
                }
            }
        }
        let stat = match stat::at(dir, &name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(Early(Outcome::Vanished)),
            Err(errno) => return Err(self.failed(&path, "cannot be read", errno)),
        };
        let kind = match stat.kind {
            FileType::RegularFile => return self.named_regular(path, dir, &name, &stat, parent),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, &*name, Vec::new())
                    .map_err(|errno| self.failed(&path, "link cannot be read", errno))?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            FileType::BlockDevice => EntryKind::BlockDevice { rdev: stat.rdev },
            FileType::CharacterDevice => EntryKind::CharDevice { rdev: stat.rdev },
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::Directory | FileType::Unknown => {
                let reason = "changed its kind while being read".into();
                return Err(Early(Outcome::Skipped { path, reason }));
            }
        };
        let mut entry = stat.entry(path, kind);
        // Flags of special files are those of what they stand for; there is no way to set them.
        entry.flags = 0;
        self.finding(entry, FoundData::None, &Place::Name(dir.as_fd(), &name))
    }

    /// A regular file that was looked up but not opened yet.
    fn named_regular(
        &mut self,
        path: Vec<u8>,
        dir: &OwnedFd,
        name: &[u8],
        stat: &Stat,
        parent: Option<Box<Entry>>,
    ) -> Captured<Finding> {
        if let Some(parent) = parent
            && self.is_unchanged(stat, &parent)
        {
            let mut entry = stat.entry(path, EntryKind::File);
            // Any change of a flag moves the change time, which is the parent's.
            entry.flags = (parent.flags & !stat.flags_known) | stat.flags;
            entry.content = parent.content;
            let data = if stat.size == 0 { FoundData::None } else { FoundData::Unchanged };
            let mut finding = self.finding(entry, data, &Place::Name(dir.as_fd(), name))?;
            finding.unchanged = true;
            return Ok(finding);
        }
        let opened = match open(dir, name, OFlags::empty()) {
            Err(Errno::AGAIN) => open_leased(dir, name),
            opened => opened,
        };
        let fd = match opened {
            Ok(fd) => fd,
            // Nothing to read in an empty file: what is known without opening it is all but a few flags.
            Err(Errno::ACCESS | Errno::PERM) if stat.size == 0 => {
                let entry = stat.entry(path, EntryKind::File);
                return self.finding(entry, FoundData::None, &Place::Name(dir.as_fd(), name));
            }
            Err(errno) => return Err(self.failed(&path, "cannot be opened", errno)),
        };
        let stat = stat::of_fd(&fd).map_err(|errno| self.failed(&path, "cannot be read", errno))?;
        if stat.kind != FileType::RegularFile {
            let reason = "changed its kind while being read".into();
            return Err(Early(Outcome::Skipped { path, reason }));
        }
        self.regular(path, File::from(fd), &stat)
    }

    fn is_unchanged(&self, stat: &Stat, parent: &Entry) -> bool {
        parent.kind == EntryKind::File
            && parent.size == stat.size
            && parent.mtime == stat.mtime
            && parent.ctime == stat.ctime
            && parent.inode == stat.inode
            && self.rules.settled_before.is_some_and(|time| stat.ctime < time)
            && (stat.size == 0) == (parent.content == Content::Empty)
    }

    /// An open regular file.
    fn regular(&mut self, path: Vec<u8>, file: File, stat: &Stat) -> Captured<Finding> {
        let mut entry = stat.entry(path, EntryKind::File);
        entry.flags = flags(&file, stat);
        // Before `file` moves on.
        let mut finding = self.finding(entry, FoundData::None, &Place::Fd(file.as_fd()))?;
        let entry = &mut finding.found.entry;
        finding.found.data = if stat.size == 0 {
            FoundData::None
        } else if stat.size > self.rules.inline_limit {
            let grant = self.window.open_file(self.ticket).ok_or(Early(Outcome::Stopped))?;
            // Whoever reads it shall wait for the disk: an asynchronous read may be refused otherwise.
            let waits = rustix::fs::fcntl_getfl(&file)
                .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK));
            waits.map_err(|errno| self.failed(&entry.path, "cannot be read", errno))?;
            FoundData::Large(OpenFile::new(file, entry.path.clone(), stat, Some(grant)))
        } else {
            let (small, change) = self.small(&file, &entry.path, stat)?;
            finding.warnings.extend(change);
            entry.size = small.0;
            if small.0 == 0 { FoundData::None } else { FoundData::Small(small.1) }
        };
        Ok(finding)
    }

    /// Reads a file whole. Returns its size as read, its bytes, and what changed meanwhile.
    fn small(&self, file: &File, path: &[u8], stat: &Stat) -> Captured<((u64, SmallFile), Option<String>)> {
        let cannot = |error: std::io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            self.failed(path, "cannot be read", errno)
        };
        let mut ranges = data_ranges(file, stat).map_err(cannot)?;
        let total: u64 = ranges.iter().map(|r| r.len).sum();
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        let grant = self.window.memory(self.ticket, total).ok_or(Early(Outcome::Stopped))?;
        let mut bytes = Vec::with_capacity(total);
        let mut size = stat.size;
        for i in 0..ranges.len() {
            let range = ranges[i];
            let got = read_range(file, range, &mut bytes).map_err(cannot)? as u64;
            if got < range.len {
                // Cut short under our hands: what was read is a file of this size.
                size = range.offset + got;
                ranges[i].len = got;
                ranges.truncate(if got == 0 { i } else { i + 1 });
                break;
            }
        }
        let after = stat::of_fd(file).map_err(|errno| cannot(errno.into()))?;
        let change = after.change_since(stat.size, stat.mtime);
        let change = change.or_else(|| (size < stat.size).then(|| "ended early while being read".into()));
        Ok(((size, SmallFile { bytes: Buffer::new(bytes, Some(grant)), ranges }), change))
    }

    fn finding(&mut self, mut entry: Entry, data: FoundData, place: &Place<'_>) -> Captured<Finding> {
        let read = self.xattrs.read(place);
        let bytes: usize = read.pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let grant = if bytes > FREE_XATTRS {
            Some(self.window.memory(self.ticket, bytes).ok_or(Early(Outcome::Stopped))?)
        } else {
            None
        };
        entry.xattrs = read.pairs;
        let found = Found { entry, data };
        Ok(Finding { found, warnings: read.warnings, unchanged: false, _attributes: grant })
    }

    fn failed(&self, path: &[u8], what: &str, errno: Errno) -> Early {
        Early(if is_exhaustion(errno) {
            Outcome::Failed(Error::source_io(&super::join(self.rules.root, path), what, errno.into()))
        } else {
            Outcome::Skipped { path: path.to_vec(), reason: format!("{what}: {errno}") }
        })
    }
}

/// Inode flags of an open file or directory; what `statx` knows where the file system does not answer.
fn flags(fd: impl AsFd, stat: &Stat) -> u32 {
    rustix::fs::ioctl_getflags(fd).map_or(stat.flags, |flags| flags.bits() & RESTORED_FLAGS)
}

fn data_ranges(file: &File, stat: &Stat) -> std::io::Result<Vec<DataRange>> {
    let whole = || vec![DataRange { offset: 0, len: stat.size }];
    let may_have_holes = stat.size > BLOCK || stat.blocks.saturating_mul(512) < stat.size;
    if !may_have_holes {
        return Ok(whole());
    }
    // Not by the number of blocks alone: space reserved behind the end of a file hides its holes.
    match rustix::fs::seek(file, SeekFrom::Hole(0)) {
        Ok(hole) if hole < stat.size => Extents::new(file, stat.size).collect(),
        _ => Ok(whole()),
    }
}

/// Captures an open file whose figures are out of date.
#[cfg(test)]
pub(super) fn tests_only_regular(root: &Path, path: &[u8], file: File, stat: &Stat) -> Outcome {
    let rules = Rules { root, privileged: false, inline_limit: 1 << 20, settled_before: None };
    let mut capture = Capture::new(rules, Window::new(1 << 20));
    match capture.regular(path.to_vec(), file, stat) {
        Ok(finding) => Outcome::Found(Box::new(finding)),
        Err(early) => early.0,
    }
}
