//! The master key, what is derived from it, and what it is wrapped with.
//!
//! ```text
//! passphrase -- Argon2id --+
//!                          +--> KEK --AES-256-GCM--> master key --+--> ids, one key for each object type
//! key file ---- BLAKE3 ----+    (one per slot)                    +--> one key per pack, one per sealed object
//!                                                                 +--> config tag, volume keys, chunker seed
//! ```
//! A key-encrypting key (KEK) depends on 32 random bytes of its slot, so it wraps exactly one message and the nonce
//! can be zero, also when one key file opens many repositories.

use aws_lc_rs::aead::Aad;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::crypt::{TAG, aes, nonce};
use crate::error::{Error, Result};
use crate::heap;

/// The repository's master key: 32 random bytes, kept only wrapped in `keys/`. Every other key is derived from it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

impl MasterKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system has no randomness.
    pub fn generate() -> Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
        Ok(Self(key))
    }

    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for wrapping only.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives 32 bytes for `purpose` (a fixed text of this crate, never data) and `input`.
    pub fn derive(&self, purpose: &'static str, input: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        self.derive_into(purpose, input, &mut out);
        out
    }

    /// Derives `out.len()` bytes for `purpose` and `input`: BLAKE3's key derivation mode over key and input.
    pub fn derive_into(&self, purpose: &'static str, input: &[u8], out: &mut [u8]) {
        blake3::Hasher::new_derive_key(purpose).update(&self.0).update(input).finalize_xof().fill(out);
    }
}

/// Bytes of a slot's salt.
pub const SALT: usize = 32;

/// Bytes of a wrapped master key: the key and the tag.
pub const WRAPPED: usize = 32 + TAG;

/// Smallest and largest key file, in bytes. Below it cannot hold a key's worth of entropy; above somebody has
/// named the wrong file.
pub const KEY_FILE_BYTES: std::ops::RangeInclusive<usize> = 32..=64 << 10;

/// Longest passphrase, in bytes.
pub const MAX_PASSPHRASE: usize = 64 << 10;

/// A passphrase shorter than this is accepted with a warning ([`Secret::weakness`]).
pub const SHORT_PASSPHRASE: usize = 12;

/// Passphrases that are published defaults of other tools, or what everyone tries first. Never accepted.
const WELL_KNOWN: &[&str] = &[
    "static-passw0rd", // Velero's constant
    "tradewind",
    "velero",
    "restic",
    "kopia",
    "borg",
    "backup",
    "password",
    "passw0rd",
    "passphrase",
    "changeme",
    "change-me",
    "secret",
    "default",
    "admin",
    "root",
    "test",
    "12345678",
    "123456789",
    "1234567890",
    "qwertyuiop",
];

/// What a user opens a repository with.
#[derive(Clone)]
pub enum Secret {
    /// A text for humans, stretched with Argon2id.
    Passphrase(Zeroizing<Vec<u8>>),
    /// The content of a file of random bytes; see [`KEY_FILE_BYTES`].
    KeyFile(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.noun())
    }
}

impl Secret {
    /// A passphrase, taken literally.
    pub fn passphrase(text: impl Into<Vec<u8>>) -> Self {
        Self::Passphrase(Zeroizing::new(text.into()))
    }

    /// A passphrase from the content of a file or descriptor: one line end (`\n` or `\r\n`) after it is not part of
    /// it, everything else is.
    pub fn passphrase_from_file(content: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        let mut text = content.into();
        if text.last() == Some(&b'\n') {
            text.pop();
            if text.last() == Some(&b'\r') {
                text.pop();
            }
        }
        Self::Passphrase(text)
    }

    /// A key file's content.
    ///
    /// # Errors
    /// [`Error::Usage`] when its size is outside of [`KEY_FILE_BYTES`].
    pub fn key_file(content: impl Into<Zeroizing<Vec<u8>>>) -> Result<Self> {
        let secret = Self::KeyFile(content.into());
        secret.check_size()?;
        Ok(secret)
    }

    /// `passphrase` or `key file`, for messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::KeyFile(_) => "key file",
        }
    }

    /// Refuses what must not protect a repository. Called before a slot is made; an existing slot opens with whatever
    /// it was made with.
    ///
    /// # Errors
    /// [`Error::Usage`]: empty, a published default, or of an impossible size.
    pub fn check_for_new_slot(&self) -> Result<()> {
        self.check_size()?;
        let Self::Passphrase(text) = self else { return Ok(()) };
        let trimmed = Zeroizing::new(text.trim_ascii().to_ascii_lowercase());
        if trimmed.is_empty() {
            return Err(Error::Usage("the passphrase is empty: a repository needs a key of your own".into()));
        }
        if WELL_KNOWN.iter().any(|known| known.as_bytes() == trimmed.as_slice()) {
            return Err(Error::Usage(
                "this passphrase is a published default or among the first that anyone tries: choose your own".into(),
            ));
        }
        Ok(())
    }

    /// A reason to warn about an acceptable secret.
    pub fn weakness(&self) -> Option<String> {
        match self {
            Self::Passphrase(text) if text.len() < SHORT_PASSPHRASE => Some(format!(
                "the passphrase is shorter than {SHORT_PASSPHRASE} characters: whoever can read the repository can guess at leisure"
            )),
            Self::Passphrase(_) => None,
            Self::KeyFile(content) => {
                let mut seen = [false; 256];
                content.iter().for_each(|b| seen[usize::from(*b)] = true);
                (seen.iter().filter(|s| **s).count() < 12)
                    .then(|| "the key file repeats a few byte values: it should hold random bytes".into())
            }
        }
    }

    fn check_size(&self) -> Result<()> {
        match self {
            Self::Passphrase(text) if text.len() > MAX_PASSPHRASE => {
                Err(Error::Usage(format!("the passphrase is longer than {MAX_PASSPHRASE} bytes")))
            }
            Self::KeyFile(content) if !KEY_FILE_BYTES.contains(&content.len()) => Err(Error::Usage(format!(
                "a key file has {} to {} bytes, this one has {}",
                KEY_FILE_BYTES.start(),
                KEY_FILE_BYTES.end(),
                content.len()
            ))),
            _ => Ok(()),
        }
    }
}

