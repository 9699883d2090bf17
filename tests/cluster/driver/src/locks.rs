//! One call at a time for each volume, snapshot and name; calls about different ones do not wait for each other.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// The names that calls hold.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Mutex<HashSet<String>>,
    freed: Condvar,
}

/// Names held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    locks: &'a Locks,
    names: Vec<String>,
}

impl Locks {
    /// Waits until all of `names` are free and takes them at once, so that no two calls wait for each other.
    pub(crate) fn hold(&self, names: &[&str]) -> Held<'_> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |held: &mut HashSet<String>| names.iter().any(|name| held.contains(*name));
        let mut held = self.freed.wait_while(held, taken).unwrap_or_else(PoisonError::into_inner);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        held.extend(names.iter().cloned());
        Held { locks: self, names }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            held.remove(name);
        }
        self.locks.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_held_name_is_waited_for_and_others_are_not() {
        let locks = Locks::default();
        let (sender, receiver) = mpsc::channel();
        let first = locks.hold(&["a", "b"]);
        drop(locks.hold(&["c"]));
        thread::scope(|scope| {
            let sender = &sender;
            let locks = &locks;
            scope.spawn(move || {
                let _held = locks.hold(&["c", "b"]);
                sender.send("second").unwrap();
            });
            sender.send("first").unwrap();
            drop(first);
        });
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["first", "second"]);
    }
}
