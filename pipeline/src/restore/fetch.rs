//! Fetches, opens and delivers: the part that all restores share.
//!
//! ```text
//! planner ──reads, granted by bytes──► async fetches ──► workers: open ──► Deliver
//! ```

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::plan::{Fetch, Frame, Planner, Unknown, WINDOW_WEIGHT};
use crate::entry::ChunkRef;
use crate::error::{Error, FirstError, Result};
use crate::hash::ObjectType;
use crate::index::Index;
use crate::io::Pool;
use crate::limits::Rate;
use crate::pack::Location;
use crate::pack::reader::Opener;
use crate::page::load::{PageLoader, is_lost};
use crate::progress::{Progress, Station};
use crate::store::Store;

/// What a worker does with an opened chunk. One per worker.
pub(crate) trait Deliver: Send {
    /// Who wants a chunk, and where.
    type To: Send + 'static;

    /// Takes the plaintext of a chunk for one of those who want it.
    ///
    /// # Errors
    /// Ends the run.
    fn deliver(&mut self, plain: &Bytes, to: Self::To) -> Result<()>;

    /// Notes that the chunk cannot be had.
    ///
    /// # Errors
    /// Ends the run: when damage is not to be survived.
    fn lost(&mut self, to: Self::To, why: Error) -> Result<()>;

    /// Called once there is nothing more to come.
    ///
    /// # Errors
    /// Ends the run.
    fn finish(&mut self) -> Result<()>;
}

/// What all workers of a restore share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) index: Arc<Index>,
    pub(crate) loader: Arc<PageLoader>,
    pub(crate) failure: Arc<FirstError>,
    pub(crate) progress: Arc<Progress>,
    /// Plaintext buffers.
    pub(crate) pool: Pool,
    /// How fast bytes may be fetched.
    pub(crate) fetch_pace: Rate,
    /// How fast bytes may be written to the target.
    pub(crate) write_pace: Rate,
    /// Bytes fetched and not yet opened, and who wants them; one permit for each [`GRAIN`].
    pub(crate) fetched: Arc<Semaphore>,
    /// Reads in flight, one permit each: see [`READS`].
    pub(crate) reads: Arc<Semaphore>,
}

/// Reads in flight at the same time. Bytes alone do not bound them: scattered small frames are thousands of reads to
/// a few megabytes, and each is a request with a socket of its own. With [`super::tree::OPEN_FILES`] they stay below
/// the usual limit of 1,024 descriptors.
pub(crate) const READS: usize = 64;

/// What one fetch may count as, bytes: a frame of 16 MiB with its tag, and a window of those who want it. So much must
/// [`Shared::fetched`] be able to grant.
pub(crate) const LARGEST_FETCH: usize = (17 << 20) + WINDOW_WEIGHT;

/// Bytes of one permit of [`Shared::fetched`].
pub(crate) const GRAIN: u64 = 4 << 10;

/// What a worker deals with next.
enum Ready<T> {
    Fetched(Fetched<T>),
    /// A want that no pack is known for.
    Unknown {
        to: T,
        /// Given back when it is dealt with.
        _grant: OwnedSemaphorePermit,
    },
}

struct Fetched<T> {
    fetch: Fetch<T>,
    result: Result<Bytes>,
    /// Given back when the bytes are opened.
    _grant: OwnedSemaphorePermit,
}

/// Accepts wants on one side; the other side is a worker each.
pub(crate) struct Fetcher<T> {
    shared: Shared,
    planner: Planner<T>,
    done: Sender<Ready<T>>,
}

/// The workers' side of a [`Fetcher`].
pub(crate) struct Deliveries<T> {
    shared: Shared,
    ready: Receiver<Ready<T>>,
}

impl<T> Clone for Deliveries<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), ready: self.ready.clone() }
    }
}

/// Both sides, planning in windows of about `window` stored bytes.
pub(crate) fn fetcher<T: Send + 'static>(shared: &Shared, window: u64) -> (Fetcher<T>, Deliveries<T>) {
    // Unbounded, but everything in it holds a grant of the semaphore.
    let (done, ready) = unbounded();
    let planner = Planner::new(Arc::clone(&shared.index), window);
    let fetcher = Fetcher { shared: shared.clone(), planner, done };
    (fetcher, Deliveries { shared: shared.clone(), ready })
}

