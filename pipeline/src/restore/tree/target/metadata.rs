//! Metadata by descriptor: owner, extended attributes, mode, times, flags, in this order.
//!
//! The order is not free: changing the owner takes setuid and file capabilities away; a mode without write permission
//! takes the right to set `user` attributes away; setting an ACL may drop setgid; everything moves the times; and an
//! immutable file takes nothing any more.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, Gid, IFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};

use crate::entry::{Entry, EntryKind, FLAG_APPEND, FLAG_IMMUTABLE, RESTORED_FLAGS};

const PRIVILEGED_FLAGS: u32 = FLAG_APPEND | FLAG_IMMUTABLE;
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// What could not be set, a sentence each.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    /// Notes a failure of one item. Fails for what concerns the disk and not the item.
    fn note(&mut self, what: impl FnOnce() -> String, result: Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(errno @ (Errno::IO | Errno::ROFS)) => Err(errno),
            Err(errno) => {
                self.0.push(format!("{} not set: {errno}", what()));
                Ok(())
            }
        }
    }
}

/// Sets the metadata of an open file or directory, but for the flags in `kept_back`. Returns what could not be set.
pub(super) fn apply(fd: impl AsFd, entry: &Entry, privileged: bool, kept_back: u32) -> Result<Vec<String>> {
    let fd = fd.as_fd();
    let mut problems = Problems::default();
    if privileged {
        problems.note(|| owner(entry), rustix::fs::fchown(fd, uid(entry), gid(entry)))?;
    }
    if matches!(entry.kind, EntryKind::Directory { .. }) {
        remove_other_xattrs(fd, entry, privileged, &mut problems)?;
    }
    for (name, value) in kept_xattrs(entry, privileged) {
        let set = rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty());
        problems.note(|| attribute(name), set)?;
    }
    problems.note(|| "mode".into(), rustix::fs::fchmod(fd, mode(entry, privileged)))?;
    problems.note(|| "times".into(), rustix::fs::futimens(fd, &times(entry)))?;
    let allowed = if privileged { RESTORED_FLAGS } else { RESTORED_FLAGS & !PRIVILEGED_FLAGS };
    let flags = entry.flags & allowed & !kept_back;
    match change_flags(fd, RESTORED_FLAGS, flags) {
        // No flags on this file system, and none wanted.
        Err(_) if flags == 0 => {}
        result => problems.note(|| "inode flags".into(), result)?,
    }
    Ok(problems.0)
}

/// Sets the metadata of a link, device, fifo or socket that was just created: these cannot be opened without side
/// effects. Returns what could not be set.
pub(super) fn apply_unopened(
    dir: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    privileged: bool,
) -> Result<Vec<String>> {
    // A descriptor that only says where the file is; `/proc` leads from there to the file itself, even when it is a
    // link, and to no other that may have taken its name.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let path = magic_link(&fd);
    let mut problems = Problems::default();
    if privileged {
        let set = rustix::fs::chownat(&fd, "", uid(entry), gid(entry), AtFlags::EMPTY_PATH);
        problems.note(|| owner(entry), set)?;
    }
    for (name, value) in kept_xattrs(entry, privileged) {
        let set = rustix::fs::setxattr(&*path, name, value, XattrFlags::empty());
        problems.note(|| attribute(name), set)?;
    }
    // Links have no mode.
    if !matches!(entry.kind, EntryKind::Symlink { .. }) {
        let set = rustix::fs::chmodat(CWD, &*path, mode(entry, privileged), AtFlags::empty());
        problems.note(|| "mode".into(), set)?;
    }
    let set = rustix::fs::utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW);
    problems.note(|| "times".into(), set)?;
    Ok(problems.0)
}

