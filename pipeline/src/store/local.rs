//! A repository in a directory.
//!
//! An object appears by one rename (or link) that refuses to replace, of a file that is complete and synced; then its
//! folder is synced. So a key has one creator, and what was reported is there after a power cut. A sync that failed
//! is final: the kernel reports a lost write once, so trying again would turn the loss into a success.
//!
//! Files that are not objects yet live in `tmp/`, locked for as long as their writer lives.

mod direct;
mod folders;
mod list;
mod output;
mod temp;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::Advice;

use self::folders::Folders;
use self::temp::{Temp, Temps};
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError, StoreErrorKind, key};

/// Objects, and reads, of at least this many bytes leave nothing in the page cache; smaller ones are likely read again
/// soon.
const KEEP_CACHED: u64 = 1 << 20;

/// A [`Store`] in a directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    folders: Folders,
    temps: Temps,
    uploads: Mutex<HashMap<String, Arc<Upload>>>,
}

/// An object that is being written in parts.
#[derive(Debug)]
struct Upload {
    temp: Temp,
    parts: Mutex<BTreeMap<u32, Written>>,
    /// Writes of parts so far: each has a tag of its own.
    writes: AtomicU64,
}

/// What an upload knows of a part: finishing compares it with what the caller believes.
#[derive(Debug)]
struct Written {
    offset: u64,
    size: u64,
    tag: String,
}

impl LocalStore {
    /// A store in the directory `root`, which is made by the first creation when it does not exist. Fails when the
    /// current directory is needed and unknown.
    pub fn new(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        Ok(Self(Arc::new(Inner {
            folders: Folders::new(root.clone()),
            temps: Temps::new(root.join(key::RESERVED)),
            root,
            uploads: Mutex::default(),
        })))
    }

    /// The directory, absolute.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Runs blocking file operations on a thread made for them and gives failures their kind.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&Inner) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.0.clone();
        let failure = match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(failure)) => failure,
            Err(e) => Failure::Says(StoreErrorKind::Other, format!("file operation did not end: {e}")),
        };
        let key = format!("{}/{key}", self.location());
        Err(match failure {
            Failure::Io(e) => StoreError::new(kind_of(&e), operation, &key, e.to_string()).with_source(e),
            Failure::Says(kind, message) => StoreError::new(kind, operation, &key, message),
        })
    }
}

