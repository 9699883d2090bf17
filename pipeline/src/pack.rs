//! Packs: sealed chunks back to back, then an encrypted table of them, then a fixed trailer. Never changed.

use std::fmt;

/// Version of the pack format.
pub const FORMAT: u16 = 1;

/// Most frames in a pack. With one key per pack this is far below what GCM allows a key.
pub const MAX_SLOTS: u32 = 1 << 14;

/// A session's id: 6 bytes of the store's time in milliseconds (big-endian), then 6 random bytes. Sorts by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 12]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SessionId {
    type Err = ();

    /// 24 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut id = [0; 12];
        hex::decode_to_slice(text, &mut id).map_err(|_| ())?;
        Ok(Self(id))
    }
}

/// Names a pack: a random id and the session that wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackName {
    /// 16 random bytes.
    pub id: [u8; 16],
    /// Who wrote it.
    pub session: SessionId,
}

impl PackName {
    /// Key of the pack in the store: `packs/<2 hex>/<32 hex>-<24 hex>`.
    pub fn key(&self) -> String {
        format!("packs/{:02x}/{self}", self.id[0])
    }

    /// The name in a store key, if it is one.
    pub fn from_key(key: &str) -> Option<Self> {
        let (id_hex, session) = key.strip_prefix("packs/")?.get(3..)?.split_once('-')?;
        let mut id = [0; 16];
        hex::decode_to_slice(id_hex, &mut id).ok()?;
        let name = Self { id, session: session.parse().ok()? };
        (name.key() == key).then_some(name)
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex::encode(self.id), self.session)
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a chunk or page is, and what is needed to open it besides its id and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackName,
    /// Slot in the pack.
    pub slot: u32,
    /// First byte of the frame in the pack.
    pub offset: u32,
    /// Bytes of the frame, tag included.
    pub stored: u32,
    /// Bytes of the plaintext.
    pub length: u32,
    /// How the plaintext is encoded.
    pub codec: crate::seal::Codec,
}
