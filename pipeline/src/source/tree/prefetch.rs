//! How far the walk may run ahead: tickets in order, memory and open files by grant.
//!
//! Work travels in batches that are numbered in tree order. Any thread may finish any batch, but they are delivered
//! by number; so a batch must never wait for memory that only a later one holds. Hence the one exception: the batch
//! that is to be delivered next is granted what it asks for, always. What that can add is one batch of small files,
//! and the limit leaves room for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Batches under way.
pub(super) const WINDOW: u64 = 32;
/// Items of a batch. Together with [`WINDOW`] this bounds the directories that are held open.
pub(super) const BATCH: usize = 8;
/// Large files that are open before their turn.
const FILES: usize = 64;

/// What is under way.
#[derive(Debug)]
pub(super) struct Window {
    state: Mutex<State>,
    changed: Condvar,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Batches delivered; the number of the next one.
    delivered: u64,
    bytes: usize,
    files: usize,
    waiting: usize,
    stopped: bool,
}

/// Memory or an open file, given back on drop.
#[derive(Debug)]
pub(super) struct Grant {
    window: Arc<Window>,
    bytes: usize,
    files: usize,
}

impl Window {
    /// At most `bytes` are granted, but for what one batch needs.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain counters: whatever a panicking thread was doing, they are consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, ready: impl Fn(&State) -> bool) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        while !state.stopped && !ready(&state) {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.stopped { None } else { Some(state) }
    }

    /// Waits until batch `ticket` may start and takes `bytes` for its description. `None` when the walk is stopped.
    pub(super) fn admit(self: &Arc<Self>, ticket: u64, bytes: usize) -> Option<Grant> {
        let may = |s: &State| {
            ticket == s.delivered || (ticket - s.delivered < WINDOW && s.bytes + bytes <= self.bytes)
        };
        self.wait_until(may).map(|state| self.take(state, bytes, 0))
    }

    /// Waits for `bytes` of memory for batch `ticket`. `None` when the walk is stopped.
    pub(super) fn memory(self: &Arc<Self>, ticket: u64, bytes: usize) -> Option<Grant> {
        self.wait_until(|s| ticket == s.delivered || s.bytes + bytes <= self.bytes)
            .map(|state| self.take(state, bytes, 0))
    }

    /// Waits for leave to keep a file open for batch `ticket`. `None` when the walk is stopped.
    pub(super) fn open_file(self: &Arc<Self>, ticket: u64) -> Option<Grant> {
        self.wait_until(|s| ticket == s.delivered || s.files < FILES).map(|state| self.take(state, 0, 1))
    }

    fn take(self: &Arc<Self>, mut state: MutexGuard<'_, State>, bytes: usize, files: usize) -> Grant {
        state.bytes += bytes;
        state.files += files;
        Grant { window: Arc::clone(self), bytes, files }
    }

    /// The next batch is delivered.
    pub(super) fn advance(&self) {
        let mut state = self.lock();
        state.delivered += 1;
        self.wake(&state);
    }

    /// Nothing is granted any more; everyone who waits is told.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        self.wake(&state);
    }

    fn wake(&self, state: &State) {
        // Waking costs a system call even when nobody sleeps.
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.window.lock();
        state.bytes -= self.bytes;
        state.files -= self.files;
        self.window.wake(&state);
    }
}

/// Stops the walk when its thread panics, so that the others do not wait for it for ever.
pub(super) struct StopOnPanic<'a>(pub(super) &'a Window);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_batch_never_waits_for_later_ones() {
        let window = Window::new(100);
        let later = window.memory(5, 100).unwrap();
        let next = window.memory(0, 50).unwrap();
        assert_eq!(window.lock().bytes, 150);
        drop(next);
        let waiter = {
            let window = Arc::clone(&window);
            std::thread::spawn(move || window.memory(3, 10).is_some())
        };
        drop(later);
        assert!(waiter.join().unwrap());
        assert_eq!(window.lock().bytes, 0);
    }

    #[test]
    fn a_stop_reaches_those_who_wait() {
        let window = Window::new(0);
        let waiter = {
            let window = Arc::clone(&window);
            std::thread::spawn(move || window.admit(WINDOW, 0).is_none())
        };
        std::thread::sleep(std::time::Duration::from_millis(20));
        window.stop();
        assert!(waiter.join().unwrap());
    }
}
