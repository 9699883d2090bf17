//! What a key may look like. Every store refuses the same keys, so a format that works on one works on all.

use crate::store::{Part, StoreError, StoreErrorKind};

/// Longest key in bytes: S3 allows 1,024 including the prefix of the repository.
pub const MAX_KEY: usize = 768;

/// Longest component in bytes: what file systems allow.
const MAX_COMPONENT: usize = 255;

/// First component of names that stores use for themselves (unfinished files); never a key.
pub(crate) const RESERVED: &str = "tmp";

/// Accepts `key`, or says what is wrong with it: components of ASCII letters, digits, `-`, `_` and `.`, separated by
/// single `/`; no component is empty, `.` or `..`; the first is not `tmp`. Takes the operation for the error's text.
pub fn check_key(operation: &'static str, key: &str) -> Result<(), StoreError> {
    if is_key(key) { Ok(()) } else { Err(refuse(operation, key)) }
}

/// As [`check_key`] for a prefix: may be empty, may end with `/` or inside a component.
pub fn check_prefix(operation: &'static str, prefix: &str) -> Result<(), StoreError> {
    let whole = prefix.strip_suffix('/').unwrap_or(prefix);
    // A last component that is still incomplete may look like anything that a component can start with.
    let legal = match whole.rsplit_once('/') {
        _ if prefix.is_empty() => true,
        Some((parents, last)) => is_key(parents) && is_start(last),
        None => is_start(whole),
    };
    if legal { Ok(()) } else { Err(refuse(operation, prefix)) }
}

/// True when `key` is one that [`check_key`] accepts.
pub(crate) fn is_key(key: &str) -> bool {
    key.len() <= MAX_KEY && key.split('/').all(is_component) && key.split('/').next() != Some(RESERVED)
}

fn is_component(c: &str) -> bool {
    is_start(c) && c != "." && c != ".."
}

fn is_start(c: &str) -> bool {
    !c.is_empty()
        && c.len() <= MAX_COMPONENT
        && c != ".."
        && c.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn refuse(operation: &'static str, key: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Other, operation, key, "not a valid key")
}

/// Accepts the parts of a finished upload when they are numbered 1, 2, 3 ... without gaps and there is at least one.
pub(crate) fn check_parts(key: &str, parts: &[Part]) -> Result<(), StoreError> {
    let in_order = parts.iter().zip(1..).all(|(p, n): (_, u32)| p.number == n);
    if in_order && !parts.is_empty() && parts.len() <= MAX_PARTS as usize {
        Ok(())
    } else {
        let what = "the parts are not numbered 1, 2, 3 ... without gaps";
        Err(StoreError::new(StoreErrorKind::Other, "finish_upload", key, what))
    }
}

/// Most parts of one upload, and the highest part number (an S3 rule).
pub const MAX_PARTS: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["config", "packs/0a/x-y", "a/b/c.d_e", "tmpx", "a/tmp", "..."] {
            assert!(check_key("t", good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "tmp", "tmp/a", "ä", "a b",
            "a\0", &long,
        ] {
            assert_eq!(check_key("t", bad).unwrap_err().kind, StoreErrorKind::Other, "{bad}");
        }
    }

    #[test]
    fn prefixes() {
        for good in ["", "a", "a/", "a/b", "packs/0", "a/.", "."] {
            assert!(check_prefix("t", good).is_ok(), "{good}");
        }
        for bad in ["/", "a//", "..", "../", "a/..", "a/../b", "/a", "a//b", "*"] {
            assert!(check_prefix("t", bad).is_err(), "{bad}");
        }
    }
}
