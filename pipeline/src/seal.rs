//! Sealing: compress, then encrypt; and back: authenticate, then decompress into an exact bound.
//!
//! Everything that is stored is sealed in one of two ways: *frames* of a pack ([`crypt::PackKey`]), and whole small
//! *objects* ([`object`]): manifests, sessions, index segments. Each key is derived from the master key and used for
//! one pack or one object only, so nonces are counters and never random.

pub mod compress;
pub mod crypt;
pub mod keys;
pub mod object;

pub use compress::{Codec, Compressor, Level};
pub use crypt::{FrameHead, PackKey, TAG};
pub use keys::{MasterKey, Secret};
