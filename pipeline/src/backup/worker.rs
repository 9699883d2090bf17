//! CPU workers: zero? -> id -> same as the parent here? -> known? -> compress -> encrypt, while the chunk is in cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::ticket::{Answer, Outcome};
use crate::chunk;
use crate::entry::ChunkRef;
use crate::error::{FailOnPanic, FirstError, Result};
use crate::hash::{Hasher, Id, ObjectType};
use crate::index::{Claim, Index};
use crate::pack::upload::Uploads;
use crate::pack::writer::PackWriter;
use crate::pack::{Class, SessionId};
use crate::page::extents::PageSink;
use crate::page::{self};
use crate::progress::{Counter, Progress, Station};
use crate::seal::{Compressor, Level, MasterKey};

/// A piece of the volume for a worker.
#[derive(Debug)]
pub(super) struct Job {
    /// The plaintext: a slice of a read buffer, or an assembled copy.
    pub(super) data: Bytes,
    /// What the parent snapshot has at this place.
    pub(super) parent: Option<ChunkRef>,
    /// True for block volumes, where zeros are holes.
    pub(super) zero_is_hole: bool,
    /// Where the outcome goes.
    pub(super) answer: Answer,
}

/// What all workers of a run share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) index: Arc<Index>,
    pub(super) hasher: Hasher,
    pub(super) failure: Arc<FirstError>,
    pub(super) progress: Arc<Progress>,
    pub(super) uploads: Arc<Uploads>,
    pub(super) master: MasterKey,
    pub(super) epoch: u32,
    pub(super) session: SessionId,
    pub(super) level: Level,
    /// Workers in the run.
    pub(super) workers: usize,
    /// Bytes at which a pack is finished.
    pub(super) pack_bytes: u64,
    /// Packs that stay open longer are finished.
    pub(super) checkpoint: Duration,
    /// With `--dry-run`: everything but storing.
    pub(super) dry_run: bool,
}

/// A worker's own state: compression contexts and the pack it fills.
#[derive(Debug)]
pub(super) struct Lane {
    /// Chunks that this lane has claimed and not placed would never be: who waits for them has to be told.
    _guard: FailOnPanic,
    shared: Shared,
    compressor: Compressor,
    packs: PackWriter,
    adapt: Adapt,
}

impl Lane {
    /// A lane for chunks or pages.
    pub(super) fn new(shared: &Shared, class: Class) -> Self {
        // Pages are few and read again and again: worth a better level than data.
        let level = if class == Class::Metadata { Level::Fixed(3) } else { shared.level };
        Self {
            _guard: FailOnPanic(Arc::clone(&shared.failure)),
            compressor: Compressor::new(level),
            packs: PackWriter::new(
                Arc::clone(&shared.uploads),
                shared.master.clone(),
                shared.epoch,
                shared.session,
                class,
                shared.pack_bytes,
            ),
            adapt: Adapt::new(level == Level::Auto && class == Class::Data, shared.workers),
            shared: shared.clone(),
        }
    }

    /// Works on jobs until there are no more, then finishes the open pack.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let shared = self.shared.clone();
        shared.failure.note(self.work(jobs));
    }

    fn work(&mut self, jobs: &Receiver<Job>) -> Result<()> {
        loop {
            self.shared.failure.check()?;
            let idle = Instant::now();
            match jobs.recv_timeout(self.shared.checkpoint) {
                Ok(job) => {
                    self.shared.progress.waited_for(Station::Disk, idle.elapsed());
                    let outcome = self.process(&job)?;
                    job.answer.set(outcome);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.packs.finish(),
            }
            self.packs.finish_older_than(self.shared.checkpoint)?;
        }
    }

    fn process(&mut self, job: &Job) -> Result<Outcome> {
        let progress = Arc::clone(&self.shared.progress);
        let len = job.data.len() as u64;
        if job.zero_is_hole && chunk::is_zero(&job.data) {
            progress.add(Counter::Holes, len);
            progress.add(Counter::Done, len);
            return Ok(Outcome::Hole);
        }
        let id = self.shared.hasher.id(ObjectType::Data, &job.data);
        let index = &self.shared.index;
        let known = job.parent.filter(|p| p.id == id).map(|p| p.hint);
        let known = known.and_then(|hint| index.still_there(ObjectType::Data, &id, hint.as_ref()));
        let chunk = match known {
            Some(at) => {
                progress.add(Counter::ChunksReused, 1);
                progress.add(Counter::Reused, len);
                ChunkRef { id, hint: Some(at) }
            }
            None => self.store(ObjectType::Data, id, &job.data, len)?,
        };
        progress.add(Counter::Done, len);
        Ok(Outcome::Chunk(chunk))
    }

    /// Stores a chunk unless the repository has it. `len`: bytes of the volume it stands for, 0 for pages.
    fn store(&mut self, kind: ObjectType, id: Id, plain: &[u8], len: u64) -> Result<ChunkRef> {
        let shared = &self.shared;
        let data = kind == ObjectType::Data;
        let hint = match self.claim(kind, &id)? {
            Claim::Known(hint) => {
                if data {
                    shared.progress.add(Counter::ChunksReused, 1);
                    shared.progress.add(Counter::Reused, len);
                }
                hint
            }
            Claim::New if shared.dry_run => {
                shared.progress.add(Counter::New, len);
                // Nobody will place it, and remembering all would take memory by the size of the volume.
                shared.index.release(kind, &id);
                None
            }
            Claim::New => {
                if let Some(level) = self.adapt.level(&shared.progress) {
                    self.compressor.set_level(Some(level));
                }
                let location = self.packs.append(kind, id, plain, &mut self.compressor)?;
                self.shared.index.place(kind, &id, location);
                if data {
                    self.shared.progress.add(Counter::ChunksNew, 1);
                    self.shared.progress.add(Counter::New, len);
                }
                Some(location)
            }
        };
        Ok(ChunkRef { id, hint })
    }

    /// Asks for a chunk and waits while another worker is storing it: a page without its place would need the index to
    /// be restored. The other one waits for nothing that this one holds: there are parts enough for all lanes.
    fn claim(&self, kind: ObjectType, id: &Id) -> Result<Claim> {
        loop {
            match self.shared.index.claim(kind, id) {
                Claim::Known(None) if !self.shared.dry_run => std::thread::sleep(PLACING),
                claim => return Ok(claim),
            }
            self.shared.failure.check()?;
            self.shared.progress.check()?;
        }
    }

    /// Finishes the open pack.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.packs.finish()
    }
}

