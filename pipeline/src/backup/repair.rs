//! Repairs the index before a backup relies on it: damaged or missing segments are rebuilt from the packs' tables.

use std::pin::pin;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::index::{Index, MAX_RECORDS, SegmentName, SyncReport};
use crate::pack::SessionId;
use crate::pack::reader::Opener;
use crate::page::load::is_lost;
use crate::repository::Repository;
use crate::store::StoreErrorKind;

/// Tables that are read at the same time: a repository of 4 TiB has 65,536 of them. A table has at most 754 kB in the store
/// and 2 MB in memory, at a time when nothing else of the run's plan is in use.
const TABLES: usize = 16;

/// Packs that are gone from the store or have another size are not referred to: what this run needs of them, it stores
/// again. `parent`: the snapshot whose data may be taken over.
///
/// # Errors
/// The store's.
pub(super) async fn check_packs(
    index: &Index,
    report: &SyncReport,
    parent: Option<SessionId>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    // Whoever read all packs' tables has looked for what its own snapshot needs, and later ones build upon that. An
    // older snapshot may name packs that were lost together with their segments, and of which nothing else tells.
    let looked_for = report.last_of_all.is_none_or(|all| parent.is_none_or(|parent| parent >= all));
    let sound = report.damaged.is_empty() && report.missing.is_empty() && report.beyond_cache == 0;
    let check = index.check_packs(looked_for && sound).await?;
    let again = "what is needed of them is stored again; `verify` tells what older snapshots have lost";
    for (packs, what) in [
        (&check.lost, "packs gone from the store"),
        (&check.resized, "packs with another size than when they were written"),
    ] {
        if let Some(first) = packs.first() {
            warnings.push(format!("{what}: {}, such as {}; {again}", packs.len(), first.key()));
        }
    }
    Ok(())
}

/// Rebuilds the index segments that `report` calls damaged or missing. Returns true when there were any; what was done is
/// in `warnings`. A damaged segment is deleted once its packs are in a new one; without the right to delete it stays, and
/// is reported again.
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
    let (mut packs, mut chunks) = (0u64, 0u64);
    let named = stream::try_unfold(index.uncovered().await?, |mut uncovered| async move {
        let found = uncovered.next().await?;
        Ok::<_, Error>((!found.is_empty()).then_some((found, uncovered)))
    });
    let named = named.map_ok(|found| stream::iter(found.into_iter().map(Ok::<_, Error>))).try_flatten();
    let tables = named.map(|named| async move {
        let (name, size) = named?;
        let mut opener =
            Opener::new(repository.master().clone(), repository.hasher().clone(), repository.epoch());
        Ok::<_, Error>((name, size, opener.table(&**store, name, size).await))
    });
    let mut tables = pin!(tables.buffer_unordered(TABLES));
    while let Some(read) = tables.next().await {
        let (name, size, table) = read?;
        match table {
            Ok(table) => {
                packs += 1;
                chunks += table.len() as u64;
                index.finished(name, size, table);
                if index.pending() >= MAX_RECORDS {
                    index.flush().await?;
                }
            }
            Err(error) if is_lost(&error) => {
                // Nor may the parent's places in it be taken over.
                index.exclude([name]);
                warnings.push(format!("not in the rebuilt index: {error}"));
            }
            Err(error) => return Err(error),
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