impl<T: Send + 'static> Fetcher<T> {
    /// Asks for a chunk. `to` takes `weight` bytes of memory until it is dealt with.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the run is cancelled or failed meanwhile.
    pub(crate) fn want(&mut self, chunk: ChunkRef, to: T, weight: usize) -> Result<()> {
        match self.planner.want(chunk, to, weight) {
            Ok(false) => Ok(()),
            Ok(true) => self.flush(),
            Err(Unknown(to)) => {
                // At once: an open file waits for it. Nobody listens only when the run has failed already.
                let _grant = self.grant(weight as u64)?;
                let _ = self.done.send(Ready::Unknown { to, _grant });
                Ok(())
            }
        }
    }

    /// Starts the reads of everything asked for so far.
    ///
    /// # Errors
    /// As [`Fetcher::want`].
    pub(crate) fn flush(&mut self) -> Result<()> {
        for fetch in self.planner.take() {
            self.shared.failure.check()?;
            self.shared.progress.check()?;
            self.start(fetch)?;
        }
        Ok(())
    }

    /// Waits until `bytes` of memory may be taken.
    fn grant(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let idle = Instant::now();
        let grant = self
            .shared
            .runtime
            .block_on(Arc::clone(&self.shared.fetched).acquire_many_owned(grains(bytes)))
            .map_err(|_| Error::Cancelled)?;
        self.shared.progress.waited_for(Station::Cpu, idle.elapsed());
        Ok(grant)
    }

    fn start(&self, fetch: Fetch<T>) -> Result<()> {
        // Small files that compress well are many to a read: those who wait for it take more memory than it does.
        let wants: usize = fetch.frames.iter().map(|frame| frame.weight).sum();
        let bytes = fetch.range.end - fetch.range.start + wants as u64;
        self.shared.fetch_pace.wait(fetch.range.end - fetch.range.start, &self.shared.progress)?;
        let grant = self.grant(bytes)?;
        let idle = Instant::now();
        let reads = Arc::clone(&self.shared.reads).acquire_owned();
        let read = self.shared.runtime.block_on(reads).map_err(|_| Error::Cancelled)?;
        self.shared.progress.waited_for(Station::Store, idle.elapsed());
        let (store, done) = (Arc::clone(&self.shared.store), self.done.clone());
        self.shared.runtime.spawn(async move {
            let result = store.read(&fetch.pack.key(), fetch.range.clone()).await.map_err(Error::from);
            // The store is done; that the bytes wait for a worker is what the grant counts.
            drop(read);
            // Nobody listens only when the run has failed already.
            let _ = done.send(Ready::Fetched(Fetched { fetch, result, _grant: grant }));
        });
        Ok(())
    }
}

