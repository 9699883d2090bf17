//! Small sealed objects: manifests, sessions, index segments, garbage collection records.
//!
//! ```text
//!  0  magic   8  "TWINDOBJ"
//!  8  format  2  little-endian, 1
//! 10  type    1  see ObjectClass
//! 11  codec   1  0 raw, 1 zstd
//! 12  epoch   4  key epoch
//! 16  length  4  plaintext bytes
//! 20  salt   16  random
//! 36  AES-256-GCM(plaintext, encoded) and its tag of 16 bytes
//! ```
//! The key is derived from the master key, the type and the salt; the nonce is zero. The associated data is the
//! header and the object's key in the store: an object that was moved, swapped or cut does not open.

use aws_lc_rs::aead::Aad;

use super::crypt::{TAG, aes, nonce};
use super::{Codec, Compressor, Level, MasterKey};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"TWINDOBJ";
const FORMAT: u16 = 1;
const HEADER: usize = 36;

/// Largest plaintext of a sealed object, in bytes. Bounds what a reader allocates for one.
pub const MAX_PLAIN: usize = 64 << 20;

/// What a sealed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectClass {
    /// `snapshots/...`
    Manifest = 1,
    /// `sessions/...`
    Session = 2,
    /// `index/...`
    Index = 3,
    /// `gc/...`
    Gc = 4,
}

/// Seals `plain` as the object `key`.
///
/// # Errors
/// [`Error::Internal`] for more than [`MAX_PLAIN`] bytes or when the system has no randomness.
pub fn seal(master: &MasterKey, epoch: u32, class: ObjectClass, key: &str, plain: &[u8]) -> Result<Vec<u8>> {
    if plain.len() > MAX_PLAIN {
        return Err(Error::Internal(format!("object {key} of {} bytes is too large", plain.len())));
    }
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
    let mut out = vec![0u8; HEADER + Compressor::bound(plain.len()).max(plain.len()) + TAG];
    let (codec, len) = match Compressor::new(Level::Fixed(3)).compress(plain, &mut out[HEADER..]) {
        Some(n) => (Codec::Zstd, n),
        None => {
            out[HEADER..HEADER + plain.len()].copy_from_slice(plain);
            (Codec::Raw, plain.len())
        }
    };
    out.truncate(HEADER + len);
    let length = u32::try_from(plain.len()).map_err(|_| Error::Internal("object length".into()))?;
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    out[10] = class as u8;
    out[11] = codec as u8;
    out[12..16].copy_from_slice(&epoch.to_le_bytes());
    out[16..20].copy_from_slice(&length.to_le_bytes());
    out[20..36].copy_from_slice(&salt);
    let (header, body) = out.split_at_mut(HEADER);
    let tag = aes(&object_key(master, epoch, class, &salt))?
        .seal_in_place_separate_tag(nonce(0), Aad::from(bind(header, key)), body)
        .map_err(|_| Error::Internal("cannot seal".into()))?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// Opens the object `key`.
///
/// # Errors
/// [`Error::Damaged`] naming `key`, when it is not exactly what [`seal`] made for this repository, class and key.
pub fn open(master: &MasterKey, class: ObjectClass, key: &str, stored: &[u8]) -> Result<Vec<u8>> {
    let damaged = |what: &str| Error::damaged(key, what);
    if stored.len() < HEADER + TAG || &stored[..8] != MAGIC {
        return Err(damaged("not a sealed object"));
    }
    let (header, body) = stored.split_at(HEADER);
    let format = u16::from_le_bytes([header[8], header[9]]);
    if format != FORMAT {
        return Err(damaged(&format!("object format {format} is not known to this version")));
    }
    let codec = Codec::from_code(header[11]).ok_or_else(|| damaged("unknown codec"))?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = word(16) as usize;
    if header[10] != class as u8 || length > MAX_PLAIN {
        return Err(damaged("header does not fit"));
    }
    let salt: [u8; 16] = header[20..36].try_into().map_err(|_| damaged("header does not fit"))?;
    let mut body = body.to_vec();
    let plain = aes(&object_key(master, word(12), class, &salt))?
        .open_in_place(nonce(0), Aad::from(bind(header, key)), &mut body)
        .map_err(|_| damaged("authentication failed"))?
        .len();
    body.truncate(plain);
    super::compress::decode(codec, body, length, &mut Compressor::new(Level::Off)).map_err(damaged)
}

fn object_key(
    master: &MasterKey,
    epoch: u32,
    class: ObjectClass,
    salt: &[u8; 16],
) -> zeroize::Zeroizing<[u8; 32]> {
    let mut input = [0u8; 21];
    input[..4].copy_from_slice(&epoch.to_le_bytes());
    input[4] = class as u8;
    input[5..].copy_from_slice(salt);
    zeroize::Zeroizing::new(master.derive("tradewind v1 object", &input))
}

fn bind(header: &[u8], key: &str) -> Vec<u8> {
    [header, key.as_bytes()].concat()
}
