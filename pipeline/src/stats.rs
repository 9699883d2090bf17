//! What a repository holds, by its object listing and its manifests.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::Result;
use crate::manifest::catalog::{self, Filter, What};
use crate::repository::Repository;

/// Totals of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Sound snapshots.
    pub snapshots: u64,
    /// Volumes that have any.
    pub volumes: u64,
    /// Sum of the sizes of all snapshots, bytes.
    pub volume_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of packs.
    pub pack_bytes: u64,
    /// Index segments.
    pub index_segments: u64,
    /// Bytes of index segments.
    pub index_bytes: u64,
    /// Objects of every kind.
    pub objects: u64,
    /// Bytes of all objects.
    pub stored_bytes: u64,
}

/// Lists the whole repository and adds it up, a page of 1,000 objects at a time.
///
/// # Errors
/// The store's. Damaged manifests are left out; `verify` names them.
pub async fn collect(repository: &Arc<Repository>) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut after: Option<String> = None;
    loop {
        let page = repository.store().list("", after.as_deref()).await?;
        for object in &page.objects {
            stats.objects += 1;
            stats.stored_bytes += object.size;
            match object.key.split('/').next() {
                Some("packs") => {
                    stats.packs += 1;
                    stats.pack_bytes += object.size;
                }
                Some("index") => {
                    stats.index_segments += 1;
                    stats.index_bytes += object.size;
                }
                _ => {}
            }
        }
        after = page.objects.last().map(|o| o.key.clone());
        if !page.more || after.is_none() {
            break;
        }
    }
    let mut volumes = HashSet::new();
    catalog::visit(repository, &Filter::default(), &mut |listed| {
        if let What::Snapshot(manifest) = listed.what {
            stats.snapshots += 1;
            stats.volume_bytes += manifest.size;
            volumes.insert(repository.volume_key(&manifest.volume));
        }
        Ok(())
    })
    .await?;
    stats.volumes = volumes.len() as u64;
    Ok(stats)
}