impl PageSink for Lane {
    fn store_page(&mut self, kind: ObjectType, content: &[u8], chunks: &[ChunkRef]) -> Result<ChunkRef> {
        let id = self.shared.hasher.id(kind, content);
        let stored = self.store(kind, id, &page::join(content, chunks), 0)?;
        self.packs.finish_older_than(self.shared.checkpoint)?;
        Ok(stored)
    }
}

/// Level `auto`: 1 while the CPU is the bottleneck, up to 3 while workers wait for the store.
#[derive(Debug)]
struct Adapt {
    on: bool,
    workers: usize,
    checked: Instant,
    waited: u64,
    level: i32,
}

/// How long to wait before looking again whether another worker has placed a chunk: less than compressing one takes.
const PLACING: Duration = Duration::from_micros(100);

/// How often the level is reconsidered.
const ADAPT_EVERY: Duration = Duration::from_secs(1);

impl Adapt {
    fn new(on: bool, workers: usize) -> Self {
        Self { on, workers, checked: Instant::now(), waited: 0, level: 1 }
    }

    /// A new level, when it should change. When the workers wait for the store in more than a third of their time,
    /// compressing harder costs nothing and saves uploads; in less than a tenth, it costs throughput.
    fn level(&mut self, progress: &Progress) -> Option<i32> {
        if !self.on || self.checked.elapsed() < ADAPT_EVERY {
            return None;
        }
        let waited = progress.waits()[Station::Store as usize];
        let time = self.workers as f64 * self.checked.elapsed().as_nanos() as f64;
        let share = (waited - self.waited) as f64 / time;
        self.waited = waited;
        self.checked = Instant::now();
        let level = match share {
            s if s > 1.0 / 3.0 => (self.level + 1).min(3),
            s if s < 0.1 => (self.level - 1).max(1),
            _ => self.level,
        };
        (std::mem::replace(&mut self.level, level) != level).then_some(level)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;
    use crate::index::IndexConfig;
    use crate::io::Pool;
    use crate::store::Store;
    use crate::store::local::LocalStore;

    fn shared(runtime: &tokio::runtime::Runtime, dir: &std::path::Path) -> Shared {
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(dir.join("repository")).unwrap());
        let master = MasterKey::from_bytes([1; 32]);
        let config = IndexConfig { cache_dir: Some(dir.join("cache")), ..IndexConfig::default() };
        let opened = Index::open(Arc::clone(&store), &master, 1, &[1; 16], None, &[], config);
        let (failure, progress) = (Arc::<FirstError>::default(), Arc::<Progress>::default());
        Shared {
            index: Arc::new(runtime.block_on(opened).unwrap().0),
            hasher: Hasher::new(&master),
            uploads: Uploads::new(
                store,
                runtime.handle().clone(),
                Pool::new(5 << 20, 2).unwrap(),
                Arc::clone(&failure),
                Arc::clone(&progress),
                Box::new(|_, _, _| {}),
            ),
            failure,
            progress,
            master,
            epoch: 1,
            session: SessionId([1; 12]),
            level: Level::Auto,
            workers: 2,
            pack_bytes: 64 << 20,
            checkpoint: Duration::from_secs(60),
            dry_run: false,
        }
    }

    #[test]
    fn the_level_rises_when_all_workers_wait_for_the_store() {
        let progress = Progress::default();
        let levels = |workers: usize, waited: u64| {
            let mut adapt = Adapt::new(true, workers);
            adapt.waited = progress.waits()[Station::Store as usize];
            adapt.checked = Instant::now().checked_sub(2 * ADAPT_EVERY).unwrap();
            progress.waited_for(Station::Store, Duration::from_millis(waited));
            adapt.level(&progress)
        };
        assert_eq!(levels(1, 1500), Some(2));
        assert_eq!(levels(4, 1500), None, "one of four waits, the others work");
        assert_eq!(levels(4, 6000), Some(2));
        assert_eq!(levels(1, 0), None);
    }

    #[test]
    fn nobody_waits_for_a_chunk_of_a_worker_that_panicked() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let shared = shared(&runtime, dir.path());
        let (kind, id) = (ObjectType::Data, Id([7; 32]));
        let (lane, other) = (Lane::new(&shared, Class::Data), Lane::new(&shared, Class::Data));
        let panicked = std::thread::spawn(move || {
            assert_eq!(lane.claim(kind, &id).unwrap(), Claim::New);
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let (answer, answered) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || answer.send(other.claim(kind, &id).map_err(|e| e.kind())));
        let claimed = answered.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(claimed, Err(crate::Kind::Cancelled));
        assert_eq!(shared.failure.take().unwrap_err().kind(), crate::Kind::Internal);
    }
}
