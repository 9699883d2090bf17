//! What a BackupStorageLocation says about its bucket, understood whole or refused: a setting that is passed over would be
//! data in the wrong place, unencrypted, or lost.
//!
//! Source: Velero 1.18.3, `pkg/persistence/object_store.go` and `object_store_layout.go`; velero-plugin-for-aws 1.14.3,
//! `object_store.go`.

use std::collections::BTreeMap;
use std::fmt;

use crate::velero::{AccessMode, BackupStorageLocationSpec};

/// Providers whose buckets speak S3.
const PROVIDERS: [&str; 2] = ["aws", "velero.io/aws"];
/// Checksums that the provider's settings may name.
const CHECKSUMS: [&str; 5] = ["CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"];

/// A bucket that speaks S3, and how it is to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Everything of the location is below it; without slashes at its ends, and often empty.
    pub prefix: String,
    /// Nothing may be written or deleted.
    pub read_only: bool,
    /// Its region; of Amazon's own store it can be asked where none is named.
    pub region: Option<String>,
    /// The store's address; Amazon's own where none is named.
    pub endpoint: Option<String>,
    /// The bucket's name is in the path of addresses, not in front of the host.
    pub path_style: bool,
    /// The certificate of the store is believed unseen.
    pub insecure_skip_tls_verify: bool,
    /// Which of the credentials in the file.
    pub profile: Option<String>,
    /// Where that file is, beside the Secret of the location.
    pub credentials_file: Option<String>,
    /// Amazon's shared configuration is read too.
    pub shared_config: bool,
    /// How the store encrypts what it is given.
    pub encryption: Encryption,
    /// What objects are tagged with, as in a query: `a=b&c=d`.
    pub tagging: Option<String>,
    /// The checksum that objects are sent with; `None` is none at all.
    pub checksum: Option<String>,
}

/// How a store encrypts what it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As it likes.
    #[default]
    Unset,
    /// By a key of its own: `AES256`, `aws:kms`.
    Own(String),
    /// By this key of Amazon's key management, and the kind of encryption where one is named.
    Kms {
        /// The key.
        key: String,
        /// `aws:kms`, `aws:kms:dsse`.
        kind: Option<String>,
    },
    /// By a key in a file, sent with each request.
    CustomerFile(String),
    /// By a key in a Secret of the installation's namespace, sent with each request.
    CustomerSecret {
        /// The Secret.
        secret: String,
        /// Its key.
        key: String,
    },
}

/// What cannot be understood about a location; each with the field that says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Mistakes {}

