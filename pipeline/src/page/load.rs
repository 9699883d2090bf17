//! Fetches pages: where the hint says, and where the index says when the hint is out of date.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::Malformed;
use crate::entry::ChunkRef;
use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::index::Index;
use crate::limits::Rate;
use crate::pack::reader::{Opener, read_frame};
use crate::pack::{Location, PackName};
use crate::progress::Progress;
use crate::store::Store;

/// Bytes of decoded pages kept. A walk needs one page of each level again and again.
const CACHE_BYTES: usize = 4 << 20;

/// Fetches and opens pages, from threads that are not part of the async runtime.
pub struct PageLoader {
    store: Arc<dyn Store>,
    index: Arc<Index>,
    runtime: tokio::runtime::Handle,
    progress: Arc<Progress>,
    pace: Rate,
    opener: Mutex<Opener>,
    cache: Mutex<Cache>,
}

impl std::fmt::Debug for PageLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageLoader").field("store", &self.store).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Cache {
    pages: HashMap<(ObjectType, Id), Arc<Vec<u8>>>,
    order: VecDeque<(ObjectType, Id)>,
    bytes: usize,
}

impl PageLoader {
    /// A loader for a repository's store, index and keys, which fetches at the rate `pace`.
    pub fn new(
        store: Arc<dyn Store>,
        index: Arc<Index>,
        opener: Opener,
        runtime: tokio::runtime::Handle,
        progress: Arc<Progress>,
        pace: Rate,
    ) -> Self {
        Self { store, index, runtime, progress, pace, opener: Mutex::new(opener), cache: Mutex::default() }
    }

    /// The plaintext of a page.
    ///
    /// # Errors
    /// [`Error::Damaged`] when no copy of it opens; the store's errors.
    pub fn load(&self, kind: ObjectType, chunk: &ChunkRef) -> Result<Arc<Vec<u8>>> {
        self.progress.check()?;
        if let Some(page) = self.cached(kind, &chunk.id) {
            return Ok(page);
        }
        let page = Arc::new(self.fetch(kind, chunk)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(kind, chunk.id, Arc::clone(&page));
        Ok(page)
    }

    /// A chunk, whole: where its hint says, or any other copy that the index knows. For single look-ups; bulk reads are
    /// planned by pack.
    ///
    /// # Errors
    /// As [`PageLoader::load`].
    pub fn fetch(&self, kind: ObjectType, chunk: &ChunkRef) -> Result<Vec<u8>> {
        let mut tried: Vec<PackName> = Vec::new();
        let mut failed = None;
        let mut place = chunk.hint;
        loop {
            let other = || self.index.find_where(kind, &chunk.id, |at| !tried.contains(&at.pack));
            let Some(at) = place.take().or_else(other) else { break };
            match self.fetch_at(kind, &chunk.id, &at) {
                Ok(page) => return Ok(page),
                Err(error) if is_lost(&error) => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
            tried.push(at.pack);
        }
        Err(failed
            .unwrap_or_else(|| Error::damaged("index", "no pack is known to hold a chunk of this snapshot")))
    }

    /// Turns a page that authenticated but does not decode into an error that names its pack.
    pub fn malformed(chunk: &ChunkRef) -> impl Fn(Malformed) -> Error + use<> {
        let hint = chunk.hint;
        move |what| match hint {
            Some(at) => Error::damaged_at(at.pack.key(), u64::from(at.offset), what),
            None => Error::damaged("page", what),
        }
    }

    fn fetch_at(&self, kind: ObjectType, id: &Id, at: &Location) -> Result<Vec<u8>> {
        self.pace.wait(at.stored.into(), &self.progress)?;
        let stored = self.runtime.block_on(read_frame(&*self.store, kind, at))?;
        let mut out = vec![0; at.length as usize];
        let mut opener = self.opener.lock().unwrap_or_else(PoisonError::into_inner);
        opener.open(kind, id, at, &stored, &mut out)?;
        Ok(out)
    }

    fn cached(&self, kind: ObjectType, id: &Id) -> Option<Arc<Vec<u8>>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.pages.get(&(kind, *id)).map(Arc::clone)
    }
}

impl Cache {
    fn insert(&mut self, kind: ObjectType, id: Id, page: Arc<Vec<u8>>) {
        let len = page.len();
        if len > CACHE_BYTES / 2 || self.pages.insert((kind, id), page).is_some() {
            return;
        }
        self.bytes += len;
        self.order.push_back((kind, id));
        while self.bytes > CACHE_BYTES
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.pages.remove(&oldest).map_or(0, |p| p.len());
        }
    }
}

/// True for errors that another copy of the chunk could make good.
pub(crate) fn is_lost(error: &Error) -> bool {
    use crate::store::StoreErrorKind::{NotFound, OutOfRange};
    match error {
        Error::Damaged { .. } => true,
        Error::Store(e) => matches!(e.kind, NotFound | OutOfRange),
        _ => false,
    }
}
