//! Reads packs to the last byte and opens every frame.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::runtime::Handle;

use super::{Mode, Packs, VerifyReport, whole};
use crate::error::{Error, FirstError, Result};
use crate::limits::Rate;
use crate::pack::reader::Opener;
use crate::pack::writer::Placed;
use crate::pack::{PACKS_PREFIX, PackName};
use crate::page::load::is_lost;
use crate::progress::{Counter, Progress};
use crate::repository::Repository;

/// Bytes of one read; frames are read in groups of about this size.
const READ: u64 = 4 << 20;

/// Bytes that are read to find a pack's table, unless it is a long one.
const TABLE: u64 = 64 << 10;

/// Every pack of the repository with its size in bytes.
///
/// # Errors
/// The store's.
pub(super) async fn list(repository: &Repository) -> Result<HashMap<PackName, u64>> {
    let mut packs = HashMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = repository.store().list(PACKS_PREFIX, after.as_deref()).await?;
        for object in &page.objects {
            if let Some(name) = PackName::from_key(&object.key) {
                packs.insert(name, object.size);
            }
        }
        after = page.objects.last().map(|o| o.key.clone());
        if !page.more || after.is_none() {
            return Ok(packs);
        }
    }
}

/// What one pack turned out to be.
type Found = Result<Vec<(u32, String)>, String>;

/// Reads packs.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) runtime: &'a Handle,
    pub(super) repository: &'a Repository,
    pub(super) progress: &'a Progress,
    /// How fast bytes may be fetched.
    pub(super) pace: &'a Rate,
}

impl Reader<'_> {
    /// Reads the packs that `mode` asks for and notes what is bad.
    ///
    /// # Errors
    /// The store's, other than that objects are missing or cut short; cancellation.
    pub(super) fn read(
        self,
        mode: Mode,
        workers: usize,
        packs: &mut Packs,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let mut chosen: Vec<(PackName, u64)> =
            packs.sizes.iter().map(|(name, size)| (*name, *size)).collect();
        match mode {
            Mode::Structure => return Ok(()),
            Mode::ReadData => {}
            Mode::Sample(share) => {
                fastrand::shuffle(&mut chosen);
                // Each pack is drawn by itself: the share is met on average, and needs no arithmetic on counts.
                let kept: Vec<_> = chosen.iter().copied().filter(|_| fastrand::f64() < share).collect();
                chosen.truncate(1);
                if !kept.is_empty() {
                    chosen = kept;
                }
            }
        }
        chosen.sort_unstable();
        self.progress.expect_total(chosen.iter().map(|(_, size)| size).sum());
        let next = AtomicUsize::new(0);
        let failure = FirstError::default();
        // Only what is bad: most packs of a large repository are sound.
        let results: Mutex<Vec<(PackName, Found)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..workers.max(1) {
                scope.spawn(|| {
                    let (master, hasher) =
                        (self.repository.master().clone(), self.repository.hasher().clone());
                    let mut opener = Opener::new(master, hasher, self.repository.epoch());
                    while let Some((name, size)) = chosen.get(next.fetch_add(1, Relaxed)) {
                        let checked = failure.check().and_then(|()| self.check(&mut opener, *name, *size));
                        match failure.note(checked) {
                            None => return,
                            Some(Ok(bad)) if bad.is_empty() => {}
                            Some(found) => {
                                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                                results.push((*name, found));
                            }
                        }
                    }
                });
            }
        });
        failure.take()?;
        report.packs_read = chosen.len() as u64;
        report.checked = chosen.iter().map(|(_, size)| size).sum();
        for (name, found) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match found {
                Ok(bad) => packs.bad.extend(bad.into_iter().map(|(slot, why)| ((name, slot), why))),
                // The frames may be sound where snapshots expect them, but nothing could be rebuilt from this pack.
                Err(why) => report.damages.push(whole(None, name.key(), why)),
            }
        }
        Ok(())
    }

    /// Opens every frame of a pack. `Err` inside: its table cannot be read, so frames cannot be found without an index.
    fn check(self, opener: &mut Opener, name: PackName, size: u64) -> Result<Found> {
        let store = &**self.repository.store();
        self.pace.wait(size.min(TABLE), self.progress)?;
        let table = match self.runtime.block_on(opener.table(store, name, size)) {
            Ok(table) => table,
            Err(Error::Damaged { what, .. }) => return Ok(Err(what)),
            Err(error) if is_lost(&error) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error),
        };
        let mut bad = Vec::new();
        let mut rest = &table[..];
        while !rest.is_empty() {
            self.progress.check()?;
            let start = u64::from(rest[0].2.offset);
            let fits = |p: &Placed| u64::from(p.2.offset) + u64::from(p.2.stored) - start <= READ;
            let count = rest.iter().take_while(|p| fits(p)).count().max(1);
            let (group, later) = rest.split_at(count);
            rest = later;
            let last = group[count - 1].2;
            let end = u64::from(last.offset) + u64::from(last.stored);
            self.pace.wait(end - start, self.progress)?;
            let bytes = match self.runtime.block_on(store.read(&name.key(), start..end)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let error = Error::from(error);
                    if !is_lost(&error) {
                        return Err(error);
                    }
                    bad.extend(group.iter().map(|p| (p.2.slot, error.to_string())));
                    continue;
                }
            };
            self.progress.add(Counter::Done, bytes.len() as u64);
            for (kind, id, at) in group {
                let from = usize::try_from(u64::from(at.offset) - start).unwrap_or(usize::MAX);
                // The table was checked, so this is bounded.
                let mut plain = vec![0; at.length as usize];
                let opened = opener.open(*kind, id, at, &bytes[from..from + at.stored as usize], &mut plain);
                if let Err(Error::Damaged { what, .. }) = opened {
                    bad.push((at.slot, format!("{what} at byte {}", at.offset)));
                }
            }
        }
        Ok(Ok(bad))
    }
}