impl<T: Send + 'static> Deliveries<T> {
    /// Opens and delivers until the [`Fetcher`] is dropped and everything it asked for is dealt with.
    pub(crate) fn run(self, mut opener: Opener, mut target: impl Deliver<To = T>) {
        let result = self.work(&mut opener, &mut target);
        self.shared.failure.note(result);
    }

    fn work(&self, opener: &mut Opener, target: &mut impl Deliver<To = T>) -> Result<()> {
        let mut idle = Instant::now();
        while let Ok(ready) = self.ready.recv() {
            self.shared.progress.waited_for(Station::Store, idle.elapsed());
            self.shared.failure.check()?;
            match ready {
                Ready::Fetched(fetched) => self.deliver(fetched, opener, target)?,
                Ready::Unknown { to, _grant } => {
                    let what = "no pack is known to hold a chunk of this snapshot";
                    target.lost(to, Error::damaged("index", what))?;
                }
            }
            idle = Instant::now();
        }
        self.shared.failure.check()?;
        target.finish()
    }

    fn deliver(
        &self,
        fetched: Fetched<T>,
        opener: &mut Opener,
        target: &mut impl Deliver<To = T>,
    ) -> Result<()> {
        let Fetched { fetch, result, _grant } = fetched;
        let stored = match result {
            Ok(stored) => Some(stored),
            Err(error) if is_lost(&error) => None,
            Err(error) => return Err(error),
        };
        for frame in fetch.frames {
            let at = frame.at;
            let start = usize::try_from(u64::from(at.offset) - fetch.range.start).unwrap_or(usize::MAX);
            let opened = stored
                .as_ref()
                .map(|stored| self.open(opener, &frame, &stored[start..start + at.stored as usize]));
            let opened = match sound(opened)? {
                Some(plain) => Ok(plain),
                // Ask for this chunk alone, which also asks the index.
                None => {
                    let chunk = ChunkRef { hint: Some(at), ..frame.chunk };
                    self.shared.loader.fetch(ObjectType::Data, &chunk).map(Bytes::from)
                }
            };
            match opened {
                Ok(plain) => {
                    for to in frame.to {
                        self.shared.write_pace.wait(plain.len() as u64, &self.shared.progress)?;
                        target.deliver(&plain, to)?;
                    }
                }
                Err(error) if is_lost(&error) => {
                    for to in frame.to {
                        target.lost(to, again(&error, &at))?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn open(&self, opener: &mut Opener, frame: &Frame<T>, stored: &[u8]) -> Result<Bytes> {
        let length = frame.at.length as usize;
        if length <= self.shared.pool.buffer_size() {
            let mut buf = self.shared.pool.take();
            buf.set_len(length);
            opener.open(ObjectType::Data, &frame.chunk.id, &frame.at, stored, &mut buf)?;
            Ok(buf.freeze())
        } else {
            let mut plain = vec![0; length];
            opener.open(ObjectType::Data, &frame.chunk.id, &frame.at, stored, &mut plain)?;
            Ok(plain.into())
        }
    }
}

/// Permits for `bytes` of memory. One want with more than may ever be granted gets all there is: it is alone then.
fn grains(bytes: u64) -> u32 {
    u32::try_from(bytes.min(LARGEST_FETCH as u64).div_ceil(GRAIN)).unwrap_or(u32::MAX)
}

/// The plaintext; nothing when there was nothing to open, or when another copy could make good what is wrong with it.
fn sound(opened: Option<Result<Bytes>>) -> Result<Option<Bytes>> {
    match opened {
        Some(Ok(plain)) => Ok(Some(plain)),
        Some(Err(error)) if !is_lost(&error) => Err(error),
        Some(Err(_)) | None => Ok(None),
    }
}

/// The same damage, for one more who wants the chunk.
fn again(error: &Error, at: &Location) -> Error {
    match error {
        Error::Damaged { object, offset, what } => {
            Error::Damaged { object: object.clone(), offset: *offset, what: what.clone() }
        }
        other => Error::damaged_at(at.pack.key(), u64::from(at.offset), other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_waits_for_more_than_there_is() {
        // As many as the smallest of runs has: see `Run::prepare`.
        let permits = LARGEST_FETCH / usize::try_from(GRAIN).unwrap();
        let semaphore = Semaphore::new(permits);
        for bytes in [1, GRAIN, 17 << 20, LARGEST_FETCH as u64 + 1, u64::MAX] {
            assert!(semaphore.try_acquire_many(grains(bytes)).is_ok(), "{bytes}");
        }
        assert_eq!((grains(1), grains(GRAIN + 1)), (1, 2));
    }

    #[test]
    fn only_damage_asks_for_another_copy() {
        assert_eq!(sound(Some(Ok(Bytes::from_static(b"x")))).unwrap().unwrap(), "x");
        assert!(sound(None).unwrap().is_none());
        assert!(sound(Some(Err(Error::damaged("packs/x", "bad tag")))).unwrap().is_none());
        let internal = sound(Some(Err(Error::Internal("a bug".into()))));
        assert!(matches!(internal, Err(Error::Internal(_))), "{internal:?}");
    }
}
