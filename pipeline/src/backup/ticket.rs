//! Results that are awaited in the order of the volume while workers finish in any order.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::entry::ChunkRef;
use crate::error::{Error, Result};

/// What became of a piece of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Zeros of a block volume: needs no storage.
    Hole,
    /// Stored, now or before.
    Chunk(ChunkRef),
}

#[derive(Debug, Default)]
struct Slot {
    outcome: Mutex<Option<Result<Outcome, ()>>>,
    ready: Condvar,
}

/// The waiting end.
#[derive(Debug, Clone)]
pub(super) struct Ticket(Arc<Slot>);

/// The answering end. Dropped without an answer, the ticket fails: nobody waits for a worker that is gone.
#[derive(Debug)]
pub(super) struct Answer(Arc<Slot>);

/// A ticket and its answer.
pub(super) fn ticket() -> (Ticket, Answer) {
    let slot = Arc::new(Slot::default());
    (Ticket(Arc::clone(&slot)), Answer(slot))
}

impl Ticket {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when there will be none; the reason is in the run's first error.
    pub(super) fn wait(&self) -> Result<Outcome> {
        let mut outcome = self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *outcome {
                Some(Ok(outcome)) => return Ok(outcome),
                Some(Err(())) => return Err(Error::Cancelled),
                None => outcome = self.0.ready.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Answer {
    /// Answers.
    pub(super) fn set(self, outcome: Outcome) {
        self.fill(Ok(outcome));
    }

    fn fill(&self, value: Result<Outcome, ()>) {
        let mut outcome = self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.is_none() {
            *outcome = Some(value);
            self.0.ready.notify_all();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.fill(Err(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_answer_fails_its_ticket() {
        let (ticket, answer) = ticket();
        drop(answer);
        assert!(ticket.wait().is_err());
    }

    #[test]
    fn an_answer_reaches_all_who_wait() {
        let (ticket, answer) = ticket();
        let waiting: Vec<_> =
            (0..3).map(|_| ticket.clone()).map(|t| std::thread::spawn(move || t.wait())).collect();
        answer.set(Outcome::Hole);
        for thread in waiting {
            assert_eq!(thread.join().unwrap().unwrap(), Outcome::Hole);
        }
    }
}
