//! zstd, with a cheap look first where trying was in vain just before: what does not shrink is stored raw.

use crate::error::Result;

/// How a frame's plaintext is encoded before encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame with its content size, nothing after it.
    Zstd = 1,
}

impl Codec {
    /// The codec of a stored code; `None` for codes of later versions.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Store everything raw.
    Off,
    /// A zstd level, -7 to 19.
    Fixed(i32),
    /// Level 1 while the CPU is the bottleneck, up to 3 while uploads are.
    Auto,
}

/// Largest window a stored zstd frame may ask for: 2^23 bytes. A hostile frame cannot make a reader allocate more.
const WINDOW_LOG_MAX: u32 = 23;

/// Keep a compressed form only when it saves at least 1/32 of the chunk: reading raw is free.
const WORTH_SHIFT: u32 = 5;

/// A sample of a chunk: this many pieces, evenly spread, of [`PIECE`] bytes.
const PIECES: usize = 8;

/// Bytes of a piece. Together the pieces are as long as a page of memory, and each has its own place in a page: data
/// is often of one kind at the start of pages and of another behind.
const PIECE: usize = 512;

/// Chunks of fewer bytes are tried whole: it costs little more than a sample.
const MIN_SAMPLED: usize = 64 << 10;

/// Of chunks that follow others that did not shrink, each of this number is tried whole, whatever its sample says: a
/// sample does not show what repeats at a distance. Odd, so that data in turns of 2, 4, 8, ... chunks has each of them tried.
const TRY_WHOLE: u32 = 61;

/// zstd contexts of one worker, reused for every chunk (a context is about 1 MiB at level 1).
pub struct Compressor {
    encoder: zstd_safe::CCtx<'static>,
    decoder: zstd_safe::DCtx<'static>,
    level: Option<i32>,
    set: i32,
    /// Chunks since the last one that shrank.
    raw: u32,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Compressor {
    /// Contexts at `level` (`Auto` starts at 1).
    pub fn new(level: Level) -> Self {
        let level = match level {
            Level::Off => None,
            Level::Fixed(n) => Some(n),
            Level::Auto => Some(1),
        };
        let mut encoder = zstd_safe::CCtx::create();
        let mut decoder = zstd_safe::DCtx::create();
        // Parameters of a fresh context cannot fail; if they ever did, zstd's own defaults still apply.
        let _ = encoder.set_parameter(zstd_safe::CParameter::ContentSizeFlag(true));
        let _ = encoder.set_parameter(zstd_safe::CParameter::ChecksumFlag(false));
        let _ = decoder.set_parameter(zstd_safe::DParameter::WindowLogMax(WINDOW_LOG_MAX));
        Self { encoder, decoder, level, set: i32::MIN, raw: 0 }
    }

    /// Changes the level for the chunks to come; `None` stores raw.
    pub fn set_level(&mut self, level: Option<i32>) {
        self.level = level;
    }

    /// Most bytes that [`Compressor::compress`] can need for `len` bytes of input.
    pub fn bound(len: usize) -> usize {
        zstd_safe::compress_bound(len)
    }

    /// Compresses `plain` to the start of `out` (at least [`Compressor::bound`] bytes) and returns the length, or
    /// `None` when it is better stored raw.
    pub fn compress(&mut self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let level = self.level?;
        if plain.len() < 64 {
            return None;
        }
        // Data of one kind lies together, and to give up on random data takes zstd as long as its encryption takes.
        let whole = plain.len() < MIN_SAMPLED || self.raw.is_multiple_of(TRY_WHOLE);
        let shrunk = if whole || self.sample_shrinks(plain, out) {
            self.run(level, plain, out).filter(|n| worth(*n, plain.len()))
        } else {
            None
        };
        self.raw = if shrunk.is_some() { 0 } else { self.raw.wrapping_add(1) };
        shrunk
    }

    /// True when a sample of `plain` (at least [`MIN_SAMPLED`] bytes) shrinks. Uses `out` as room.
    fn sample_shrinks(&mut self, plain: &[u8], out: &mut [u8]) -> bool {
        let mut sample = [0; PIECES * PIECE];
        let stretches = plain.chunks_exact(plain.len() / PIECES);
        for (n, (to, from)) in sample.chunks_exact_mut(PIECE).zip(stretches).enumerate() {
            to.copy_from_slice(&from[n * PIECE..][..PIECE]);
        }
        self.run(1, &sample, out).is_some_and(|n| worth(n, sample.len()))
    }

    fn run(&mut self, level: i32, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.set != level {
            self.encoder.set_parameter(zstd_safe::CParameter::CompressionLevel(level)).ok()?;
            self.set = level;
        }
        self.encoder.compress2(out, plain).ok()
    }

    /// Decompresses one frame into `out`, which must be filled exactly.
    ///
    /// # Errors
    /// A text without contents when the frame is not one whole frame of `out.len()` bytes.
    pub fn decompress(&mut self, stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
        match zstd_safe::get_frame_content_size(stored) {
            Ok(Some(n)) if n == out.len() as u64 => {}
            _ => return Err("compressed length does not fit"),
        }
        if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
            return Err("bytes after the compressed data");
        }
        match self.decoder.decompress(out, stored) {
            Ok(n) if n == out.len() => Ok(()),
            _ => Err("does not decompress"),
        }
    }
}

