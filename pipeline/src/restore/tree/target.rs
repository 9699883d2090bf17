//! A directory as the target of a restore.
//!
//! Whatever the repository says, nothing outside the target is touched: every path is checked name by name, resolved
//! beneath a descriptor of the target without following any link ([`dirs`]), and created with `O_EXCL`. While it is
//! being filled, a directory belongs to us alone (mode 0700); metadata comes last, by descriptor, children before
//! parents.
//!
//! ```text
//! directory() ──► link() ──► file() ──► remember_link() ──► write ──► finish_file()
//! created 0700    another    created                        by the    owner, attributes,
//!                 name of a  0600, its                      caller    mode, times, flags
//!                 file?      size set            other()              finish_directory()
//! ```
//!
//! What cannot be done for one entry (a device without the right to make one, an attribute that the file system does
//! not have) is reported through [`Progress::skip`], and the restore goes on. A full or failing disk ends it.
//!
//! All methods may be called from several threads, in any order that has a directory before what is in it.

mod dirs;
mod links;
mod metadata;
mod names;

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use self::dirs::Directories;
use self::links::Links;
use crate::entry::{Entry, EntryKind, FLAG_APPEND, FLAG_COMPRESSED, FLAG_IMMUTABLE, FLAG_NOCOW};
use crate::error::{Error, Result};
use crate::progress::{Counter, Progress};
use crate::source::Volume;

/// How to restore a tree.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TargetOptions {
    /// Restore into a directory that is not empty. Files in the way are replaced, directories are kept.
    pub(super) overwrite: bool,
    /// Restore owners, setuid and setgid, devices, `trusted` and `security` attributes, and the flags that only root
    /// may set. Without it these are left out and counted ([`Counter::Unprivileged`]); a device is reported.
    pub(super) privileged: bool,
}

/// The directory that is being restored to.
#[derive(Debug)]
pub(super) struct TreeTarget<'p> {
    path: PathBuf,
    options: TargetOptions,
    dirs: Directories,
    links: Links,
    progress: &'p Progress,
}

/// A regular file that is being restored.
#[derive(Debug)]
pub(super) struct TargetFile {
    file: Arc<File>,
}

impl TargetFile {
    /// The file, open for reading and writing, of its final size. What is not written reads as zeros and takes no
    /// space.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

/// What became of a name of a file that may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linked {
    /// The first name: create the file, then call [`TreeTarget::remember_link`].
    First,
    /// The name exists now and its file is or will be restored under another one; nothing is left to do for it.
    Done,
    /// The name could not be made; it was reported.
    Skipped,
}

impl<'p> TreeTarget<'p> {
    /// Opens `path` for restoring. It must be absent, and is created with its parents then, or an empty directory (an
    /// empty `lost+found` does not count), unless `overwrite`. Everything else is [`Error::Target`] with nothing
    /// changed. Trouble with single entries will be reported to `progress`.
    pub(super) fn open(path: &Path, options: TargetOptions, progress: &'p Progress) -> Result<Self> {
        let refuse = |what: &str| Error::Target { path: path.to_owned(), what: what.into(), source: None };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(CWD, path, flags, Mode::empty());
        let root = match open() {
            Err(Errno::NOENT) => {
                let parent = path.parent().unwrap_or(Path::new(""));
                if !parent.as_os_str().is_empty() {
                    std::fs::create_dir_all(parent)
                        .map_err(|e| Error::target_io(parent, "cannot be created", e))?;
                }
                let created = DirBuilder::new().mode(0o700).create(path);
                created.map_err(|e| Error::target_io(path, "cannot be created", e))?;
                open()
            }
            opened => opened,
        };
        let root = match root {
            Ok(root) => root,
            Err(Errno::NOTDIR) => return Err(refuse("is not a directory")),
            Err(errno) => return Err(Error::target_io(path, "cannot be opened", errno.into())),
        };
        Self::over(root, path, options, progress)
    }

    /// A directory of somebody else's, by its descriptor; as [`TreeTarget::open`] otherwise.
    pub(super) fn handed_over(
        root: &OwnedFd,
        options: TargetOptions,
        progress: &'p Progress,
    ) -> Result<Self> {
        let path = Volume::shown();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A descriptor of our own: listing moves a position.
        let root = rustix::fs::openat(root, ".", flags, Mode::empty())
            .map_err(|e| Error::target_io(path, "cannot be opened as a directory", e.into()))?;
        Self::over(root, path, options, progress)
    }

