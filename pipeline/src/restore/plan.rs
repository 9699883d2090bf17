//! Plans what to fetch: wanted chunks in the order of the volume go in, reads in the order of the packs come out.
//!
//! A window of wants is held back, sorted by place, and near neighbours are read with one request: a request costs
//! more than the bytes between two frames.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::entry::ChunkRef;
use crate::hash::Id;
use crate::hash::ObjectType;
use crate::index::Index;
use crate::pack::{Location, PackName};

/// Frames closer than this are read together, bytes: at packs of 64 MiB that wastes less than a fifth.
const GAP: u64 = 256 << 10;

/// Most bytes of one read. Several are in flight, so larger ones would only need more memory.
const READ: u64 = 4 << 20;

/// Bytes of memory that a want counts as, at least: an entry with its path, and its place in the lists here.
const WANT: usize = 1 << 10;

/// Bytes of memory that the wants of a window may take, but for the one that passes it: 4,096 ordinary ones, or fewer
/// with large attributes. Bounds the planner's memory.
pub(super) const WINDOW_WEIGHT: usize = 4096 * WANT;

/// A frame to open, and everyone who wants it.
#[derive(Debug)]
pub(crate) struct Frame<T> {
    /// Its chunk and where it is.
    pub(crate) chunk: ChunkRef,
    pub(crate) at: Location,
    /// Who wants it.
    pub(crate) to: Vec<T>,
    /// Bytes of memory that those take.
    pub(crate) weight: usize,
}

/// One read of a pack.
#[derive(Debug)]
pub(crate) struct Fetch<T> {
    pub(crate) pack: PackName,
    /// Bytes of the pack.
    pub(crate) range: Range<u64>,
    /// Frames within the range, ascending.
    pub(crate) frames: Vec<Frame<T>>,
}

/// Collects wants and turns them into reads, a window at a time.
#[derive(Debug)]
pub(crate) struct Planner<T> {
    index: Arc<Index>,
    window_bytes: u64,
    frames: Vec<Frame<T>>,
    by_id: HashMap<Id, usize>,
    bytes: u64,
    weight: usize,
}

/// A want that no pack is known to satisfy.
#[derive(Debug)]
pub(crate) struct Unknown<T>(pub(crate) T);

impl<T> Planner<T> {
    /// A planner with windows of about `window_bytes` of stored bytes.
    pub(crate) fn new(index: Arc<Index>, window_bytes: u64) -> Self {
        Self { index, window_bytes, frames: vec![], by_id: HashMap::new(), bytes: 0, weight: 0 }
    }

    /// Adds a want that takes `weight` bytes of memory; true when the window is full and should be taken.
    ///
    /// # Errors
    /// [`Unknown`] with the want when neither its hint nor the index knows a place.
    pub(crate) fn want(&mut self, chunk: ChunkRef, to: T, weight: usize) -> Result<bool, Unknown<T>> {
        let weight = weight.max(WANT);
        if let Some(frame) = self.by_id.get(&chunk.id).and_then(|n| self.frames.get_mut(*n)) {
            frame.to.push(to);
            frame.weight += weight;
            self.weight += weight;
            return Ok(self.is_full());
        }
        let possible = |at: &Location| at.is_possible(ObjectType::Data);
        let hint = chunk.hint.filter(possible);
        let Some(at) = hint.or_else(|| self.index.find(ObjectType::Data, &chunk.id).filter(possible)) else {
            return Err(Unknown(to));
        };
        self.by_id.insert(chunk.id, self.frames.len());
        self.frames.push(Frame { chunk, at, to: vec![to], weight });
        self.bytes += u64::from(at.stored);
        self.weight += weight;
        Ok(self.is_full())
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.window_bytes || self.weight >= WINDOW_WEIGHT
    }

    /// The reads of the present window; the next one is empty.
    pub(crate) fn take(&mut self) -> Vec<Fetch<T>> {
        self.by_id.clear();
        self.bytes = 0;
        self.weight = 0;
        coalesce(std::mem::take(&mut self.frames))
    }
}

