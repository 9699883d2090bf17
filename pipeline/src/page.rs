//! Pages: the inner nodes of a snapshot. A page lists chunks or further pages.
//!
//! A page's plaintext is *content* followed by *hints*. The content names chunks by id alone and is all that the
//! page's own id covers, so equal volumes have equal roots wherever their chunks lie. The hints say where each chunk
//! was when the page was written; they make a restore independent of the index, and are allowed to be out of date.
//!
//! ```text
//! 0  content length  4  little-endian
//! 4  content
//!    hints: packs (varint count, then 28 bytes each), then for each id of the content, in order:
//!           varint 0 (unknown), or pack ordinal + 1, slot, offset, stored, length (varints), codec (1 byte)
//! ```

pub mod codec;
pub mod entries;
pub mod extents;
pub mod load;
pub mod walk;

use codec::{Reader, Writer};

use crate::entry::ChunkRef;
use crate::hash::Id;
use crate::pack::{Location, PackName, SessionId};
use crate::seal::Codec;

/// Largest plaintext of a page, bytes. Bounds what a reader allocates. Writers end pages at 256 KiB of entries, whose
/// last one may have 1 MiB of attributes.
pub const MAX_PAGE: u32 = 4 << 20;

/// What is wrong with a page that authenticated but does not decode: only a bug or a newer writer makes one.
pub type Malformed = &'static str;

/// Puts a page together from its content and the chunks that the content names, in order.
pub fn join(content: &[u8], chunks: &[ChunkRef]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.bytes(content);
    let mut packs: Vec<PackName> = Vec::new();
    let mut ordinals = std::collections::HashMap::new();
    for at in chunks.iter().filter_map(|c| c.hint) {
        ordinals.entry(at.pack).or_insert_with(|| {
            packs.push(at.pack);
            packs.len() as u64
        });
    }
    out.varint(packs.len() as u64);
    for pack in &packs {
        out.bytes(&pack.id);
        out.bytes(&pack.session.0);
    }
    for chunk in chunks {
        match chunk.hint {
            None => out.varint(0),
            Some(at) => {
                out.varint(ordinals[&at.pack]);
                for n in [at.slot, at.offset, at.stored, at.length] {
                    out.varint(u64::from(n));
                }
                out.byte(at.codec as u8);
            }
        }
    }
    out.into_vec()
}

/// The content of a page's plaintext: the part its id covers.
///
/// # Errors
/// When the length does not fit.
pub fn content(page: &[u8]) -> Result<&[u8], Malformed> {
    let (length, rest) = page.split_first_chunk::<4>().ok_or("page too short")?;
    rest.get(..u32::from_le_bytes(*length) as usize).ok_or("page content length")
}

/// Gives the ids of a page's content their hints.
///
/// # Errors
/// When the hints do not decode.
pub(crate) fn hints(page: &[u8], ids: &[Id]) -> Result<Vec<ChunkRef>, Malformed> {
    let mut input = Reader::new(&page[4 + content(page)?.len()..]);
    let count = input.count(28)?;
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        packs.push(PackName { id: input.array()?, session: SessionId(input.array()?) });
    }
    let mut chunks = Vec::with_capacity(ids.len());
    for id in ids {
        let hint = match input.varint()? {
            0 => None,
            n => {
                let ordinal = usize::try_from(n - 1).map_err(|_| "hint")?;
                Some(Location {
                    pack: *packs.get(ordinal).ok_or("hint names no pack")?,
                    slot: input.varint32()?,
                    offset: input.varint32()?,
                    stored: input.varint32()?,
                    length: input.varint32()?,
                    codec: Codec::from_code(input.byte()?).ok_or("hint codec")?,
                })
            }
        };
        chunks.push(ChunkRef { id: *id, hint });
    }
    input.end()?;
    Ok(chunks)
}

#[cfg(test)]
pub(crate) mod tests;
