//! Key slots: the master key, wrapped once for each passphrase or key file.
//!
//! A slot is one line of JSON at `keys/<16 hex>`, readable without a key: a reader must know the kind and the
//! parameters before it can ask for a secret. Its `check` tells damage from a wrong secret; the authentication of
//! the wrapped key binds every other byte of the slot, its name and the repository. The bytes are canonical: a slot
//! that does not serialise to exactly what was read is damaged, so there is one form of each and no flipped bit can
//! hide in it.

use serde::{Deserialize, Serialize};

use super::config::RepositoryId;
use crate::error::{Error, Result};
use crate::seal::keys::{Kdf, Kek, MasterKey, SALT, Secret, WRAPPED};

/// Prefix of the slots' keys.
pub const KEYS_PREFIX: &str = "keys/";

/// Largest slot that is read, in bytes.
pub const MAX_SLOT: u64 = 16 << 10;

/// Most slots that are looked at: a hostile store cannot make a reader stretch a passphrase forever.
pub const MAX_SLOTS: usize = 64;

/// Longest label, in bytes.
pub const MAX_LABEL: usize = 256;

const FORMAT: u16 = 1;
const CHECK: usize = 16;

/// Kind of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// Opens with a passphrase.
    Passphrase,
    /// Opens with a key file.
    KeyFile,
}

impl SlotKind {
    /// The kind of slot that `secret` opens.
    pub fn of(secret: &Secret) -> Self {
        match secret {
            Secret::Passphrase(_) => Self::Passphrase,
            Secret::KeyFile(_) => Self::KeyFile,
        }
    }
}

/// What of a slot anyone may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotInfo {
    /// Name: 16 hexadecimal digits.
    pub name: String,
    /// Kind.
    pub kind: SlotKind,
    /// What the user called it.
    pub label: String,
    /// When it was made, by the store's clock, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// A slot that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSlot {
    /// Key of the slot in the store.
    pub key: String,
    /// What is wrong, as a text without contents.
    pub what: String,
    /// True for damage; false for a slot that is sound but not for us: of a later version, or left over from an
    /// `init` that never finished.
    pub damaged: bool,
}

/// What every version of a slot has: enough to tell a later version from damage.
#[derive(Deserialize)]
struct Head {
    format: u16,
}

/// A slot as stored. The order of the fields is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Slot {
    format: u16,
    kind: SlotKind,
    label: String,
    created_ms: u64,
    /// Also here so that `config` can be rebuilt should it be lost.
    repository: RepositoryId,
    epoch: u32,
    kdf: Kdf,
    salt: String,
    wrapped: String,
    check: String,
}

/// A slot's own properties, for [`Slot::seal`].
pub(crate) struct SlotDraft<'a> {
    pub(crate) repository: RepositoryId,
    pub(crate) epoch: u32,
    pub(crate) name: &'a str,
    pub(crate) label: &'a str,
    pub(crate) created_ms: u64,
    pub(crate) kdf: Kdf,
    pub(crate) salt: [u8; SALT],
}

/// Key of slot `name`.
pub(crate) fn slot_key(name: &str) -> String {
    format!("{KEYS_PREFIX}{name}")
}

