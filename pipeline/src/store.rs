//! Where objects live: a small contract, two stores, and decorators around any of them.
//!
//! The format ([`FORMAT.md`](../FORMAT.md)) needs little: objects are created once, never changed and never
//! renamed. What it does need is *create-if-absent* with exactly one winner, because a snapshot's commit is one
//! such creation; [`probe`] shows by writing and reading back whether an endpoint gives it.
//!
//! Keys are ASCII paths with `/` between components, relative to the repository's root. Implementations translate
//! every failure into a [`StoreError`] whose kind callers can act on. Retries, rates and faults are decorators.

pub mod conformance;
pub mod fault;
pub mod key;
pub mod local;
pub mod probe;
pub mod rate;
pub mod read_only;
pub mod record;
pub mod retry;
pub mod s3;
pub mod url;

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::Rate;

/// Contents of an object or part: a rope of slices that are sent in order without being copied.
#[derive(Clone, Default)]
pub struct Body {
    slices: Vec<Bytes>,
    rate: Option<Rate>,
}

impl Body {
    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.slices.iter().map(|b| b.len() as u64).sum()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.slices.iter().all(Bytes::is_empty)
    }

    /// The slices, in order.
    pub fn slices(&self) -> &[Bytes] {
        &self.slices
    }

    /// The same body, to be sent no faster than `rate` allows.
    #[must_use]
    pub fn paced(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Who has to be asked before bytes of this body are sent. Stores that send a little at a time ask for each
    /// piece ([`Rate::turn`]); the others call [`Body::admit`].
    pub fn rate(&self) -> Option<&Rate> {
        self.rate.as_ref()
    }

    /// Waits until the whole body may be sent.
    pub async fn admit(&self) {
        if let Some(rate) = &self.rate {
            rate.admit(self.len()).await;
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes in {} slices)", self.len(), self.slices.len())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { slices: vec![bytes], rate: None }
    }
}

impl FromIterator<Bytes> for Body {
    fn from_iter<I: IntoIterator<Item = Bytes>>(slices: I) -> Self {
        Self { slices: slices.into_iter().collect(), rate: None }
    }
}

/// CRC-64/NVME of consecutive slices: the checksum of [`Part::crc64`] and of S3's `x-amz-checksum-crc64nvme`.
pub fn crc64(slices: &[Bytes]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for slice in slices {
        digest.update(slice);
    }
    digest.finalize()
}

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key relative to the repository's root.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// When the *store* says it was written.
    pub modified: SystemTime,
}

/// One page of a listing, in ascending byte order of keys.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Objects of this page.
    pub objects: Vec<ObjectInfo>,
    /// True when more keys follow: ask again with `after` set to the last key.
    pub more: bool,
}

/// A part that the store has acknowledged.
#[derive(Debug, Clone)]
pub struct Part {
    /// Part number, from 1, without gaps.
    pub number: u32,
    /// Size in bytes.
    pub size: u64,
    /// Opaque tag that completes the upload (S3: the `ETag`).
    pub tag: String,
    /// CRC-64/NVME of the part's bytes, when the store has checked or echoed it.
    pub crc64: Option<u64>,
}

/// An upload in parts that is neither finished nor aborted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpenUpload {
    /// Key of the object it would make.
    pub key: String,
    /// The store's id of the upload.
    pub upload: String,
}

/// Objects, created once and never changed. See the module's text for the rules.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Where this is, for messages. No secrets.
    fn location(&self) -> String;

    /// Creates `key`. Durable when this returns. [`StoreErrorKind::AlreadyExists`] when the key exists: of any
    /// number of concurrent creations of one key exactly one succeeds.
    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError>;

    /// Reads exactly `range` (bytes) of `key`. A range that passes the object's end is
    /// [`StoreErrorKind::OutOfRange`]; nothing short is ever returned.
    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Reads the whole of `key`, refusing objects larger than `limit` bytes before allocating
    /// ([`StoreErrorKind::OutOfRange`]: the size is not one that makes sense).
    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError>;

    /// Size of `key` in bytes and the time the store gives for it.
    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError>;

    /// Keys that start with `prefix` and come after `after`, in ascending byte order, a page at a time
    /// (at most 1,000 objects).
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError>;

    /// Deletes `key`. Deleting what is not there succeeds.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Starts an upload of `key` in parts and returns its id. Nothing is visible under `key` until
    /// [`Store::finish_upload`].
    async fn begin_upload(&self, key: &str) -> Result<String, StoreError>;

    /// Sends part `number` (from 1) of an upload; `offset` is where the part starts in the object. Parts may be sent
    /// in any order and at the same time; sending a number again replaces it. All parts but the last have the same
    /// size, of at least 5 MiB (an S3 rule; Cloudflare R2 also wants them equal).
    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        offset: u64,
        body: Body,
    ) -> Result<Part, StoreError>;

    /// Makes the object visible, whole and durable. As with [`Store::create`], one winner.
    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError>;

    /// Forgets an upload and frees what it holds. An upload that is not there is no error.
    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError>;

    /// Uploads of keys that start with `prefix` which somebody has begun: at most 1,000, others once those are gone. None
    /// where uploads end with their process. [`StoreErrorKind::Unsupported`] and [`StoreErrorKind::Denied`] are usual:
    /// nothing may depend on this but tidiness.
    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError>;

    /// The store's own clock, from one of its responses. Resolution may be one second.
    async fn now(&self) -> Result<SystemTime, StoreError>;
}

/// What happened, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No such object (or upload, or bucket).
    NotFound,
    /// Create-if-absent found the key taken.
    AlreadyExists,
    /// The requested bytes are not in the object.
    OutOfRange,
    /// Credentials missing, wrong or without the right.
    Denied,
    /// The endpoint does not resolve, connect, or speak TLS with a trusted certificate.
    Unreachable,
    /// 5xx, 429, reset, time-out: worth another try.
    Transient,
    /// Bytes arrived other than they were sent: worth another try.
    Checksum,
    /// No space or quota left.
    Full,
    /// The store does not implement the request.
    Unsupported,
    /// A local I/O error or an answer that makes no sense.
    Other,
}

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {key}: {message}")]
pub struct StoreError {
    /// What a caller branches on.
    pub kind: StoreErrorKind,
    /// `create`, `read`, `list`, ...
    pub operation: &'static str,
    /// The key, prefixed with the store's location when known.
    pub key: String,
    /// What the store or the transport said; no secrets, no signed URLs.
    pub message: String,
    /// How long the store asked to wait before the next try.
    pub retry_after: Option<std::time::Duration>,
    /// The cause, when there is one.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// A new error without a cause.
    pub fn new(kind: StoreErrorKind, operation: &'static str, key: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            key: key.to_owned(),
            message: message.into(),
            retry_after: None,
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// True when the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Transient | StoreErrorKind::Checksum)
    }

    /// What the user can do next.
    pub fn hint(&self) -> Option<&'static str> {
        match self.kind {
            StoreErrorKind::Denied => Some(
                "check the rights to this directory, or the credentials and their rights to this bucket and prefix",
            ),
            StoreErrorKind::Unreachable => Some("check --endpoint, the network and --ca-file"),
            StoreErrorKind::Full => Some("free space at the store, then run it again"),
            StoreErrorKind::Transient => {
                Some("the store kept failing; run it again later, what was uploaded is used again")
            }
            _ => None,
        }
    }
}
