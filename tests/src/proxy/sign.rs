//! Signs a request again after headers were taken from it: clients sign `If-None-Match` too, and without a fresh
//! signature a server would refuse for the wrong reason. Signature version 4 in the Authorization header, with the
//! payload hash as the client declared it.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{digest, hmac};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

/// A key pair that the server behind the proxy knows.
#[derive(Clone)]
pub struct Credentials {
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Whether the request's signature covers this header.
pub(super) fn covers(headers: &HeaderMap, name: &str) -> bool {
    signed_headers(headers).is_some_and(|signed| signed.split(';').any(|each| each == name))
}

fn signed_headers(headers: &HeaderMap) -> Option<&str> {
    field(headers.get(AUTHORIZATION)?.to_str().ok()?, "SignedHeaders=")
}

fn field<'a>(authorization: &'a str, name: &str) -> Option<&'a str> {
    let start = authorization.find(name)? + name.len();
    authorization[start..].split([',', ' ']).next()
}

/// Replaces the signature by one over the headers that are still there.
pub(super) fn again(
    credentials: &Credentials,
    method: &str,
    (path, query): (&str, &str),
    headers: &mut HeaderMap,
) -> Result<()> {
    let authorization = headers.get(AUTHORIZATION).context("no Authorization header to replace")?.to_str()?;
    ensure!(authorization.starts_with("AWS4-HMAC-SHA256 "), "only signature version 4 can be replaced");
    let scope = field(authorization, "Credential=").context("no Credential")?;
    let scope = scope.split_once('/').context("no scope in Credential")?.1.to_owned();
    let signed = field(authorization, "SignedHeaders=").context("no SignedHeaders")?;
    let signed: Vec<&str> = signed.split(';').filter(|name| headers.contains_key(*name)).collect();
    let date = headers.get("x-amz-date").context("no x-amz-date")?.to_str()?;
    let payload = headers.get("x-amz-content-sha256").context("no x-amz-content-sha256")?.to_str()?;
    ensure!(!payload.starts_with("STREAMING-AWS4-HMAC"), "a body signed in chunks cannot be signed again");

    let mut canonical = format!("{method}\n{path}\n{}\n", canonical_query(query));
    for name in &signed {
        let values: Result<Vec<String>, _> =
            headers.get_all(*name).iter().map(|v| v.to_str().map(single_spaced)).collect();
        canonical += &format!("{name}:{}\n", values?.join(","));
    }
    let signed = signed.join(";");
    canonical += &format!("\n{signed}\n{payload}");
    let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}");

    let mut key = format!("AWS4{}", credentials.secret_key).into_bytes();
    for part in scope.split('/') {
        key = mac(&key, part.as_bytes());
    }
    let signature = hex::encode(mac(&key, text.as_bytes()));
    let value = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}",
        credentials.access_key
    );
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&value)?);
    Ok(())
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

fn single_spaced(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn canonical_query(query: &str) -> String {
    let mut parts: Vec<(&str, &str)> =
        query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))).collect();
    parts.sort_unstable();
    parts.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn request(extra: &[(&'static str, &'static str)], signed: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
        headers.insert("x-amz-content-sha256", HeaderValue::from_static(EMPTY));
        headers.insert("x-amz-date", HeaderValue::from_static("20130524T000000Z"));
        for (name, value) in extra {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        let scope = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request";
        let value = format!("AWS4-HMAC-SHA256 Credential={scope},SignedHeaders={signed},Signature=0");
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    fn signature(query: (&str, &str), mut headers: HeaderMap) -> String {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
        };
        again(&credentials, "GET", query, &mut headers).unwrap();
        let value = headers[AUTHORIZATION].to_str().unwrap();
        value.split_once("Signature=").unwrap().1.to_owned()
    }

    // The examples of Amazon's documentation of signature version 4 in S3.
    #[test]
    fn signs_as_amazon_documents() {
        let headers = request(&[("range", "bytes=0-9")], "host;range;x-amz-content-sha256;x-amz-date");
        let expected = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert_eq!(signature(("/test.txt", ""), headers), expected);
        let headers = request(&[], "host;x-amz-content-sha256;x-amz-date");
        let expected = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
        assert_eq!(signature(("/", "prefix=J&max-keys=2"), headers), expected);
        let headers = request(&[], "host;x-amz-content-sha256;x-amz-date");
        let expected = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543";
        assert_eq!(signature(("/", "lifecycle"), headers), expected);
    }

    #[test]
    fn a_header_that_is_gone_is_no_longer_signed() {
        let signed = "host;if-none-match;range;x-amz-content-sha256;x-amz-date";
        let headers = request(&[("range", "bytes=0-9")], signed);
        assert!(covers(&headers, "if-none-match") && !covers(&headers, "if-match"));
        let expected = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert_eq!(signature(("/test.txt", ""), headers), expected);
    }
}
