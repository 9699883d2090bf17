//! Where chunks end: at fixed offsets for block volumes, at content-defined places for files.

mod fastcdc;

pub use fastcdc::{Cutter, Sizes};

/// Default chunk of a block volume, bytes. Small enough for scattered database writes: with 2 % of pages of 8 KiB
/// changed at random, chunks of 1 MiB touch 92 % of the volume (1 - 0.98^128), chunks of 256 KiB 48 %. Large enough
/// for ids to take 134 MB per TiB.
pub const BLOCK_CHUNK: u32 = 256 << 10;

/// Sizes a block volume's chunks may have, bytes: powers of two from 16 KiB to 4 MiB.
pub fn valid_block_chunk(bytes: u32) -> bool {
    bytes.is_power_of_two() && (16 << 10..=4 << 20).contains(&bytes)
}

/// True when every byte is zero. Runs at memory speed on zeros and ends at the first 4 KiB that are not.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|page| {
        // Folding words lets the compiler use the widest registers; a per-byte `all` would not be vectorised.
        let (words, rest) = page.as_chunks::<8>();
        words.iter().fold(0, |acc, w| acc | u64::from_ne_bytes(*w)) == 0 && rest.iter().all(|b| *b == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_check_sees_every_byte() {
        for len in [0, 1, 7, 8, 9, 4095, 4096, 4097, 10_000] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