impl Bucket {
    /// Reads the spec of a location.
    ///
    /// # Errors
    /// All that is not understood: another provider, a setting that is not known, a value that makes no sense.
    pub fn of(spec: &BackupStorageLocationSpec) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        if !PROVIDERS.contains(&spec.provider.as_str()) {
            mistakes.push(format!("provider: '{}' is none of {}", spec.provider, PROVIDERS.join(", ")));
        }
        let storage = &spec.object_storage;
        if storage.ca_cert.is_some() && storage.ca_cert_ref.is_some() {
            mistakes.push("objectStorage: caCert and caCertRef are both set: one must go".to_owned());
        }
        let name = storage.bucket.trim_matches('/').to_owned();
        if name.is_empty() || (name.contains('/') && !name.starts_with("arn:aws:s3:")) {
            mistakes.push(format!(
                "objectStorage.bucket: '{}' is no name: a prefix has a field of its own",
                storage.bucket
            ));
        }
        let mut settings = Settings { left: spec.config.clone(), mistakes };
        let mut bucket = Self {
            name,
            prefix: storage.prefix.trim_matches('/').to_owned(),
            read_only: spec.access_mode == AccessMode::ReadOnly,
            region: settings.take("region"),
            endpoint: settings.take("s3Url"),
            path_style: settings.flag("s3ForcePathStyle"),
            insecure_skip_tls_verify: settings.flag("insecureSkipTLSVerify"),
            profile: settings.take("profile"),
            credentials_file: settings.take("credentialsFile"),
            shared_config: settings.flag("enableSharedConfig"),
            encryption: Encryption::Unset,
            tagging: settings.take("tagging"),
            checksum: Some("CRC32".to_owned()),
        };
        // An empty one is not the same as none.
        if let Some(checksum) = settings.left.remove("checksumAlgorithm") {
            if !checksum.is_empty() && !CHECKSUMS.contains(&checksum.as_str()) {
                settings.mistake(
                    "checksumAlgorithm",
                    &checksum,
                    &format!("none of {}", CHECKSUMS.join(", ")),
                );
            }
            bucket.checksum = Some(checksum).filter(|checksum| !checksum.is_empty());
        }
        if let Some(url) = &bucket.endpoint
            && !url.starts_with("https://")
            && !url.starts_with("http://")
        {
            settings.mistake("s3Url", url, "no address that begins with http:// or https://");
        }
        if let Some(version) = settings.take("signatureVersion").filter(|version| version != "4") {
            settings.mistake("signatureVersion", &version, "not 4, and there is no other any more");
        }
        // For addresses that the server hands out: no data goes there.
        let _ = settings.take("publicUrl");
        bucket.encryption = settings.encryption();
        let Settings { left, mut mistakes } = settings;
        mistakes.extend(left.keys().map(|name| format!("config.{name}: there is no such setting")));
        if mistakes.is_empty() { Ok(bucket) } else { Err(Mistakes(mistakes)) }
    }

    /// Where the repository of a namespace is, below the bucket: the namespace that was backed up, wherever it is restored
    /// to. Of the names at the top that Velero lets be, it is the one for extensions; any other would make the location
    /// unavailable.
    #[must_use]
    pub fn repository(&self, namespace: &str) -> String {
        let above = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        format!("{above}plugins/tradewind/{namespace}")
    }
}

/// Settings that are still to be read, and what was wrong so far.
struct Settings {
    left: BTreeMap<String, String>,
    mistakes: Vec<String>,
}

impl Settings {
    fn mistake(&mut self, name: &str, value: &str, what: &str) {
        self.mistakes.push(format!("config.{name}: '{value}' is {what}"));
    }

    /// A setting that says something.
    fn take(&mut self, name: &str) -> Option<String> {
        self.left.remove(name).filter(|value| !value.is_empty())
    }

