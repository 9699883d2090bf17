//! Which packs no readable segment names: what has to be indexed again when a segment is damaged or gone.
//!
//! Pack tables suffice to rebuild every index. Since a segment names whole packs, the work is to find the packs that
//! are named nowhere; their tables are then read, and given to [`Index::finished`] as if they had just been written.
//! Doing so for a pack of a session that is still running, or of one that was killed, is harmless: such a pack is
//! complete, and the index never says that a chunk is needed, only where it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::segment::{MAX_STORED, Segment, SegmentName};
use super::{Index, sync};
use crate::error::{Error, Result};
use crate::pack::{PackName, SessionId};
use crate::store::{Store, StoreErrorKind};
use crate::temp;

const NAME: usize = 28;
/// Names per block of the temporary file.
const BLOCK: usize = 64;
/// One part for each folder below `packs/`.
const PARTS: usize = 256;

/// A set of packs on disk, cut as `packs/` is, so that one folder's names fit in memory: half a MiB, and 28 bytes
/// for every 256th pack.
pub struct Coverage {
    file: File,
    /// Names of each part that are not in the file yet.
    tails: Vec<Vec<u8>>,
    /// Blocks of each part in the file.
    blocks: Vec<Vec<u32>>,
    next: u32,
}

impl std::fmt::Debug for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coverage({} blocks)", self.next)
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::io("use a temporary file in", &std::env::temp_dir())(source)
}

impl Coverage {
    /// An empty set, in a temporary file: in `dir`, or where such files usually go.
    ///
    /// # Errors
    /// [`Error::Io`] when neither can be written.
    pub fn new(dir: Option<&Path>) -> Result<Self> {
        let file = temp::nameless(dir).map_err(failed)?;
        Ok(Self { file, tails: vec![Vec::new(); PARTS], blocks: vec![Vec::new(); PARTS], next: 0 })
    }

    /// Adds a pack; any order, any number of times.
    ///
    /// # Errors
    /// [`Error::Io`] when the temporary file cannot be written.
    pub fn add(&mut self, pack: &PackName) -> Result<()> {
        let part = usize::from(pack.id[0]);
        let tail = &mut self.tails[part];
        tail.extend_from_slice(&pack.id);
        tail.extend_from_slice(&pack.session.0);
        if tail.len() == BLOCK * NAME {
            self.file.write_all_at(tail, at(self.next)).map_err(failed)?;
            tail.clear();
            self.blocks[part].push(self.next);
            self.next += 1;
        }
        Ok(())
    }

    /// The packs whose id starts with `part`, ascending.
    ///
    /// # Errors
    /// [`Error::Io`] when the temporary file cannot be read.
    pub fn part(&self, part: u8) -> Result<Vec<PackName>> {
        let part = usize::from(part);
        let mut names: Vec<PackName> = self.tails[part].chunks_exact(NAME).map(decode).collect();
        let mut block = [0; BLOCK * NAME];
        for number in &self.blocks[part] {
            self.file.read_exact_at(&mut block, at(*number)).map_err(failed)?;
            names.extend(block.chunks_exact(NAME).map(decode));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// Where a block is in the file.
fn at(block: u32) -> u64 {
    u64::from(block) * (BLOCK * NAME) as u64
}

fn decode(from: &[u8]) -> PackName {
    let (mut id, mut session) = ([0; 16], [0; 12]);
    id.copy_from_slice(&from[..16]);
    session.copy_from_slice(&from[16..NAME]);
    PackName { id, session: SessionId(session) }
}

/// The packs of a store that no readable segment names, a listing page at a time. See [`Index::uncovered`].
#[derive(Debug)]
pub struct Uncovered {
    store: Arc<dyn Store>,
    coverage: Coverage,
    part: u8,
    covered: Vec<PackName>,
    after: Option<String>,
    done: bool,
    /// Segments that could not be read: key and reason.
    pub damaged: Vec<(String, String)>,
}

impl Uncovered {
    /// The next packs with their sizes in bytes, ascending; empty at the end.
    ///
    /// # Errors
    /// [`Error::Store`] when the store cannot be listed; [`Error::Io`] for the temporary file.
    pub async fn next(&mut self) -> Result<Vec<(PackName, u64)>> {
        while !self.done {
            let prefix = format!("packs/{:02x}/", self.part);
            if self.after.is_none() {
                self.covered = self.coverage.part(self.part)?;
            }
            let page = self.store.list(&prefix, self.after.as_deref()).await?;
            let packs = page.objects.iter().filter_map(|o| Some((PackName::from_key(&o.key)?, o.size)));
            let found: Vec<_> = packs.filter(|(name, _)| self.covered.binary_search(name).is_err()).collect();
            self.after = page.objects.last().filter(|_| page.more).map(|last| last.key.clone());
            if self.after.is_none() {
                self.done = self.part == u8::MAX;
                self.part = self.part.wrapping_add(1);
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }
}

impl Index {
    /// Finds the packs that no readable segment names, to index them again: read each one's table, give it to
    /// [`Index::finished`], and [`Index::flush`] as usual. Reads the pack tables of the local cache, and fetches
    /// the segments that the cache does not have. Packs of this session that wait for a flush are named nowhere yet.
    ///
    /// # Errors
    /// [`Error::Store`] when the store fails; [`Error::Io`] when there is no place for a temporary file.
    pub async fn uncovered(&self) -> Result<Uncovered> {
        let mut segments = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list("index/", after.as_deref()).await?;
            segments.extend(page.objects.iter().filter_map(|o| SegmentName::from_key(&o.key)));
            match page.objects.last() {
                Some(last) if page.more => after = Some(last.key.clone()),
                _ => break,
            }
        }
        let cache = Arc::clone(&self.cache);
        let coverage = Coverage::new(self.cache_dir.as_deref())?;
        let (mut coverage, segments) =
            sync::blocking(move || cached(&cache.runs(), coverage, segments)).await??;
        let mut damaged = Vec::new();
        for name in segments {
            let key = name.key();
            let stored = match self.store.read_all(&key, MAX_STORED).await {
                Ok(stored) => stored,
                Err(e) if e.kind == StoreErrorKind::NotFound => continue,
                Err(e) if e.kind == StoreErrorKind::OutOfRange => {
                    damaged.push((key, e.message));
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            match Segment::open(&self.master, &name, &stored) {
                Ok(segment) => segment.packs().try_for_each(|row| coverage.add(&row.name))?,
                Err(Error::Damaged { what, .. }) => damaged.push((key, what)),
                Err(e) => return Err(e),
            }
        }
        let (store, covered) = (Arc::clone(&self.store), Vec::new());
        Ok(Uncovered { store, coverage, part: 0, covered, after: None, done: false, damaged })
    }
}

/// Takes over the packs of runs whose segments are all still in the store; returns the other segments.
fn cached(
    runs: &[Arc<super::run::Run>],
    mut coverage: Coverage,
    mut segments: Vec<SegmentName>,
) -> Result<(Coverage, Vec<SegmentName>)> {
    let mut known = Vec::new();
    for run in runs {
        let Ok(covers) = run.covers() else { continue };
        if covers.iter().any(|name| segments.binary_search(name).is_err()) {
            continue;
        }
        let mut whole = true;
        for row in run.packs() {
            match row {
                Ok(row) => coverage.add(&row.name)?,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        if whole {
            known.extend(covers);
        }
    }
    known.sort_unstable();
    segments.retain(|name| known.binary_search(name).is_err());
    Ok((coverage, segments))
}
