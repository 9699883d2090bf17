//! A budget of bytes that one thread spends and another gives back.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may be held at a time.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    shared: Arc<Shared>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<usize>,
    returned: Condvar,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, usize> {
        // A plain counter: whatever a panicking thread was doing, it is consistent.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a [`Budget`], given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes, all of them free.
    pub(super) fn new(limit: usize) -> Self {
        Self { shared: Arc::default(), limit }
    }

    /// Takes `bytes` if they are free now. What is larger than the budget may be held alone.
    pub(super) fn try_take(&self, bytes: usize) -> Option<Held> {
        let mut held = self.shared.held();
        self.fits(*held, bytes).then(|| {
            *held += bytes;
            Held { shared: Arc::clone(&self.shared), bytes }
        })
    }

    /// As [`Budget::try_take`], but waits. Who gives back must not wait for the caller.
    pub(super) fn take(&self, bytes: usize) -> Held {
        let mut held = self.shared.held();
        while !self.fits(*held, bytes) {
            held = self.shared.returned.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held += bytes;
        Held { shared: Arc::clone(&self.shared), bytes }
    }

    fn fits(&self, held: usize, bytes: usize) -> bool {
        held == 0 || held + bytes <= self.limit
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.shared.held() -= self.bytes;
        self.shared.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_kept_and_nothing_waits_for_ever() {
        let budget = Budget::new(100);
        let large = budget.take(1000);
        assert!(budget.try_take(1).is_none());
        drop(large);
        let (first, second) = (budget.take(60), budget.take(40));
        assert!(budget.try_take(1).is_none());
        let waiter = {
            let budget = budget.clone();
            std::thread::spawn(move || budget.take(1000).bytes)
        };
        drop((first, second));
        assert_eq!(waiter.join().unwrap(), 1000);
        assert_eq!(*budget.shared.held(), 0);
    }
}
