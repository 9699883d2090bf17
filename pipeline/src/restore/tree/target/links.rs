//! Hard links without memory: the file system remembers.
//!
//! A private directory in the target holds one name for each file that has several. A later name is linked to that
//! one, so it does not matter how many there are, or how far apart. The directory is removed at the end; one that a
//! killed restore left behind is removed by the next.
//!
//! The private name is made of what tells a file from others in the snapshot: device, inode, kind, size and time.
//! The last three guard against an inode number that was used again while the tree was walked.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::{Errno, Result};

use super::metadata;
use crate::entry::{Entry, EntryKind};

const PREFIX: &str = ".tradewind-links-";
/// Between a private name and the flags that its file gets at the end.
const FLAGS: &str = ".flags-";
/// Behind the name of a file that has reached the largest number of links.
const FULL: &str = ".full";

#[derive(Debug, Default)]
pub(super) struct Links {
    staging: Mutex<Option<Staging>>,
    /// Some file has been split.
    split: AtomicBool,
    counter: AtomicU64,
    #[cfg(test)]
    pub(super) max_links: Option<u64>,
}

#[derive(Debug, Clone)]
struct Staging {
    name: String,
    dir: Arc<OwnedFd>,
}

impl Links {
    fn staging(&self, root: &OwnedFd) -> Result<Arc<OwnedFd>> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(staging) = &*staging {
            return Ok(Arc::clone(&staging.dir));
        }
        loop {
            let name = format!("{PREFIX}{:016x}", fastrand::u64(..));
            match rustix::fs::mkdirat(root, &*name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(errno),
            }
            let dir = Arc::new(open(root, name.as_bytes(), OFlags::DIRECTORY)?);
            *staging = Some(Staging { name, dir: Arc::clone(&dir) });
            return Ok(dir);
        }
    }

    /// Makes `name` in `dir` another name of the entry's file. False when this is the first one.
    pub(super) fn link(&self, root: &OwnedFd, entry: &Entry, dir: &OwnedFd, name: &[u8]) -> Result<bool> {
        let staging = self.staging(root)?;
        let key = key(entry);
        match self.link_at(&staging, key.as_bytes(), dir, name) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::MLINK) => {
                // The private name takes one of the links: it becomes the last name. More names start a new file.
                let full = format!("{key}{FULL}");
                rustix::fs::mkdirat(&staging, &*full, Mode::RWXU).or_else(ignore_existing)?;
                self.split.store(true, Relaxed);
                rustix::fs::renameat(&staging, &*key, dir, name).map(|()| true)
            }
            Err(errno) => Err(errno),
        }
    }

    /// True when the entry's file was given up for a new one because it could take no more links.
    pub(super) fn was_split(&self, entry: &Entry) -> bool {
        if !self.split.load(Relaxed) {
            return false;
        }
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.as_ref().is_some_and(|staging| {
            let full = format!("{}{FULL}", key(entry));
            rustix::fs::statat(&staging.dir, &*full, AtFlags::SYMLINK_NOFOLLOW).is_ok()
        })
    }

    /// Gives the file `name` in `dir` its private name. False when there is one already: then `name` was replaced by
    /// another name of that file.
    pub(super) fn remember(&self, root: &OwnedFd, entry: &Entry, dir: &OwnedFd, name: &[u8]) -> Result<bool> {
        let staging = self.staging(root)?;
        let key = key(entry);
        match self.link_at(dir, name, &staging, key.as_bytes()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                // Renaming over it leaves no moment without the name.
                let other = format!("{key}.{}", self.counter.fetch_add(1, Relaxed));
                self.link_at(&staging, key.as_bytes(), &staging, other.as_bytes())?;
                rustix::fs::renameat(&staging, &*other, dir, name)?;
                Ok(false)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Notes flags that the file `name` in `dir` gets once it has all its names.
    pub(super) fn keep_flags_back(
        &self,
        root: &OwnedFd,
        entry: &Entry,
        flags: u32,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<()> {
        let staging = self.staging(root)?;
        let note = format!("{}{FLAGS}{flags:x}", key(entry));
        self.link_at(dir, name, &staging, note.as_bytes()).or_else(ignore_existing)
    }

    /// Removes the private directory and sets the flags that were kept back. Best effort: what stays behind is named
    /// so that the next restore finds it.
    pub(super) fn finish(&self, root: &OwnedFd) {
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(staging) = staging {
            remove(root, &staging.name, &staging.dir, true);
        }
    }

    /// Removes what killed restores left behind.
    pub(super) fn remove_leftovers(&self, root: &OwnedFd) {
        let mut leftovers = Vec::new();
        each_name(root, |name| {
            if let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_staging(name)) {
                leftovers.push(name.to_owned());
            }
        });
        for name in leftovers {
            if let Ok(dir) = open(root, name.as_bytes(), OFlags::DIRECTORY) {
                // What they belong to is restored again, which immutable files would not allow.
                remove(root, &name, &dir, false);
            }
        }
    }

    fn link_at(&self, from: &OwnedFd, old: &[u8], to: &OwnedFd, new: &[u8]) -> Result<()> {
        #[cfg(test)]
        if let Some(max) = self.max_links
            && rustix::fs::statat(from, old, AtFlags::SYMLINK_NOFOLLOW)?.st_nlink >= max
        {
            return Err(Errno::MLINK);
        }
        rustix::fs::linkat(from, old, to, new, AtFlags::empty())
    }
}

fn ignore_existing(errno: Errno) -> Result<()> {
    if errno == Errno::EXIST { Ok(()) } else { Err(errno) }
}

fn key(entry: &Entry) -> String {
    let kind = match &entry.kind {
        EntryKind::File => 'f',
        EntryKind::Directory { .. } => 'd',
        EntryKind::Symlink { .. } => 'l',
        EntryKind::BlockDevice { .. } => 'b',
        EntryKind::CharDevice { .. } => 'c',
        EntryKind::Fifo => 'p',
        EntryKind::Socket => 's',
    };
    let Entry { device, inode, size, mtime, .. } = entry;
    format!("{device:x}-{inode:x}-{kind}{size:x}-{:x}-{:x}", mtime.seconds, mtime.nanos)
}

fn is_staging(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn open(dir: &OwnedFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn remove(root: &OwnedFd, name: &str, dir: &OwnedFd, set_flags: bool) {
    // A name may be passed over when others are removed while the directory is listed: then once more.
    for _ in 0..3 {
        // First the names without flags to set: an immutable file cannot lose a name.
        each_name(dir, |name| {
            if is_private(name) && flags_in(name).is_none() {
                let removed = rustix::fs::unlinkat(dir, name, AtFlags::empty());
                if removed == Err(Errno::ISDIR) {
                    let _ = rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
                }
            }
        });
        each_name(dir, |name| {
            let Some(flags) = flags_in(name) else { return };
            let file = open(dir, name, OFlags::NOCTTY);
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
            if let Ok(file) = file
                && set_flags
            {
                let _ = metadata::change_flags(file, 0, flags);
            }
        });
        if rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR).is_ok() {
            return;
        }
    }
}

/// True for the names that are made here; whatever else somebody may have put there is left alone.
fn is_private(name: &[u8]) -> bool {
    name.first().is_some_and(u8::is_ascii_hexdigit)
        && name.iter().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || matches!(b, b'-' | b'.'))
}

/// The flags in a name that [`Links::keep_flags_back`] has made.
fn flags_in(name: &[u8]) -> Option<u32> {
    let (_, flags) =
        std::str::from_utf8(name).ok().filter(|n| is_private(n.as_bytes()))?.split_once(FLAGS)?;
    u32::from_str_radix(flags, 16).ok()
}

/// Calls `each` with the names in a directory, which may remove them. Stops at the first error.
fn each_name(dir: &OwnedFd, mut each: impl FnMut(&[u8])) {
    if rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0)).is_err() {
        return;
    }
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name);
        }
    }
}