/// Makes an existing directory ours for the time of the restore: open to nobody else, writable, and without a default
/// ACL, which everything created in it would inherit. Best effort: what does not work shows when something is created.
pub(super) fn take_over(dir: impl AsFd) {
    let dir = dir.as_fd();
    let _ = change_flags(dir, PRIVILEGED_FLAGS, 0);
    let _ = rustix::fs::fchmod(dir, Mode::RWXU);
    let _ = rustix::fs::fremovexattr(dir, DEFAULT_ACL);
}

/// Takes the flags from a file that keep it from being removed. Best effort.
pub(super) fn unlock(dir: &OwnedFd, name: &[u8]) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
        let _ = change_flags(fd, PRIVILEGED_FLAGS, 0);
    }
}

/// Clears the inode flags in `clear`, then sets those in `set`.
pub(super) fn change_flags(fd: impl AsFd, clear: u32, set: u32) -> Result<()> {
    let fd = fd.as_fd();
    let present = rustix::fs::ioctl_getflags(fd)?.bits();
    let wanted = (present & !clear) | set;
    if wanted == present { Ok(()) } else { rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(wanted)) }
}

/// Does an entry have something that is left out of a restore without privileges, by a process of this user?
pub(super) fn is_plainer(entry: &Entry) -> bool {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let attributes = kept_xattrs(entry, true).count() > kept_xattrs(entry, false).count();
    let bits = entry.mode & 0o6000 != 0 && !matches!(entry.kind, EntryKind::Symlink { .. });
    attributes || bits || entry.flags & PRIVILEGED_FLAGS != 0 || (entry.uid, entry.gid) != (uid, gid)
}

/// A path that leads to an open file, whatever it is.
pub(super) fn magic_link(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn remove_other_xattrs(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    privileged: bool,
    problems: &mut Problems,
) -> Result<()> {
    // A directory may have been there before, with attributes of its own.
    let size = rustix::fs::flistxattr_query(fd).unwrap_or(0);
    if size == 0 {
        return Ok(());
    }
    let mut names = Vec::with_capacity(size);
    if rustix::fs::flistxattr(fd, spare_capacity(&mut names)).is_err() {
        return Ok(());
    }
    for name in names.split(|b| *b == 0).filter(|name| is_restored(name, privileged)) {
        // Labels are given by the security module of this machine.
        let is_ours = name.starts_with(b"security.") || entry.xattrs.iter().any(|(wanted, _)| wanted == name);
        if !is_ours {
            problems.note(|| attribute(name), rustix::fs::fremovexattr(fd, name))?;
        }
    }
    Ok(())
}

fn kept_xattrs(entry: &Entry, privileged: bool) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = entry.xattrs.iter().map(|(name, value)| (&**name, &**value));
    pairs.filter(move |(name, _)| is_restored(name, privileged))
}

/// Attributes that a repository may set. No others exist in one that we wrote.
fn is_restored(name: &[u8], privileged: bool) -> bool {
    name.starts_with(b"user.")
        || name == b"system.posix_acl_access"
        || name == DEFAULT_ACL.as_bytes()
        || (privileged && (name.starts_with(b"trusted.") || name.starts_with(b"security.")))
}

fn uid(entry: &Entry) -> Option<Uid> {
    // -1 means "leave it" to the kernel; nobody owns files as -1.
    (entry.uid != u32::MAX).then(|| Uid::from_raw(entry.uid))
}

fn gid(entry: &Entry) -> Option<Gid> {
    (entry.gid != u32::MAX).then(|| Gid::from_raw(entry.gid))
}

fn mode(entry: &Entry, privileged: bool) -> Mode {
    Mode::from_raw_mode(entry.mode & if privileged { 0o7777 } else { 0o1777 })
}

fn times(entry: &Entry) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: entry.mtime.seconds, tv_nsec: entry.mtime.nanos.into() },
    }
}

fn owner(entry: &Entry) -> String {
    format!("owner {}:{}", entry.uid, entry.gid)
}

fn attribute(name: &[u8]) -> String {
    format!("extended attribute {}", name.escape_ascii())
}