/// How a slot turns a secret into a KEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kdf {
    /// Argon2id version 0x13, for passphrases.
    Argon2id {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// BLAKE3 in key derivation mode, for key files: they hold enough entropy, stretching adds nothing.
    Blake3 {},
}

impl Kdf {
    /// RFC 9106's second recommended choice: 64 MiB, 3 passes, 4 lanes.
    pub const PASSPHRASE: Self = Self::Argon2id { memory_kib: 64 << 10, passes: 3, lanes: 4 };

    /// Refuses parameters that are too weak to protect anything, or that would let a hostile slot exhaust the
    /// reader, before anything is allocated.
    ///
    /// # Errors
    /// A text without secrets, for the caller to wrap with the slot's name.
    pub fn check(&self) -> Result<(), String> {
        let Self::Argon2id { memory_kib, passes, lanes } = *self else { return Ok(()) };
        let outside = |what: &str, value: u32, range: std::ops::RangeInclusive<u32>| {
            (!range.contains(&value)).then(|| {
                format!("Argon2id {what} {value} is outside of {} to {}", range.start(), range.end())
            })
        };
        outside("memory in KiB", memory_kib, 19 << 10..=1 << 20)
            .or_else(|| outside("passes", passes, 2..=16))
            .or_else(|| outside("lanes", lanes, 1..=16))
            .map_or(Ok(()), Err)
    }

    /// Derives the KEK of a slot. Takes a while and much memory for passphrases: not for an async thread. The
    /// memory is wiped and given back before this returns.
    ///
    /// # Errors
    /// [`Error::Usage`] for parameters that [`Kdf::check`] refuses; [`Error::Internal`] when secret and function do
    /// not belong together.
    pub fn derive(&self, secret: &Secret, salt: &[u8; SALT]) -> Result<Kek> {
        self.check().map_err(Error::Usage)?;
        let mut kek = Zeroizing::new([0u8; 32]);
        match (*self, secret) {
            (Self::Argon2id { memory_kib, passes, lanes }, Secret::Passphrase(text)) => {
                let failed = |e: argon2::Error| Error::Internal(format!("Argon2id: {e}"));
                let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
                let mut memory = Zeroizing::new(Vec::with_capacity(params.block_count()));
                // The first touch of 16,384 small pages takes as long as the hash, and what is given back in large
                // pieces serves the buffers next.
                heap::prefer_huge_pages(memory.spare_capacity_mut());
                memory.resize(params.block_count(), argon2::Block::new());
                argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
                    .hash_password_into_with_memory(text, salt, &mut kek[..], memory.as_mut_slice())
                    .map_err(failed)?;
            }
            (Self::Blake3 {}, Secret::KeyFile(content)) => {
                blake3::Hasher::new_derive_key("tradewind v1 key file")
                    .update(salt)
                    .update(content)
                    .finalize_xof()
                    .fill(&mut kek[..]);
            }
            _ => return Err(Error::Internal("this key slot is for another kind of secret".into())),
        }
        Ok(Kek(kek))
    }
}

/// A key that wraps one master key.
pub struct Kek(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kek(..)")
    }
}

impl Kek {
    /// Encrypts `master`, bound to `context`.
    ///
    /// # Errors
    /// [`Error::Internal`] if the cipher refuses, which it cannot.
    pub fn wrap(&self, master: &MasterKey, context: &[u8]) -> Result<[u8; WRAPPED]> {
        let mut out = [0u8; WRAPPED];
        let (key, tag) = out.split_at_mut(32);
        key.copy_from_slice(master.expose());
        let sealed = aes(&self.0)?
            .seal_in_place_separate_tag(nonce(0), Aad::from(context), key)
            .map_err(|_| Error::Internal("cannot wrap the master key".into()))?;
        tag.copy_from_slice(sealed.as_ref());
        Ok(out)
    }

    /// Decrypts a wrapped master key. `None` when this is not its KEK, or key or context were changed.
    ///
    /// # Errors
    /// [`Error::Internal`] if the cipher refuses its key, which it cannot.
    pub fn unwrap(&self, wrapped: &[u8; WRAPPED], context: &[u8]) -> Result<Option<MasterKey>> {
        let mut bytes = Zeroizing::new(*wrapped);
        let Ok(plain) = aes(&self.0)?.open_in_place(nonce(0), Aad::from(context), &mut bytes[..]) else {
            return Ok(None);
        };
        let mut key = MasterKey([0; 32]);
        if plain.len() != key.0.len() {
            return Ok(None);
        }
        key.0.copy_from_slice(plain);
        Ok(Some(key))
    }
}
