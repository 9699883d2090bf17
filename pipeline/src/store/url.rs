//! From what a user writes to a store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::local::LocalStore;
use crate::store::s3::{Encryption, S3Config, S3Store};

/// Longest prefix inside a bucket, in bytes: with the longest key it stays below S3's limit of 1,024.
const LONGEST_PREFIX: usize = 255;

/// What is needed beyond the URL to reach some stores; a directory needs nothing.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// S3 endpoint other than Amazon's, with `http://` or `https://`.
    pub endpoint: Option<String>,
    /// S3 region.
    pub region: Option<String>,
    /// The bucket's name goes into the path.
    pub path_style: bool,
    /// Certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate of an S3 endpoint is believed unseen.
    pub insecure_skip_tls_verify: bool,
    /// S3 credentials come from this file alone, instead of environment, profiles and instance.
    pub credentials_file: Option<PathBuf>,
    /// With `credentials_file`: Amazon's shared configuration is read too.
    pub shared_config: bool,
    /// Which of the credentials in these files.
    pub profile: Option<String>,
    /// How an S3 store encrypts what it is given.
    pub encryption: Encryption,
    /// What objects in S3 are tagged with, as in a query: `a=b&c=d`.
    pub tagging: Option<String>,
}

/// A place for a repository, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A place in a bucket.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Path in the bucket without slashes at its ends; may be empty.
        prefix: String,
    },
}

/// Parses `/dir`, `dir`, `file:///dir` or `s3://bucket/prefix`. Anything else is [`Error::Usage`].
pub fn parse(url: &str) -> Result<Location> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return match url {
            "" => Err(usage("the repository's name is empty")),
            _ if url.starts_with("s3:") => Err(usage("write s3://bucket/prefix")),
            _ if url.contains('\0') => Err(usage("a path cannot contain a zero byte")),
            _ => Ok(Location::Directory(url.into())),
        };
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => match rest.strip_prefix("localhost").unwrap_or(rest) {
            path if path.starts_with('/') => Ok(Location::Directory(decoded(path)?.into())),
            _ => Err(usage("file URLs name an absolute path: file:///dir")),
        },
        "s3" => bucket(rest),
        // The scheme only: what follows may hold a password.
        other => Err(usage(&format!(
            "'{other}://' is not a kind of repository that we know (/dir, file://, s3://)"
        ))),
    }
}

/// The store at `url` (see [`parse`]). Sends no request and creates nothing yet. Fails with [`Error::Usage`] when URL
/// or options make no sense.
pub async fn open(url: &str, options: &Options) -> Result<Arc<dyn Store>> {
    match parse(url)? {
        Location::Directory(path) => {
            let store = LocalStore::new(&path).map_err(Error::io("resolve", &path))?;
            Ok(Arc::new(store))
        }
        Location::S3 { bucket, prefix } => {
            if let Some(endpoint) = &options.endpoint
                && !["http://", "https://"]
                    .iter()
                    .any(|s| endpoint.len() > s.len() && endpoint.starts_with(s))
            {
                return Err(usage("the endpoint starts with http:// or https://"));
            }
            let config = S3Config {
                bucket,
                prefix,
                endpoint: options.endpoint.clone(),
                region: options.region.clone(),
                path_style: options.path_style,
                ca_file: options.ca_file.clone(),
                insecure_skip_tls_verify: options.insecure_skip_tls_verify,
                credentials_file: options.credentials_file.clone(),
                shared_config: options.shared_config,
                profile: options.profile.clone(),
                encryption: options.encryption.clone(),
                tagging: options.tagging.clone(),
            };
            Ok(Arc::new(S3Store::connect(&config).await?))
        }
    }
}

fn bucket(rest: &str) -> Result<Location> {
    if rest.contains('@') {
        // Not repeated: it may be a secret.
        return Err(usage(
            "credentials do not belong into the URL; they come from the environment or a profile",
        ));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    if !(3..=255).contains(&bucket.len()) || !bucket.bytes().all(legal) {
        return Err(usage(&format!("'{bucket}' is not a bucket's name: write s3://bucket/prefix")));
    }
    let prefix = prefix.trim_matches('/');
    let component = |c: &str| !matches!(c, "" | "." | "..") && !c.chars().any(char::is_control);
    if prefix.contains(['?', '#']) {
        return Err(usage("options do not belong into the URL; there are flags for them"));
    }
    if prefix.len() > LONGEST_PREFIX || !(prefix.is_empty() || prefix.split('/').all(component)) {
        return Err(usage(&format!("'{prefix}' cannot be a prefix in a bucket")));
    }
    Ok(Location::S3 { bucket: bucket.into(), prefix: prefix.into() })
}

/// Replaces `%41` by what it stands for.
fn decoded(path: &str) -> Result<String> {
    let bad =
        || usage("a % in a file URL is followed by two hexadecimal digits of UTF-8 (write %25 for itself)");
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2).ok_or_else(bad)?;
        let byte = hex::decode(digits).map_err(|_| bad())?;
        if byte == [0] {
            return Err(usage("a path cannot contain a zero byte"));
        }
        bytes.extend(byte);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn usage(what: &str) -> Error {
    Error::Usage(format!("repository: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> Location {
        Location::S3 { bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn good_ones() {
        let dir = |p: &str| Location::Directory(p.into());
        for (url, want) in [
            ("/a/b", dir("/a/b")),
            ("a b", dir("a b")),
            ("./s3", dir("./s3")),
            ("file:///a/b", dir("/a/b")),
            ("FILE:///a%20b%C3%BC", dir("/a bü")),
            ("file://localhost/a", dir("/a")),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("S3://bucket/a/b/", s3("bucket", "a/b")),
        ] {
            assert_eq!(parse(url).unwrap(), want, "{url}");
        }
    }

    #[test]
    fn bad_ones() {
        for url in [
            "",
            "s3:",
            "s3:bucket/x",
            "s3://",
            "s3://ab",
            "s3:///x",
            "s3://bucket/a//b",
            "s3://bucket/../b",
            "s3://bucket/a?region=x",
            "s3://key:secret@bucket/x",
            "file://host/x",
            "file://x",
            "file:///%zz",
            "file:///%4",
            "file:///%00",
            "gs://bucket/x",
            "http://user:secret@host/",
            "s3://b cket",
        ] {
            let error = parse(url).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn endpoints_have_a_scheme() {
        for endpoint in ["localhost:9000", "https://", "ftp://x"] {
            let options = Options { endpoint: Some(endpoint.into()), ..Options::default() };
            assert!(matches!(open("s3://bucket/x", &options).await, Err(Error::Usage(_))), "{endpoint}");
        }
        assert_eq!(open("/nowhere/at/all", &Options::default()).await.unwrap().location(), "/nowhere/at/all");
    }
}
