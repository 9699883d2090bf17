//! One record for each request: what the log file and the tests see.

use hyper::header::HeaderMap;
use serde_json::{Map, Value, json};

/// Headers that tell how a request is protected and made conditional. Authorization is not among them, ever.
const HEADERS: &[&str] = &[
    "content-length",
    "content-encoding",
    "content-md5",
    "content-type",
    "if-match",
    "if-none-match",
    "range",
    "transfer-encoding",
    "user-agent",
    "x-amz-content-sha256",
    "x-amz-decoded-content-length",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-trailer",
];
const HEADER_PREFIXES: &[&str] = &["x-amz-checksum-", "x-amz-object-lock-", "x-amz-server-side-"];
/// Query values that authenticate: logged as present only.
const SECRET_QUERY: &[&str] = &["x-amz-signature", "x-amz-credential", "x-amz-security-token"];

/// What one request was and what became of it.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order in which requests arrived, from 1.
    pub number: u64,
    /// HTTP method.
    pub method: String,
    /// S3's name of the operation, or the method where it is none that is known here.
    pub operation: String,
    /// The path as it was sent.
    pub path: String,
    /// The query as it was sent, without what authenticates.
    pub query: String,
    /// First part of the path, decoded.
    pub bucket: String,
    /// The rest of the path, decoded.
    pub key: String,
    /// Selected headers of the request, with their names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether the request carried a signature.
    pub signed: bool,
    /// Bytes of the request's body that were read by the time of the answer.
    pub request_bytes: u64,
    /// Bytes of the answer's body, if the server said.
    pub response_bytes: Option<u64>,
    /// What the server answered, if it was asked.
    pub upstream_status: Option<u16>,
    /// What the client was answered; none if the connection was reset.
    pub status: Option<u16>,
    /// The fault rules that were applied.
    pub faults: Vec<String>,
    /// Conditional headers that were taken away.
    pub dropped: Vec<String>,
    /// What went wrong between the proxy and the server, other than by a rule.
    pub error: Option<String>,
    /// Milliseconds from the proxy's start to the request, and from there to the answer's head.
    pub at_ms: u64,
    /// See `at_ms`.
    pub took_ms: u64,
}

impl Record {
    /// A record of a request's head.
    pub(super) fn new(method: &str, path: &str, query: &str, headers: &HeaderMap) -> Self {
        let (bucket, key) =
            path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
        let key = percent_decoded(key);
        Self {
            operation: operation(method, bucket, &key, query, headers).unwrap_or(method).to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            query: redacted(query),
            bucket: percent_decoded(bucket),
            key,
            headers: selected(headers),
            signed: headers.contains_key("authorization")
                || query.to_ascii_lowercase().contains("x-amz-signature="),
            ..Self::default()
        }
    }

    /// A selected header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// As it stands in the log file.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let headers: Map<String, Value> = self.headers.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        json!({
            "number": self.number, "at_ms": self.at_ms, "took_ms": self.took_ms,
            "method": self.method, "operation": self.operation, "path": self.path, "query": self.query,
            "bucket": self.bucket, "key": self.key, "signed": self.signed, "headers": headers,
            "request_bytes": self.request_bytes, "response_bytes": self.response_bytes,
            "upstream_status": self.upstream_status, "status": self.status,
            "faults": self.faults, "dropped": self.dropped, "error": self.error,
        })
    }
}

