//! Bringing the cache up to date with the store when an index is opened.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::cache::{Cache, Dir, Locked};
use super::run::merge::Source;
use super::segment::{Last, MAX_RECORDS, MAX_STORED, Segment, SegmentName};
use super::{IndexConfig, SyncReport};
use crate::error::{Error, Result};
use crate::pack::SessionId;
use crate::seal::MasterKey;
use crate::store::{Store, StoreError, StoreErrorKind};

/// Most segments, and most of their bytes, in flight.
const IN_FLIGHT: usize = 4;
const IN_FLIGHT_BYTES: u64 = 5 << 20;
/// How long to wait for another process that is bringing the same cache up to date.
const WAIT: Duration = Duration::from_secs(60);
/// Most segments that become one run at once.
const TOGETHER: usize = 4096;
/// Runs that are written before they are merged.
const MERGE_AFTER: usize = 64;
/// A cached segment takes less than this many times its stored size on disk.
const ON_DISK: u64 = 2;
/// Most missing segments that are named in a report.
const NAMED: usize = 1000;

/// A segment in the store.
struct Listed {
    name: SegmentName,
    size: u64,
    cached: bool,
}

/// Opens the cache and fetches what it lacks. Returns the number of the session's next segment, too.
pub(super) async fn open(
    store: &Arc<dyn Store>,
    master: &MasterKey,
    repository_id: &[u8; 16],
    session: Option<SessionId>,
    decided: &[SessionId],
    config: &IndexConfig,
) -> Result<(Arc<Cache>, SyncReport, u32)> {
    let cache = Arc::new(Cache::new(master, repository_id, config.filter_bytes, config.cache_bytes));
    let mut report = SyncReport::default();
    let entered = {
        let (cache, shared, repository_id) = (Arc::clone(&cache), config.cache_dir.clone(), *repository_id);
        blocking(move || enter(&cache, shared, &repository_id)).await?
    };
    let (locked, unused) = entered;
    report.cache_unused = unused;
    // Listed under the lock: a run in the directory covers segments that were stored before it was written.
    let mut listed = list(store.as_ref(), &mut report).await?;
    report.last_of_all = last_of_all(&listed);
    (report.missing, report.endless) = missing(&listed, decided, report.last_of_all);
    let next = listed
        .iter()
        .filter(|l| Some(l.name.session) == session)
        .map(|l| l.name.number.saturating_add(1))
        .max()
        .unwrap_or(0);
    let Some(mut locked) = locked else {
        report.beyond_cache = listed.len() as u64;
        return Ok((cache, report, next));
    };
    let (mut locked, mut listed) = blocking(move || {
        drop_vanished(&mut locked, &mut listed);
        (locked, listed)
    })
    .await?;
    listed.retain(|l| !l.cached);
    let fetched = fetch(store, master, locked, &listed, config, &mut report).await;
    locked = fetched?;
    let dropped = blocking(move || {
        let finished = locked.compact().and_then(|()| locked.shrink());
        locked.publish();
        (locked.dropped, finished)
    })
    .await?;
    report.dropped_runs = dropped.0;
    if let Err(e) = dropped.1 {
        report.cache_unused.get_or_insert(format!("the index cache cannot be written: {e}"));
    }
    Ok((cache, report, next))
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(format!("index cache: {e}")))
}

/// Locks the shared directory, or else a private one; and why not the shared one.
fn enter(
    cache: &Arc<Cache>,
    shared: Option<std::path::PathBuf>,
    repository_id: &[u8; 16],
) -> (Option<Locked>, Option<String>) {
    let mut unused = None;
    if let Some(path) = shared {
        match Dir::shared(&path, repository_id).and_then(|dir| cache.enter(dir, WAIT)) {
            Ok(locked) => return (Some(locked), None),
            Err(e) => unused = Some(format!("the index cache {} is not used: {e}", path.display())),
        }
    }
    match Dir::private().and_then(|dir| cache.enter(dir, Duration::ZERO)) {
        Ok(locked) => (Some(locked), unused),
        Err(e) => (
            None,
            Some(
                unused.unwrap_or_else(|| format!("there is no index cache, and no temporary directory: {e}")),
            ),
        ),
    }
}

/// Lists the store's segments, ascending. 32 bytes of memory each; garbage collection keeps them few.
async fn list(store: &dyn Store, report: &mut SyncReport) -> Result<Vec<Listed>> {
    let mut listed = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list("index/", after.as_deref()).await?;
        for object in &page.objects {
            let Some(name) = SegmentName::from_key(&object.key) else {
                report.damaged.push((object.key.clone(), "not the name of a segment".into()));
                continue;
            };
            listed.push(Listed { name, size: object.size, cached: false });
        }
        match page.objects.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => break,
        }
    }
    report.segments = listed.len() as u64;
    Ok(listed)
}

/// The newest session that has read the tables of all packs.
fn last_of_all(listed: &[Listed]) -> Option<SessionId> {
    listed.iter().filter(|l| l.name.last == Last::OfAll).map(|l| l.name.session).max()
}

