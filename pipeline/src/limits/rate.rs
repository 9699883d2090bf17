//! One rate for everything that shares it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Progress;

/// Pieces are a tenth of a second's worth at most: smooth for networks and disks, and nobody waits long behind another's.
const PIECES_PER_SECOND: u64 = 10;

/// Most bytes of a piece, so that those who want much at a time get no more than those who want less.
const PIECE: u64 = 1 << 20;

/// Nobody wakes on time. This much lateness is made up for.
const LATE: Duration = Duration::from_millis(10);

/// Whoever waits looks this often whether the limit has changed or the run was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// A rate in bytes per second; 0 is unlimited. Clones are one and the same: whatever number of runs and threads holds
/// them, together they move no more, each piece by piece in turn. A change is felt at once, by those who wait as well.
#[derive(Debug, Clone, Default)]
pub struct Rate(Arc<Mutex<Line>>);

#[derive(Debug, Default)]
struct Line {
    /// Bytes per second; 0 is unlimited.
    limit: u64,
    /// When the next piece may go. Each place pushes it back, so those who wait are served in order.
    next: Option<Instant>,
    /// Changes of the limit. Places in the line from before are void.
    changes: u64,
}

impl Line {
    /// Pushes the next piece back by what `bytes` take, and says when these may go.
    fn place(&mut self, bytes: u64) -> Instant {
        let now = Instant::now();
        let nanos = (u128::from(bytes) * 1_000_000_000).checked_div(self.limit.into()).unwrap_or(0);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Time that nobody used is gone: no burst after a pause.
        let start = self.next.map_or(now, |next| next.max(now.checked_sub(LATE).unwrap_or(now)));
        self.next = start.checked_add(takes).or(self.next);
        start
    }
}

impl Rate {
    /// No limit.
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// A limit of `bytes_per_second`; 0 is unlimited.
    pub fn new(bytes_per_second: u64) -> Self {
        let rate = Self::default();
        rate.set(bytes_per_second);
        rate
    }

    /// Changes the limit for everyone who holds this rate.
    pub fn set(&self, bytes_per_second: u64) {
        let mut line = self.line();
        if line.limit != bytes_per_second {
            *line = Line { limit: bytes_per_second, next: None, changes: line.changes + 1 };
        }
    }

    /// The limit in bytes per second; 0 is unlimited.
    pub fn get(&self) -> u64 {
        self.line().limit
    }

    /// Blocks until `bytes` more may move.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) when the run is cancelled meanwhile.
    pub fn wait(&self, mut bytes: u64, progress: &Progress) -> Result<()> {
        progress.check()?;
        while bytes > 0 {
            let mut turn = self.turn(bytes);
            bytes -= loop {
                match turn.take() {
                    Ok(piece) => break piece,
                    Err(pause) => std::thread::sleep(pause),
                }
                progress.check()?;
            };
        }
        Ok(())
    }

    /// Waits until `bytes` more may move.
    pub async fn admit(&self, mut bytes: u64) {
        while bytes > 0 {
            let mut turn = self.turn(bytes);
            bytes -= loop {
                match turn.take() {
                    Ok(piece) => break piece,
                    Err(pause) => tokio::time::sleep(pause).await,
                }
            };
        }
    }

    /// Counts `bytes` that go without waiting: whatever comes next waits for them, too.
    pub fn charge(&self, bytes: u64) {
        let mut line = self.line();
        if line.limit > 0 {
            line.place(bytes);
        }
    }