/// True when `n` bytes instead of `len` are worth the decompressing.
fn worth(n: usize, len: usize) -> bool {
    n + (len >> WORTH_SHIFT) < len
}

/// Decodes a stored plaintext of `length` bytes into a new vector.
///
/// # Errors
/// [`Error::Internal`] never; a static text for the caller to wrap with the object's name.
pub fn decode(
    codec: Codec,
    stored: Vec<u8>,
    length: usize,
    compressor: &mut Compressor,
) -> Result<Vec<u8>, &'static str> {
    match codec {
        Codec::Raw if stored.len() == length => Ok(stored),
        Codec::Raw => Err("length does not fit"),
        Codec::Zstd => {
            let mut out = vec![0; length];
            compressor.decompress(&stored, &mut out)?;
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    const CHUNK: usize = 256 << 10;

    fn random(seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; CHUNK];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    }

    /// Compresses and checks that what comes out is what went in; the stored length.
    fn stored(compressor: &mut Compressor, plain: &[u8]) -> usize {
        let mut out = vec![0; Compressor::bound(plain.len())];
        let Some(n) = compressor.compress(plain, &mut out) else { return plain.len() };
        let mut back = vec![0; plain.len()];
        compressor.decompress(&out[..n], &mut back).unwrap();
        assert!(back == plain);
        n
    }

    /// A compressor that has just seen random data.
    fn discouraged(level: i32) -> Compressor {
        let mut compressor = Compressor::new(Level::Fixed(level));
        for seed in 0..5 {
            assert_eq!(stored(&mut compressor, &random(seed)), CHUNK);
        }
        compressor
    }

    #[test]
    fn what_shrinks_after_random_data_is_noticed_at_once() {
        for level in [-1, 1, 2, 3] {
            let text: Vec<u8> = (0..CHUNK / 8).flat_map(|n| format!("{n:08x}").into_bytes()).collect();
            assert!(stored(&mut discouraged(level), &text) < CHUNK / 2);
            // A quarter of zeros, wherever it lies: in one stretch, or in every page.
            for at in 0..12 {
                let mut stretch = random(7);
                stretch[at * CHUNK / 16..][..CHUNK / 4].fill(0);
                assert!(stored(&mut discouraged(level), &stretch) < CHUNK * 4 / 5, "stretch at {at}/16");
                let mut pages = random(8);
                for page in pages.chunks_exact_mut(4096) {
                    page[at * 256..][..1024].fill(0);
                }
                assert!(stored(&mut discouraged(level), &pages) < CHUNK * 4 / 5, "{at}/16 of pages");
            }
        }
    }

    #[test]
    fn what_only_repeats_at_a_distance_is_noticed_in_time() {
        let mut compressor = discouraged(1);
        let half = random(9);
        let twice = [&half[..CHUNK / 2], &half[..CHUNK / 2]].concat();
        let tried = (0..=TRY_WHOLE).position(|_| stored(&mut compressor, &twice) < CHUNK);
        assert!(tried.is_some_and(|n| n > 0), "{tried:?}");
        // From then on it is expected.
        assert!(stored(&mut compressor, &twice) < CHUNK);
    }
}