/// Segments that must have existed, because a session's later ones do; and sessions of `decided` without a last one.
/// What was lost before all packs were read again is made good.
fn missing(
    listed: &[Listed],
    decided: &[SessionId],
    last_of_all: Option<SessionId>,
) -> (Vec<String>, Vec<SessionId>) {
    let counts = |session: &SessionId| last_of_all.is_none_or(|all| *session > all);
    let mut missing = Vec::new();
    let mut before: Option<SegmentName> = None;
    for Listed { name, .. } in listed.iter().filter(|l| counts(&l.name.session)) {
        let same = |b: &SegmentName| (b.generation, b.session) == (name.generation, name.session);
        let expected = before.filter(same).map_or(0, |b| b.number.saturating_add(1));
        let gap = (expected..name.number).map(|number| SegmentName { number, last: Last::No, ..*name }.key());
        missing.extend(gap.take(NAMED.saturating_sub(missing.len())));
        before = Some(*name);
    }
    let with_last = listed.iter().filter(|l| l.name.last != Last::No);
    let mut ended: Vec<SessionId> = with_last.map(|l| l.name.session).collect();
    ended.sort_unstable();
    let endless = decided.iter().filter(|id| counts(id) && ended.binary_search(id).is_err());
    (missing, endless.copied().collect())
}

/// Drops runs that cover a segment which is gone from the store, and marks what the others cover.
fn drop_vanished(locked: &mut Locked, listed: &mut [Listed]) {
    // The last process may have had more disk space. What cannot be written down now will be found again.
    let _ = locked.shrink();
    let place = |name: &SegmentName| listed.binary_search_by_key(name, |l| l.name);
    let mut cached = vec![false; listed.len()];
    let mut keep = Vec::new();
    for run in locked.runs() {
        let places: Option<Vec<usize>> =
            run.covers().ok().and_then(|covers| covers.iter().map(|name| place(name).ok()).collect());
        if let Some(places) = places {
            places.into_iter().for_each(|i| cached[i] = true);
            keep.push(run.path().to_owned());
        }
    }
    let _ = locked.retain(|run| keep.iter().any(|k| k == run.path()));
    listed.iter_mut().zip(cached).for_each(|(l, cached)| l.cached = cached);
}

/// Fetches `wanted`, newest first, as far as disk space goes.
async fn fetch(
    store: &Arc<dyn Store>,
    master: &MasterKey,
    mut locked: Locked,
    wanted: &[Listed],
    config: &IndexConfig,
    report: &mut SyncReport,
) -> Result<Locked> {
    // An eighth is left for what this session is going to add.
    let space = config.cache_bytes / 8 * 7;
    let mut used = locked.bytes();
    let mut flying = FuturesUnordered::new();
    let mut flying_bytes = 0;
    let mut batch = Batch::default();
    let mut left = wanted.iter().rev().peekable();
    loop {
        while let Some(next) = left.peek() {
            if next.size > MAX_STORED {
                report.damaged.push((next.name.key(), format!("{} bytes are too many", next.size)));
                left.next();
                continue;
            }
            let busy = flying.len() >= IN_FLIGHT || flying_bytes + next.size > IN_FLIGHT_BYTES;
            if (busy && !flying.is_empty()) || used + next.size * ON_DISK > space {
                break;
            }
            flying_bytes += next.size;
            used += next.size * ON_DISK;
            flying.push(get(Arc::clone(store), next.name, next.size));
            left.next();
        }
        let Some((name, size, got)) = flying.next().await else { break };
        flying_bytes -= size;
        let stored = match got {
            Ok(stored) => stored,
            // Deleted since it was listed.
            Err(e) if e.kind == StoreErrorKind::NotFound => continue,
            Err(e) => return Err(e.into()),
        };
        report.fetched += 1;
        report.fetched_bytes += size;
        let key = master.clone();
        match blocking(move || Segment::open(&key, &name, &stored)).await? {
            Err(Error::Damaged { what, .. }) => report.damaged.push((name.key(), what)),
            Err(e) => return Err(e),
            Ok(segment) => {
                if batch.is_full_for(&segment) {
                    let written;
                    let segments = batch.segments.len() as u64;
                    (locked, written) = std::mem::take(&mut batch).write(locked).await?;
                    used = locked.bytes() + (flying_bytes + size) * ON_DISK;
                    if let Err(e) = written {
                        // The disk is full or failing: what is there serves, the rest is a miss.
                        report.cache_unused = Some(format!("the index cache cannot be written: {e}"));
                        report.beyond_cache += segments;
                        break;
                    }
                }
                batch.records += segment.record_count();
                batch.segments.push(Source::Segment(name, segment));
            }
        }
    }
    let segments = batch.segments.len() as u64;
    report.beyond_cache += left.count() as u64;
    let (locked, written) = batch.write(locked).await?;
    if let Err(e) = written {
        report.beyond_cache += segments;
        report.cache_unused = Some(format!("the index cache cannot be written: {e}"));
    }
    Ok(locked)
}

async fn get(
    store: Arc<dyn Store>,
    name: SegmentName,
    size: u64,
) -> (SegmentName, u64, Result<Bytes, StoreError>) {
    (name, size, store.read_all(&name.key(), MAX_STORED).await)
}

/// Segments that become one run.
#[derive(Default)]
struct Batch {
    segments: Vec<Source>,
    records: usize,
}

impl Batch {
    fn is_full_for(&self, segment: &Segment) -> bool {
        self.records + segment.record_count() > MAX_RECORDS || self.segments.len() == TOGETHER
    }

    /// Writes the run, and merges runs when there are many.
    async fn write(self, mut locked: Locked) -> Result<(Locked, std::io::Result<()>)> {
        blocking(move || {
            let mut written = if self.segments.is_empty() { Ok(()) } else { locked.add(&self.segments) };
            drop(self);
            if locked.runs().len() >= MERGE_AFTER {
                written = written.and_then(|()| locked.compact());
            }
            (locked, written)
        })
        .await
    }
}