fn selected(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .filter(|(name, _)| HEADERS.contains(name) || HEADER_PREFIXES.iter().any(|p| name.starts_with(p)))
        .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn redacted(query: &str) -> String {
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some((name, _)) if SECRET_QUERY.contains(&name.to_ascii_lowercase().as_str()) => {
            format!("{name}=...")
        }
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn operation(
    method: &str,
    bucket: &str,
    key: &str,
    query: &str,
    headers: &HeaderMap,
) -> Option<&'static str> {
    let has = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
    let copy = headers.contains_key("x-amz-copy-source");
    if bucket.is_empty() {
        return (method == "GET").then_some("ListBuckets");
    }
    // Anything else that the query names (?acl, ?tagging, ?versioning, ...) keeps its method as its name.
    let plain = query.split('&').all(|part| {
        let name = part.split('=').next().unwrap_or_default();
        name.is_empty()
            || name == "x-id"
            || name == "versionId"
            || name.to_ascii_lowercase().starts_with("x-amz-")
            || name.starts_with("response-")
    });
    Some(match (method, key.is_empty()) {
        ("GET", true) if has("uploads") => "ListMultipartUploads",
        ("GET", true) if has("versions") => "ListObjectVersions",
        ("GET", true) if has("list-type") => "ListObjectsV2",
        ("GET", true) if plain || has("prefix") || has("marker") => "ListObjects",
        ("PUT", true) if plain => "CreateBucket",
        ("DELETE", true) if plain => "DeleteBucket",
        ("HEAD", true) => "HeadBucket",
        ("POST", true) if has("delete") => "DeleteObjects",
        ("GET", false) if has("uploadId") => "ListParts",
        ("GET", false) if plain || has("partNumber") => "GetObject",
        ("HEAD", false) => "HeadObject",
        ("PUT", false) if has("partNumber") && copy => "UploadPartCopy",
        ("PUT", false) if has("partNumber") => "UploadPart",
        ("PUT", false) if plain && copy => "CopyObject",
        ("PUT", false) if plain => "PutObject",
        ("POST", false) if has("uploads") => "CreateMultipartUpload",
        ("POST", false) if has("uploadId") => "CompleteMultipartUpload",
        ("DELETE", false) if has("uploadId") => "AbortMultipartUpload",
        ("DELETE", false) if plain => "DeleteObject",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_named_as_s3_names_them() {
        for (method, path, query, name) in [
            ("GET", "/", "", "ListBuckets"),
            ("GET", "/b", "list-type=2&prefix=x", "ListObjectsV2"),
            ("GET", "/b/", "uploads=", "ListMultipartUploads"),
            ("GET", "/b", "versioning", "GET"),
            ("GET", "/b/k", "x-id=GetObject", "GetObject"),
            ("PUT", "/b/k", "", "PutObject"),
            ("PUT", "/b/k", "retention", "PUT"),
            ("PUT", "/b/k", "partNumber=1&uploadId=u", "UploadPart"),
            ("POST", "/b/k", "uploads", "CreateMultipartUpload"),
            ("POST", "/b/k", "uploadId=u", "CompleteMultipartUpload"),
            ("DELETE", "/b/k", "uploadId=u", "AbortMultipartUpload"),
            ("DELETE", "/b/k", "versionId=v", "DeleteObject"),
            ("POST", "/b", "delete", "DeleteObjects"),
            ("HEAD", "/b/k", "", "HeadObject"),
        ] {
            let record = Record::new(method, path, query, &HeaderMap::new());
            assert_eq!(record.operation, name, "{method} {path}?{query}");
        }
    }

    #[test]
    fn keys_are_decoded_and_secrets_left_out() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "AWS4-HMAC-SHA256 Signature=abc".parse().unwrap());
        headers.insert("x-amz-checksum-crc64nvme", "AAAA".parse().unwrap());
        let query = "X-Amz-Signature=abc&X-Amz-Credential=me&versionId=1";
        let record = Record::new("GET", "/b/a%2Fb%20c/%zz%", query, &headers);
        assert_eq!((record.bucket.as_str(), record.key.as_str()), ("b", "a/b c/%zz%"));
        assert!(record.signed);
        assert_eq!(record.query, "X-Amz-Signature=...&X-Amz-Credential=...&versionId=1");
        assert_eq!(record.header("x-amz-checksum-crc64nvme"), Some("AAAA"));
        assert!(!record.to_json().to_string().contains("abc"));
    }
}
