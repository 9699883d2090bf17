//! FastCDC with normalised chunking, resumable at any byte so that a chunk may span several read buffers.
//!
//! The cut points are those of the `fastcdc` crate's 2020 variant under the same table, which the tests use as their
//! oracle, with one addition: a cut may also come before the last byte of a stream, which the crate, going in pairs, does
//! not look at when their number is odd. They are part of the format and frozen by golden vectors. The gear table comes from the master key, so
//! cut points do not give contents away as those of a public table do.

use crate::seal::MasterKey;

/// Sizes of content-defined chunks, bytes, all powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// No chunk is shorter, but for the last of a stream.
    pub min: u32,
    /// Chunks are 1.2 times this on average.
    pub average: u32,
    /// No chunk is longer.
    pub max: u32,
}

impl Sizes {
    /// Default for files: 128 KiB to 2 MiB around 512 KiB.
    pub const FILES: Self = Self { min: 128 << 10, average: 512 << 10, max: 2 << 20 };
}

/// Finds the next cut point of a stream that arrives in pieces.
#[derive(Clone)]
pub struct Cutter {
    gear: Box<[u64; 256]>,
    /// The same, shifted left by one: lets the loop take two bytes a step.
    shifted: Box<[u64; 256]>,
    sizes: Sizes,
    mask_small: u64,
    mask_large: u64,
    /// Bytes of the present chunk that were scanned.
    at: usize,
    hash: u64,
}

impl std::fmt::Debug for Cutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cutter").field("sizes", &self.sizes).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Cutter {
    /// A cutter for the repository of `master`.
    pub fn new(master: &MasterKey, sizes: Sizes) -> Self {
        let mut bytes = [0u8; 256 * 8];
        master.derive_into("tradewind v1 gear table", &[], &mut bytes);
        let mut gear = Box::new([0u64; 256]);
        for (word, bytes) in gear.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let shifted = Box::new(gear.map(|g| g << 1));
        // Normalised chunking, level 1: one bit more before the average size, one bit less after it.
        let bits = sizes.average.ilog2() as usize;
        Self {
            gear,
            shifted,
            sizes,
            mask_small: MASKS[bits + 1],
            mask_large: MASKS[bits - 1],
            at: 0,
            hash: 0,
        }
    }

    /// Scans the next bytes of the stream. `Some(n)`: the chunk ends after `n` of these bytes, and the next call must
    /// start there. `None`: all of them belong to a chunk that goes on.
    pub fn next_cut(&mut self, bytes: &[u8]) -> Option<usize> {
        let (min, average, max) =
            (self.sizes.min as usize, self.sizes.average as usize, self.sizes.max as usize);
        let start = self.at;
        let mut i = min.saturating_sub(start).min(bytes.len());
        let center = average.saturating_sub(start).min(bytes.len());
        let end = max.saturating_sub(start).min(bytes.len());
        let mut hash = self.hash;
        for (limit, mask) in [(center, self.mask_small), (end, self.mask_large)] {
            let mask_shifted = mask << 1;
            while i + 1 < limit {
                hash = (hash << 2).wrapping_add(self.shifted[bytes[i] as usize]);
                if hash & mask_shifted == 0 {
                    return Some(self.cut(i));
                }
                hash = hash.wrapping_add(self.gear[bytes[i + 1] as usize]);
                if hash & mask == 0 {
                    return Some(self.cut(i + 1));
                }
                i += 2;
            }
            if i < limit {
                hash = (hash << 1).wrapping_add(self.gear[bytes[i] as usize]);
                if hash & mask == 0 {
                    return Some(self.cut(i));
                }
                i += 1;
            }
        }
        if start + end == max {
            return Some(self.cut(end));
        }
        self.at = start + bytes.len();
        self.hash = hash;
        None
    }

    /// Forgets the present chunk: the stream ended.
    pub fn reset(&mut self) {
        self.at = 0;
        self.hash = 0;
    }

    fn cut(&mut self, length: usize) -> usize {
        self.reset();
        length
    }
}

/// Masks by number of one bits, spread as the FastCDC authors do; the constants of the `fastcdc` crate.
const MASKS: [u64; 26] = fastcdc::v2020::MASKS;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: Sizes = Sizes { min: 256, average: 1024, max: 8192 };

    fn cutter(sizes: Sizes) -> Cutter {
        Cutter::new(&MasterKey::from_bytes([7; 32]), sizes)
    }

    /// Lengths of all chunks of `data` when it arrives in pieces of the given lengths, repeated.
    fn lengths(cutter: &mut Cutter, data: &[u8], pieces: &[usize]) -> Vec<usize> {
        let (mut out, mut current, mut rest) = (vec![], 0, data);
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let mut piece = &rest[..rest.len().min(*pieces.next().unwrap())];
            rest = &rest[piece.len()..];
            while !piece.is_empty() {
                match cutter.next_cut(piece) {
                    Some(n) => {
                        out.push(current + n);
                        current = 0;
                        piece = &piece[n..];
                    }
                    None => {
                        current += piece.len();
                        break;
                    }
                }
            }
        }
        cutter.reset();
        if current > 0 {
            out.push(current);
        }
        out
    }

    fn oracle(cutter: &Cutter, data: &[u8], sizes: Sizes) -> Vec<usize> {
        let (small, large) = (cutter.mask_small, cutter.mask_large);
        let (mut out, mut rest) = (vec![], data);
        while !rest.is_empty() {
            // The crate takes bytes in pairs and never cuts before the last of an odd number.
            let even = [rest, if rest.len() % 2 == 1 { &[0] } else { &[] }].concat();
            let (_, n) = fastcdc::v2020::cut_gear(
                &even,
                sizes.min as usize,
                sizes.average as usize,
                sizes.max as usize,
                small,
                large,
                small << 1,
                large << 1,
                &cutter.gear[..],
                &cutter.shifted[..],
            );
            let n = n.min(rest.len());
            out.push(n);
            rest = &rest[n..];
        }
        out
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
    }

    proptest! {
        #[test]
        fn cuts_are_the_oracles_however_the_stream_arrives(
            seed: u64, len in 0usize..100_000, pieces in prop::collection::vec(1usize..5000, 1..8)
        ) {
            let data = noise(len, seed);
            let mut cutter = cutter(SMALL);
            let expected = oracle(&cutter, &data, SMALL);
            prop_assert_eq!(lengths(&mut cutter, &data, &pieces), expected);
        }
    }

    #[test]
    fn a_cut_before_the_last_byte_of_a_stream() {
        let data = noise(88_144, 13_202_379_141_735_857_098);
        let mut cutter = cutter(SMALL);
        let expected = oracle(&cutter, &data, SMALL);
        assert_eq!(expected.last(), Some(&1));
        for pieces in [[1, 1], [3, 2], [88_144, 1]] {
            assert_eq!(lengths(&mut cutter, &data, &pieces), expected);
        }
    }

    #[test]
    fn cut_points_are_frozen() {
        let found = lengths(&mut cutter(Sizes::FILES), &noise(6 << 20, 1), &[1 << 20]);
        assert_eq!(found.iter().sum::<usize>(), 6 << 20);
        // A golden vector: a change here is a change of the format.
        let frozen = [
            719_169, 704_058, 406_295, 351_838, 483_738, 959_179, 526_133, 543_080, 770_671, 330_788,
            138_233, 358_274,
        ];
        assert_eq!(found, frozen);
    }
}