    /// Yes or no, in the words that Go takes for it.
    fn flag(&mut self, name: &str) -> bool {
        let Some(value) = self.take(name) else { return false };
        match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => {
                self.mistake(name, &value, "neither true nor false");
                false
            }
        }
    }

    fn encryption(&mut self) -> Encryption {
        let kind = self.take("serverSideEncryption");
        let kms = self.take("kmsKeyId");
        let file = self.take("customerKeyEncryptionFile");
        let secret = self.take("customerKeyEncryptionSecret");
        if [&kms, &file, &secret].into_iter().flatten().count() > 1 {
            let one = "kmsKeyId, customerKeyEncryptionFile, customerKeyEncryptionSecret: only one of them may be set";
            self.mistakes.push(format!("config: {one}"));
        }
        if let Some(key) = kms {
            return Encryption::Kms { key, kind };
        }
        if kind.is_some() && (file.is_some() || secret.is_some()) {
            self.mistakes.push("config.serverSideEncryption: it goes with no key of a customer's".to_owned());
        }
        match (file, secret, kind) {
            (Some(file), ..) => Encryption::CustomerFile(file),
            (None, Some(reference), _) => match reference.split_once('/') {
                Some((secret, key)) if !secret.is_empty() && !key.is_empty() && !key.contains('/') => {
                    Encryption::CustomerSecret { secret: secret.to_owned(), key: key.to_owned() }
                }
                _ => {
                    self.mistake("customerKeyEncryptionSecret", &reference, "not SECRET/KEY");
                    Encryption::Unset
                }
            },
            (None, None, Some(kind)) => Encryption::Own(kind),
            (None, None, None) => Encryption::Unset,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(provider: &str, bucket: &str, config: &serde_json::Value) -> Result<Bucket, Mistakes> {
        let spec = json!({
            "provider": provider, "objectStorage": {"bucket": bucket, "prefix": "/a/b/"}, "config": config,
        });
        Bucket::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn all_settings_are_understood() {
        let bucket = read(
            "velero.io/aws",
            "velero/",
            &json!({
                "region": "eu-1", "s3Url": "https://s3.example.com", "s3ForcePathStyle": "true", "profile": "p",
                "insecureSkipTLSVerify": "False", "credentialsFile": "/f", "enableSharedConfig": "1", "tagging": "a=b",
                "checksumAlgorithm": "", "publicUrl": "https://elsewhere", "signatureVersion": "4",
                "kmsKeyId": "k", "serverSideEncryption": "aws:kms",
            }),
        );
        let expected = Bucket {
            name: "velero".to_owned(),
            prefix: "a/b".to_owned(),
            read_only: false,
            region: Some("eu-1".to_owned()),
            endpoint: Some("https://s3.example.com".to_owned()),
            path_style: true,
            insecure_skip_tls_verify: false,
            profile: Some("p".to_owned()),
            credentials_file: Some("/f".to_owned()),
            shared_config: true,
            encryption: Encryption::Kms { key: "k".to_owned(), kind: Some("aws:kms".to_owned()) },
            tagging: Some("a=b".to_owned()),
            checksum: None,
        };
        assert_eq!(bucket, Ok(expected));
        assert_eq!(read("aws", "b", &json!({})).unwrap().checksum.as_deref(), Some("CRC32"));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        let refused = |provider, bucket, config: serde_json::Value, what: &[&str]| {
            let mistakes = read(provider, bucket, &config).unwrap_err().to_string();
            assert_eq!(mistakes.split("; ").count(), what.len(), "{mistakes}");
            assert!(what.iter().all(|what| mistakes.contains(what)), "{mistakes}");
        };
        refused("gcp", "b", json!({}), &["provider: 'gcp'"]);
        refused("aws", "b/c", json!({}), &["objectStorage.bucket: 'b/c'"]);
        refused("aws", "", json!({}), &["objectStorage.bucket: ''"]);
        refused(
            "aws",
            "b",
            json!({"s3ForcePathstyle": "true", "s3Url": "example.com"}),
            &["config.s3ForcePathstyle", "config.s3Url"],
        );
        refused("aws", "b", json!({"s3ForcePathStyle": "yes"}), &["neither true nor false"]);
        refused("aws", "b", json!({"checksumAlgorithm": "MD5"}), &["none of CRC32"]);
        refused("aws", "b", json!({"signatureVersion": "1"}), &["signatureVersion"]);
        refused(
            "aws",
            "b",
            json!({"kmsKeyId": "k", "customerKeyEncryptionFile": "/f"}),
            &["only one of them"],
        );
        refused("aws", "b", json!({"customerKeyEncryptionSecret": "a/b/c"}), &["not SECRET/KEY"]);
        refused(
            "aws",
            "b",
            json!({"customerKeyEncryptionFile": "/f", "serverSideEncryption": "AES256"}),
            &["serverSideEncryption"],
        );
    }

    #[test]
    fn a_repository_is_where_velero_lets_it_be() {
        assert_eq!(read("aws", "b", &json!({})).unwrap().repository("app"), "a/b/plugins/tradewind/app");
        assert_eq!(Bucket::default().repository("app"), "plugins/tradewind/app");
    }

    #[test]
    fn a_read_only_location_is_one() {
        let spec = json!({"provider": "aws", "objectStorage": {"bucket": "b"}, "accessMode": "ReadOnly"});
        assert!(Bucket::of(&serde_json::from_value(spec).unwrap()).unwrap().read_only);
    }
}
