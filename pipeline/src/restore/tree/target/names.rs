//! Which paths of a repository are acceptable, and how they fall into names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest name that Linux has, in bytes.
const NAME_MAX: usize = 255;

/// Refuses a path that no walk can have produced: with an empty name, `.`, `..`, a NUL, or a name of over 255 bytes.
/// An absolute path has an empty first name. The root itself is no path of something in it.
pub(super) fn check(path: &[u8]) -> Result<()> {
    let is_name = |name: &[u8]| {
        !name.is_empty() && name != b"." && name != b".." && name.len() <= NAME_MAX && !name.contains(&0)
    };
    if path.split(|b| *b == b'/').all(is_name) {
        return Ok(());
    }
    let shown = path[..path.len().min(NAME_MAX)].escape_ascii();
    Err(Error::damaged("entry of a tree", format!("impossible path \"{shown}\"")))
}

/// The path of the directory, empty for the root, and the name in it.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|b| *b == b'/').map_or((&[], path), |slash| (&path[..slash], &path[slash + 1..]))
}

/// For messages.
pub(super) fn join(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        let long = [b'x'; 256];
        let hostile: &[&[u8]] = &[
            b"",
            b"/",
            b"/etc/passwd",
            b"a/",
            b"a//b",
            b".",
            b"..",
            b"a/..",
            b"../a",
            b"a/../b",
            b"./a",
            b"a/.",
            b"a\0b",
            &long,
        ];
        for path in hostile {
            assert_eq!(check(path).unwrap_err().kind(), crate::Kind::Damage, "{}", path.escape_ascii());
        }
        let fine: &[&[u8]] = &[b"a", b"...", b".a", b"a/b", b"\xff\xfe/\x01", b"..a/a..", b" ", &long[1..]];
        for path in fine {
            check(path).unwrap();
        }
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
