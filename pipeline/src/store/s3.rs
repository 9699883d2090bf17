//! A repository in a bucket of Amazon S3 or of anything that speaks its protocol.
//!
//! Every upload carries a CRC-64/NVME that the store checks on arrival. Over TLS the payload is left out of the
//! request's signature; without TLS its SHA-256 is in. Whether the endpoint honours `If-None-Match` is not assumed
//! here: [`probe`](crate::store::probe) finds out.

mod body;
mod connect;
mod deadline;
mod encryption;
mod error;
mod intercept;
mod read;
mod unverified;
mod write;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;

use self::deadline::{Activity, within};
use self::encryption::Extras;
use self::intercept::DateHeader;
use crate::error::Result;
use crate::store::{Body, Listing, ObjectInfo, OpenUpload, Part, Store, StoreError, StoreErrorKind, key};

pub use self::encryption::{CustomerKey, Encryption};

/// How to reach a bucket. Credentials come from where every Amazon tool takes them: environment, profile files, web
/// identity, container and instance metadata.
#[derive(Debug, Clone, Default)]
pub struct S3Config {
    /// Name of the bucket, which must exist.
    pub bucket: String,
    /// Where in the bucket the repository is, without slashes at the ends; empty: at its top.
    pub prefix: String,
    /// Address of another endpoint than Amazon's, with `http://` or `https://`.
    pub endpoint: Option<String>,
    /// Region; the default is what environment and profile say, then `us-east-1`.
    pub region: Option<String>,
    /// Put the bucket's name in the path, not before the host's. Always so for IP addresses and `localhost`.
    pub path_style: bool,
    /// Certificates (PEM) to trust at the endpoint instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Believe the endpoint's certificate unseen. No proxy is used then.
    pub insecure_skip_tls_verify: bool,
    /// Take credentials from this file alone (the format of `~/.aws/credentials`).
    pub credentials_file: Option<PathBuf>,
    /// With `credentials_file`: read Amazon's shared configuration (`~/.aws/config`) for what the file says nothing about.
    pub shared_config: bool,
    /// The profile to take from these files; the default is that of `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// How the store encrypts what it is given.
    pub encryption: Encryption,
    /// What new objects are tagged with, as in a query: `a=b&c=d`.
    pub tagging: Option<String>,
}

/// A [`Store`] in a bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    prefix: String,
    tls: bool,
    extras: Extras,
    /// False once the server has refused our checksum; payloads are signed then.
    checksums: Arc<AtomicBool>,
}

impl S3Store {
    /// Makes a client; sends no request to the endpoint yet. Fails with [`Error::Usage`](crate::Error::Usage) when
    /// the CA file or the file of credentials is not one, or encryption or tagging make no sense.
    pub async fn connect(config: &S3Config) -> Result<Self> {
        let (client, tls) = Box::pin(connect::client(config)).await?;
        let extras = Extras::new(&config.encryption, config.tagging.as_deref(), tls)?;
        let prefix = config.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let checksums = Arc::new(AtomicBool::new(true));
        Ok(Self { client, bucket: config.bucket.clone(), prefix, tls, extras, checksums })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The other way around; nothing for what is no key of ours (a folder's placeholder, somebody's notes).
    fn key_of<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.prefix).filter(|key| key::is_key(key))
    }

    /// For messages.
    fn place(&self, key: &str) -> String {
        format!("s3://{}/{}{key}", self.bucket, self.prefix)
    }

    fn error(
        &self,
        kind: StoreErrorKind,
        operation: &'static str,
        key: &str,
        what: impl Into<String>,
    ) -> StoreError {
        StoreError::new(kind, operation, &self.place(key), what)
    }

    fn translate<'a, E>(
        &'a self,
        operation: &'static str,
        key: &'a str,
    ) -> impl FnOnce(SdkError<E, HttpResponse>) -> StoreError + 'a
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        move |e| error::translate(operation, &self.place(key), &e)
    }

    /// Runs a request without a body to speak of within its deadline.
    async fn quick<T, E>(
        &self,
        operation: &'static str,
        key: &str,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T, StoreError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let request = async { request.await.map_err(self.translate(operation, key)) };
        within(operation, &self.place(key), 0, &Activity::default(), request).await
    }
}

#[async_trait]
impl Store for S3Store {
    fn location(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix.trim_end_matches('/'))
    }

    async fn create(&self, key: &str, body: Body) -> Result<(), StoreError> {
        key::check_key("create", key)?;
        self.put(key, &body).await
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        key::check_key("read", key)?;
        self.read_range(key, range).await
    }

    async fn read_all(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        key::check_key("read_all", key)?;
        self.read_whole(key, limit).await
    }

    async fn stat(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        key::check_key("stat", key)?;
        let request = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .customize()
            .interceptor(self.extras.holding.clone())
            .send();
        let head = self.quick("stat", key, Box::pin(request)).await?;
        let bad = |what: &str| self.error(StoreErrorKind::Unsupported, "stat", key, what);
        let modified = head.last_modified().and_then(|t| SystemTime::try_from(*t).ok());
        Ok(ObjectInfo {
            key: key.to_owned(),
            size: head
                .content_length()
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(|| bad("no length"))?,
            modified: modified.ok_or_else(|| bad("no time"))?,
        })
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        key::check_prefix("list", prefix)?;
        self.page(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check_key("delete", key)?;
        let request = self.client.delete_object().bucket(&self.bucket).key(self.full(key)).send();
        match self.quick("delete", key, Box::pin(request)).await {
            Err(e) if e.kind == StoreErrorKind::NotFound && !e.message.contains("NoSuchBucket") => Ok(()),
            done => done.map(|_| ()),
        }
    }

    async fn begin_upload(&self, key: &str) -> Result<String, StoreError> {
        key::check_key("begin_upload", key)?;
        self.begin(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        _offset: u64,
        body: Body,
    ) -> Result<Part, StoreError> {
        key::check_key("upload_part", key)?;
        self.put_part(key, upload, number, &body).await
    }

    async fn finish_upload(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        key::check_key("finish_upload", key)?;
        key::check_parts(key, parts)?;
        self.complete(key, upload, parts).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        key::check_key("abort_upload", key)?;
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(key))
            .upload_id(upload)
            .send();
        match self.quick("abort_upload", key, Box::pin(request)).await {
            Err(e) if e.kind == StoreErrorKind::NotFound && !e.message.contains("NoSuchBucket") => Ok(()),
            done => done.map(|_| ()),
        }
    }

    async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        key::check_prefix("open_uploads", prefix)?;
        self.uploads(prefix).await
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        // Any request will do: even a refusal is dated. This one is cheap and needs no right beyond reading.
        const ANY: &str = "config";
        let date = DateHeader::default();
        let request = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(ANY))
            .customize()
            .interceptor(date.clone())
            .send();
        let answer = self.quick("now", ANY, Box::pin(request)).await;
        match (date.take(), answer) {
            (Some(text), _) => DateTime::from_str(&text, Format::HttpDate)
                .ok()
                .and_then(|d| SystemTime::try_from(d).ok())
                .ok_or_else(|| {
                    self.error(StoreErrorKind::Unsupported, "now", ANY, "the Date header is no date")
                }),
            (None, Err(e)) => Err(e),
            (None, Ok(_)) => {
                Err(self.error(StoreErrorKind::Unsupported, "now", ANY, "the store's answers carry no Date"))
            }
        }
    }
}
