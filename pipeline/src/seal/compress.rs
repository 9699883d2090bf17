//! zstd with a cheap probe in front: what does not shrink is stored raw.

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

/// Bytes of the sample that decides whether a chunk is worth compressing at levels above 2.
const SAMPLE: usize = 16 << 10;

/// zstd contexts of one worker, reused for every chunk (a context is about 1 MiB at level 1).
pub struct Compressor {
    encoder: zstd_safe::CCtx<'static>,
    decoder: zstd_safe::DCtx<'static>,
    level: Option<i32>,
    set: i32,
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
        Self { encoder, decoder, level, set: i32::MIN }
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
        if level > 2 && plain.len() >= 4 * SAMPLE {
            // zstd passes random data at 5 GiB/s up to level 2, so there a probe costs more than it saves.
            let middle = plain.len() / 2;
            let n = self.run(1, &plain[middle..middle + SAMPLE], out)?;
            if n + (SAMPLE >> WORTH_SHIFT) > SAMPLE {
                return None;
            }
        }
        let n = self.run(level, plain, out)?;
        (n + (plain.len() >> WORTH_SHIFT) < plain.len()).then_some(n)
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
