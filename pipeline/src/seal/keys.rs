//! The master key and what is derived from it.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{Error, Result};

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
