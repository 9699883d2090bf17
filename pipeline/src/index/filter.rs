//! Bloom filters of runs, made to be loaded in part and written in one pass.
//!
//! A filter is cut two ways. *Blocks*: ids are spread over blocks by their first 64 bits, as records are over pages,
//! so a writer that goes through sorted ids fills one block after the other and never holds more than one. *Slices*:
//! each of up to 7 hash functions has bits of its own, so any number of slices alone is a filter, and a process with
//! little memory loads fewer: each slice it has halves the number of pages that are read in vain.

use super::page::PAYLOAD;
use crate::hash::Id;

/// Bits of a block in one slice: one page.
const BITS: u64 = PAYLOAD as u64 * 8;
/// Ids per block at which half of its bits are set.
const FULL: u64 = BITS * 69 / 100;
/// Most slices: one wrong answer in 128.
pub(super) const SLICES: usize = 7;
/// Runs with fewer records have no filter: they are a few pages that stay in the page cache.
const SMALL: u64 = 512;

/// Size of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Pages of one slice.
    pub(super) blocks: u32,
    /// Hash functions.
    pub(super) slices: u8,
}

impl Shape {
    /// The shape for up to `records` ids.
    pub(super) fn of(records: u64) -> Self {
        if records < SMALL {
            return Self { blocks: 0, slices: 0 };
        }
        let blocks = records.div_ceil(FULL);
        // Blocks that are not half full need fewer slices for the same answer.
        let set = 1.0 - (-(records as f64) / (blocks * BITS) as f64).exp();
        let (mut slices, mut wrong) = (0, 1.0);
        while slices < SLICES && wrong > 1.0 / 128.0 {
            slices += 1;
            wrong *= set;
        }
        Self { blocks: u32::try_from(blocks).unwrap_or(u32::MAX), slices: u8::try_from(slices).unwrap_or(0) }
    }

    /// Pages of the whole filter.
    pub(super) fn pages(&self) -> u64 {
        u64::from(self.blocks) * u64::from(self.slices)
    }

    /// Bytes of one slice in memory.
    pub(super) fn slice_bytes(&self) -> usize {
        self.blocks as usize * PAYLOAD
    }
}

/// Spreads ids evenly over `n` places, in their order.
pub(super) fn scaled(id: &Id, n: u32) -> u32 {
    let top = id.0.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
    let scaled = (u128::from(top) * u128::from(n)) >> 64;
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

/// The bit of an id in its block of a slice. Bytes 8 to 30 of the id: the first ones choose the block.
pub(super) fn bit(id: &Id, slice: usize) -> usize {
    let at = 8 + 3 * slice;
    let word = id.0[at..].first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
    usize::try_from((u64::from(word) * BITS) >> 32).unwrap_or(0)
}

/// As many slices of a filter as there was memory for.
#[derive(Clone, Default)]
pub(super) struct Filter {
    pub(super) slices: Vec<std::sync::Arc<[u8]>>,
}

impl Filter {
    /// False: the id is certainly not in the run.
    pub(super) fn may_contain(&self, id: &Id) -> bool {
        self.slices.iter().enumerate().all(|(i, slice)| {
            let blocks = u32::try_from(slice.len() / PAYLOAD).unwrap_or(u32::MAX);
            let bit = bit(id, i);
            let at = scaled(id, blocks) as usize * PAYLOAD + bit / 8;
            slice.get(at).is_none_or(|byte| byte & (1 << (bit % 8)) != 0)
        })
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.slices.iter().map(|s| s.len()).sum()
    }
}

/// Shares `budget` bytes among filters: how many slices each may load. The first slice of a filter saves the most,
/// and a small filter saves as much for fewer bytes.
pub(super) fn plan(shapes: &[Shape], budget: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..shapes.len()).collect();
    order.sort_by_key(|i| shapes[*i].blocks);
    let mut plan = vec![0; shapes.len()];
    let mut left = budget;
    for slice in 0..SLICES {
        for i in &order {
            let shape = &shapes[*i];
            if plan[*i] == slice && slice < usize::from(shape.slices) && shape.slice_bytes() <= left {
                left -= shape.slice_bytes();
                plan[*i] += 1;
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_grow_with_the_records() {
        assert_eq!(Shape::of(100), Shape { blocks: 0, slices: 0 });
        assert_eq!(Shape::of(600), Shape { blocks: 1, slices: 2 });
        assert_eq!(Shape::of(20_000), Shape { blocks: 1, slices: 7 });
        let ten_million = Shape::of(10_000_000);
        assert_eq!(ten_million.slices, 7);
        assert!(ten_million.pages() * 4096 < 13 << 20);
    }

    #[test]
    fn memory_goes_where_it_helps_most_and_never_over_the_budget() {
        let shapes = [Shape::of(10_000_000), Shape::of(100_000), Shape::of(10)];
        for budget in [0, 10_000, 200_000, 1 << 20, 3 << 20, 8 << 20, 64 << 20] {
            let plan = plan(&shapes, budget);
            let used: usize = shapes.iter().zip(&plan).map(|(s, n)| s.slice_bytes() * n).sum();
            assert!(used <= budget, "{plan:?}");
            assert!(plan[1] >= plan[0] && plan[2] == 0);
        }
        assert_eq!(plan(&shapes, 64 << 20), [7, 7, 0]);
    }
}