    /// Stands in line for the first of `bytes`. For those who can neither block nor await.
    pub fn turn(&self, bytes: u64) -> Turn {
        let mut line = self.line();
        let piece = match line.limit {
            0 => bytes,
            limit => bytes.min((limit / PIECES_PER_SECOND).clamp(1, PIECE)),
        };
        let (at, change) = (line.place(piece), line.changes);
        drop(line);
        Turn { rate: self.clone(), bytes, piece, at, change }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line of those who share a [`Rate`].
#[derive(Debug)]
pub struct Turn {
    rate: Rate,
    bytes: u64,
    piece: u64,
    at: Instant,
    change: u64,
}

impl Turn {
    /// How many of the bytes may go now, in which case the turn is over: all of them where there is no limit, otherwise
    /// a tenth of a second's worth and 1 MiB at most, and one at least.
    ///
    /// # Errors
    /// It is not time yet: ask again after this long.
    pub fn take(&mut self) -> std::result::Result<u64, Duration> {
        if self.rate.line().changes != self.change {
            *self = self.rate.turn(self.bytes);
        }
        match self.at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Ok(self.piece),
            left => Err(left.min(LOOK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `wait` on threads of their own and returns how many bytes each got in `time`.
    fn race(rate: &Rate, time: Duration, bytes: &[u64]) -> Vec<u64> {
        let start = Instant::now();
        let got = |bytes: u64| {
            let (rate, progress) = (rate.clone(), Progress::default());
            move || {
                let mut got = 0;
                while start.elapsed() < time {
                    rate.wait(bytes, &progress).unwrap();
                    got += bytes;
                }
                got
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = bytes.iter().map(|bytes| scope.spawn(got(*bytes))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn the_rate_is_for_all_together_and_everyone_has_a_share() {
        let rate = Rate::new(1 << 20);
        let start = Instant::now();
        let got = race(&rate, Duration::from_secs(2), &[10 << 10, 300 << 10]);
        let most = (start.elapsed().as_secs_f64() + 0.5) * f64::from(1 << 20);
        let all = got.iter().sum::<u64>();
        assert!((all as f64) < most, "{got:?}");
        // Those with little at a time wait more often, behind a piece of the others each time.
        let smallest = 10 << 14;
        assert!(got.iter().all(|got| *got >= smallest), "{got:?}");
        // Those with more than a piece at a time get the same.
        rate.set(64 << 20);
        let got = race(&rate, Duration::from_secs(2), &[1 << 20, 8 << 20, 2 << 20]);
        assert!(got.iter().min().unwrap() * 3 >= *got.iter().max().unwrap(), "{got:?}");
    }

    #[test]
    fn a_change_ends_waits_that_have_begun() {
        for limit in [0, 1 << 30] {
            let rate = Rate::new(1);
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| rate.wait(1 << 20, &Progress::default()).unwrap());
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                let admitted = rate.clone();
                scope.spawn(move || runtime.block_on(admitted.admit(1 << 20)));
                std::thread::sleep(Duration::from_millis(300));
                rate.set(limit);
            });
            assert!(start.elapsed() < Duration::from_secs(5), "{limit}: {:?}", start.elapsed());
        }
    }

    #[test]
    fn a_lower_limit_does_not_wait_for_what_went_at_the_higher() {
        let rate = Rate::new(1 << 40);
        rate.charge(1 << 40);
        rate.set(1 << 20);
        let start = Instant::now();
        rate.wait(1, &Progress::default()).unwrap();
        assert!(start.elapsed() < Duration::from_millis(500));
    }

    #[test]
    fn waits_give_out_the_rate_and_end_with_the_run() {
        let rate = Rate::new(1 << 30);
        let progress = Progress::default();
        let before = Instant::now();
        for _ in 0..4 {
            rate.wait(16 << 20, &progress).unwrap();
        }
        // Three of four waits have to pass before the fourth is due: 48 MiB at 1 GiB/s.
        assert!(before.elapsed() >= Duration::from_millis(46));
        rate.set(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| rate.wait(1 << 30, &progress));
            std::thread::sleep(Duration::from_millis(50));
            progress.cancel();
            assert!(waiting.join().unwrap().is_err());
        });
        assert!(rate.wait(0, &progress).is_err());
    }

    #[tokio::test]
    async fn many_at_once_share_the_rate() {
        let rate = Rate::new(1 << 20);
        let start = Instant::now();
        let all: Vec<_> = (0..8)
            .map(|_| {
                let rate = rate.clone();
                tokio::spawn(async move { rate.admit(1 << 17).await })
            })
            .collect();
        for task in all {
            task.await.unwrap();
        }
        let took = start.elapsed().as_secs_f64();
        assert!((0.8..2.0).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn no_credit_from_pauses_and_no_rate_too_small() {
        let rate = Rate::new(3);
        for _ in 0..2 {
            let start = Instant::now();
            rate.admit(3).await;
            assert!((0.6..2.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
}
