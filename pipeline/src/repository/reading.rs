//! What every command that looks into snapshots begins with: the index, and pages.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::Repository;
use crate::error::{Error, Result};
use crate::gc;
use crate::index::{Index, IndexConfig, SyncReport};
use crate::limits::Rate;
use crate::manifest::{self, Commit, SnapshotKey};
use crate::pack::SessionId;
use crate::pack::reader::Opener;
use crate::page::load::PageLoader;
use crate::progress::Progress;

/// Opens the index for reading, or for writing as `session`, without the packs that a collector has condemned. Of the
/// sessions of `decided`, those that committed must have a last segment.
pub(crate) async fn open_index(
    repository: &Repository,
    session: Option<SessionId>,
    decided: &[SnapshotKey],
    config: &IndexConfig,
) -> Result<(Index, SyncReport)> {
    let store = Arc::clone(repository.store());
    let sessions: Vec<SessionId> = decided.iter().map(|at| at.id).collect();
    let (index, mut report) = Index::open(
        store,
        repository.master(),
        repository.epoch(),
        &repository.id().0,
        session,
        &sessions,
        config.clone(),
    )
    .await?;
    let endless: HashSet<SessionId> = report.endless.iter().copied().collect();
    for at in decided.iter().filter(|at| endless.contains(&at.id)) {
        match manifest::read(repository, *at).await {
            Ok(Some(Commit::Snapshot(_))) => report.missing.push(format!("index/*/{}-*.end", at.id)),
            // A fenced session owes nothing, and what is damaged is named by who reads manifests.
            Ok(Some(Commit::Tombstone(_)) | None) | Err(Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if session.is_some() {
        let mut condemned = Vec::new();
        gc::visit_unusable(repository, 0, &mut |pack| condemned.push(pack)).await?;
        index.exclude(condemned);
    }
    Ok((index, report))
}

/// What the user should know about the state of the index.
pub(crate) fn index_warnings(report: &SyncReport) -> Vec<String> {
    let damaged = report.damaged.iter().map(|(key, why)| format!("index segment {key} is damaged: {why}"));
    let missing = report.missing.iter().map(|key| format!("index segment {key} is missing"));
    damaged.chain(missing).chain(report.cache_unused.clone()).collect()
}

/// A page loader for `repository`, which fetches at the rate `pace`.
pub(crate) fn loader(
    runtime: &Handle,
    repository: &Repository,
    index: &Arc<Index>,
    progress: &Arc<Progress>,
    pace: Rate,
) -> Arc<PageLoader> {
    let opener = Opener::new(repository.master().clone(), repository.hasher().clone(), repository.epoch());
    Arc::new(PageLoader::new(
        Arc::clone(repository.store()),
        Arc::clone(index),
        opener,
        runtime.clone(),
        Arc::clone(progress),
        pace,
    ))
}
