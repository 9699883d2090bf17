//! A store in memory, for unit tests: objects, a clock that tests set, and answers that get lost.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;

use super::{InitOptions, Repository};
use crate::manifest::VolumeName;
use crate::seal::Secret;
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError, StoreErrorKind};

/// Objects in memory.
#[derive(Debug, Default)]
pub(crate) struct TestStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    /// Keys and parts by ids.
    uploads: BTreeMap<String, (String, BTreeMap<u32, Bytes>)>,
    begun: usize,
    now_ms: u64,
    page: usize,
    careless: bool,
    lost: Vec<(String, StoreErrorKind)>,
}

impl TestStore {
    pub(crate) fn new() -> Arc<Self> {
        let store = Self::default();
        store.state().now_ms = 1_800_000_000_000;
        store.state().page = 3;
        Arc::new(store)
    }

    /// A repository on a new store, opened with a key file.
    pub(crate) async fn repository() -> (Arc<Self>, Arc<Repository>) {
        let store = Self::new();
        let repository = Repository::init(store.clone(), &key_file(1), InitOptions::default()).await.unwrap();
        (store, Arc::new(repository))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Overwrites silently instead of honouring create-if-absent.
    pub(crate) fn careless(&self) {
        self.state().careless = true;
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.state().now_ms += by.as_millis() as u64;
    }

    pub(crate) fn set_now_ms(&self, now_ms: u64) {
        self.state().now_ms = now_ms;
    }

    /// The next creation of a key that starts with `prefix` succeeds, and its answer is `kind`.
    pub(crate) fn lose_answer(&self, prefix: &str, kind: StoreErrorKind) {
        self.state().lost.push((prefix.to_owned(), kind));
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.state().objects.keys().filter(|k| k.starts_with(prefix)).cloned().collect()
    }

    pub(crate) fn get(&self, key: &str) -> Bytes {
        self.state().objects[key].0.clone()
    }

    /// Replaces or adds an object behind everyone's back.
    pub(crate) fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        let mut state = self.state();
        let now = state.now_ms;
        state.objects.insert(key.to_owned(), (bytes.into(), now));
    }

    pub(crate) fn remove(&self, key: &str) {
        self.state().objects.remove(key);
    }

    /// Flips bit `bit` of `key`.
    pub(crate) fn flip(&self, key: &str, bit: usize) {
        let mut bytes = self.get(key).to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.put(key, bytes);
    }

    pub(crate) fn uploads(&self) -> usize {
        self.state().uploads.len()
    }
}

pub(crate) fn key_file(seed: u8) -> Secret {
    Secret::key_file((0..64u8).map(|i| i.wrapping_mul(37) ^ seed).collect::<Vec<u8>>()).unwrap()
}

pub(crate) fn volume(name: &str) -> VolumeName {
    VolumeName::new(name).unwrap()
}

fn missing(operation: &'static str, key: &str) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, operation, key, "no such object")
}

#[async_trait]
impl Store for TestStore {
    fn location(&self) -> String {
        "memory:".into()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.objects.contains_key(key) && !state.careless {
            return Err(StoreError::new(StoreErrorKind::AlreadyExists, "create", key, "exists"));
        }
        let now = state.now_ms;
        state.objects.insert(key.to_owned(), (body.slices().concat().into(), now));
        match state.lost.iter().position(|(prefix, _)| key.starts_with(prefix.as_str())) {
            Some(i) => Err(StoreError::new(state.lost.remove(i).1, "create", key, "lost answer")),
            None => Ok(()),
        }
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = self.read_all(key, u64::MAX).await?;
        if range.end > bytes.len() as u64 {
            return Err(StoreError::new(StoreErrorKind::OutOfRange, "read", key, "too short"));
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let state = self.state();
        let (bytes, _) = state.objects.get(key).ok_or_else(|| missing("read", key))?;
        if bytes.len() as u64 > limit {
            return Err(StoreError::new(StoreErrorKind::Other, "read", key, "larger than allowed"));
        }
        Ok(bytes.clone())
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        let state = self.state();
        let (bytes, at) = state.objects.get(key).ok_or_else(|| missing("stat", key))?;
        let modified = UNIX_EPOCH + Duration::from_millis(*at);
        Ok(ObjectInfo { key: key.into(), size: bytes.len() as u64, modified })
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        let state = self.state();
        let mut found = state
            .objects
            .iter()
            .filter(|(k, _)| k.starts_with(prefix) && after.is_none_or(|a| k.as_str() > a))
            .map(|(k, (bytes, at))| ObjectInfo {
                key: k.clone(),
                size: bytes.len() as u64,
                modified: UNIX_EPOCH + Duration::from_millis(*at),
            });
        let objects = found.by_ref().take(state.page).collect();
        Ok(Listing { objects, more: found.next().is_some() })
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.remove(key);
        Ok(())
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        let mut state = self.state();
        state.begun += 1;
        let id = format!("upload-{}", state.begun);
        state.uploads.insert(id.clone(), (key.to_owned(), BTreeMap::new()));
        Ok(id)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        _offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        let mut state = self.state();
        let (_, parts) = state.uploads.get_mut(upload).ok_or_else(|| missing("upload", key))?;
        parts.insert(number, body.slices().concat().into());
        Ok(Part { number, size: body.len(), tag: String::new(), crc64: None })
    }

    async fn finish_upload(&self, key: &str, upload: &str, _parts: &[Part]) -> Result<(), StoreError> {
        let (_, parts) = self.state().uploads.get(upload).cloned().ok_or_else(|| missing("finish", key))?;
        self.create(key, parts.into_values().collect()).await?;
        self.state().uploads.remove(upload);
        Ok(())
    }

    async fn abort_upload(&self, _key: &str, upload: &str) -> Result<(), StoreError> {
        self.state().uploads.remove(upload);
        Ok(())
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let state = self.state();
        let found = state.uploads.iter().filter(|(_, (key, _))| key.starts_with(prefix));
        Ok(found.map(|(id, (key, _))| OpenUpload { key: key.clone(), upload: id.clone() }).collect())
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        Ok(UNIX_EPOCH + Duration::from_millis(self.state().now_ms))
    }
}
