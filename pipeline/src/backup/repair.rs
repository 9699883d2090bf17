//! Repairs the index before a backup relies on it: damaged or missing segments are rebuilt from the packs' tables.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::index::{Index, MAX_RECORDS, SegmentName, SyncReport};
use crate::pack::reader::Opener;
use crate::page::load::is_lost;
use crate::repository::Repository;
use crate::store::StoreErrorKind;

/// Rebuilds what `report` says is damaged or missing, if anything is, and says what was done; true when it did. A damaged segment is
/// deleted once its packs are in a new one; without the right to delete it stays and is reported again.
///
/// # Errors
/// The store's. A pack whose table cannot be read is a warning: `verify` tells who needs it.
pub(super) async fn repair(
    repository: &Repository,
    index: &Arc<Index>,
    report: &SyncReport,
    warnings: &mut Vec<String>,
) -> Result<bool> {
    if report.damaged.is_empty() && report.missing.is_empty() {
        return Ok(false);
    }
    let store = repository.store();
    let mut opener =
        Opener::new(repository.master().clone(), repository.hasher().clone(), repository.epoch());
    let (mut packs, mut chunks) = (0u64, 0u64);
    let mut uncovered = index.uncovered().await?;
    loop {
        let found = uncovered.next().await?;
        if found.is_empty() {
            break;
        }
        for (name, size) in found {
            match opener.table(&**store, name, size).await {
                Ok(table) => {
                    packs += 1;
                    chunks += table.len() as u64;
                    index.finished(name, size, table);
                    if index.pending() >= MAX_RECORDS {
                        index.flush().await?;
                    }
                }
                Err(error) if is_lost(&error) => warnings.push(format!("not in the rebuilt index: {error}")),
                Err(error) => return Err(error),
            }
        }
    }
    index.flush().await?;
    warnings
        .push(format!("rebuilt the index of {packs} packs with {chunks} chunks from the packs themselves"));
    // What has no segment's name may be a later version's, and is not ours to delete.
    for (key, _) in report.damaged.iter().filter(|(key, _)| SegmentName::from_key(key).is_some()) {
        match store.delete(key).await {
            Ok(()) => {}
            Err(error) if error.kind == StoreErrorKind::Denied => {
                warnings.push(format!(
                    "{key} is not needed any more, but may not be deleted with these credentials"
                ));
            }
            Err(error) => return Err(Error::from(error)),
        }
    }
    Ok(true)
}
