//! Temporary files without a name, for what is too large for memory.

use std::fs::File;
use std::io;
use std::path::Path;

/// A temporary file in `preferred`, or where temporary files usually go. In a container only one of the two may be
/// writable, and neither is worth a failed run while the other one is.
pub(crate) fn nameless(preferred: Option<&Path>) -> io::Result<File> {
    nameless_in(preferred, &std::env::temp_dir())
}

fn nameless_in(preferred: Option<&Path>, usual: &Path) -> io::Result<File> {
    match preferred {
        Some(dir) => tempfile::tempfile_in(dir).or_else(|_| tempfile::tempfile_in(usual)),
        None => tempfile::tempfile_in(usual),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn one_writable_place_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(nameless_in(Some(dir.path()), &missing).is_ok());
        assert!(nameless_in(Some(&missing), dir.path()).is_ok());
        assert!(nameless_in(None, dir.path()).is_ok());
        assert!(nameless_in(Some(&missing), &missing).is_err());
    }
}
