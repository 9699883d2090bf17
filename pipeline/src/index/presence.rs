//! Which packs the store has, and how large they are. A backup asks before it refers to a pack: what a segment or a page
//! of the parent names may have been lost since, and then its chunks have to be stored again.

use std::sync::{Arc, OnceLock};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{Index, sync};
use crate::error::{Error, Result};
use crate::pack::{Location, PackName};
use crate::store::Store;

/// 8 bytes that stand for a name, then the size in bytes, big-endian.
type Entry = [u8; 12];

/// The packs of a store: 12 bytes of memory each, or 0.8 MB for 4 TiB.
///
/// Half of a name is enough. Two that share a half by chance are as likely as 2^-64 for each pair of packs; and who
/// writes to the store could as well put anything at the whole name, which is found when it is read, not here.
#[derive(Debug, Default)]
pub(super) struct Presence(Vec<Entry>);

fn half(pack: &PackName) -> [u8; 8] {
    // Ids are random, but a cloned machine may repeat them in another session.
    std::array::from_fn(|n| pack.id[n] ^ pack.session.0[n + 4])
}

/// Packs end far below 4 GiB; what is larger is none.
fn entry(pack: &PackName, size: u64) -> Entry {
    let mut entry = [0; 12];
    entry[..8].copy_from_slice(&half(pack));
    entry[8..].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    entry
}

impl Presence {
    /// Lists all packs, 1,000 to a request and 16 requests at a time: one round trip for a repository of a TiB.
    async fn list(store: &dyn Store) -> Result<Self> {
        let digits = stream::iter(0..16u8).map(|digit| list_below(store, digit));
        let mut entries = digits.buffer_unordered(16).try_concat().await?;
        entries.sort_unstable();
        entries.shrink_to_fit();
        Ok(Self(entries))
    }

    /// The size of a pack in bytes, if it is there.
    fn size(&self, pack: &PackName) -> Option<u32> {
        let half = half(pack);
        let at = self.0.partition_point(|e| e[..8] < half[..]);
        let found = self.0.get(at).filter(|e| e[..8] == half)?;
        Some(u32::from_be_bytes([found[8], found[9], found[10], found[11]]))
    }

    /// True when the pack is there and long enough.
    fn holds(&self, at: &Location) -> bool {
        self.size(&at.pack).is_some_and(|size| u64::from(at.offset) + u64::from(at.stored) <= u64::from(size))
    }

    /// Forgets `packs`, as if they were not there.
    fn remove(&mut self, packs: &[PackName]) {
        if packs.is_empty() {
            return;
        }
        let mut halves: Vec<[u8; 8]> = packs.iter().map(half).collect();
        halves.sort_unstable();
        self.0.retain(|e| halves.binary_search_by(|half| half[..].cmp(&e[..8])).is_err());
    }
}

/// The packs whose name begins with the hexadecimal digit.
async fn list_below(store: &dyn Store, digit: u8) -> Result<Vec<Entry>> {
    let prefix = format!("packs/{digit:x}");
    let mut entries = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(&prefix, after.as_deref()).await?;
        let named = page.objects.iter().filter_map(|o| Some((PackName::from_key(&o.key)?, o.size)));
        entries.extend(named.map(|(name, size)| entry(&name, size)));
        after = page.objects.last().filter(|_| page.more).map(|last| last.key.clone());
        if after.is_none() {
            return Ok(entries);
        }
    }
}

/// What a listing of the packs showed.
#[derive(Debug)]
pub(super) struct Checked {
    packs: Presence,
    /// Every pack that anything refers to is there.
    whole: bool,
    /// The check told of packs that are gone.
    known: bool,
    /// A pack that the parent names, that is not there, and that no segment tells of.
    missed: OnceLock<PackName>,
}

impl Checked {
    pub(super) fn holds(&self, at: &Location) -> bool {
        self.packs.holds(at)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The parent names a pack that is not held.
    pub(super) fn miss(&self, pack: PackName) {
        if !self.known {
            let _ = self.missed.set(pack);
        }
    }
}

/// What [`Index::check_packs`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackCheck {
    /// Packs that the index names and the store does not have any more, ascending.
    pub lost: Vec<PackName>,
    /// Packs that have another size than the index says: cut short, most likely. Ascending.
    pub resized: Vec<PackName>,
}

impl Index {
    /// Lists the packs of the store. From now on the index, and what [`Index::allows`] says of the parent's places, refer
    /// to none that is not there, or of another size than it had when it was written; packs of this session apart,
    /// which come later.
    ///
    /// `named`: all packs that there ever were stand in segments that the index has. Then, if none of those is lost,
    /// [`Index::allows`] needs no place to be sure.
    ///
    /// # Errors
    /// [`Error::Store`] when the store cannot be listed.
    pub async fn check_packs(&self, named: bool) -> Result<PackCheck> {
        let mut packs = Presence::list(&*self.store).await?;
        let cache = Arc::clone(&self.cache);
        let compare = move || {
            let (mut check, mut complete) = (PackCheck::default(), true);
            for row in cache.runs().iter().flat_map(|run| run.packs()) {
                let Ok(row) = row else {
                    // A run that cannot be read is a miss, and refers to nothing; but others may.
                    complete = false;
                    continue;
                };
                match packs.size(&row.name) {
                    None => check.lost.push(row.name),
                    Some(size) if u64::from(size) != row.size => check.resized.push(row.name),
                    Some(_) => {}
                }
            }
            for names in [&mut check.lost, &mut check.resized] {
                names.sort_unstable();
                names.dedup();
            }
            packs.remove(&check.resized);
            (packs, check, complete)
        };
        let (packs, check, complete) = sync::blocking(compare).await?;
        let known = !check.lost.is_empty() || !check.resized.is_empty();
        let again = |_| Error::Internal("packs were listed twice".into());
        let checked = Checked { packs, whole: named && complete && !known, known, missed: OnceLock::new() };
        self.checked.set(checked).map_err(again)?;
        Ok(check)
    }

    /// A pack that the parent snapshot names, that is gone or cut short, and that [`Index::check_packs`] did not tell of:
    /// the segments that named it are gone as well.
    pub fn missed_pack(&self) -> Option<PackName> {
        self.checked.get()?.missed.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::SessionId;
    use crate::seal::Codec;

    fn name(id: u8, session: u8) -> PackName {
        PackName { id: [id; 16], session: SessionId([session; 12]) }
    }

    fn at(pack: PackName, offset: u32) -> Location {
        Location { pack, slot: 0, offset, stored: 16, length: 0, codec: Codec::Raw }
    }

    #[test]
    fn a_pack_is_held_as_far_as_it_goes() {
        let mut entries = vec![entry(&name(9, 1), 100), entry(&name(3, 1), 1 << 40), entry(&name(3, 2), 200)];
        entries.sort_unstable();
        let mut packs = Presence(entries);
        assert_eq!(packs.size(&name(9, 1)), Some(100));
        assert_eq!(packs.size(&name(3, 2)), Some(200));
        assert_eq!(packs.size(&name(3, 1)), Some(u32::MAX));
        assert_eq!(packs.size(&name(9, 2)), None);
        assert!(packs.holds(&at(name(9, 1), 84)) && !packs.holds(&at(name(9, 1), 85)));
        assert!(!packs.holds(&at(name(4, 1), 64)) && !packs.holds(&at(name(9, 1), u32::MAX)));
        packs.remove(&[name(9, 1), name(5, 5)]);
        assert_eq!((packs.size(&name(9, 1)), packs.size(&name(3, 2))), (None, Some(200)));
    }
}
