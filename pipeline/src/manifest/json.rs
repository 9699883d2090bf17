//! How bytes and references appear in JSON: ids as hexadecimal text, names as text where they are text.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::entry::{ChunkRef, PageRef};
use crate::hash::Id;
use crate::pack::{Location, PackName, SessionId};
use crate::seal::Codec;

/// Serialises a newtype over a byte array as lower-case hexadecimal text.
macro_rules! hex_serde {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&hex::encode(self.0))
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                let mut out = Self([0; _]);
                hex::decode_to_slice(text.as_bytes(), &mut out.0)
                    .map_err(|_| serde::de::Error::custom("not hexadecimal of the right length"))?;
                Ok(out)
            }
        }
    };
}
pub(crate) use hex_serde;

hex_serde!(SessionId);

/// Bytes that are usually text. In JSON a string when they are UTF-8, else `{"hex": "..."}`: readable for people, and
/// nothing is lost.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(pub Vec<u8>);

impl std::fmt::Display for Text {
    /// For people: what is not UTF-8 is replaced, control characters are escaped.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in String::from_utf8_lossy(&self.0).chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextForm {
    Text(String),
    Bytes { hex: String },
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => TextForm::Bytes { hex: hex::encode(&self.0) }.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match TextForm::deserialize(d)? {
            TextForm::Text(text) => Ok(Self(text.into_bytes())),
            TextForm::Bytes { hex } => hex::decode(hex).map(Self).map_err(D::Error::custom),
        }
    }
}

/// A [`PageRef`] in JSON.
#[derive(Serialize, Deserialize)]
struct PageForm {
    id: String,
    level: u8,
    len: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<HintForm>,
}

/// A [`Location`] in JSON.
#[derive(Serialize, Deserialize)]
struct HintForm {
    pack: String,
    slot: u32,
    offset: u32,
    stored: u32,
    length: u32,
    codec: u8,
}

impl From<&PageRef> for PageForm {
    fn from(page: &PageRef) -> Self {
        let hint = page.chunk.hint.map(|l| HintForm {
            pack: l.pack.to_string(),
            slot: l.slot,
            offset: l.offset,
            stored: l.stored,
            length: l.length,
            codec: l.codec as u8,
        });
        Self { id: hex::encode(page.chunk.id.0), level: page.level, len: page.len, hint }
    }
}

impl PageForm {
    fn page(&self) -> Option<PageRef> {
        let mut id = [0; 32];
        hex::decode_to_slice(&self.id, &mut id).ok()?;
        let hint = match &self.hint {
            Some(h) => Some(Location {
                pack: PackName::from_key(&format!("packs/{}/{}", h.pack.get(..2)?, h.pack))?,
                slot: h.slot,
                offset: h.offset,
                stored: h.stored,
                length: h.length,
                codec: Codec::from_code(h.codec)?,
            }),
            None => None,
        };
        Some(PageRef { chunk: ChunkRef { id: Id(id), hint }, level: self.level, len: self.len })
    }
}

/// `#[serde(with = "page")]` for an optional [`PageRef`].
pub mod page {
    use serde::de::Error as _;

    use super::{Deserialize, Deserializer, PageForm, PageRef, Serialize, Serializer};

    /// Serialises.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(page: &Option<PageRef>, s: S) -> Result<S::Ok, S::Error> {
        page.as_ref().map(PageForm::from).serialize(s)
    }

    /// Deserialises. A codec or pack name of a later version is an error: the page could not be opened anyway.
    ///
    /// # Errors
    /// The deserialiser's, or a reference that makes no sense.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PageRef>, D::Error> {
        let form = Option::<PageForm>::deserialize(d)?;
        form.map(|f| f.page().ok_or_else(|| D::Error::custom("not a page reference"))).transpose()
    }
}