    fn over(root: OwnedFd, path: &Path, options: TargetOptions, progress: &'p Progress) -> Result<Self> {
        let target = Self {
            path: path.to_owned(),
            options,
            dirs: Directories::new(root),
            links: Links::default(),
            progress,
        };
        if options.overwrite {
            target.links.remove_leftovers(target.dirs.root());
        } else if !target.is_empty()? {
            let what = "is not empty: give --overwrite to replace what is in the way".into();
            return Err(Error::Target { path: path.to_owned(), what, source: None });
        }
        Ok(target)
    }

    fn is_empty(&self) -> Result<bool> {
        let failed = |errno: Errno| Error::target_io(&self.path, "cannot be listed", errno.into());
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = RawDir::new(self.dirs.root(), buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            // A file system that was just made has one; removing it tells whether it is empty, but would lose it.
            let ignored =
                matches!(name, b"." | b"..") || (name == LOST_AND_FOUND && self.is_empty_lost_and_found());
            if !ignored {
                return Ok(false);
            }
        }
        // Listing moved the descriptor's position; whoever lists next starts at the beginning.
        rustix::fs::seek(self.dirs.root(), rustix::fs::SeekFrom::Start(0)).map_err(failed)?;
        Ok(true)
    }

    fn is_empty_lost_and_found(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(self.dirs.root(), LOST_AND_FOUND, flags, Mode::empty()) {
            Ok(dir) => dir,
            // What we may not even look into, we cannot overwrite either.
            Err(errno) => return errno == Errno::ACCESS,
        };
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            if !entry.is_ok_and(|e| matches!(e.file_name().to_bytes(), b"." | b"..")) {
                return false;
            }
        }
        true
    }

    /// Creates a directory, for us alone until [`TreeTarget::finish_directory`]. The root entry (empty path) is the
    /// target itself and comes first when it is restored at all.
    pub(super) fn directory(&self, entry: &Entry) -> Result<()> {
        if entry.path.is_empty() {
            metadata::take_over(self.dirs.root());
            return Ok(());
        }
        let Some((dir, name)) = self.parent(&entry.path)? else { return Ok(()) };
        for _ in 0..2 {
            match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(errno) => return self.skip(&entry.path, "directory cannot be created", errno),
            }
            if self.keeps(&entry.path)
                && let Ok(existing) = open_directory(&dir, name)
            {
                metadata::take_over(&existing);
                return Ok(());
            }
            if !self.clear(&entry.path, &dir, name)? {
                return Ok(());
            }
        }
        self.skip(&entry.path, "directory cannot be created", Errno::EXIST)
    }

    /// True when a directory that exists already is not in the way.
    fn keeps(&self, path: &[u8]) -> bool {
        self.options.overwrite || path == LOST_AND_FOUND
    }

    /// Creates a regular file of its final size, readable for us alone. `None` when it could not be created, which
    /// was reported. The data is written by the caller, through the descriptor.
    pub(super) fn file(&self, entry: &Entry) -> Result<Option<TargetFile>> {
        let Some((dir, name)) = self.parent(&entry.path)? else { return Ok(None) };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR);
        let created = match create() {
            Err(Errno::EXIST) => {
                if !self.clear(&entry.path, &dir, name)? {
                    return Ok(None);
                }
                create()
            }
            created => created,
        };
        let file = match created {
            Ok(fd) => File::from(fd),
            Err(errno) => return self.skip(&entry.path, "file cannot be created", errno).map(|()| None),
        };
        // How a file is laid out must be said before its first byte. Whether it worked is seen at the end.
        let layout = entry.flags & (FLAG_NOCOW | FLAG_COMPRESSED);
        if layout != 0 {
            let _ = metadata::change_flags(&file, 0, layout);
        }
        if let Err(errno) = rustix::fs::ftruncate(&file, entry.size) {
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
            return self.skip(&entry.path, "file cannot be made that large", errno).map(|()| None);
        }
        Ok(Some(TargetFile { file: Arc::new(file) }))
    }

    /// Gives a file its metadata, after its last byte was written.
    #[expect(clippy::needless_pass_by_value, reason = "nobody may write to a file that is finished")]
    pub(super) fn finish_file(&self, file: TargetFile, entry: &Entry) -> Result<()> {
        let mut kept_back = 0;
        if entry.links > 1 && self.options.privileged {
            // A file that must not change cannot get another name either.
            kept_back = entry.flags & (FLAG_IMMUTABLE | FLAG_APPEND);
        }
        self.settle(entry, metadata::apply(&*file.file, entry, self.options.privileged, kept_back))?;
        if kept_back != 0
            && let Some((dir, name)) = self.parent(&entry.path)?
            && let Err(errno) = self.links.keep_flags_back(self.dirs.root(), entry, kept_back, &dir, name)
        {
            return self.skip(&entry.path, "immutable and append-only flags cannot be set", errno);
        }
        Ok(())
    }

    /// Creates a symbolic link, device, fifo or socket with its metadata.
    pub(super) fn other(&self, entry: &Entry) -> Result<()> {
        let Some((dir, name)) = self.parent(&entry.path)? else { return Ok(()) };
        let is_device = matches!(entry.kind, EntryKind::BlockDevice { .. } | EntryKind::CharDevice { .. });
        if is_device && !self.options.privileged {
            self.progress.skip(&entry.path, "device left out: restoring it needs privileged metadata");
            return Ok(());
        }
        let make = |kind, rdev| {
            // Devices most of all must not be open to others before their owner and mode are set.
            rustix::fs::mknodat(&dir, name, kind, Mode::RUSR | Mode::WUSR, rdev)
        };
        let create = || match &entry.kind {
            EntryKind::Symlink { target } => rustix::fs::symlinkat(&**target, &dir, name),
            EntryKind::BlockDevice { rdev } => make(FileType::BlockDevice, *rdev),
            EntryKind::CharDevice { rdev } => make(FileType::CharacterDevice, *rdev),
            EntryKind::Fifo => make(FileType::Fifo, 0),
            EntryKind::Socket => make(FileType::Socket, 0),
            EntryKind::File | EntryKind::Directory { .. } => Err(Errno::INVAL),
        };
        let created = match create() {
            Err(Errno::EXIST) => {
                if !self.clear(&entry.path, &dir, name)? {
                    return Ok(());
                }
                create()
            }
            created => created,
        };
        if let Err(errno) = created {
            return self.skip(&entry.path, "cannot be created", errno);
        }
        self.settle(entry, metadata::apply_unopened(&dir, name, entry, self.options.privileged))
    }

    /// Makes one more name of a file that was restored before under another one. To be called for everything but
    /// directories with more than one link, before the file is created.
    pub(super) fn link(&self, entry: &Entry) -> Result<Linked> {
        let Some((dir, name)) = self.parent(&entry.path)? else { return Ok(Linked::Skipped) };
        for _ in 0..2 {
            match self.links.link(self.dirs.root(), entry, &dir, name) {
                Ok(true) => return Ok(Linked::Done),
                Ok(false) => {
                    if self.links.was_split(entry) {
                        self.progress.skip(&entry.path, APART);
                    }
                    return Ok(Linked::First);
                }
                Err(Errno::EXIST) => {
                    if !self.clear(&entry.path, &dir, name)? {
                        return Ok(Linked::Skipped);
                    }
                }
                // Another file system is mounted in the target, or this one has no links.
                Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => {
                    self.progress.skip(&entry.path, APART);
                    return Ok(Linked::First);
                }
                Err(errno) => {
                    return self.skip(&entry.path, "cannot be linked", errno).map(|()| Linked::Skipped);
                }
            }
        }
        self.skip(&entry.path, "cannot be linked", Errno::EXIST).map(|()| Linked::Skipped)
    }

    /// After the first name of a file was created: makes it known to the names to come. [`Linked::Done`] when another
    /// thread was quicker; then the name is one of that thread's file, and what was created here is gone.
    pub(super) fn remember_link(&self, entry: &Entry) -> Result<Linked> {
        let Some((dir, name)) = self.parent(&entry.path)? else { return Ok(Linked::Skipped) };
        match self.links.remember(self.dirs.root(), entry, &dir, name) {
            Ok(true) => Ok(Linked::First),
            Ok(false) => Ok(Linked::Done),
            // It was left out, which was reported then.
            Err(Errno::NOENT) => Ok(Linked::First),
            Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => {
                self.progress.skip(&entry.path, APART);
                Ok(Linked::First)
            }
            Err(errno) => self.skip(&entry.path, "cannot be linked", errno).map(|()| Linked::First),
        }
    }

    /// Gives a directory its metadata, after everything in it is finished. The root is last: it ends the run. A
    /// directory that is not there is passed over.
    pub(super) fn finish_directory(&self, entry: &Entry) -> Result<()> {
        if entry.path.is_empty() {
            self.links.finish(self.dirs.root());
            let root = self.dirs.root();
            return self.settle(entry, metadata::apply(root, entry, self.options.privileged, 0));
        }
        names::check(&entry.path)?;
        let (parent, name) = names::split(&entry.path);
        match self.dirs.open(parent).and_then(|dir| open_directory(&dir, name)) {
            Ok(fd) => self.settle(entry, metadata::apply(&fd, entry, self.options.privileged, 0)),
            // It was not asked for, or could not be created, and then that was reported.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => self.skip(&entry.path, "metadata cannot be set", errno),
        }
    }

    /// Where it is, or what messages call it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until everything is on the disk. A failure is final: what was written may be lost.
    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(self.dirs.root())
            .map_err(|e| Error::target_io(&self.path, "cannot be synced", e.into()))
    }

    /// The directory an entry is in, and its name there. `None` when that directory is not there: it could not be
    /// created, or is something else.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<Option<(Arc<OwnedFd>, &'a [u8])>> {
        names::check(path)?;
        let (parent, name) = names::split(path);
        match self.dirs.open(parent) {
            Ok(dir) => Ok(Some((dir, name))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.progress.skip(path, "its directory could not be restored");
                Ok(None)
            }
            Err(errno) => self.skip(path, "its directory cannot be opened", errno).map(|()| None),
        }
    }

    /// Removes what is in the way of an entry. False when it has to stay, which was reported.
    fn clear(&self, path: &[u8], dir: &OwnedFd, name: &[u8]) -> Result<bool> {
        if !self.options.overwrite {
            self.progress.skip(path, "is there already");
            return Ok(false);
        }
        let remove = || match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
            removed => removed,
        };
        let removed = match remove() {
            // An earlier restore may have left it immutable.
            Err(Errno::PERM) if self.options.privileged => {
                metadata::unlock(dir, name);
                remove()
            }
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {
                self.dirs.forget(path);
                Ok(true)
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.progress.skip(path, "a directory that is not empty is in the way");
                Ok(false)
            }
            Err(errno) => self.skip(path, "what is in the way cannot be removed", errno).map(|()| false),
        }
    }

    /// Reports what could not be set, and counts what was not to be.
    fn settle(&self, entry: &Entry, applied: rustix::io::Result<Vec<String>>) -> Result<()> {
        if !self.options.privileged && metadata::is_plainer(entry) {
            self.progress.add(Counter::Unprivileged, 1);
        }
        match applied {
            Ok(problems) if problems.is_empty() => Ok(()),
            Ok(problems) => {
                self.progress.skip(&entry.path, problems.join("; "));
                Ok(())
            }
            Err(errno) => self.skip(&entry.path, "metadata cannot be set", errno),
        }
    }

    /// Reports trouble with one entry. Fails when it is not the entry's own.
    fn skip(&self, path: &[u8], what: &str, errno: Errno) -> Result<()> {
        if is_fatal(errno) {
            return Err(Error::target_io(&names::join(&self.path, path), what, errno.into()));
        }
        self.progress.skip(path, format!("{what}: {errno}"));
        Ok(())
    }
}

impl Drop for TreeTarget<'_> {
    fn drop(&mut self) {
        self.links.finish(self.dirs.root());
    }
}

const LOST_AND_FOUND: &[u8] = b"lost+found";
const APART: &str = "hard link cannot be kept: restored as a file of its own";

/// True for errors that every other entry would run into as well.
fn is_fatal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::MFILE | Errno::NFILE | Errno::NOMEM
    )
}

/// Opens the directory `name` for reading, so that its metadata can be set.
fn open_directory(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags | OFlags::RDONLY, Mode::empty()) {
        // One that its owner may not read.
        Err(Errno::ACCESS) => {
            let path = rustix::fs::openat(dir, name, flags | OFlags::PATH, Mode::empty())?;
            rustix::fs::chmodat(CWD, metadata::magic_link(&path), Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(path, ".", flags | OFlags::RDONLY, Mode::empty())
        }
        opened => opened,
    }
}
