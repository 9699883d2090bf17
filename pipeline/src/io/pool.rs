//! The bounded pool of aligned buffers: memory that was granted once and is handed round.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::buf::{Arena, Buf, Slot};
use crate::error::{Error, Result};

/// A fixed number of equal buffers in one mapping. Clones share it.
///
/// The pool *is* the memory limit of whoever uses it: when all buffers are out, [`take`](Self::take) waits. The
/// buffer that came back last goes out first, so a pool that is never exhausted keeps few buffers warm, and those that
/// were never needed never cost memory.
#[derive(Clone)]
pub struct Pool {
    home: Arc<Home>,
}

/// Where buffers return to.
pub(super) struct Home {
    arena: Arc<Arena>,
    free: Mutex<Vec<Slot>>,
    returned: Condvar,
}

impl Home {
    /// A panic elsewhere cannot leave a vector of slots half changed, so poison says nothing here.
    fn free(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn give_back(&self, slot: Slot) {
        self.free().push(slot);
        self.returned.notify_one();
    }
}

impl Pool {
    /// A pool of `count` buffers of `buffer_bytes` bytes, rounded up to a multiple of 4,096. Reserves addresses only.
    ///
    /// # Errors
    /// When the address space has no such room or `count` is 0.
    pub fn new(buffer_bytes: usize, count: usize) -> Result<Self> {
        if count == 0 || buffer_bytes == 0 {
            return Err(Error::Internal("a buffer pool without buffers".to_owned()));
        }
        let (arena, slots) =
            Arena::map(buffer_bytes, count).map_err(Error::io("reserve memory for", Path::new("buffers")))?;
        Ok(Self { home: Arc::new(Home { arena, free: Mutex::new(slots), returned: Condvar::new() }) })
    }

    /// A buffer of length 0; waits until there is one.
    pub fn take(&self) -> Buf {
        let mut free = self.home.free();
        loop {
            if let Some(slot) = free.pop() {
                return Buf::new(slot, Arc::clone(&self.home));
            }
            free = self.home.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A buffer of length 0, if one is free now.
    pub fn try_take(&self) -> Option<Buf> {
        let slot = self.home.free().pop()?;
        Some(Buf::new(slot, Arc::clone(&self.home)))
    }

    /// A buffer of length 0, if one becomes free within `timeout`.
    pub fn take_timeout(&self, timeout: Duration) -> Option<Buf> {
        let start = Instant::now();
        let mut free = self.home.free();
        loop {
            if let Some(slot) = free.pop() {
                return Some(Buf::new(slot, Arc::clone(&self.home)));
            }
            let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero())?;
            free = self.home.returned.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Capacity of each buffer in bytes.
    pub fn buffer_size(&self) -> usize {
        self.home.arena.piece()
    }

    /// Number of buffers, in use or not.
    pub fn count(&self) -> usize {
        self.home.arena.count()
    }

    /// Number of buffers that are free now.
    pub fn available(&self) -> usize {
        self.home.free().len()
    }

    /// The mapping, for registration with a ring.
    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.home.arena
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("buffer_size", &self.buffer_size())
            .field("count", &self.count())
            .field("available", &self.available())
            .finish()
    }
}

#[cfg(test)]
mod tests;