/// The name in a slot's key, if it is one.
pub(crate) fn slot_name(key: &str) -> Option<&str> {
    let name = key.strip_prefix(KEYS_PREFIX)?;
    (name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(name)
}

impl Slot {
    /// Wraps `master` for `secret`. Slow for passphrases.
    pub(crate) fn seal(draft: &SlotDraft<'_>, secret: &Secret, master: &MasterKey) -> Result<Self> {
        let mut slot = Self {
            format: FORMAT,
            kind: SlotKind::of(secret),
            label: draft.label.to_owned(),
            created_ms: draft.created_ms,
            repository: draft.repository,
            epoch: draft.epoch,
            kdf: draft.kdf,
            salt: hex::encode(draft.salt),
            wrapped: String::new(),
            check: String::new(),
        };
        let kek = draft.kdf.derive(secret, &draft.salt)?;
        slot.wrapped = hex::encode(kek.wrap(master, &slot.context(draft.name)?)?);
        slot.check = slot.checksum()?;
        Ok(slot)
    }

    /// The bytes to store.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = serde_json::to_vec(self).map_err(|e| Error::Internal(format!("key slot: {e}")))?;
        out.push(b'\n');
        Ok(out)
    }

    /// Reads the slot at `key`.
    pub(crate) fn decode(key: &str, stored: &[u8], repository: RepositoryId) -> Result<Self, BadSlot> {
        let bad = |what: String, damaged: bool| BadSlot { key: key.to_owned(), what, damaged };
        let slot: Self =
            serde_json::from_slice(stored).map_err(|_| match serde_json::from_slice::<Head>(stored) {
                Ok(head) if head.format != FORMAT => {
                    bad(format!("slot format {} is not known to this version", head.format), false)
                }
                _ => bad("not a key slot of this version".into(), true),
            })?;
        if slot.format != FORMAT {
            return Err(bad(format!("slot format {} is not known to this version", slot.format), false));
        }
        let canonical = slot.encode().is_ok_and(|bytes| bytes == stored);
        if !canonical || !slot.checksum().is_ok_and(|c| c == slot.check) {
            return Err(bad("checksum does not match".into(), true));
        }
        if slot.repository != repository {
            return Err(bad(
                "belongs to another repository, or to an init that did not finish".into(),
                false,
            ));
        }
        let fits = matches!(
            (slot.kind, slot.kdf),
            (SlotKind::Passphrase, Kdf::Argon2id { .. }) | (SlotKind::KeyFile, Kdf::Blake3 {})
        );
        if !fits {
            return Err(bad("key derivation does not fit the kind".into(), true));
        }
        slot.kdf.check().map_err(|what| bad(what, true))?;
        slot.salt().and(slot.wrapped()).map_err(|what| bad(what.into(), true))?;
        Ok(slot)
    }

    /// Derives the KEK of this slot. Slow for passphrases.
    pub(crate) fn kek(&self, secret: &Secret) -> Result<Kek> {
        self.kdf.derive(secret, &self.salt().map_err(|e| Error::Internal(e.into()))?)
    }

    /// The master key, if `kek` is this slot's and nothing was changed.
    pub(crate) fn unwrap(&self, kek: &Kek, name: &str) -> Result<Option<MasterKey>> {
        kek.unwrap(&self.wrapped().map_err(|e| Error::Internal(e.into()))?, &self.context(name)?)
    }

    pub(crate) fn kind(&self) -> SlotKind {
        self.kind
    }

    pub(crate) fn info(&self, name: &str) -> SlotInfo {
        SlotInfo {
            name: name.to_owned(),
            kind: self.kind,
            label: self.label.clone(),
            created_ms: self.created_ms,
        }
    }

    fn salt(&self) -> Result<[u8; SALT], &'static str> {
        let mut out = [0; SALT];
        hex::decode_to_slice(&self.salt, &mut out).map(|()| out).map_err(|_| "salt is not hexadecimal")
    }

    fn wrapped(&self) -> Result<[u8; WRAPPED], &'static str> {
        let mut out = [0; WRAPPED];
        hex::decode_to_slice(&self.wrapped, &mut out)
            .map(|()| out)
            .map_err(|_| "wrapped key is not hexadecimal")
    }

    /// Associated data of the wrapped key: repository id, slot name, and the slot's bytes with `wrapped` and `check`
    /// empty.
    fn context(&self, name: &str) -> Result<Vec<u8>> {
        let bare = Self { wrapped: String::new(), check: String::new(), ..self.clone() };
        Ok([&self.repository.0[..], name.as_bytes(), &bare.encode()?].concat())
    }

    /// `check`: BLAKE3, cut to 16 bytes, of the slot's bytes with `check` empty.
    fn checksum(&self) -> Result<String> {
        let bare = Self { check: String::new(), ..self.clone() };
        Ok(hex::encode(&blake3::hash(&bare.encode()?).as_bytes()[..CHECK]))
    }
}
