//! AES-256-GCM with a key per pack and a counter as nonce.
//!
//! A pack's key comes from the master key, the pack's random id and the session that writes it, so it is used for at
//! most [`crate::pack::MAX_SLOTS`] + 1 messages; the slot number is the nonce. The associated data binds a frame to
//! its place and meaning: moving it to another pack or slot, or reading it as another type, codec, length or id
//! fails authentication. GCM does not commit to its key, so the header carries a commitment that is compared first.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{Codec, MasterKey};
use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::pack::PackName;

/// Bytes that sealing adds: the GCM tag.
pub const TAG: usize = 16;

/// Slot (nonce) of a pack's table. No frame ever has it.
pub const TABLE_SLOT: u32 = u32::MAX;

/// What a frame's authentication binds besides the pack it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Place in the pack's order of frames, and nonce.
    pub slot: u32,
    /// What the plaintext is.
    pub kind: ObjectType,
    /// How the plaintext is encoded.
    pub codec: Codec,
    /// Length of the plaintext in bytes.
    pub length: u32,
    /// Identity of the plaintext.
    pub id: Id,
}

/// The key of one pack.
pub struct PackKey {
    key: LessSafeKey,
    /// Compared with the pack's header before anything is decrypted.
    pub commitment: [u8; 16],
    name: PackName,
    epoch: u32,
}

impl std::fmt::Debug for PackKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackKey({})", self.name)
    }
}

impl PackKey {
    /// Derives the key of pack `name` in key epoch `epoch`.
    ///
    /// # Errors
    /// [`Error::Internal`] if the cipher refuses a 32-byte key, which it cannot.
    pub fn derive(master: &MasterKey, epoch: u32, name: PackName) -> Result<Self> {
        let mut input = [0u8; 32];
        input[..4].copy_from_slice(&epoch.to_le_bytes());
        input[4..20].copy_from_slice(&name.id);
        input[20..].copy_from_slice(&name.session.0);
        let key = Zeroizing::new(master.derive("tradewind v1 pack", &input));
        let commitment = blake3::derive_key("tradewind v1 pack commitment", &key[..]);
        Ok(Self {
            key: aes(&key)?,
            commitment: commitment[..16].try_into().map_err(|_| Error::Internal("commitment".into()))?,
            name,
            epoch,
        })
    }

    /// Associated data of a frame: 64 bytes, see `FORMAT.md`.
    fn bind(&self, head: &FrameHead) -> [u8; 64] {
        let mut aad = [0u8; 64];
        aad[0..2].copy_from_slice(&crate::pack::FORMAT.to_le_bytes());
        aad[2] = head.kind as u8;
        aad[3] = head.codec as u8;
        aad[4..8].copy_from_slice(&self.epoch.to_le_bytes());
        aad[8..24].copy_from_slice(&self.name.id);
        aad[24..28].copy_from_slice(&head.slot.to_le_bytes());
        aad[28..32].copy_from_slice(&head.length.to_le_bytes());
        aad[32..64].copy_from_slice(&head.id.0);
        aad
    }

    /// Encrypts `bytes` in place and returns the tag that follows them.
    ///
    /// # Errors
    /// [`Error::Internal`]: messages longer than 64 GiB, which cannot occur.
    pub fn seal(&self, head: &FrameHead, bytes: &mut [u8]) -> Result<[u8; TAG]> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(head.slot), Aad::from(self.bind(head)), bytes)
            .map_err(|_| Error::Internal("cannot seal".into()))?;
        tag.as_ref().try_into().map_err(|_| Error::Internal("tag length".into()))
    }

    /// Encrypts `plain` to `out` (`plain.len()` + [`TAG`] bytes) without changing `plain`: the only pass over a raw
    /// chunk between its read buffer and its pack.
    ///
    /// # Errors
    /// [`Error::Internal`]: lengths do not match.
    pub fn seal_to(&self, head: &FrameHead, plain: &[u8], out: &mut [u8]) -> Result<()> {
        let (cipher, tag) = out.split_at_mut(plain.len());
        self.key
            .seal_out_of_place_scatter(nonce(head.slot), Aad::from(self.bind(head)), plain, cipher, &[], tag)
            .map_err(|_| Error::Internal("cannot seal".into()))
    }

    /// Authenticates and decrypts `stored` (ciphertext and tag) to `out` (`stored.len()` - [`TAG`] bytes).
    ///
    /// # Errors
    /// A static text for the caller to wrap with the object's name; `out` is then zeros or garbage, never delivered.
    pub fn open_to(&self, head: &FrameHead, stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
        let split = stored.len().checked_sub(TAG).ok_or("shorter than a tag")?;
        let (cipher, tag) = stored.split_at(split);
        self.key
            .open_separate_gather(nonce(head.slot), Aad::from(self.bind(head)), cipher, tag, out)
            .map_err(|_| "authentication failed")
    }

    /// Encrypts the pack's table in place and returns its tag.
    ///
    /// # Errors
    /// As [`PackKey::seal`].
    pub fn seal_table(&self, header: &[u8], table: &mut [u8]) -> Result<[u8; TAG]> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(TABLE_SLOT), Aad::from(header), table)
            .map_err(|_| Error::Internal("cannot seal".into()))?;
        tag.as_ref().try_into().map_err(|_| Error::Internal("tag length".into()))
    }

    /// Authenticates and decrypts a pack's table (ciphertext and tag) in place.
    ///
    /// # Errors
    /// A static text for the caller to wrap with the object's name.
    pub fn open_table<'a>(&self, header: &[u8], table: &'a mut [u8]) -> Result<&'a mut [u8], &'static str> {
        self.key
            .open_in_place(nonce(TABLE_SLOT), Aad::from(header), table)
            .map_err(|_| "authentication failed")
    }
}

/// An AES-256-GCM key.
pub(super) fn aes(key: &[u8; 32]) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key)
        .map(LessSafeKey::new)
        .map_err(|_| Error::Internal("cipher refuses its key".into()))
}

/// The nonce of a counter value: little-endian in the first 4 of 12 bytes.
pub(super) fn nonce(counter: u32) -> Nonce {
    let mut bytes = [0u8; 12];
    bytes[..4].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
