//! Objects and parts to S3, with checksums.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::deadline::{Activity, within};
use super::intercept::Payload;
use super::{S3Store, body, error};
use crate::store::{Body, OpenUpload, Part, Store, StoreError, StoreErrorKind, crc64};

impl S3Store {
    /// [`Store::create`](crate::store::Store::create) of a valid key.
    pub(super) async fn put(&self, key: &str, body: &Body) -> Result<(), StoreError> {
        let crc = crc64(body.slices());
        self.negotiated(|| self.put_once(key, body, crc)).await
    }

    /// [`Store::begin_upload`](crate::store::Store::begin_upload) of a valid key.
    pub(super) async fn begin(&self, key: &str) -> Result<String, StoreError> {
        let begun = self
            .negotiated(|| {
                let ours = self.checksums.load(Relaxed);
                let request = self
                    .client
                    .create_multipart_upload()
                    .bucket(&self.bucket)
                    .key(self.full(key))
                    .content_type("application/octet-stream")
                    .set_checksum_algorithm(ours.then_some(ChecksumAlgorithm::Crc64Nvme))
                    .set_checksum_type(ours.then_some(ChecksumType::FullObject))
                    .customize()
                    .interceptor(self.extras.making.clone())
                    .send();
                self.quick("begin_upload", key, Box::pin(request))
            })
            .await?;
        begun.upload_id().map(str::to_owned).ok_or_else(|| {
            self.error(StoreErrorKind::Other, "begin_upload", key, "the store gave no upload id")
        })
    }

