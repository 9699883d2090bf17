//! Objects and listings from S3.

use std::ops::Range;
use std::time::SystemTime;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;

use super::deadline::{Activity, within};
use super::{S3Store, error};
use crate::store::{Listing, ObjectInfo, Store, StoreError, StoreErrorKind};

impl S3Store {
    /// [`Store::read`](crate::store::Store::read) of a valid key.
    pub(super) async fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let outside = |size: u64| {
            let what = format!("bytes {}..{} of an object of {size}", range.start, range.end);
            self.error(StoreErrorKind::OutOfRange, "read", key, what)
        };
        if range.is_empty() {
            // HTTP has no word for an empty range.
            let size = self.stat(key).await?.size;
            return if range.start <= range.end && range.end <= size {
                Ok(Bytes::new())
            } else {
                Err(outside(size))
            };
        }
        let activity = Activity::default();
        let request = async {
            let header = format!("bytes={}-{}", range.start, range.end - 1);
            let answer = self.get("read", key, Some(header)).await?;
            // `bytes 0-9/100`: a range that passes the end is cut short by the server.
            let total = answer.content_range().and_then(|r| r.rsplit_once('/')?.1.parse().ok());
            let Some(total) = total else {
                let what = "this store ignores ranges";
                return Err(self.error(StoreErrorKind::Unsupported, "read", key, what));
            };
            if range.end > total {
                return Err(outside(total));
            }
            self.collect("read", key, answer, range.end - range.start, &activity).await
        };
        within("read", &self.place(key), range.end - range.start, &activity, request).await
    }

    /// [`Store::read_all`](crate::store::Store::read_all) of a valid key.
    pub(super) async fn read_whole(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let activity = Activity::default();
        let request = async {
            let answer = self.get("read_all", key, None).await?;
            let size = answer.content_length().and_then(|n| u64::try_from(n).ok()).ok_or_else(|| {
                self.error(StoreErrorKind::Unsupported, "read_all", key, "an answer without a length")
            })?;
            if size > limit {
                let what = format!("{size} bytes where at most {limit} make sense");
                return Err(self.error(StoreErrorKind::OutOfRange, "read_all", key, what));
            }
            self.collect("read_all", key, answer, size, &activity).await
        };
        within("read_all", &self.place(key), limit, &activity, request).await
    }

    /// [`Store::list`](crate::store::Store::list) of a valid prefix.
    pub(super) async fn page(&self, prefix: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        let mut token = None;
        loop {
            let (listing, next) = self.one_page(prefix, after, token).await?;
            // A page may hold nothing of ours; then the caller has no last key to go on from.
            if !listing.objects.is_empty() || !listing.more || next.is_none() {
                return Ok(listing);
            }
            token = next;
        }
    }

    async fn get(
        &self,
        operation: &'static str,
        key: &str,
        range: Option<String>,
    ) -> Result<GetObjectOutput, StoreError> {
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .set_range(range)
            .customize()
            .interceptor(self.extras.holding.clone())
            .send();
        Box::pin(request).await.map_err(self.translate(operation, key))
    }

    /// Reads exactly `size` bytes of an answer into one piece of memory.
    async fn collect(
        &self,
        operation: &'static str,
        key: &str,
        mut answer: GetObjectOutput,
        size: u64,
        activity: &Activity,
    ) -> Result<Bytes, StoreError> {
        let broken = |what: &str| self.error(StoreErrorKind::Transient, operation, key, what);
        let size = usize::try_from(size).map_err(|_| broken("more than memory can address"))?;
        let mut bytes = Vec::with_capacity(size);
        while let Some(piece) = answer.body.next().await {
            let piece = piece.map_err(|e| error::broken_body(operation, &self.place(key), e))?;
            activity.moved();
            if bytes.len() + piece.len() > size {
                return Err(broken("more bytes came than announced"));
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() == size { Ok(bytes.into()) } else { Err(broken("the answer ended early")) }
    }

    async fn one_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        token: Option<String>,
    ) -> Result<(Listing, Option<String>), StoreError> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(prefix))
            .set_start_after(after.map(|a| self.full(a)))
            .set_continuation_token(token)
            .max_keys(1000)
            .send();
        let page = self.quick("list", prefix, Box::pin(request)).await?;
        let mut listing = Listing { more: page.is_truncated() == Some(true), ..Listing::default() };
        for object in page.contents() {
            let Some(name) = object.key().and_then(|full| self.key_of(full)) else { continue };
            let bad = |what: &str| self.error(StoreErrorKind::Unsupported, "list", name, what);
            if after.is_some_and(|a| name <= a)
                || listing.objects.last().is_some_and(|l| l.key.as_str() >= name)
            {
                return Err(bad("this store does not list keys in order"));
            }
            let time = object.last_modified().and_then(|t| SystemTime::try_from(*t).ok());
            listing.objects.push(ObjectInfo {
                key: name.to_owned(),
                size: object
                    .size()
                    .and_then(|s| u64::try_from(s).ok())
                    .ok_or_else(|| bad("listed without size"))?,
                modified: time.ok_or_else(|| bad("listed without a time"))?,
            });
        }
        Ok((listing, page.next_continuation_token().map(str::to_owned)))
    }
}