/// Why a file operation failed, before the operation and key are added.
enum Failure {
    Io(io::Error),
    Says(StoreErrorKind, String),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

fn kind_of(e: &io::Error) -> StoreErrorKind {
    use io::ErrorKind as K;
    match e.kind() {
        K::NotFound | K::NotADirectory => StoreErrorKind::NotFound,
        K::AlreadyExists => StoreErrorKind::AlreadyExists,
        K::PermissionDenied | K::ReadOnlyFilesystem => StoreErrorKind::Denied,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => StoreErrorKind::Full,
        K::Unsupported => StoreErrorKind::Unsupported,
        // Everything else, and above all a failed write or sync, is not tried again.
        _ => StoreErrorKind::Other,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps are consistent between any two statements, so a panic elsewhere does not spoil them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn open(&self, key: &str) -> Result<(File, u64), Failure> {
        let file = File::open(self.path(key))?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        Ok((file, meta.len()))
    }

    fn read(&self, key: &str, range: &Range<u64>) -> Result<Bytes, Failure> {
        let (file, size) = self.open(key)?;
        if range.start > range.end || range.end > size {
            let what = format!("bytes {}..{} of an object of {size}", range.start, range.end);
            return Err(Failure::Says(StoreErrorKind::OutOfRange, what));
        }
        let too_large = |_| Failure::Says(StoreErrorKind::OutOfRange, "more than memory can address".into());
        let len = usize::try_from(range.end - range.start).map_err(too_large)?;
        let large = len as u64 >= KEEP_CACHED;
        let direct = if large { direct::read(&self.path(key), range.start, len)? } else { None };
        let bytes = if let Some(bytes) = direct {
            bytes
        } else {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, range.start)?;
            bytes.into()
        };
        if large {
            // Some file systems take direct reads and serve them from the page cache. Advice: nothing depends on it.
            let _ = rustix::fs::fadvise(&file, range.start, NonZeroU64::new(len as u64), Advice::DontNeed);
        }
        Ok(bytes)
    }

    fn create(&self, key: &str, body: &Body) -> Result<(), Failure> {
        let temp = self.temps.create(&self.folders, "object")?;
        temp.output().write(body.slices(), 0)?;
        self.publish(&temp, key, body.len())
    }

    /// Gives a complete file its key: durable and visible, or [`io::ErrorKind::AlreadyExists`].
    fn publish(&self, temp: &Temp, key: &str, size: u64) -> Result<(), Failure> {
        // The contents with their length and time must be on the device before a name leads to them.
        temp.output().file().sync_all()?;
        if size >= KEEP_CACHED {
            temp.output().forget_cache();
        }
        self.folders.adopt(temp, &self.path(key))?;
        Ok(())
    }

    fn upload(&self, id: &str) -> Result<Arc<Upload>, Failure> {
        locked(&self.uploads).get(id).cloned().ok_or_else(|| {
            Failure::Says(StoreErrorKind::NotFound, "no such upload, or one of another process".into())
        })
    }

    fn finish(&self, key: &str, id: &str, parts: &[Part]) -> Result<(), Failure> {
        let upload = self.upload(id)?;
        let mut size = 0;
        {
            let written = locked(&upload.parts);
            for part in parts {
                // A part that never arrived would be a hole of zeros.
                let here = written.get(&part.number);
                if here.is_none_or(|w| (w.offset, w.size, &w.tag) != (size, part.size, &part.tag)) {
                    let what =
                        format!("part {} is not what was written last, or not at its place", part.number);
                    return Err(Failure::Says(StoreErrorKind::Other, what));
                }
                size += part.size;
            }
        }
        let file = upload.temp.output().file();
        file.set_len(size)?;
        // The store's time of an object is when it came to be, not when its last part did.
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        rustix::fs::futimens(file, &times).map_err(io::Error::from)?;
        // Whatever comes of it, this upload is over: after a sync that failed a second one would report success.
        locked(&self.uploads).remove(id);
        self.publish(&upload.temp, key, size)
    }
}

#[async_trait]
impl Store for LocalStore {
    fn location(&self) -> String {
        self.0.root.display().to_string()
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        key::check_key("create", key)?;
        body.admit().await;
        let name = key.to_owned();
        self.run("create", key, move |s| s.create(&name, &body)).await
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        key::check_key("read", key)?;
        let name = key.to_owned();
        self.run("read", key, move |s| s.read(&name, &range)).await
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        key::check_key("read_all", key)?;
        let name = key.to_owned();
        let work = move |s: &Inner| {
            let (_, size) = s.open(&name)?;
            if size > limit {
                let what = format!("{size} bytes where at most {limit} make sense");
                return Err(Failure::Says(StoreErrorKind::OutOfRange, what));
            }
            // Objects never change, so the size still holds.
            s.read(&name, &(0..size))
        };
        self.run("read_all", key, work).await
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        key::check_key("stat", key)?;
        let name = key.to_owned();
        let work = move |s: &Inner| {
            let meta = fs::metadata(s.path(&name))?;
            if !meta.is_file() {
                return Err(io::Error::from(io::ErrorKind::NotFound).into());
            }
            Ok(ObjectInfo { size: meta.len(), modified: meta.modified()?, key: name })
        };
        self.run("stat", key, work).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        key::check_prefix("list", prefix)?;
        let (prefix_, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run("list", prefix, move |s| Ok(list::list(&s.root, &prefix_, after.as_deref())?)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check_key("delete", key)?;
        let name = key.to_owned();
        self.run("delete", key, move |s| Ok(s.folders.delete(&s.path(&name))?)).await
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        key::check_key("begin_upload", key)?;
        let work = |s: &Inner| {
            let temp = s.temps.create(&s.folders, "upload")?;
            let id = temp.id().to_owned();
            let upload = Upload { temp, parts: Mutex::default(), writes: AtomicU64::new(0) };
            locked(&s.uploads).insert(id.clone(), Arc::new(upload));
            Ok(id)
        };
        self.run("begin_upload", key, work).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        key::check_key("upload_part", key)?;
        body.admit().await;
        let id = upload.to_owned();
        let work = move |s: &Inner| {
            if !(1..=key::MAX_PARTS).contains(&number) {
                return Err(Failure::Says(StoreErrorKind::Other, format!("part {number} cannot be")));
            }
            let upload = s.upload(&id)?;
            // While it is being overwritten, a part is not there.
            locked(&upload.parts).remove(&number);
            upload.temp.output().write(body.slices(), offset)?;
            let (size, tag) = (body.len(), upload.writes.fetch_add(1, Relaxed).to_string());
            locked(&upload.parts).insert(number, Written { offset, size, tag: tag.clone() });
            Ok(Part { number, size, tag, crc64: None })
        };
        self.run("upload_part", key, work).await
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        key::check_key("finish_upload", key)?;
        key::check_parts(key, parts)?;
        let (name, id, parts) = (key.to_owned(), upload.to_owned(), parts.to_vec());
        self.run("finish_upload", key, move |s| s.finish(&name, &id, &parts)).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        key::check_key("abort_upload", key)?;
        let id = upload.to_owned();
        let work = move |s: &Inner| {
            locked(&s.uploads).remove(&id);
            Ok(s.temps.remove(&id)?)
        };
        self.run("abort_upload", key, work).await
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        key::check_prefix("open_uploads", prefix)?;
        // Their files are locked by their process, and the next one removes them.
        Ok(Vec::new())
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        // A new file carries the time of whatever serves the directory, which may be another machine.
        let work =
            |s: &Inner| Ok(s.temps.create(&s.folders, "clock")?.output().file().metadata()?.modified()?);
        self.run("now", key::RESERVED, work).await
    }
}

#[cfg(test)]
mod tests;