    /// [`Store::open_uploads`](crate::store::Store::open_uploads) of a valid prefix.
    pub(super) async fn uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let request =
            self.client.list_multipart_uploads().bucket(&self.bucket).prefix(self.full(prefix)).send();
        let page = self.quick("open_uploads", prefix, Box::pin(request)).await?;
        let ours = page.uploads().iter().filter_map(|u| {
            let key = self.key_of(u.key()?).filter(|key| key.starts_with(prefix))?;
            Some(OpenUpload { key: key.to_owned(), upload: u.upload_id()?.to_owned() })
        });
        Ok(ours.collect())
    }

    /// [`Store::upload_part`](crate::store::Store::upload_part) of a valid key.
    pub(super) async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        body: &Body,
    ) -> Result<Part, StoreError> {
        let number_ = i32::try_from(number).unwrap_or(i32::MAX);
        let crc = crc64(body.slices());
        let done = self
            .negotiated(|| async {
                let activity = Arc::new(Activity::default());
                let request = self
                    .client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(self.full(key))
                    .upload_id(upload)
                    .part_number(number_)
                    .content_length(signed(body.len()))
                    .set_checksum_crc64_nvme(self.checksum(crc))
                    .body(body::stream(body, &activity))
                    .customize()
                    .interceptor(self.payload(body))
                    .interceptor(self.extras.holding.clone())
                    .send();
                let request = async { Box::pin(request).await.map_err(self.translate("upload_part", key)) };
                within("upload_part", &self.place(key), body.len(), &activity, request).await
            })
            .await?;
        self.compare("upload_part", key, done.checksum_crc64_nvme(), crc)?;
        let tag = done.e_tag().ok_or_else(|| {
            self.error(StoreErrorKind::Other, "upload_part", key, "the store gave no tag for the part")
        })?;
        Ok(Part { number, size: body.len(), tag: tag.to_owned(), crc64: Some(crc) })
    }

    /// [`Store::finish_upload`](crate::store::Store::finish_upload) of a valid key and valid parts.
    pub(super) async fn complete(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), StoreError> {
        let crc = combine(parts);
        let completed = parts.iter().map(|p| {
            CompletedPart::builder()
                .part_number(i32::try_from(p.number).unwrap_or(i32::MAX))
                .e_tag(&p.tag)
                .set_checksum_crc64_nvme(p.crc64.and_then(|crc| self.checksum(crc)))
                .build()
        });
        let checksum = crc.and_then(|crc| self.checksum(crc));
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(key))
            .upload_id(upload)
            .if_none_match("*")
            .mpu_object_size(signed(parts.iter().map(|p| p.size).sum()))
            .set_checksum_type(checksum.is_some().then_some(ChecksumType::FullObject))
            .set_checksum_crc64_nvme(checksum)
            .multipart_upload(
                CompletedMultipartUpload::builder().set_parts(Some(completed.collect())).build(),
            )
            .customize()
            // Where parts carry checksums, a customer's key is wanted here too.
            .interceptor(self.extras.holding.clone())
            .send();
        let done = self.quick("finish_upload", key, Box::pin(request)).await?;
        if done.e_tag().is_none() {
            // A success without contents: a proxy's, or an error in a shape nobody knows.
            let what = "the store answered without saying what it made";
            return Err(self.error(StoreErrorKind::Transient, "finish_upload", key, what));
        }
        crc.map_or(Ok(()), |crc| self.compare("finish_upload", key, done.checksum_crc64_nvme(), crc))
    }

    async fn put_once(&self, key: &str, body: &Body, crc: u64) -> Result<(), StoreError> {
        let activity = Arc::new(Activity::default());
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .if_none_match("*")
            .content_length(signed(body.len()))
            .content_type("application/octet-stream")
            .set_checksum_crc64_nvme(self.checksum(crc))
            .body(body::stream(body, &activity))
            .customize()
            .interceptor(self.payload(body))
            .interceptor(self.extras.making.clone())
            .send();
        let request = async { Box::pin(request).await.map_err(self.translate("create", key)) };
        let done = within("create", &self.place(key), body.len(), &activity, request).await?;
        self.compare("create", key, done.checksum_crc64_nvme(), crc)
    }

    /// The checksum header's value for `crc`, unless this server refused it.
    fn checksum(&self, crc: u64) -> Option<String> {
        self.checksums.load(Relaxed).then(|| encode(crc))
    }

    fn payload(&self, body: &Body) -> Payload {
        if self.tls && self.checksums.load(Relaxed) {
            Payload::unsigned()
        } else {
            Payload::signed(body.slices())
        }
    }

    /// Runs `request`; once more when the server does not know our checksum, and never sends it one again.
    async fn negotiated<T, F>(&self, request: impl Fn() -> F + Send + Sync) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        // Several may be refused at the same time. Each of them has sent the checksum, and tries again; the first says so.
        let sent = self.checksums.load(Relaxed);
        match request().await {
            Err(e) if sent && error::refuses_checksum(&e) => {
                if self.checksums.swap(false, Relaxed) {
                    tracing::warn!(store = self.location(), error = %e, "no CRC-64/NVME here: signing payloads instead");
                }
                request().await
            }
            done => done,
        }
    }

    /// Compares what the store says it received with what we sent; stores that say nothing are believed.
    fn compare(
        &self,
        operation: &'static str,
        key: &str,
        echo: Option<&str>,
        crc: u64,
    ) -> Result<(), StoreError> {
        match echo {
            // With a number behind it, it is a checksum of the parts' checksums.
            Some(text) if !text.contains('-') && text != encode(crc) => {
                let what = format!("the store received bytes with checksum {text}, we sent {}", encode(crc));
                Err(self.error(StoreErrorKind::Checksum, operation, key, what))
            }
            _ => Ok(()),
        }
    }
}

fn encode(crc: u64) -> String {
    STANDARD.encode(crc.to_be_bytes())
}

/// The SDK's signed numbers.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// CRC-64/NVME of the whole object from those of its parts, without reading them again, if all are known.
fn combine(parts: &[Part]) -> Option<u64> {
    let algorithm = crc_fast::CrcAlgorithm::Crc64Nvme;
    parts.iter().try_fold(crc64(&[]), |whole, part| {
        Some(crc_fast::checksum_combine(algorithm, whole, part.crc64?, part.size))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn parts_combine_to_the_whole() {
        let pieces = [vec![1u8; 1000], vec![], vec![7; 1], (0..=255).collect()];
        let parts: Vec<_> = pieces
            .iter()
            .zip(1..)
            .map(|(p, number)| Part {
                number,
                size: p.len() as u64,
                tag: String::new(),
                crc64: Some(crc64(&[Bytes::from(p.clone())])),
            })
            .collect();
        assert_eq!(combine(&parts), Some(crc64(&[Bytes::from(pieces.concat())])));
        // The catalogue's check value.
        assert_eq!(crc64(&[Bytes::from_static(b"123456789")]), 0xae8b_1486_0a79_9888);
    }
}