fn coalesce<T>(mut frames: Vec<Frame<T>>) -> Vec<Fetch<T>> {
    frames.sort_by_key(|f| (f.at.pack, f.at.offset));
    let mut fetches: Vec<Fetch<T>> = Vec::new();
    for frame in frames {
        let start = u64::from(frame.at.offset);
        let end = start + u64::from(frame.at.stored);
        match fetches.last_mut() {
            Some(last)
                if last.pack == frame.at.pack
                    && start >= last.range.end
                    && start - last.range.end <= GAP
                    && end - last.range.start <= READ =>
            {
                last.range.end = end;
                last.frames.push(frame);
            }
            _ => fetches.push(Fetch { pack: frame.at.pack, range: start..end, frames: vec![frame] }),
        }
    }
    fetches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexConfig;
    use crate::pack::SessionId;
    use crate::repository::reading::open_index;
    use crate::repository::test_store::TestStore;
    use crate::seal::Codec;

    fn frame(pack: u8, offset: u32, stored: u32) -> Frame<()> {
        let pack = PackName { id: [pack; 16], session: SessionId([0; 12]) };
        let at = Location { pack, slot: 0, offset, stored, length: stored, codec: Codec::Raw };
        Frame { chunk: ChunkRef { id: Id([0; 32]), hint: None }, at, to: vec![()], weight: WANT }
    }

    #[test]
    fn neighbours_are_read_together() {
        let mib = 1 << 20;
        let fetches = coalesce(vec![
            frame(2, 0, 10),
            frame(1, 10 * mib, mib),
            frame(1, 64, 1000),
            frame(1, 1064, 1000),
            frame(1, 11 * mib + (256 << 10), mib),
            frame(1, 13 * mib, mib),
        ]);
        let found: Vec<_> = fetches.iter().map(|f| (f.pack.id[0], f.range.clone(), f.frames.len())).collect();
        let mib = u64::from(mib);
        assert_eq!(
            found,
            [
                (1, 64..2064, 2),
                (1, 10 * mib..12 * mib + (256 << 10), 2),
                (1, 13 * mib..14 * mib, 1),
                (2, 0..10, 1),
            ]
        );
    }

    #[test]
    fn a_window_is_full_by_what_its_wants_hold() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let index = runtime.block_on(async {
            let (_, repository) = TestStore::repository().await;
            open_index(&repository, None, &[], &IndexConfig::default()).await.unwrap().0
        });
        let mut planner = Planner::new(Arc::new(index), u64::MAX);
        let mut fill = |weight: usize, same: bool| {
            let mut wants = 1u32;
            loop {
                let id = Id([if same { 0 } else { wants.to_le_bytes()[0] }; 32]);
                let mut at = frame(1, 64 + wants * 2048, 1024).at;
                at.length -= 16;
                let at = Some(at);
                if planner.want(ChunkRef { id, hint: at }, (), weight).unwrap() {
                    let held: usize =
                        planner.take().iter().flat_map(|fetch| &fetch.frames).map(|f| f.weight).sum();
                    return (wants, held);
                }
                wants += 1;
            }
        };
        assert_eq!(fill(1, true), (4096, WINDOW_WEIGHT));
        // Sixty kilobytes of attributes each.
        assert_eq!(fill(64 << 10, false), (64, WINDOW_WEIGHT));
        assert_eq!(fill(100 << 20, false), (1, 100 << 20));
    }

    #[test]
    fn reads_are_bounded() {
        let mib = 1u32 << 20;
        let fetches = coalesce((0..64).map(|n| frame(1, n * mib, mib)).collect());
        assert!(fetches.iter().all(|f| f.range.end - f.range.start <= READ));
        assert_eq!(fetches.iter().map(|f| f.frames.len()).sum::<usize>(), 64);
    }
}
