//! What the store is told about objects beyond their bytes: how to encrypt them, and what to tag them with.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::intercept::Headers;
use crate::error::{Error, Result};

/// How the store encrypts what it is given. What it is given is encrypted already; some buckets insist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As it likes.
    #[default]
    Unset,
    /// By keys of its own (`AES256`).
    Aes256,
    /// By its key management (`aws:kms`): with the key of this id, or the default one.
    Kms(Option<String>),
    /// The same in two layers (`aws:kms:dsse`).
    KmsDsse(Option<String>),
    /// By this key, which every request for contents carries and the store forgets (SSE-C). Over TLS only.
    Customer(CustomerKey),
}

impl Encryption {
    /// Encryption by what S3 calls `name`, with the key of this id where it is by key management; a key alone means
    /// `aws:kms`.
    ///
    /// # Errors
    /// [`Error::Usage`]: there is no such encryption, or it takes no key.
    pub fn named(name: Option<&str>, key: Option<String>) -> Result<Self> {
        match (name, key) {
            (None, None) => Ok(Self::Unset),
            (Some("AES256"), None) => Ok(Self::Aes256),
            (Some("AES256"), Some(_)) => {
                Err(Error::Usage("server-side encryption: AES256 takes no key of the key management".into()))
            }
            (Some("aws:kms") | None, key) => Ok(Self::Kms(key)),
            (Some("aws:kms:dsse"), key) => Ok(Self::KmsDsse(key)),
            (Some(other), _) => Err(Error::Usage(format!(
                "server-side encryption: '{other}' is none of AES256, aws:kms, aws:kms:dsse"
            ))),
        }
    }

    /// Headers of requests that make an object.
    fn making(&self) -> Vec<(&'static str, String)> {
        let by = |kind: &str, key: &Option<String>| {
            let key = key.iter().map(|key| ("x-amz-server-side-encryption-aws-kms-key-id", key.clone()));
            [("x-amz-server-side-encryption", kind.to_owned())].into_iter().chain(key).collect()
        };
        match self {
            Self::Unset => Vec::new(),
            Self::Aes256 => by("AES256", &None),
            Self::Kms(key) => by("aws:kms", key),
            Self::KmsDsse(key) => by("aws:kms:dsse", key),
            Self::Customer(_) => self.holding(),
        }
    }

    /// Headers of all requests about an object's contents.
    fn holding(&self) -> Vec<(&'static str, String)> {
        let Self::Customer(CustomerKey(key)) = self else { return Vec::new() };
        vec![
            ("x-amz-server-side-encryption-customer-algorithm", "AES256".to_owned()),
            ("x-amz-server-side-encryption-customer-key", STANDARD.encode(**key)),
            ("x-amz-server-side-encryption-customer-key-md5", STANDARD.encode(Md5::digest(**key))),
        ]
    }
}

/// A key of 32 bytes that the store never keeps. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey(Zeroizing<[u8; 32]>);

impl CustomerKey {
    /// A key of these bytes.
    ///
    /// # Errors
    /// [`Error::Usage`]: there are not 32 of them.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        match bytes.try_into() {
            Ok(key) => Ok(Self(Zeroizing::new(key))),
            Err(_) => Err(Error::Usage(format!(
                "the customer's key for server-side encryption has {} bytes, not 32",
                bytes.len()
            ))),
        }
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey")
    }
}

/// The headers that say all that.
#[derive(Debug, Clone, Default)]
pub(super) struct Extras {
    /// Of requests that make an object: put, begin an upload.
    pub(super) making: Headers,
    /// Of all others about an object's contents: parts, their end, get and head.
    pub(super) holding: Headers,
}

impl Extras {
    /// Headers for `encryption` and `tagging`, of a connection with or without `tls`.
    ///
    /// # Errors
    /// [`Error::Usage`]: a value that no header can have; a key that would travel for everyone to see.
    pub(super) fn new(encryption: &Encryption, tagging: Option<&str>, tls: bool) -> Result<Self> {
        if matches!(encryption, Encryption::Customer(_)) && !tls {
            return Err(Error::Usage(
                "a customer's key for server-side encryption is sent over https only".into(),
            ));
        }
        let mut making = encryption.making();
        making.extend(tagging.map(|tags| ("x-amz-tagging", tags.to_owned())));
        if let Some((name, _)) = making
            .iter()
            .find(|(_, value)| value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(Error::Usage(format!("the value for {name} is not one: ASCII without spaces")));
        }
        Ok(Self { making: Headers::new(making), holding: Headers::new(encryption.holding()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_that_belong_together() {
        let named = |name, key: Option<&str>| Encryption::named(name, key.map(str::to_owned));
        assert_eq!(named(None, None).unwrap(), Encryption::Unset);
        assert_eq!(named(Some("AES256"), None).unwrap(), Encryption::Aes256);
        assert_eq!(named(None, Some("k")).unwrap(), Encryption::Kms(Some("k".into())));
        assert_eq!(named(Some("aws:kms"), None).unwrap(), Encryption::Kms(None));
        assert_eq!(named(Some("aws:kms:dsse"), Some("k")).unwrap(), Encryption::KmsDsse(Some("k".into())));
        for (name, key) in [("AES256", Some("k")), ("aes", None), ("", None)] {
            assert!(matches!(named(Some(name), key), Err(Error::Usage(_))), "{name}");
        }
    }

    #[test]
    fn keys_have_32_bytes_are_never_shown_and_never_sent_in_clear() {
        for wrong in [0, 16, 31, 33] {
            assert!(matches!(CustomerKey::new(&vec![65; wrong]), Err(Error::Usage(_))));
        }
        let encryption = Encryption::Customer(CustomerKey::new(&[65; 32]).unwrap());
        assert!(Extras::new(&encryption, None, false).is_err());
        let extras = Extras::new(&encryption, None, true).unwrap();
        let shown = format!("{encryption:?} {extras:?}");
        assert!(!shown.contains("65") && !shown.contains("QUFB"), "{shown}");
    }

    #[test]
    fn values_that_no_header_can_have_are_refused() {
        for tags in ["", "a=b\r\nx: y", "a=\u{fc}", "a b"] {
            assert!(
                matches!(Extras::new(&Encryption::Unset, Some(tags), true), Err(Error::Usage(_))),
                "{tags}"
            );
        }
    }
}
