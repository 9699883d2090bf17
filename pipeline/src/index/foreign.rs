//! Made-up segments: an index of any size, as if other volumes had been backed up, to measure and test against.

use super::segment::{Last, MAX_RECORDS, PackRow, Record, Segment, SegmentName};
use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::pack::{Location, PackName, SessionId};
use crate::seal::{Codec, MasterKey};
use crate::store::Store;

/// Chunks per pack: 256 KiB each, incompressible, in packs of 64 MiB.
const PER_PACK: u64 = 256;
const LENGTH: u32 = 256 << 10;
const FRAME: u32 = LENGTH + 16;

/// The session that is said to have written the segments: older than any real one.
pub const SESSION: SessionId = SessionId([0; 12]);

/// Chunk `n`: its type, id and place. The pack does not exist.
pub fn chunk(n: u64) -> (ObjectType, Id, Location) {
    let id = Id(*blake3::hash(&n.to_le_bytes()).as_bytes());
    let slot = u32::try_from(n % PER_PACK).unwrap_or(0);
    let at = Location {
        pack: pack(n / PER_PACK),
        slot,
        offset: 4096 + slot * FRAME,
        stored: FRAME,
        length: LENGTH,
        codec: Codec::Raw,
    };
    (ObjectType::Data, id, at)
}

fn pack(n: u64) -> PackName {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::derive_key("tradewind foreign pack", &n.to_le_bytes())[..16]);
    PackName { id, session: SESSION }
}

/// Writes segments with chunks 0 to `records` - 1 to generation `generation` and returns their number.
///
/// # Errors
/// [`Error::Store`] when the store fails, also when such segments exist already.
pub async fn write(
    store: &dyn Store,
    master: &MasterKey,
    epoch: u32,
    generation: u32,
    records: u64,
) -> Result<u32> {
    let mut number = 0;
    let mut first = 0;
    while first < records {
        let end = records.min(first + MAX_RECORDS as u64);
        let packs: Vec<PackRow> = (first / PER_PACK..end.div_ceil(PER_PACK))
            .map(|n| PackRow { name: pack(n), frames: 256, size: (u64::from(FRAME) << 8) + 65536 })
            .collect();
        let mut rows = Vec::with_capacity(MAX_RECORDS);
        for n in first..end {
            let (kind, id, at) = chunk(n);
            let row =
                u32::try_from((n - first) / PER_PACK).map_err(|_| Error::Internal("pack row".into()))?;
            rows.push(Record::new(kind, id, row, &at));
        }
        let name = SegmentName { generation, session: SESSION, number, last: Last::No };
        let sealed = Segment::new(&packs, &mut rows)?.seal(master, epoch, &name)?;
        store.create(&name.key(), sealed.into()).await?;
        number += 1;
        first = end;
    }
    Ok(number)
}
