//! Directories of the target by path, resolved beneath its root and nowhere else.
//!
//! The kernel does it in one step (`openat2` with `RESOLVE_BENEATH`, no links of any kind); where that call is missing
//! or forbidden, we go name by name and follow no link. A few directories stay open: paths come in tree order, so
//! most of them are in a directory that was used just before, and a path may be longer than the system allows.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Directories that stay open.
const OPEN: usize = 128;
/// Longest path in one system call, in bytes; the limit is 4,096.
const STEP: usize = 4000;

#[derive(Debug)]
pub(super) struct Directories {
    root: Arc<OwnedFd>,
    /// The kernel resolves paths beneath a directory.
    beneath: bool,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    dirs: HashMap<Vec<u8>, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

impl Directories {
    pub(super) fn new(root: OwnedFd) -> Self {
        // Old kernels say ENOSYS; sandboxes that do not know the call, EPERM.
        let beneath = step(&root, b".", true).is_ok();
        Self { root: Arc::new(root), beneath, cache: Mutex::default() }
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    #[cfg(test)]
    pub(super) fn forbid_openat2(&mut self) {
        self.beneath = false;
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the directory at a path that was checked, to be used as the start of other paths only.
    pub(super) fn open(&self, path: &[u8]) -> rustix::io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        let (mut dir, mut rest) = self.nearest(path);
        if rest.is_empty() {
            return Ok(dir);
        }
        while !rest.is_empty() {
            let end = if self.beneath { step_end(rest) } else { first_end(rest) };
            dir = Arc::new(step(&dir, &rest[..end], self.beneath)?);
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        let mut cache = self.lock();
        cache.clock += 1;
        if cache.dirs.len() >= OPEN {
            let oldest = cache.dirs.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            oldest.and_then(|path| cache.dirs.remove(&path));
        }
        let clock = cache.clock;
        cache.dirs.insert(path.to_vec(), (Arc::clone(&dir), clock));
        Ok(dir)
    }

    /// The nearest directory at or above `path` that is open, and the way from there.
    fn nearest<'a>(&self, path: &'a [u8]) -> (Arc<OwnedFd>, &'a [u8]) {
        let mut cache = self.lock();
        cache.clock += 1;
        let clock = cache.clock;
        if let Some((dir, used)) = cache.dirs.get_mut(path) {
            *used = clock;
            return (Arc::clone(dir), &[]);
        }
        // Looking at all of the few is cheaper than hashing every ancestor of a path of thousands of bytes.
        let above =
            cache.dirs.iter_mut().filter(|(dir, _)| is_above(dir, path)).max_by_key(|(dir, _)| dir.len());
        match above {
            Some((above, (dir, used))) => {
                *used = clock;
                (Arc::clone(dir), &path[above.len() + 1..])
            }
            None => (Arc::clone(&self.root), path),
        }
    }

    /// A directory at `path` was removed.
    pub(super) fn forget(&self, path: &[u8]) {
        self.lock().dirs.remove(path);
    }
}

/// True when `path` is below the directory at `above`.
fn is_above(above: &[u8], path: &[u8]) -> bool {
    path.get(above.len()) == Some(&b'/') && path.starts_with(above)
}

/// Where the first name ends.
fn first_end(path: &[u8]) -> usize {
    path.iter().position(|b| *b == b'/').unwrap_or(path.len())
}

/// Where the last name ends that fits into one step.
fn step_end(path: &[u8]) -> usize {
    if path.len() <= STEP {
        return path.len();
    }
    path[..STEP].iter().rposition(|b| *b == b'/').unwrap_or_else(|| first_end(path))
}

fn step(dir: impl AsFd, path: &[u8], beneath: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        let opened = if beneath {
            openat2(dir.as_fd(), path, flags, Mode::empty(), resolve)
        } else {
            openat(dir.as_fd(), path, flags, Mode::empty())
        };
        match opened {
            // Somebody renames in the tree; the kernel asks for another try.
            Err(Errno::INTR | Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}
