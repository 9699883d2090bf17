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

/// Most wants in a window, of a few chunks or of many; bounds the planner's memory.
pub(super) const WINDOW_WANTS: usize = 4096;

/// A frame to open, and everyone who wants it.
#[derive(Debug)]
pub(crate) struct Frame<T> {
    /// Its chunk and where it is.
    pub(crate) chunk: ChunkRef,
    pub(crate) at: Location,
    /// Who wants it.
    pub(crate) to: Vec<T>,
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
    wants: usize,
}

/// A want that no pack is known to satisfy.
#[derive(Debug)]
pub(crate) struct Unknown<T>(pub(crate) T);

impl<T> Planner<T> {
    /// A planner with windows of about `window_bytes` of stored bytes.
    pub(crate) fn new(index: Arc<Index>, window_bytes: u64) -> Self {
        Self { index, window_bytes, frames: vec![], by_id: HashMap::new(), bytes: 0, wants: 0 }
    }

    /// Adds a want; true when the window is full and should be taken.
    ///
    /// # Errors
    /// [`Unknown`] with the want when neither its hint nor the index knows a place.
    pub(crate) fn want(&mut self, chunk: ChunkRef, to: T) -> Result<bool, Unknown<T>> {
        if let Some(frame) = self.by_id.get(&chunk.id).and_then(|n| self.frames.get_mut(*n)) {
            frame.to.push(to);
            self.wants += 1;
            return Ok(self.is_full());
        }
        let possible = |at: &Location| at.is_possible(ObjectType::Data);
        let hint = chunk.hint.filter(possible);
        let Some(at) = hint.or_else(|| self.index.find(ObjectType::Data, &chunk.id).filter(possible)) else {
            return Err(Unknown(to));
        };
        self.by_id.insert(chunk.id, self.frames.len());
        self.frames.push(Frame { chunk, at, to: vec![to] });
        self.bytes += u64::from(at.stored);
        self.wants += 1;
        Ok(self.is_full())
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.window_bytes || self.wants >= WINDOW_WANTS
    }

    /// The reads of the present window; the next one is empty.
    pub(crate) fn take(&mut self) -> Vec<Fetch<T>> {
        self.by_id.clear();
        self.bytes = 0;
        self.wants = 0;
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
    use crate::pack::SessionId;
    use crate::seal::Codec;

    fn frame(pack: u8, offset: u32, stored: u32) -> Frame<()> {
        let pack = PackName { id: [pack; 16], session: SessionId([0; 12]) };
        let at = Location { pack, slot: 0, offset, stored, length: stored, codec: Codec::Raw };
        Frame { chunk: ChunkRef { id: Id([0; 32]), hint: None }, at, to: vec![()] }
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
    fn reads_are_bounded() {
        let mib = 1u32 << 20;
        let fetches = coalesce((0..64).map(|n| frame(1, n * mib, mib)).collect());
        assert!(fetches.iter().all(|f| f.range.end - f.range.start <= READ));
        assert_eq!(fetches.iter().map(|f| f.frames.len()).sum::<usize>(), 64);
    }
}
