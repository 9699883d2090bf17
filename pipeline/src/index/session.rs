//! What this session is storing: claimed, placed in an open pack, or in a finished pack that no segment names yet.
//!
//! All of it is in memory, and little of it: the chunks of open packs and at most a segment's worth of finished ones.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::segment::{MAX_RECORDS, PackRow, Record};
use crate::hash::{Id, ObjectType};
use crate::pack::{Location, PackName};

const SHARDS: usize = 64;

type Key = (Id, ObjectType);
/// `None`: claimed by a worker that has not placed it yet.
type Shard = HashMap<Key, Option<Location>>;

/// A durable pack whose chunks wait for a segment.
pub(super) struct Finished {
    pub(super) row: PackRow,
    /// The records' `pack` is not set.
    pub(super) records: Vec<Record>,
}

/// The chunks of one session that are not in a run yet.
pub(super) struct Session {
    shards: [Mutex<Shard>; SHARDS],
    queue: Mutex<VecDeque<Arc<Finished>>>,
    pending: AtomicUsize,
}

/// A panic of another worker does not make what it left behind wrong: each change is one map operation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            queue: Mutex::default(),
            pending: AtomicUsize::new(0),
        }
    }

    fn shard(&self, id: &Id) -> MutexGuard<'_, Shard> {
        // Ids are hashes: any byte spreads evenly. The first ones already choose pages of runs.
        lock(&self.shards[usize::from(id.0[31]) % SHARDS])
    }

    /// `None`: not of this session. `Some(None)`: being stored.
    pub(super) fn get(&self, kind: ObjectType, id: &Id) -> Option<Option<Location>> {
        self.shard(id).get(&(*id, kind)).copied()
    }

    /// As [`Session::get`], and claims the chunk when it is absent or at a place that `usable` refuses.
    pub(super) fn claim(
        &self,
        kind: ObjectType,
        id: &Id,
        usable: impl Fn(&Location) -> bool,
    ) -> Option<Option<Location>> {
        let mut shard = self.shard(id);
        match shard.get(&(*id, kind)) {
            Some(None) => Some(None),
            Some(Some(at)) if usable(at) => Some(Some(*at)),
            _ => {
                shard.insert((*id, kind), None);
                None
            }
        }
    }

    /// Takes a claim back: the chunk turned out to be in the repository.
    pub(super) fn release(&self, kind: ObjectType, id: &Id) {
        let mut shard = self.shard(id);
        if shard.get(&(*id, kind)) == Some(&None) {
            shard.remove(&(*id, kind));
        }
    }

    pub(super) fn place(&self, kind: ObjectType, id: &Id, at: Location) {
        self.shard(id).insert((*id, kind), Some(at));
    }

    pub(super) fn finished(&self, name: PackName, size: u64, chunks: Vec<(ObjectType, Id, Location)>) {
        if chunks.is_empty() {
            return;
        }
        let frames = chunks.iter().map(|(_, _, at)| at.slot.saturating_add(1)).max().unwrap_or(0);
        let mut records = Vec::with_capacity(chunks.len());
        for (kind, id, at) in chunks {
            self.place(kind, &id, at);
            records.push(Record::new(kind, id, 0, &at));
        }
        self.pending.fetch_add(records.len(), Ordering::Relaxed);
        let row = PackRow { name, frames, size };
        lock(&self.queue).push_back(Arc::new(Finished { row, records }));
    }

    /// Records that wait for a segment.
    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Packs that wait for a segment.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.queue).len()
    }

    /// The oldest of the first `limit` waiting packs that fit a segment together. They stay where they are until
    /// [`Session::stored`], so that a flush that is given up half way loses nothing.
    pub(super) fn batch(&self, limit: usize) -> Vec<Arc<Finished>> {
        let mut records = 0;
        let fits = |pack: &&Arc<Finished>| {
            records += pack.records.len();
            records <= MAX_RECORDS
        };
        lock(&self.queue).iter().take(limit).take_while(fits).cloned().collect()
    }

    /// The batch is in a stored segment: it no longer waits. Its chunks are still found here.
    pub(super) fn stored(&self, batch: &[Arc<Finished>]) {
        let mut queue = lock(&self.queue);
        for _ in batch {
            if let Some(pack) = queue.pop_front() {
                self.pending.fetch_sub(pack.records.len(), Ordering::Relaxed);
            }
        }
    }

    /// Drops the batch's chunks from memory: a run has them, or nobody will.
    pub(super) fn forget(&self, batch: &[Arc<Finished>]) {
        for pack in batch {
            for record in &pack.records {
                let mut shard = self.shard(&record.id);
                if let Some(Some(at)) = shard.get(&record.key())
                    && at.pack == pack.row.name
                {
                    shard.remove(&record.key());
                    // A burst must not hold its memory for the rest of the run.
                    if shard.len() * 8 < shard.capacity() {
                        shard.shrink_to_fit();
                    }
                }
            }
        }
    }
}
