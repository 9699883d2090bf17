//! The walk: directories depth first, names in byte order, one thread.
//!
//! Every step is relative to an open directory and one name long, so paths may be longer than the system's limit and
//! nobody can lead the walk elsewhere by moving a directory. Of deep trees only the lowest directories stay open; one
//! further up is found again through `..`, or from the root by the names, and must be the one that it was.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::capture::{Item, What, is_exhaustion, open};
use super::list::{Hint, Listing};
use super::prefetch::{BATCH, Grant, Window};
use super::spill::Spill;
use super::stat::{self, Stat};
use super::{Parent, TreeOptions};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Directories that stay open.
const OPEN: usize = 32;
/// Longest path relative to the root, in bytes. Trees beyond are made by accident or malice.
pub const MAX_PATH: usize = 32 * 1024;

/// A batch of work: its number, its items, and the memory that describes them.
pub(super) type Batch = (u64, Vec<Item>, Grant);

/// A directory on the way from the root to the present place.
struct Level {
    fd: Option<Arc<OwnedFd>>,
    stat: Stat,
    names: Listing,
    /// Length of its path.
    path: usize,
}

pub(super) struct Walk<'a> {
    root: &'a std::path::Path,
    options: &'a TreeOptions,
    parent: Option<Parent<'a>>,
    progress: &'a Progress,
    window: Arc<Window>,
    work: Sender<Batch>,
    ticket: u64,
    items: Vec<Item>,
    stack: Vec<Level>,
    /// Path of the present directory or file.
    path: Vec<u8>,
    spill: Spill,
    /// Bytes of names that may be in memory.
    memory: usize,
    resident: usize,
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        root: &'a std::path::Path,
        options: &'a TreeOptions,
        memory: usize,
        parent: Option<Parent<'a>>,
        progress: &'a Progress,
        window: Arc<Window>,
        work: Sender<Batch>,
    ) -> Self {
        Self {
            root,
            options,
            parent,
            progress,
            window,
            work,
            ticket: 0,
            items: Vec::with_capacity(BATCH),
            stack: Vec::new(),
            path: Vec::new(),
            spill: Spill::new(options.temp_dir.clone()),
            memory,
            resident: 0,
            buffer: Vec::new(),
        }
    }

    /// Walks everything below `root`. Returns early without an error when the walk is stopped.
    pub(super) fn run(mut self, root: OwnedFd) -> Result<()> {
        let stat = stat::of_fd(&root).map_err(|e| Error::source_io(self.root, "cannot be read", e.into()))?;
        let (names, failed) = self.list(&root)?;
        if let Some(errno) = failed {
            return Err(Error::source_io(self.root, "cannot be listed", errno.into()));
        }
        self.enter(root, stat, names)?;
        let mut name = Vec::new();
        while let Some(level) = self.stack.last_mut() {
            self.progress.check()?;
            let next = level.names.next(&mut self.spill)?;
            let Some((next, hint)) = next else {
                self.leave()?;
                continue;
            };
            name.clear();
            name.extend_from_slice(next);
            if !self.visit(&name, hint)? {
                return Ok(());
            }
        }
        self.flush();
        Ok(())
    }

    /// Deals with one name. False when the walk was stopped.
    fn visit(&mut self, name: &[u8], hint: Hint) -> Result<bool> {
        let Some(level) = self.stack.last() else { return Ok(false) };
        let Some(dir) = level.fd.clone() else {
            return Err(Error::Internal("the present directory is not open".into()));
        };
        self.path.truncate(level.path);
        if level.path > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        let mut stat = None;
        let mut hint = hint;
        if matches!(hint, Hint::Unknown | Hint::Directory) {
            match stat::at(&dir, name) {
                Ok(found) => {
                    hint = Hint::of(found.kind);
                    stat = Some(found);
                }
                Err(Errno::NOENT) => return Ok(self.push(What::Vanished)),
                Err(errno) => return self.skip("cannot be read", errno),
            }
        }
        let is_directory = hint == Hint::Directory;
        if self.options.excludes.matches(&self.path, is_directory) {
            return Ok(true);
        }
        if self.path.len() > MAX_PATH {
            let reason = format!("path is longer than {MAX_PATH} bytes");
            return Ok(self.push(What::Skip { reason }));
        }
        if let Some(stat) = stat
            && is_directory
        {
            return self.directory(&dir, name, stat);
        }
        let parent = match &mut self.parent {
            Some(lookup) if hint == Hint::File => lookup(&self.path)?.map(Box::new),
            _ => None,
        };
        Ok(self.push(What::Node { dir, hint, parent }))
    }

    fn directory(&mut self, dir: &Arc<OwnedFd>, name: &[u8], stat: Stat) -> Result<bool> {
        let is_mount = |stat: &Stat| {
            let above = self.stack.last().map(|level| &level.stat);
            self.options.one_file_system && above.is_some_and(|above| stat.is_elsewhere(above))
        };
        // Told apart before it is opened, because opening may mount something.
        if is_mount(&stat) {
            return Ok(self.push(What::Closed { dir: Arc::clone(dir), stat, unreadable: None }));
        }
        let fd = match open(dir, name, OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(self.push(What::Vanished)),
            Err(errno) if is_exhaustion(errno) => return self.skip("cannot be opened", errno),
            Err(errno) => {
                let unreadable = Some(errno);
                return Ok(self.push(What::Closed { dir: Arc::clone(dir), stat, unreadable }));
            }
        };
        let stat = match stat::of_fd(&fd) {
            Ok(stat) => stat,
            Err(errno) => return self.skip("cannot be read", errno),
        };
        if is_mount(&stat) {
            return Ok(self.push(What::Closed { dir: Arc::clone(dir), stat, unreadable: None }));
        }
        let (names, failed) = self.list(&fd)?;
        if !self.enter(fd, stat, names)? {
            return Ok(false);
        }
        match failed {
            Some(errno) => self.skip("directory cannot be listed to its end", errno),
            None => Ok(true),
        }
    }

    /// Lists a directory after making room for its names.
    fn list(&mut self, dir: &OwnedFd) -> Result<(Listing, Option<Errno>)> {
        Listing::read(dir.as_fd(), self.memory / 2, &mut self.buffer, &mut self.spill)
    }

    /// Goes down into the directory at the present path.
    fn enter(&mut self, fd: OwnedFd, stat: Stat, names: Listing) -> Result<bool> {
        let fd = Arc::new(fd);
        let going = self.push(What::Directory { fd: Arc::clone(&fd), stat: stat.clone() });
        self.stack.push(Level { fd: Some(fd), stat, names, path: self.path.len() });
        // The root stays open: from there everything else is found again.
        if let Some(far) = self.stack.len().checked_sub(OPEN + 1).filter(|far| *far > 0) {
            self.stack[far].fd = None;
        }
        self.resident = self.stack.iter().map(|level| level.names.resident()).sum();
        if self.resident > self.memory / 2 {
            // The lists of the directories furthest up are needed last.
            let (_, above) = self.stack.split_last_mut().unzip();
            for level in above.into_iter().flatten() {
                level.names.park(&mut self.spill)?;
            }
        }
        Ok(going)
    }

    /// Goes up. The directory above must be open again afterwards, or it is given up.
    fn leave(&mut self) -> Result<()> {
        let Some(done) = self.stack.pop() else { return Ok(()) };
        done.names.discard(&mut self.spill);
        let mut child = done.fd;
        while let Some(level) = self.stack.last() {
            self.path.truncate(level.path);
            if level.fd.is_some() {
                return Ok(());
            }
            match self.reopen(child.take().as_deref()) {
                Ok(fd) => {
                    if let Some(level) = self.stack.last_mut() {
                        level.fd = Some(Arc::new(fd));
                    }
                    return Ok(());
                }
                Err(errno) => {
                    self.skip("directory was moved or removed while it was read", errno)?;
                    if let Some(lost) = self.stack.pop() {
                        lost.names.discard(&mut self.spill);
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens the lowest directory of the stack again, from one that was in it or from the next one above that is open.
    fn reopen(&self, child: Option<&OwnedFd>) -> rustix::io::Result<OwnedFd> {
        let Some(level) = self.stack.last() else { return Err(Errno::NOENT) };
        let is_same = |fd: &OwnedFd| stat::of_fd(fd).is_ok_and(|stat| stat.is_same_file(&level.stat));
        if let Some(fd) = child.and_then(|child| open(child, b"..", OFlags::DIRECTORY).ok())
            && is_same(&fd)
        {
            return Ok(fd);
        }
        let above = self.stack.iter().rev().find_map(|level| Some((level.fd.as_ref()?, level.path)));
        let Some((fd, path)) = above else { return Err(Errno::NOENT) };
        let mut fd = fd.try_clone().map_err(|_| Errno::MFILE)?;
        for name in self.path[path..level.path].split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            fd = open(&fd, name, OFlags::DIRECTORY)?;
        }
        if is_same(&fd) { Ok(fd) } else { Err(Errno::STALE) }
    }

    /// Reports trouble at the present path. Fails when it is not the path's own.
    fn skip(&mut self, what: &str, errno: Errno) -> Result<bool> {
        if is_exhaustion(errno) {
            return Err(Error::source_io(&super::join(self.root, &self.path), what, errno.into()));
        }
        Ok(self.push(What::Skip { reason: format!("{what}: {errno}") }))
    }

    /// Hands an item at the present path on. False when the walk was stopped.
    fn push(&mut self, what: What) -> bool {
        self.items.push(Item { path: self.path.clone(), what });
        self.items.len() < BATCH || self.flush()
    }

    fn flush(&mut self) -> bool {
        if self.items.is_empty() {
            return true;
        }
        let items = std::mem::replace(&mut self.items, Vec::with_capacity(BATCH));
        let bytes = items.iter().map(cost).sum();
        let Some(grant) = self.window.admit(self.ticket, bytes) else { return false };
        let sent = self.work.send((self.ticket, items, grant)).is_ok();
        self.ticket += 1;
        sent
    }
}

/// Bytes that an item takes until it is delivered.
fn cost(item: &Item) -> usize {
    let parent = match &item.what {
        What::Node { parent: Some(entry), .. } => entry.weight(),
        _ => 0,
    };
    size_of::<Item>() + item.path.len() + parent
}
