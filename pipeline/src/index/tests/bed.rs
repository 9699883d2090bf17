//! A store in memory that fails on demand, a cache directory, and chunks by number.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::*;
use crate::seal::Codec;
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, StoreError, StoreErrorKind as Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Before,
    After,
}

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
    fail: Mutex<Option<Failure>>,
}

impl MemoryStore {
    /// Fails the next creation, before or after it took place.
    pub(super) fn fail_next(&self, failure: Failure) {
        *self.fail.lock().unwrap() = Some(failure);
    }

    pub(super) fn put(&self, key: &str, bytes: Vec<u8>) {
        self.objects.lock().unwrap().insert(key.into(), bytes.into());
    }

    pub(super) fn change(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.objects.lock().unwrap()[key].to_vec();
        change(&mut bytes);
        self.put(key, bytes);
    }

    pub(super) fn remove(&self, key: &str) {
        assert!(self.objects.lock().unwrap().remove(key).is_some());
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn location(&self) -> String {
        "memory".into()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        let failure = self.fail.lock().unwrap().take();
        if failure == Some(Failure::Before) {
            return Err(StoreError::new(Kind::Transient, "create", key, "on demand"));
        }
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(key) {
            return Err(StoreError::new(Kind::AlreadyExists, "create", key, "exists"));
        }
        objects.insert(key.into(), body.slices().concat().into());
        match failure {
            None => Ok(()),
            Some(_) => Err(StoreError::new(Kind::Transient, "create", key, "on demand")),
        }
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let all = self.read_all(key, u64::MAX).await?;
        Ok(all.slice(range.start as usize..range.end as usize))
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        // Answers come late and out of order.
        tokio::task::yield_now().await;
        let found = self.objects.lock().unwrap().get(key).cloned();
        let found = found.ok_or_else(|| StoreError::new(Kind::NotFound, "read", key, "not there"))?;
        assert!(found.len() as u64 <= limit);
        Ok(found)
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        let size = self.read_all(key, u64::MAX).await?.len() as u64;
        Ok(ObjectInfo { key: key.into(), size, modified: SystemTime::UNIX_EPOCH })
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        let objects = self.objects.lock().unwrap();
        let start = std::ops::Bound::Excluded(after.unwrap_or(prefix));
        let mut found: Vec<_> = objects
            .range::<str, _>((start, std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(8)
            .map(|(key, bytes)| ObjectInfo {
                key: key.clone(),
                size: bytes.len() as u64,
                modified: SystemTime::UNIX_EPOCH,
            })
            .collect();
        let more = found.len() == 8;
        found.truncate(7);
        Ok(Listing { objects: found, more })
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        Err(StoreError::new(Kind::Unsupported, "upload", key, "not here"))
    }

    async fn upload_part(&self, key: &str, _: &str, _: u32, _: u64, _: Body) -> Result<Part, StoreError> {
        Err(StoreError::new(Kind::Unsupported, "upload", key, "not here"))
    }

    async fn finish_upload(&self, key: &str, _: &str, _: &[Part]) -> Result<(), StoreError> {
        Err(StoreError::new(Kind::Unsupported, "upload", key, "not here"))
    }

    async fn abort_upload(&self, _: &str, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn open_uploads(&self, _: &str) -> Result<Vec<OpenUpload>, StoreError> {
        Ok(Vec::new())
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        Ok(SystemTime::UNIX_EPOCH)
    }
}

/// A repository's index and one machine.
pub(super) struct Bed {
    pub(super) store: Arc<MemoryStore>,
    pub(super) cache: tempfile::TempDir,
    pub(super) config: IndexConfig,
    pub(super) decided: Vec<SessionId>,
    pub(super) runtime: tokio::runtime::Runtime,
}

impl Bed {
    pub(super) fn new() -> Self {
        Self {
            store: Arc::default(),
            cache: tempfile::tempdir().unwrap(),
            config: IndexConfig { cache_dir: Some("default".into()), ..IndexConfig::default() },
            decided: Vec::new(),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        }
    }

    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(super) fn open(&self, session: u64) -> (Index, SyncReport) {
        self.run(self.open_async(session))
    }

    pub(super) async fn open_async(&self, session: u64) -> (Index, SyncReport) {
        let mut config = self.config.clone();
        if config.cache_dir.as_deref() == Some("default".as_ref()) {
            config.cache_dir = Some(self.cache.path().to_owned());
        }
        let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(&self.store);
        Index::open(store, &master(), 0, &[1; 16], Some(session_id(session)), &self.decided, config)
            .await
            .unwrap()
    }

    /// Stores chunks in a pack of the number of `session`, and flushes.
    pub(super) fn store_chunks(&self, session: u64, chunks: Range<u64>) {
        let (index, _) = self.open(session);
        self.store_more(&index, session, chunks);
    }

    pub(super) fn store_more(&self, index: &Index, pack: u64, chunks: Range<u64>) {
        let chunks: Vec<_> = chunks.map(|n| chunk(pack, n)).collect();
        index.finished(chunks[0].2.pack, 1 << 30, chunks);
        self.run(index.flush()).unwrap();
    }

    /// Keys of the segments in the store.
    pub(super) fn keys(&self) -> Vec<String> {
        self.store.objects.lock().unwrap().keys().filter(|k| k.starts_with("index/")).cloned().collect()
    }

    pub(super) fn cache_files(&self) -> Vec<PathBuf> {
        let dir = self.cache.path().join("01".repeat(16)).join("index");
        let files = std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path());
        files.filter(|p| p.extension().is_some_and(|e| e == "run")).collect()
    }

    pub(super) fn cache_size(&self) -> u64 {
        self.cache_files().iter().map(|p| std::fs::metadata(p).unwrap().len()).sum()
    }
}

pub(super) fn master() -> MasterKey {
    MasterKey::from_bytes([42; 32])
}

pub(super) fn session_id(n: u64) -> SessionId {
    let mut id = [0; 12];
    id[4..].copy_from_slice(&n.to_be_bytes());
    SessionId(id)
}

/// Chunk `n` as it would be in pack `pack`.
pub(super) fn chunk(pack: u64, n: u64) -> (ObjectType, Id, Location) {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(&pack.to_le_bytes()).as_bytes()[..16]);
    let at = Location {
        pack: PackName { id, session: session_id(pack) },
        slot: (n % 16_000) as u32,
        offset: 64 + (n % 16_000) as u32 * 200,
        stored: 200,
        length: 184,
        codec: Codec::Raw,
    };
    (ObjectType::Data, Id(*blake3::hash(&n.to_le_bytes()).as_bytes()), at)
}
